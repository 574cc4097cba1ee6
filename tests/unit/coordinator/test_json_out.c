/* test_json_out.c: what is written reads back as it was, by another implementation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/json_out.h"
#include "tests/support/random.h"

static void strings_are_escaped(void **state)
{
    (void)state;
    struct buf b = {0};
    struct json_out o = {&b, 0};
    json_text(&o, "a\"b\\c\n\r\t\b\f/\x01\x7f 人工 \xf0\x9f\x99\x82");
    json_raw(&o, ",");
    json_text_or_null(&o, NULL);
    json_raw(&o, ",");
    json_text_or_null(&o, "");
    json_raw(&o, ",");
    json_text_bytes(&o, "\0x", 2);
    assert_int_equal(o.error, 0);
    assert_string_equal(b.data,
                        "\"a\\\"b\\\\c\\n\\r\\t\\b\\f/\\u0001\\u007f 人工 \xf0\x9f\x99\x82\","
                        "null,null,\"\\u0000x\"");
    buf_deinit(&b);
}

static void strings_read_back(void **state)
{
    (void)state;
    for (int round = 0; round != 20000; round++) {
        char text[40];
        size_t n = random_u32() % sizeof text;
        for (size_t i = 0; i != n; i++)
            text[i] = (char)(random_u32() % 3 ? random_u32() % 128 : random_u32());
        utf8_repair(text, n);
        struct buf b = {0};
        struct json_out o = {&b, 0};
        json_text_bytes(&o, text, n);
        assert_int_equal(o.error, 0);
        json_t *v = json_loadb(b.data, b.size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(v);
        assert_int_equal(json_string_length(v), n);
        assert_memory_equal(json_string_value(v), text, n);
        json_decref(v);
        buf_deinit(&b);
    }
}

static void numbers_read_back(void **state)
{
    (void)state;
    static const struct {
        int64_t v;
        const char *text;
    } whole[] = {{0, "0"},
                 {-1, "-1"},
                 {10, "10"},
                 {INT64_MAX, "9223372036854775807"},
                 {INT64_MIN, "-9223372036854775808"}};
    for (size_t i = 0; i != sizeof whole / sizeof *whole; i++) {
        struct buf b = {0};
        struct json_out o = {&b, 0};
        json_i64(&o, whole[i].v);
        assert_string_equal(b.data, whole[i].text);
        buf_deinit(&b);
    }
    for (int round = 0; round != 20000; round++) {
        uint32_t bits = random_u32();
        float v;
        memcpy(&v, &bits, sizeof v);
        struct buf b = {0};
        struct json_out o = {&b, 0};
        json_float(&o, v);
        json_t *read = json_loadb(b.data, b.size, JSON_DECODE_ANY, NULL);
        assert_non_null(read);
        float back = (float)json_number_value(read), expected = isfinite(v) ? v : -9999.0f;
        if (back != expected)
            fail_msg("wrote %a as %s, read %a", (double)v, b.data, (double)back);
        json_decref(read);
        buf_deinit(&b);
    }
}

static void doubles_are_short_and_read_back(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } known[] = {{0.1, "0.1"},       {0.3, "0.3"},    {0.1 + 0.2, "0.30000000000000004"},
                 {12.345, "12.345"}, {1e23, "1e+23"}, {(double)NAN, "-9999"}};
    for (size_t i = 0; i != sizeof known / sizeof *known; i++) {
        struct buf b = {0};
        struct json_out o = {&b, 0};
        json_double(&o, known[i].v);
        assert_string_equal(b.data, known[i].text);
        buf_deinit(&b);
    }
    for (int round = 0; round != 20000; round++) {
        uint64_t bits = (uint64_t)random_u32() << 32 | random_u32();
        double v;
        memcpy(&v, &bits, sizeof v);
        struct buf b = {0};
        struct json_out o = {&b, 0};
        json_double(&o, v);
        double back = strtod(b.data, NULL), expected = isfinite(v) ? v : -9999.0;
        if (back != expected)
            fail_msg("wrote %a as %s, read %a", v, b.data, back);
        buf_deinit(&b);
    }
}

static void lists_and_the_largest_number(void **state)
{
    (void)state;
    struct buf b = {0};
    struct json_out o = {&b, 0};
    json_u64(&o, UINT64_MAX);
    json_raw(&o, " ");
    json_ids(&o, (const int32_t[]){1, -2, INT32_MAX}, 3);
    json_ids(&o, NULL, 0);
    json_bool(&o, true);
    json_double(&o, 0.1);
    assert_string_equal(b.data, "18446744073709551615 [1,-2,2147483647][]true0.1");
    buf_deinit(&b);
}

static void the_first_failure_sticks(void **state)
{
    (void)state;
    struct buf b = {.limit = 4};
    struct json_out o = {&b, 0};
    json_raw(&o, "abc");
    assert_int_equal(o.error, 0);
    json_text(&o, "de");
    assert_int_equal(o.error, -EFBIG);
    json_raw(&o, "");
    assert_int_equal(o.error, -EFBIG);
    assert_int_equal(b.size, 4); /* the quote still fitted */
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_escaped),
        cmocka_unit_test(strings_read_back),
        cmocka_unit_test(numbers_read_back),
        cmocka_unit_test(lists_and_the_largest_number),
        cmocka_unit_test(the_first_failure_sticks),
        cmocka_unit_test(doubles_are_short_and_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
