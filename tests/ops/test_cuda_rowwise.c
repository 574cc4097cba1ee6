/* test_cuda_rowwise.c: norms and GLU of the CUDA backend, executed on the emulated GPU, against
 * the CPU backend, and every row alone against the row in its batch, bit by bit. */
#include "harness.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"

enum { MAX_ROWS = 20, MAX_COLS = 12288 };

static struct k_ctx *gpu, *cpu;

static void open_both(void)
{
    char message[256];
    const struct k_open_params p = {
        .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = MAX_ROWS, .max_cols = 8, .max_seq = 8};
    if (cuda_open(&p, &gpu, message, sizeof message))
        fail_msg("%s", message);
    cpu = op_open(op_cpu(), NULL, K_MODE_FP32, 1, MAX_ROWS, MAX_COLS, 8);
}

static void close_both(void)
{
    char message[256];
    assert_int_equal(cuda_sync(gpu, message, sizeof message), 0);
    cuda_close(gpu);
    op_cpu()->close(cpu);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* Random values that binary16 holds. */
static float *random_halves(struct rng *r, size_t n, float mean, float scale)
{
    float *x = op_malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = half_round(mean + scale * rng_normal(r));
    return x;
}

static void *on_gpu(const float *x, size_t n)
{
    void *p = cuda_new(gpu, n * sizeof(uint16_t));
    assert_non_null(p);
    if (x)
        cuda_upload(gpu, p, x, n);
    return p;
}

/* `got` is `want` rounded to binary16, but for `slack` in units of its last place. */
static void assert_rounded(const float *got, const float *want, size_t n, double slack,
                           const char *what, uint32_t cols)
{
    for (size_t i = 0; i < n; i++) {
        double step = ldexp(1.0, (int)floor(log2(fabs((double)want[i]) + 6.2e-5)) - 10);
        /* terms of the size of 1 may cancel */
        assert_near((double)got[i], (double)want[i], step * (0.5 + slack) + 1e-6,
                    "%s, %u columns: %zu", what, cols, i);
    }
}

static void one_norm(struct rng *r, enum k_norm_kind kind, uint32_t rows, uint32_t cols,
                     bool residual, bool with_bias)
{
    const struct k_ops *ops = op_cpu();
    const size_t n = (size_t)rows * cols;
    float *a = random_halves(r, n, 0.1f, 1), *x = random_halves(r, n, -0.3f, 2);
    uint16_t *weight = rng_halves(r, cols, 1, 0.2f), *bias = rng_halves(r, cols, 0, 0.2f);
    const uint16_t *own_bias = kind == K_NORM_RMS ? NULL : bias;
    uint16_t *sum_bias = rng_halves(r, cols, 0, 1);
    struct k_norm *gpu_norm = cuda_norm_new(gpu, kind, weight, own_bias, cols);
    struct k_norm *cpu_norm = ops->norm_new(cpu, kind, weight, own_bias, cols);
    struct k_bias *gpu_bias = with_bias ? cuda_bias_new(gpu, sum_bias, cols) : NULL;
    struct k_bias *cpu_bias = with_bias ? ops->bias_new(cpu, sum_bias, cols) : NULL;
    void *ga = on_gpu(a, n), *gx = on_gpu(x, n), *gy = on_gpu(NULL, n);
    float *y = op_malloc(n * sizeof *y), *got = op_malloc(n * sizeof *got);
    float *sum = op_malloc(n * sizeof *sum), *alone = op_malloc(cols * sizeof *alone);
    memcpy(sum, x, n * sizeof *x);
    const float alpha = 11.832160f, eps = 1e-5f;
    if (residual) {
        ops->residual_norm(cpu, cpu_norm, eps, alpha, a, sum, cpu_bias, rows, y);
        cuda_residual_norm(gpu, gpu_norm, eps, alpha, ga, gx, gpu_bias, rows, gy);
        cuda_download(gpu, got, gx, n);
        assert_rounded(got, sum, n, 0.01, "residual", cols);
    } else {
        ops->norm(cpu, cpu_norm, eps, x, rows, y);
        cuda_norm(gpu, gpu_norm, eps, gx, rows, gy);
    }
    cuda_download(gpu, got, gy, n);
    assert_rounded(got, y, n, 0.02, residual ? "residual norm" : "norm", cols);

    /* the last row by itself */
    const size_t last = (size_t)(rows - 1) * cols;
    cuda_upload(gpu, gx, x, n);
    if (residual)
        cuda_residual_norm(gpu, gpu_norm, eps, alpha, (uint16_t *)ga + last, (uint16_t *)gx + last,
                           gpu_bias, 1, gy);
    else
        cuda_norm(gpu, gpu_norm, eps, (uint16_t *)gx + last, 1, gy);
    cuda_download(gpu, alone, gy, cols);
    assert_same_bits(alone, got + last, cols, "%u columns, row %u alone", cols, rows - 1);

    cuda_norm_free(gpu, gpu_norm);
    cuda_bias_free(gpu, gpu_bias);
    ops->norm_free(cpu, cpu_norm);
    if (cpu_bias)
        ops->bias_free(cpu, cpu_bias);
    cuda_free(gpu, ga);
    cuda_free(gpu, gx);
    cuda_free(gpu, gy);
    void *host[] = {a, x, weight, bias, sum_bias, y, got, sum, alone};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
}

static void test_norms(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, cols;
    } shapes[] = {{1, 8},    {3, 64},    {MAX_ROWS, 200}, {2, 4096},
                  {5, 4104}, {2, 12280}, {1, MAX_COLS}};
    struct rng r = {11};
    open_both();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int kind = K_NORM_LAYER; kind <= K_NORM_RMS; kind++) {
            const enum k_norm_kind k = (enum k_norm_kind)kind;
            one_norm(&r, k, shapes[i].rows, shapes[i].cols, false, false);
            one_norm(&r, k, shapes[i].rows, shapes[i].cols, true, i % 2 == 0);
        }
    }
    close_both();
}

static void check_glu(enum k_glu glu)
{
    static const struct {
        uint32_t rows, inner;
    } shapes[] = {{1, 8}, {7, 48}, {3, 2056}, {2, 8192}};
    struct rng r = {12};
    open_both();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const uint32_t rows = shapes[i].rows, inner = shapes[i].inner;
        const size_t n = (size_t)rows * inner;
        float *u = random_halves(&r, 2 * n, 0, 2);
        for (uint32_t j = 0; j < inner && j < 64; j++) /* the tails */
            u[j] = u[inner + j] = half_round((float)j - 32);
        void *gu = on_gpu(u, 2 * n), *gg = on_gpu(NULL, n);
        float *want = op_malloc(n * sizeof *want), *got = op_malloc(n * sizeof *got);
        op_cpu()->glu(cpu, glu, u, rows, inner, want);
        cuda_glu(gpu, glu, gu, rows, inner, gg);
        cuda_download(gpu, got, gg, n);
        for (size_t j = 0; j < n; j++) {
            double value = fabs((double)u[j / inner * 2 * inner + j % inner]);
            double gate = fabs((double)u[j / inner * 2 * inner + inner + j % inner]);
            double step = ldexp(1.0, (int)floor(log2(fabs((double)want[j]) + 6.2e-5)) - 10);
            /* Phi and the logistic function are good to 1e-7 absolutely */
            assert_near((double)got[j], (double)want[j], 0.52 * step + 2e-7 * value * gate,
                        "inner %u: %zu", inner, j);
        }
        cuda_free(gpu, gu);
        cuda_free(gpu, gg);
        free(u);
        free(want);
        free(got);
    }
    close_both();
}

static void test_glu(void **state)
{
    (void)state;
    check_glu(K_GLU_GEGLU);
    check_glu(K_GLU_SWIGLU);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norms), cmocka_unit_test(test_glu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
