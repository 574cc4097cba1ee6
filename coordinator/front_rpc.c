/* front_rpc.c: the client API over gRPC: calls in, messages of inference.proto out. What a call
 * does between the two is front.c's business.
 *
 *   on_message -> key -> front_message.h: unpack, tokenize, admit -> answer
 *                                                                 -> front_open -> on_news ...
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_grpc.h"
#include "coordinator/front_internal.h"
#include "coordinator/front_message.h"

const char *const front_services[] = {"glmd.v1.Inference", "glmd.v1.Cluster", "glmd.v1.Worker",
                                      "inference.GRPCInferenceService"};
const size_t front_n_services = ARRAY_LEN(front_services);

enum method { GENERATE, FILL, SCORE, TOKENIZE, DETOKENIZE, LIST_MODELS };

/* One RPC; lives until gRPC says that it is over. */
struct rpc_front {
    struct coordinator *coordinator;
    enum method method;
    struct rpc_call *rpc;
    struct front_message *message; /* that is read; NULL: none is */
    struct front_call *call;       /* a generation that has not ended */
    bool told;                     /* a message of its output was sent */
    bool answered;                 /* rpc_finish was called */
};

/* Its message: of every method but ListModels. Written where it is read. */
struct rpc_message {
    struct front_message message;   /* first */
    struct front_prepared prepared; /* of a generation */
    struct buf answer;              /* of the others: packed */
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

static void answer(struct rpc_front *f, const struct buf *message)
{
    rpc_send(f->rpc, message->data, message->size);
    answer_end(f, &(struct front_end){.status = RPC_OK});
}

static void refuse(struct rpc_front *f, int code, const char *why)
{
    struct front_end refused;
    front_refuse(f->coordinator, code, why, &refused);
    answer_end(f, &refused);
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

static void open_generation(struct rpc_front *f, struct rpc_message *m)
{
    struct front_origin origin = front_grpc_origin(f->rpc);
    struct front_end refused;
    origin.arrived_ns = m->message.arrived_ns;
    f->call = front_open(f->coordinator, &origin, &m->prepared, &ops, f, &refused);
    if (f->call)
        coordinator_pump(f->coordinator);
    else
        answer_end(f, &refused);
}

/* ---- messages: any thread ---- */

static int read_generate(struct rpc_message *m, const uint8_t *data, size_t size)
{
    struct wire_generate_request *w;
    int r = wire_unpack_generate_request(data, size, &w, &m->message.why);
    if (r < 0)
        return r;
    front_prepare_generate(m->message.job.coordinator, w, &m->prepared);
    wire_free_generate_request(w);
    return 0;
}

static int read_fill(struct rpc_message *m, const uint8_t *data, size_t size)
{
    struct wire_fill_request *w;
    int r = wire_unpack_fill_request(data, size, &w, &m->message.why);
    if (r < 0)
        return r;
    front_prepare_fill(m->message.job.coordinator, w, &m->prepared);
    wire_free_fill_request(w);
    return 0;
}

static int read_score(struct rpc_message *m, const uint8_t *data, size_t size)
{
    struct wire_score_request *w;
    int r = wire_unpack_score_request(data, size, &w, &m->message.why);
    if (r < 0)
        return r;
    front_prepare_score(m->message.job.coordinator, w, &m->prepared);
    wire_free_score_request(w);
    return 0;
}

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

static int read_tokenize(struct rpc_message *m, const uint8_t *data, size_t size)
{
    const struct coordinator *c = m->message.job.coordinator;
    struct wire_tokenize_request *w;
    int r = wire_unpack_tokenize_request(data, size, &w, &m->message.why);
    if (r < 0)
        return r;
    struct token_list ids = {0};
    r = admit_tokenize(&c->admit, w, &ids, &m->message.why);
    if (r == 0)
        r = pack_tokens(c, &ids, &m->answer);
    token_list_deinit(&ids);
    wire_free_tokenize_request(w);
    return r;
}

static int read_detokenize(struct rpc_message *m, const uint8_t *data, size_t size)
{
    const struct coordinator *c = m->message.job.coordinator;
    struct wire_detokenize_request *w;
    int r = wire_unpack_detokenize_request(data, size, &w, &m->message.why);
    if (r < 0)
        return r;
    struct buf text = {0};
    r = admit_detokenize(&c->admit, w, &text, &m->message.why);
    if (r == 0)
        r = wire_pack_detokenize_response(&(struct wire_detokenize_response){.text = text.data},
                                          &m->answer);
    buf_deinit(&text);
    wire_free_detokenize_request(w);
    return r;
}

static int read_message(struct front_message *message, const uint8_t *data, size_t size)
{
    static int (*const readers[])(struct rpc_message * m, const uint8_t *data, size_t size) = {
        [GENERATE] = read_generate,     [FILL] = read_fill,
        [SCORE] = read_score,           [TOKENIZE] = read_tokenize,
        [DETOKENIZE] = read_detokenize,
    };
    int r = readers[message->method]((struct rpc_message *)message, data, size);
    if (r == -EBADMSG)
        r = err_set(&message->why, -EINVAL, "the request is not a valid message of this method");
    return r;
}

/* ---- messages: the loop ---- */

static bool is_generation(enum method m)
{
    return m == GENERATE || m == FILL || m == SCORE;
}

static void take_message(void *rpc, struct front_message *message)
{
    struct rpc_front *f = rpc;
    struct rpc_message *m = (struct rpc_message *)message;
    if (message->code == -ECANCELED)
        refuse(f, message->code, front_job_refusal(message->code));
    else if (message->code < 0)
        refuse(f, message->code, message->why.message);
    else if (is_generation(f->method))
        open_generation(f, m);
    else
        answer(f, &m->answer);
}

static void deinit_message(struct front_message *message)
{
    struct rpc_message *m = (struct rpc_message *)message;
    front_prepared_deinit(&m->prepared);
    buf_deinit(&m->answer);
}

static const struct front_message_ops message_ops = {
    .size = sizeof(struct rpc_message),
    .read = read_message,
    .take = take_message,
    .deinit = deinit_message,
};

/* ---- calls that are answered at once ---- */

static int list_models(const struct coordinator *c, const uint8_t *data, size_t size,
                       struct buf *out, struct err *e)
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

static void answer_models(struct rpc_front *f, const uint8_t *data, size_t size)
{
    struct buf out = {0};
    struct err e = ERR_INIT;
    int r = list_models(f->coordinator, data, size, &out, &e);
    if (r == 0)
        answer(f, &out);
    else
        refuse(f, r, e.message);
    buf_deinit(&out);
}

/* ---- callbacks ---- */

/* Before anything is made of its message. */
static bool is_taken(struct rpc_front *f)
{
    struct front_end refused;
    if (!is_generation(f->method)) {
        f->answered = !front_rpc_allowed(f->coordinator, f->rpc, AUTH_USER);
        return !f->answered;
    }
    if (front_takes(f->coordinator, rpc_metadata(f->rpc, "authorization"), &refused))
        return true;
    answer_end(f, &refused);
    return false;
}

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct rpc_front *f = rpc_user(rpc);
    if (f->answered || f->call || f->message || !is_taken(f))
        return;
    if (f->method == LIST_MODELS) {
        answer_models(f, data, size);
        return;
    }
    int r = front_message_read(f->coordinator, &message_ops, f->method, f, &f->message, data, size);
    if (r < 0)
        refuse(f, r, front_job_refusal(r));
}

static void on_half_close(struct rpc_call *rpc)
{
    struct rpc_front *f = rpc_user(rpc);
    if (!f->call && !f->message)
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
    front_message_leave(&f->message);
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
