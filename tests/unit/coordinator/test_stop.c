/* test_stop.c: stop texts found byte by byte equal those found by looking at the whole text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/stop.h"
#include "tests/support/random.h"

/* Texts over two letters, so that borders and overlaps are everywhere. */
static void random_text(char *ret, uint32_t max)
{
    uint32_t n = 1 + random_below(max);
    for (uint32_t i = 0; i != n; i++)
        ret[i] = (char)('a' + random_below(2));
    ret[n] = '\0';
}

static bool ends_with(const char *text, size_t n, const char *what)
{
    size_t size = strlen(what);
    return size <= n && memcmp(text + n - size, what, size) == 0;
}

/* The first end, and the longest text that ends there. */
static bool plain_search(const char *const *texts, uint32_t n_texts, const char *text, size_t n,
                         struct stop_match *ret)
{
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (uint32_t i = 0; i != n_texts; i++) {
            if (ends_with(text, end, texts[i]) && strlen(texts[i]) > longest) {
                longest = strlen(texts[i]);
                *ret = (struct stop_match){i, end - longest, end};
            }
        }
        if (longest)
            return true;
    }
    return false;
}

/* The longest beginning of a stop text that the text ends with. */
static size_t plain_held(const char *const *texts, uint32_t n_texts, const char *text, size_t n)
{
    size_t held = 0;
    for (uint32_t i = 0; i != n_texts; i++) {
        for (size_t k = 1; k < strlen(texts[i]) && k <= n; k++) {
            if (memcmp(text + n - k, texts[i], k) == 0 && k > held)
                held = k;
        }
    }
    return held;
}

static void test_any_cut_finds_the_same(void **state)
{
    (void)state;
    uint32_t n_found = 0;
    for (uint32_t round = 0; round != 3000; round++) {
        char stops[STOP_MAX_TEXTS][12], text[65];
        const char *texts[STOP_MAX_TEXTS];
        uint32_t n = 1 + random_below(round % 5 ? 3 : STOP_MAX_TEXTS);
        for (uint32_t i = 0; i != n; i++) {
            random_text(stops[i], round % 3 ? 11 : 4);
            texts[i] = stops[i];
        }
        random_text(text, 64);
        struct stop_set *s;
        assert_int_equal(stop_set_new(texts, n, &s), 0);
        struct stop_match expected = {0}, found = {0};
        bool is_there = plain_search(texts, n, text, strlen(text), &expected);
        bool was_found = false;
        struct stop_search at = {0};
        for (size_t size = 0; !was_found && at.n_read != strlen(text);) {
            size += random_below(5);
            size = MIN(size, strlen(text));
            was_found = stop_search_next(s, &at, text, size, &found);
            if (!was_found)
                assert_int_equal(stop_search_held(s, &at), plain_held(texts, n, text, size));
        }
        assert_int_equal(was_found, is_there);
        n_found += was_found;
        if (was_found) {
            assert_int_equal(found.begin, expected.begin);
            assert_int_equal(found.end, expected.end);
            assert_string_equal(stop_set_text(s, found.index), texts[expected.index]);
        }
        stop_set_free(s);
    }
    assert_in_range(n_found, 1000, 2900);
}

/* A caller may go on behind a match: every end is found, overlaps too. */
static void test_goes_on_behind_a_match(void **state)
{
    (void)state;
    static const char *const texts[] = {"aa", "aba"};
    static const char text[] = "aaaabaaba";
    static const size_t ends[] = {2, 3, 4, 6, 7, 9};
    struct stop_set *s;
    assert_int_equal(stop_set_new(texts, 2, &s), 0);
    struct stop_search at = {0};
    struct stop_match m;
    size_t n = 0;
    while (stop_search_next(s, &at, text, strlen(text), &m)) {
        assert_true(n < ARRAY_LEN(ends));
        assert_int_equal(m.end, ends[n++]);
    }
    assert_int_equal(n, ARRAY_LEN(ends));
    stop_set_free(s);
}

static void test_longest_text(void **state)
{
    (void)state;
    char text[STOP_MAX_BYTES + 1];
    memset(text, 'x', STOP_MAX_BYTES);
    text[STOP_MAX_BYTES] = '\0';
    const char *texts[] = {text};
    struct stop_set *s;
    assert_int_equal(stop_set_new(texts, 1, &s), 0);
    struct stop_search at = {0};
    struct stop_match m;
    assert_false(stop_search_next(s, &at, text, STOP_MAX_BYTES - 1, &m));
    assert_int_equal(stop_search_held(s, &at), STOP_MAX_BYTES - 1);
    assert_true(stop_search_next(s, &at, text, STOP_MAX_BYTES, &m));
    assert_int_equal(m.begin, 0);
    stop_set_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_cut_finds_the_same),
        cmocka_unit_test(test_goes_on_behind_a_match),
        cmocka_unit_test(test_longest_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
