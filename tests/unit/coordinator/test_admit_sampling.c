/* test_admit_sampling.c: penalties, stop texts and ids, best_of, prompt log-probabilities, priority
 * and user: what they become, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "admit_rig.h"
#include "base/util.h"

/* A request that passes, for the tests to change. */
struct wish {
    struct wire_sampling_parameters sampling;
    struct wire_generate_request wire;
};

static void init_wish(struct wish *w)
{
    *w = (struct wish){.wire = {.model = "", .text = "The river", .request_id = "", .user = ""}};
    w->wire.sampling = &w->sampling;
}

static struct request *accept(const struct wish *w)
{
    struct request *r = NULL;
    struct err e = ERR_INIT;
    if (admit_generate(&admit, &w->wire, &r, &e) < 0)
        fail_msg("%s", e.message);
    return r;
}

static void refuse(const struct wish *w, const char *words)
{
    struct request *r = NULL;
    struct err e = ERR_INIT;
    int code = admit_generate(&admit, &w->wire, &r, &e);
    if (code != -EINVAL || !strstr(e.message, words))
        fail_msg("expected \"%s\", found %d \"%s\"", words, code, e.message);
}

static void test_defaults_are_off(void **state)
{
    (void)state;
    struct wish w;
    init_wish(&w);
    struct request *r = accept(&w);
    const struct request_params *p = &r->params;
    assert_true(p->min_p == 0 && p->repetition_penalty == 1 && p->presence_penalty == 0 &&
                p->frequency_penalty == 0);
    assert_null(p->stops);
    assert_int_equal(p->n_stop_ids + p->n_best, 0);
    assert_int_equal(r->priority, 0);
    assert_int_equal(r->tenant, 0);
    request_free(r);
}

static void test_values_arrive(void **state)
{
    (void)state;
    static const char *const stop[] = {"\n\n", "河"};
    static const int32_t ids[] = {36, 517};
    struct wish w;
    init_wish(&w);
    w.sampling = (struct wire_sampling_parameters){.min_p = 0.05f,
                                                   .repetition_penalty = 1.25f,
                                                   .presence_penalty = -2,
                                                   .frequency_penalty = 2,
                                                   .stop = stop,
                                                   .n_stop = 2,
                                                   .stop_token_ids = ids,
                                                   .n_stop_token_ids = 2,
                                                   .include_stop = true};
    w.wire.n = 2;
    w.wire.best_of = 5;
    w.wire.priority = -100;
    w.wire.user = "someone";
    struct request *r = accept(&w);
    const struct request_params *p = &r->params;
    assert_true(p->min_p == 0.05f && p->repetition_penalty == 1.25f && p->presence_penalty == -2 &&
                p->frequency_penalty == 2 && p->include_stop);
    assert_string_equal(stop_set_text(p->stops, 1), "河");
    assert_int_equal(p->n_stop_ids, 2);
    assert_int_equal(p->stop_ids[0], 36);
    assert_int_equal(p->n_choices, 5);
    assert_int_equal(p->n_best, 2);
    assert_int_equal(r->priority, -100);
    assert_true(r->tenant != 0 && r->tenant == admit_tenant("someone"));
    assert_true(admit_tenant("someone") != admit_tenant("someone else"));
    request_free(r);

    w.wire.best_of = 2; /* as many as n: an ordinary request */
    r = accept(&w);
    assert_int_equal(r->params.n_choices, 2);
    assert_int_equal(r->params.n_best, 0);
    request_free(r);
}

static void test_numbers_have_limits(void **state)
{
    (void)state;
    struct wish w;
    init_wish(&w);
    const struct {
        float *field, value;
        const char *words;
    } cases[] = {
        {&w.sampling.min_p, 1.1f, "min_p: expected a number from 0 to 1, found 1.1"},
        {&w.sampling.min_p, NAN, "min_p"},
        {&w.sampling.repetition_penalty, 0.001f, "repetition_penalty: expected a number from 0.01"},
        {&w.sampling.repetition_penalty, -1, "repetition_penalty"},
        {&w.sampling.repetition_penalty, INFINITY, "repetition_penalty"},
        {&w.sampling.presence_penalty, 2.5f, "presence_penalty: expected a number from -2 to 2"},
        {&w.sampling.frequency_penalty, -2.5f, "frequency_penalty: expected a number from -2 to 2"},
        {&w.sampling.frequency_penalty, NAN, "frequency_penalty"},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        *cases[i].field = cases[i].value;
        refuse(&w, cases[i].words);
        *cases[i].field = 0;
    }
    w.wire.priority = 101;
    refuse(&w, "priority: expected -100 to 100, found 101");
    w.wire.priority = 0;
    char user[130];
    memset(user, 'u', 129);
    user[129] = '\0';
    w.wire.user = user;
    refuse(&w, "user: expected at most 128 bytes, found 129");
    user[128] = '\0';
    request_free(accept(&w));
}

static void test_stops_have_limits(void **state)
{
    (void)state;
    static const char *stop[17];
    static int32_t ids[65];
    char text[258];
    memset(text, 'x', 257);
    text[257] = '\0';
    for (size_t i = 0; i != 17; i++)
        stop[i] = "end";
    for (size_t i = 0; i != 65; i++)
        ids[i] = 100;
    struct wish w;
    init_wish(&w);
    w.sampling.stop = stop;
    w.sampling.n_stop = 17;
    refuse(&w, "stop: expected at most 16 texts, found 17");
    w.sampling.n_stop = 2;
    stop[1] = "";
    refuse(&w, "stop: text 1: expected 1 to 256 bytes, found 0");
    stop[1] = text;
    refuse(&w, "stop: text 1: expected 1 to 256 bytes, found 257");
    text[256] = '\0';
    request_free(accept(&w));

    w.sampling.n_stop = 0;
    w.sampling.stop_token_ids = ids;
    w.sampling.n_stop_token_ids = 65;
    refuse(&w, "stop_token_ids: expected at most 64 ids, found 65");
    w.sampling.n_stop_token_ids = 64;
    request_free(accept(&w));
    ids[63] = 640;
    refuse(&w, "stop_token_ids: expected ids from 0 to 639, found 640");
    ids[63] = 515; /* eod: no text, so that nobody would ever see it */
    refuse(&w, "stop_token_ids: 515 is forbidden and can never come: it is no text");
    static const struct wire_id_ranges any = {NULL, 0};
    w.sampling.invalid_ids = &any;
    request_free(accept(&w));
}

static void test_what_beams_do_not_take(void **state)
{
    (void)state;
    static const char *const stop[] = {"end"};
    static const int32_t ids[] = {100, 101, 102, 103, 104, 105, 106};
    struct wish w;
    init_wish(&w);
    w.sampling.strategy = WIRE_STRATEGY_BEAM;
    w.sampling.repetition_penalty = 2; /* beams rank penalized probabilities */
    struct request *r = accept(&w);
    assert_true(r->params.beam && r->params.repetition_penalty == 2);
    request_free(r);
    w.sampling.stop = stop;
    w.sampling.n_stop = 1;
    refuse(&w, "stop texts are there for sampling only, not for beams");
    w.sampling.n_stop = 0;
    w.sampling.stop_token_ids = ids;
    w.sampling.n_stop_token_ids = 7;
    refuse(&w, "at most 6 ids with beams");
    w.sampling.n_stop_token_ids = 6;
    request_free(accept(&w));
    w.sampling.ignore_end = true;
    refuse(&w, "not ignore_end");
    w.sampling.n_stop_token_ids = 0;
    w.sampling.min_p = 0.1f;
    refuse(&w, "min_p: it is there for sampling only");
    w.sampling.min_p = 0;
    w.wire.best_of = 3;
    refuse(&w, "beams have num_beams");
}

static void test_best_of(void **state)
{
    (void)state;
    struct wish w;
    init_wish(&w);
    w.wire.n = 3;
    w.wire.best_of = 2;
    refuse(&w, "best_of: expected n to 16, found 2");
    w.wire.best_of = 17;
    refuse(&w, "best_of: expected n to 16, found 17");
    w.wire.best_of = 16;
    request_free(accept(&w));
    w.sampling.top_k = 1;
    refuse(&w, "there is one greedy output");
    w.sampling.top_k = 0;
    w.sampling.has_temperature = true; /* 0 */
    refuse(&w, "there is one greedy output");
}

/* ---- prompt log-probabilities ---- */

static void test_echo(void **state)
{
    (void)state;
    struct wish w;
    init_wish(&w);
    struct err e = ERR_INIT;
    struct request *r;
    w.wire.prompt_logprobs = 3;
    w.wire.priority = 7;
    assert_int_equal(admit_echo(&admit, &w.wire, &r, &e), 0);
    assert_int_equal(r->kind, REQUEST_SCORE);
    assert_int_equal(r->priority, 7);
    assert_int_equal(r->params.n_top_logprobs, 3);
    static const int32_t head[] = {513, 516}; /* [gMASK] sop */
    assert_int_equal(r->prompt.ids.n, 2);
    assert_memory_equal(r->prompt.ids.ids, head, sizeof head);
    assert_int_equal(r->prompt.prefix_len, 0);
    struct token_list text = {0};
    assert_int_equal(tokenizer_encode(tokenizer, "The river", 9, false, 100, &text, &e), 0);
    assert_int_equal(r->n_choices_scored, 1);
    assert_int_equal(r->choices[0].n, text.n);
    assert_memory_equal(r->choices[0].ids, text.ids, text.n * sizeof *text.ids);
    token_list_deinit(&text);
    request_free(r);

    static const int32_t ids[] = {100, 513, 516}; /* token ids are scored as they were sent */
    const struct wire_token_ids tokens = {ids, 3};
    w.wire.text = NULL;
    w.wire.tokens = &tokens;
    assert_int_equal(admit_echo(&admit, &w.wire, &r, &e), 0);
    assert_int_equal(r->choices[0].n, 3);
    request_free(r);

    static int32_t many[256];
    const struct wire_token_ids longest = {many, 255}, too_long = {many, 256};
    w.wire.tokens = &longest;
    assert_int_equal(admit_echo(&admit, &w.wire, &r, &e), 0);
    request_free(r);
    w.wire.tokens = &too_long;
    assert_int_equal(admit_echo(&admit, &w.wire, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "expected 1 to 255 tokens, found 256"));
    w.wire.tokens = &tokens;
    w.wire.prompt_logprobs = 21;
    assert_int_equal(admit_echo(&admit, &w.wire, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "prompt_logprobs: expected at most 20, found 21"));
}

static void test_prompt_only_needs_prompt_logprobs(void **state)
{
    (void)state;
    struct wish w;
    init_wish(&w);
    w.wire.prompt_only = true;
    refuse(&w, "prompt_only: expected prompt_logprobs with it");
}

/* Something must be left where ends may not come. */
static void test_only_ends_are_left(void **state)
{
    (void)state;
    const int32_t eop = golden_arch.tokens.eop;
    const struct plan_range all_but_eop[] = {{eop + 1, 640}, {0, eop}};
    const struct plan_range all_but_two[] = {{0, 100}, {101, eop}, {eop + 1, 640}};
    struct wire_id_ranges ranges = {all_but_eop, 2};
    struct wish w;
    init_wish(&w);
    w.sampling.invalid_ids = &ranges;
    request_free(accept(&w));
    w.sampling.min_tokens = 1;
    refuse(&w, "invalid_ids: only ends are left");
    w.sampling.min_tokens = 0;
    w.sampling.ignore_end = true;
    refuse(&w, "invalid_ids: only ends are left");
    w.sampling.stop_token_ids = &eop; /* ends in spite of ignore_end */
    w.sampling.n_stop_token_ids = 1;
    request_free(accept(&w));
    w.sampling.min_tokens = 2;
    refuse(&w, "invalid_ids: only ends are left");
    ranges = (struct wire_id_ranges){all_but_two, 3};
    request_free(accept(&w));
    const int32_t both[] = {100, eop};
    w.sampling.stop_token_ids = both;
    w.sampling.n_stop_token_ids = 2;
    refuse(&w, "invalid_ids: only ends are left");
}

/* ---- the other methods ---- */

static void test_fill_and_score(void **state)
{
    (void)state;
    static const char *const stop[] = {"."};
    static const char *const choices[] = {"a"};
    struct wire_sampling_parameters s = {.stop = stop, .n_stop = 1, .top_logprobs = 3};
    struct wire_fill_request w = {.model = "",
                                  .text = "The [MASK]",
                                  .sampling = &s,
                                  .request_id = "",
                                  .user = "u",
                                  .priority = 5};
    struct err e = ERR_INIT;
    struct request *r;
    assert_int_equal(admit_fill(&admit, &w, &r, &e), 0);
    assert_non_null(r->params.stops);
    assert_false(r->params.logprobs); /* nowhere to put them */
    assert_int_equal(r->priority, 5);
    assert_true(r->tenant == admit_tenant("u"));
    request_free(r);
    struct wire_score_request score = {.model = "",
                                       .text = "The [MASK]",
                                       .choices = choices,
                                       .n_choices = 1,
                                       .request_id = "",
                                       .user = "u",
                                       .priority = -101};
    assert_int_equal(admit_score(&admit, &score, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "priority: expected -100 to 100"));
    score.priority = -5;
    assert_int_equal(admit_score(&admit, &score, &r, &e), 0);
    assert_int_equal(r->priority, -5);
    request_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_off),
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_numbers_have_limits),
        cmocka_unit_test(test_stops_have_limits),
        cmocka_unit_test(test_what_beams_do_not_take),
        cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_prompt_only_needs_prompt_logprobs),
        cmocka_unit_test(test_only_ends_are_left),
        cmocka_unit_test(test_fill_and_score),
    };
    return cmocka_run_group_tests(tests, admit_set_up, golden_tear_down);
}
