/* test_rowwise.c: norms, GLU, gather, buffers and opening, against double precision and across
 * instruction sets. */
#include "harness.h"

#include "base/half.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t widths[] = {1, 2, 15, 16, 17, 48, 64, 100, 1000, 12288};
enum { ROWS = 5, N_WIDTHS = sizeof widths / sizeof *widths };

static void naive_norm(enum k_norm_kind kind, const double *x, uint32_t cols,
                       const uint16_t *weight, const uint16_t *bias, double *y)
{
    double mean = 0, variance = 0;
    for (uint32_t i = 0; i < cols && kind == K_NORM_LAYER; i++)
        mean += x[i] / cols;
    for (uint32_t i = 0; i < cols; i++)
        variance += (x[i] - mean) * (x[i] - mean) / cols;
    for (uint32_t i = 0; i < cols; i++)
        y[i] = (x[i] - mean) / sqrt(variance + 1e-5) * (double)half_to_float(weight[i]) +
               (bias ? (double)half_to_float(bias[i]) : 0);
}

/* x and y of both norms for one width, on every set; the first is checked against double. */
static void check_norms(uint32_t cols, enum k_norm_kind kind)
{
    const struct k_ops *ops = op_cpu();
    struct rng r = {cols};
    size_t n = (size_t)ROWS * cols;
    const float alpha = 11.832160f;
    uint16_t *weight = rng_halves(&r, cols, 1, 0.1f), *bias = rng_halves(&r, cols, 0, 0.1f);
    const uint16_t *own_bias = kind == K_NORM_RMS && cols != 48 ? NULL : bias; /* mostly */
    uint16_t *add = rng_halves(&r, cols, 0, 1);
    float *a = op_malloc(n * 4), *res = op_malloc(n * 4), *y = op_malloc(n * 4);
    float *first[3] = {op_malloc(n * 4), op_malloc(n * 4), op_malloc(n * 4)};
    double *x = op_malloc(cols * sizeof *x), *want = op_malloc(cols * sizeof *want);
    float *sum = op_malloc(n * 4);
    rng_fill(&r, a, n, 3);
    rng_fill(&r, res, n, 3);
    for (size_t i = 0; i < n; i++)
        a[i] += 10; /* a mean far from zero */
    for (int set = 0; set < MAX_SETS; set++)
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct k_ctx *c = op_open(ops, op_sets[set], K_MODE_FP16, threads, ROWS, cols, 16);
            if (!c)
                continue;
            struct k_norm *norm = ops->norm_new(c, kind, weight, own_bias, cols);
            struct k_bias *b = ops->bias_new(c, add, cols);
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                memcpy(sum, res, n * 4);
                ops->residual_norm(c, norm, 1e-5f, alpha, a, sum, with_bias ? b : NULL, ROWS, y);
                for (uint32_t t = 0; t < ROWS && !set; t++) {
                    for (uint32_t i = 0; i < cols; i++)
                        x[i] = (double)alpha * (double)a[t * cols + i] + (double)res[t * cols + i] +
                               (with_bias ? (double)half_to_float(add[i]) : 0);
                    naive_norm(kind, x, cols, weight, own_bias, want);
                    for (uint32_t i = 0; i < cols; i++) {
                        assert_near((double)sum[t * cols + i], x[i], 3e-5, "residual %u", i);
                        /* one column: the variance is 0 and the rounding of x is amplified */
                        assert_near((double)y[t * cols + i], want[i], cols < 3 ? 2e-2 : 2e-5,
                                    "residual norm of %u columns, [%u][%u]", cols, t, i);
                    }
                }
                if (!set && threads == 1)
                    memcpy(first[with_bias], y, n * 4);
                assert_same_bits(y, first[with_bias], n, "residual norm, %s", op_sets[set]);
                memcpy(y, a, n * 4);
                memcpy(sum, res, n * 4);
                assert_true(ops->norm_in_place);
                ops->residual_norm(c, norm, 1e-5f, alpha, y, sum, with_bias ? b : NULL, ROWS, y);
                assert_same_bits(y, first[with_bias], n, "in place, %s", op_sets[set]);
            }
            ops->norm(c, norm, 1e-5f, a, ROWS, y);
            for (uint32_t t = 0; t < ROWS && !set; t++) {
                for (uint32_t i = 0; i < cols; i++)
                    x[i] = (double)a[t * cols + i];
                naive_norm(kind, x, cols, weight, own_bias, want);
                for (uint32_t i = 0; i < cols; i++)
                    assert_near((double)y[t * cols + i], want[i], 1e-5, "norm of %u columns", cols);
            }
            if (!set && threads == 1)
                memcpy(first[2], y, n * 4);
            assert_same_bits(y, first[2], n, "norm, %s", op_sets[set]);
            /* a row by itself has the same bits */
            ops->norm(c, norm, 1e-5f, a + 2 * (size_t)cols, 1, y);
            assert_same_bits(y, first[2] + 2 * (size_t)cols, cols, "one row, %s", op_sets[set]);
            ops->norm_free(c, norm);
            ops->bias_free(c, b);
            ops->close(c);
        }
    free(weight);
    free(bias);
    free(add);
    free(a);
    free(res);
    free(y);
    free(sum);
    free(x);
    free(want);
    for (int i = 0; i < 3; i++)
        free(first[i]);
}

static void test_norms(void **state)
{
    (void)state;
    for (int i = 0; i < N_WIDTHS; i++) {
        check_norms(widths[i], K_NORM_LAYER);
        check_norms(widths[i], K_NORM_RMS);
    }
}

static double naive_gelu(double x)
{
    return 0.5 * x * erfc(-x / sqrt(2));
}

static double naive_silu(double x)
{
    return x / (1 + exp(-x));
}

static void check_glu(uint32_t inner, enum k_glu glu)
{
    const struct k_ops *ops = op_cpu();
    struct rng r = {inner};
    size_t n = (size_t)ROWS * inner;
    float *u = op_malloc(2 * n * 4), *g = op_malloc(n * 4), *first = op_malloc(n * 4);
    rng_fill(&r, u, 2 * n, 3);
    u[inner] = 0;
    if (inner > 16) {
        u[inner + 1] = 1e30f;
        u[inner + 2] = -1e30f;
        u[inner + 3] = 20;
        u[inner + 4] = -20;
        u[5] = 100;
        u[6] = -100;
    }
    for (int set = 0; set < MAX_SETS; set++) {
        struct k_ctx *c = op_open(ops, op_sets[set], K_MODE_FP16, 2, ROWS, 64, 16);
        if (!c)
            continue;
        memset(g, 0xff, n * 4);
        ops->glu(c, glu, u, ROWS, inner, g);
        for (size_t i = 0; i < n && !set; i++) {
            const float *row = u + i / inner * 2 * inner;
            double left = (double)row[i % inner], right = (double)row[inner + i % inner];
            double value = glu == K_GLU_SWIGLU ? right : left;
            double gate = glu == K_GLU_SWIGLU ? left : right;
            double want = value * (glu == K_GLU_SWIGLU ? naive_silu(gate) : naive_gelu(gate));
            assert_near((double)g[i], want, fabs(value) * (1.2e-7 + 2e-7 * fabs(gate)),
                        "glu %d (%g, %g)", (int)glu, left, right);
        }
        if (!set)
            memcpy(first, g, n * 4);
        assert_same_bits(g, first, n, "glu of %u, %s", inner, op_sets[set]);
        ops->close(c);
    }
    free(u);
    free(g);
    free(first);
}

static void test_glu(void **state)
{
    (void)state;
    for (int i = 0; i < N_WIDTHS; i++) {
        check_glu(widths[i], K_GLU_GEGLU);
        check_glu(widths[i], K_GLU_SWIGLU);
    }
}

/* GELU over its whole range, in small steps. */
static void test_gelu_range(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    enum { HALF = 40000, N = 2 * HALF + 1 };
    float *u = op_malloc(2 * N * 4), *g = op_malloc(N * 4);
    for (int i = 0; i < N; i++) {
        u[i] = 1;
        u[N + i] = ((float)i - HALF) * 2.5e-4f;
    }
    struct k_ctx *c = op_open(ops, NULL, K_MODE_FP16, 1, 1, 64, 16);
    ops->glu(c, K_GLU_GEGLU, u, 1, N, g);
    double worst = 0;
    for (int i = 0; i < N; i++) {
        double x = (double)u[N + i], want = naive_gelu(x);
        assert_near((double)g[i], want, fabs(x) * 1.2e-7, "gelu(%.9g)", x);
        if (x != 0)
            worst = fmax(worst, fabs((double)g[i] - want) / fabs(x));
    }
    print_message("gelu: largest error / |x| %.3g\n", worst);
    ops->close(c);
    free(u);
    free(g);
}

static uint64_t sections(const struct k_ops *ops, struct k_ctx *c)
{
    struct k_profile p;
    ops->profile(c, &p);
    return p.n_sections;
}

/* The threads of the pool are asked when there is something to share out. */
static void test_sections(void **state)
{
    (void)state;
    enum { COLS = 2048, MAX = 64 };
    const struct k_ops *ops = op_cpu();
    struct k_ctx *c = op_open(ops, NULL, K_MODE_FP16, 2, MAX, COLS, 16);
    struct rng r = {5};
    uint16_t *weight = rng_halves(&r, COLS, 1, 0.1f);
    struct k_norm *norm = ops->norm_new(c, K_NORM_RMS, weight, NULL, COLS);
    float *x = op_malloc(MAX * COLS * sizeof *x), *y = op_malloc(MAX * COLS * sizeof *y);
    rng_fill(&r, x, MAX * COLS, 1);
    ops->norm(c, norm, 1e-5f, x, 1, y);
    ops->glu(c, K_GLU_GEGLU, x, 1, COLS / 2, y);
    assert_int_equal(sections(ops, c), 0);
    ops->norm(c, norm, 1e-5f, x, MAX, y);
    assert_int_equal(sections(ops, c), 1);
    ops->glu(c, K_GLU_GEGLU, x, MAX, COLS / 2, y);
    assert_int_equal(sections(ops, c), 2);
    free(x);
    free(y);
    free(weight);
    ops->norm_free(c, norm);
    ops->close(c);
}

static void test_buffers(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct k_ctx *c = op_open(ops, NULL, K_MODE_FP32, 0, 8, 64, 16);
    assert_int_equal(ops->act_bytes(c), sizeof(float));
    static const size_t sizes[] = {1, 64, 1000, 5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *p = ops->alloc(c, sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t k = 0; k < sizes[i]; k += 97)
            assert_int_equal(p[k], 0);
        memset(p, 1, sizes[i]);
        ops->free(c, p);
    }
    ops->free(c, NULL);
    assert_null(ops->alloc(c, SIZE_MAX - 3));

    enum { COLS = 7, N = 4 };
    float *x = ops->alloc(c, N * COLS * 4), *y = ops->alloc(c, N * COLS * 4), host[N * COLS];
    for (int i = 0; i < N * COLS; i++)
        host[i] = (float)i;
    ops->upload(c, x, host, N * COLS);
    const uint32_t rows[] = {3, 0, 0, 2};
    ops->gather(c, x, COLS, rows, N, y);
    memset(host, 0, sizeof host);
    ops->download(c, host, y, N * COLS);
    for (uint32_t i = 0; i < N * COLS; i++) {
        uint32_t want = rows[i / COLS] * COLS + i % COLS;
        assert_near((double)host[i], (double)want, 0, "gather[%u]", i);
    }
    assert_ptr_equal(ops->host_view(c, x), x);
    char message[64];
    assert_int_equal(ops->sync(c, message, sizeof message), 0);
    ops->free(c, x);
    ops->free(c, y);
    ops->close(c);
}

static void test_open(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct k_open_params p = {"cpu", K_MODE_FP16, 1, 8, 64, 16, "c"};
    struct k_ctx *c = NULL;
    char message[256] = "";
    assert_int_equal(ops->open(&p, &c, message, sizeof message), 0);
    assert_string_equal(ops->describe(c), "cpu c, 1 thread, fp16");
    ops->close(c);
    ops->close(NULL);
    p.isa = "avx7";
    assert_int_equal(ops->open(&p, &c, message, sizeof message), -ENOTSUP);
    assert_non_null(strstr(message, "avx7"));
    assert_non_null(strstr(message, "this CPU can run: "));
    p.isa = NULL;
    p.device = "cuda:0";
    assert_int_equal(ops->open(&p, &c, message, sizeof message), -EINVAL);
    assert_non_null(strstr(message, "cuda:0"));
    p.device = "cpu";
    p.max_rows = 0;
    assert_int_equal(ops->open(&p, &c, message, sizeof message), -EINVAL);
    p.max_rows = 1;
    p.n_threads = 100000; /* never more than this thread may use */
    assert_int_equal(ops->open(&p, &c, message, sizeof message), 0);
    assert_null(strstr(ops->describe(c), "100000"));
    ops->close(c);
}

static void test_registry(void **state)
{
    (void)state;
    char message[1024] = "";
    assert_ptr_equal(op_cpu(), k_backend("cpu", message, sizeof message));
    assert_null(k_backend("tpu", message, sizeof message));
    assert_non_null(strstr(message, "\"tpu\""));
    const struct k_ops *cuda = k_backend("cuda", message, sizeof message);
    if (cuda) {
        assert_string_equal(cuda->name, "cuda"); /* this build has it; never another backend */
    } else {
        assert_non_null(strstr(message, "libglmd_cuda.so"));
        print_message("%s\n", message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),      cmocka_unit_test(test_glu),
        cmocka_unit_test(test_gelu_range), cmocka_unit_test(test_buffers),
        cmocka_unit_test(test_open),       cmocka_unit_test(test_registry),
        cmocka_unit_test(test_sections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
