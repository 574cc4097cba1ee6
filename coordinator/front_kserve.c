/* front_kserve.c: the Open Inference Protocol over gRPC. What its messages mean is kserve.c's
 * business, what a call does front.c's.
 *
 *   ModelInfer        one request, one answer; a failure is the call's status
 *   ModelStreamInfer  any number of requests side by side (MAX_REQUESTS, or unread answers: then no
 *                     more are read); a failure is an answer with error_message, and the stream
 *                     goes on
 *
 * A request is read by a job (front_job.h), which outlives its RPC when that ends first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_grpc.h"
#include "coordinator/front_internal.h"
#include "coordinator/front_job.h"
#include "coordinator/kserve.h"

enum { MAX_REQUESTS = 64 };

enum method { LIVE, READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, INFER, STREAM_INFER };

/* One RPC; lives until gRPC says that it is over. */
struct kserve_rpc {
    struct coordinator *coordinator;
    enum method method;
    struct rpc_call *rpc;
    struct kserve_job *job;    /* that reads a message; NULL: none is read */
    struct kserve_call *calls; /* that have not ended */
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

/* What becomes of a message. */
struct kserve_job {
    struct front_job job;  /* first */
    struct kserve_rpc *of; /* NULL: it is over */
    enum method method;
    int64_t arrived_ns;
    /* written by `run` */
    struct wire_kserve_infer_request *message; /* owned; NULL: it is none */
    int code;                                  /* why it is of no use; 0 = it is */
    struct err why;
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
    if (k->job || k->n_calls >= MAX_REQUESTS || rpc_queued_bytes(k->rpc) > most)
        rpc_pause(k->rpc);
    else
        rpc_resume(k->rpc);
}

/* A request was refused or has ended: room for another one, or the end of the RPC. */
static void go_on(struct kserve_rpc *k)
{
    if (k->answered) /* also when the RPC is over: nothing more may be asked of it */
        return;
    if (k->half_closed && k->n_calls == 0 && !k->job)
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
    if (k->method == INFER)
        finish_ok(k);
    else
        go_on(k);
}

/* A stream goes on when one of its requests fails. */
static void tell_error(struct kserve_rpc *k, const char *id, const struct front_end *end)
{
    char message[sizeof end->message + 32];
    struct buf out = {0};
    if (k->method == INFER) {
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
        r = kserve_pack(&c->answer, c->of->coordinator->model_name, c->of->method == STREAM_INFER,
                        &out);
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

static int read_request(struct kserve_job *j)
{
    struct kserve_request q;
    int r = kserve_read(j->message, &q, &j->why);
    if (r == 0 && q.stream && j->method == INFER)
        r = err_set(&j->why, -EINVAL, "stream: ModelInfer has one answer; use ModelStreamInfer");
    if (r == 0 && kserve_answer_init(&j->answer, &q, j->message->id, piece_of,
                                     j->job.coordinator->tokenizer) < 0)
        r = err_set(&j->why, -ENOMEM, "out of memory");
    if (r == 0) {
        j->timeout_us = q.timeout_us;
        front_prepare_generate(j->job.coordinator, &q.generate, &j->prepared);
    }
    kserve_request_deinit(&q);
    return r;
}

static void run(struct front_job *job)
{
    struct kserve_job *j = (struct kserve_job *)job;
    j->code = wire_unpack_kserve_infer_request((const uint8_t *)job->input.data, job->input.size,
                                               &j->message, &j->why);
    if (j->code == 0)
        j->code = read_request(j);
}

/* ---- messages: the loop ---- */

static void job_free(struct kserve_job *j)
{
    wire_free_kserve_infer_request(j->message);
    kserve_answer_deinit(&j->answer);
    front_prepared_deinit(&j->prepared);
    buf_deinit(&j->job.input);
    free(j);
}

/* False: refused. */
static bool call_open(struct kserve_rpc *k, struct kserve_job *j, struct front_end *ret_refused)
{
    struct front_origin origin = front_grpc_origin(k->rpc);
    struct kserve_call *c = calloc(1, sizeof *c);
    if (!c) {
        front_refuse(k->coordinator, -ENOMEM, "out of memory", ret_refused);
        return false;
    }
    origin.arrived_ns = j->arrived_ns;
    if (j->timeout_us) {
        int64_t deadline = j->arrived_ns + (int64_t)j->timeout_us * NSEC_PER_USEC;
        origin.deadline_ns = origin.deadline_ns ? MIN(origin.deadline_ns, deadline) : deadline;
    }
    c->of = k;
    c->answer = j->answer;
    j->answer = (struct kserve_answer){0};
    c->front = front_open(k->coordinator, &origin, &j->prepared, &ops, c, ret_refused);
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

static void take(struct kserve_rpc *k, struct kserve_job *j)
{
    struct front_end refused;
    if (j->code == -ECANCELED)
        front_refuse(k->coordinator, j->code, front_job_refusal(j->code), &refused);
    else if (j->code < 0)
        front_refuse(k->coordinator, j->code, j->why.message, &refused);
    if (j->code == 0 && call_open(k, j, &refused))
        coordinator_pump(k->coordinator);
    else if (j->message || j->code == -ECANCELED)
        tell_error(k, j->message ? j->message->id : "", &refused);
    else
        finish(k, &refused); /* what is no message at all ends the RPC */
}

static void on_read(struct front_job *job)
{
    struct kserve_job *j = (struct kserve_job *)job;
    struct kserve_rpc *k = j->of;
    if (k) {
        k->job = NULL;
        take(k, j);
        go_on(k);
    }
    job_free(j);
}

/* It was not read: for once its id is looked for here. */
static void tell_unread(struct kserve_rpc *k, const uint8_t *data, size_t size, int code)
{
    struct wire_kserve_infer_request *w = NULL;
    struct front_end refused;
    front_refuse(k->coordinator, code, front_job_refusal(code), &refused);
    if (k->method == STREAM_INFER)
        wire_unpack_kserve_infer_request(data, size, &w, NULL);
    tell_error(k, w ? w->id : "", &refused);
    wire_free_kserve_infer_request(w);
}

static void read_message(struct kserve_rpc *k, const uint8_t *data, size_t size)
{
    struct kserve_job *j = calloc(1, sizeof *j);
    int r = j ? buf_append(&j->job.input, data, size) : -ENOMEM;
    if (r == 0) {
        j->job.run = run;
        j->job.done = on_read;
        j->of = k;
        j->method = k->method;
        j->arrived_ns = clock_now_ns();
        j->code = -ECANCELED; /* unless it is run */
        k->job = j;
        r = front_job_start(k->coordinator, &j->job);
    }
    if (r < 0) {
        k->job = NULL;
        if (j)
            job_free(j);
        tell_unread(k, data, size, r);
    }
    go_on(k);
}

/* ---- the server and its model ---- */

static bool is_ready(const struct coordinator *c)
{
    return fleet_any_ready(c->fleet) && !c->draining;
}

static int check_model(const struct coordinator *c, const struct wire_kserve_model *w,
                       struct err *e)
{
    if (*w->name && strcmp(w->name, c->model_name) != 0)
        return err_set(e, -ENOENT, "name: unknown; this server has \"%s\"", c->model_name);
    if (*w->version && strcmp(w->version, "1") != 0)
        return err_set(e, -ENOENT, "version: expected none, or 1");
    return 0;
}

static int pack_server(struct buf *out)
{
    static const char *const extensions[] = {"health", "model_metadata", "streaming"};
    const struct wire_kserve_server_metadata m = {
        .name = "glmd",
        .version = GLMD_VERSION,
        .extensions = extensions,
        .n_extensions = ARRAY_LEN(extensions),
    };
    return wire_pack_kserve_server_metadata(&m, out);
}

static int pack_model(const struct coordinator *c, struct buf *out)
{
    static const char *const versions[] = {"1"};
    const struct wire_kserve_model_metadata m = {
        .name = c->model_name,
        .versions = versions,
        .n_versions = 1,
        .platform = "glmd",
        .inputs = kserve_inputs,
        .n_inputs = kserve_n_inputs,
        .outputs = kserve_outputs,
        .n_outputs = KSERVE_N_OUTPUTS,
    };
    return wire_pack_kserve_model_metadata(&m, out);
}

static int answer_model(struct kserve_rpc *k, const uint8_t *data, size_t size, struct buf *out,
                        struct err *e)
{
    const struct coordinator *c = k->coordinator;
    struct wire_kserve_model *w;
    bool metadata = k->method == MODEL_METADATA;
    int r = metadata ? wire_unpack_kserve_model_metadata_request(data, size, &w, e)
                     : wire_unpack_kserve_model_ready_request(data, size, &w, e);
    if (r < 0)
        return r;
    r = check_model(c, w, e);
    if (r == 0)
        r = metadata ? pack_model(c, out)
                     : wire_pack_kserve_model_ready_response(
                           &(struct wire_kserve_ready){.ready = is_ready(c)}, out);
    if (metadata)
        wire_free_kserve_model_metadata_request(w);
    else
        wire_free_kserve_model_ready_request(w);
    return r;
}

static int answer_server(struct kserve_rpc *k, const uint8_t *data, size_t size, struct buf *out,
                         struct err *e)
{
    struct wire_kserve_empty *w; /* the three requests are all empty */
    int r = wire_unpack_kserve_live_request(data, size, &w, e);
    if (r < 0)
        return r;
    wire_free_kserve_live_request(w);
    switch (k->method) {
    case LIVE:
        return wire_pack_kserve_live_response(&(struct wire_kserve_live){.live = true}, out);
    case READY:
        return wire_pack_kserve_ready_response(
            &(struct wire_kserve_ready){.ready = is_ready(k->coordinator)}, out);
    default:
        return pack_server(out);
    }
}

static int answer_at_once(struct kserve_rpc *k, const uint8_t *data, size_t size, struct err *e)
{
    bool of_model = k->method == MODEL_READY || k->method == MODEL_METADATA;
    struct buf out = {0};
    int r = of_model ? answer_model(k, data, size, &out, e) : answer_server(k, data, size, &out, e);
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
    bool is_public = k->method == LIVE || k->method == READY || k->method == MODEL_READY;
    if (is_public || k->allowed ||
        front_allowed(k->coordinator, rpc_metadata(k->rpc, "authorization"), AUTH_USER, &refused))
        return k->allowed = true;
    finish(k, &refused);
    return false;
}

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct kserve_rpc *k = rpc_user(rpc);
    struct err e = ERR_INIT;
    if (k->answered || ((k->n_calls || k->job) && k->method != STREAM_INFER) || !is_allowed(k))
        return;
    if (k->method == INFER || k->method == STREAM_INFER) {
        read_message(k, data, size);
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
    if (k->n_calls || k->job)
        return;
    if (k->method == STREAM_INFER)
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
    if (k->job)
        k->job->of = NULL;
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

static void start_call(struct rpc_call *rpc, struct coordinator *c, enum method method)
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
    start_call(rpc, c, LIVE);
}
static void call_ready(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, READY);
}
static void call_model_ready(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, MODEL_READY);
}
static void call_server_metadata(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, SERVER_METADATA);
}
static void call_model_metadata(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, MODEL_METADATA);
}
static void call_infer(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, INFER);
}
static void call_stream_infer(struct rpc_call *rpc, void *c)
{
    start_call(rpc, c, STREAM_INFER);
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
