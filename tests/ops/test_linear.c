/* test_linear.c: the products. Plain C against sums in double precision with an error bound that
 * follows from the method; every other instruction set and thread count against plain C, bit by
 * bit. */
#include "harness.h"

#include "base/half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    uint32_t rows, cols, group_cols;
};

/* GLM-130B's group is the row; others are the groups of converted models, odd ones for padding. */
static const struct shape shapes[] = {
    {64, 64, 64},    {192, 64, 64},  {1, 2, 2},       {70, 192, 192},    {33, 192, 48},
    {48, 320, 64},   {17, 320, 320}, {16, 256, 128},  {20, 384, 128},    {31, 510, 510},
    {5, 130, 130},   {40, 300, 60},  {18, 1026, 114}, {16, 264, 264},    {7, 36, 18},
    {35, 1000, 200}, {9, 30, 6},     {12, 2048, 32},  {3, 12288, 12288},
};

static const uint32_t batches[] = {1,  2,  3,  4,  5,  6,  7,  8,  9, 10,
                                   11, 13, 14, 15, 16, 17, 23, 24, 70};
enum { MAX_BATCH = 70, N_BATCHES = sizeof batches / sizeof *batches };

/* What the mode may lose in one product: the rounding of FP32 sums, and half a step of each
 * quantized activation. */
static double error_bound(const struct matrix *m, enum k_mode mode, const float *x, uint32_t row,
                          const double *w)
{
    double sums = 0, steps = 0;
    uint32_t cols = m->src.cols, group = m->src.group_cols;
    for (uint32_t g0 = 0; g0 < cols; g0 += group)
        for (uint32_t b0 = g0; b0 < g0 + group && b0 < cols; b0 += 128) {
            double largest = 0, weights = 0;
            for (uint32_t k = b0; k < b0 + 128 && k < g0 + group && k < cols; k++) {
                double wk = fabs(w[(size_t)row * cols + k]);
                sums += wk * fabs((double)x[k]);
                weights += wk;
                largest = fmax(largest, fabs((double)x[k]));
            }
            steps += weights * largest;
        }
    double level = mode == K_MODE_FP16 ? 32639 : 127;
    double quantized =
        mode == K_MODE_FP32 || m->src.type == K_WEIGHT_F16 ? 0 : steps / (2 * level) * 1.001;
    return 1e-6 * (sums + 1) + quantized;
}

static void check_against_double(const struct matrix *m, enum k_mode mode, const float *x,
                                 uint32_t n, const float *y)
{
    const double *w = mode == K_MODE_FP32 ? m->rounded : m->exact;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t row = 0; row < m->src.rows; row++) {
            double want = m->bias ? (double)half_to_float(m->bias[row]) : 0;
            for (uint32_t k = 0; k < m->src.cols; k++)
                want += w[(size_t)row * m->src.cols + k] * (double)x[(size_t)t * m->src.cols + k];
            assert_near((double)y[(size_t)t * m->src.rows + row], want,
                        error_bound(m, mode, x + (size_t)t * m->src.cols, row, w),
                        "type %d mode %s %ux%u group %u: y[%u][%u]", (int)m->src.type,
                        op_mode_name(mode), m->src.rows, m->src.cols, m->src.group_cols, t, row);
        }
}

/* y in a buffer with a guard behind it. */
static void product(const struct k_ops *ops, struct k_ctx *c, const struct k_linear *l,
                    const float *x, uint32_t n, uint32_t rows, float *y)
{
    memset(y, 0xff, ((size_t)n * rows + 16) * sizeof *y);
    ops->linear(c, l, x, n, y);
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, y + (size_t)n * rows + i, sizeof bits);
        assert_int_equal(bits, 0xffffffff);
    }
}

static void check_shape(const struct shape *s, enum k_weight type, enum k_mode mode, uint64_t seed)
{
    const struct k_ops *ops = op_cpu();
    struct rng r = {seed};
    struct matrix m = matrix_new(&r, type, s->rows, s->cols, s->group_cols, seed % 3 != 0);
    float *x = op_malloc((size_t)MAX_BATCH * s->cols * sizeof *x);
    rng_fill(&r, x, (size_t)MAX_BATCH * s->cols, 1);
    if (s->cols > 8)
        x[8] = 300; /* an outlier */
    float *want = op_malloc(((size_t)MAX_BATCH * s->rows + 16) * sizeof *want);
    float *got = op_malloc(((size_t)MAX_BATCH * s->rows + 16) * sizeof *got);
    for (int set = 0; set < MAX_SETS; set++)
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct k_ctx *c = op_open(ops, op_sets[set], mode, threads, MAX_BATCH, s->cols, 16);
            if (!c)
                continue;
            struct k_linear *l = ops->linear_new(c, &m.src);
            assert_non_null(l);
            for (int b = 0; b < N_BATCHES; b++) {
                uint32_t n = batches[b];
                if (!set && threads == 1 && n == MAX_BATCH) {
                    product(ops, c, l, x, n, s->rows, want);
                    check_against_double(&m, mode, x, n < 9 ? n : 9, want);
                }
                if (!set && s->cols > 2000)
                    continue; /* plain C is slow */
                if (n == MAX_BATCH || set)
                    product(ops, c, l, x, n, s->rows, got);
                if ((n == MAX_BATCH && threads == 2) || set)
                    assert_same_bits(got, want, (size_t)n * s->rows,
                                     "%s, %u threads, type %d, %s, %ux%u group %u, batch %u",
                                     op_sets[set], threads, (int)type, op_mode_name(mode), s->rows,
                                     s->cols, s->group_cols, n);
            }
            ops->linear_free(c, l);
            ops->close(c);
        }
    free(x);
    free(want);
    free(got);
    matrix_free(&m);
}

static void check_type(enum k_weight type)
{
    for (int mode = K_MODE_FP32; mode <= K_MODE_A8; mode++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_shape(&shapes[i], type, (enum k_mode)mode, 1000 * (i + 1) + (uint64_t)mode);
}

static void test_int4(void **state)
{
    (void)state;
    check_type(K_WEIGHT_I4);
}

static void test_int8(void **state)
{
    (void)state;
    check_type(K_WEIGHT_I8);
}

static void test_f16(void **state)
{
    (void)state;
    check_type(K_WEIGHT_F16);
}

enum { EXTREME_ROWS = 18, EXTREME_COLS = 264 };

/* Rows of the smallest and of the largest weights, and of both by turns. */
static struct matrix extreme_matrix(struct rng *r, enum k_weight type)
{
    struct matrix m = matrix_new(r, type, EXTREME_ROWS, EXTREME_COLS, EXTREME_COLS, false);
    const size_t row_bytes = (size_t)EXTREME_COLS * (type == K_WEIGHT_I8 ? 8 : 4) / 8;
    for (uint32_t row = 0; row < EXTREME_ROWS; row++)
        for (uint32_t k = 0; k < EXTREME_COLS; k++) {
            bool low = row % 3 == 0 || (row % 3 == 1 && k % 2);
            int q = type == K_WEIGHT_I8 ? (low ? -128 : 127) : (low ? -8 : 7);
            uint8_t *byte = m.data + row * row_bytes + (type == K_WEIGHT_I8 ? k : k / 2);
            if (type == K_WEIGHT_I8)
                *byte = (uint8_t)q;
            else
                *byte = (uint8_t)(k % 2 ? (*byte & 0xf0) | (q & 15) : (*byte & 15) | (q & 15) << 4);
            m.exact[(size_t)row * EXTREME_COLS + k] = q * (double)half_to_float(m.scale[row]);
        }
    return m;
}

/* The largest sums that a block can have: activations that are all as large as the largest, with
 * one sign, with both, and with the values around the edges of a byte between them. */
static void extreme_rows(float *x, uint32_t n)
{
    static const float edges[] = {1, -1, 127, -127, 128, -128, 129, -129, 255, -255, 256, -256};
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t k = 0; k < EXTREME_COLS; k++) {
            float value = t % 4 == 3 && k % 128 ? edges[(k + t) % 12] : 32639;
            bool negative = t % 4 == 0 || (t % 4 == 2 && k % 2);
            x[(size_t)t * EXTREME_COLS + k] = negative ? -value : value;
        }
}

static void test_extremes(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    enum { N = 24, TOTAL = N * EXTREME_ROWS };
    struct rng r = {31};
    float x[N * EXTREME_COLS], want[TOTAL + 16], got[TOTAL + 16];
    extreme_rows(x, N);
    for (int type = K_WEIGHT_I8; type <= K_WEIGHT_I4; type++)
        for (int mode = K_MODE_FP16; mode <= K_MODE_A8; mode++) {
            struct matrix m = extreme_matrix(&r, (enum k_weight)type);
            for (int set = 0; set < MAX_SETS; set++) {
                struct k_ctx *c =
                    op_open(ops, op_sets[set], (enum k_mode)mode, 1, N, EXTREME_COLS, 16);
                if (!c)
                    continue;
                struct k_linear *l = ops->linear_new(c, &m.src);
                assert_non_null(l);
                for (uint32_t n = set ? 1 : N; n <= N; n++) {
                    product(ops, c, l, x, n, EXTREME_ROWS, set ? got : want);
                    if (!set)
                        check_against_double(&m, (enum k_mode)mode, x, n, want);
                    else
                        assert_same_bits(got, want, (size_t)n * EXTREME_ROWS,
                                         "%s, type %d, %s, batch %u", op_sets[set], type,
                                         op_mode_name((enum k_mode)mode), n);
                }
                ops->linear_free(c, l);
                ops->close(c);
            }
            matrix_free(&m);
        }
}

static void test_not_finite(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct rng r = {5};
    for (int type = K_WEIGHT_F16; type <= K_WEIGHT_I4; type++)
        for (int mode = K_MODE_FP32; mode <= K_MODE_A8; mode++) {
            struct matrix m = matrix_new(&r, (enum k_weight)type, 20, 256, 64, false);
            float x[3 * 256], y[3 * 20];
            rng_fill(&r, x, 3 * 256, 1);
            x[256 + 70] = NAN;
            struct k_ctx *c = op_open(ops, NULL, (enum k_mode)mode, 1, 3, 256, 16);
            struct k_linear *l = ops->linear_new(c, &m.src);
            assert_non_null(l);
            ops->linear(c, l, x, 3, y);
            for (int i = 0; i < 20; i++) {
                assert_true(isfinite(y[i]) && isfinite(y[40 + i]));
                assert_true(isnan(y[20 + i])); /* an activation that is NaN is not lost */
            }
            ops->linear_free(c, l);
            ops->close(c);
            matrix_free(&m);
        }
}

static void test_embed(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct rng r = {77};
    enum { ROWS = 70, COLS = 52, FIRST = 1000, N = 75 };
    struct matrix m = matrix_new(&r, K_WEIGHT_F16, ROWS, COLS, COLS, false);
    int32_t ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = FIRST - 3 + i;
    ids[0] = -1;
    for (int set = 0; set < MAX_SETS; set++) {
        struct k_ctx *c = op_open(ops, op_sets[set], K_MODE_FP16, 2, N, COLS, 16);
        if (!c)
            continue;
        struct k_linear *table = ops->linear_new(c, &m.src);
        float y[N * COLS];
        memset(y, 0xff, sizeof y);
        ops->embed(c, table, FIRST, ids, N, y);
        for (int i = 0; i < N * COLS; i++) {
            int row = ids[i / COLS] - FIRST;
            double want = row < 0 || row >= ROWS ? 0 : m.exact[row * COLS + i % COLS];
            assert_near((double)y[i], want, 0, "%s: embed[%d]", op_sets[set], i);
        }
        ops->linear_free(c, table);
        ops->close(c);
    }
    matrix_free(&m);
}

/* The default mode must not lose more than activations in binary16 do, also with the outlier
 * dimensions that GLM-130B has. */
static void test_fp16_quality(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    enum { ROWS = 64, COLS = 4096, N = 8 };
    static const struct {
        double share;
        float factor;
    } outliers[] = {{0, 1},      {0.001, 20}, {0.001, 100}, {0.01, 20},
                    {0.01, 100}, {0.3, 20},   {0.3, 100}};
    struct rng r = {4242};
    for (size_t o = 0; o < sizeof outliers / sizeof *outliers; o++) {
        struct matrix m = matrix_new(&r, K_WEIGHT_I4, ROWS, COLS, COLS, false);
        float *x = op_malloc(N * COLS * sizeof *x), *y = op_malloc(N * ROWS * sizeof *y);
        rng_fill(&r, x, N * COLS, 1);
        for (uint32_t k = 0; k < COLS; k++)
            if ((double)rng_next(&r) < outliers[o].share * 0x1p32)
                for (uint32_t t = 0; t < N; t++)
                    x[t * COLS + k] *= outliers[o].factor;
        struct k_ctx *c = op_open(ops, NULL, K_MODE_FP16, 1, N, COLS, 16);
        struct k_linear *l = ops->linear_new(c, &m.src);
        ops->linear(c, l, x, N, y);
        double ours = 0, halves = 0;
        for (uint32_t i = 0; i < N * ROWS; i++) {
            double exact = 0, half = 0;
            for (uint32_t k = 0; k < COLS; k++) {
                float v = x[i / ROWS * COLS + k];
                exact += m.exact[i % ROWS * COLS + k] * (double)v;
                half += m.exact[i % ROWS * COLS + k] * (double)half_round(v);
            }
            ours += ((double)y[i] - exact) * ((double)y[i] - exact);
            halves += (half - exact) * (half - exact);
        }
        print_message("outliers %.1f%% x %.0f: error %.3g, with binary16 activations %.3g\n",
                      outliers[o].share * 100, (double)outliers[o].factor, sqrt(ours / (N * ROWS)),
                      sqrt(halves / (N * ROWS)));
        assert_true(ours <= halves);
        ops->linear_free(c, l);
        ops->close(c);
        matrix_free(&m);
        free(x);
        free(y);
    }
}

/* linear_glu gives the bits of linear and glu, for one tile, several and more than one pass, with
 * halves that are whole panels and that are not. */
static void check_glu(enum k_weight type, enum k_mode mode, uint32_t inner, uint32_t cols)
{
    static const uint32_t some[] = {1, 24, 25, 70, 530};
    enum { MOST = 530 };
    const struct k_ops *ops = op_cpu();
    struct rng r = {inner + cols};
    struct matrix m = matrix_new(&r, type, 2 * inner, cols, cols, true);
    m.src.glu = true;
    float *x = op_malloc((size_t)MOST * cols * sizeof *x);
    float *u = op_malloc((size_t)MOST * 2 * inner * sizeof *u);
    float *want = op_malloc((size_t)MOST * inner * sizeof *want);
    float *got = op_malloc(((size_t)MOST * inner + 16) * sizeof *got);
    rng_fill(&r, x, (size_t)MOST * cols, 1);
    for (int set = 1; set < MAX_SETS; set++) /* plain C has no other way */
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct k_ctx *c = op_open(ops, op_sets[set], mode, threads, MOST, cols, 16);
            if (!c)
                continue;
            struct k_linear *l = ops->linear_new(c, &m.src);
            assert_non_null(l);
            for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
                const size_t n = (size_t)some[i] * inner;
                const enum k_glu glu = i % 2 ? K_GLU_SWIGLU : K_GLU_GEGLU;
                ops->linear(c, l, x, some[i], u);
                ops->glu(c, glu, u, some[i], inner, want);
                memset(got, 0xff, (n + 16) * sizeof *got);
                ops->linear_glu(c, l, glu, x, some[i], u, got);
                assert_same_bits(got, want, n, "%s, %u threads, type %d, %s, inner %u, batch %u",
                                 op_sets[set], threads, (int)type, op_mode_name(mode), inner,
                                 some[i]);
                for (int k = 0; k < 16; k++) {
                    uint32_t bits;
                    memcpy(&bits, got + n + k, sizeof bits);
                    assert_int_equal(bits, 0xffffffff);
                }
            }
            ops->linear_free(c, l);
            ops->close(c);
        }
    free(x);
    free(u);
    free(want);
    free(got);
    matrix_free(&m);
}

static void test_glu(void **state)
{
    (void)state;
    for (int mode = K_MODE_FP32; mode <= K_MODE_A8; mode++)
        for (int type = 0; type < 2; type++) {
            check_glu(type ? K_WEIGHT_I4 : K_WEIGHT_I8, (enum k_mode)mode, 16, 64);
            check_glu(type ? K_WEIGHT_I4 : K_WEIGHT_I8, (enum k_mode)mode, 24, 64);
            check_glu(type ? K_WEIGHT_I4 : K_WEIGHT_I8, (enum k_mode)mode, 304, 256);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int4),         cmocka_unit_test(test_int8),
        cmocka_unit_test(test_f16),          cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_not_finite),   cmocka_unit_test(test_embed),
        cmocka_unit_test(test_fp16_quality), cmocka_unit_test(test_glu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
