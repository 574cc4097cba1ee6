/* test_cli_common.c: numbers as people type them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"
#include "cli/common.h"

static void test_whole_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int result;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0},
        {"7", 0, 7},
        {"007", 0, 7},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -EINVAL, 0},
        {"", -EINVAL, 0},
        {" 7", -EINVAL, 0},
        {"7 ", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {"1.5", -EINVAL, 0},
        {"1e3", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t value = 0;
        int r = cli_parse_u64(cases[i].text, 0, UINT64_MAX, &value);
        if (r != cases[i].result || value != cases[i].value)
            fail_msg("\"%s\": expected %d and %llu, found %d and %llu", cases[i].text,
                     cases[i].result, (unsigned long long)cases[i].value, r,
                     (unsigned long long)value);
    }
    uint64_t value;
    assert_int_equal(cli_parse_u64("3", 4, 5, &value), -EINVAL);
    assert_int_equal(cli_parse_u64("6", 4, 5, &value), -EINVAL);
    assert_int_equal(cli_parse_u64("4", 4, 5, &value), 0);
}

static void test_fractions(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int result;
        double value;
    } cases[] = {
        {"0.7", 0, 0.7},      {"1", 0, 1},         {"-2.5e1", 0, -25},    {".5", 0, 0.5},
        {"", -EINVAL, 0},     {"nan", -EINVAL, 0}, {"inf", -EINVAL, 0},   {"0x1p3", -EINVAL, 0},
        {" 1", -EINVAL, 0},   {"1,5", -EINVAL, 0}, {"1e999", -EINVAL, 0}, {"--1", -EINVAL, 0},
        {"1000", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        double value = 0;
        int r = cli_parse_double(cases[i].text, -100, 100, &value);
        if (r != cases[i].result || value != cases[i].value)
            fail_msg("\"%s\": expected %d and %g, found %d and %g", cases[i].text, cases[i].result,
                     cases[i].value, r, value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_numbers),
        cmocka_unit_test(test_fractions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
