/* test_sequence.c: rope, the paged cache in each of its types and attention, against double
 * precision; prefill against decode and every instruction set against plain C, bit by bit. */
#include "world.h"

#include "base/half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQ = 150, N_LAYERS = 2, LAYER = 1 };

static const struct model models[] = {
    {4, 4, 16, 16}, {2, 2, 64, 16}, {1, 1, 128, 16}, {3, 3, 10, 16},
    {8, 2, 32, 16}, {4, 1, 48, 8},  {2, 2, 6, 24},   {5, 5, 20, 1},
};
enum { N_MODELS = sizeof models / sizeof *models };

static const struct sequence sequences[] = {{1, 0},   {37, 0},  {16, 16}, {MAX_SEQ, 33},
                                            {50, 49}, {33, 33}, {100, 0}};
enum { N_SEQS = sizeof sequences / sizeof *sequences, MAX_TOKENS = 512 };

/* How a context keeps keys and values. In the modes fp16 and a8 rows of a prefix go in integers,
 * of up to 16 bits and of 8. */
struct storage {
    enum k_mode mode;
    enum k_kv_type type;
};
static const struct storage storages[] = {
    {K_MODE_FP32, K_KV_AUTO}, {K_MODE_FP16, K_KV_AUTO}, {K_MODE_FP32, K_KV_F16},
    {K_MODE_FP16, K_KV_I8},   {K_MODE_A8, K_KV_AUTO},   {K_MODE_A8, K_KV_I8},
};
enum { N_STORAGES = sizeof storages / sizeof *storages };

static const char *storage_name(struct storage s)
{
    static const char *const names[] = {
        [K_KV_F16] = "cache in FP16", [K_KV_I8] = "cache in INT8", [K_KV_F32] = "cache in FP32"};
    return names[k_kv_resolve(s.type, s.mode)];
}

/* A backend with the world's cache. */
struct device {
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_kv *kv;
    struct k_rope *rope;
    struct k_attn_params p;
};

static bool device_open(struct device *d, const struct world *w, const char *isa,
                        struct storage storage, uint32_t threads)
{
    assert_true(w->n_tokens <= MAX_TOKENS);
    d->ops = op_cpu();
    d->c = op_open(d->ops, isa, storage.mode, threads, MAX_TOKENS, 64, MAX_SEQ);
    if (!d->c)
        return false;
    const struct model *m = w->m;
    struct k_kv_params p = {N_LAYERS,    m->n_kv_heads,   m->dim,
                            w->n_blocks, m->block_tokens, storage.type};
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

/* x[n] as the cache keeps it. INT8: the smallest binary16 scale that reaches all of x, found by
 * trying all of them. */
static void as_kept(struct storage storage, const float *x, uint32_t n, double *kept)
{
    enum k_kv_type type = k_kv_resolve(storage.type, storage.mode);
    float largest = 0, scale;
    for (uint32_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    uint16_t half = 0;
    while (half_to_float(half) * 127 < largest)
        half++;
    scale = half_to_float(half);
    for (uint32_t i = 0; i < n; i++)
        kept[i] = type == K_KV_F32   ? (double)x[i]
                  : type == K_KV_F16 ? (double)half_round(x[i])
                  : scale > 0        ? (double)scale * (double)rintf(x[i] * (1.0f / scale))
                                     : 0;
}

/* The key of a token, rotated in single precision: in INT8 a value that the last bit carries over
 * a tie would be a step away. */
static void kept_key(const struct world *w, struct storage storage, uint32_t token,
                     uint32_t kv_head, double *kept)
{
    uint32_t half = w->m->dim / 2, shared = w->m->n_heads / w->m->n_kv_heads;
    const float *x = head_of(w, token, kv_head) + (size_t)shared * w->m->dim;
    size_t at = (size_t)w->positions[token] * half;
    float k[128];
    for (uint32_t i = 0; i < half; i++) {
        volatile float products[] = {x[i] * w->cos[at + i], x[i + half] * w->sin[at + i],
                                     x[i + half] * w->cos[at + i], x[i] * w->sin[at + i]};
        k[i] = products[0] - products[1];
        k[i + half] = products[2] + products[3];
    }
    as_kept(storage, k, w->m->dim, kept);
}

/* Keys and values of sequence s as the cache keeps them, [len][dim] for one head. */
struct kept {
    double k[MAX_SEQ][128], v[MAX_SEQ][128];
};

static void keep(const struct world *w, struct storage storage, uint32_t s, uint32_t kv_head,
                 struct kept *ret)
{
    const struct model *m = w->m;
    for (uint32_t t = 0; t < sequences[s].len; t++) {
        uint32_t token = w->row0[s] + t;
        const float *row = head_of(w, token, kv_head);
        kept_key(w, storage, token, kv_head, ret->k[t]);
        as_kept(storage, row + (size_t)(m->n_heads / m->n_kv_heads + 1) * m->dim, m->dim,
                ret->v[t]);
    }
}

/* A row that goes in integers. */
static bool in_integers(struct storage storage, uint32_t s, uint32_t row)
{
    return storage.mode != K_MODE_FP32 && row < sequences[s].prefix;
}

/* What integers may be off, with values, keys and rows of standard deviation 2: of 128 dimensions
 * the largest is 3 deviations, the step of keys and rows 3 / 4095 of one, which makes scores (of
 * standard deviation 4) wrong by some 1.2e-3. Measured: 7.6e-4 at 128 dimensions, less at fewer;
 * the largest one 6.3e-3. In a8 the step is 3 / 127: measured 2.5e-2 at 128 dimensions, 1.7e-2
 * where the cache has rounded keys and values already. */
struct bound {
    double rms, largest;
};
/* of rows that go in integers */
static const struct bound in_16_bits = {9e-4, 1e-2}, in_8_bits = {3e-2, 0.3};

/* One row of one head in double precision. */
static void naive_row(const struct world *w, const struct kept *kept, uint32_t s, uint32_t row,
                      uint32_t head, double *q, double *out)
{
    const struct model *m = w->m;
    uint32_t shared = m->n_heads / m->n_kv_heads, kv_head = head / shared;
    uint32_t visible = row + 1 > sequences[s].prefix ? row + 1 : sequences[s].prefix;
    uint32_t token = w->row0[s] + row;
    double score[MAX_SEQ], largest = -INFINITY, sum = 0;
    rotate(w, w->positions[token], head_of(w, token, kv_head) + head % shared * m->dim, q);
    for (uint32_t t = 0; t < visible; t++) {
        score[t] = 0;
        for (uint32_t d = 0; d < m->dim; d++)
            score[t] += q[d] * kept->k[t][d];
        score[t] /= sqrt(m->dim);
        largest = fmax(largest, score[t]);
    }
    for (uint32_t t = 0; t < visible; t++)
        sum += exp(score[t] - largest);
    for (uint32_t d = 0; d < m->dim; d++) {
        out[d] = 0;
        for (uint32_t t = 0; t < visible; t++)
            out[d] += exp(score[t] - largest) / sum * kept->v[t][d];
    }
}

static void check_against_double(const struct world *w, struct storage storage, const float *q,
                                 const float *out)
{
    double want_q[128] = {0}, want[128] = {0};
    uint32_t shared = w->m->n_heads / w->m->n_kv_heads;
    struct kept *kept = op_malloc(sizeof *kept);
    const struct bound bound = storage.mode == K_MODE_A8 ? in_8_bits : in_16_bits;
    double squares = 0;
    uint32_t n = 0;
    for (uint32_t s = 0; s < N_SEQS; s++)
        for (uint32_t h = 0; h < w->m->n_heads; h++) {
            if (h % shared == 0)
                keep(w, storage, s, h / shared, kept);
            for (uint32_t row = 0; row < sequences[s].len; row++) {
                naive_row(w, kept, s, row, h, want_q, want);
                size_t at = ((size_t)(w->row0[s] + row) * w->m->n_heads + h) * w->m->dim;
                for (uint32_t d = 0; d < w->m->dim; d++) {
                    assert_near((double)q[at + d], want_q[d], 2e-6, "q of seq %u row %u head %u", s,
                                row, h);
                    bool integers = in_integers(storage, s, row);
                    double off = (double)out[at + d] - want[d];
                    squares += integers ? off * off : 0;
                    n += integers;
                    assert_near((double)out[at + d], want[d], integers ? bound.largest : 2e-5,
                                "dim %u, %s, seq %u row %u head %u", d, storage_name(storage), s,
                                row, h);
                }
            }
        }
    assert_near(n ? sqrt(squares / n) : 0, 0, bound.rms, "rms, %s, dim %u", storage_name(storage),
                w->m->dim);
    free(kept);
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

static void check_model(const struct model *m, struct storage storage, uint64_t seed)
{
    struct rng r = {seed};
    struct world w = world_new(m, sequences, N_SEQS, MAX_SEQ, &r);
    size_t n = (size_t)w.n_tokens * w.q_len;
    float *want_q = op_malloc(n * sizeof(float)), *want = op_malloc(n * sizeof(float));
    float *q = op_malloc(n * sizeof(float)), *out = op_malloc(n * sizeof(float));
    for (int set = 0; set < MAX_SETS; set++)
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct device d = {0};
            if (!device_open(&d, &w, op_sets[set], storage, threads))
                continue;
            poison_cache(&d, &w);
            prefill_all(&d, &w, q, out);
            if (!set && threads == 1) {
                memcpy(want_q, q, n * sizeof *q);
                memcpy(want, out, n * sizeof *out);
                check_against_double(&w, storage, q, out);
            }
            assert_same_bits(q, want_q, n, "q, %s, %u threads", op_sets[set], threads);
            assert_same_bits(out, want, n, "attention, %s, %u threads, %s, dim %u block %u",
                             op_sets[set], threads, storage_name(storage), m->dim, m->block_tokens);
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
    for (int storage = 0; storage < N_STORAGES; storage++)
        for (int i = 0; i < N_MODELS; i++)
            check_model(&models[i], storages[storage], 100 + (uint64_t)i);
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
    for (int storage = 0; storage < N_STORAGES; storage++)
        for (int i = 0; i < N_MODELS; i++)
            for (int set = 1; set < MAX_SETS; set++) {
                struct rng r = {7000 + (uint64_t)(i * 10 + set)};
                struct world w = world_new(&models[i], sequences, N_SEQS, MAX_SEQ, &r);
                struct device d = {0};
                if (device_open(&d, &w, op_sets[set], storages[storage], 2)) {
                    size_t n = (size_t)w.n_tokens * w.q_len;
                    float *all[2] = {op_malloc(n * sizeof(float)), op_malloc(n * sizeof(float))};
                    float *some[2] = {op_malloc(n * sizeof(float)), op_malloc(n * sizeof(float))};
                    poison_cache(&d, &w);
                    prefill_all(&d, &w, all[0], all[1]);
                    for (int round = 0; round < rounds; round++) {
                        poison_cache(&d, &w);
                        random_steps(&d, &w, &r, some[0], some[1]);
                        assert_same_bits(some[0], all[0], n, "q in steps, round %d", round);
                        assert_same_bits(some[1], all[1], n, "attention in steps, %s, %s, round %d",
                                         op_sets[set], storage_name(storages[storage]), round);
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
static void check_kv_copy(struct storage storage)
{
    struct rng r = {31};
    struct world w = world_new(&models[0], sequences, N_SEQS, MAX_SEQ, &r);
    struct device d = {0};
    assert_true(device_open(&d, &w, NULL, storage, 1));
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
        assert_same_bits(after, before, (size_t)sequences[S].len * w.q_len, "copied, layer %u, %s",
                         d.p.layer, storage_name(storage));
    }
    device_close(&d);
    world_free(&w);
    free(q);
    free(before);
    free(after);
}

static void test_kv_copy(void **state)
{
    (void)state;
    for (int i = 0; i < N_STORAGES; i++)
        check_kv_copy(storages[i]);
}

/* Blocks of one layer and head; GLM-130B's has 16 tokens of 128: INT8 holds 1.97 times the tokens
 * of FP16. */
static void test_block_bytes(void **state)
{
    (void)state;
    static const struct {
        uint32_t dim, block_tokens;
        enum k_mode mode;
        enum k_kv_type type;
        size_t bytes;
    } cases[] = {
        {128, 16, K_MODE_FP32, K_KV_AUTO, 16384}, {128, 16, K_MODE_FP16, K_KV_AUTO, 8192},
        {128, 16, K_MODE_A8, K_KV_AUTO, 8192},    {128, 16, K_MODE_FP32, K_KV_F16, 8192},
        {128, 16, K_MODE_A8, K_KV_F32, 16384},    {128, 16, K_MODE_FP16, K_KV_I8, 4160},
        {128, 16, K_MODE_FP32, K_KV_I8, 4160},    {10, 16, K_MODE_FP16, K_KV_I8, 576},
        {16, 24, K_MODE_FP16, K_KV_I8, 1152},     {16, 1, K_MODE_FP16, K_KV_I8, 576},
    };
    const struct k_ops *ops = op_cpu();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct k_ctx *c = op_open(ops, NULL, cases[i].mode, 1, 1, 64, MAX_SEQ);
        struct k_kv_params p = {3, 5, cases[i].dim, 7, cases[i].block_tokens, cases[i].type};
        size_t found = ops->kv_block_bytes(c, &p);
        if (found != 3 * 5 * cases[i].bytes)
            fail_msg("case %zu: %zu bytes, expected 15 * %zu", i, found, cases[i].bytes);
        p.n_layers = 8; /* of many heads and layers an odd number */
        p.n_kv_heads = 8;
        found = ops->kv_block_bytes(c, &p);
        if (found != 65 * cases[i].bytes)
            fail_msg("case %zu: %zu bytes, expected 65 * %zu", i, found, cases[i].bytes);
        ops->close(c);
    }
}

/* A token that sees only itself gets its own value back: what INT8 makes of it. False where the
 * processor lacks the instructions. */
static bool keep_value(const char *isa, const float *v, uint32_t dim, float *out)
{
    struct k_ctx *c = op_open(op_cpu(), isa, K_MODE_FP16, 1, 1, 64, 16);
    if (!c)
        return false;
    const struct k_ops *ops = op_cpu();
    struct k_kv_params p = {1, 1, dim, 1, 16, K_KV_I8};
    float qkv[3 * 64] = {0}, ones[32], zeros[32] = {0}, q[64];
    for (int i = 0; i < 32; i++)
        ones[i] = 1;
    memcpy(qkv + (size_t)2 * dim, v, dim * sizeof *v);
    struct k_kv *kv = ops->kv_new(c, &p);
    struct k_rope *rope = ops->rope_new(c, ones, zeros, 1, dim / 2);
    const struct k_attn_params attn = {1, 1, dim, 0};
    const uint32_t block = 0;
    const struct k_seq seq = {0, 1, 0, 0, &block};
    const int32_t position = 0;
    ops->rope_kv(c, &attn, rope, qkv, &position, &seq, 1, kv, q);
    ops->attention(c, &attn, q, &seq, 1, kv, out);
    ops->kv_free(c, kv);
    ops->rope_free(c, rope);
    ops->close(c);
    return true;
}

/* The error is at most half a step, the step max / 127 and what FP16 adds to it; from magnitudes
 * where the scale is the smallest FP16 value to those where FP16 itself would overflow. */
static void test_int8_error(void **state)
{
    (void)state;
    enum { DIM = 64 };
    struct rng r = {77};
    for (int exponent = -40; exponent <= 20; exponent++)
        for (int set = 0; set < MAX_SETS; set++) {
            float v[DIM], out[DIM] = {0}, largest = 0;
            rng_fill(&r, v, DIM, ldexpf(1, exponent));
            for (int i = 0; i < DIM; i++)
                largest = fmaxf(largest, fabsf(v[i]));
            if (!keep_value(op_sets[set], v, DIM, out))
                continue;
            double step = fmax((double)largest / 127 * (1 + 0x1p-10), 0x1p-24);
            if (step < 0x1p-14) /* subnormal scales are multiples of 2^-24 */
                step += 0x1p-24;
            for (int i = 0; i < DIM; i++)
                assert_near((double)out[i], (double)v[i], step / 2 * (1 + 1e-6),
                            "2^%d, %s, value %d", exponent, op_sets[set], i);
        }
}

/* Zeros are exact; what is not finite is not hidden. */
static void test_int8_special_values(void **state)
{
    (void)state;
    enum { DIM = 6 };
    static const float specials[] = {INFINITY, -INFINITY, NAN, 0x1p127f, 8.4e6f};
    for (int set = 0; set < MAX_SETS; set++) {
        float v[DIM] = {0}, out[DIM] = {1, 1, 1, 1, 1, 1};
        if (!keep_value(op_sets[set], v, DIM, out))
            continue;
        for (int i = 0; i < DIM; i++)
            assert_near((double)out[i], 0, 0, "zero, %s, value %d", op_sets[set], i);
        for (size_t k = 0; k < sizeof specials / sizeof *specials; k++) {
            v[2] = specials[k];
            assert_true(keep_value(op_sets[set], v, DIM, out));
            if (isfinite(out[2]))
                fail_msg("%s: %g became %g", op_sets[set], (double)v[2], (double)out[2]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_prefill_is_decode),
        cmocka_unit_test(test_kv_copy),    cmocka_unit_test(test_block_bytes),
        cmocka_unit_test(test_int8_error), cmocka_unit_test(test_int8_special_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
