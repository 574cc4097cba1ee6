/* test_text_join.c: where a blank belongs between a prompt and what the model writes behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"
#include "model/text_join.h"

enum { WORD = 1, PART = 2, NONE = 3 }; /* tokens: begins a word, does not, has no piece */

static const char *piece_of(const void *context, int32_t id)
{
    (void)context;
    return id == WORD ? "\xe2\x96\x81word" : id == PART ? "part" : NULL;
}

static void behind_what_a_blank_may_be_due(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        bool due;
    } rows[] = {
        {NULL, false},
        {"", false},
        {"The capital is", true},
        {"it is. ", false},
        {"a line\n", false},
        {"首都是", false},
        {"“quoted”", false},
        {"naïve é", true},
        {"한국어", true},
        {"a [MASK] is", false},
        {"[gMASK]a", false},
        {"a [sMASK]", false},
        {"\xc3\xa9", true},
        {"\xe5\xa5\xbd", false},
        {"x", true},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        if (text_join_due(rows[i].prompt) != rows[i].due)
            fail_msg("\"%s\": expected %d", rows[i].prompt ? rows[i].prompt : "NULL", rows[i].due);
    }
}

static void the_first_token_and_character_tell(void **state)
{
    (void)state;
    static const struct {
        int32_t token;
        const char *text;
        bool blank;
    } rows[] = {
        {WORD, "Paris", true}, {PART, "s", false},
        {NONE, "x", false},    {WORD, ", and", false},
        {WORD, "巴黎", false}, {WORD, "(a", true},
        {WORD, "%", false},    {WORD, "\xc3\xa9t\xc3\xa9", true},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        struct text_join j = {.due = true};
        assert_true(text_join_take(&j, &rows[i].token, 1, rows[i].text, false, piece_of, NULL));
        if (j.blank != rows[i].blank)
            fail_msg("\"%s\": expected %d, found %d", rows[i].text, rows[i].blank, j.blank);
        struct text_join alone = {0};
        assert_true(text_join_take(&alone, &rows[i].token, 1, rows[i].text, false, piece_of, NULL));
        assert_false(alone.blank);
    }
}

static void it_waits_until_both_are_known(void **state)
{
    (void)state;
    static const int32_t tokens[] = {WORD, PART};
    struct text_join j = {.due = true};
    assert_false(text_join_take(&j, NULL, 0, "Par", false, piece_of, NULL));
    assert_true(text_join_take(&j, tokens, 2, "Paris", false, piece_of, NULL));
    assert_true(j.blank && j.first == WORD);
    j = (struct text_join){.due = true};
    assert_false(text_join_take(&j, tokens, 1, "", false, piece_of, NULL));
    assert_false(text_join_take(&j, tokens + 1, 1, NULL, false, piece_of, NULL));
    assert_true(text_join_take(&j, NULL, 0, "x", false, piece_of, NULL));
    assert_true(j.blank); /* by the first of the two */
    j = (struct text_join){.due = true};
    assert_true(text_join_take(&j, NULL, 0, NULL, true, piece_of, NULL)); /* nothing came */
    assert_false(j.blank);
    assert_true(text_join_take(&j, tokens, 1, "late", true, piece_of, NULL));
    assert_false(j.blank); /* once settled, always */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behind_what_a_blank_may_be_due),
        cmocka_unit_test(the_first_token_and_character_tell),
        cmocka_unit_test(it_waits_until_both_are_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
