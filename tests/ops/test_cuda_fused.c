/* test_cuda_fused.c: products that end with GLU, or with rope and the cache, executed on the
 * emulated GPU: what they give has the bits of the separate operations, for all kinds of weights,
 * every kernel of products, with slices and without, and where a matrix has to go the long way. */
#include "harness.h"

#include "base/half.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/kv.h"
#include "kernels/cuda/linear.h"
#include "tests/support/emulated_blas.h"
#include "tests/support/emulated_driver.h"

enum { MAX_ROWS = 140, MAX_SEQ = 96, BLOCK = 16, N_LAYERS = 2, LAYER = 1 };

static const struct k_ops *op = &glmd_cuda_ops;
static struct k_ctx *gpu;

static void open_gpu(uint32_t library_rows)
{
    char message[256];
    emulated_driver_reset();
    const struct k_open_params p = {.device = "cuda:0",
                                    .mode = K_MODE_FP16,
                                    .max_rows = MAX_ROWS,
                                    .max_cols = 1024,
                                    .max_seq = MAX_SEQ,
                                    .library_rows = library_rows};
    if (op->open(&p, &gpu, message, sizeof message))
        fail_msg("%s", message);
}

static void close_gpu(void)
{
    char message[256];
    if (op->sync(gpu, message, sizeof message))
        fail_msg("%s", message);
    op->close(gpu);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* A buffer of NaNs, or of x rounded to halves. */
static void *buffer(struct rng *r, size_t n, bool random)
{
    float *x = op_malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random ? half_round(rng_normal(r)) : NAN;
    void *p = op->alloc(gpu, n * op->act_bytes(gpu));
    assert_non_null(p);
    op->upload(gpu, p, x, n);
    free(x);
    return p;
}

static void assert_same(const void *got, const void *want, size_t n, const char *what,
                        uint32_t rows, uint32_t cols, uint32_t batch)
{
    const uint16_t *a = got, *b = want; /* the emulated device's memory is the host's */
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("%s of %u x %u, %u tokens: [%zu] is %04x, the separate operations give %04x",
                     what, rows, cols, batch, i, a[i], b[i]);
}

static const uint32_t batches[] = {1, 3, 8, 9, 16, 33, 64, 65, 133};
enum { N_BATCHES = sizeof batches / sizeof *batches };

/* Which kernels were met: [kernel][several slices]. */
static bool met[LINEAR_LIBRARY + 1][2];

static void note_kernel(const struct k_linear *l, uint32_t batch)
{
    struct linear_plan plan = linear_plan_for(&gpu->products->device, &l->shape, batch);
    met[plan.kernel][l->shape.n_slices > 1] = true;
}

static void assert_all_met(void)
{
    const bool wide = gpu->products->device.warpgroups;
    for (int kernel = 0; kernel < LINEAR_LIBRARY; kernel++)
        for (int sliced = 0; sliced < 2; sliced++)
            if (wide ? kernel >= LINEAR_WIDE_SLICE && !met[kernel][sliced]
                     : kernel <= LINEAR_WHOLE && !met[kernel][sliced])
                fail_msg("no case ran %s with %s", linear_kernel_name((enum linear_kernel)kernel),
                         sliced ? "several slices" : "one slice");
    memset(met, 0, sizeof met);
}

/* Of a small chip CTAs have more to do: other kernels are chosen. */
static void be_small(bool small)
{
    static uint32_t n_sms;
    n_sms = small ? gpu->products->device.n_sms : n_sms;
    gpu->products->device.n_sms = small ? 1 : n_sms;
}

/* ---- GLU ---- */

static void one_glu(struct rng *r, enum k_weight type, uint32_t inner, uint32_t cols,
                    uint32_t group)
{
    const uint32_t rows = 2 * inner;
    struct matrix m = matrix_new(r, type, rows, cols, group, true);
    struct k_linear *plain = op->linear_new(gpu, &m.src);
    m.src.glu = true;
    struct k_linear *paired = op->linear_new(gpu, &m.src);
    assert_int_equal(paired->shape.pair_rows, rows % 128 ? 0 : inner);
    void *x = buffer(r, (size_t)MAX_ROWS * cols, true);
    for (int i = 0; i < N_BATCHES; i++) {
        const uint32_t n = batches[i];
        const enum k_glu glu = (enum k_glu)(i % 2);
        emulated_driver_set_order(rng_next(r));
        void *u = buffer(r, (size_t)n * rows, false), *u2 = buffer(r, (size_t)n * rows, false);
        void *g = buffer(r, (size_t)n * inner, false), *g2 = buffer(r, (size_t)n * inner, false);
        op->linear(gpu, plain, x, n, u);
        op->glu(gpu, glu, u, n, inner, g);
        op->linear(gpu, paired, x, n, u2);
        assert_same(u2, u, (size_t)n * rows, "the product with rows in pairs", rows, cols, n);
        op->linear_glu(gpu, paired, glu, x, n, u2, g2);
        assert_same(g2, g, (size_t)n * inner, "glu", rows, cols, n);
        note_kernel(paired, n);
        op->free(gpu, u);
        op->free(gpu, u2);
        op->free(gpu, g);
        op->free(gpu, g2);
    }
    op->free(gpu, x);
    op->linear_free(gpu, plain);
    op->linear_free(gpu, paired);
    matrix_free(&m);
}

static void test_glu(void **state)
{
    (void)state;
    struct rng r = {21};
    open_gpu(0);
    assert_int_equal(gpu->products->device.warpgroups, gpu->arch == 90);
    one_glu(&r, K_WEIGHT_I4, 64, 192, 192);
    one_glu(&r, K_WEIGHT_I4, 192, 640, 640);
    one_glu(&r, K_WEIGHT_I4, 128, 256, 64);
    one_glu(&r, K_WEIGHT_I4, 72, 128, 128); /* rows that do not come in panels */
    one_glu(&r, K_WEIGHT_I8, 64, 384, 384);
    one_glu(&r, K_WEIGHT_F16, 128, 192, 192);
    be_small(true);
    one_glu(&r, K_WEIGHT_I4, 192, 640, 640);
    one_glu(&r, K_WEIGHT_I4, 64, 192, 192);
    one_glu(&r, K_WEIGHT_I8, 64, 192, 192);
    one_glu(&r, K_WEIGHT_F16, 64, 192, 192);
    be_small(false);
    assert_all_met();
    close_gpu();
}

/* ---- rope ---- */

struct heads {
    uint32_t n_heads, n_kv_heads, dim;
};

/* A long sequence and single tokens, n rows in all; each has blocks of its own. */
static uint32_t cut(uint32_t n, struct k_seq *seqs, uint32_t *blocks)
{
    const uint32_t first = n < 40 ? (n + 1) / 2 : 40, per_seq = MAX_SEQ / BLOCK;
    uint32_t n_seqs = 0;
    for (uint32_t row = 0; row < n; n_seqs++) {
        const uint32_t rows = row ? 1 : first;
        for (uint32_t b = 0; b < per_seq; b++) /* backwards */
            blocks[n_seqs * per_seq + b] = (n_seqs + 1) * per_seq - 1 - b;
        seqs[n_seqs] = (struct k_seq){row, rows, row ? row % 50 : 5, 0, blocks + n_seqs * per_seq};
        row += rows;
    }
    return n_seqs;
}

static void one_rope(struct rng *r, const struct heads *h, enum k_weight type,
                     enum k_kv_type kv_type, uint32_t cols)
{
    const uint32_t rows = (h->n_heads + 2 * h->n_kv_heads) * h->dim, q_len = h->n_heads * h->dim;
    struct matrix m = matrix_new(r, type, rows, cols, cols, true);
    struct k_linear *l = op->linear_new(gpu, &m.src);
    float table[2][MAX_SEQ * 64];
    for (uint32_t i = 0; i < MAX_SEQ * 64; i++) {
        table[0][i] = half_round(cosf((float)i));
        table[1][i] = half_round(sinf((float)i));
    }
    struct k_rope *rope = op->rope_new(gpu, table[0], table[1], MAX_SEQ, h->dim / 2);
    const struct k_kv_params kp = {N_LAYERS, h->n_kv_heads, h->dim, MAX_ROWS * MAX_SEQ / BLOCK,
                                   BLOCK,    kv_type};
    struct k_kv *kv = op->kv_new(gpu, &kp), *kv2 = op->kv_new(gpu, &kp);
    const struct k_attn_params a = {h->n_heads, h->n_kv_heads, h->dim, LAYER};
    void *x = buffer(r, (size_t)MAX_ROWS * cols, true);
    uint32_t *blocks = op_malloc(MAX_ROWS * MAX_SEQ / BLOCK * sizeof *blocks);
    for (int i = 0; i < N_BATCHES; i++) {
        const uint32_t n = batches[i];
        struct k_seq seqs[MAX_ROWS];
        int32_t ids[MAX_ROWS] = {0}, positions[MAX_ROWS];
        for (uint32_t j = 0; j < n; j++)
            positions[j] = (int32_t)rng_below(r, MAX_SEQ);
        const struct k_step step = {ids, positions, n, seqs, cut(n, seqs, blocks), BLOCK};
        emulated_driver_set_order(rng_next(r));
        void *qkv = buffer(r, (size_t)n * rows, false), *qkv2 = buffer(r, (size_t)n * rows, false);
        void *q = buffer(r, (size_t)n * q_len, false), *q2 = buffer(r, (size_t)n * q_len, false);
        op->begin_step(gpu, &step);
        op->linear(gpu, l, x, n, qkv);
        op->rope_kv(gpu, &a, rope, qkv, positions, seqs, step.n_seqs, kv, q);
        op->linear_rope_kv(gpu, l, x, &a, rope, positions, seqs, step.n_seqs, kv2, qkv2, q2);
        assert_same(q2, q, (size_t)n * q_len, "q", rows, cols, n);
        assert_same(kv2->view.data, kv->view.data, N_LAYERS * kv->layer_bytes / 2, "the cache",
                    rows, cols, n);
        note_kernel(l, n);
        op->free(gpu, qkv);
        op->free(gpu, qkv2);
        op->free(gpu, q);
        op->free(gpu, q2);
    }
    free(blocks);
    op->free(gpu, x);
    op->kv_free(gpu, kv);
    op->kv_free(gpu, kv2);
    op->rope_free(gpu, rope);
    op->linear_free(gpu, l);
    matrix_free(&m);
}

static void test_rope(void **state)
{
    (void)state;
    static const struct heads models[] = {
        {1, 1, 128}, {2, 2, 64}, {4, 2, 32}, {1, 1, 16}, {2, 1, 112}, /* not in whole panels */
    };
    struct rng r = {22};
    open_gpu(0);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        one_rope(&r, &models[i], K_WEIGHT_I4, K_KV_F16, i % 2 ? 640 : 192);
        one_rope(&r, &models[i], K_WEIGHT_I4, K_KV_I8, i % 2 ? 192 : 640);
    }
    one_rope(&r, &models[0], K_WEIGHT_I8, K_KV_I8, 256);
    one_rope(&r, &models[1], K_WEIGHT_F16, K_KV_F16, 256);
    be_small(true);
    one_rope(&r, &models[0], K_WEIGHT_I4, K_KV_I8, 640);
    one_rope(&r, &models[1], K_WEIGHT_I4, K_KV_F16, 192);
    one_rope(&r, &models[1], K_WEIGHT_I8, K_KV_F16, 192);
    be_small(false);
    assert_all_met();
    close_gpu();
}

/* What goes through the library keeps the separate operations, and their bits. */
static void test_library(void **state)
{
    (void)state;
    static const struct heads model = {1, 1, 128};
    struct rng r = {23};
    open_gpu(65);
    const uint64_t before = emulated_blas_state()->n_products;
    one_glu(&r, K_WEIGHT_I4, 64, 256, 256);
    one_rope(&r, &model, K_WEIGHT_I4, K_KV_I8, 256);
    assert_true(emulated_blas_state()->n_products > before);
    memset(met, 0, sizeof met);
    close_gpu();
    /* not there: the device cannot be opened like this, and says why */
    emulated_blas_state()->missing = true;
    char message[256];
    const struct k_open_params p = {.device = "cuda:0",
                                    .mode = K_MODE_FP16,
                                    .max_rows = MAX_ROWS,
                                    .max_cols = 1024,
                                    .max_seq = MAX_SEQ,
                                    .library_rows = 1};
    assert_int_equal(op->open(&p, &gpu, message, sizeof message), -ENOSYS);
    assert_non_null(strstr(message, "worker.library_rows"));
    emulated_blas_state()->missing = false;
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_glu), cmocka_unit_test(test_rope),
                                       cmocka_unit_test(test_library)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
