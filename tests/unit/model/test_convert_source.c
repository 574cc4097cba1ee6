/* test_convert_source.c: what may be wrong with a checkpoint, and what is said about it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "model/layout.h"
#include "tests/unit/model/support.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated_shard), cmocka_unit_test(test_damaged_bytes),
        cmocka_unit_test(test_mixed_shards),    cmocka_unit_test(test_latest),
        cmocka_unit_test(test_config),          cmocka_unit_test(test_heads_and_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
