/* Quantization: the published quantizer bit for bit, groups, packing, schemes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/half.h"
#include "base/util.h"
#include "model/quant.h"
#include "tests/support/npy.h"

static const struct quant_scheme int4_row = {.weights = QUANT_INT4, .group = QUANT_GROUP_ROW};
static const struct quant_scheme int8_row = {.weights = QUANT_INT8, .group = QUANT_GROUP_ROW};

static void check_golden(const struct quant_scheme *s, const char *q_name, const char *scale_name,
                         const char *dequant_name, size_t n_rows)
{
    struct npy w, q, scale, dequant;
    npy_load_golden(&w, "glm130b/quant/w.npy", NPY_F16);
    npy_load_golden(&q, q_name, NPY_I8);
    npy_load_golden(&scale, scale_name, NPY_F16);
    npy_load_golden(&dequant, dequant_name, NPY_F16);
    size_t cols = w.shape[1], row_bytes = (size_t)quant_row_bytes(s->weights, cols);
    assert_int_equal(q.shape[1], row_bytes);
    assert_true(n_rows <= w.shape[0]);

    uint8_t *found_q = malloc(n_rows * row_bytes);
    uint16_t *found_scale = malloc(n_rows * sizeof *found_scale);
    uint16_t *found_w = malloc(n_rows * cols * sizeof *found_w);
    assert_true(found_q && found_scale && found_w);
    quant_rows(s, w.f16, n_rows, cols, 1, found_q, found_scale);
    quant_dequantize_rows(s->weights, found_q, found_scale, n_rows, cols, 1, found_w);
    for (size_t i = 0; i < n_rows; i++) {
        if (found_scale[i] != scale.f16[i])
            fail_msg("row %zu: expected scale %#x, found %#x", i, scale.f16[i], found_scale[i]);
        for (size_t j = 0; j < row_bytes; j++)
            if (found_q[i * row_bytes + j] != q.u8[i * row_bytes + j])
                fail_msg("row %zu byte %zu: expected %#x, found %#x", i, j, q.u8[i * row_bytes + j],
                         found_q[i * row_bytes + j]);
        for (size_t j = 0; j < cols; j++)
            if (found_w[i * cols + j] != dequant.f16[i * cols + j])
                fail_msg("row %zu column %zu: expected weight %#x, found %#x", i, j,
                         dequant.f16[i * cols + j], found_w[i * cols + j]);
    }
    free(found_q);
    free(found_scale);
    free(found_w);
    npy_deinit(&w);
    npy_deinit(&q);
    npy_deinit(&scale);
    npy_deinit(&dequant);
}

/* The last row is tiny on purpose: its INT4 quotients wrap. */
static void test_golden_int4(void **state)
{
    (void)state;
    check_golden(&int4_row, "glm130b/quant/int4.npy", "glm130b/quant/int4_scale.npy",
                 "glm130b/quant/int4_dequant.npy", 32);
}

/* The INT8 scale of the last row is 0 and the original's result not defined there. */
static void test_golden_int8(void **state)
{
    (void)state;
    check_golden(&int8_row, "glm130b/quant/int8.npy", "glm130b/quant/int8_scale.npy",
                 "glm130b/quant/int8_dequant.npy", 31);
}

/* The definition, step by step, in double precision with explicit roundings. */
static int reference_q(uint16_t w, uint16_t scale, unsigned bits)
{
    if (scale == 0)
        return 0;
    float quotient = half_round((float)((double)half_to_float(w) / (double)half_to_float(scale)));
    int q = (int)nearbyint((double)quotient);
    int wrap = 1 << bits;
    q = ((q % wrap) + wrap) % wrap;
    return q >= wrap / 2 ? q - wrap : q;
}

static int stored_q(enum quant_weights w, const uint8_t *row, size_t col)
{
    if (w == QUANT_INT8)
        return (int8_t)row[col];
    int nibble = col % 2 ? row[col / 2] & 15 : row[col / 2] >> 4;
    return nibble >= 8 ? nibble - 16 : nibble;
}

/* Every finite binary16 value as a weight, under scales from the smallest to large: two columns,
 * the maximum and the value. */
static void check_all_values(const struct quant_scheme *s)
{
    static const uint16_t maxima[] = {0,      1,      3,      4,      10,     11,
                                      190,    0x00ff, 0x03ff, 0x0400, 0x07ff, 0x1234,
                                      0x2fff, 0x3c00, 0x4248, 0x5555, 0x7bff};
    unsigned bits = quant_bits(s->weights);
    for (size_t m = 0; m < ARRAY_LEN(maxima); m++) {
        for (uint32_t bits16 = 0; bits16 < 0x10000; bits16++) {
            if ((bits16 & 0x7fff) > maxima[m])
                continue;
            uint16_t w[2] = {maxima[m], (uint16_t)bits16}, scale;
            uint8_t q[2];
            quant_rows(s, w, 1, 2, 1, q, &scale);
            uint16_t expected_scale =
                half_from_float(half_to_float(maxima[m]) / (float)((1 << (bits - 1)) - 1));
            if (scale != expected_scale)
                fail_msg("max %#x: expected scale %#x, found %#x", maxima[m], expected_scale,
                         scale);
            for (size_t j = 0; j < 2; j++) {
                int expected = reference_q(w[j], scale, bits);
                if (stored_q(s->weights, q, j) != expected)
                    fail_msg("max %#x, w %#x: expected q %d, found %d", maxima[m], w[j], expected,
                             stored_q(s->weights, q, j));
            }
        }
    }
}

static void test_every_value(void **state)
{
    (void)state;
    check_all_values(&int4_row);
    check_all_values(&int8_row);
}

/* N shards quantized one by one equal N groups of the whole. Odd group lengths check the packing
 * across blocks. */
static void test_shard_groups(void **state)
{
    (void)state;
    enum { ROWS = 5, COLS = 4096 + 128, N = 4, PART = COLS / N };
    const struct quant_scheme shard = {QUANT_INT4, QUANT_GROUP_SHARD, N};
    uint16_t *w = malloc(sizeof *w * ROWS * COLS), *part = malloc(sizeof *part * PART);
    uint8_t *q = malloc(ROWS * COLS / 2), part_q[PART / 2];
    uint16_t scale[ROWS * N], part_scale;
    assert_true(w && part && q);
    srand(7);
    for (size_t i = 0; i < ROWS * COLS; i++)
        w[i] = half_from_float(((float)rand() / (float)RAND_MAX - 0.5f) * (float)(1 + i % 7));
    quant_rows(&shard, w, ROWS, COLS, N, q, scale);
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t g = 0; g < N; g++) {
            memcpy(part, w + i * COLS + g * PART, sizeof *part * PART);
            quant_rows(&int4_row, part, 1, PART, 1, part_q, &part_scale);
            assert_int_equal(part_scale, scale[i * N + g]);
            assert_memory_equal(part_q, q + i * COLS / 2 + g * PART / 2, PART / 2);
        }
    }
    free(w);
    free(part);
    free(q);
}

static double squared_error(const uint16_t *a, const uint16_t *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)half_to_float(a[i]) - (double)half_to_float(b[i]);
        sum += d * d;
    }
    return sum;
}

/* Groups of columns: never worse than the published rule on the same groups, and far better than
 * one scale per row when a row has outliers. */
static void test_column_groups(void **state)
{
    (void)state;
    enum { ROWS = 16, COLS = 1024 };
    uint16_t *w = malloc(sizeof *w * ROWS * COLS), *back = malloc(sizeof *back * ROWS * COLS);
    uint8_t *q = malloc(ROWS * COLS);
    uint16_t *scale = malloc(sizeof *scale * ROWS * COLS / 32);
    assert_true(w && back && q && scale);
    srand(11);
    for (size_t i = 0; i < ROWS * COLS; i++) {
        double gauss = 0;
        for (int k = 0; k < 12; k++)
            gauss += (double)rand() / RAND_MAX - 0.5;
        w[i] = half_from_float((float)(gauss * (i % 512 == 3 ? 0.3 : 0.02)));
    }
    quant_rows(&int4_row, w, ROWS, COLS, 1, q, scale);
    quant_dequantize_rows(QUANT_INT4, q, scale, ROWS, COLS, 1, back);
    double row_error = squared_error(w, back, ROWS * COLS);
    for (uint32_t size = 32; size <= 128; size *= 2) {
        const struct quant_scheme cols = {QUANT_INT4, QUANT_GROUP_COLS, size};
        const struct quant_scheme plain = {QUANT_INT4, QUANT_GROUP_SHARD, COLS / size};
        quant_rows(&plain, w, ROWS, COLS, COLS / size, q, scale);
        quant_dequantize_rows(QUANT_INT4, q, scale, ROWS, COLS, COLS / size, back);
        double plain_error = squared_error(w, back, ROWS * COLS);
        quant_rows(&cols, w, ROWS, COLS, COLS / size, q, scale);
        quant_dequantize_rows(QUANT_INT4, q, scale, ROWS, COLS, COLS / size, back);
        double error = squared_error(w, back, ROWS * COLS);
        print_message("groups of %u: error %g, published rule %g, per row %g\n", size, error,
                      plain_error, row_error);
        if (error > plain_error * 0.98 || error > row_error / 3)
            fail_msg("groups of %u: error %g, published rule %g, per row %g", size, error,
                     plain_error, row_error);
    }
    const struct quant_scheme int8_cols = {QUANT_INT8, QUANT_GROUP_COLS, 64};
    quant_rows(&int8_cols, w, ROWS, COLS, COLS / 64, q, scale);
    quant_dequantize_rows(QUANT_INT8, q, scale, ROWS, COLS, COLS / 64, back);
    for (size_t i = 0; i < ROWS * COLS; i++) {
        float s = half_to_float(scale[i / 64]);
        float d = fabsf(half_to_float(w[i]) - half_to_float(back[i]));
        if (d > s * 0.57f) /* half a step, and the rounding of the product: 127 * 2^-11 */
            fail_msg("INT8 group %zu: error %g at scale %g", i / 64, (double)d, (double)s);
    }
    free(w);
    free(back);
    free(q);
    free(scale);
}

/* Tiny groups, where the FP16 scale has lost precision: clamped, not wrapped. */
static void test_column_groups_clamp(void **state)
{
    (void)state;
    const struct quant_scheme cols = {QUANT_INT4, QUANT_GROUP_COLS, 32};
    for (uint16_t max = 0; max < 200; max++) {
        uint16_t w[32], scale, back[32];
        uint8_t q[16];
        for (size_t i = 0; i < 32; i++)
            w[i] = (uint16_t)((i * max / 31) | (i % 2 ? 0x8000 : 0));
        quant_rows(&cols, w, 1, 32, 1, q, &scale);
        quant_dequantize_rows(QUANT_INT4, q, &scale, 1, 32, 1, back);
        for (size_t i = 0; i < 32; i++) {
            if ((back[i] & 0x7fff) && (back[i] & 0x8000) != (w[i] & 0x8000))
                fail_msg("max %u: weight %#x came back as %#x", max, w[i], back[i]);
        }
    }
}

static void test_broken_weights(void **state)
{
    (void)state;
    uint16_t w[4] = {0x7c00, 0x3c00, 0xfe00, 0xb800}, scale; /* inf, 1, nan, -0.5 */
    uint8_t q[4];
    quant_rows(&int8_row, w, 1, 4, 1, q, &scale);
    assert_int_equal(scale, half_from_float(1.0f / 127));
    assert_int_equal((int8_t)q[0], 0);
    assert_int_equal((int8_t)q[1], 127);
    assert_int_equal((int8_t)q[2], 0);
    assert_int_equal((int8_t)q[3], -64);
}

static void test_group_names(void **state)
{
    (void)state;
    struct quant_scheme s = {.weights = QUANT_INT4};
    struct err e = ERR_INIT;
    assert_int_equal(quant_group_parse("row", &s, &e), 0);
    assert_int_equal(s.group, QUANT_GROUP_ROW);
    assert_int_equal(quant_group_parse("shard:4", &s, &e), 0);
    assert_int_equal(s.group, QUANT_GROUP_SHARD);
    assert_int_equal(s.group_n, 4);
    assert_int_equal(quant_group_parse("shard:1", &s, &e), 0);
    assert_int_equal(s.group, QUANT_GROUP_ROW);
    assert_int_equal(quant_group_parse("shard", &s, &e), 0);
    assert_int_equal(s.group_n, 0);
    assert_int_equal(quant_group_parse("64", &s, &e), 0);
    assert_int_equal(s.group_n, 64);
    static const char *const bad[] = {"",   "rows",     "shard:",   "shard:0", "shard:257",
                                      "16", "shard:-1", "shard:4x", "256"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (quant_group_parse(bad[i], &s, &e) != -EINVAL)
            fail_msg("\"%s\" was accepted", bad[i]);
    enum quant_weights w;
    assert_int_equal(quant_weights_parse("int8", &w), 0);
    assert_int_equal(w, QUANT_INT8);
    assert_int_equal(quant_weights_parse("int5", &w), -EINVAL);
}

static void test_json(void **state)
{
    (void)state;
    static const struct quant_scheme schemes[] = {
        {QUANT_FP16, QUANT_GROUP_ROW, 0},      {QUANT_INT4, QUANT_GROUP_ROW, 0},
        {QUANT_INT8, QUANT_GROUP_ROW, 0},      {QUANT_INT4, QUANT_GROUP_SHARD, 4},
        {QUANT_INT8, QUANT_GROUP_SHARD, 8},    {QUANT_INT4, QUANT_GROUP_COLS, 128},
        {QUANT_INT4, QUANT_GROUP_ROW, 0, true}};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(schemes); i++) {
        json_t *config = json_object();
        struct quant_scheme s;
        assert_int_equal(quant_to_json(&schemes[i], config), 0);
        assert_int_equal(quant_from_json(config, &s, &e), 0);
        assert_int_equal(s.weights, schemes[i].weights);
        assert_int_equal(s.group, schemes[i].group);
        assert_int_equal(s.group_n, schemes[i].group_n);
        assert_int_equal(s.head_int8, schemes[i].head_int8);
        json_decref(config);
    }
    static const char *const bad[] = {
        "{\"quantization_config\": 4}",
        "{\"quantization_config\": {}}",
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group\": \"row\"}}",
        "{\"quantization_config\": {\"quant_method\": \"glmd\", \"bits\": 5, \"group\": \"row\"}}",
        "{\"quantization_config\": {\"quant_method\": \"glmd\", \"bits\": 4, \"group\": \"x\"}}",
        "{\"quantization_config\": {\"quant_method\": \"glmd\", \"bits\": 4, \"group\": "
        "\"shard\"}}",
        "{\"quantization_config\": {\"quant_method\": \"glmd\", \"bits\": 4, \"group\": "
        "\"columns\","
        " \"group_size\": 48}}",
        "{\"quantization_config\": {\"quant_method\": \"glmd\", \"bits\": 4, \"group\": \"row\","
        " \"head\": \"int4\"}}",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        json_t *config = json_loads(bad[i], 0, NULL);
        struct quant_scheme s;
        assert_non_null(config);
        if (quant_from_json(config, &s, &e) != -EINVAL)
            fail_msg("%s was accepted", bad[i]);
        json_decref(config);
    }
}

/* Which scales a rank needs, for ranks narrower and wider than groups. */
static void test_piece_groups(void **state)
{
    (void)state;
    static const struct {
        struct quant_scheme scheme;
        uint32_t tp, rank;
        uint32_t group0, n_groups, group_cols; /* n_groups 0: must be refused */
    } cases[] = {
        {{QUANT_INT4, QUANT_GROUP_ROW, 0}, 1, 0, 0, 1, 32768},
        {{QUANT_INT4, QUANT_GROUP_ROW, 0}, 8, 5, 0, 1, 4096},
        {{QUANT_INT4, QUANT_GROUP_SHARD, 4}, 2, 1, 2, 2, 8192},
        {{QUANT_INT4, QUANT_GROUP_SHARD, 4}, 4, 3, 3, 1, 8192},
        {{QUANT_INT4, QUANT_GROUP_SHARD, 4}, 8, 5, 2, 1, 4096},
        {{QUANT_INT4, QUANT_GROUP_SHARD, 3}, 2, 0, 0, 0, 0},
        {{QUANT_INT4, QUANT_GROUP_COLS, 128}, 8, 7, 224, 32, 128},
    };
    struct shard_tensor t;
    shard_find(&arch_glm_130b, "transformer.layers.0.mlp.dense_4h_to_h.weight", &t);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct shard_tensor adapted = t;
        if (cases[i].n_groups == 0)
            adapted.cols = 24; /* 3 groups of 8, 2 ranks of 12 */
        struct shard_piece p[2];
        shard_pieces(&adapted, cases[i].tp, cases[i].rank, p);
        struct quant_groups g = {0};
        struct err e = ERR_INIT;
        int r = quant_piece_groups(&cases[i].scheme, &adapted, p, &g, &e);
        assert_int_equal(r, cases[i].n_groups ? 0 : -EINVAL);
        if (r == 0 && (g.group0 != cases[i].group0 || g.n_groups != cases[i].n_groups ||
                       g.group_cols != cases[i].group_cols))
            fail_msg("case %zu: expected %u+%u of %u, found %u+%u of %u", i, cases[i].group0,
                     cases[i].n_groups, cases[i].group_cols, g.group0, g.n_groups, g.group_cols);
    }
    /* tensors that are split by rows have one group under "shard" */
    const struct quant_scheme shard4 = {QUANT_INT4, QUANT_GROUP_SHARD, 4};
    shard_find(&arch_glm_130b, "transformer.layers.0.mlp.dense_h_to_4h.weight", &t);
    assert_int_equal(quant_n_groups(&shard4, &t), 1);
    shard_find(&arch_glm_130b, "transformer.layers.0.mlp.dense_h_to_4h.bias", &t);
    assert_int_equal(quant_n_groups(&shard4, &t), 0);
}

static void test_check(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct quant_scheme s = {QUANT_INT4, QUANT_GROUP_COLS, 128};
    assert_int_equal(quant_check(&s, &arch_glm_130b, &e), 0);
    struct arch small = arch_glm_130b;
    small.hidden = 64;
    small.n_heads = small.n_kv_heads = 4;
    small.head_dim = 16;
    small.inner = 192;
    assert_int_equal(quant_check(&s, &small, &e), -EINVAL);
    assert_non_null(strstr(e.message, "64 columns"));
    s.group_n = 32;
    assert_int_equal(quant_check(&s, &small, &e), 0);
    s = (struct quant_scheme){QUANT_INT4, QUANT_GROUP_SHARD, 5};
    assert_int_equal(quant_check(&s, &small, &e), -EINVAL);
    s = (struct quant_scheme){QUANT_INT4, QUANT_GROUP_SHARD, 64};
    assert_int_equal(quant_check(&s, &small, &e), -EINVAL); /* one column a group */
    char text[QUANT_DESCRIBE_BYTES];
    quant_describe(&s, text);
    assert_string_equal(text, "int4, one scale per row and shard (64)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_int4),    cmocka_unit_test(test_golden_int8),
        cmocka_unit_test(test_every_value),    cmocka_unit_test(test_shard_groups),
        cmocka_unit_test(test_column_groups),  cmocka_unit_test(test_column_groups_clamp),
        cmocka_unit_test(test_broken_weights), cmocka_unit_test(test_group_names),
        cmocka_unit_test(test_json),           cmocka_unit_test(test_piece_groups),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
