/* test_fused.c: a product with rotary behind it (k_ops.linear_rope_kv) on the CPU against the two
 * operations: queries and the cache bit by bit, for tiles that cut sequences anywhere. */
#include "harness.h"

#include "base/half.h"
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQ = 400, MAX_SEQS = 6, MAX_ROWS = 513, MAX_COLS = 128, N_LAYERS = 2, LAYER = 1 };

struct heads {
    uint32_t n_heads, n_kv_heads, dim, block_tokens;
};

static const struct heads models[] = {
    {4, 4, 128, 16}, {16, 8, 32, 16}, {8, 8, 16, 24}, {4, 4, 48, 8}, {4, 4, 10, 16},
};
static const uint32_t batches[] = {1, 24, 25, 50, 97, 512, MAX_ROWS};
enum { N_MODELS = sizeof models / sizeof *models, N_BATCHES = sizeof batches / sizeof *batches };

struct bench {
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_linear *l;
    struct k_rope *rope;
    struct k_kv_params kv_params;
    struct k_attn_params p;
    uint32_t columns, q_len;
    float *x, *qkv, *q, *q_fused;
    int32_t positions[MAX_ROWS];
    uint32_t *blocks;
};

/* Sequences of up to 330, 150, 1, 150, ... rows, n in all, which begin anywhere in a block; every
 * one has blocks of its own, backwards. */
static uint32_t cut(const struct bench *b, struct rng *r, uint32_t n, struct k_seq *seqs)
{
    const uint32_t per_seq = (MAX_SEQ + b->kv_params.block_tokens - 1) / b->kv_params.block_tokens;
    uint32_t n_seqs = 0;
    for (uint32_t row = 0; row < n; n_seqs++) {
        assert_true(n_seqs < MAX_SEQS);
        const uint32_t longest = n_seqs == 0 ? 330 : n_seqs % 2 ? 150 : 1, left = n - row;
        const uint32_t rows = left < longest ? left : longest;
        uint32_t *blocks = b->blocks + n_seqs * per_seq;
        for (uint32_t i = 0; i < per_seq; i++)
            blocks[i] = (n_seqs + 1) * per_seq - 1 - i;
        seqs[n_seqs] = (struct k_seq){row, rows, rng_below(r, MAX_SEQ - rows), 0, blocks};
        row += rows;
    }
    return n_seqs;
}

static void compare(struct bench *b, struct rng *r, uint32_t n, enum k_kv_type type)
{
    const struct k_ops *ops = b->ops;
    struct k_seq seqs[MAX_SEQS];
    b->kv_params.type = type;
    struct k_kv *kv = ops->kv_new(b->c, &b->kv_params), *fused = ops->kv_new(b->c, &b->kv_params);
    assert_true(kv && fused);
    const uint32_t n_seqs = cut(b, r, n, seqs);
    ops->linear(b->c, b->l, b->x, n, b->qkv);
    ops->rope_kv(b->c, &b->p, b->rope, b->qkv, b->positions, seqs, n_seqs, kv, b->q);
    memset(b->qkv, 0xff, (size_t)n * b->columns * sizeof *b->qkv);
    memset(b->q_fused, 0xff, (size_t)n * b->q_len * sizeof *b->q_fused);
    ops->linear_rope_kv(b->c, b->l, b->x, &b->p, b->rope, b->positions, seqs, n_seqs, fused, b->qkv,
                        b->q_fused);
    assert_same_bits(b->q_fused, b->q, (size_t)n * b->q_len, "q, %u rows, %u heads of %u", n,
                     b->p.n_heads, b->p.head_dim);
    assert_int_equal(kv->block_bytes % sizeof(float), 0);
    assert_same_bits((const float *)fused->data, (const float *)kv->data,
                     kv->block_bytes / sizeof(float) * b->kv_params.n_blocks,
                     "the cache, %u rows, %u heads of %u", n, b->p.n_heads, b->p.head_dim);
    ops->kv_free(b->c, kv);
    ops->kv_free(b->c, fused);
}

static struct k_rope *rope_new(const struct bench *b, uint32_t half_dim)
{
    const size_t n = (size_t)MAX_SEQ * half_dim;
    float *cosines = op_malloc(n * sizeof *cosines), *sines = op_malloc(n * sizeof *sines);
    for (size_t i = 0; i < n; i++) {
        cosines[i] = half_round(cosf((float)i));
        sines[i] = half_round(sinf((float)i));
    }
    struct k_rope *rope = b->ops->rope_new(b->c, cosines, sines, MAX_SEQ, half_dim);
    assert_non_null(rope);
    free(cosines);
    free(sines);
    return rope;
}

static void check(const char *isa, enum k_mode mode, const struct heads *h, enum k_weight weights,
                  uint32_t threads, struct rng *r)
{
    struct bench b = {.ops = op_cpu()};
    b.c = op_open(b.ops, isa, mode, threads, MAX_ROWS, MAX_COLS, MAX_SEQ);
    if (!b.c)
        return;
    b.columns = (h->n_heads + 2 * h->n_kv_heads) * h->dim;
    b.q_len = h->n_heads * h->dim;
    b.p = (struct k_attn_params){h->n_heads, h->n_kv_heads, h->dim, LAYER};
    const uint32_t per_seq = (MAX_SEQ + h->block_tokens - 1) / h->block_tokens,
                   n_blocks = MAX_SEQS * per_seq;
    b.kv_params =
        (struct k_kv_params){N_LAYERS, h->n_kv_heads, h->dim, n_blocks, h->block_tokens, K_KV_AUTO};
    struct matrix m = matrix_new(r, weights, b.columns, MAX_COLS, 64, true);
    b.l = b.ops->linear_new(b.c, &m.src);
    b.rope = rope_new(&b, h->dim / 2);
    b.x = op_malloc((size_t)MAX_ROWS * MAX_COLS * sizeof *b.x);
    b.qkv = op_malloc((size_t)MAX_ROWS * b.columns * sizeof *b.qkv);
    b.q = op_malloc((size_t)MAX_ROWS * b.q_len * sizeof *b.q);
    b.q_fused = op_malloc((size_t)MAX_ROWS * b.q_len * sizeof *b.q_fused);
    b.blocks = op_malloc(n_blocks * sizeof *b.blocks);
    rng_fill(r, b.x, (size_t)MAX_ROWS * MAX_COLS, 1);
    for (uint32_t i = 0; i < MAX_ROWS; i++)
        b.positions[i] = (int32_t)rng_below(r, MAX_SEQ);
    for (int i = 0; i < N_BATCHES; i++)
        compare(&b, r, batches[i], i % 2 ? K_KV_I8 : K_KV_AUTO);
    free(b.x);
    free(b.qkv);
    free(b.q);
    free(b.q_fused);
    free(b.blocks);
    b.ops->rope_free(b.c, b.rope);
    b.ops->linear_free(b.c, b.l);
    b.ops->close(b.c);
    matrix_free(&m);
}

static void test_linear_rope_kv(void **state)
{
    (void)state;
    struct rng r = {31};
    for (int set = 0; set < MAX_SETS; set++)
        for (int i = 0; i < N_MODELS; i++)
            check(op_sets[set], (set + i) % 2 ? K_MODE_FP16 : K_MODE_A8, &models[i],
                  i % 3 == 2 ? K_WEIGHT_I8 : K_WEIGHT_I4, 1 + (uint32_t)(set / 2 + i) % 2, &r);
    for (int i = 0; i < N_MODELS; i++)
        check(NULL, i % 2 ? K_MODE_A8 : K_MODE_FP16, &models[i], K_WEIGHT_I4, 2, &r);
    check(NULL, K_MODE_FP32, &models[0], K_WEIGHT_I4, 1, &r);
    check(NULL, K_MODE_A8, &models[0], K_WEIGHT_F16, 1, &r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear_rope_kv)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
