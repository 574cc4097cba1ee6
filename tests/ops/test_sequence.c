/* test_sequence.c: rope, the paged cache and attention, against double precision; prefill against
 * decode and every instruction set against plain C, bit by bit. */
#include "harness.h"

#include "base/half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQ = 150, N_LAYERS = 2, LAYER = 1 };

struct model {
    uint32_t n_heads, n_kv_heads, dim, block_tokens;
};

static const struct model models[] = {
    {4, 4, 16, 16}, {2, 2, 64, 16}, {1, 1, 128, 16}, {3, 3, 10, 16},
    {8, 2, 32, 16}, {4, 1, 48, 8},  {2, 2, 6, 24},   {5, 5, 20, 1},
};
enum { N_MODELS = sizeof models / sizeof *models };

/* What a sequence is: `len` tokens, the first `prefix` visible to all. */
struct sequence {
    uint32_t len, prefix;
};
static const struct sequence sequences[] = {{1, 0},   {37, 0},  {16, 16}, {MAX_SEQ, 33},
                                            {50, 49}, {33, 33}, {100, 0}};
enum { N_SEQS = sizeof sequences / sizeof *sequences, MAX_TOKENS = 512 };

/* One world: all sequences' qkv rows, positions, tables and block lists. */
struct world {
    const struct model *m;
    uint32_t n_tokens, row_len, q_len, n_blocks;
    uint32_t row0[N_SEQS];
    float *qkv, *cos, *sin;
    int32_t *positions;
    uint32_t *blocks[N_SEQS];
};

static struct world world_new(const struct model *m, struct rng *r)
{
    struct world w = {.m = m};
    for (int i = 0; i < N_SEQS; i++) {
        w.row0[i] = w.n_tokens;
        w.n_tokens += sequences[i].len;
    }
    assert_true(w.n_tokens <= MAX_TOKENS);
    w.row_len = (m->n_heads + 2 * m->n_kv_heads) * m->dim;
    w.q_len = m->n_heads * m->dim;
    w.qkv = op_malloc((size_t)w.n_tokens * w.row_len * sizeof(float));
    rng_fill(r, w.qkv, (size_t)w.n_tokens * w.row_len, 2);
    w.positions = op_malloc(w.n_tokens * sizeof *w.positions);
    for (uint32_t i = 0; i < w.n_tokens; i++)
        w.positions[i] = (int32_t)rng_below(r, MAX_SEQ);
    size_t table = (size_t)MAX_SEQ * m->dim / 2;
    w.cos = op_malloc(table * sizeof(float));
    w.sin = op_malloc(table * sizeof(float));
    for (size_t i = 0; i < table; i++) {
        w.cos[i] = half_round(cosf((float)i));
        w.sin[i] = half_round(sinf((float)i));
    }
    /* blocks are dealt out in a shuffled order, with unused ones between */
    uint32_t per_seq = (MAX_SEQ + m->block_tokens - 1) / m->block_tokens;
    w.n_blocks = per_seq * N_SEQS + 5;
    uint32_t *deck = op_malloc(w.n_blocks * sizeof *deck), next = 0;
    for (uint32_t i = 0; i < w.n_blocks; i++)
        deck[i] = i;
    for (uint32_t i = w.n_blocks - 1; i > 0; i--) {
        uint32_t other = rng_below(r, i + 1), t = deck[i];
        deck[i] = deck[other];
        deck[other] = t;
    }
    for (int i = 0; i < N_SEQS; i++) {
        w.blocks[i] = op_malloc(per_seq * sizeof(uint32_t));
        for (uint32_t b = 0; b < per_seq; b++)
            w.blocks[i][b] = deck[next++];
    }
    free(deck);
    return w;
}

static void world_free(struct world *w)
{
    free(w->qkv);
    free(w->cos);
    free(w->sin);
    free(w->positions);
    for (int i = 0; i < N_SEQS; i++)
        free(w->blocks[i]);
}

/* A backend with the world's cache. */
struct device {
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_kv *kv;
    struct k_rope *rope;
    struct k_attn_params p;
};

static bool device_open(struct device *d, const struct world *w, const char *isa, enum k_mode mode,
                        uint32_t threads)
{
    d->ops = op_cpu();
    d->c = op_open(d->ops, isa, mode, threads, MAX_TOKENS, 64, MAX_SEQ);
    if (!d->c)
        return false;
    const struct model *m = w->m;
    struct k_kv_params p = {N_LAYERS, m->n_kv_heads, m->dim, w->n_blocks, m->block_tokens};
    d->kv = d->ops->kv_new(d->c, &p);
    d->rope = d->ops->rope_new(d->c, w->cos, w->sin, MAX_SEQ, m->dim / 2);
    assert_true(d->kv && d->rope);
    d->p = (struct k_attn_params){m->n_heads, m->n_kv_heads, m->dim, LAYER};
    return true;
}

static void device_close(struct device *d)
{
    d->ops->kv_free(d->c, d->kv);
    d->ops->rope_free(d->c, d->rope);
    d->ops->close(d->c);
}

/* Runs the tokens [from, to) of the chosen sequences as one step; results go to the rows of the
 * sequences' tokens in q and out [n_tokens, q_len]. */
static void step(struct device *d, const struct world *w, const uint32_t *which, uint32_t n,
                 const uint32_t *from, const uint32_t *to, float *q, float *out)
{
    struct k_seq seqs[N_SEQS];
    int32_t positions[MAX_TOKENS];
    uint32_t rows = 0;
    float *qkv = op_malloc((size_t)MAX_TOKENS * w->row_len * sizeof *qkv);
    float *step_q = op_malloc((size_t)MAX_TOKENS * w->q_len * sizeof *step_q);
    float *step_out = op_malloc((size_t)MAX_TOKENS * w->q_len * sizeof *step_out);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = which[i];
        seqs[i] = (struct k_seq){rows, to[i] - from[i], from[i], sequences[s].prefix, w->blocks[s]};
        for (uint32_t t = from[i]; t < to[i]; t++, rows++) {
            positions[rows] = w->positions[w->row0[s] + t];
            memcpy(qkv + (size_t)rows * w->row_len, w->qkv + (size_t)(w->row0[s] + t) * w->row_len,
                   w->row_len * sizeof *qkv);
        }
    }
    d->ops->rope_kv(d->c, &d->p, d->rope, qkv, positions, seqs, n, d->kv, step_q);
    d->ops->attention(d->c, &d->p, step_q, seqs, n, d->kv, step_out);
    for (uint32_t i = 0; i < n; i++) {
        size_t at = (size_t)(w->row0[which[i]] + from[i]) * w->q_len;
        size_t len = (size_t)seqs[i].n_rows * w->q_len;
        memcpy(q + at, step_q + (size_t)seqs[i].row0 * w->q_len, len * sizeof *q);
        memcpy(out + at, step_out + (size_t)seqs[i].row0 * w->q_len, len * sizeof *out);
    }
    free(qkv);
    free(step_q);
    free(step_out);
}

/* All sequences in one step. */
static void prefill_all(struct device *d, const struct world *w, float *q, float *out)
{
    uint32_t which[N_SEQS], from[N_SEQS] = {0}, to[N_SEQS];
    for (uint32_t i = 0; i < N_SEQS; i++) {
        which[i] = i;
        to[i] = sequences[i].len;
    }
    step(d, w, which, N_SEQS, from, to, q, out);
}

static void rotate(const struct world *w, int32_t position, const float *x, double *y)
{
    uint32_t half = w->m->dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        double c = (double)w->cos[(size_t)position * half + i];
        double s = (double)w->sin[(size_t)position * half + i];
        y[i] = (double)x[i] * c - (double)x[i + half] * s;
        y[i + half] = (double)x[i + half] * c + (double)x[i] * s;
    }
}

static const float *head_of(const struct world *w, uint32_t token, uint32_t kv_head)
{
    uint32_t shared = w->m->n_heads / w->m->n_kv_heads;
    return w->qkv + (size_t)token * w->row_len + (size_t)kv_head * (shared + 2) * w->m->dim;
}

/* One row of one head in double precision, the cache as binary16 where the mode says so. */
static void naive_row(const struct world *w, enum k_mode mode, uint32_t s, uint32_t row,
                      uint32_t head, double *q, double *out)
{
    const struct model *m = w->m;
    uint32_t shared = m->n_heads / m->n_kv_heads, kv_head = head / shared;
    uint32_t visible = row + 1 > sequences[s].prefix ? row + 1 : sequences[s].prefix;
    uint32_t token = w->row0[s] + row;
    double score[MAX_SEQ], largest = -INFINITY, sum = 0, k[128] = {0};
    rotate(w, w->positions[token], head_of(w, token, kv_head) + head % shared * m->dim, q);
    for (uint32_t t = 0; t < visible; t++) {
        uint32_t other = w->row0[s] + t;
        rotate(w, w->positions[other], head_of(w, other, kv_head) + (size_t)shared * m->dim, k);
        score[t] = 0;
        for (uint32_t d = 0; d < m->dim; d++)
            score[t] += q[d] * (mode == K_MODE_FP32 ? k[d] : (double)half_round((float)k[d]));
        score[t] /= sqrt(m->dim);
        largest = fmax(largest, score[t]);
    }
    for (uint32_t t = 0; t < visible; t++)
        sum += exp(score[t] - largest);
    for (uint32_t d = 0; d < m->dim; d++) {
        out[d] = 0;
        for (uint32_t t = 0; t < visible; t++) {
            float v = head_of(w, w->row0[s] + t, kv_head)[(shared + 1) * m->dim + d];
            double value = (double)(mode == K_MODE_FP32 ? v : half_round(v));
            out[d] += exp(score[t] - largest) / sum * value;
        }
    }
}

static void check_against_double(const struct world *w, enum k_mode mode, const float *q,
                                 const float *out)
{
    double want_q[128] = {0}, want[128] = {0};
    /* a key within half an ulp of a tie may round to its other neighbour in binary16 */
    double bound = mode == K_MODE_FP32 ? 2e-5 : 2e-3;
    for (uint32_t s = 0; s < N_SEQS; s++)
        for (uint32_t row = 0; row < sequences[s].len; row++)
            for (uint32_t h = 0; h < w->m->n_heads; h++) {
                naive_row(w, mode, s, row, h, want_q, want);
                size_t at = ((size_t)(w->row0[s] + row) * w->m->n_heads + h) * w->m->dim;
                for (uint32_t d = 0; d < w->m->dim; d++) {
                    assert_near((double)q[at + d], want_q[d], 2e-6, "q of seq %u row %u head %u", s,
                                row, h);
                    assert_near((double)out[at + d], want[d], bound,
                                "dim %u mode %s seq %u row %u head %u", d, op_mode_name(mode), s,
                                row, h);
                }
            }
}

/* Poisons every block of the cache that the test has not handed out and all slots behind the ends
 * of the sequences: attention must not be touched by what it does not see. */
static void poison_cache(struct device *d, const struct world *w)
{
    struct k_seq seqs[N_SEQS];
    int32_t positions[MAX_TOKENS] = {0};
    size_t n = (size_t)MAX_SEQ * w->row_len;
    float *nans = op_malloc(n * sizeof *nans), *q = op_malloc(n * sizeof *q);
    for (size_t i = 0; i < n; i++)
        nans[i] = NAN;
    for (int s = 0; s < N_SEQS; s++) {
        seqs[0] = (struct k_seq){0, MAX_SEQ, 0, 0, w->blocks[s]};
        d->ops->rope_kv(d->c, &d->p, d->rope, nans, positions, seqs, 1, d->kv, q);
    }
    free(nans);
    free(q);
}

static void check_model(const struct model *m, enum k_mode mode, uint64_t seed)
{
    struct rng r = {seed};
    struct world w = world_new(m, &r);
    size_t n = (size_t)w.n_tokens * w.q_len;
    float *want_q = op_malloc(n * sizeof(float)), *want = op_malloc(n * sizeof(float));
    float *q = op_malloc(n * sizeof(float)), *out = op_malloc(n * sizeof(float));
    for (int set = 0; set < MAX_SETS; set++)
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct device d = {0};
            if (!device_open(&d, &w, op_sets[set], mode, threads))
                continue;
            poison_cache(&d, &w);
            prefill_all(&d, &w, q, out);
            if (!set && threads == 1) {
                memcpy(want_q, q, n * sizeof *q);
                memcpy(want, out, n * sizeof *out);
                check_against_double(&w, mode, q, out);
            }
            assert_same_bits(q, want_q, n, "q, %s, %u threads", op_sets[set], threads);
            assert_same_bits(out, want, n, "attention, %s, %u threads, %s, dim %u block %u",
                             op_sets[set], threads, op_mode_name(mode), m->dim, m->block_tokens);
            device_close(&d);
        }
    world_free(&w);
    free(want_q);
    free(want);
    free(q);
    free(out);
}

static void test_attention(void **state)
{
    (void)state;
    for (int mode = K_MODE_FP32; mode <= K_MODE_FP16; mode++)
        for (int i = 0; i < N_MODELS; i++)
            check_model(&models[i], (enum k_mode)mode, 100 + (uint64_t)i);
}

/* The same tokens in random steps: any mix of sequences, any number of tokens each. The part of a
 * sequence that is visible both ways goes as one piece. */
static void random_steps(struct device *d, const struct world *w, struct rng *r, float *q,
                         float *out)
{
    uint32_t done[N_SEQS] = {0}, left = N_SEQS;
    while (left) {
        uint32_t which[N_SEQS], from[N_SEQS], to[N_SEQS], n = 0;
        for (uint32_t s = 0; s < N_SEQS; s++) {
            uint32_t rest = sequences[s].len - done[s];
            if (!rest || rng_below(r, 3) == 0)
                continue;
            uint32_t take = rng_below(r, 2) ? 1 : 1 + rng_below(r, rest);
            if (done[s] < sequences[s].prefix && done[s] + take < sequences[s].prefix)
                take = sequences[s].prefix - done[s];
            which[n] = s;
            from[n] = done[s];
            to[n++] = done[s] += take;
            left -= done[s] == sequences[s].len;
        }
        if (n)
            step(d, w, which, n, from, to, q, out);
    }
}

static void test_prefill_is_decode(void **state)
{
    (void)state;
    int rounds = op_long() ? 200 : 4;
    for (int mode = K_MODE_FP32; mode <= K_MODE_FP16; mode++)
        for (int i = 0; i < N_MODELS; i++)
            for (int set = 1; set < MAX_SETS; set++) {
                struct rng r = {7000 + (uint64_t)(i * 10 + set)};
                struct world w = world_new(&models[i], &r);
                struct device d = {0};
                if (device_open(&d, &w, op_sets[set], (enum k_mode)mode, 2)) {
                    size_t n = (size_t)w.n_tokens * w.q_len;
                    float *all[2] = {op_malloc(n * sizeof(float)), op_malloc(n * sizeof(float))};
                    float *some[2] = {op_malloc(n * sizeof(float)), op_malloc(n * sizeof(float))};
                    poison_cache(&d, &w);
                    prefill_all(&d, &w, all[0], all[1]);
                    for (int round = 0; round < rounds; round++) {
                        poison_cache(&d, &w);
                        random_steps(&d, &w, &r, some[0], some[1]);
                        assert_same_bits(some[0], all[0], n, "q in steps, round %d", round);
                        assert_same_bits(some[1], all[1], n, "attention in steps, %s, round %d",
                                         op_sets[set], round);
                    }
                    for (int k = 0; k < 2; k++) {
                        free(all[k]);
                        free(some[k]);
                    }
                    device_close(&d);
                }
                world_free(&w);
            }
}

/* A copied block serves like its source, in every layer. */
static void test_kv_copy(void **state)
{
    (void)state;
    struct rng r = {31};
    struct world w = world_new(&models[0], &r);
    struct device d = {0};
    assert_true(device_open(&d, &w, NULL, K_MODE_FP16, 1));
    size_t n = (size_t)w.n_tokens * w.q_len;
    float *q = op_malloc(n * sizeof *q), *before = op_malloc(n * sizeof *q);
    float *after = op_malloc(n * sizeof *q);
    enum { S = 1 };
    const struct k_seq all = {0, sequences[S].len, 0, 0, w.blocks[S]};
    for (d.p.layer = 0; d.p.layer < N_LAYERS; d.p.layer++)
        d.ops->rope_kv(d.c, &d.p, d.rope, w.qkv + (size_t)w.row0[S] * w.row_len,
                       w.positions + w.row0[S], &all, 1, d.kv, q);
    uint32_t other[] = {w.blocks[2][0], w.blocks[2][1], w.blocks[2][2]};
    for (int b = 0; b < 3; b++)
        d.ops->kv_copy(d.c, d.kv, w.blocks[S][b], other[b]);
    const struct k_seq copy = {0, sequences[S].len, 0, 0, other};
    for (d.p.layer = 0; d.p.layer < N_LAYERS; d.p.layer++) {
        d.ops->attention(d.c, &d.p, q, &all, 1, d.kv, before);
        d.ops->attention(d.c, &d.p, q, &copy, 1, d.kv, after);
        assert_same_bits(after, before, (size_t)sequences[S].len * w.q_len, "copied, layer %u",
                         d.p.layer);
    }
    struct k_kv_params p = {N_LAYERS, 4, 16, w.n_blocks, 16};
    assert_int_equal(d.ops->kv_block_bytes(d.c, &p), 2 * 2 * 4 * 16 * 16 * N_LAYERS);
    device_close(&d);
    world_free(&w);
    free(q);
    free(before);
    free(after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_prefill_is_decode),
        cmocka_unit_test(test_kv_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
