/* test_beam.c: beam search against traces of the published algorithm (beam_reference.py), and the
 * rules one by one on candidates made by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/util.h"
#include "model/beam.h"
#include "tests/unit/tokenizer/golden.h"

enum { MAX_BANS = 64, MAX_CANDIDATES = 256 };

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* ---- traces ---- */

static void check_tokens(const int32_t *found, size_t n, const json_t *expected, const char *what)
{
    struct token_list l = {.ids = (int32_t *)found, .n = n};
    golden_check_ids(&l, expected, what);
}

static int compare_ids(const void *a, const void *b)
{
    const int32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static void check_bans(const struct beam_search *b, const json_t *expected)
{
    assert_int_equal(beam_search_n_live(b), json_array_size(expected));
    for (uint32_t i = 0; i < beam_search_n_live(b); i++) {
        int32_t ids[MAX_BANS];
        size_t n = beam_search_bans(b, i, ids, MAX_BANS);
        assert_true(n <= MAX_BANS);
        qsort(ids, n, sizeof *ids, compare_ids);
        check_tokens(ids, n, json_array_get(expected, i), "bans");
        assert_int_equal(beam_search_bans(b, i, NULL, 0), n); /* only counted */
    }
}

static size_t read_candidates(const json_t *array, struct beam_candidate *ret)
{
    size_t i;
    const json_t *c;
    assert_true(json_array_size(array) <= MAX_CANDIDATES);
    json_array_foreach((json_t *)array, i, c)
    {
        ret[i].beam = (uint32_t)json_integer_value(json_array_get(c, 0));
        ret[i].token = (int32_t)json_integer_value(json_array_get(c, 1));
        ret[i].score = (float)json_number_value(json_array_get(c, 2));
    }
    return i;
}

static void check_step(struct beam_search *b, const json_t *step)
{
    struct beam_candidate candidates[MAX_CANDIDATES];
    uint32_t parents[BEAM_MAX];
    bool done;
    check_bans(b, json_object_get(step, "bans"));
    size_t n = read_candidates(json_object_get(step, "candidates"), candidates);
    assert_true(n <= beam_search_width(b));
    assert_int_equal(beam_search_advance(b, candidates, n, parents, &done), 0);
    assert_int_equal(done, json_is_true(json_object_get(step, "done")));
    json_t *beams = json_object_get(step, "beams");
    assert_int_equal(beam_search_n_live(b), json_array_size(beams));
    for (uint32_t i = 0; i < beam_search_n_live(b); i++) {
        size_t n_tokens;
        const int32_t *tokens = beam_search_tokens(b, i, &n_tokens);
        check_tokens(tokens, n_tokens, json_array_get(beams, i), "live beam");
        assert_int_equal(beam_search_last_token(b, i), tokens[n_tokens - 1]);
        assert_int_equal(parents[i],
                         json_integer_value(json_array_get(json_object_get(step, "parents"), i)));
        float want = (float)json_number_value(json_array_get(json_object_get(step, "scores"), i));
        assert_true(beam_search_score(b, i) == want);
    }
}

static void check_results(const struct beam_search *b, const json_t *expected)
{
    assert_int_equal(beam_search_n_results(b), json_array_size(expected));
    for (size_t i = 0; i < beam_search_n_results(b); i++) {
        const struct beam_hypothesis *h = beam_search_result(b, i);
        const json_t *want = json_array_get(expected, i);
        check_tokens(h->tokens, h->n, json_object_get(want, "tokens"), "result");
        if (fabs(h->key - number(want, "key")) > 1e-6 * fabs(h->key))
            fail_msg("result %zu: expected key %.9g, found %.9g", i, number(want, "key"), h->key);
    }
}

static void run_trace(const json_t *c)
{
    struct token_list ends = golden_ids(json_object_get(c, "end_tokens"));
    struct token_list prompt = golden_ids(json_object_get(c, "prompt"));
    const struct beam_params params = {
        .n_beams = (uint32_t)number(c, "n_beams"),
        .length_penalty = number(c, "length_penalty"),
        .no_repeat_ngram = (uint32_t)number(c, "no_repeat_ngram"),
        .min_new_tokens = (uint32_t)number(c, "min_new_tokens"),
        .consider_end = json_is_true(json_object_get(c, "consider_end")),
        .end_tokens = ends.ids,
        .n_end_tokens = (uint32_t)ends.n,
        .prompt = prompt.ids,
    };
    struct beam_search *b;
    assert_int_equal(beam_search_new(&params, prompt.n, &b), 0);
    size_t i;
    json_t *step;
    json_array_foreach(json_object_get(c, "steps"), i, step) check_step(b, step);
    assert_int_equal(beam_search_finish(b), 0);
    if (json_array_size(json_object_get(c, "results")))
        check_results(b, json_object_get(c, "results"));
    else
        assert_true(beam_search_n_results(b) > 0); /* see beam_search_finish */
    beam_search_free(b);
    token_list_deinit(&ends);
    token_list_deinit(&prompt);
}

static void test_published_traces(void **state)
{
    (void)state;
    json_t *cases = golden_json("tests/unit/tokenizer/beam_traces.json");
    json_t *c;
    size_t i;
    json_array_foreach(cases, i, c) run_trace(c);
    assert_int_equal(i, 48);
    json_decref(cases);
}

/* ---- rules by hand ---- */

enum { END = 9 };
static const int32_t ends[] = {END};

static struct beam_search *search(uint32_t n_beams, double length_penalty, bool consider_end,
                                  size_t prompt_len)
{
    const struct beam_params params = {
        .n_beams = n_beams,
        .length_penalty = length_penalty,
        .consider_end = consider_end,
        .end_tokens = ends,
        .n_end_tokens = 1,
    };
    struct beam_search *b;
    assert_int_equal(beam_search_new(&params, prompt_len, &b), 0);
    return b;
}

#define ADVANCE(b, ret_done, ...)                                                                  \
    do {                                                                                           \
        const struct beam_candidate list_[] = {__VA_ARGS__};                                       \
        uint32_t parents_[BEAM_MAX];                                                               \
        assert_int_equal(beam_search_advance(b, list_, ARRAY_LEN(list_), parents_, ret_done), 0);  \
    } while (0)

static void test_walk_stops_behind_the_last_beam(void **state)
{
    (void)state;
    struct beam_search *b = search(2, 0.0, true, 3);
    bool done;
    assert_int_equal(beam_search_width(b), 4);
    assert_int_equal(beam_search_n_live(b), 1);
    assert_int_equal(beam_search_last_token(b, 0), -1);
    /* the end behind the second beam counts, the one behind the third non-end does not */
    ADVANCE(b, &done, {0, 1, -1}, {0, 2, -2}, {0, END, -3}, {0, 3, -4}, {0, END, -5});
    assert_false(done);
    assert_int_equal(beam_search_n_live(b), 2);
    assert_int_equal(beam_search_n_results(b), 1);
    assert_true(beam_search_result(b, 0)->score == -3);
    assert_int_equal(beam_search_result(b, 0)->n, 1);
    beam_search_free(b);
}

static void test_key_includes_prompt_and_end(void **state)
{
    (void)state;
    struct beam_search *b = search(1, 2.0, true, 7);
    bool done;
    ADVANCE(b, &done, {0, 1, -1});
    ADVANCE(b, &done, {0, END, -6}, {0, 1, -7});
    /* 7 of the prompt, 2 generated: ((5 + 9) / 6)^2 */
    double want = -6 / (14.0 / 6 * 14.0 / 6);
    if (fabs(beam_search_result(b, 0)->key - want) > 1e-12)
        fail_msg("expected key %.12g, found %.12g", want, beam_search_result(b, 0)->key);
    beam_search_free(b);
}

static void test_equal_keys_newest_first(void **state)
{
    (void)state;
    struct beam_search *b = search(2, 0.0, false, 1);
    bool done;
    ADVANCE(b, &done, {0, 1, -1}, {0, 2, -1});
    ADVANCE(b, &done, {0, END, -2}, {1, END, -2}, {0, 3, -2}, {1, 3, -2});
    assert_int_equal(beam_search_n_results(b), 2);
    assert_int_equal(beam_search_result(b, 0)->tokens[0], 2);
    assert_int_equal(beam_search_result(b, 1)->tokens[0], 1);
    assert_true(done); /* worst key -2 >= best live score -2 */
    assert_int_equal(beam_search_finish(b), 0);
    assert_int_equal(beam_search_n_results(b), 2);
    beam_search_free(b);
}

static void test_stop_needs_a_full_list_and_a_worse_live_beam(void **state)
{
    (void)state;
    struct beam_search *b = search(1, 0.0, true, 1);
    bool done;
    ADVANCE(b, &done, {0, 1, -1}, {0, END, -2});
    assert_false(done); /* a live beam is better than the finished one */
    ADVANCE(b, &done, {0, 1, -1.5f});
    assert_false(done);
    ADVANCE(b, &done, {0, 1, -2.5f});
    assert_true(done);
    assert_int_equal(beam_search_finish(b), 0);
    assert_true(beam_search_result(b, 0)->score == -2); /* stopped: live beams stay out */
    beam_search_free(b);
}

static void test_only_end_tokens_stop_the_search(void **state)
{
    (void)state;
    struct beam_search *b = search(2, 1.0, true, 1);
    bool done;
    ADVANCE(b, &done, {0, END, -1});
    assert_true(done);
    assert_int_equal(beam_search_n_live(b), 0);
    assert_int_equal(beam_search_n_results(b), 1);
    beam_search_free(b);
}

static void test_finish_considers_live_beams(void **state)
{
    (void)state;
    bool done;
    struct beam_search *b = search(2, 0.0, true, 1);
    ADVANCE(b, &done, {0, 1, -1}, {0, END, -2}, {0, 2, -3});
    assert_int_equal(beam_search_finish(b), 0);
    assert_int_equal(beam_search_finish(b), 0); /* once only */
    assert_int_equal(beam_search_n_results(b), 2);
    assert_int_equal(beam_search_result(b, 0)->tokens[0], 1);
    assert_int_equal(beam_search_result(b, 1)->tokens[0], END);
    beam_search_free(b);

    b = search(2, 0.0, false, 1);
    ADVANCE(b, &done, {0, 1, -1}, {0, END, -2}, {0, 2, -3});
    assert_int_equal(beam_search_finish(b), 0);
    assert_int_equal(beam_search_n_results(b), 1);
    beam_search_free(b);
}

static void test_bad_candidates_change_nothing(void **state)
{
    (void)state;
    static const struct beam_candidate bad[][2] = {
        {{0, 1, -1}, {1, 1, -2}},    /* there is one beam */
        {{0, 1, -2}, {0, 2, -1}},    /* out of order */
        {{0, 1, -1}, {0, -1, -2}},   /* no token */
        {{0, END, -1}, {0, 2, NAN}}, /* no number */
    };
    struct beam_search *b = search(2, 1.0, true, 1);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint32_t parents[BEAM_MAX];
        bool done;
        assert_int_equal(beam_search_advance(b, bad[i], 2, parents, &done), -EINVAL);
        assert_int_equal(beam_search_n_live(b), 1);
        assert_int_equal(beam_search_n_results(b), 0);
        assert_int_equal(beam_search_last_token(b, 0), -1);
    }
    beam_search_free(b);
}

static void test_parameters(void **state)
{
    (void)state;
    struct beam_search *b;
    struct beam_params p = {.n_beams = 0};
    assert_int_equal(beam_search_new(&p, 1, &b), -EINVAL);
    p.n_beams = BEAM_MAX + 1;
    assert_int_equal(beam_search_new(&p, 1, &b), -EINVAL);
    p = (struct beam_params){.n_beams = 1, .length_penalty = NAN};
    assert_int_equal(beam_search_new(&p, 1, &b), -EINVAL);
    p = (struct beam_params){.n_beams = 1, .n_end_tokens = BEAM_MAX_END_TOKENS + 1};
    assert_int_equal(beam_search_new(&p, 1, &b), -EINVAL);
    /* an n-gram longer than anything: never a ban, and no memory by its size */
    static const int32_t prompt[] = {1, 2};
    p = (struct beam_params){.n_beams = BEAM_MAX, .no_repeat_ngram = UINT32_MAX, .prompt = prompt};
    assert_int_equal(beam_search_new(&p, 2, &b), 0);
    assert_int_equal(beam_search_width(b), 2 * BEAM_MAX);
    assert_int_equal(beam_search_bans(b, 0, NULL, 0), 0);
    beam_search_free(b);
}

/* More tokens than the first allocation holds. */
static void test_long_output(void **state)
{
    (void)state;
    struct beam_search *b = search(2, 1.0, true, 1);
    bool done;
    size_t n;
    for (int32_t i = 0; i < 500; i++) {
        ADVANCE(b, &done, {0, i, (float)-i}, {0, 1000 + i, (float)-i});
        assert_false(done);
    }
    const int32_t *tokens = beam_search_tokens(b, 1, &n);
    assert_int_equal(n, 500);
    assert_int_equal(tokens[498], 498);
    assert_int_equal(tokens[499], 1499);
    beam_search_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_traces),
        cmocka_unit_test(test_walk_stops_behind_the_last_beam),
        cmocka_unit_test(test_key_includes_prompt_and_end),
        cmocka_unit_test(test_equal_keys_newest_first),
        cmocka_unit_test(test_stop_needs_a_full_list_and_a_worse_live_beam),
        cmocka_unit_test(test_only_end_tokens_stop_the_search),
        cmocka_unit_test(test_finish_considers_live_beams),
        cmocka_unit_test(test_bad_candidates_change_nothing),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_long_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
