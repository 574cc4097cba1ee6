/* front_rpc.c: the client API over gRPC: calls in, messages of inference.proto out. What a call
 * does between the two is front.c's business. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_grpc.h"
#include "coordinator/front_internal.h"

const char *const front_services[] = {"glmd.v1.Inference", "glmd.v1.Cluster", "glmd.v1.Worker",
                                      "inference.GRPCInferenceService"};
const size_t front_n_services = ARRAY_LEN(front_services);

enum method { GENERATE, FILL, SCORE, TOKENIZE, DETOKENIZE, LIST_MODELS };

/* One RPC; lives until gRPC says that it is over. */
struct rpc_front {
    struct coordinator *coordinator;
    enum method method;
    struct rpc_call *rpc;
    struct front_call *call; /* a generation that has not ended */
    bool told;               /* a message of its output was sent */
    bool answered;           /* rpc_finish was called */
};

bool front_rpc_allowed(struct coordinator *c, struct rpc_call *rpc, enum auth_need need)
{
    struct front_end refused;
    if (c->admin_server && rpc_server_of(rpc) == c->admin_server &&
        strncmp(c->config->coordinator.admin_listen, "unix:", 5) == 0)
        return true;
    if (front_allowed(c, rpc_metadata(rpc, "authorization"), need, &refused))
        return true;
    front_grpc_finish(rpc, &refused);
    return false;
}

static void answer_end(struct rpc_front *f, const struct front_end *end)
{
    if (f->answered)
        return;
    f->answered = true;
    front_grpc_finish(f->rpc, end);
}

/* ---- generations ---- */

static int on_news(void *user, const struct stream_message *m)
{
    struct rpc_front *f = user;
    struct buf out = {0};
    int r = stream_pack(&out, m);
    if (r == 0) {
        rpc_send(f->rpc, out.data, out.size);
        f->told = true;
    }
    buf_deinit(&out);
    return r;
}

/* A stream that was lost with a part of it told is no call to be made again just so: ABORTED says
 * that the client has to think about it, and the details how far it came. */
static void on_end(void *user, const struct front_end *end)
{
    struct rpc_front *f = user;
    struct front_end lost = *end;
    f->call = NULL;
    if (f->told && end->status == RPC_UNAVAILABLE) {
        lost.status = RPC_ABORTED;
        lost.retry_after_ns = 0;
    }
    answer_end(f, &lost);
}

static size_t unsent(void *user)
{
    const struct rpc_front *f = user;
    return rpc_queued_bytes(f->rpc);
}

static const struct front_ops ops = {.message = on_news, .end = on_end, .unsent = unsent};

static int open_generate(struct rpc_front *f, const struct front_origin *o, const uint8_t *data,
                         size_t size, struct front_end *refused, struct err *e)
{
    struct wire_generate_request *w;
    int r = wire_unpack_generate_request(data, size, &w, e);
    if (r < 0)
        return r;
    f->call = front_generate(f->coordinator, o, w, &ops, f, refused);
    wire_free_generate_request(w);
    return 0;
}

static int open_fill(struct rpc_front *f, const struct front_origin *o, const uint8_t *data,
                     size_t size, struct front_end *refused, struct err *e)
{
    struct wire_fill_request *w;
    int r = wire_unpack_fill_request(data, size, &w, e);
    if (r < 0)
        return r;
    f->call = front_fill(f->coordinator, o, w, &ops, f, refused);
    wire_free_fill_request(w);
    return 0;
}

static int open_score(struct rpc_front *f, const struct front_origin *o, const uint8_t *data,
                      size_t size, struct front_end *refused, struct err *e)
{
    struct wire_score_request *w;
    int r = wire_unpack_score_request(data, size, &w, e);
    if (r < 0)
        return r;
    f->call = front_score(f->coordinator, o, w, &ops, f, refused);
    wire_free_score_request(w);
    return 0;
}

static int open_generation(struct rpc_front *f, const uint8_t *data, size_t size, struct err *e)
{
    const struct front_origin origin = front_grpc_origin(f->rpc);
    struct front_end refused;
    int r = f->method == GENERATE ? open_generate(f, &origin, data, size, &refused, e)
            : f->method == FILL   ? open_fill(f, &origin, data, size, &refused, e)
                                  : open_score(f, &origin, data, size, &refused, e);
    if (r == 0 && !f->call)
        answer_end(f, &refused);
    else if (r == 0)
        coordinator_pump(f->coordinator);
    return r;
}

/* ---- calls that are answered at once ---- */

static int pack_tokens(const struct coordinator *c, const struct token_list *ids, struct buf *out)
{
    const char **pieces = alloc_array(ids->n, sizeof *pieces);
    if (!pieces)
        return -ENOMEM;
    for (size_t i = 0; i != ids->n; i++)
        pieces[i] = tokenizer_piece(c->tokenizer, ids->ids[i]);
    const struct wire_tokenize_response response = {
        .ids = ids->ids,
        .n_ids = (uint32_t)ids->n,
        .pieces = pieces,
        .n_pieces = (uint32_t)ids->n,
    };
    int r = wire_pack_tokenize_response(&response, out);
    free(pieces);
    return r;
}

static int on_tokenize(struct coordinator *c, const uint8_t *data, size_t size, struct buf *out,
                       struct err *e)
{
    struct wire_tokenize_request *w;
    int r = wire_unpack_tokenize_request(data, size, &w, e);
    if (r < 0)
        return r;
    struct token_list ids = {0};
    r = admit_tokenize(&c->admit, w, &ids, e);
    if (r == 0)
        r = pack_tokens(c, &ids, out);
    token_list_deinit(&ids);
    wire_free_tokenize_request(w);
    return r;
}

static int on_detokenize(struct coordinator *c, const uint8_t *data, size_t size, struct buf *out,
                         struct err *e)
{
    struct wire_detokenize_request *w;
    int r = wire_unpack_detokenize_request(data, size, &w, e);
    if (r < 0)
        return r;
    struct buf text = {0};
    r = admit_detokenize(&c->admit, w, &text, e);
    if (r == 0)
        r = wire_pack_detokenize_response(&(struct wire_detokenize_response){.text = text.data},
                                          out);
    buf_deinit(&text);
    wire_free_detokenize_request(w);
    return r;
}

static int on_list_models(struct coordinator *c, const uint8_t *data, size_t size, struct buf *out,
                          struct err *e)
{
    struct wire_list_models_request *w;
    int r = wire_unpack_list_models_request(data, size, &w, e);
    if (r < 0)
        return r;
    wire_free_list_models_request(w);
    struct wire_model_info model;
    status_model(c, &model);
    return wire_pack_list_models_response(
        &(struct wire_list_models_response){.models = &model, .n_models = 1}, out);
}

static int answer_at_once(struct rpc_front *f, const uint8_t *data, size_t size, struct err *e)
{
    struct buf out = {0};
    struct coordinator *c = f->coordinator;
    if (!front_rpc_allowed(c, f->rpc, AUTH_USER)) {
        f->answered = true;
        return 0;
    }
    int r = f->method == TOKENIZE     ? on_tokenize(c, data, size, &out, e)
            : f->method == DETOKENIZE ? on_detokenize(c, data, size, &out, e)
                                      : on_list_models(c, data, size, &out, e);
    if (r == 0) {
        rpc_send(f->rpc, out.data, out.size);
        answer_end(f, &(struct front_end){.status = RPC_OK});
    }
    buf_deinit(&out);
    return r;
}

/* ---- callbacks ---- */

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct rpc_front *f = rpc_user(rpc);
    struct err e = ERR_INIT;
    if (f->answered || f->call)
        return;
    bool at_once = f->method == TOKENIZE || f->method == DETOKENIZE || f->method == LIST_MODELS;
    int r = at_once ? answer_at_once(f, data, size, &e) : open_generation(f, data, size, &e);
    if (r == -EBADMSG)
        r = err_set(&e, -EINVAL, "the request is not a valid message of this method");
    if (r < 0) {
        struct front_end refused;
        front_refuse(f->coordinator, r, e.message, &refused);
        answer_end(f, &refused);
    }
}

static void on_half_close(struct rpc_call *rpc)
{
    struct rpc_front *f = rpc_user(rpc);
    if (!f->call)
        answer_end(f, &(struct front_end){.status = RPC_INVALID_ARGUMENT,
                                          .reason = front_reason_refused(-EINVAL),
                                          .message = "the call brought no message"});
}

static void on_drained(struct rpc_call *rpc)
{
    struct rpc_front *f = rpc_user(rpc);
    if (f->call)
        front_drained(f->call);
}

static void on_done(struct rpc_call *rpc, enum rpc_status status, const char *message)
{
    struct rpc_front *f = rpc_user(rpc);
    (void)status;
    (void)message;
    if (f->call)
        front_gone(f->call);
    free(f);
}

struct method_entry {
    const char *path;
    void (*on_call)(struct rpc_call *rpc, void *context);
    bool admin;
};

static void start_call(struct rpc_call *rpc, struct coordinator *c, enum method method)
{
    static const struct rpc_callbacks callbacks = {
        .on_message = on_message,
        .on_half_close = on_half_close,
        .on_drained = on_drained,
        .on_done = on_done,
    };
    struct rpc_front *f = calloc(1, sizeof *f);
    if (!f)
        abort(); /* fifty bytes */
    f->coordinator = c;
    f->method = method;
    f->rpc = rpc;
    rpc_set(rpc, &callbacks, f);
}

static void call_generate(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, GENERATE);
}
static void call_fill(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, FILL);
}
static void call_score(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, SCORE);
}
static void call_tokenize(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, TOKENIZE);
}
static void call_detokenize(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, DETOKENIZE);
}
static void call_list_models(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, LIST_MODELS);
}

size_t front_methods(struct coordinator *c, bool admin, struct rpc_method *ret)
{
    static const struct method_entry entries[] = {
        {"/glmd.v1.Inference/Generate", call_generate},
        {"/glmd.v1.Inference/Fill", call_fill},
        {"/glmd.v1.Inference/Score", call_score},
        {"/glmd.v1.Inference/Tokenize", call_tokenize},
        {"/glmd.v1.Inference/Detokenize", call_detokenize},
        {"/glmd.v1.Inference/ListModels", call_list_models},
        {"/glmd.v1.Cluster/Status", status_on_call},
        {"/glmd.v1.Cluster/Drain", cluster_on_drain, true},
        {"/glmd.v1.Cluster/Abort", cluster_on_abort, true},
        {"/glmd.v1.Cluster/Metrics", metrics_on_call},
        {"/glmd.v1.Cluster/Why", why_on_call, true},
    };
    size_t n = 0;
    for (size_t i = 0; i != ARRAY_LEN(entries); i++) {
        if (admin || !entries[i].admin)
            ret[n++] = (struct rpc_method){
                .path = entries[i].path, .on_call = entries[i].on_call, .context = c};
    }
    return n + front_kserve_methods(c, ret + n);
}
