/* plan.h: the step plan. The coordinator decides, ranks obey.
 *
 * A plan says which slots run which tokens in this step, where their KV goes and how their outputs
 * are chosen; a result says what came out. Both are plain structs, used at both ends of the worker
 * stream and by everything that drives an engine in one process. A plan is checked by
 * plan_validate() before an engine sees it, on the sending side as an assertion and on the
 * receiving side as a defence.
 *
 * Slots. A slot is one sequence in the ranks' KV cache: a block table and a length. A slot carries
 * a generation, so that a reused slot cannot be mistaken for its predecessor. The block table
 * belongs to the coordinator, which also counts references: sharing blocks between slots (beams, n
 * > 1, choices of one context) is a matter of tables and of `copies`. A rank keeps the table of a
 * slot as long as its generation lasts: an item brings all of it, or what has come behind the
 * entries that the slot has, usually nothing.
 *
 * Slices. A long bidirectional prompt cannot be cut by tokens, so that it may be cut by layers: its
 * items are `sliced` and run only layers [layer_begin, layer_end) of the plan's slice beside the
 * others, which run all layers. The first slice begins at layer 0, the next plans bring the same
 * sliced items again with the layers that follow, and the last slice ends at n_layers: there the
 * items have their outputs and their slots their lengths. One set of sliced items is under way at a
 * time. A plan whose slice begins at layer 0 drops an unfinished set; other plans leave it waiting.
 */
#ifndef GLMD_PROTO_PLAN_H
#define GLMD_PROTO_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    PLAN_MAX_ITEMS = 1024,    /* items in a plan */
    PLAN_MAX_TOKENS = 65536,  /* tokens in a plan */
    PLAN_MAX_BIAS = 1024,     /* logit biases of one item */
    PLAN_MAX_RANGES = 64,     /* forbidden id ranges of one item */
    PLAN_MAX_BANNED = 4096,   /* banned ids of one item */
    PLAN_MAX_HISTORY = 65536, /* ids that penalties look at, of one item */
    PLAN_MAX_TOP_LOGPROBS = 20,
    PLAN_MAX_SCORE_TOKENS = 1 << 18, /* best tokens beside scores, of a plan: 1.8 MB of result */
    PLAN_MAX_BEAM_WIDTH = 1024,      /* candidates of one beam group */
    PLAN_KV_BLOCK_TOKENS = 16,       /* tokens in a KV block */
};

/* In place of a token id: the token that this slot sampled in its previous step. */
#define PLAN_TOKEN_PREVIOUS (-1)

enum plan_output {
    PLAN_OUTPUT_NONE,   /* fill the KV cache only */
    PLAN_OUTPUT_SAMPLE, /* choose one token from the last row */
    PLAN_OUTPUT_BEAM,   /* the last row takes part in beam group `beam_group` */
    PLAN_OUTPUT_SCORE,  /* log-probability of targets[i] at row i, for every row with target >= 0 */
    PLAN_OUTPUT_LOGITS, /* keep all rows' logits for the caller; in-process engines only */
};

struct plan_bias {
    int32_t token;
    float bias; /* added to the logit before everything else */
};

struct plan_range {
    int32_t begin, end; /* half-open range of ids that must not be chosen */
};

/* How a row's logits become a token. Order as published: bias, temperature, forbidden ids ->
 * -65504, top-k (ties kept), top-p (the crossing token stays), softmax in FP32, one draw. Penalties
 * come before the temperature, min-p behind top-p:
 *
 *   repetition r   an id of the history: logit > 0 ? logit / r : logit * r
 *   frequency f    logit -= f * (times that the id stands in the output)
 *   presence p     logit -= p, when the id stands in the output
 *   min-p m        only ids whose probability is at least m times the largest one
 *
 * The history is prompt and output so far; where the item's first token is PLAN_TOKEN_PREVIOUS, the
 * rank adds that token to the output. A rank keeps the history of a slot as long as its generation
 * lasts: an item brings what stands behind the first n_history_kept ids of the last one that the
 * slot had, usually the newest token. The first item of a generation brings all of it. As a whole
 * it is not longer than a sequence. Log-probabilities are those of the logits with bias, before
 * penalties.
 *
 * A rank keeps the parameters of a slot likewise: an item may say `kept` instead of bringing them
 * again, when the last item of the slot that chose had them and no bias. */
struct plan_sampling {
    bool kept; /* everything is as before but output_index, banned ids and the history: the other
                  fields are not looked at, and there are no bias and no forbidden ids here */
    float temperature;                         /* > 0 */
    uint32_t top_k;                            /* 0 = off, 1 = greedy */
    float top_p;                               /* 0 or >= 1 = off */
    float min_p;                               /* 0 .. 1; 0 = off */
    float repetition_penalty;                  /* > 0; 0 or 1 = off */
    float presence_penalty, frequency_penalty; /* finite; 0 = off */
    /* [n_history]: prompt, then output, behind what is kept; none when all penalties are off */
    const int32_t *history;
    uint32_t n_history, n_history_kept;
    uint32_t n_history_prompt; /* of all ids, kept or new */
    uint64_t seed;             /* Philox key */
    uint64_t request;          /* Philox counter, with choice and output_index */
    uint32_t choice;
    uint32_t output_index;
    uint32_t n_top_logprobs; /* log-probabilities of the best tokens to return; 0 = none. All that
                                PLAN_OUTPUT_SCORE takes from here */
    const struct plan_bias *bias;
    uint32_t n_bias;
    const struct plan_range *forbidden;
    uint32_t n_forbidden;
    const int32_t *banned; /* single ids, e.g. n-gram bans and end tokens before the minimum */
    uint32_t n_banned;
};

struct plan_item {
    uint32_t slot;
    uint32_t slot_gen;
    uint32_t start;      /* tokens of the slot that are in the cache already */
    uint32_t n_tokens;   /* tokens to run now, >= 1 */
    uint32_t prefix_len; /* columns [0, prefix_len) are visible to every row of the slot; row i also
                            sees all columns up to itself. Constant for a slot's life; a prefix
                            must be run as one item (start = 0, n_tokens >= prefix_len). */
    const int32_t *tokens;    /* [n_tokens], ids or PLAN_TOKEN_PREVIOUS */
    const int32_t *positions; /* [n_tokens], 0 .. max_seq - 1 */
    /* [n_blocks]: the slot's block table behind its first n_blocks_kept entries. Entry i of the
     * whole holds tokens [16 i, 16 i + 16); together they cover start + n_tokens tokens. Kept are
     * none, or as many as the slot has. */
    const uint32_t *blocks;
    uint32_t n_blocks, n_blocks_kept;
    bool sliced; /* see above; sliced items stand behind all others */
    enum plan_output output;
    uint32_t beam_group;    /* PLAN_OUTPUT_BEAM: items of a group are neighbours */
    float beam_score;       /* PLAN_OUTPUT_BEAM: score of the beam so far */
    const int32_t *targets; /* PLAN_OUTPUT_SCORE: [n_tokens], -1 = none */
    struct plan_sampling sampling;
};

/* One search; its rows are the items with this group number. */
struct plan_beam_group {
    uint32_t width;     /* W best of all beams * V sums */
    bool deterministic; /* false: W draws without replacement from the softmax of the sums */
    uint64_t seed;
    uint64_t request;
    uint32_t output_index;
};

struct plan_copy { /* copy-on-write: whole block src -> dst, before anything runs */
    uint32_t src, dst;
};

struct plan {
    uint64_t epoch;
    uint64_t step; /* +1 per plan within an epoch, from 1 */
    const struct plan_copy *copies;
    uint32_t n_copies;
    const struct plan_item *items; /* distinct slots */
    uint32_t n_items;
    const struct plan_beam_group *groups;
    uint32_t n_groups;
    uint32_t layer_begin, layer_end; /* of the sliced items; 0, 0 without any */
};

/* What a group of ranks can take; fixed when the group is formed. */
struct plan_limits {
    uint32_t n_slots;
    uint32_t n_blocks;
    uint32_t max_tokens; /* per step */
    uint32_t max_seq;
    uint32_t vocab;
    uint32_t n_top_logprobs;
    uint32_t n_layers; /* of the model, over all stages */
};

struct result_logprob {
    int32_t token;
    float logprob;
};

struct result_item { /* one per plan item, in the plan's order */
    uint32_t slot;
    uint32_t slot_gen;
    int32_t token; /* PLAN_OUTPUT_SAMPLE; -1 otherwise */
    float logprob; /* of `token`, under the distribution before temperature and cuts */
    const struct result_logprob *top; /* n_top, best first */
    const float *scores; /* PLAN_OUTPUT_SCORE: [n_scores], one per row with a target, in order */
    uint32_t n_top;
    uint32_t n_scores;
    /* PLAN_OUTPUT_SCORE: the best tokens of each of these rows, [n_scores, n_top_logprobs] */
    const int32_t *score_tokens;
    const float *score_logprobs;
    uint32_t n_score_tokens;
    const float *logits; /* PLAN_OUTPUT_LOGITS: [n_tokens, vocab]; in-process engines only */
};

struct result_candidate {
    uint32_t item; /* index of the plan item = the beam */
    int32_t token;
    float score;
};

struct result_group {
    const struct result_candidate *candidates; /* best first */
    uint32_t n_candidates;
};

struct step_result { /* memory belongs to whoever made it; valid until its next step */
    uint64_t epoch;
    uint64_t step;
    const struct result_item *items;
    uint32_t n_items;
    const struct result_group *groups;
    uint32_t n_groups;
    uint64_t state_hash; /* rolling hash of the plan's slots and of everything chosen: all ranks of
                            a group must agree */
    int64_t compute_ns;  /* time this rank spent in the step */
};

/* -EINVAL with the item and field that is wrong, what was expected and what was found. Which
 * blocks stand in the kept part of a table it does not know: see plan_check_writes. */
int plan_validate(const struct plan *p, const struct plan_limits *limits, struct err *e);

/* Entries of the longest block table. */
static inline uint32_t plan_max_blocks(const struct plan_limits *limits)
{
    return (limits->max_seq + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
}

/* Every block that a valid plan writes is written by one item and once. tables: [n_slots,
 * plan_max_blocks] what is kept; NULL: blocks that are kept are not looked at. -EINVAL. */
int plan_check_writes(const struct plan *p, const struct plan_limits *limits,
                      const uint32_t *tables, struct err *e);

/* Entries of the item's table. */
static inline uint32_t plan_blocks_total(const struct plan_item *it)
{
    return it->n_blocks_kept + it->n_blocks;
}

/* Ids that penalties look at. */
static inline uint32_t plan_history_total(const struct plan_sampling *s)
{
    return s->n_history_kept + s->n_history;
}

/* Whether the item chooses something: only then its sampling counts. */
static inline bool plan_item_chooses(const struct plan_item *it)
{
    return it->output == PLAN_OUTPUT_SAMPLE || it->output == PLAN_OUTPUT_BEAM;
}

/* One round of the rolling hash (XXH3-64, seeded with `seed`): what an engine calls after a step.
 */
uint64_t plan_state_hash(uint64_t seed, const struct plan *p, const struct result_item *items,
                         const struct result_group *groups);

#endif
