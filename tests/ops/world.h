/* world.h: what the tests of rope, the paged cache and attention run on: some sequences with their
 * rows of queries, keys and values, rope's tables, and blocks in no particular order. */
#ifndef GLMD_TESTS_OPS_WORLD_H
#define GLMD_TESTS_OPS_WORLD_H

#include "harness.h"

struct model {
    uint32_t n_heads, n_kv_heads, dim, block_tokens;
};

/* `len` tokens, the first `prefix` visible to all of them. */
struct sequence {
    uint32_t len, prefix;
};

enum { WORLD_MAX_SEQS = 16 };

struct world {
    const struct model *m;
    uint32_t n_seqs, n_tokens, row_len, q_len, n_blocks;
    uint32_t row0[WORLD_MAX_SEQS];    /* of a sequence's tokens in qkv and positions */
    float *qkv;                       /* [n_tokens, row_len] */
    float *cos, *sin;                 /* [max_seq, dim / 2] binary16 values */
    int32_t *positions;               /* [n_tokens] below max_seq */
    uint32_t *blocks[WORLD_MAX_SEQS]; /* [max_seq / block_tokens, rounded up]; a few are no one's */
};

/* Borrows the model. No sequence is longer than max_seq tokens. Out of memory: the test fails. */
struct world world_new(const struct model *m, const struct sequence *sequences, uint32_t n_seqs,
                       uint32_t max_seq, struct rng *r);
void world_free(struct world *w);

#endif
