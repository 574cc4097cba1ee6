/* metrics.c: what the coordinator counts. See metrics.h. */
#include "coordinator/metrics.h"

#include <assert.h>
#include <errno.h>

#include "base/clock.h"
#include "base/util.h"

/* vLLM's, so that dashboards and alerts keep their meaning. */
static const double ttft_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                     0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                     20,    40,    80,   160,  640,  2560};
static const double itl_bounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                    0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double request_bounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double token_bounds[] = {1,   2,   5,    10,   20,   50,    100,
                                      200, 500, 1000, 2000, 5000, 10000, 20000};
static const double iteration_bounds[] = {1,   8,    16,   32,   64,   128,  256,
                                          512, 1024, 2048, 4096, 8192, 16384};
/* Not vLLM's: within a step is what is promised. */
static const double cancel_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                       0.25,  0.5,    1,     2.5,  5,     10};

#define BUCKETS(bounds)                                                                            \
    {                                                                                              \
        bounds, ARRAY_LEN(bounds)                                                                  \
    }
static const struct metrics_buckets buckets[N_KEPT] = {
    [KEPT_TTFT] = BUCKETS(ttft_bounds),
    [KEPT_ITL] = BUCKETS(itl_bounds),
    [KEPT_E2E] = BUCKETS(request_bounds),
    [KEPT_QUEUE] = BUCKETS(request_bounds),
    [KEPT_PREFILL] = BUCKETS(request_bounds),
    [KEPT_DECODE] = BUCKETS(request_bounds),
    [KEPT_INFERENCE] = BUCKETS(request_bounds),
    [KEPT_TIME_PER_TOKEN] = BUCKETS(itl_bounds),
    [KEPT_PROMPT_TOKENS] = BUCKETS(token_bounds),
    [KEPT_GENERATION_TOKENS] = BUCKETS(token_bounds),
    [KEPT_ITERATION_TOKENS] = BUCKETS(iteration_bounds),
    [KEPT_CANCEL_TO_FREE] = BUCKETS(cancel_bounds),
};

void metrics_init(struct coordinator_metrics *m)
{
    *m = (struct coordinator_metrics){0};
    for (size_t i = 0; i != N_KEPT; i++) {
        assert(buckets[i].n <= METRICS_MAX_BUCKETS);
        m->kept[i].buckets = &buckets[i];
    }
}

const char *metrics_reject_name(enum metrics_reject reject)
{
    static const char *const names[] = {"queue_full",   "too_long",     "invalid", "draining",
                                        "unauthorized", "rate_limited", "error"};
    return names[reject];
}

const char *metrics_end_name(enum metrics_end end)
{
    static const char *const names[] = {"unknown",     "stop",    "length",   "scored",
                                        "cancelled",   "aborted", "deadline", "slow_reader",
                                        "unavailable", "error"};
    return names[end];
}

enum metrics_reject metrics_reject_of(int code)
{
    switch (code) {
    case -ENOBUFS:
    case -EBUSY:
        return METRICS_REJECT_QUEUE_FULL;
    case -ECANCELED:
        return METRICS_REJECT_DRAINING;
    case -E2BIG:
        return METRICS_REJECT_TOO_LONG;
    case -EINVAL:
    case -EBADMSG:
        return METRICS_REJECT_INVALID;
    case -EACCES:
    case -EPERM:
        return METRICS_REJECT_UNAUTHORIZED;
    case -EDQUOT:
        return METRICS_REJECT_RATE_LIMITED;
    default:
        return METRICS_REJECT_ERROR;
    }
}

/* ---- requests ---- */

static void observe_time(struct coordinator_metrics *m, enum metrics_kept kept, int64_t ns,
                         uint64_t n)
{
    metrics_observe(&m->kept[kept], (double)MAX(ns, INT64_C(0)) / (double)NSEC_PER_SEC, n);
}

void metrics_news(struct coordinator_metrics *m, struct call_metrics *c, const struct request *r)
{
    if (c->started_ns == 0 && r->started_ns) {
        c->started_ns = r->started_ns;
        observe_time(m, KEPT_QUEUE, c->started_ns - c->arrived_ns, 1);
    }
    uint64_t n_new = r->n_completion_tokens - c->n_tokens;
    if (r->kind == REQUEST_SCORE || n_new == 0)
        return;
    m->generation_tokens += n_new;
    if (c->n_tokens == 0) {
        c->first_ns = r->first_token_ns;
        m->prompt_tokens += r->n_prompt_tokens;
        observe_time(m, KEPT_TTFT, c->first_ns - c->arrived_ns, 1);
    } else {
        observe_time(m, KEPT_ITL, r->last_token_ns - c->last_ns, n_new);
        c->between_ns += (r->last_token_ns - c->last_ns) * (int64_t)n_new;
        c->n_between += n_new;
    }
    c->last_ns = r->last_token_ns;
    c->n_tokens = r->n_completion_tokens;
}

static enum metrics_end end_of(const struct request *r)
{
    switch (r->status) {
    case RPC_OK:
        if (r->kind == REQUEST_SCORE)
            return METRICS_END_SCORED;
        return r->n_outputs && r->outputs[0].finish == FINISH_LENGTH ? METRICS_END_LENGTH
                                                                     : METRICS_END_STOP;
    case RPC_CANCELLED:
        return METRICS_END_CANCELLED;
    case RPC_DEADLINE_EXCEEDED:
        return METRICS_END_DEADLINE;
    case RPC_UNAVAILABLE:
        return METRICS_END_UNAVAILABLE;
    default:
        return METRICS_END_ERROR;
    }
}

enum metrics_end metrics_ended(struct coordinator_metrics *m, struct call_metrics *c,
                               const struct request *r, enum metrics_end end, int64_t now_ns)
{
    metrics_news(m, c, r); /* it may have ended with its first token */
    if (end == METRICS_END_UNKNOWN)
        end = end_of(r);
    m->finished[end]++;
    observe_time(m, KEPT_E2E, now_ns - c->arrived_ns, 1);
    if (r->kind == REQUEST_SCORE && r->status == RPC_OK) {
        m->prompt_tokens += r->n_prompt_tokens;
        observe_time(m, KEPT_INFERENCE, r->last_token_ns - c->started_ns, 1);
        observe_time(m, KEPT_PREFILL, r->last_token_ns - c->started_ns, 1);
        metrics_observe(&m->kept[KEPT_PROMPT_TOKENS], r->n_prompt_tokens, 1);
    }
    if (c->first_ns == 0)
        return end;
    observe_time(m, KEPT_PREFILL, c->first_ns - c->started_ns, 1);
    observe_time(m, KEPT_DECODE, c->last_ns - c->first_ns, 1);
    observe_time(m, KEPT_INFERENCE, c->last_ns - c->started_ns, 1);
    if (c->n_between)
        observe_time(m, KEPT_TIME_PER_TOKEN, c->between_ns / (int64_t)c->n_between, 1);
    metrics_observe(&m->kept[KEPT_PROMPT_TOKENS], r->n_prompt_tokens, 1);
    metrics_observe(&m->kept[KEPT_GENERATION_TOKENS], (double)c->n_tokens, 1);
    return end;
}

/* ---- steps ---- */

void metrics_step(struct coordinator_metrics *m, uint32_t n_tokens)
{
    metrics_observe(&m->kept[KEPT_ITERATION_TOKENS], n_tokens, 1);
}

void metrics_cancel(struct coordinator_metrics *m, uint32_t group, uint32_t n_steps, int64_t now_ns)
{
    if (n_steps == 0)
        observe_time(m, KEPT_CANCEL_TO_FREE, 0, 1);
    else if (m->n_cancels != METRICS_MAX_CANCELS)
        m->cancels[m->n_cancels++] = (struct metrics_cancel){group, n_steps, now_ns};
}

/* The group's steps are done, one of them or, with `all`, as many as are out. */
static void settle_cancels(struct coordinator_metrics *m, uint32_t group, bool all, int64_t now_ns)
{
    for (uint32_t i = 0; i != m->n_cancels;) {
        struct metrics_cancel *x = &m->cancels[i];
        if (x->group != group || (--x->n_steps && !all)) {
            i++;
            continue;
        }
        observe_time(m, KEPT_CANCEL_TO_FREE, now_ns - x->since_ns, 1);
        *x = m->cancels[--m->n_cancels];
    }
}

void metrics_step_done(struct coordinator_metrics *m, uint32_t group, int64_t now_ns)
{
    settle_cancels(m, group, false, now_ns);
}

void metrics_group_down(struct coordinator_metrics *m, uint32_t group, int64_t now_ns)
{
    settle_cancels(m, group, true, now_ns);
}
