/* Conversion of the golden checkpoints: what comes out, resuming, refusing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "model/layout.h"
#include "tests/support/npy.h"
#include "tests/unit/model/support.h"

/* Every tensor of both directories has the same bytes. */
static void assert_same_tensors(const char *a_path, const char *b_path)
{
    struct model_dir *a = open_model_ok(a_path), *b = open_model_ok(b_path);
    assert_int_equal(model_dir_n_tensors(a), model_dir_n_tensors(b));
    for (size_t i = 0; i < model_dir_n_tensors(a); i++) {
        const char *name = model_dir_tensor_at(a, i)->name;
        size_t n, m;
        uint8_t *x = read_tensor(a, name, &n), *y = read_tensor(b, name, &m);
        assert_int_equal(n, m);
        for (size_t k = 0; k < n; k++) {
            if (x[k] != y[k])
                fail_msg("%s byte %zu: %s has %#x, %s has %#x", name, k, a_path, x[k], b_path,
                         y[k]);
        }
        free(x);
        free(y);
    }
    assert_string_equal(model_dir_digest(a)->hex, model_dir_digest(b)->hex);
    model_dir_close(a);
    model_dir_close(b);
}

static void verify_all(const char *path)
{
    struct model_dir *d = open_model_ok(path);
    struct err e = ERR_INIT;
    for (size_t i = 0; i < model_dir_n_tensors(d); i++)
        if (model_dir_verify_tensor(d, model_dir_tensor_at(d, i), &e) < 0)
            fail_msg("%s", e.message);
    model_dir_close(d);
}

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

/* ---- resuming ---- */

struct stopper {
    unsigned left; /* progress reports until the stop */
    unsigned warnings;
    char last_warning[512];
};

static int count_down(void *context, const struct convert_progress *p)
{
    struct stopper *s = context;
    assert_true(p->done_bytes <= p->total_bytes);
    return s->left-- == 0;
}

static void note_warning(void *context, const char *text)
{
    struct stopper *s = context;
    s->warnings++;
    snprintf(s->last_warning, sizeof s->last_warning, "%s", text);
}

/* Converts ckpt-fp16-tp2 to small files, stopping after `left` progress reports. */
static int convert_some(const char *out, unsigned left, struct stopper *s,
                        struct convert_result *result, struct err *e)
{
    struct convert_options o;
    golden_options("ckpt-fp16-tp2", out, &o);
    *s = (struct stopper){.left = left};
    o.max_file_bytes = 30000;
    o.on_progress = count_down;
    o.on_warning = note_warning;
    o.context = s;
    int r = convert_run(&o, result, e);
    free_options(&o);
    return r;
}

static bool has_file(const char *dir, const char *name)
{
    char *path = path_in(dir, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static void test_resume_at_every_point(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *whole = path_in(scratch, "whole");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(whole, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(result.kept_bytes, 0);
    unsigned n_reports = UINT32_MAX - s.left;
    assert_true(n_reports >= 39);
    for (unsigned stop = 0; stop < n_reports; stop += 3) {
        char *out = path_in(scratch, "part");
        int r = convert_some(out, stop, &s, &result, &e);
        assert_int_equal(r, -ECANCELED);
        assert_true(has_file(out, LAYOUT_JOURNAL));
        assert_false(has_file(out, LAYOUT_MANIFEST));
        struct model_dir *d;
        assert_int_equal(model_dir_open(out, &d, &e), -ENOENT);
        assert_non_null(strstr(e.message, "not finished"));
        r = convert_some(out, UINT32_MAX, &s, &result, &e);
        if (r < 0)
            fail_msg("stopped after %u reports: %s", stop, e.message);
        if (stop > n_reports / 2 && result.kept_bytes == 0)
            fail_msg("stopped after %u of %u reports: nothing was kept", stop, n_reports);
        assert_int_equal(s.warnings, 0);
        assert_false(has_file(out, LAYOUT_JOURNAL));
        assert_same_tensors(whole, out);
        scratch_remove(out);
    }
    free(whole);
    scratch_remove(scratch);
}

/* A kept file that was damaged in between is written again. */
static void test_resume_checks_kept_files(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out"), *whole = path_in(scratch, "w");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(whole, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(convert_some(out, 20, &s, &result, &e), -ECANCELED);
    char *first = NULL;
    for (unsigned total = 1; total < 100 && !first; total++) {
        char name[64];
        snprintf(name, sizeof name, "model-00001-of-%05u.safetensors", total);
        if (has_file(out, name))
            first = path_in(out, name);
    }
    assert_non_null(first);
    size_t n;
    char *data = read_file(first, &n);
    data[n - 1] ^= 1;
    write_file(first, data, n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(s.warnings, 1);
    assert_non_null(strstr(s.last_warning, "written again"));
    assert_same_tensors(whole, out);
    free(data);
    free(first);
    free(out);
    free(whole);
    scratch_remove(scratch);
}

static void test_resume_only_the_same(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(out, 10, &s, &result, &e), -ECANCELED);
    assert_int_equal(convert_golden("ckpt-fp16-tp2", out, "int8", NULL, &e), -EEXIST);
    assert_non_null(strstr(e.message, "other options"));
    assert_int_equal(convert_golden("ckpt-fp16-tp4", out, NULL, NULL, &e), -EEXIST);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    /* finished: nothing may be overwritten */
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), -EEXIST);
    assert_non_null(strstr(e.message, "finished model"));
    /* somebody's folder */
    char *other = path_in(scratch, "letters"), *letter = path_in(other, "letter.txt");
    assert_int_equal(mkdir(other, 0777), 0);
    write_file(letter, "dear", 4);
    assert_int_equal(convert_golden("ckpt-fp16-tp2", other, NULL, NULL, &e), -EEXIST);
    assert_non_null(strstr(e.message, "letter.txt"));
    free(letter);
    free(other);
    free(out);
    scratch_remove(scratch);
}

/* The last run ended between manifest and journal. */
static void test_resume_after_manifest(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *journal = path_in(out, LAYOUT_JOURNAL);
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(out, 30, &s, &result, &e), -ECANCELED);
    size_t n;
    void *text = read_file(journal, &n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    write_file(journal, text, n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    assert_true(result.was_complete);
    assert_false(has_file(out, LAYOUT_JOURNAL));
    verify_all(out);
    free(text);
    free(journal);
    free(out);
    scratch_remove(scratch);
}

/* A write that fails part-way, as on a full disk: here by a limit on file size. */
static void test_failed_write(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    struct rlimit before, limit;
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 50000; /* the embedding has 81920 bytes */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int r = convert_some(out, UINT32_MAX, &s, &result, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(r, -EFBIG);
    assert_non_null(strstr(e.message, "cannot write"));
    assert_false(has_file(out, LAYOUT_MANIFEST));
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    verify_all(out);
    free(out);
    scratch_remove(scratch);
}

/* ---- what is wrong with a source ---- */

/* A copy of a golden checkpoint that may be damaged. */
static char *copy_checkpoint(const char *scratch, const char *name)
{
    struct convert_options o;
    golden_options(name, "", &o);
    char *copy = path_in(scratch, name);
    copy_tree(o.from, copy);
    free_options(&o);
    return copy;
}

static void expect_refusal(const char *from, const char *out, const char *message)
{
    struct err e = ERR_INIT;
    int r = convert_golden(from, out, NULL, NULL, &e);
    if (r >= 0 || !strstr(e.message, message))
        fail_msg("expected an error with \"%s\", found %d: %s", message, r, e.message);
    assert_false(has_file(out, LAYOUT_MANIFEST));
}

static void test_truncated_shard(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *from = copy_checkpoint(scratch, "ckpt-int4-tp2");
    char *file = path_in(from, "49300/mp_rank_01_model_states.pt"), *out = path_in(scratch, "out");
    size_t n;
    char *data = read_file(file, &n);
    /* start, inside the pickle, inside payloads, inside the directory, inside the end records */
    for (size_t size = 0; size < n; size += size < n - 200 ? n / 23 : 1) {
        struct err e = ERR_INIT;
        write_file(file, data, size);
        int r = convert_golden(from, out, NULL, NULL, &e);
        if (r >= 0 || e.message[0] == '\0')
            fail_msg("a shard cut to %zu of %zu bytes was accepted", size, n);
        assert_false(has_file(out, LAYOUT_MANIFEST));
    }
    free(data);
    free(file);
    free(from);
    free(out);
    scratch_remove(scratch);
}

/* One flipped bit in the bytes of any tensor is found by the archive's own checksums. */
static void test_damaged_bytes(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *from = copy_checkpoint(scratch, "ckpt-int4-tp2");
    char *file = path_in(from, "49300/mp_rank_00_model_states.pt"), *out = path_in(scratch, "out");
    size_t n;
    unsigned char *data = read_file(file, &n);
    for (size_t i = 0; i < 8; i++) {
        /* in the embedding, which is entry 0 */
        size_t at = 15000 + i * 3000;
        data[at] ^= 0x10;
        write_file(file, data, n);
        data[at] ^= 0x10;
        expect_refusal(from, out, "CRC-32");
    }
    free(data);
    free(file);
    free(from);
    free(out);
    scratch_remove(scratch);
}

static void test_mixed_shards(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *two = copy_checkpoint(scratch, "ckpt-fp16-tp2");
    char *four = copy_checkpoint(scratch, "ckpt-fp16-tp4");
    char *to = path_in(two, "49300/mp_rank_01_model_states.pt");
    char *wrong = path_in(four, "49300/mp_rank_01_model_states.pt");
    char *last = path_in(four, "49300/mp_rank_03_model_states.pt");
    size_t n;
    void *data = read_file(wrong, &n);
    write_file(to, data, n);
    expect_refusal(two, out, "different degrees");
    /* a rank of a quantized checkpoint */
    char *int8 = copy_checkpoint(scratch, "ckpt-int8-tp2");
    char *int8_shard = path_in(int8, "49300/mp_rank_01_model_states.pt");
    free(data);
    data = read_file(int8_shard, &n);
    write_file(to, data, n);
    expect_refusal(two, out, "expected float16, found int8");
    assert_int_equal(unlink(to), 0);
    expect_refusal(two, out, "some are missing");
    assert_int_equal(unlink(wrong), 0);
    expect_refusal(four, out, "mp_rank_01_model_states.pt is missing");
    assert_int_equal(unlink(last), 0);
    free(data);
    free(int8);
    free(int8_shard);
    free(two);
    free(four);
    free(to);
    free(wrong);
    free(last);
    free(out);
    scratch_remove(scratch);
}

static void test_latest(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"../49300", "iteration folder"},      {"", "iteration folder"}, {".", "iteration folder"},
        {"49300/../../x", "iteration folder"}, {"12345", "cannot open"},
    };
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *from = copy_checkpoint(scratch, "ckpt-fp16-tp1"), *latest = path_in(from, "latest");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        write_file(latest, cases[i].text, strlen(cases[i].text));
        expect_refusal(from, out, cases[i].message);
    }
    write_file(latest, "49300\n", 6);
    convert_golden_ok(from, out, NULL, NULL);
    assert_int_equal(unlink(latest), 0);
    expect_refusal(from, "/nonexistent/out", "`latest`");
    free(latest);
    free(from);
    free(out);
    scratch_remove(scratch);
}

static void test_config(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *from = copy_checkpoint(scratch, "ckpt-fp16-tp1");
    struct convert_options o;
    struct convert_result result;
    struct err e = ERR_INIT;
    golden_options(from, out, &o);
    const char *config = o.config, *tokenizer = o.tokenizer;
    o.config = o.tokenizer = NULL;
    assert_int_equal(convert_run(&o, &result, &e), -EINVAL);
    assert_non_null(strstr(e.message, "--config"));
    /* beside `latest`, but another model's */
    char *beside = path_in(from, "config.json");
    size_t n;
    void *text = read_file(config, &n);
    write_file(beside, text, n);
    replace_in_file(beside, "\"num_layers\": 3", "\"num_layers\": 4");
    assert_int_equal(convert_run(&o, &result, &e), -EINVAL);
    assert_non_null(strstr(e.message, "4 layers"));
    write_file(beside, text, n);
    struct stopper s = {0};
    o.on_warning = note_warning;
    o.context = &s;
    assert_int_equal(convert_run(&o, &result, &e), 0);
    assert_false(result.has_tokenizer);
    assert_int_equal(s.warnings, 1);
    assert_non_null(strstr(s.last_warning, "tokenizer"));
    assert_false(has_file(out, LAYOUT_TOKENIZER));
    o.config = config;
    o.tokenizer = tokenizer;
    free_options(&o);
    free(text);
    free(beside);
    free(from);
    free(out);
    scratch_remove(scratch);
}

/* Heads that the shards cut in two. */
static void test_heads_and_shards(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *config = path_in(scratch, "config.json");
    struct convert_options o;
    struct convert_result result;
    struct err e = ERR_INIT;
    golden_options("ckpt-fp16-tp4", out, &o);
    size_t n;
    void *text = read_file(o.config, &n);
    write_file(config, text, n);
    replace_in_file(config, "\"num_heads\": 4", "\"num_heads\": 2");
    free((char *)o.config);
    o.config = config;
    assert_int_equal(convert_run(&o, &result, &e), -EINVAL);
    assert_non_null(strstr(e.message, "num_heads is 2"));
    free(text);
    free_options(&o);
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
        cmocka_unit_test(test_resume_at_every_point),
        cmocka_unit_test(test_resume_checks_kept_files),
        cmocka_unit_test(test_resume_only_the_same),
        cmocka_unit_test(test_resume_after_manifest),
        cmocka_unit_test(test_failed_write),
        cmocka_unit_test(test_truncated_shard),
        cmocka_unit_test(test_damaged_bytes),
        cmocka_unit_test(test_mixed_shards),
        cmocka_unit_test(test_latest),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_heads_and_shards),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_transposed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
