/* test_bench.c: percentiles, plots, lists of numbers, made-up models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_model.h"
#include "model/model_dir.h"
#include "model/synthetic.h"

static void near(double found, double expected, const char *what)
{
    if (fabs(found - expected) > 1e-9 * fmax(1, fabs(expected)))
        fail_msg("%s: expected %.12g, found %.12g", what, expected, found);
}

/* Expected values: NumPy's definitions, worked out with Python's statistics module. */
static void test_summary(void **state)
{
    (void)state;
    static const double values[] = {15, 20, 35, 40, 50, 7, 3.5, 8};
    struct bench_samples s = {0};
    struct bench_summary none = bench_summarize(&s);
    assert_int_equal(none.n, 0);
    near(none.p99, 0, "p99 of nothing");
    for (size_t i = 0; i != ARRAY_LEN(values); i++)
        assert_int_equal(bench_samples_add(&s, values[i]), 0);
    struct bench_summary r = bench_summarize(&s);
    assert_int_equal(r.n, 8);
    near(r.mean, 22.3125, "mean");
    near(r.std, 16.17277322375963, "std");
    near(r.min, 3.5, "min");
    near(r.median, 17.5, "median");
    near(r.p90, 43, "p90");
    near(r.p95, 46.5, "p95");
    near(r.p99, 49.3, "p99");
    near(r.max, 50, "max");
    near(bench_percentile(s.values, 1, 99), 3.5, "p99 of one");
    near(bench_percentile(s.values, s.n, 0), 3.5, "p0");
    near(bench_percentile(s.values, s.n, 100), 50, "p100");
    json_t *json = bench_summary_json(&r, 1000);
    near(json_real_value(json_object_get(json, "median")), 17500, "median in thousandths");
    json_decref(json);

    double x[4], y[4];
    assert_int_equal(plot_distribution(&s, x, y, 4), 4);
    near(x[0], 3.5, "first point");
    near(y[0], 1.0 / 8, "its share");
    near(x[3], 50, "last point");
    near(y[3], 1, "its share");
    bench_samples_deinit(&s);
}

static void test_many_samples(void **state)
{
    (void)state;
    struct bench_samples s = {0};
    for (int i = 1000; i >= 0; i--)
        assert_int_equal(bench_samples_add(&s, i), 0);
    struct bench_summary r = bench_summarize(&s);
    assert_int_equal(r.n, 1001);
    near(r.median, 500, "median of 0..1000");
    near(r.p99, 990, "p99 of 0..1000");
    bench_samples_deinit(&s);
}

static void test_lists(void **state)
{
    (void)state;
    uint32_t list[4];
    size_t n;
    assert_int_equal(bench_parse_list("1,20,3", 1, 100, list, 4, &n), 0);
    assert_int_equal(n, 3);
    assert_int_equal(list[1], 20);
    static const char *const wrong[] = {
        "", "1,", ",1", "1,x", "1,2,3,4,5", "101", "-1", "1 ,2", "00000000000000000001"};
    for (size_t i = 0; i != ARRAY_LEN(wrong); i++)
        if (bench_parse_list(wrong[i], 1, 100, list, 4, &n) != -EINVAL)
            fail_msg("\"%s\": expected to be refused", wrong[i]);
}

/* Elements are closed in order, attributes quoted, nothing stands behind the root. */
static void check_xml(const char *text)
{
    char open[16][32];
    size_t depth = 0, roots = 0;
    for (const char *at = text; *at; at++) {
        if (*at == '&')
            assert_true(strncmp(at, "&lt;", 4) == 0 || strncmp(at, "&gt;", 4) == 0 ||
                        strncmp(at, "&amp;", 5) == 0);
        if (*at != '<')
            continue;
        const char *end = at;
        bool quoted = false;
        for (; *end && (quoted || *end != '>'); end++)
            quoted ^= *end == '"';
        assert_int_equal(*end, '>');
        char name[32];
        assert_int_equal(sscanf(at + 1 + (at[1] == '/'), "%31[a-z]", name), 1);
        if (at[1] == '/') {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name);
        } else if (end[-1] != '/') {
            assert_true(depth < ARRAY_LEN(open));
            roots += depth == 0;
            memcpy(open[depth++], name, sizeof name);
        }
        at = end;
    }
    assert_int_equal(depth, 0);
    assert_int_equal(roots, 1);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
}

static void test_plots(void **state)
{
    (void)state;
    static const double x[] = {0, 1, 2, 4, 1000, NAN}, y[] = {0, 5, INFINITY, 0.001, 3e9, 1};
    const struct plot_series series[] = {{"a < b & c > \"d\"\n", x, y, 6}, {"nothing", x, y, 0}};
    struct plot panels[] = {
        {"<title>", "x & y", "z", false, true, 2e9, "mark <", series, 2},
        {"logarithmic", "x", "y", true, false, 0, NULL, series, 1},
        {"empty", "x", "y", true, true, 0, NULL, NULL, 0},
    };
    for (size_t n = 0; n <= ARRAY_LEN(panels); n++) {
        struct buf out = {0};
        assert_int_equal(plot_svg(panels, n, &out), 0);
        assert_int_equal(buf_append(&out, "", 1), 0);
        check_xml(out.data);
        if (n)
            assert_non_null(strstr(out.data, "&lt;title&gt;"));
        buf_deinit(&out);
    }
}

/* ---- made-up models ---- */

static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double parameters;
    } cases[] = {{"glm-130b", 130e9}, {"glm-1.6b", 1.28e9}, {"glm-300m", 0.31e9}};
    struct arch a;
    struct err e = ERR_INIT;
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        assert_int_equal(synthetic_arch(cases[i].name, 0, &a), 0);
        double found = (double)synthetic_n_parameters(&a);
        if (fabs(found / cases[i].parameters - 1) > 0.02)
            fail_msg("%s: expected about %g parameters, found %g", cases[i].name,
                     cases[i].parameters, found);
        if (arch_check(&a, &e) < 0)
            fail_msg("%s: %s", cases[i].name, e.message);
    }
    assert_int_equal(synthetic_arch("glm-130b", 4, &a), 0);
    assert_int_equal(a.n_layers, 4);
    assert_int_equal(synthetic_arch("glm-tiny", 0, &a), 0);
    assert_int_equal(arch_check_tp(&a, 64, &e), 0);
    assert_int_equal(synthetic_arch("1.6b", 0, &a), 0);
    assert_string_equal(a.name, "glm-1.6b");
    assert_int_equal(synthetic_arch("130b", 0, &a), 0);
    assert_int_equal(a.hidden, 12288);
    static const char *const unknown[] = {"glm-5", "glm-", "", "glm", "glm-1.6"};
    for (size_t i = 0; i != ARRAY_LEN(unknown); i++)
        assert_int_equal(synthetic_arch(unknown[i], 0, &a), -ENOENT);
}

/* A piece is the same bytes wherever it begins. */
static void test_contents(void **state)
{
    (void)state;
    static const char *const names[] = {
        "transformer.layers.1.mlp.dense_h_to_4h.weight",
        "transformer.layers.1.mlp.dense_h_to_4h.weight_scale",
        "transformer.layers.1.mlp.dense_h_to_4h.bias",
        "transformer.layers.1.input_layernorm.weight",
        "transformer.layers.1.input_layernorm.bias",
        "transformer.final_layernorm.bias",
        "transformer.final_layernorm.weight",
        "transformer.word_embeddings.weight",
    };
    for (size_t i = 0; i != ARRAY_LEN(names); i++) {
        struct st_tensor t = {.name = (char *)names[i], .dtype = i ? ST_F16 : ST_U8};
        uint8_t whole[1024], part[64], other[1024];
        synthetic_fill(&t, QUANT_INT4, 1, 0, sizeof whole, whole);
        for (size_t at = 0; at != 300; at++) {
            size_t n = at % sizeof part;
            synthetic_fill(&t, QUANT_INT4, 1, at, n, part);
            assert_memory_equal(part, whole + at, n);
        }
        synthetic_fill(&t, QUANT_INT4, 2, 0, sizeof other, other);
        bool signs = strcmp(names[i], "transformer.final_layernorm.weight") == 0;
        bool norm = !signs && strstr(names[i], "norm");
        if ((memcmp(whole, other, sizeof whole) == 0) != norm)
            fail_msg("%s: another seed %s", names[i], norm ? "changes it" : "changes nothing");
        for (size_t k = 1; i && k < sizeof whole; k += 2) /* exponents: no infinities, no NaN */
            assert_true((whole[k] & 0x7c) < 0x40);
        size_t n_negative = 0;
        for (size_t k = 0; signs && k != sizeof whole; k += 2) { /* 1 or -1, half of each */
            if (whole[k] != 0 || (whole[k + 1] & 0x7f) != 0x3c)
                fail_msg("%s: expected 1 or -1, found %02x%02x", names[i], whole[k + 1], whole[k]);
            n_negative += whole[k + 1] >> 7;
        }
        if (signs && (n_negative < 192 || n_negative > 320))
            fail_msg("%s: expected half of 512 to be negative, found %zu", names[i], n_negative);
    }
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

/* What is written is what the model without files reads. */
static void test_written_model(void **state)
{
    (void)state;
    const char *root = getenv("GLMD_SOURCE_DIR");
    if (!root)
        skip();
    char like[512], dir[] = "/tmp/glmd-bench-XXXXXX", out[64];
    struct arch a;
    struct err e = ERR_INIT;
    const struct quant_scheme scheme = {QUANT_INT4, QUANT_GROUP_COLS, 32};
    snprintf(like, sizeof like, "%s/deploy/demo/model", root);
    assert_non_null(mkdtemp(dir));
    snprintf(out, sizeof out, "%s/model", dir);
    assert_int_equal(synthetic_arch("glm-tiny", 1, &a), 0);
    struct model_dir *written = NULL, *made_up = NULL;
    if (bench_model_adopt(&a, like, &e) < 0 ||
        bench_model_write(&a, &scheme, 3, like, out, &e) < 0 ||
        model_dir_open(out, &written, &e) < 0 ||
        model_dir_synthetic(&a, &scheme, 3, &made_up, &e) < 0)
        fail_msg("%s", e.message);
    assert_true(written && made_up);
    assert_int_equal(model_dir_n_tensors(written), model_dir_n_tensors(made_up));
    for (size_t i = 0; i != model_dir_n_tensors(written); i++) {
        const struct st_tensor *t = model_dir_tensor_at(written, i),
                               *u = model_dir_tensor_at(made_up, i);
        assert_string_equal(t->name, u->name);
        assert_int_equal(t->bytes, u->bytes);
        uint64_t rows = st_rows(t), cols = st_cols(t);
        const struct model_slice part = {rows / 2, rows - rows / 2, cols / 3, cols - cols / 3};
        char *x = malloc(t->bytes), *y = malloc(t->bytes);
        size_t n = part.n_rows * part.n_cols * st_dtype_bytes(t->dtype);
        if (model_dir_verify_tensor(written, t, &e) < 0 ||
            model_dir_read(written, t, &part, x, &e) < 0 ||
            model_dir_read(made_up, u, &part, y, &e) < 0)
            fail_msg("%s", e.message);
        if (memcmp(x, y, n) != 0)
            fail_msg("tensor %s: the file and the made-up model differ", t->name);
        free(x);
        free(y);
    }
    model_dir_close(written);
    model_dir_close(made_up);
    assert_int_equal(nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_summary),       cmocka_unit_test(test_many_samples),
        cmocka_unit_test(test_lists),         cmocka_unit_test(test_plots),
        cmocka_unit_test(test_shapes),        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_written_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
