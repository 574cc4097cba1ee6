/* test_token_stream.c: streamed decoding: whole characters, and the same text as all at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"
#include "tests/unit/tokenizer/golden.h"

enum { MAX_STEPS = 40, BYTE_0 = 600, UNK = 32, PAD = 35, MARK = 37 };

/* The whitespace variant has every kind of piece. */
static int setup(void **state)
{
    struct arch a;
    *state = golden_whitespace_tokenizer(&a);
    return 0;
}

static int teardown(void **state)
{
    tokenizer_close(*state);
    return 0;
}

/* Streams the ids; every emission must be whole characters. */
static void stream(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret)
{
    struct token_stream *s;
    assert_int_equal(token_stream_new(t, &s), 0);
    for (size_t i = 0; i <= n; i++) {
        struct buf part = {0};
        struct err e = ERR_INIT;
        int r = i < n ? token_stream_push(s, ids[i], &part, &e) : token_stream_flush(s, &part, &e);
        if (r < 0)
            fail_msg("step %zu: %s", i, e.message);
        if (part.size && utf8_check(part.data, part.size) != part.size)
            fail_msg("step %zu emits a cut character", i);
        assert_int_equal(buf_append(ret, part.data, part.size), 0);
        buf_deinit(&part);
    }
    token_stream_free(s);
}

static void check(const struct tokenizer *t, const int32_t *ids, size_t n, const char *expected)
{
    struct buf whole = {0}, parts = {0};
    assert_int_equal(tokenizer_decode(t, ids, n, &whole, NULL), 0);
    stream(t, ids, n, &parts);
    golden_check_text(&whole, expected, "whole");
    golden_check_text(&parts, expected, "streamed");
    buf_deinit(&whole);
    buf_deinit(&parts);
}

#define CHECK(expected, ...)                                                                       \
    do {                                                                                           \
        const int32_t ids_[] = {__VA_ARGS__};                                                      \
        check(*state, ids_, ARRAY_LEN(ids_), expected);                                            \
    } while (0)

static void test_leading_space(void **state)
{
    CHECK("a", 54);
    CHECK("a", MARK, 54); /* this model collapses white space: all of it goes in front */
    CHECK("a a", 54, 54);
    CHECK("a a", MARK, PAD, 54, 54);    /* control pieces are invisible */
    CHECK("a[[MASK]]a", 54, 512, 54);   /* a special token starts a new stretch */
    CHECK(" \xe2\x81\x87  a", UNK, 54); /* text was written: the space stays */
    CHECK("", MARK);
}

static void test_bytes(void **state)
{
    CHECK("\xe4\xbd\xa0", BYTE_0 + 0xe4, BYTE_0 + 0xbd, BYTE_0 + 0xa0);
    CHECK("\xef\xbf\xbd", BYTE_0 + 0xe4);
    CHECK("\xef\xbf\xbd\xef\xbf\xbd", BYTE_0 + 0xe4, BYTE_0 + 0xbd);
    CHECK("\xef\xbf\xbd"
          "A",
          BYTE_0 + 0xe4, BYTE_0 + 'A');
    CHECK("\xef\xbf\xbd"
          " a",
          BYTE_0 + 0xe4, 54);
    /* a surrogate and a form that is too long are no characters */
    CHECK("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", BYTE_0 + 0xed, BYTE_0 + 0xa0, BYTE_0 + 0x80);
    CHECK("\xef\xbf\xbd\xef\xbf\xbd", BYTE_0 + 0xc0, BYTE_0 + 0x80);
    CHECK("\xef\xbf\xbd[eop]", BYTE_0 + 0xe4, 517);
}

static void test_replaced_texts(void **state)
{
    /* '<' has no piece of its own here, so it comes as a byte; the text counts, not the pieces */
    CHECK("\n", 36);
    CHECK("\n", BYTE_0 + '<', 510, BYTE_0 + '>');
    CHECK("<n", BYTE_0 + '<', 510);
    CHECK("<\n", BYTE_0 + '<', 36);
    CHECK("<nn>", BYTE_0 + '<', 510, 510, BYTE_0 + '>');
    CHECK("<<n", BYTE_0 + '<', BYTE_0 + '<', 510);
    CHECK("\t", 520);
    CHECK("  ", 521);
    CHECK("   ", BYTE_0 + '<', BYTE_0 + '|', 500, 504, 507, 510, 494, BYTE_0 + '_', BYTE_0 + '3',
          BYTE_0 + '|', BYTE_0 + '>');
    CHECK("<|blank_1|>", BYTE_0 + '<', BYTE_0 + '|', 500, 504, 507, 510, 494, BYTE_0 + '_',
          BYTE_0 + '1', BYTE_0 + '|', BYTE_0 + '>');
    CHECK("<|blank_81", BYTE_0 + '<', BYTE_0 + '|', 500, 504, 507, 510, 494, BYTE_0 + '_',
          BYTE_0 + '8', BYTE_0 + '1');
    CHECK("<n[eop]>", BYTE_0 + '<', 510, 517, BYTE_0 + '>'); /* not across stretches */
}

static void test_holds_back_only_what_can_change(void **state)
{
    static const struct {
        int32_t id;
        const char *emitted;
    } steps[] = {
        {54, "a"},           {BYTE_0 + 0xe4, ""},
        {BYTE_0 + 0xbd, ""}, {BYTE_0 + 0xa0, "\xe4\xbd\xa0"},
        {BYTE_0 + '<', ""},  {510, ""},
        {500, "<nb"},        {BYTE_0 + '<', ""},
        {512, "<[[MASK]]"},
    };
    struct token_stream *s;
    assert_int_equal(token_stream_new(*state, &s), 0);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        struct buf part = {0};
        assert_int_equal(token_stream_push(s, steps[i].id, &part, NULL), 0);
        golden_check_text(&part, steps[i].emitted, "emitted");
        buf_deinit(&part);
    }
    token_stream_free(s);
}

static void test_bad_id_changes_nothing(void **state)
{
    struct token_stream *s;
    struct buf text = {0};
    struct err e = ERR_INIT;
    assert_int_equal(token_stream_new(*state, &s), 0);
    assert_int_equal(token_stream_push(s, BYTE_0 + 0xe4, &text, &e), 0);
    assert_int_equal(token_stream_push(s, 5, &text, &e), -EINVAL);
    assert_int_equal(token_stream_push(s, BYTE_0 + 0xbd, &text, &e), 0);
    assert_int_equal(token_stream_push(s, BYTE_0 + 0xa0, &text, &e), 0);
    golden_check_text(&text, "\xe4\xbd\xa0", "text");
    buf_deinit(&text);
    token_stream_free(s);
}

/* Any sequence: whole characters, and the parts make the whole. The seed is printed on failure. */
static void test_random_sequences(void **state)
{
    uint64_t seed = 0x853c49e6748fea9b;
    for (int round = 0; round < 3000; round++) {
        int32_t ids[MAX_STEPS];
        uint64_t start = seed;
        size_t n = 0;
        for (; n < MAX_STEPS; n++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            uint32_t x = (uint32_t)(seed >> 33);
            /* half bytes and tags, so that characters and replaced texts get cut */
            ids[n] =
                x & 1 ? 32 + (int32_t)((x >> 1) % 824)
                      : BYTE_0 +
                            (int32_t)("<n>|tab_lank237\xe4\xbd\xa0\xf0\x9f"[(x >> 1) % 20] & 0xff);
        }
        struct buf whole = {0}, parts = {0};
        assert_int_equal(tokenizer_decode(*state, ids, n, &whole, NULL), 0);
        stream(*state, ids, n, &parts);
        if (whole.size != parts.size || memcmp(whole.data, parts.data, whole.size) != 0)
            fail_msg("seed %llx: whole \"%s\", streamed \"%s\"", (unsigned long long)start,
                     whole.data, parts.data);
        buf_deinit(&whole);
        buf_deinit(&parts);
    }
}

static void test_text_limit(void **state)
{
    struct buf text = {.limit = 3};
    struct err e = ERR_INIT;
    const int32_t ids[] = {54, 54, 54, 54};
    assert_int_equal(tokenizer_decode(*state, ids, 4, &text, &e), -EFBIG);
    assert_int_equal(text.size, 0);
    buf_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leading_space),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_replaced_texts),
        cmocka_unit_test(test_holds_back_only_what_can_change),
        cmocka_unit_test(test_bad_id_changes_nothing),
        cmocka_unit_test(test_random_sequences),
        cmocka_unit_test(test_text_limit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
