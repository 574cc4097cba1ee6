/* test_convert.c: conversion of the golden checkpoints, and of the forms that torch.save may give a
 * model: what comes out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/support/npy.h"
#include "tests/unit/model/support.h"

static void test_every_checkpoint(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        struct quant_scheme scheme;
    } cases[] = {
        {"ckpt-fp16-tp1", {QUANT_INT4, QUANT_GROUP_ROW, 0}},
        {"ckpt-fp16-tp2", {QUANT_INT4, QUANT_GROUP_ROW, 0}},
        {"ckpt-fp16-tp4", {QUANT_INT4, QUANT_GROUP_ROW, 0}},
        {"ckpt-int4-tp1", {QUANT_INT4, QUANT_GROUP_ROW, 0}},
        {"ckpt-int4-tp2", {QUANT_INT4, QUANT_GROUP_SHARD, 2}},
        {"ckpt-int4-tp4", {QUANT_INT4, QUANT_GROUP_SHARD, 4}},
        {"ckpt-int8-tp2", {QUANT_INT8, QUANT_GROUP_SHARD, 2}},
    };
    char *scratch = scratch_new();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *out = path_in(scratch, cases[i].name);
        convert_golden_ok(cases[i].name, out, NULL, NULL);
        struct model_dir *d = open_model_ok(out);
        const struct quant_scheme *s = model_dir_scheme(d);
        if (s->weights != cases[i].scheme.weights || s->group != cases[i].scheme.group ||
            s->group_n != cases[i].scheme.group_n)
            fail_msg("%s: expected scheme %d %d %u, found %d %d %u", cases[i].name,
                     cases[i].scheme.weights, cases[i].scheme.group, cases[i].scheme.group_n,
                     s->weights, s->group, s->group_n);
        assert_int_equal(model_dir_arch(d)->n_heads, 4);
        assert_int_equal(model_dir_arch(d)->tokens.eos, 34);
        model_dir_close(d);
        verify_all(out);
        free(out);
    }
    scratch_remove(scratch);
}

/* FP16 shards merge exactly, whatever their number. */
static void test_fp16_degrees_agree(void **state)
{
    (void)state;
    char *scratch = scratch_new();
    char *one = path_in(scratch, "1"), *two = path_in(scratch, "2"), *four = path_in(scratch, "4");
    convert_golden_ok("ckpt-fp16-tp1", one, "fp16", NULL);
    convert_golden_ok("ckpt-fp16-tp2", two, "fp16", NULL);
    convert_golden_ok("ckpt-fp16-tp4", four, "fp16", NULL);
    assert_same_tensors(one, two);
    assert_same_tensors(one, four);
    free(one);
    free(two);
    free(four);
    scratch_remove(scratch);
}

/* FP16 quantized here equals what the original tool made of N shards, bit for bit. */
static void test_published_quantizer(void **state)
{
    (void)state;
    static const struct {
        const char *fp16, *weights, *group, *published;
    } cases[] = {
        {"ckpt-fp16-tp1", "int4", "row", "ckpt-int4-tp1"},
        {"ckpt-fp16-tp4", "int4", "row", "ckpt-int4-tp1"},
        {"ckpt-fp16-tp1", "int4", "shard:2", "ckpt-int4-tp2"},
        {"ckpt-fp16-tp2", "int4", "shard", "ckpt-int4-tp2"},
        {"ckpt-fp16-tp1", "int4", "shard:4", "ckpt-int4-tp4"},
        {"ckpt-fp16-tp4", "int4", "shard", "ckpt-int4-tp4"},
        {"ckpt-fp16-tp4", "int8", "shard:2", "ckpt-int8-tp2"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *scratch = scratch_new();
        char *ours = path_in(scratch, "ours"), *theirs = path_in(scratch, "theirs");
        convert_golden_ok(cases[i].fp16, ours, cases[i].weights, cases[i].group);
        convert_golden_ok(cases[i].published, theirs, NULL, NULL);
        assert_same_tensors(ours, theirs);
        free(ours);
        free(theirs);
        scratch_remove(scratch);
    }
}

static void test_dequantize(void **state)
{
    (void)state;
    char *scratch = scratch_new();
    char *int4 = path_in(scratch, "int4"), *fp16 = path_in(scratch, "fp16");
    convert_golden_ok("ckpt-int4-tp4", int4, NULL, NULL);
    convert_golden_ok("ckpt-int4-tp4", fp16, "fp16", NULL);
    struct model_dir *a = open_model_ok(int4), *b = open_model_ok(fp16);
    static const char name[] = "transformer.layers.2.mlp.dense_4h_to_h.weight";
    size_t n, m, k;
    uint8_t *q = read_tensor(a, name, &n);
    uint16_t *scale = read_tensor(a, "transformer.layers.2.mlp.dense_4h_to_h.weight_scale", &m);
    uint16_t *w = read_tensor(b, name, &k);
    assert_int_equal(n, 64 * 96);
    assert_int_equal(m, 64 * 4 * 2);
    assert_int_equal(k, 64 * 192 * 2);
    uint16_t *expected = malloc(k);
    assert_non_null(expected);
    quant_dequantize_rows(QUANT_INT4, q, scale, 64, 192, 4, expected);
    for (size_t i = 0; i < 64 * 192; i++)
        if (w[i] != expected[i])
            fail_msg("element %zu: expected %#x, found %#x", i, expected[i], w[i]);
    free(expected);
    free(q);
    free(scale);
    free(w);
    model_dir_close(a);
    model_dir_close(b);
    free(int4);
    free(fp16);
    scratch_remove(scratch);
}

static void test_column_groups(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    convert_golden_ok("ckpt-fp16-tp2", out, "int4", "32");
    struct model_dir *d = open_model_ok(out);
    const struct st_tensor *t =
        model_dir_find(d, "transformer.layers.0.mlp.dense_4h_to_h.weight_scale");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 64);
    assert_int_equal(t->shape[1], 6);
    model_dir_close(d);
    struct err e = ERR_INIT;
    char *bad = path_in(scratch, "bad");
    assert_int_equal(convert_golden("ckpt-fp16-tp2", bad, "int4", "128", &e), -EINVAL);
    assert_non_null(strstr(e.message, "smaller group"));
    free(bad);
    free(out);
    scratch_remove(scratch);
}

static void test_refuses_other_weights(void **state)
{
    (void)state;
    static const struct {
        const char *checkpoint, *weights, *group;
    } cases[] = {
        {"ckpt-int4-tp2", "int8", NULL},    {"ckpt-int8-tp2", "int4", NULL},
        {"ckpt-int4-tp2", NULL, "row"},     {"ckpt-int4-tp1", "int4", "32"},
        {"ckpt-int4-tp4", NULL, "shard:2"},
    };
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = ERR_INIT;
        int r = convert_golden(cases[i].checkpoint, out, cases[i].weights, cases[i].group, &e);
        if (r != -EINVAL || !strstr(e.message, "already quantized"))
            fail_msg("case %zu: expected -EINVAL, found %d: %s", i, r, e.message);
    }
    convert_golden_ok("ckpt-int4-tp4", out, "int4", "shard"); /* what it has: fine */
    free(out);
    scratch_remove(scratch);
}

/* ---- forms that torch.save may give a model (tests/golden/convert) ---- */

static void convert_small(const char *name, const char *out, const char *weights, struct stopper *s)
{
    struct convert_options o = {.max_file_bytes = CONVERT_DEFAULT_FILE_BYTES,
                                .has_weights = true,
                                .on_warning = note_warning,
                                .context = s};
    struct convert_result result;
    struct err e = ERR_INIT;
    char *from = path_in(source_dir(), name), *tokenizer = golden_path("glm130b/tokenizer.model");
    assert_int_equal(quant_weights_parse(weights, &o.scheme.weights), 0);
    *s = (struct stopper){0};
    o.from = from;
    o.out = out;
    o.tokenizer = tokenizer;
    if (convert_run(&o, &result, &e) < 0)
        fail_msg("%s: %s", name, e.message);
    assert_true(result.has_tokenizer);
    free(from);
    free(tokenizer);
}

static void test_views(void **state)
{
    (void)state;
    static const char *const weights[] = {"fp16", "int8"};
    for (size_t i = 0; i < ARRAY_LEN(weights); i++) {
        char *scratch = scratch_new();
        char *plain = path_in(scratch, "plain"), *views = path_in(scratch, "views");
        struct stopper s;
        convert_small("tests/golden/convert/plain", plain, weights[i], &s);
        assert_int_equal(s.warnings, 0);
        convert_small("tests/golden/convert/views", views, weights[i], &s);
        assert_int_equal(s.warnings, 1);
        assert_non_null(strstr(s.last_warning, "mixins.extra.weight"));
        assert_same_tensors(plain, views);
        free(plain);
        free(views);
        scratch_remove(scratch);
    }
}

static void test_odd(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out"), *int8 = path_in(scratch, "int8");
    struct stopper s;
    convert_small("tests/golden/convert/odd", out, "fp16", &s);
    assert_int_equal(s.warnings, 2);
    assert_non_null(strstr(s.last_warning, "final_layernorm.weight\" differs"));
    convert_small("tests/golden/convert/odd", int8, "int8", &s);
    assert_int_equal(s.warnings, 2);
    /* the infinite weight became 0, its row kept a finite scale */
    struct model_dir *d = open_model_ok(int8);
    size_t n, m;
    int8_t *q = read_tensor(d, "transformer.layers.0.attention.dense.weight", &n);
    uint16_t *scale = read_tensor(d, "transformer.layers.0.attention.dense.weight_scale", &m);
    assert_int_equal(n, 64);
    assert_int_equal(q[2 * 8 + 4 + 1], 0);
    assert_true((scale[2] & 0x7fff) < 0x7c00);
    free(q);
    free(scale);
    model_dir_close(d);
    free(out);
    free(int8);
    scratch_remove(scratch);
}

static void test_transposed(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *from = path_in(source_dir(), "tests/golden/convert/transposed");
    struct convert_options o = {.from = from, .out = out, .max_file_bytes = 1 << 20};
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_run(&o, &result, &e), -ENOTSUP);
    assert_non_null(strstr(e.message, "contiguous"));
    free(from);
    free(out);
    scratch_remove(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_checkpoint),
        cmocka_unit_test(test_fp16_degrees_agree),
        cmocka_unit_test(test_published_quantizer),
        cmocka_unit_test(test_dequantize),
        cmocka_unit_test(test_column_groups),
        cmocka_unit_test(test_refuses_other_weights),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_transposed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
