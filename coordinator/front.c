/* front.c: see front.h.
 *
 * A call and its request have lives of their own: the call ends when its client or its request
 * does, the request when the scheduler says so. The front_call between them goes when both have. A
 * Generate with prompt_logprobs is two requests, one after the other: its prompt is scored, then it
 * runs.
 */
#include "coordinator/front.h"

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
#include "coordinator/front_internal.h"
#include "coordinator/front_log.h"

#define ANSWER_MARGIN_NS (50 * NSEC_PER_MSEC)

struct front_call {
    struct coordinator *coordinator;
    struct front_call *prev, *next;
    const struct front_ops *ops; /* NULL: the protocol has let go */
    void *user;
    struct request *request; /* that runs: the scheduler has it until it ends */
    struct request *waiting; /* owned: until the log-probabilities of its prompt are there */
    struct stream *stream;   /* owned */
    bool echo;               /* `request` is the score of a prompt */
    struct auth_key *key;    /* whose request it is; NULL = no keys are in force */
    struct auth_cost cost;   /* taken from it */
    uint64_t n_used;         /* tokens of requests that have ended */
    int64_t stalled_ns;      /* the reader is behind since; 0 = it is not */
    struct call_metrics metrics;
    uint64_t timeline; /* its entry */
    char trace[TIMELINE_TRACE_BYTES];
    bool told_first;      /* the first token is in it */
    enum metrics_end end; /* why it was ended from here; METRICS_END_UNKNOWN = it was not */
};

/* ---- life ---- */

static struct front_call *call_new(struct coordinator *c, const struct front_ops *ops, void *user)
{
    struct front_call *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->coordinator = c;
    f->ops = ops;
    f->user = user;
    f->next = c->calls;
    if (c->calls)
        c->calls->prev = f;
    c->calls = f;
    return f;
}

static void call_free(struct front_call *f)
{
    assert(!f->request && !f->waiting);
    if (f->prev)
        f->prev->next = f->next;
    else
        f->coordinator->calls = f->next;
    if (f->next)
        f->next->prev = f->prev;
    auth_end(f->key, &f->cost, f->n_used);
    stream_free(f->stream);
    free(f);
}

enum rpc_status front_status(int code)
{
    switch (code) {
    case -ENOMEM:
    case -ENOBUFS:
    case -EDQUOT:
    case -EBUSY:
        return RPC_RESOURCE_EXHAUSTED;
    case -ECANCELED:
        return RPC_UNAVAILABLE;
    case -EINVAL:
    case -E2BIG:
    case -EBADMSG:
        return RPC_INVALID_ARGUMENT;
    case -ENOENT:
        return RPC_NOT_FOUND;
    case -EACCES:
        return RPC_UNAUTHENTICATED;
    case -EPERM:
        return RPC_PERMISSION_DENIED;
    default:
        return RPC_INTERNAL;
    }
}

/* "beam.num_beams: expected ...": everything in front of the colon, if it can be a field's name. */
static void find_field(const char *message, char *ret, size_t size)
{
    size_t n = strspn(message, "abcdefghijklmnopqrstuvwxyz0123456789_.");
    if (n && n < size && message[n] == ':' && message[0] >= 'a')
        snprintf(ret, size, "%.*s", (int)n, message);
}

/* Of a call that has been counted. */
static void refuse(struct coordinator *c, int code, const char *message, struct front_end *ret)
{
    c->counters.rejected++;
    c->metrics.rejected[metrics_reject_of(code)]++;
    *ret = (struct front_end){.status = front_status(code),
                              .reason = front_reason_refused(code),
                              .retry_after_ns =
                                  code == -EBUSY || code == -ECANCELED ? FRONT_RETRY_NS : 0,
                              .of_key = code == -EDQUOT};
    snprintf(ret->message, sizeof ret->message, "%s", message);
    if (ret->status == RPC_INVALID_ARGUMENT || ret->status == RPC_NOT_FOUND)
        find_field(message, ret->field, sizeof ret->field);
}

void front_refuse(struct coordinator *c, int code, const char *message, struct front_end *ret)
{
    c->counters.total++;
    refuse(c, code, message, ret);
}

/* Tells the protocol the end, and lets go of it. */
static void tell_end(struct front_call *f, const struct front_end *end)
{
    const struct front_ops *ops = f->ops;
    f->ops = NULL;
    if (ops)
        ops->end(f->user, end);
}

static void tell_broken(struct front_call *f, const char *message)
{
    struct front_end end = {.status = RPC_INTERNAL, .reason = "INTERNAL"};
    snprintf(end.message, sizeof end.message, "%s", message);
    tell_end(f, &end);
}

/* ---- opening ---- */

/* What every opening has besides its message. */
struct opening {
    struct coordinator *c;
    const struct front_origin *origin;
    struct auth_key *key;
    const struct front_ops *ops;
    void *user;
    struct front_end *ret_refused;
    int64_t arrived_ns;
};

/* Deadline and owner: what the call says beside its message. */
static void set_origin(const struct opening *o, struct request *r)
{
    if (o->key)
        r->tenant = o->key->tenant;
    else if (o->origin->key && *o->origin->key)
        r->tenant = admit_tenant(o->origin->key);
    const struct config *config = o->c->config;
    int64_t now = o->arrived_ns, deadline = o->origin->deadline_ns;
    int64_t longest = now + config->coordinator.deadlines.max_request;
    r->arrived_ns = now;
    if (deadline == 0)
        deadline = now + config->coordinator.deadlines.request;
    else /* our answer should be there before the client gives up */
        deadline -= MIN(MAX(deadline - now, INT64_C(0)) / 10, ANSWER_MARGIN_NS);
    r->deadline_ns = MIN(deadline, longest);
}

/* Whether this client's generations are taken at all; a refusal is counted. */
static bool check(struct coordinator *c, const char *key, struct auth_key **ret_key,
                  struct front_end *ret_refused)
{
    struct err e = ERR_INIT;
    int code = auth_check(c->auth, key, AUTH_USER, ret_key, &e);
    if (code < 0) {
        refuse(c, code, e.message, ret_refused);
        return false;
    }
    if (!c->draining && !c->stopping)
        return true;
    c->counters.rejected++;
    c->metrics.rejected[METRICS_REJECT_DRAINING]++;
    *ret_refused = (struct front_end){
        .status = RPC_UNAVAILABLE, .reason = "DRAINING", .retry_after_ns = FRONT_RETRY_NS};
    snprintf(ret_refused->message, sizeof ret_refused->message,
             "the server is draining: try another one, or later");
    return false;
}

static bool begin(struct opening *o)
{
    o->c->counters.total++;
    o->arrived_ns = o->origin->arrived_ns ? o->origin->arrived_ns : clock_now_ns();
    return check(o->c, o->origin->key, &o->key, o->ret_refused);
}

bool front_takes(struct coordinator *c, const char *key, struct front_end *ret_refused)
{
    struct auth_key *found;
    bool taken = check(c, key, &found, ret_refused);
    c->counters.total += !taken;
    return taken;
}

bool front_allowed(struct coordinator *c, const char *key, enum auth_need need,
                   struct front_end *ret_refused)
{
    struct auth_key *found;
    struct err e = ERR_INIT;
    int code = auth_check(c->auth, key, need, &found, &e);
    if (code < 0)
        front_refuse(c, code, e.message, ret_refused);
    return code == 0;
}

/* As much of a length that the client left to the server as its key allows in any case. */
static void bound_by_key(struct request *r, const struct auth_key *key)
{
    const struct auth_limits *l = &key->limits;
    uint64_t n_prompt = r->prompt.ids.n, room = r->params.max_new;
    if (l->context)
        room = MIN(room, l->context - MIN(n_prompt, (uint64_t)l->context));
    if (l->tokens_per_minute)
        room = MIN(room, (l->tokens_per_minute - MIN(n_prompt, l->tokens_per_minute)) /
                             MAX(r->params.n_choices, 1u));
    if (room) /* else it is refused as it is */
        r->params.max_new = (uint32_t)room;
}

/* Takes what r (and the score of its prompt in front of it) may need from the client's key. */
static int take_cost(struct front_call *f, const struct request *r, const struct request *next,
                     struct auth_key *key, int64_t *ret_retry_ns, struct err *e)
{
    const struct request *main = next ? next : r;
    uint64_t tokens = request_cost(main) + (next ? request_cost(r) : 0);
    f->cost = (struct auth_cost){
        .tokens = (uint32_t)MIN(tokens, (uint64_t)UINT32_MAX),
        .context = request_max_tokens(main),
        .choices = main->params.beam ? main->params.n_beams : main->params.n_choices,
        .priority = main->priority,
    };
    int code = auth_begin(key, &f->cost, clock_now_ns(), ret_retry_ns, e);
    if (code == 0)
        f->key = key;
    return code;
}

/* The request waits in the queue. */
static void open_timeline(struct front_call *f, const struct opening *o, const struct request *r)
{
    struct coordinator *c = f->coordinator;
    struct sched_stats stats;
    timeline_trace(o->origin->traceparent, f->trace);
    f->timeline = timeline_open(c->timeline, r, f->trace);
    sched_stats(c->sched, &stats);
    timeline_add(c->timeline, f->timeline, WIRE_EVENT_QUEUED, NULL, 0, stats.n_waiting,
                 clock_now_ns());
}

static int start(struct front_call *f, const struct opening *o, struct request *r,
                 struct request *next, bool return_ids, struct err *e)
{
    struct coordinator *c = f->coordinator;
    struct request *main = next ? next : r;
    set_origin(o, r);
    f->metrics.arrived_ns = o->arrived_ns;
    r->user = f;
    if (next) {
        set_origin(o, next);
        next->user = f;
    }
    int code = stream_new(c->tokenizer, model_dir_arch(c->model), main, return_ids, &f->stream);
    if (code < 0)
        return err_set(e, code, "out of memory");
    if (next) /* nobody wants half of the answer */
        code = sched_check(c->sched, next, e);
    if (code == 0)
        code = sched_submit(c->sched, r, e);
    if (code == 0 && !*r->client_id) /* so that the client, and Abort, have a name for it */
        snprintf(r->client_id, sizeof r->client_id, "%s-%" PRIu64, c->id_prefix, r->id);
    if (code == 0)
        open_timeline(f, o, r);
    return code;
}

/* For whoever asks why; without an id nobody can. */
static void note_refused(const struct opening *o, const struct request *r, int code,
                         const char *message)
{
    char trace[TIMELINE_TRACE_BYTES];
    timeline_trace(o->origin->traceparent, trace);
    if (*r->client_id)
        timeline_refuse(o->c->timeline, r, trace, metrics_reject_of(code), message, clock_now_ns());
}

/* Takes r and next. `next`: what runs once r, the score of its prompt, is there; NULL = nothing. */
static struct front_call *submit(const struct opening *o, struct request *r, struct request *next,
                                 bool return_ids)
{
    struct err e = ERR_INIT;
    int64_t retry_ns = 0;
    assert(r);
    struct front_call *f = call_new(o->c, o->ops, o->user);
    if (o->origin->open_ended && o->key)
        bound_by_key(next ? next : r, o->key);
    int code =
        f ? take_cost(f, r, next, o->key, &retry_ns, &e) : err_set(&e, -ENOMEM, "out of memory");
    if (code == 0)
        code = start(f, o, r, next, return_ids, &e);
    if (code == 0) {
        f->request = r;
        f->waiting = next;
        return f;
    }
    note_refused(o, r, code, e.message);
    refuse(o->c, code, e.message, o->ret_refused);
    if (code == -EDQUOT && retry_ns == 0)
        retry_ns = FRONT_RETRY_NS;
    o->ret_refused->retry_after_ns = MAX(retry_ns, r->retry_after_ns);
    request_free(r);
    request_free(next);
    if (f)
        call_free(f);
    return NULL;
}

/* There is no request yet, but its id, if it may have it. */
static void refuse_unadmitted(const struct opening *o, const struct front_prepared *p)
{
    struct request r = {.kind = p->kind, .arrived_ns = o->arrived_ns};
    memcpy(r.client_id, p->id, sizeof r.client_id);
    note_refused(o, &r, p->error.code, p->error.message);
    refuse(o->c, p->error.code, p->error.message, o->ret_refused);
}

/* Takes p. */
static struct front_call *submit_prepared(const struct opening *o, struct front_prepared *p)
{
    struct request *r = p->request, *echo = p->echo;
    if (p->error.code < 0) {
        refuse_unadmitted(o, p);
        front_prepared_deinit(p);
        return NULL;
    }
    p->request = p->echo = NULL;
    struct front_call *f = submit(o, echo ? echo : r, echo ? r : NULL, p->return_ids);
    if (f)
        f->echo = echo != NULL;
    return f;
}

struct front_call *front_open(struct coordinator *c, const struct front_origin *origin,
                              struct front_prepared *p, const struct front_ops *ops, void *user,
                              struct front_end *ret_refused)
{
    struct opening o = {c, origin, NULL, ops, user, ret_refused, 0};
    if (begin(&o))
        return submit_prepared(&o, p);
    front_prepared_deinit(p);
    return NULL;
}

const char *front_request_id(const struct front_call *f)
{
    return f->request->client_id;
}

uint64_t front_timeline(const struct front_call *f)
{
    return f->timeline;
}

/* Something that is not the scheduler's. */
static void note(const struct front_call *f, enum wire_event_kind kind, uint32_t n, int64_t now_ns)
{
    timeline_add(f->coordinator->timeline, f->timeline, kind, NULL, 0, n, now_ns);
}

/* ---- requests that run ---- */

/* What an ended request counts for with its key: nothing when it has only waited. */
static uint64_t used_tokens(const struct request *r)
{
    return r->started_ns ? r->n_prompt_tokens + r->n_completion_tokens : 0;
}

/* A request that has ended: its status, the end of its half of the call. */
static void end_request(struct front_call *f, struct request *r)
{
    struct coordinator *c = f->coordinator;
    if (r->status == RPC_OK)
        c->counters.finished++;
    else if (r->status == RPC_CANCELLED)
        c->counters.cancelled++;
    else
        c->counters.failed++;
    log_event(LOG_LEVEL_DEBUG, LOG(.request = r->client_id, .trace = f->trace),
              "request %" PRIu64 " %s: %s, %u + %" PRIu64 " tokens", r->id, r->client_id,
              rpc_status_name(r->status), r->n_prompt_tokens, r->n_completion_tokens);
    if (c->config->log.prompts)
        front_log_texts(c->tokenizer, r, f->trace);
    int64_t now = clock_now_ns();
    enum metrics_end how = metrics_ended(&c->metrics, &f->metrics, r, f->end, now);
    timeline_end(c->timeline, f->timeline, r, how, now);
    struct front_end end;
    front_set_end(&end, r, how, f->end == METRICS_END_UNAVAILABLE);
    f->request = NULL;
    f->n_used += used_tokens(r);
    request_free(r);
    request_free(f->waiting);
    f->waiting = NULL;
    tell_end(f, &end);
    call_free(f);
}

/* Whoever does not read gets no more until the queue is empty; the others go on. */
static void check_reader(struct front_call *f, struct request *r)
{
    struct coordinator *c = f->coordinator;
    if (f->stalled_ns || r->state == REQUEST_DONE ||
        f->ops->unsent(f->user) <= c->config->coordinator.limits.max_stream_bytes)
        return;
    f->stalled_ns = clock_now_ns();
    note(f, WIRE_EVENT_PAUSED, 0, f->stalled_ns);
    sched_pause(c->sched, r, true);
}

/* The request that waited for the score of its prompt runs. */
static void run_next(struct front_call *f, struct request *scored)
{
    struct coordinator *c = f->coordinator;
    struct err e = ERR_INIT;
    struct request *r = f->waiting;
    f->n_used += used_tokens(scored);
    request_free(scored);
    f->waiting = NULL;
    f->echo = false;
    int code = sched_go_on(c->sched, r, &e);
    f->request = r;
    if (code < 0) {
        r->status = front_status(code);
        snprintf(r->message, sizeof r->message, "%.*s", (int)sizeof r->message - 1, e.message);
        end_request(f, r);
        return;
    }
    check_reader(f, r);
    coordinator_pump(c);
}

/* Tells what is new of r. */
static int tell_news(struct front_call *f, struct request *r)
{
    if (!f->echo)
        return stream_next(f->stream, r, f->ops->message, f->user);
    int code = r->state == REQUEST_DONE;
    while (code == 1)
        code = stream_prompt(f->stream, r, f->waiting, f->ops->message, f->user);
    return code;
}

void front_touched(struct coordinator *c, struct request *r)
{
    struct front_call *f = r->user;
    bool well = r->state != REQUEST_DONE || r->status == RPC_OK;
    metrics_news(&c->metrics, &f->metrics, r);
    if (f->metrics.first_ns && !f->told_first) {
        f->told_first = true;
        note(f, WIRE_EVENT_FIRST_TOKEN, 0, f->metrics.first_ns);
    }
    if (f->ops && well) {
        int code = tell_news(f, r);
        if (code < 0) {
            log_event(LOG_LEVEL_ERROR, LOG(.request = r->client_id, .trace = f->trace),
                      "request %" PRIu64 ": cannot make its message: %s", r->id, err_name(code));
            tell_broken(f, "the answer could not be packed");
            sched_end(c->sched, r, RPC_INTERNAL, "the answer could not be packed");
        } else {
            check_reader(f, r);
        }
    }
    if (r->state != REQUEST_DONE || r->touched)
        return;
    if (f->waiting && f->ops && r->status == RPC_OK)
        run_next(f, r);
    else
        end_request(f, r);
}

void front_drained(struct front_call *f)
{
    if (!f->stalled_ns)
        return;
    f->stalled_ns = 0;
    note(f, WIRE_EVENT_GOES_ON, 0, clock_now_ns());
    sched_pause(f->coordinator->sched, f->request, false);
    coordinator_pump(f->coordinator);
}

/* How long until no step works for it. */
static void count_cancel(struct front_call *f)
{
    struct coordinator *c = f->coordinator;
    const struct request *r = f->request;
    bool runs = r->state == REQUEST_RUNNING;
    if (r->state != REQUEST_DONE)
        metrics_cancel(&c->metrics, r->group, runs ? sched_n_in_flight(c->sched, r->group) : 0,
                       clock_now_ns());
}

void front_gone(struct front_call *f)
{
    struct coordinator *c = f->coordinator;
    int64_t deadline = f->request->deadline_ns;
    bool late = deadline && clock_now_ns() >= deadline;
    f->ops = NULL;
    count_cancel(f);
    sched_end(c->sched, f->request, late ? RPC_DEADLINE_EXCEEDED : RPC_CANCELLED,
              "the client went away");
    coordinator_pump(c); /* frees f */
}

/* ---- all requests ---- */

void front_tick(struct coordinator *c, int64_t now_ns)
{
    int64_t patience = c->config->coordinator.deadlines.slow_reader;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (!f->stalled_ns || now_ns - f->stalled_ns <= patience)
            continue;
        f->end = METRICS_END_SLOW_READER;
        sched_end(c->sched, f->request, RPC_RESOURCE_EXHAUSTED, "the output was not read in time");
    }
}

void front_end_all(struct coordinator *c, enum rpc_status status, const char *why)
{
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (status == RPC_UNAVAILABLE && f->request->state != REQUEST_DONE)
            f->end = METRICS_END_UNAVAILABLE;
        sched_end(c->sched, f->request, status, why);
    }
    coordinator_pump(c);
}

static uint32_t abort_id(struct coordinator *c, const char *request_id)
{
    uint32_t n = 0;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (f->request->state == REQUEST_DONE || strcmp(f->request->client_id, request_id) != 0)
            continue;
        count_cancel(f);
        f->end = METRICS_END_ABORTED;
        sched_end(c->sched, f->request, RPC_CANCELLED, "aborted by an operator");
        n++;
    }
    return n;
}

uint32_t front_abort(struct coordinator *c, const char *request_id)
{
    const char *plain = request_id_behind_prefix(request_id);
    uint32_t n = abort_id(c, request_id);
    if (n == 0 && plain)
        n = abort_id(c, plain);
    c->counters.aborted += n;
    coordinator_pump(c);
    return n;
}

uint32_t front_n_calls(const struct coordinator *c)
{
    uint32_t n = 0;
    for (const struct front_call *f = c->calls; f; f = f->next)
        n++;
    return n;
}
