/* front_kserve.c: the Open Inference Protocol over gRPC. What its messages mean is kserve.c's
 * business, what a call does front.c's.
 *
 *   ModelInfer        one request, one answer; a failure is the call's status
 *   ModelStreamInfer  any number of requests side by side (MAX_REQUESTS, or unread answers: then no
 *                     more are read); a failure is an answer with error_message, and the stream
 *                     goes on
 *
 * Calls about the server and its model: front_kserve_info.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_grpc.h"
#include "coordinator/front_internal.h"
#include "coordinator/front_kserve.h"
#include "coordinator/front_message.h"
#include "coordinator/kserve.h"

enum { MAX_REQUESTS = 64 };

/* One RPC; lives until gRPC says that it is over. */
struct kserve_rpc {
    struct coordinator *coordinator;
    enum kserve_method method;
    struct rpc_call *rpc;
    struct front_message *message; /* that is read; NULL: none is */
    struct kserve_call *calls;     /* that have not ended */
    unsigned n_calls;
    bool answered, half_closed, allowed; /* allowed: its key was looked at */
};

/* One request of it. */
struct kserve_call {
    struct kserve_rpc *of;
    struct kserve_call *prev, *next;
    struct front_call *front;
    struct kserve_answer answer;
};

/* One message; written where it is read. */
struct kserve_message {
    struct front_message message;        /* first */
    struct wire_kserve_infer_request *w; /* owned; NULL: it is none */
    uint64_t timeout_us;
    struct kserve_answer answer;
    struct front_prepared prepared;
};

static void finish(struct kserve_rpc *k, const struct front_end *end)
{
    if (k->answered)
        return;
    k->answered = true;
    front_grpc_finish(k->rpc, end);
}

static void finish_ok(struct kserve_rpc *k)
{
    finish(k, &(struct front_end){.status = RPC_OK});
}

/* Reads on while there is room for requests that run, and for answers that wait to be read; long
 * texts one by one, so that a stream has no more of the threads than a call has. */
static void pace(struct kserve_rpc *k)
{
    size_t most = (size_t)k->coordinator->config->coordinator.limits.max_stream_bytes;
    if (k->message || k->n_calls >= MAX_REQUESTS || rpc_queued_bytes(k->rpc) > most)
        rpc_pause(k->rpc);
    else
        rpc_resume(k->rpc);
}

/* A request was refused or has ended: room for another one, or the end of the RPC. */
static void go_on(struct kserve_rpc *k)
{
    if (k->answered) /* also when the RPC is over: nothing more may be asked of it */
        return;
    if (k->half_closed && k->n_calls == 0 && !k->message)
        finish_ok(k);
    else
        pace(k);
}

/* ---- requests that run ---- */

static void call_unlink(struct kserve_call *c)
{
    struct kserve_rpc *k = c->of;
    if (c->prev)
        c->prev->next = c->next;
    else
        k->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    k->n_calls--;
}

static void call_free(struct kserve_call *c)
{
    kserve_answer_deinit(&c->answer);
    free(c);
}

static void call_over(struct kserve_call *c)
{
    struct kserve_rpc *k = c->of;
    call_unlink(c);
    call_free(c);
    if (k->method == KSERVE_INFER)
        finish_ok(k);
    else
        go_on(k);
}

/* A stream goes on when one of its requests fails. */
static void tell_error(struct kserve_rpc *k, const char *id, const struct front_end *end)
{
    char message[sizeof end->message + 32];
    struct buf out = {0};
    if (k->method == KSERVE_INFER) {
        finish(k, end);
        return;
    }
    snprintf(message, sizeof message, "%s: %s", rpc_status_name(end->status), end->message);
    if (kserve_pack_error(id, message, &out) == 0)
        rpc_send(k->rpc, out.data, out.size);
    buf_deinit(&out);
}

static int on_news(void *user, const struct stream_message *m)
{
    struct kserve_call *c = user;
    struct buf out = {0};
    int r = kserve_take(&c->answer, m->generate);
    if (r == 1) {
        r = kserve_pack(&c->answer, c->of->coordinator->model_name,
                        c->of->method == KSERVE_STREAM_INFER, &out);
        if (r == 0)
            rpc_send(c->of->rpc, out.data, out.size);
        buf_deinit(&out);
    }
    return r;
}

static void on_end(void *user, const struct front_end *end)
{
    struct kserve_call *c = user;
    if (end->status != RPC_OK)
        tell_error(c->of, c->answer.id, end);
    call_over(c);
}

static size_t unsent(void *user)
{
    const struct kserve_call *c = user;
    return rpc_queued_bytes(c->of->rpc);
}

static const struct front_ops ops = {.message = on_news, .end = on_end, .unsent = unsent};

/* ---- messages: any thread ---- */

static const char *piece_of(const void *tokenizer, int32_t id)
{
    return tokenizer_piece(tokenizer, id);
}

static int read_request(struct kserve_message *m)
{
    struct err *why = &m->message.why;
    const struct coordinator *c = m->message.job.coordinator;
    struct kserve_request q;
    int r = kserve_read(m->w, &q, why);
    if (r == 0 && q.stream && m->message.method == KSERVE_INFER)
        r = err_set(why, -EINVAL, "stream: ModelInfer has one answer; use ModelStreamInfer");
    if (r == 0 && kserve_answer_init(&m->answer, &q, m->w->id, piece_of, c->tokenizer) < 0)
        r = err_set(why, -ENOMEM, "out of memory");
    if (r == 0) {
        m->timeout_us = q.timeout_us;
        front_prepare_generate(c, &q.generate, &m->prepared);
    }
    kserve_request_deinit(&q);
    return r;
}

static int read_message(struct front_message *message, const uint8_t *data, size_t size)
{
    struct kserve_message *m = (struct kserve_message *)message;
    int r = wire_unpack_kserve_infer_request(data, size, &m->w, &message->why);
    return r < 0 ? r : read_request(m);
}

/* ---- messages: the loop ---- */

static void deinit_message(struct front_message *message)
{
    struct kserve_message *m = (struct kserve_message *)message;
    wire_free_kserve_infer_request(m->w);
    kserve_answer_deinit(&m->answer);
    front_prepared_deinit(&m->prepared);
}

/* False: refused. */
static bool call_open(struct kserve_rpc *k, struct kserve_message *m, struct front_end *ret_refused)
{
    struct front_origin origin = front_grpc_origin(k->rpc);
    struct kserve_call *c = calloc(1, sizeof *c);
    if (!c) {
        front_refuse(k->coordinator, -ENOMEM, "out of memory", ret_refused);
        return false;
    }
    origin.arrived_ns = m->message.arrived_ns;
    if (m->timeout_us) {
        int64_t deadline = origin.arrived_ns + (int64_t)m->timeout_us * NSEC_PER_USEC;
        origin.deadline_ns = origin.deadline_ns ? MIN(origin.deadline_ns, deadline) : deadline;
    }
    c->of = k;
    c->answer = m->answer;
    m->answer = (struct kserve_answer){0};
    c->front = front_open(k->coordinator, &origin, &m->prepared, &ops, c, ret_refused);
    if (!c->front) {
        call_free(c);
        return false;
    }
    c->next = k->calls;
    if (k->calls)
        k->calls->prev = c;
    k->calls = c;
    k->n_calls++;
    return true;
}

static void take_message(void *rpc, struct front_message *message)
{
    struct kserve_rpc *k = rpc;
    struct kserve_message *m = (struct kserve_message *)message;
    int code = message->code;
    struct front_end refused;
    if (code == -ECANCELED)
        front_refuse(k->coordinator, code, front_job_refusal(code), &refused);
    else if (code != 0)
        front_refuse(k->coordinator, code, message->why.message, &refused);
    if (code == 0 && call_open(k, m, &refused))
        coordinator_pump(k->coordinator);
    else if (m->w || code == -ECANCELED)
        tell_error(k, m->w ? m->w->id : "", &refused);
    else
        finish(k, &refused); /* what is no message at all ends the RPC */
    go_on(k);
}

static const struct front_message_ops message_ops = {
    .size = sizeof(struct kserve_message),
    .read = read_message,
    .take = take_message,
    .deinit = deinit_message,
};

/* It was not read: for once its id is looked for here. */
static void tell_unread(struct kserve_rpc *k, const uint8_t *data, size_t size, int code)
{
    struct wire_kserve_infer_request *w = NULL;
    struct front_end refused;
    front_refuse(k->coordinator, code, front_job_refusal(code), &refused);
    if (k->method == KSERVE_STREAM_INFER)
        wire_unpack_kserve_infer_request(data, size, &w, NULL);
    tell_error(k, w ? w->id : "", &refused);
    wire_free_kserve_infer_request(w);
}

static void start_message(struct kserve_rpc *k, const uint8_t *data, size_t size)
{
    int r = front_message_read(k->coordinator, &message_ops, (int)k->method, k, &k->message, data,
                               size);
    if (r < 0)
        tell_unread(k, data, size, r);
    go_on(k);
}

static int answer_at_once(struct kserve_rpc *k, const uint8_t *data, size_t size, struct err *e)
{
    struct buf out = {0};
    int r = kserve_info_answer(k->coordinator, k->method, data, size, &out, e);
    if (r == 0) {
        rpc_send(k->rpc, out.data, out.size);
        finish_ok(k);
    }
    buf_deinit(&out);
    return r;
}

/* ---- callbacks ---- */

/* Whether the process lives is nobody's secret; the rest asks for a key, where keys are in force.
 */
static bool is_allowed(struct kserve_rpc *k)
{
    struct front_end refused;
    if (kserve_info_is_public(k->method) || k->allowed ||
        front_allowed(k->coordinator, rpc_metadata(k->rpc, "authorization"), AUTH_USER, &refused))
        return k->allowed = true;
    finish(k, &refused);
    return false;
}

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct kserve_rpc *k = rpc_user(rpc);
    struct err e = ERR_INIT;
    if (k->answered || ((k->n_calls || k->message) && k->method != KSERVE_STREAM_INFER) ||
        !is_allowed(k))
        return;
    if (k->method == KSERVE_INFER || k->method == KSERVE_STREAM_INFER) {
        start_message(k, data, size);
        return;
    }
    int r = answer_at_once(k, data, size, &e);
    if (r < 0) {
        struct front_end refused;
        front_refuse(k->coordinator, r, e.message, &refused);
        finish(k, &refused);
    }
}

static void on_half_close(struct rpc_call *rpc)
{
    struct kserve_rpc *k = rpc_user(rpc);
    k->half_closed = true;
    if (k->n_calls || k->message)
        return;
    if (k->method == KSERVE_STREAM_INFER)
        finish_ok(k);
    else
        finish(k, &(struct front_end){.status = RPC_INVALID_ARGUMENT,
                                      .reason = front_reason_refused(-EINVAL),
                                      .message = "the call brought no message"});
}

static void on_drained(struct rpc_call *rpc)
{
    struct kserve_rpc *k = rpc_user(rpc);
    /* front_drained pumps, and calls may end meanwhile. */
    struct kserve_call *waiting[MAX_REQUESTS];
    unsigned n = 0;
    for (struct kserve_call *c = k->calls; c; c = c->next)
        waiting[n++] = c;
    while (n) {
        struct kserve_call *c = k->calls;
        while (c && c != waiting[n - 1])
            c = c->next;
        n--;
        if (c) /* still there */
            front_drained(c->front);
    }
    if (!k->answered)
        pace(k);
}

static void on_done(struct rpc_call *rpc, enum rpc_status status, const char *message)
{
    struct kserve_rpc *k = rpc_user(rpc);
    (void)status;
    (void)message;
    k->answered = true;
    front_message_leave(&k->message);
    while (k->calls) {
        struct kserve_call *c = k->calls;
        /* clang 14's analyzer does not see that call_unlink moves k->calls on. */
        struct front_call *front = c->front; /* NOLINT(clang-analyzer-unix.Malloc) */
        call_unlink(c);
        call_free(c);
        front_gone(front); /* calls nothing back for it; others of this RPC may end meanwhile */
    }
    free(k);
}

/* ---- methods ---- */

static void start_call(struct rpc_call *rpc, struct coordinator *c, enum kserve_method method)
{
    static const struct rpc_callbacks callbacks = {
        .on_message = on_message,
        .on_half_close = on_half_close,
        .on_drained = on_drained,
        .on_done = on_done,
    };
    struct kserve_rpc *k = calloc(1, sizeof *k);
    if (!k)
        abort(); /* fifty bytes */
    k->coordinator = c;
    k->method = method;
    k->rpc = rpc;
    rpc_set(rpc, &callbacks, k);
}

static void call_live(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_LIVE);
}
static void call_ready(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_READY);
}
static void call_model_ready(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_MODEL_READY);
}
static void call_server_metadata(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_SERVER_METADATA);
}
static void call_model_metadata(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_MODEL_METADATA);
}
static void call_infer(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_INFER);
}
static void call_stream_infer(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, KSERVE_STREAM_INFER);
}

size_t front_kserve_methods(struct coordinator *c, struct rpc_method *ret)
{
    static const struct {
        const char *path;
        void (*on_call)(struct rpc_call *rpc, void *context);
    } entries[] = {
        {"/inference.GRPCInferenceService/ServerLive", call_live},
        {"/inference.GRPCInferenceService/ServerReady", call_ready},
        {"/inference.GRPCInferenceService/ModelReady", call_model_ready},
        {"/inference.GRPCInferenceService/ServerMetadata", call_server_metadata},
        {"/inference.GRPCInferenceService/ModelMetadata", call_model_metadata},
        {"/inference.GRPCInferenceService/ModelInfer", call_infer},
        {"/inference.GRPCInferenceService/ModelStreamInfer", call_stream_infer},
    };
    for (size_t i = 0; i != ARRAY_LEN(entries); i++)
        ret[i] = (struct rpc_method){
            .path = entries[i].path, .on_call = entries[i].on_call, .context = c};
    return ARRAY_LEN(entries);
}
