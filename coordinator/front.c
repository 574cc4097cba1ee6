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
    int64_t stalled_ns;      /* the reader is behind since; 0 = it is not */
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
    stream_free(f->stream);
    free(f);
}

enum rpc_status front_status(int code)
{
    return code == -ENOMEM || code == -ENOBUFS                     ? RPC_RESOURCE_EXHAUSTED
           : code == -EINVAL || code == -E2BIG || code == -EBADMSG ? RPC_INVALID_ARGUMENT
                                                                   : RPC_INTERNAL;
}

void front_refuse(struct coordinator *c, int code, const char *message, struct front_end *ret)
{
    c->counters.rejected++;
    *ret = (struct front_end){.status = front_status(code)};
    snprintf(ret->message, sizeof ret->message, "%s", message);
}

/* Tells the protocol the end, and lets go of it. */
static void tell_end(struct front_call *f, const struct front_end *end)
{
    const struct front_ops *ops = f->ops;
    f->ops = NULL;
    if (ops)
        ops->end(f->user, end);
}

static void tell_status(struct front_call *f, enum rpc_status status, const char *message)
{
    struct front_end end = {.status = status};
    snprintf(end.message, sizeof end.message, "%s", message);
    tell_end(f, &end);
}

/* ---- opening ---- */

/* Deadline and owner: what the call says beside its message. */
static void set_origin(const struct coordinator *c, const struct front_origin *o, struct request *r)
{
    if (o->key && *o->key)
        r->tenant = admit_tenant(o->key);
    int64_t now = clock_now_ns(), deadline = o->deadline_ns;
    int64_t longest = now + c->config->coordinator.deadlines.max_request;
    r->arrived_ns = now;
    if (deadline == 0)
        deadline = now + c->config->coordinator.deadlines.request;
    else /* our answer should be there before the client gives up */
        deadline -= MIN(MAX(deadline - now, INT64_C(0)) / 10, ANSWER_MARGIN_NS);
    r->deadline_ns = MIN(deadline, longest);
}

/* Whether generations are taken at all. */
static bool begin(struct coordinator *c, struct front_end *ret_refused)
{
    c->counters.total++;
    if (!c->draining)
        return true;
    c->counters.rejected++;
    *ret_refused = (struct front_end){.status = RPC_UNAVAILABLE};
    snprintf(ret_refused->message, sizeof ret_refused->message,
             "the server is draining: try another one, or later");
    return false;
}

static int start(struct front_call *f, const struct front_origin *origin, struct request *r,
                 struct request *next, bool return_ids, struct err *e)
{
    struct coordinator *c = f->coordinator;
    struct request *main = next ? next : r;
    set_origin(c, origin, r);
    r->user = f;
    if (next) {
        set_origin(c, origin, next);
        next->user = f;
    }
    int code = stream_new(c->tokenizer, model_dir_arch(c->model), main, return_ids, &f->stream);
    if (code < 0)
        return err_set(e, code, "out of memory");
    code = sched_submit(c->sched, r, e);
    if (code == 0 && !*r->client_id) /* so that the client, and Abort, have a name for it */
        snprintf(r->client_id, sizeof r->client_id, "%s-%" PRIu64, c->id_prefix, r->id);
    return code;
}

/* Takes r and next. `next`: what runs once r, the score of its prompt, is there; NULL = nothing. */
static struct front_call *submit(struct coordinator *c, const struct front_origin *origin,
                                 struct request *r, struct request *next, bool return_ids,
                                 const struct front_ops *ops, void *user,
                                 struct front_end *ret_refused)
{
    struct err e = ERR_INIT;
    struct front_call *f = call_new(c, ops, user);
    int code =
        f ? start(f, origin, r, next, return_ids, &e) : err_set(&e, -ENOMEM, "out of memory");
    if (code == 0) {
        f->request = r;
        f->waiting = next;
        return f;
    }
    front_refuse(c, code, e.message, ret_refused);
    ret_refused->retry_after_ns = r->retry_after_ns;
    request_free(r);
    request_free(next);
    if (f)
        call_free(f);
    return NULL;
}

struct front_call *front_generate(struct coordinator *c, const struct front_origin *origin,
                                  const struct wire_generate_request *w,
                                  const struct front_ops *ops, void *user,
                                  struct front_end *ret_refused)
{
    struct request *r = NULL, *echo = NULL;
    struct err e = ERR_INIT;
    int code = 0;
    if (!begin(c, ret_refused))
        return NULL;
    if (w->has_prompt_logprobs)
        code = admit_echo(&c->admit, w, &echo, &e);
    if (code == 0 && !(echo && w->prompt_only))
        code = admit_generate(&c->admit, w, &r, &e);
    if (code < 0) {
        request_free(echo);
        front_refuse(c, code, e.message, ret_refused);
        return NULL;
    }
    struct front_call *f = submit(c, origin, echo ? echo : r, echo ? r : NULL, w->return_token_ids,
                                  ops, user, ret_refused);
    if (f)
        f->echo = echo != NULL;
    return f;
}

struct front_call *front_fill(struct coordinator *c, const struct front_origin *origin,
                              const struct wire_fill_request *w, const struct front_ops *ops,
                              void *user, struct front_end *ret_refused)
{
    struct request *r;
    struct err e = ERR_INIT;
    if (!begin(c, ret_refused))
        return NULL;
    int code = admit_fill(&c->admit, w, &r, &e);
    if (code == 0)
        return submit(c, origin, r, NULL, w->return_token_ids, ops, user, ret_refused);
    front_refuse(c, code, e.message, ret_refused);
    return NULL;
}

struct front_call *front_score(struct coordinator *c, const struct front_origin *origin,
                               const struct wire_score_request *w, const struct front_ops *ops,
                               void *user, struct front_end *ret_refused)
{
    struct request *r;
    struct err e = ERR_INIT;
    if (!begin(c, ret_refused))
        return NULL;
    int code = admit_score(&c->admit, w, &r, &e);
    if (code == 0)
        return submit(c, origin, r, NULL, false, ops, user, ret_refused);
    front_refuse(c, code, e.message, ret_refused);
    return NULL;
}

const char *front_request_id(const struct front_call *f)
{
    return f->request->client_id;
}

/* ---- requests that run ---- */

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
    log_debug("request %" PRIu64 "%s%s: %s, %u + %" PRIu64 " tokens", r->id,
              *r->client_id ? " " : "", r->client_id, rpc_status_name(r->status),
              r->n_prompt_tokens, r->n_completion_tokens);
    struct front_end end = {.status = r->status, .retry_after_ns = r->retry_after_ns};
    snprintf(end.message, sizeof end.message, "%s", r->message);
    f->request = NULL;
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
    f->echo = false;
    int code = sched_submit(c->sched, r, &e);
    f->request = code < 0 ? NULL : r;
    if (code < 0) {
        struct front_end end;
        front_refuse(c, code, e.message, &end);
        end.retry_after_ns = r->retry_after_ns;
        request_free(r);
        tell_end(f, &end);
        call_free(f);
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
    if (f->ops && well) {
        int code = tell_news(f, r);
        if (code < 0) {
            log_error("request %" PRIu64 ": cannot make its message: %s", r->id, err_name(code));
            tell_status(f, RPC_INTERNAL, "the answer could not be packed");
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
    sched_pause(f->coordinator->sched, f->request, false);
    coordinator_pump(f->coordinator);
}

void front_gone(struct front_call *f)
{
    struct coordinator *c = f->coordinator;
    int64_t deadline = f->request->deadline_ns;
    bool late = deadline && clock_now_ns() >= deadline;
    f->ops = NULL;
    sched_end(c->sched, f->request, late ? RPC_DEADLINE_EXCEEDED : RPC_CANCELLED,
              "the client went away");
    coordinator_pump(c); /* frees f */
}

/* ---- all requests ---- */

void front_tick(struct coordinator *c, int64_t now_ns)
{
    int64_t patience = c->config->coordinator.deadlines.slow_reader;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (f->stalled_ns && now_ns - f->stalled_ns > patience)
            sched_end(c->sched, f->request, RPC_RESOURCE_EXHAUSTED,
                      "the output was not read in time");
    }
}

void front_end_all(struct coordinator *c, enum rpc_status status, const char *why)
{
    for (struct front_call *f = c->calls; f; f = f->next)
        sched_end(c->sched, f->request, status, why);
    coordinator_pump(c);
}

uint32_t front_abort(struct coordinator *c, const char *request_id)
{
    uint32_t n = 0;
    for (struct front_call *f = c->calls; f; f = f->next) {
        if (f->request->state == REQUEST_DONE || strcmp(f->request->client_id, request_id) != 0)
            continue;
        sched_end(c->sched, f->request, RPC_CANCELLED, "aborted by an operator");
        n++;
    }
    c->counters.aborted += n;
    coordinator_pump(c);
    return n;
}
