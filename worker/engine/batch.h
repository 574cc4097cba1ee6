/* batch.h: from a step plan to the rows of a forward pass, and what an engine remembers of its
 * slots in between.
 *
 * The block tables belong to the coordinator: a plan brings the table of every slot it runs, whole
 * or behind what the slot has of it, and this side trusts that the blocks in front of `start` hold
 * what the coordinator put there (that is how beams, n > 1 and choices share a context). What is
 * checked here, before anything runs, is that plan and slots speak of the same sequence:
 *
 *   - start = 0 begins a life of the slot: its generation is greater than every earlier one.
 *   - start > 0 with the slot's generation continues it: `start` is the slot's length and
 *     `prefix_len` is unchanged. A beam (PLAN_OUTPUT_BEAM) may start anywhere: its table may have
 *     become another beam's.
 *   - start > 0 with a greater generation is a fork: the slot begins a life on blocks that other
 *     slots have filled.
 *   - PLAN_TOKEN_PREVIOUS stands only at the first token of an item that continues a slot at its
 *     length, whose last step sampled; not with several pipeline stages.
 *   - a slice that does not begin at layer 0 brings the items of the slice before it (slot,
 *     generation, tokens, positions, prefix, blocks) and begins where that one ended. Their slots
 *     begin their lives with the last slice.
 *   - a history continues what the slot has kept in its generation.
 *   - parameters of sampling that are kept are those of an item of the same generation that had no
 *     bias.
 *   - a block table is whole, or continues all that the slot has of it in its generation.
 *   - steps are numbered without gaps within an epoch.
 */
#ifndef GLMD_WORKER_ENGINE_BATCH_H
#define GLMD_WORKER_ENGINE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "proto/plan.h"
#include "worker/engine/glm.h"

struct batch_slot {
    bool used;
    uint32_t gen;
    uint32_t length; /* tokens in the cache */
    uint32_t prefix_len;
    int32_t sample; /* of the previous step; -1 = it did not sample */
    uint32_t n_history;
    uint32_t n_blocks; /* of its table */
    bool has_sampling; /* its parameters can be kept */
};

struct batch_sliced { /* an item between two slices */
    uint32_t slot, gen;
    uint32_t n_tokens, prefix_len;
    uint64_t content;  /* hash of tokens and positions */
    uint32_t block_at; /* in batch_slices.blocks: those of its tokens */
};

struct batch_slices {           /* the set of sliced items under way */
    uint32_t layer_end;         /* layers that they have run; 0 = there is none */
    struct batch_sliced *items; /* [n_slots] */
    uint32_t n_items;
    uint32_t *blocks; /* [max_tokens / 16 + n_slots] */
};

struct batch_output { /* one row that goes through the head, in plan order */
    uint32_t row;     /* of the batch */
    uint32_t item;
    uint32_t item_row; /* row within the item */
};

/* Everything that a step is made of, allocated once. All arrays owned. */
struct batch {
    struct plan_limits limits;
    struct batch_slot *slots;        /* [n_slots] */
    int32_t *histories;              /* [n_slots, max_seq] what penalties look at */
    uint32_t *tables;                /* [n_slots, plan_max_blocks] */
    struct plan_sampling *samplings; /* [n_slots] of the newest item that chose */
    struct plan_range *forbidden;    /* [n_slots, PLAN_MAX_RANGES] of samplings */
    uint64_t epoch, step;            /* of the last plan; step 0 = none since batch_reset */
    struct batch_slices slices;
    bool no_previous; /* there are several stages: samples are known to the last one only */
    /* the step in progress */
    int32_t *ids, *positions;     /* [max_tokens] */
    struct k_seq *seqs;           /* [n_slots] */
    struct batch_output *outputs; /* [max_tokens] */
    uint32_t n_rows, n_seqs, n_outputs;
    uint32_t n_whole_rows, n_whole_seqs; /* those in front of the sliced ones */
    uint64_t bytes;
};

int batch_init(struct batch *b, const struct plan_limits *limits);
void batch_deinit(struct batch *b);
/* What batch_init allocates. */
uint64_t batch_bytes(const struct plan_limits *limits);

/* Forgets all slots and slices. */
void batch_reset(struct batch *b);

/* plan_validate and the rules above; changes nothing. -EINVAL names the item, what was expected and
 * what was found. */
int batch_check(const struct batch *b, const struct plan *p, struct err *e);

/* How the outputs of an item that chooses are chosen, with the whole history and nothing kept;
 * between batch_build and batch_commit. */
struct plan_sampling batch_sampling(const struct batch *b, const struct plan_item *it);

/* After batch_check: rows, sequences and outputs of the step. Sliced items have outputs with their
 * last slice. */
void batch_build(struct batch *b, const struct plan *p);

/* After the step: slots take their new lengths and samples (results in the plan's order),
 * unfinished slices are remembered. */
void batch_commit(struct batch *b, const struct plan *p, const struct result_item *results);

#endif
