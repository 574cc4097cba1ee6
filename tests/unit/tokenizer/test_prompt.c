/* test_prompt.c: the blank-filling protocol against the golden calls, and its limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/prompt.h"
#include "tests/unit/tokenizer/golden.h"

static struct arch arch;
static struct tokenizer *tokenizer;

static int setup(void **state)
{
    (void)state;
    golden_arch(&arch);
    tokenizer = golden_tokenizer();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_close(tokenizer);
    return 0;
}

static struct token_list encode(const char *text, enum mask_kind *ret_kind)
{
    struct token_list ids = {0};
    struct err e = ERR_INIT;
    if (prompt_encode_text(tokenizer, &arch, text, strlen(text), 256, 64, &ids, ret_kind, &e) < 0)
        fail_msg("\"%s\": %s", text, e.message);
    return ids;
}

static bool is_end(int32_t id)
{
    return id == arch.tokens.eop || id == arch.tokens.eos;
}

/* What the call produced, as the published code reads it: cut at -1, one end token dropped. */
static struct token_list answer_of(const json_t *output, size_t prompt_len)
{
    struct token_list all = golden_ids(output), answer = {0};
    for (size_t i = prompt_len; i < all.n && all.ids[i] != -1; i++)
        assert_int_equal(token_list_append(&answer, all.ids[i]), 0);
    if (answer.n && is_end(answer.ids[answer.n - 1]))
        answer.n--;
    token_list_deinit(&all);
    return answer;
}

/* Runs all rounds of one golden case; the first output is the best beam. */
static void replay(const json_t *c)
{
    const char *text = json_string_value(json_object_get(c, "text"));
    enum mask_kind kind;
    struct token_list ids = encode(text, &kind);
    const json_t *call;
    size_t i;
    json_array_foreach(json_object_get(c, "calls"), i, call)
    {
        struct prompt p;
        struct err e = ERR_INIT;
        if (prompt_next(&arch, &ids, kind, &p, &e) < 0)
            fail_msg("call %zu: %s", i, e.message);
        golden_check_ids(&p.ids, json_object_get(call, "input"), text);
        assert_int_equal(p.prefix_len, p.ids.n - 1);
        struct token_list answer =
            answer_of(json_array_get(json_object_get(call, "output"), 0), p.ids.n);
        assert_int_equal(prompt_apply(&ids, p.mask_index, answer.ids, answer.n, &ids), 0);
        token_list_deinit(&answer);
        prompt_deinit(&p);
    }
    struct prompt p;
    assert_int_equal(prompt_next(&arch, &ids, kind, &p, NULL), -ENOENT);
    if (ids.n && ids.ids[ids.n - 1] == arch.tokens.eos)
        ids.n--;
    struct buf filled = {0};
    assert_int_equal(tokenizer_decode(tokenizer, ids.ids, ids.n, &filled, NULL), 0);
    golden_check_text(&filled, json_string_value(json_array_get(json_object_get(c, "answers"), 0)),
                      text);
    buf_deinit(&filled);
    token_list_deinit(&ids);
}

static void test_golden_blank_filling(void **state)
{
    (void)state;
    json_t *manifest = golden_json("tests/golden/glm130b/manifest.json");
    json_t *c;
    size_t i;
    json_array_foreach(json_object_get(manifest, "blank_filling"), i, c) replay(c);
    assert_true(i >= 8);
    json_decref(manifest);
}

static void test_golden_generation_prompts(void **state)
{
    (void)state;
    json_t *manifest = golden_json("tests/golden/glm130b/manifest.json");
    json_t *c;
    size_t i, n = 0;
    json_array_foreach(json_object_get(manifest, "generation"), i, c)
    {
        json_t *expected = json_object_get(c, "prompt");
        if (json_array_size(expected) == 0)
            continue; /* the padded batch of the evaluation names its samples instead */
        struct token_list ids = golden_ids(expected);
        struct prompt p;
        struct err e = ERR_INIT;
        if (prompt_from_ids(&arch, ids.ids, ids.n, 256, &p, &e) < 0)
            fail_msg("%s: %s", json_string_value(json_object_get(c, "name")), e.message);
        golden_check_ids(&p.ids, expected, "with sop");
        assert_int_equal(p.kind == MASK_GMASK, json_is_true(json_object_get(c, "gmask")));
        assert_int_equal(p.mask_index, json_integer_value(json_object_get(c, "mask_position")));
        prompt_deinit(&p);
        assert_int_equal(prompt_from_ids(&arch, ids.ids, ids.n - 1, 256, &p, &e), 0);
        golden_check_ids(&p.ids, expected, "without sop");
        prompt_deinit(&p);
        token_list_deinit(&ids);
        n++;
    }
    if (n < 50)
        fail_msg("expected at least 50 prompts, found %zu", n);
    json_decref(manifest);
}

static void check_encoded(const char *text, enum mask_kind want_kind, const char *want_ids)
{
    enum mask_kind kind = MASK_NONE;
    json_t *want = json_loads(want_ids, 0, NULL);
    assert_non_null(want);
    struct token_list ids = encode(text, &kind);
    golden_check_ids(&ids, want, text);
    if (kind != want_kind)
        fail_msg("\"%s\": expected kind %d, found %d", text, want_kind, kind);
    token_list_deinit(&ids);
    json_decref(want);
}

/* 54 = "▁a", 512 [MASK], 513 [gMASK], 514 [sMASK], 34 eos, 32 unknown */
static void test_kinds(void **state)
{
    (void)state;
    check_encoded("a", MASK_GMASK, "[54, 513]");
    check_encoded("a[gMASK]", MASK_GMASK, "[54, 513]");
    check_encoded("[gMASK]a", MASK_GMASK, "[513, 54, 34]");
    check_encoded("a[sMASK]", MASK_SMASK, "[54, 514]");
    check_encoded("a[gMASK]a[sMASK]a", MASK_SMASK, "[54, 513, 54, 514, 54, 34]");
    check_encoded("[sMASK][MASK]", MASK_MASK, "[514, 512]");
    check_encoded("a[MASK] ", MASK_MASK, "[54, 512, 34]");
    check_encoded("a [MASK]a", MASK_MASK, "[54, 512, 54, 34]"); /* each stretch on its own */
    check_encoded("[[MASK]", MASK_MASK, "[37, 32, 512]");
}

static int encode_error(const char *text, size_t size, size_t max_tokens, size_t max_masks,
                        struct err *e)
{
    struct token_list ids = {0};
    enum mask_kind kind;
    int r = prompt_encode_text(tokenizer, &arch, text, size, max_tokens, max_masks, &ids, &kind, e);
    assert_int_equal(ids.n, 0);
    return r;
}

static void test_text_limits(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_int_equal(encode_error("", 0, 100, 100, &e), -EINVAL);
    assert_int_equal(encode_error("  \n", 3, 100, 100, &e), -EINVAL);
    assert_int_equal(encode_error("a a a", 5, 3, 100, &e), -E2BIG); /* and [gMASK] */
    assert_string_equal(e.message, "the text has 4 tokens, the limit is 3");
    assert_int_equal(encode_error("[MASK][MASK][MASK]", 18, 100, 2, &e), -EINVAL);
    assert_string_equal(e.message, "the text has 3 masks, the limit is 2");
    assert_int_equal(encode_error("a[MASK]b\xff", 9, 100, 100, &e), -EILSEQ);
    assert_non_null(strstr(e.message, "offset 8"));
}

/* A million masks and a hundred megabytes end early, before any of it is encoded. */
static void test_huge_text(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    size_t n = 1000000, size = 6 * n;
    char *text = malloc(size);
    assert_non_null(text);
    for (size_t i = 0; i < size; i++)
        text[i] = "[MASK]"[i % 6];
    assert_int_equal(encode_error(text, size, 2048, 64, &e), -E2BIG);
    assert_int_equal(encode_error(text, 120000, 2048, 64, &e), -EINVAL);
    assert_string_equal(e.message, "the text has 20000 masks, the limit is 64");
    assert_int_equal(encode_error(text, 120000, 2048, SIZE_MAX, &e), -E2BIG);
    assert_string_equal(e.message, "the text has 20000 tokens, the limit is 2048");
    free(text);
}

static void test_masked(void **state)
{
    (void)state;
    struct token_list ids = {0};
    struct err e = ERR_INIT;
    json_t *want = json_loads("[54, 512, 36, 500, 514]", 0, NULL);
    const char *text = "a[MASK]\nb[sMASK]";
    assert_int_equal(
        prompt_encode_masked(tokenizer, &arch, text, strlen(text), true, 100, 10, &ids, &e), 0);
    /* "▁" "<n>" "b": the dummy prefix of the stretch comes first */
    json_array_insert_new(want, 2, json_integer(37));
    golden_check_ids(&ids, want, text);
    token_list_deinit(&ids);
    assert_int_equal(prompt_encode_masked(tokenizer, &arch, "", 0, false, 100, 10, &ids, &e), 0);
    assert_int_equal(ids.n, 0);
    json_decref(want);
}

static void test_positions(void **state)
{
    (void)state;
    static const int32_t ids[] = {54, 512, 54};
    struct prompt p;
    assert_int_equal(prompt_from_ids(&arch, ids, 3, 10, &p, NULL), 0);
    static const int32_t mask_positions[] = {0, 1, 2, 1, 1, 1}; /* 3 is sop */
    for (uint32_t i = 0; i < ARRAY_LEN(mask_positions); i++)
        assert_int_equal(prompt_position(&p, i), mask_positions[i]);
    assert_int_equal(p.prefix_len, 3);
    prompt_deinit(&p);
    assert_int_equal(prompt_from_ids(&arch, ids, 1, 10, &p, NULL), 0);
    assert_int_equal(p.ids.n, 3); /* [gMASK] and sop were added */
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(prompt_position(&p, i), i);
    prompt_deinit(&p);
}

static void test_ids_limits(void **state)
{
    (void)state;
    struct prompt p;
    struct err e = ERR_INIT;
    static const int32_t sop[] = {516}, low[] = {54, -1}, high[] = {54, 640}, ok[] = {54, 513};
    assert_int_equal(prompt_from_ids(&arch, NULL, 0, 10, &p, &e), -EINVAL);
    assert_int_equal(prompt_from_ids(&arch, sop, 1, 10, &p, &e), -EINVAL);
    assert_int_equal(prompt_from_ids(&arch, low, 2, 10, &p, &e), -EINVAL);
    assert_int_equal(prompt_from_ids(&arch, high, 2, 10, &p, &e), -EINVAL);
    assert_non_null(strstr(e.message, "640"));
    assert_int_equal(prompt_from_ids(&arch, ok, 2, 2, &p, &e), -E2BIG);
    assert_string_equal(e.message, "the prompt has 3 tokens, the limit is 2");
    assert_int_equal(prompt_from_ids(&arch, ok, 2, 3, &p, &e), 0);
    prompt_deinit(&p);
}

static void test_unidirectional(void **state)
{
    (void)state;
    static const int32_t ids[] = {54, 512};
    struct prompt p;
    json_t *want = json_loads("[513, 516, 54, 512]", 0, NULL);
    assert_int_equal(prompt_unidirectional(&arch, ids, 2, 4, &p, NULL), 0);
    golden_check_ids(&p.ids, want, "unidirectional");
    assert_int_equal(p.prefix_len, 0);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(prompt_position(&p, i), i);
    prompt_deinit(&p);
    assert_int_equal(prompt_unidirectional(&arch, ids, 2, 3, &p, NULL), -E2BIG);
    json_decref(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_blank_filling),
        cmocka_unit_test(test_golden_generation_prompts),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_text_limits),
        cmocka_unit_test(test_huge_text),
        cmocka_unit_test(test_masked),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_ids_limits),
        cmocka_unit_test(test_unidirectional),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
