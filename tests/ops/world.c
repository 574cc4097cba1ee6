/* world.c: sequences for the tests of attention and its kin (world.h). */
#include "world.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>

static void make_tables(struct world *w, uint32_t max_seq)
{
    size_t n = (size_t)max_seq * w->m->dim / 2;
    w->cos = op_malloc(n * sizeof *w->cos);
    w->sin = op_malloc(n * sizeof *w->sin);
    for (size_t i = 0; i < n; i++) {
        w->cos[i] = half_round(cosf((float)i));
        w->sin[i] = half_round(sinf((float)i));
    }
}

/* Dealt out in a shuffled order. */
static void deal_blocks(struct world *w, uint32_t max_seq, struct rng *r)
{
    enum { UNUSED = 5 };
    uint32_t per_seq = (max_seq + w->m->block_tokens - 1) / w->m->block_tokens;
    w->n_blocks = per_seq * w->n_seqs + UNUSED;
    uint32_t *deck = op_malloc(w->n_blocks * sizeof *deck), next = 0;
    for (uint32_t i = 0; i < w->n_blocks; i++)
        deck[i] = i;
    for (uint32_t i = w->n_blocks - 1; i > 0; i--) {
        uint32_t other = rng_below(r, i + 1), t = deck[i];
        deck[i] = deck[other];
        deck[other] = t;
    }
    for (uint32_t s = 0; s < w->n_seqs; s++) {
        w->blocks[s] = op_malloc(per_seq * sizeof *w->blocks[s]);
        for (uint32_t b = 0; b < per_seq; b++)
            w->blocks[s][b] = deck[next++];
    }
    free(deck);
}

struct world world_new(const struct model *m, const struct sequence *sequences, uint32_t n_seqs,
                       uint32_t max_seq, struct rng *r)
{
    struct world w = {.m = m, .n_seqs = n_seqs};
    assert_true(n_seqs <= WORLD_MAX_SEQS);
    for (uint32_t s = 0; s < n_seqs; s++) {
        assert_true(sequences[s].len <= max_seq);
        w.row0[s] = w.n_tokens;
        w.n_tokens += sequences[s].len;
    }
    w.row_len = (m->n_heads + 2 * m->n_kv_heads) * m->dim;
    w.q_len = m->n_heads * m->dim;
    w.qkv = op_malloc((size_t)w.n_tokens * w.row_len * sizeof *w.qkv);
    rng_fill(r, w.qkv, (size_t)w.n_tokens * w.row_len, 2);
    w.positions = op_malloc(w.n_tokens * sizeof *w.positions);
    for (uint32_t i = 0; i < w.n_tokens; i++)
        w.positions[i] = (int32_t)rng_below(r, max_seq);
    make_tables(&w, max_seq);
    deal_blocks(&w, max_seq, r);
    return w;
}

void world_free(struct world *w)
{
    free(w->qkv);
    free(w->cos);
    free(w->sin);
    free(w->positions);
    for (uint32_t s = 0; s < w->n_seqs; s++)
        free(w->blocks[s]);
}
