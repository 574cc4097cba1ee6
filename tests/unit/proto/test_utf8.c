#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/utf8.h"

static void accepts_what_is_well_formed(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "plain",
        "\xc2\x80",
        "\xdf\xbf",
        "\xe0\xa0\x80",
        "\xed\x9f\xbf",
        "\xee\x80\x80",
        "\xef\xbf\xbf",
        "\xf0\x90\x80\x80",
        "\xf4\x8f\xbf\xbf",
        "\xe6\xb8\x85\xe5\x8d\x8e",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_int_equal(utf8_check(texts[i], strlen(texts[i])), strlen(texts[i]));
    assert_int_equal(utf8_check("a\0b", 3), 3);
}

static void finds_the_first_bad_byte(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t size, good;
    } cases[] = {
        {"ab\x80", 3, 2},           /* stray continuation */
        {"\xc0\x80", 2, 0},         /* overlong NUL */
        {"\xc1\xbf", 2, 0},         /* overlong */
        {"\xe0\x9f\xbf", 3, 0},     /* overlong */
        {"x\xed\xa0\x80", 4, 1},    /* surrogate */
        {"\xf0\x8f\xbf\xbf", 4, 0}, /* overlong */
        {"\xf4\x90\x80\x80", 4, 0}, /* above U+10FFFF */
        {"\xf5\x80\x80\x80", 4, 0}, /* above U+10FFFF */
        {"abc\xe6\xb8", 5, 3},      /* cut off */
        {"\xc3(", 2, 0},            /* continuation missing */
        {"\xe6\xb8\x85\xff", 4, 3}, /* never valid */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(utf8_check(cases[i].text, cases[i].size), cases[i].good);
}

static void repairs_in_place(void **state)
{
    (void)state;
    char text[] = "a\xff\xe6\xb8\x85\xe6\xb8";
    utf8_repair(text, strlen(text));
    assert_string_equal(text, "a?\xe6\xb8\x85??");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_is_well_formed),
        cmocka_unit_test(finds_the_first_bad_byte),
        cmocka_unit_test(repairs_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
