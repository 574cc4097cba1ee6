/* sched_internal.h: the scheduler's state, shared by its files:
 *
 *   sched.c         requests: submit, end, pause, deadlines, rounds
 *   sched_group.c   groups: attach, detach, limits, slots
 *   sched_queue.c   who starts next, and where
 *   sched_plan.c    what goes into the next step
 *   sched_prefill.c how much of a prompt, so that streams do not stall
 *   sched_item.c    one item of it
 *   sched_cache.c   contexts that stay (a module of its own)
 *   sched_context.c how requests use them
 *   sched_commit.c  step results
 *   sched_check.c   invariants
 */
#ifndef GLMD_COORDINATOR_SCHED_INTERNAL_H
#define GLMD_COORDINATOR_SCHED_INTERNAL_H

#include "coordinator/sched.h"
#include "coordinator/sched_cache.h"

struct request_list {
    struct request *first, *last;
    uint32_t n;
};

enum step_role {
    STEP_SLICE,   /* some layers of a sliced prompt, not the last ones */
    STEP_PART,    /* tokens into the cache; more of the sequence follows */
    STEP_CONTEXT, /* the end of the context that all sequences share */
    STEP_SAMPLE,
    STEP_BEAM,
    STEP_SCORE,
};

/* What an item of a plan was for; `request` is NULL when it has ended since. */
struct step_item {
    struct request *request;
    uint32_t seq;
    uint32_t slot, slot_gen;
    enum step_role role;
    uint32_t n_targets;
    uint32_t n_top; /* best tokens beside each score */
};

struct step_group {
    struct request *request;
    uint32_t first_item, n_items;
    uint32_t width;
};

struct step_record {
    uint64_t step;
    int64_t planned_ns;
    uint32_t n_decode;       /* tokens */
    uint64_t n_work;         /* of the others: tokens times layers */
    struct step_item *items; /* owned, [n_slots] */
    uint32_t n_items;
    struct step_group *groups; /* owned, [n_slots] */
    uint32_t n_groups;
};

/* One group of ranks: its memory, the steps that are out, the requests that run on it. */
struct sched_group {
    bool attached;
    bool known; /* `limits` are those of now, or of the last time */
    bool draining;
    bool held; /* the next room is for somebody who has waited for long */
    struct plan_limits limits;
    struct request_list running; /* in the order in which they started */

    /* the epoch; sized by sched_attach */
    uint32_t n_stages, max_in_flight;
    uint64_t epoch, step;
    struct blocks blocks;
    struct cache cache;
    uint64_t n_hits, n_hit_tokens, n_lookup_tokens;
    uint32_t *slot_gens;  /* [n_slots] */
    uint32_t *free_slots; /* stack */
    uint32_t n_free_slots;
    uint32_t n_reserved_slots;   /* by running requests, taken or not */
    bool last_exclusive;         /* the last step left the decodes out for a long prefill */
    struct step_record *records; /* [max_in_flight], a ring */
    uint32_t first_record, n_in_flight;

    /* what steps cost; 0 = not known yet */
    double step_ns; /* of decodes alone */
    double work_ns; /* a prompt token's way through one layer */
    double tokens_per_ns;
    int64_t last_commit_ns;

    /* the prompt that runs some layers at a time, if any: the first n_sliced tokens of a sequence
     */
    struct request *sliced;
    uint32_t sliced_seq, n_sliced, next_layer;

    /* the plan that is being built, and its memory */
    bool unlimited;     /* no stream waits for this step */
    uint64_t work_left; /* of the budget for prefills: tokens times layers */
    bool work_used;
    bool prefill_full; /* whoever comes next has to wait for the next step */
    struct plan plan;
    struct plan_item *items; /* [n_slots] */
    uint32_t max_items;      /* of this step; a beam search is not cut */
    struct plan_beam_group *beam_groups;
    struct plan_copy *copies; /* [n_slots + BEAM_MAX] */
    uint32_t n_copies, capacity_copies;
    int32_t *tokens, *positions, *targets; /* [max_tokens] */
    uint32_t n_tokens;
    int32_t *banned; /* grows; items hold offsets until the plan is complete */
    uint32_t n_banned, capacity_banned;
    uint32_t *banned_at; /* [n_slots] */
    int32_t *history;    /* as banned */
    uint32_t n_history, capacity_history;
    uint32_t *history_at; /* [n_slots] */

    uint64_t n_steps, n_prefill_tokens, n_decode_tokens, n_discarded;
};

/* Who shares fairly with others. */
struct tenant {
    uint64_t id;
    uint64_t served; /* tokens, those of outputs more than once: the least served one is next */
    uint32_t n_requests;
    struct request_list waiting; /* higher priorities first, then in order of arrival */
    struct request *cursor;      /* of the search for the next one */
};

struct sched {
    struct sched_config config;
    int32_t end_tokens[2];
    uint32_t n_end_tokens;

    struct tenant tenants[SCHED_MAX_TENANTS];
    uint32_t n_tenants;
    struct request_list requeued; /* have run before: the first of their priority */
    struct request *requeued_cursor;
    uint32_t n_waiting;
    uint64_t n_waiting_tokens, n_waiting_seqs;
    bool admit_again;    /* something has changed that may let somebody start */
    double mean_output;  /* tokens of the outputs that ended lately */
    int64_t deadline_ns; /* no request's is earlier; 0 = none has one */

    struct request *first_touched, *last_touched;
    uint64_t next_request_id;
    struct sched_stats totals; /* what is counted for all groups, and of those that are forgotten */

    struct sched_group *groups[SCHED_MAX_GROUPS]; /* owned; NULL = never attached */
    uint32_t n_groups;                            /* in use are those below */
};

static inline bool is_end_token(const struct sched *s, int32_t token)
{
    for (uint32_t i = 0; i != s->n_end_tokens; i++) {
        if (s->end_tokens[i] == token)
            return true;
    }
    return false;
}

/* Tells whoever wants to know. */
static inline void sched_tell(const struct sched *s, const struct request *r,
                              enum sched_event event, uint32_t n)
{
    if (s->config.on_event)
        s->config.on_event(s->config.event_context, r, event, s->groups[r->group]->epoch, n);
}

/* ---- sched.c ---- */

void list_push(struct request_list *l, struct request *r);
void list_remove(struct request_list *l, struct request *r);
void sched_touch(struct sched *s, struct request *r);

/* Ends a sequence: its slot and blocks are free, the reservations stay with the request. */
void seq_stop(struct sched_group *g, struct request *r, struct seq *q);

/* Sequence `seq` takes a slot and goes on with what is in its cache; beam `seq`, or the choice that
 * is the seq-th of those without an end. */
void seq_begin(struct sched_group *g, struct request *r, uint32_t seq, uint32_t n_cached);

/* A request whose slots and blocks are reserved starts to run, or goes on after it was requeued. */
void sched_start(struct sched *s, uint32_t group, struct request *r, int64_t now_ns);
/* A running request waits again, at the front of its class; its outputs stay. */
void sched_requeue(struct sched *s, struct request *r);

/* Adds a group's numbers to a sum. */
void sched_add_group_stats(const struct sched *s, uint32_t group, struct sched_stats *sum);

/* Every output of the round is finished. */
void round_end(struct sched *s, struct request *r, int64_t now_ns);

/* ---- sched_group.c ---- */

/* The group that a running request runs on. */
static inline struct sched_group *group_of(const struct sched *s, const struct request *r)
{
    return s->groups[r->group];
}

/* Whether some group that is or was attached can run the request, whose context is prepared: 0, or
 * -E2BIG with the limit. */
int sched_check_fits(const struct sched *s, const struct request *r, struct err *e);

int sched_group_check_fits(const struct sched_group *g, const struct request *r, struct err *e);
void sched_group_free(struct sched_group *g);

void seq_take_slot(struct sched_group *g, struct seq *q);
void seq_drop_slot(struct sched_group *g, struct seq *q);

/* ---- sched_item.c ---- */

/* Tokens that a sequence could run now: of prompt and output, what is not in its cache or on the
 * way, or the sample that is out. */
uint32_t seq_pending(const struct sched_group *g, const struct request *r, const struct seq *q);
/* Adds an item with the first n of them to the plan; false when memory ran out. */
bool plan_add_item(struct sched *s, struct sched_group *g, struct step_record *rec,
                   struct request *r, uint32_t seq, uint32_t n);

/* Adds the sliced prompt, for the layers from g->next_layer on. */
bool plan_add_slice(struct sched *s, struct sched_group *g, struct step_record *rec,
                    uint32_t layer_end);

/* ---- sched_prefill.c ---- */

/* Whether the sequence is being run some layers at a time. */
static inline bool is_sliced(const struct sched_group *g, const struct request *r, uint32_t seq)
{
    return g->sliced == r && g->sliced_seq == seq;
}

/* The part of a pending prefill that cannot be cut by tokens: a prefix. 0 = there is no prefill. */
uint32_t prefill_indivisible(const struct sched_group *g, const struct request *r,
                             const struct seq *q);
/* What the prefills of the next step may cost. */
void prefill_begin(const struct sched *s, struct sched_group *g);
/* As much of a pending prefill as the step has room and time for, perhaps nothing; a prompt may
 * become the group's sliced one. False when memory ran out. */
bool prefill_add(struct sched *s, struct sched_group *g, struct step_record *rec, struct request *r,
                 uint32_t seq);
/* Whether n tokens more fit into the step and its budget. */
bool prefill_fits(const struct sched_group *g, uint64_t n);
/* Whether prefill_add would add at least a token of one that can be cut: the first one of a step
 * goes on however little time there is. */
bool prefill_goes_on(const struct sched_group *g);
void prefill_pay(struct sched_group *g, uint32_t n_tokens, uint32_t n_layers);
/* The next layers of the sliced prompt, behind everything else; false when memory ran out. */
bool prefill_add_slice(struct sched *s, struct sched_group *g, struct step_record *rec);
/* The sliced prompt, if it is this request's, begins again or never ends. */
void prefill_drop_slice(struct sched_group *g, const struct request *r);
/* What a step has taken. */
void prefill_measure(struct sched_group *g, const struct step_record *rec, int64_t now_ns);
/* Moves a mean towards the newest value. */
void average(double *mean, double value);

/* ---- sched_context.c ---- */

/* The request has a new prompt: one of a causal model has no prefix. */
void context_prepare(const struct sched *s, struct request *r);
/* Whether the context is for others only when the round is over; see sched_context.c. */
static inline bool context_waits(const struct request *r)
{
    return r->kind == REQUEST_FILL || r->params.beam;
}
/* Tokens of the prompt, its last one excepted, that the group's cache has. */
uint32_t context_cached(const struct sched_group *g, const struct request *r);
/* What the request can need of the group's blocks when the first n_hit tokens come from the cache.
 */
uint64_t context_blocks(const struct sched_group *g, const struct request *r, uint32_t n_slots,
                        uint32_t n_hit);
/* Takes the first r->n_hit tokens of the prompt from the cache to r->context. */
void context_take(struct sched_group *g, struct request *r);
/* The context of the current round is in the cache of this sequence: others may use it. */
void context_give(struct sched_group *g, struct request *r, const struct seq *q);

/* ---- sched_queue.c ---- */

/* Whether the queue takes one more: 0, or -ENOBUFS and r->retry_after_ns. */
int queue_check(const struct sched *s, struct request *r, struct err *e);
void queue_push(struct sched *s, struct request *r);
/* One that has run before, to the front of its class. */
void queue_push_front(struct sched *s, struct request *r);
void queue_remove(struct sched *s, struct request *r);
/* The request has ended. */
void queue_forget(struct sched *s, struct request *r);
/* Tokens that its tenant was served. */
void queue_charge(struct sched *s, const struct request *r, uint32_t n_prompt, uint32_t n_output);
/* The lists of waiting requests, i = 0, 1, ...; NULL behind the last one. */
const struct request_list *queue_list(const struct sched *s, uint32_t i);

/* Starts waiting requests, in order, while everything they can need is there. */
void sched_admit(struct sched *s, int64_t now_ns);

#endif
