/* metrics.h: what the coordinator counts, and the table of everything that it exposes.
 *
 * The fronts tell what happens to calls (front.c), the coordinator what happens to steps; gauges
 * and what scheduler and fleet count themselves are read when somebody asks (metrics_text.c). All
 * intervals come from the monotonic clock of this process and begin when the request arrived at the
 * front, before it was tokenized. Loop thread.
 *
 * Costs, measured (tests/unit/coordinator/test_metrics.c): 10 to 30 ns for a request that has a new
 * token, about as much for a step.
 */
#ifndef GLMD_COORDINATOR_METRICS_H
#define GLMD_COORDINATOR_METRICS_H

#include "base/metrics.h"
#include "coordinator/request.h"

/* ---- the table: metrics_table.c ---- */

enum metric {
    METRIC_BUILD_INFO,
    METRIC_MODEL_INFO,
    METRIC_DRAINING,
    METRIC_PROMPTS_LOGGED,
    METRIC_TLS_EXPIRY,
    METRIC_REQUESTS,
    METRIC_REQUESTS_REJECTED,
    METRIC_REQUESTS_FINISHED,
    METRIC_UNKNOWN_FIELDS,
    METRIC_REQUESTS_REPLAYED,
    METRIC_REQUESTS_RUNNING,
    METRIC_REQUESTS_WAITING,
    METRIC_QUEUE_TOKENS,
    METRIC_PREEMPTIONS,
    METRIC_PROMPT_TOKENS,
    METRIC_GENERATION_TOKENS,
    METRIC_PREFIX_CACHE_QUERIES,
    METRIC_PREFIX_CACHE_HITS,
    METRIC_TTFT,
    METRIC_ITL,
    METRIC_E2E,
    METRIC_QUEUE_TIME,
    METRIC_PREFILL_TIME,
    METRIC_DECODE_TIME,
    METRIC_INFERENCE_TIME,
    METRIC_TIME_PER_TOKEN,
    METRIC_REQUEST_PROMPT_TOKENS,
    METRIC_REQUEST_GENERATION_TOKENS,
    METRIC_ITERATION_TOKENS,
    METRIC_CANCEL_TO_FREE,
    METRIC_GROUP_READY,
    METRIC_GROUP_DRAINING,
    METRIC_GROUP_EPOCH,
    METRIC_GROUP_RUNNING,
    METRIC_GROUP_SLOTS,
    METRIC_GROUP_SLOTS_USED,
    METRIC_KV_BLOCKS,
    METRIC_KV_USAGE,
    METRIC_STEPS,
    METRIC_STEP_TOKENS,
    METRIC_ITEMS_DISCARDED,
    METRIC_TIME_TO_READY,
    METRIC_RANK_RESTARTS,
    METRIC_RANK_READY,
    METRIC_RANK_STEP_AGE,
    METRIC_RANK_HEARD_AGE,
    METRIC_RANK_STEPS,
    METRIC_RANK_COMPUTE,
    METRIC_RANK_COLLECTIVES,
    METRIC_RANK_COLLECTIVE_TIME,
    METRIC_RANK_SAMPLED,
    METRIC_RANK_FENCED,
    METRIC_FENCED,
    METRIC_RANK_MEMORY,
    METRIC_RANK_RESIDENT,
    METRIC_RANK_CPU,
    METRIC_LOOP_CPU,
    METRIC_PROCESS_CPU,
    METRIC_PROCESS_RESIDENT,
    METRIC_PROCESS_VIRTUAL,
    METRIC_PROCESS_OPEN_FDS,
    METRIC_PROCESS_MAX_FDS,
    METRIC_PROCESS_START,
    METRIC_PROCESS_THREADS,
    /* what dashboards made for vLLM ask for: the same numbers under its names */
    METRIC_VLLM_RUNNING,
    METRIC_VLLM_WAITING,
    METRIC_VLLM_KV_USAGE,
    METRIC_VLLM_GPU_CACHE_USAGE,
    METRIC_VLLM_PREFIX_QUERIES,
    METRIC_VLLM_PREFIX_HITS,
    METRIC_VLLM_PREEMPTIONS,
    METRIC_VLLM_PROMPT_TOKENS,
    METRIC_VLLM_GENERATION_TOKENS,
    METRIC_VLLM_SUCCESS,
    METRIC_VLLM_ITERATION_TOKENS,
    METRIC_VLLM_TTFT,
    METRIC_VLLM_ITL,
    METRIC_VLLM_TPOT,
    METRIC_VLLM_TIME_PER_TOKEN,
    METRIC_VLLM_E2E,
    METRIC_VLLM_QUEUE_TIME,
    METRIC_VLLM_INFERENCE_TIME,
    METRIC_VLLM_PREFILL_TIME,
    METRIC_VLLM_DECODE_TIME,
    METRIC_VLLM_REQUEST_PROMPT_TOKENS,
    METRIC_VLLM_REQUEST_GENERATION_TOKENS,
    N_METRICS,
};

extern const struct metrics_registry coordinator_registry;

/* ---- what is kept: metrics.c ---- */

/* Why a request was refused before it was queued. */
enum metrics_reject {
    METRICS_REJECT_QUEUE_FULL, /* limits.max_queue, max_queue_tokens, max_wait; FRONT_JOB_MAX */
    METRICS_REJECT_TOO_LONG,   /* it can run on no group that is or was there */
    METRICS_REJECT_INVALID,
    METRICS_REJECT_DRAINING,
    METRICS_REJECT_UNAUTHORIZED,
    METRICS_REJECT_RATE_LIMITED,
    METRICS_REJECT_ERROR, /* out of memory, and what should not happen */
    METRICS_REJECTS,
};

/* How a request that was queued ended. */
enum metrics_end {
    METRICS_END_UNKNOWN, /* its status tells */
    METRICS_END_STOP,
    METRICS_END_LENGTH,
    METRICS_END_SCORED,
    METRICS_END_CANCELLED, /* the client went away */
    METRICS_END_ABORTED,   /* by an operator */
    METRICS_END_DEADLINE,
    METRICS_END_SLOW_READER,
    METRICS_END_UNAVAILABLE,
    METRICS_END_ERROR,
    METRICS_ENDS,
};

const char *metrics_reject_name(enum metrics_reject reject);
const char *metrics_end_name(enum metrics_end end);
/* The reason behind a negative errno value of admission. */
enum metrics_reject metrics_reject_of(int code);

enum metrics_kept {
    KEPT_TTFT,
    KEPT_ITL,
    KEPT_E2E,
    KEPT_QUEUE,
    KEPT_PREFILL,
    KEPT_DECODE,
    KEPT_INFERENCE,
    KEPT_TIME_PER_TOKEN,
    KEPT_PROMPT_TOKENS,
    KEPT_GENERATION_TOKENS,
    KEPT_ITERATION_TOKENS,
    KEPT_CANCEL_TO_FREE,
    N_KEPT,
};

enum { METRICS_MAX_CANCELS = 64 }; /* measured at once */

/* A cancelled request that may still be in steps that are out. */
struct metrics_cancel {
    uint32_t group, n_steps;
    int64_t since_ns;
};

struct coordinator_metrics { /* zeros and metrics_init */
    uint64_t finished[METRICS_ENDS], rejected[METRICS_REJECTS];
    uint64_t prompt_tokens, generation_tokens, unknown_fields;
    struct metrics_histogram kept[N_KEPT];
    struct metrics_cancel cancels[METRICS_MAX_CANCELS];
    uint32_t n_cancels;
};

void metrics_init(struct coordinator_metrics *m);

/* What is remembered of one client call. */
struct call_metrics {
    int64_t arrived_ns, started_ns, first_ns, last_ns;
    uint64_t n_tokens; /* of the output, seen so far */
    /* From one token of a choice to its next: their sum, and how many. */
    int64_t between_ns;
    uint64_t n_between;
};

/* The call's request has something new. */
void metrics_news(struct coordinator_metrics *m, struct call_metrics *c, const struct request *r);
/* It has ended; `end` may be METRICS_END_UNKNOWN. Returns how. */
enum metrics_end metrics_ended(struct coordinator_metrics *m, struct call_metrics *c,
                               const struct request *r, enum metrics_end end, int64_t now_ns);

/* A step was sent. */
void metrics_step(struct coordinator_metrics *m, uint32_t n_tokens);
/* A request of the group is about to be cancelled while n_steps of it are out; 0 = none, or it
 * waits. The time until the last of them is done is how long it costs anything. */
void metrics_cancel(struct coordinator_metrics *m, uint32_t group, uint32_t n_steps,
                    int64_t now_ns);
/* The group's oldest step is done. */
void metrics_step_done(struct coordinator_metrics *m, uint32_t group, int64_t now_ns);
/* Nothing of the group is out any more. */
void metrics_group_down(struct coordinator_metrics *m, uint32_t group, int64_t now_ns);

#endif
