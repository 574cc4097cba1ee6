/* sched_internal.h: the scheduler's state, shared by sched.c, sched_plan.c and sched_commit.c. */
#ifndef GLMD_COORDINATOR_SCHED_INTERNAL_H
#define GLMD_COORDINATOR_SCHED_INTERNAL_H

#include "coordinator/sched.h"

struct request_list {
    struct request *first, *last;
    uint32_t n;
};

/* What an item of a plan was for; `request` is NULL when it has ended since. */
struct step_item {
    struct request *request;
    uint32_t seq;
    uint32_t slot, slot_gen;
    uint32_t n_tokens;
    enum plan_output output;
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
    uint32_t n_tokens;
    struct step_item *items; /* owned, [n_slots] */
    uint32_t n_items;
    struct step_group *groups; /* owned, [n_slots] */
    uint32_t n_groups;
};

struct sched {
    struct sched_config config;
    int32_t end_tokens[2];
    uint32_t n_end_tokens;

    struct request_list waiting, running;
    struct request *first_touched, *last_touched;
    uint64_t next_request_id;

    /* the epoch; sized by sched_attach */
    bool attached;
    struct plan_limits limits;
    uint64_t epoch, step;
    struct blocks blocks;
    uint32_t *slot_gens;  /* [n_slots] */
    uint32_t *free_slots; /* stack */
    uint32_t n_free_slots;
    uint32_t n_reserved_slots; /* by running requests, taken or not */
    bool last_exclusive;       /* the last step left the decodes out for a long prefill */
    struct step_record records[SCHED_MAX_IN_FLIGHT];
    uint32_t first_record, n_in_flight;

    /* the plan that is being built, and its memory */
    struct plan plan;
    struct plan_item *items; /* [n_slots] */
    struct plan_beam_group *groups;
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

void list_push(struct request_list *l, struct request *r);
void list_remove(struct request_list *l, struct request *r);
void sched_touch(struct sched *s, struct request *r);

static inline bool is_end_token(const struct sched *s, int32_t token)
{
    for (uint32_t i = 0; i != s->n_end_tokens; i++) {
        if (s->end_tokens[i] == token)
            return true;
    }
    return false;
}

void seq_take_slot(struct sched *s, struct seq *q);
void seq_drop_slot(struct sched *s, struct seq *q);
/* Ends a sequence: its slot and blocks are free, the reservations stay with the request. */
void seq_stop(struct sched *s, struct request *r, struct seq *q);

/* Starts waiting requests, in order, while everything they can need is there. */
void sched_admit(struct sched *s, int64_t now_ns);

/* Starts the current round of a running request; ends the request when memory runs out. */
void round_begin(struct sched *s, struct request *r);
/* Every output of the round is finished. */
void round_end(struct sched *s, struct request *r, int64_t now_ns);

#endif
