/* test_tokenizer.c: encoding and decoding against the golden cases, limits, both variants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "tests/unit/tokenizer/golden.h"

static struct token_list encode(const struct tokenizer *t, const char *text, bool keep)
{
    struct token_list l = {0};
    struct err e = ERR_INIT;
    if (tokenizer_encode(t, text, strlen(text), keep, 10000, &l, &e) < 0)
        fail_msg("\"%s\": %s", text, e.message);
    return l;
}

static void check_decode(const struct tokenizer *t, const struct token_list *ids,
                         const char *expected)
{
    struct buf text = {0};
    struct err e = ERR_INIT;
    if (tokenizer_decode(t, ids->ids, ids->n, &text, &e) < 0)
        fail_msg("%s", e.message);
    golden_check_text(&text, expected, "decoded");
    buf_deinit(&text);
}

static void check_pieces(const struct tokenizer *t, const struct token_list *ids,
                         const json_t *pieces)
{
    assert_int_equal(ids->n, json_array_size(pieces));
    for (size_t i = 0; i < ids->n; i++) {
        const char *piece = tokenizer_piece(t, ids->ids[i]);
        assert_non_null(piece);
        if (strcmp(piece, "<unk>") != 0) /* the golden list has what stood there */
            assert_string_equal(piece, json_string_value(json_array_get(pieces, i)));
    }
}

static void test_golden_encode(void **state)
{
    struct tokenizer *t = *state;
    json_t *cases = golden_json("tests/golden/glm130b/tokenizer_cases.json");
    json_t *c;
    size_t i;
    json_array_foreach(json_object_get(cases, "encode"), i, c)
    {
        const char *text = json_string_value(json_object_get(c, "text"));
        struct token_list ids = encode(t, text, false);
        golden_check_ids(&ids, json_object_get(c, "ids"), text);
        check_pieces(t, &ids, json_object_get(c, "pieces"));
        check_decode(t, &ids, json_string_value(json_object_get(c, "decoded")));
        token_list_deinit(&ids);
        ids = encode(t, text, true);
        golden_check_ids(&ids, json_object_get(c, "ids_keep_linebreak"), text);
        token_list_deinit(&ids);
    }
    assert_true(i >= 28);
    json_decref(cases);
}

static void test_golden_detokenize(void **state)
{
    struct tokenizer *t = *state;
    json_t *cases = golden_json("tests/golden/glm130b/tokenizer_cases.json");
    json_t *c;
    size_t i;
    json_array_foreach(json_object_get(cases, "detokenize"), i, c)
    {
        struct token_list ids = golden_ids(json_object_get(c, "ids"));
        check_decode(t, &ids, json_string_value(json_object_get(c, "text")));
        token_list_deinit(&ids);
    }
    assert_true(i >= 8);
    json_decref(cases);
}

static void test_invalid_utf8(void **state)
{
    struct tokenizer *t = *state;
    struct token_list l = {0};
    struct err e = ERR_INIT;
    assert_int_equal(tokenizer_encode(t, "ab\xff", 3, false, 100, &l, &e), -EILSEQ);
    assert_non_null(strstr(e.message, "offset 2"));
    assert_int_equal(tokenizer_encode(t, "\xe4\xbd", 2, false, 100, &l, &e), -EILSEQ);
    assert_non_null(strstr(e.message, "offset 0"));
    assert_int_equal(l.n, 0);
}

static void test_not_terminated(void **state)
{
    struct tokenizer *t = *state;
    struct token_list a = {0}, b = encode(t, "small", false);
    char *exact = malloc(5);
    assert_non_null(exact);
    for (size_t i = 0; i < 5; i++)
        exact[i] = "small"[i];
    assert_int_equal(tokenizer_encode(t, exact, 5, false, 100, &a, NULL), 0);
    free(exact);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    /* a NUL is a character like any other: it neither ends the text nor breaks anything */
    assert_int_equal(tokenizer_encode(t, "a\0b", 3, false, 100, &a, NULL), 0);
    assert_true(a.n > b.n);
    token_list_deinit(&a);
    token_list_deinit(&b);
}

static void test_limits(void **state)
{
    struct tokenizer *t = *state;
    struct token_list l = {0};
    struct err e = ERR_INIT;
    struct token_list all = encode(t, "Hello world", false);
    assert_int_equal(tokenizer_encode(t, "Hello world", 11, false, all.n, &l, &e), 0);
    assert_int_equal(l.n, all.n);
    assert_int_equal(tokenizer_encode(t, "Hello world", 11, false, all.n - 1, &l, &e), -E2BIG);
    assert_string_equal(e.message, "the text has 11 tokens, the limit is 10");
    assert_int_equal(l.n, all.n); /* nothing appended */

    assert_int_equal(tokenizer_text_limit(0), 4096);
    assert_int_equal(tokenizer_text_limit(SIZE_MAX), TOKENIZER_MAX_TEXT_BYTES);
    size_t size = tokenizer_text_limit(2048) + 1;
    char *text = malloc(size);
    assert_non_null(text);
    memset(text, ' ', size);
    assert_int_equal(tokenizer_encode(t, text, size, false, 2048, &l, &e), -E2BIG);
    assert_non_null(strstr(e.message, "135169 bytes, the limit is 135168 (for 2048 tokens)"));
    assert_int_equal(tokenizer_encode(t, text, size - 1, false, 2048, &l, &e), 0);
    assert_int_equal(l.n, all.n); /* white space alone has no tokens */
    free(text);
    token_list_deinit(&all);
    token_list_deinit(&l);
}

static void test_ids_without_text(void **state)
{
    struct tokenizer *t = *state;
    static const int32_t bad[] = {-1, 0, 31, 520, 639, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct buf text = {0};
        struct err e = ERR_INIT;
        int32_t ids[] = {54, bad[i]};
        assert_int_equal(tokenizer_decode(t, ids, 2, &text, &e), -EINVAL);
        assert_int_equal(text.size, 0);
        assert_false(tokenizer_is_text(t, bad[i]));
        assert_null(tokenizer_piece(t, bad[i]));
        buf_deinit(&text);
    }
    assert_true(tokenizer_is_text(t, 32));  /* <unk> */
    assert_false(tokenizer_is_text(t, 33)); /* <s> */
    assert_false(tokenizer_is_text(t, 34)); /* </s> */
    assert_false(tokenizer_is_text(t, 35)); /* <pad> */
    assert_true(tokenizer_is_text(t, 36));  /* <n> */
    assert_true(tokenizer_is_text(t, 511));
    assert_false(tokenizer_is_text(t, 512)); /* [MASK] */
}

static void test_special_tokens(void **state)
{
    struct tokenizer *t = *state;
    static const struct {
        const char *name;
        int32_t id;
    } specials[] = {
        {"[MASK]", 512}, {"[gMASK]", 513}, {"[sMASK]", 514}, {"eod", 515}, {"sop", 516},
        {"eop", 517},    {"ENC", 518},     {"dBLOCK", 519},  {"</s>", 34},
    };
    for (size_t i = 0; i < ARRAY_LEN(specials); i++) {
        assert_int_equal(tokenizer_special_id(t, specials[i].name), specials[i].id);
        assert_string_equal(tokenizer_special_name(t, specials[i].id), specials[i].name);
    }
    assert_int_equal(tokenizer_special_id(t, "MASK"), -1);
    assert_null(tokenizer_special_name(t, 36));
    assert_null(tokenizer_special_name(t, -1));
}

/* ids below are those of tokenizer_cases.json plus icetk's order: specials, tab, blanks, bytes */
enum { TAB = 520, BLANK_2 = 521, BLANK_80 = 599, BYTE_0 = 600 };

static void check_whitespace(const struct tokenizer *t, const char *text, const char *ids)
{
    json_t *expected = json_loads(ids, 0, NULL);
    assert_non_null(expected);
    struct token_list l = encode(t, text, false);
    golden_check_ids(&l, expected, text);
    check_decode(t, &l, text);
    token_list_deinit(&l);
    json_decref(expected);
}

static void test_whitespace_variant(void **state)
{
    (void)state;
    struct arch a;
    struct tokenizer *t = golden_whitespace_tokenizer(&a);
    check_whitespace(t, "a\nb", "[54, 36, 500]");
    check_whitespace(t, "a\tb", "[54, 520, 500]");
    check_whitespace(t, "a  b", "[54, 521, 500]");
    check_whitespace(t, "a   b", "[54, 522, 500]");
    check_whitespace(t, "a \n\tb", "[54, 37, 36, 520, 500]");
    /* 161 = 80 + 80 + 1; 163 = 80 + 80 + 3 */
    char text[170];
    snprintf(text, sizeof text, "a%161sb", "");
    check_whitespace(t, text, "[54, 599, 599, 37, 500]");
    snprintf(text, sizeof text, "a%163sb", "");
    check_whitespace(t, text, "[54, 599, 599, 522, 500]");
    /* what has no piece is spelled in bytes: U+1F642 = f0 9f 99 82 */
    check_whitespace(t, "a\xf0\x9f\x99\x82", "[54, 840, 759, 753, 730]");
    assert_int_equal(tokenizer_special_id(t, "dBLOCK"), 519);
    assert_false(tokenizer_is_text(t, 519));
    assert_true(tokenizer_is_text(t, TAB));
    assert_true(tokenizer_is_text(t, BYTE_0 + 255));
    assert_false(tokenizer_is_text(t, BYTE_0 + 256));
    assert_string_equal(tokenizer_piece(t, BLANK_2), "<|blank_2|>");
    assert_string_equal(tokenizer_piece(t, BLANK_80), "<|blank_80|>");
    tokenizer_close(t);
}

static void test_whitespace_needs_ids(void **state)
{
    (void)state;
    struct arch a;
    struct err e = ERR_INIT;
    struct tokenizer *t;
    golden_arch(&a); /* 640 ids, 856 needed */
    char *path = golden_path("tests/golden/glm130b/tokenizer.model");
    assert_int_equal(tokenizer_open_file(path, &a, TOKENIZER_WHITESPACE, &t, &e), -EINVAL);
    assert_non_null(strstr(e.message, "856"));
    a.tokens.special_base = 511;
    assert_int_equal(tokenizer_open_file(path, &a, TOKENIZER_PLAIN, &t, &e), -EINVAL);
    assert_non_null(strstr(e.message, "511"));
    free(path);
    assert_int_equal(tokenizer_open_file("/nonexistent", &a, TOKENIZER_PLAIN, &t, &e), -ENOENT);
}

static void write_file(const char *dir, const char *name, const void *data, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
}

static void copy_model(const char *dir)
{
    char *path = golden_path("tests/golden/glm130b/tokenizer.model");
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *data = malloc(1 << 20);
    assert_non_null(data);
    size_t size = fread(data, 1, 1 << 20, f);
    fclose(f);
    write_file(dir, "tokenizer.model", data, size);
    free(data);
    free(path);
}

static void test_model_directory(void **state)
{
    static const struct {
        const char *config; /* NULL: no file */
        int result;
        bool whitespace;
    } cases[] = {
        {NULL, 0, false},
        {"{}", 0, false},
        {"{\"variant\": \"plain\"}", 0, false},
        {"{\"variant\": \"whitespace\"}", 0, true},
        {"{\"variant\": \"other\"}", -EINVAL, false},
        {"{\"variant\": 1}", -EINVAL, false},
    };
    char dir[] = "/tmp/glmd-test-XXXXXX", path[64];
    struct arch a;
    char plain[33];
    assert_non_null(mkdtemp(dir));
    copy_model(dir);
    golden_arch(&a);
    a.vocab = 1024;
    snprintf(plain, sizeof plain, "%s", tokenizer_digest(*state));
    assert_int_equal(strspn(plain, "0123456789abcdef"), 32);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t;
        struct err e = ERR_INIT;
        if (cases[i].config)
            write_file(dir, "tokenizer_config.json", cases[i].config, strlen(cases[i].config));
        int r = tokenizer_open(dir, &a, &t, &e);
        if (r != cases[i].result)
            fail_msg("%s: expected %d, found %d (%s)", cases[i].config, cases[i].result, r,
                     e.message);
        if (r < 0)
            continue;
        assert_int_equal(tokenizer_is_text(t, TAB), cases[i].whitespace);
        assert_int_equal(strcmp(tokenizer_digest(t), plain) != 0, cases[i].whitespace);
        tokenizer_close(t);
    }
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    unlink(path);
    rmdir(dir);
}

static int setup(void **state)
{
    *state = golden_tokenizer();
    return 0;
}

static int teardown(void **state)
{
    tokenizer_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_encode),
        cmocka_unit_test(test_golden_detokenize),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_not_terminated),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_ids_without_text),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_whitespace_variant),
        cmocka_unit_test(test_whitespace_needs_ids),
        cmocka_unit_test(test_model_directory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
