/* sched.h: what runs in the next step.
 *
 * A pure function of (state, time): requests, block accounts and slots go in, a step plan comes
 * out; a step result goes in, tokens come out. No clock, no sockets, no randomness: the same calls
 * give the same plans. Loop thread.
 *
 * Order. Higher priorities start first; within one, requests that have run before, then those of
 * the tenant that was served the fewest tokens (prompts once, outputs twice; who comes back is
 * lifted to the least that anybody who is here was served), then in order of arrival. A request
 * starts when slots and KV blocks for its whole life can be reserved; nothing that runs can run out
 * of memory later. One that does not fit lets others pass for two seconds, then it gets the next
 * room. One of a higher priority makes room for itself: the youngest requests of the lowest
 * priority go back to the front of their class and are computed again later, each at most three
 * times. The queue is bounded in requests, tokens and predicted time to the first token.
 *
 * Steps. Each step runs one token of every live sequence plus as many waiting prefills as fit the
 * group's step size; a prefill that does not fit beside the decodes gets a step of its own, never
 * two in a row.
 *
 * Prompts beside streams. While streams run, the prompts in a step may cost prefill_budget_ns for
 * each of the group's requests that wait for their first token, once at least (scores have none to
 * wait for), for at most SCHED_MAX_BUDGETS of them: as many as fit, or a part of one, or, of a
 * bidirectional prompt that costs more, as many layers as fit, at least one (plan.h, "Slices").
 * What a token costs in a layer is measured on the steps that were committed. So the time from one
 * token of a stream to the next is at most
 *
 *   a step of decodes + prefill_budget_ns * min(max(n waiting, 1), SCHED_MAX_BUDGETS)
 *                     + the prompt's time in one layer
 *
 * however long the prompts are, as far as the measurement holds. One prompt stalls nobody; a crowd
 * is not kept waiting for a few streams, which would leave the device with small steps at both
 * ends. Without streams a prompt runs whole. One prompt is sliced at a time.
 *
 * One step ahead. Step n + 1 is planned while n runs: a sampling sequence with one token out gets
 * its next item with PLAN_TOKEN_PREVIOUS in that token's place. Whatever ends the sequence (end
 * token, stop id, stop string, cancellation) then leaves at most one token behind that was computed
 * for nothing; its result finds a slot that is another generation's and is dropped unseen. Beams
 * wait for their candidates, and choices for their context.
 *
 * Blocks and slots that such a sequence gives back may still be written by the step that is out.
 * They can be given away at once all the same: they can only get into a plan that is made later,
 * ranks run steps in order, and a step's copies and writes come after everything the step before
 * did; nobody reads a cell that he has not written or copied in the same table before.
 *
 * Contexts stay in the cache when a request ends, as long as nobody else wants the memory: a
 * request of the same tenant with exactly the same context runs only its last token; causal prompts
 * share the blocks that they begin with.
 *
 * Groups. One queue feeds all groups; a group is a copy of the model on some ranks, with slots,
 * blocks and limits of its own. A request runs on one of them. When a group is lost (sched_detach),
 * its requests go back to the front of the queue with their outputs; the next group that has room
 * computes their caches again, prompt and output, and the streams continue as if nothing had
 * happened. Groups may have several pipeline stages: n_stages + 1 steps are out at once then, each
 * with its share of the sequences, and nothing runs ahead of its sample.
 */
#ifndef GLMD_COORDINATOR_SCHED_H
#define GLMD_COORDINATOR_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/request.h"
#include "model/arch.h"

enum {
    SCHED_MAX_GROUPS = 1024,
    SCHED_MAX_STAGES = 32,
    SCHED_MAX_TENANTS = 256, /* that have requests here; more share places */
    SCHED_MAX_IN_FLIGHT = SCHED_MAX_STAGES + 1,
    SCHED_MAX_BUDGETS = 10, /* times that prompts may cost prefill_budget_ns in a step */
    /* A request that was in a step of a lost group this often is not tried again: it may be what
     * kills them. */
    SCHED_MAX_LOSSES = 2,
};

struct sched; /* opaque */

/* What happens to a request besides its tokens. */
enum sched_event {
    SCHED_STARTED,   /* n: tokens of the prompt that the cache had */
    SCHED_PREFILL,   /* a step was planned with some of it that is not a decode; n: tokens */
    SCHED_PREEMPTED, /* n: tokens of the output so far */
    SCHED_LOST,      /* its group was lost, it waits again; n: likewise */
};

struct sched_config {
    const struct arch *arch;   /* borrowed */
    uint32_t max_queue;        /* requests that wait */
    uint64_t max_queue_tokens; /* of their prompts; one request always may wait; 0 = no limit */
    int64_t max_wait_ns;       /* predicted time to the first token; 0 = no limit */
    int64_t prefill_budget_ns; /* time that a prompt may add to a step; see above */
    bool slices;               /* the ranks run sliced items */
    /* Somebody is told, on the group r->group of this epoch; NULL = nobody. */
    void (*on_event)(void *context, const struct request *r, enum sched_event event, uint64_t epoch,
                     uint32_t n);
    void *event_context;
};

struct sched_group_stats {
    bool attached;
    uint32_t n_running;
    uint32_t n_slots, n_slots_used;   /* 0 unless attached */
    uint32_t n_blocks, n_blocks_used; /* likewise */
    uint32_t n_blocks_cached;         /* unused ones that hold a context still */
    uint64_t n_steps;
    uint64_t n_prefill_tokens, n_decode_tokens;
    uint64_t n_discarded;          /* items computed for sequences that had ended */
    uint64_t n_hits, n_hit_tokens; /* prompts that began in the cache, and how much of them */
    uint64_t n_lookup_tokens;      /* of all prompts that were looked up there */
};

struct sched_stats { /* sums over all groups, and the queue */
    uint32_t n_attached;
    uint32_t n_waiting, n_running;
    uint64_t n_waiting_tokens;
    uint32_t n_slots, n_slots_used;
    uint32_t n_blocks, n_blocks_used, n_blocks_cached;
    uint64_t n_steps;
    uint64_t n_prefill_tokens, n_decode_tokens, n_discarded;
    uint64_t n_hits, n_hit_tokens, n_lookup_tokens;
    uint64_t n_resumed;   /* times that a request had to go on after its group was lost */
    uint64_t n_preempted; /* times that one made room for a higher priority */
};

int sched_new(const struct sched_config *config, struct sched **ret);
void sched_free(struct sched *s); /* requests must have ended */

/* Group number `group` is ready: steps can be planned for it. -EINVAL: its limits contradict the
 * model. Waiting requests that can run on no group that is or was there end at once. */
int sched_attach(struct sched *s, uint32_t group, const struct plan_limits *limits,
                 uint32_t n_stages, uint64_t epoch, struct err *e);
/* The epoch of a group is over: its requests wait again, unless they have seen SCHED_MAX_LOSSES of
 * these; those end with INTERNAL and this reason. */
void sched_detach(struct sched *s, uint32_t group, const char *why);
bool sched_attached(const struct sched *s, uint32_t group);
/* A draining group starts no more requests, and goes on with those that it has. */
void sched_drain(struct sched *s, uint32_t group, bool draining);
/* The number of a group that is not attached may be another one's from now on. */
void sched_forget(struct sched *s, uint32_t group);

/* Whether some group that is or was attached can run a request that is not submitted yet: 0, or
 * -E2BIG with the limit. */
int sched_check(const struct sched *s, struct request *r, struct err *e);
/* -ENOBUFS: the queue is full; the message and r->retry_after_ns say when to try again. -E2BIG: it
 * can never run on any group that is or was there (the message says which limit). Otherwise the
 * scheduler holds the request until REQUEST_DONE. */
int sched_submit(struct sched *s, struct request *r, struct err *e);
/* The second request of a call whose first one, which the queue took, has just ended: the bounds of
 * the queue are not asked again, as its client has the first half. At most one for each. -E2BIG as
 * above. */
int sched_go_on(struct sched *s, struct request *r, struct err *e);

/* Ends a request now; its slots and blocks are free for the next plan. Outputs of steps in flight
 * are discarded. Nothing happens to a request that is done. */
void sched_end(struct sched *s, struct request *r, enum rpc_status status, const char *message);

/* A paused request keeps its memory and takes part in no step. */
void sched_pause(struct sched *s, struct request *r, bool paused);

/* Ends every request whose deadline has passed. Returns the earliest deadline left, 0 = none. */
int64_t sched_expire(struct sched *s, int64_t now_ns);

/* Plans the next step of a group; false when there is nothing to do for it, or n_stages + 1 plans
 * are out. Valid until the next call for the group. -ENOMEM ends the request that hit it, not the
 * step. Whenever something has changed (a request came or ended, a group came, a result was
 * committed), call it for every group until it says false. */
bool sched_plan(struct sched *s, uint32_t group, int64_t now_ns, const struct plan **ret_plan);

/* The result of the oldest plan of a group that is out. -EBADMSG: it does not answer that plan: the
 * group cannot be trusted any more, nothing was committed. */
int sched_commit(struct sched *s, uint32_t group, const struct step_result *result, int64_t now_ns,
                 struct err *e);

uint32_t sched_n_in_flight(const struct sched *s, uint32_t group);
uint32_t sched_n_requests(const struct sched *s); /* waiting and running */

/* Requests with something new, each once, in the order of their events; NULL when there are no
 * more. */
struct request *sched_next_touched(struct sched *s);

void sched_stats(const struct sched *s, struct sched_stats *ret);
void sched_group_stats(const struct sched *s, uint32_t group, struct sched_group_stats *ret);

/* Conservation: blocks, slots, reservations and lists agree. For tests; O(everything). */
bool sched_consistent(const struct sched *s);

#endif
