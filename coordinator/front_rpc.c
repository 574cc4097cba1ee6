/* front_rpc.c: the client API over gRPC: calls in, requests to the scheduler, messages out.
 *
 * A call and its request have lives of their own: the call ends when gRPC says so (on_done), the
 * request when the scheduler says so. The front_call between them goes when both have. A Generate
 * with prompt_logprobs is two requests, one after the other: its prompt is scored, then it runs.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/stream.h"

const char *const front_services[] = {"glmd.v1.Inference", "glmd.v1.Cluster", "glmd.v1.Worker"};
const size_t front_n_services = ARRAY_LEN(front_services);

#define ANSWER_MARGIN_NS (50 * NSEC_PER_MSEC)

enum method { GENERATE, FILL, SCORE, TOKENIZE, DETOKENIZE, LIST_MODELS };

struct front_call {
    struct coordinator *coordinator;
    struct front_call *prev, *next;
    enum method method;
    struct rpc_call *rpc;    /* NULL after on_done */
    struct request *request; /* NULL before and after */
    struct request *waiting; /* owned: until the log-probabilities of its prompt are there */
    struct stream *stream;   /* owned */
    bool answered;           /* rpc_finish was called */
    int64_t stalled_ns;      /* the reader is behind since; 0 = it is not */
};

/* ---- life ---- */

static void link_call(struct front_call *f)
{
    struct coordinator *c = f->coordinator;
    f->next = c->calls;
    if (c->calls)
        c->calls->prev = f;
    c->calls = f;
}

static void free_if_over(struct front_call *f)
{
    if (f->rpc || f->request)
        return;
    if (f->prev)
        f->prev->next = f->next;
    else
        f->coordinator->calls = f->next;
    if (f->next)
        f->next->prev = f->prev;
    assert(!f->waiting);
    stream_free(f->stream);
    free(f);
}

static void answer(struct front_call *f, enum rpc_status status, const char *message)
{
    if (!f->rpc || f->answered)
        return;
    f->answered = true;
    rpc_finish(f->rpc, status, message);
}

/* Bad input, or no memory. */
static void reject(struct front_call *f, int code, const struct err *e)
{
    f->coordinator->counters.rejected++;
    enum rpc_status status = code == -ENOMEM || code == -ENOBUFS ? RPC_RESOURCE_EXHAUSTED
                             : code == -EINVAL || code == -E2BIG ? RPC_INVALID_ARGUMENT
                                                                 : RPC_INTERNAL;
    answer(f, status, e->message);
}

/* ---- requests that run ---- */

/* Deadline and owner: what the call says beside its message. */
static void set_origin(const struct coordinator *c, const struct rpc_call *rpc, struct request *r)
{
    const char *key = rpc_metadata(rpc, "authorization");
    if (key && *key)
        r->tenant = admit_tenant(key);
    int64_t now = clock_now_ns(), deadline = rpc_deadline_ns(rpc);
    int64_t longest = now + c->config->coordinator.deadlines.max_request;
    r->arrived_ns = now;
    if (deadline == 0)
        deadline = now + c->config->coordinator.deadlines.request;
    else /* our answer should be there before the client gives up */
        deadline -= MIN(MAX(deadline - now, INT64_C(0)) / 10, ANSWER_MARGIN_NS);
    r->deadline_ns = MIN(deadline, longest);
}

/* `next`: what runs once r, the score of its prompt, is there; NULL = nothing. */
static void submit(struct front_call *f, struct request *r, struct request *next, bool return_ids)
{
    struct coordinator *c = f->coordinator;
    struct err e = ERR_INIT;
    struct request *main = next ? next : r;
    set_origin(c, f->rpc, r);
    r->user = f;
    if (next) {
        set_origin(c, f->rpc, next);
        next->user = f;
    }
    int code = stream_new(c->tokenizer, model_dir_arch(c->model), main, return_ids, &f->stream);
    if (code < 0)
        err_set(&e, code, "out of memory");
    if (code == 0)
        code = sched_submit(c->sched, r, &e);
    if (code < 0) {
        request_free(r);
        request_free(next);
        reject(f, code, &e);
        return;
    }
    if (!*r->client_id) /* so that the client, and Abort, have a name for it */
        snprintf(r->client_id, sizeof r->client_id, "%s-%" PRIu64, c->id_prefix, r->id);
    f->request = r;
    f->waiting = next;
    coordinator_pump(c);
}

static void on_generate(struct front_call *f, const uint8_t *data, size_t size, struct err *e,
                        int *ret_code)
{
    const struct admit *a = &f->coordinator->admit;
    struct wire_generate_request *w;
    struct request *r = NULL, *echo = NULL;
    *ret_code = wire_unpack_generate_request(data, size, &w, e);
    if (*ret_code < 0)
        return;
    if (w->has_prompt_logprobs)
        *ret_code = admit_echo(a, w, &echo, e);
    if (*ret_code == 0 && !(echo && w->prompt_only))
        *ret_code = admit_generate(a, w, &r, e);
    if (*ret_code == 0)
        submit(f, echo ? echo : r, echo ? r : NULL, w->return_token_ids);
    else
        request_free(echo);
    wire_free_generate_request(w);
}

static void on_fill(struct front_call *f, const uint8_t *data, size_t size, struct err *e,
                    int *ret_code)
{
    struct wire_fill_request *w;
    struct request *r = NULL;
    *ret_code = wire_unpack_fill_request(data, size, &w, e);
    if (*ret_code < 0)
        return;
    *ret_code = admit_fill(&f->coordinator->admit, w, &r, e);
    if (*ret_code == 0)
        submit(f, r, NULL, w->return_token_ids);
    wire_free_fill_request(w);
}

static void on_score(struct front_call *f, const uint8_t *data, size_t size, struct err *e,
                     int *ret_code)
{
    struct wire_score_request *w;
    struct request *r = NULL;
    *ret_code = wire_unpack_score_request(data, size, &w, e);
    if (*ret_code < 0)
        return;
    *ret_code = admit_score(&f->coordinator->admit, w, &r, e);
    if (*ret_code == 0)
        submit(f, r, NULL, false);
    wire_free_score_request(w);
}

/* A request that has ended: last message, status, the end of its half of the call. */
static void end_request(struct front_call *f, struct request *r)
{
    struct coordinator *c = f->coordinator;
    if (r->status == RPC_OK)
        c->counters.finished++;
    else if (r->status == RPC_CANCELLED)
        c->counters.cancelled++;
    else
        c->counters.failed++;
    log_debug("request %" PRIu64 "%s%s: %s, %u + %" PRIu64 " tokens", r->id,
              *r->client_id ? " " : "", r->client_id, rpc_status_name(r->status),
              r->n_prompt_tokens, r->n_completion_tokens);
    answer(f, r->status, r->message);
    f->request = NULL;
    request_free(r);
    request_free(f->waiting);
    f->waiting = NULL;
    free_if_over(f);
}

/* Whoever does not read gets no more until the queue is empty; the others go on. */
static void check_reader(struct front_call *f, struct request *r)
{
    struct coordinator *c = f->coordinator;
    if (f->stalled_ns || r->state == REQUEST_DONE ||
        rpc_queued_bytes(f->rpc) <= c->config->coordinator.limits.max_stream_bytes)
        return;
    f->stalled_ns = clock_now_ns();
    sched_pause(c->sched, r, true);
}

/* The request that waited for the score of its prompt runs. */
static void run_next(struct front_call *f, struct request *scored)
{
    struct coordinator *c = f->coordinator;
    struct err e = ERR_INIT;
    struct request *r = f->waiting;
    request_free(scored);
    f->waiting = NULL;
    int code = sched_submit(c->sched, r, &e);
    f->request = code < 0 ? NULL : r;
    if (code < 0) {
        request_free(r);
        reject(f, code, &e);
        return;
    }
    check_reader(f, r);
    coordinator_pump(c);
}

/* Sends what is new of r. */
static int send_news(struct front_call *f, struct request *r)
{
    bool is_echo = f->method == GENERATE && r->kind == REQUEST_SCORE;
    int code = 1;
    if (is_echo && r->state != REQUEST_DONE)
        return 0;
    for (bool more = true; more && code == 1; more = is_echo) {
        struct buf out = {0};
        code = is_echo ? stream_prompt(f->stream, r, f->waiting, &out)
                       : stream_next(f->stream, r, &out);
        if (code == 1)
            rpc_send(f->rpc, out.data, out.size);
        buf_deinit(&out);
    }
    return code;
}

void front_touched(struct coordinator *c, struct request *r)
{
    struct front_call *f = r->user;
    bool well = r->state != REQUEST_DONE || r->status == RPC_OK;
    if (f->rpc && !f->answered && well) {
        int code = send_news(f, r);
        if (code < 0) {
            log_error("request %" PRIu64 ": cannot make its message: %s", r->id, err_name(code));
            answer(f, RPC_INTERNAL, "the answer could not be packed");
            sched_end(c->sched, r, RPC_INTERNAL, "the answer could not be packed");
        } else {
            check_reader(f, r);
        }
    }
    if (r->state != REQUEST_DONE || r->touched)
        return;
    if (f->waiting && f->rpc && !f->answered && r->status == RPC_OK)
        run_next(f, r);
    else
        end_request(f, r);
}

void front_tick(struct coordinator *c, int64_t now_ns)
{
    int64_t patience = c->config->coordinator.deadlines.slow_reader;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (f->request && f->stalled_ns && now_ns - f->stalled_ns > patience)
            sched_end(c->sched, f->request, RPC_RESOURCE_EXHAUSTED,
                      "the output was not read in time");
    }
}

void front_end_all(struct coordinator *c, enum rpc_status status, const char *why)
{
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (f->request)
            sched_end(c->sched, f->request, status, why);
    }
    coordinator_pump(c);
}

uint32_t front_abort(struct coordinator *c, const char *request_id)
{
    uint32_t n = 0;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (!f->request || f->request->state == REQUEST_DONE ||
            strcmp(f->request->client_id, request_id) != 0)
            continue;
        sched_end(c->sched, f->request, RPC_CANCELLED, "aborted by an operator");
        n++;
    }
    c->counters.aborted += n;
    coordinator_pump(c);
    return n;
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

static void answer_at_once(struct front_call *f, const uint8_t *data, size_t size, struct err *e,
                           int *ret_code)
{
    struct buf out = {0};
    struct coordinator *c = f->coordinator;
    *ret_code = f->method == TOKENIZE     ? on_tokenize(c, data, size, &out, e)
                : f->method == DETOKENIZE ? on_detokenize(c, data, size, &out, e)
                                          : on_list_models(c, data, size, &out, e);
    if (*ret_code == 0) {
        rpc_send(f->rpc, out.data, out.size);
        answer(f, RPC_OK, "");
    }
    buf_deinit(&out);
}

/* ---- callbacks ---- */

static bool is_generation(const struct front_call *f)
{
    return f->method == GENERATE || f->method == FILL || f->method == SCORE;
}

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct front_call *f = rpc_user(rpc);
    struct err e = ERR_INIT;
    int code = 0;
    if (f->answered || f->request)
        return;
    if (is_generation(f)) {
        f->coordinator->counters.total++;
        if (f->coordinator->draining) {
            f->coordinator->counters.rejected++;
            answer(f, RPC_UNAVAILABLE, "the server is draining: try another one, or later");
            return;
        }
    }
    if (f->method == GENERATE)
        on_generate(f, data, size, &e, &code);
    else if (f->method == FILL)
        on_fill(f, data, size, &e, &code);
    else if (f->method == SCORE)
        on_score(f, data, size, &e, &code);
    else
        answer_at_once(f, data, size, &e, &code);
    if (code == -EBADMSG)
        code = err_set(&e, -EINVAL, "the request is not a valid message of this method");
    if (code < 0)
        reject(f, code, &e);
}

static void on_half_close(struct rpc_call *rpc)
{
    struct front_call *f = rpc_user(rpc);
    if (!f->request && !f->answered)
        answer(f, RPC_INVALID_ARGUMENT, "the call brought no message");
}

static void on_drained(struct rpc_call *rpc)
{
    struct front_call *f = rpc_user(rpc);
    if (!f->stalled_ns)
        return;
    f->stalled_ns = 0;
    if (f->request) {
        sched_pause(f->coordinator->sched, f->request, false);
        coordinator_pump(f->coordinator);
    }
}

static void on_done(struct rpc_call *rpc, enum rpc_status status, const char *message)
{
    struct front_call *f = rpc_user(rpc);
    struct coordinator *c = f->coordinator;
    (void)status;
    (void)message;
    f->rpc = NULL;
    if (!f->request) {
        free_if_over(f);
        return;
    }
    int64_t deadline = f->request->deadline_ns;
    bool late = deadline && clock_now_ns() >= deadline;
    sched_end(c->sched, f->request, late ? RPC_DEADLINE_EXCEEDED : RPC_CANCELLED,
              "the client went away");
    coordinator_pump(c); /* frees f */
}

struct method_entry {
    const char *path;
    void (*on_call)(struct rpc_call *rpc, void *context);
};

static void start_call(struct rpc_call *rpc, struct coordinator *c, enum method method)
{
    static const struct rpc_callbacks callbacks = {
        .on_message = on_message,
        .on_half_close = on_half_close,
        .on_drained = on_drained,
        .on_done = on_done,
    };
    struct front_call *f = calloc(1, sizeof *f);
    if (!f)
        abort(); /* a hundred bytes */
    f->coordinator = c;
    f->method = method;
    f->rpc = rpc;
    link_call(f);
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

size_t front_methods(struct coordinator *c, struct rpc_method *ret)
{
    static const struct method_entry entries[] = {
        {"/glmd.v1.Inference/Generate", call_generate},
        {"/glmd.v1.Inference/Fill", call_fill},
        {"/glmd.v1.Inference/Score", call_score},
        {"/glmd.v1.Inference/Tokenize", call_tokenize},
        {"/glmd.v1.Inference/Detokenize", call_detokenize},
        {"/glmd.v1.Inference/ListModels", call_list_models},
        {"/glmd.v1.Cluster/Status", status_on_call},
        {"/glmd.v1.Cluster/Drain", cluster_on_drain},
        {"/glmd.v1.Cluster/Abort", cluster_on_abort},
    };
    for (size_t i = 0; i != ARRAY_LEN(entries); i++)
        ret[i] = (struct rpc_method){
            .path = entries[i].path, .on_call = entries[i].on_call, .context = c};
    return ARRAY_LEN(entries);
}
