/* test_admit.c: what a request may ask for, what it becomes, and what is refused with which words.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "admit_rig.h"
#include "base/util.h"

static void test_default_forbidden(void **state)
{
    (void)state;
    bool forbidden[640] = {false};
    for (uint32_t i = 0; i != admit.n_default_forbidden; i++) {
        for (int32_t id = admit.default_forbidden[i].begin; id != admit.default_forbidden[i].end;
             id++)
            forbidden[id] = true;
    }
    for (int32_t id = 0; id != 640; id++) {
        bool allowed = (tokenizer_is_text(tokenizer, id) && id != 32) || id == 34 || id == 517;
        if (forbidden[id] == allowed)
            fail_msg("id %d: expected %s", id, allowed ? "allowed" : "forbidden");
    }
    assert_true(forbidden[0] && forbidden[31] && forbidden[32] && forbidden[33] && forbidden[35]);
    assert_true(forbidden[516] && forbidden[512] && forbidden[639]);
    assert_false(forbidden[36]); /* a line break is text */
}

static struct wire_generate_request generate(const char *text)
{
    return (struct wire_generate_request){.model = "", .text = text, .request_id = "", .user = ""};
}

static struct request *accept_generate(const struct wire_generate_request *w)
{
    struct request *r = NULL;
    struct err e = ERR_INIT;
    if (admit_generate(&admit, w, &r, &e) < 0)
        fail_msg("%s", e.message);
    return r;
}

static void test_generate_defaults(void **state)
{
    (void)state;
    struct wire_generate_request w = generate("The river");
    w.model = "golden";
    struct request *r = accept_generate(&w), *other = accept_generate(&w);
    const struct request_params *p = &r->params;
    assert_true(p->temperature == 1.0f && p->top_k == 0 && p->top_p == 0.7f);
    assert_int_equal(p->n_choices, 1);
    assert_false(p->beam);
    assert_true(p->seed != other->params.seed); /* drawn: equal once in 2^53 */
    assert_true(p->seed < UINT64_C(1) << 53 && other->params.seed < UINT64_C(1) << 53);
    /* "[gMASK]" and sop are appended; everything but sop sees everything */
    const struct token_list *ids = &r->prompt.ids;
    assert_int_equal(ids->ids[ids->n - 1], 516);
    assert_int_equal(ids->ids[ids->n - 2], 513);
    assert_int_equal(r->prompt.prefix_len, ids->n - 1);
    assert_int_equal(p->max_new, MIN(200u, 256 - (uint32_t)ids->n));
    request_free(r);
    request_free(other);
}

static void test_generate_options(void **state)
{
    (void)state;
    struct wire_beam_parameters beam = {.num_beams = 7, .no_repeat_ngram_size = 3};
    struct wire_sampling_parameters s = {.has_temperature = true, .has_seed = true, .seed = 5};
    struct wire_generate_request w = generate("The [sMASK] river [gMASK]");
    w.sampling = &s;
    w.request_id = "abc-1";
    w.n = 16;
    struct request *r = accept_generate(&w);
    assert_int_equal(r->params.top_k, 1); /* temperature 0 is greedy */
    assert_true(r->params.temperature > 0 && r->params.seed == 5 && r->params.n_choices == 16);
    assert_string_equal(r->client_id, "abc-1");
    assert_int_equal(r->prompt.kind, MASK_SMASK);
    request_free(r);

    s = (struct wire_sampling_parameters){.strategy = WIRE_STRATEGY_BEAM, .beam = &beam};
    w.n = 7;
    r = accept_generate(&w);
    assert_true(r->params.beam && r->params.n_beams == 7 && r->params.consider_end);
    assert_true(r->params.length_penalty == 1 && r->params.top_p == 0 && r->params.n_choices == 7);
    request_free(r);

    w = generate("The river");
    w.unidirectional = true;
    r = accept_generate(&w);
    assert_int_equal(r->prompt.prefix_len, 0);
    assert_int_equal(r->prompt.ids.ids[0], 513);
    assert_int_equal(r->prompt.ids.ids[1], 516);
    request_free(r);

    static const int32_t ids[] = {100, 101, 512, 516};
    const struct wire_token_ids tokens = {ids, 4};
    w = generate(NULL);
    w.tokens = &tokens;
    w.max_tokens = 200;
    r = accept_generate(&w);
    assert_int_equal(r->prompt.ids.n, 4);
    assert_int_equal(r->prompt.mask_index, 2);
    assert_int_equal(r->params.max_new, 200);
    request_free(r);
}

static struct wire_sampling_parameters bad_s;
static struct wire_beam_parameters bad_b;
static struct wire_id_ranges bad_r;
static struct plan_range ranges[65];
static struct plan_bias bias[1025];
static int32_t many_ids[300];
static struct wire_token_ids bad_t;
static char long_text[5000];

static void bad_model(struct wire_generate_request *w)
{
    w->model = "gpt";
}
static void bad_empty(struct wire_generate_request *w)
{
    w->text = "";
}
static void bad_nothing(struct wire_generate_request *w)
{
    w->text = NULL;
}
static void bad_long(struct wire_generate_request *w)
{
    memset(long_text, 'a', sizeof long_text - 1);
    w->text = long_text;
}
static void bad_context(struct wire_generate_request *w)
{
    memset(long_text, 0, sizeof long_text);
    for (size_t i = 0; i != 1000; i++)
        long_text[i] = i % 2 ? ' ' : 'z';
    w->text = long_text;
}
static void bad_masks(struct wire_generate_request *w)
{
    w->text = "[MASK][MASK][MASK][MASK][MASK][MASK][MASK][MASK][MASK]";
}
static void bad_no_tokens(struct wire_generate_request *w)
{
    w->text = NULL;
    bad_t = (struct wire_token_ids){many_ids, 0};
    w->tokens = &bad_t;
}
static void bad_many_tokens(struct wire_generate_request *w)
{
    w->text = NULL;
    bad_t = (struct wire_token_ids){many_ids, 300};
    w->tokens = &bad_t;
}
static void bad_token(struct wire_generate_request *w)
{
    static const int32_t id = 640;
    w->text = NULL;
    bad_t = (struct wire_token_ids){&id, 1};
    w->tokens = &bad_t;
}
static void bad_temperature(struct wire_generate_request *w)
{
    (void)w;
    bad_s.has_temperature = true;
    bad_s.temperature = 10.5f;
}
static void bad_temperature_nan(struct wire_generate_request *w)
{
    (void)w;
    bad_s.has_temperature = true;
    bad_s.temperature = NAN;
}
static void bad_top_p(struct wire_generate_request *w)
{
    (void)w;
    bad_s.has_top_p = true;
    bad_s.top_p = -0.1f;
}
static void bad_top_logprobs(struct wire_generate_request *w)
{
    (void)w;
    bad_s.top_logprobs = 21;
}
static void bad_min_tokens(struct wire_generate_request *w)
{
    (void)w;
    bad_s.min_tokens = 201;
}
static void bad_n(struct wire_generate_request *w)
{
    w->n = 17;
}
static void bad_max_tokens(struct wire_generate_request *w)
{
    w->max_tokens = 201;
}
static void bad_id(struct wire_generate_request *w)
{
    w->request_id = "new\nline";
}
static void bad_many_bias(struct wire_generate_request *w)
{
    (void)w;
    bad_s.logit_bias = bias;
    bad_s.n_logit_bias = 1025;
}
static void bad_bias_token(struct wire_generate_request *w)
{
    (void)w;
    bias[0] = (struct plan_bias){-1, 0};
    bad_s.logit_bias = bias;
    bad_s.n_logit_bias = 1;
}
static void bad_bias(struct wire_generate_request *w)
{
    (void)w;
    bias[0] = (struct plan_bias){1, -101};
    bad_s.logit_bias = bias;
    bad_s.n_logit_bias = 1;
}
static void bad_many_ranges(struct wire_generate_request *w)
{
    (void)w;
    bad_r = (struct wire_id_ranges){ranges, 65};
    bad_s.invalid_ids = &bad_r;
}
static void bad_range(struct wire_generate_request *w)
{
    (void)w;
    ranges[0] = (struct plan_range){3, 641};
    bad_r = (struct wire_id_ranges){ranges, 1};
    bad_s.invalid_ids = &bad_r;
}
static void bad_everything(struct wire_generate_request *w)
{
    (void)w;
    ranges[0] = (struct plan_range){300, 640};
    ranges[1] = (struct plan_range){0, 301};
    bad_r = (struct wire_id_ranges){ranges, 2};
    bad_s.invalid_ids = &bad_r;
}
static void bad_beams(struct wire_generate_request *w)
{
    (void)w;
    bad_s.strategy = WIRE_STRATEGY_BEAM;
    bad_b = (struct wire_beam_parameters){.num_beams = 65};
    bad_s.beam = &bad_b;
}
static void bad_penalty(struct wire_generate_request *w)
{
    (void)w;
    bad_s.strategy = WIRE_STRATEGY_BEAM;
    bad_b = (struct wire_beam_parameters){.has_length_penalty = true, .length_penalty = INFINITY};
    bad_s.beam = &bad_b;
}
static void bad_beam_n(struct wire_generate_request *w)
{
    bad_s.strategy = WIRE_STRATEGY_BEAM;
    w->n = 5; /* of 4 beams */
}

static void test_bad_generate(void **state)
{
    (void)state;
    static const struct {
        void (*spoil)(struct wire_generate_request *w);
        const char *word;
    } cases[] = {
        {bad_model, "golden"},
        {bad_empty, "empty"},
        {bad_nothing, "text or tokens"},
        {bad_long, "at most 4096 bytes, found 4999"},
        {bad_context, "limit is 254"},
        {bad_masks, "limit is 8"},
        {bad_no_tokens, "empty"},
        {bad_many_tokens, "at most 256 tokens, found 300"},
        {bad_token, "0 to 639, found 640"},
        {bad_temperature, "temperature: expected a number from 0 to 10, found 10.5"},
        {bad_temperature_nan, "temperature"},
        {bad_top_p, "top_p"},
        {bad_top_logprobs, "top_logprobs: expected at most 20"},
        {bad_min_tokens, "min_tokens: expected at most 200"},
        {bad_n, "n: expected at most 16"},
        {bad_max_tokens, "max_tokens: expected at most 200"},
        {bad_id, "printable ASCII"},
        {bad_many_bias, "at most 1024 entries, found 1025"},
        {bad_bias_token, "logit_bias"},
        {bad_bias, "from -100 to 100"},
        {bad_many_ranges, "at most 64 ranges, found 65"},
        {bad_range, "begin 3, end 641"},
        {bad_everything, "every token is forbidden"},
        {bad_beams, "num_beams: expected at most 64"},
        {bad_penalty, "length_penalty"},
        {bad_beam_n, "n: expected at most 4"},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        bad_s = (struct wire_sampling_parameters){0};
        struct wire_generate_request w = generate("The river");
        w.sampling = &bad_s;
        cases[i].spoil(&w);
        struct request *r = NULL;
        struct err e = ERR_INIT;
        int code = admit_generate(&admit, &w, &r, &e);
        int expected = cases[i].spoil == bad_model ? -ENOENT : -EINVAL;
        if (code != expected || e.code != expected || !strstr(e.message, cases[i].word))
            fail_msg("case \"%s\": code %d, message \"%s\"", cases[i].word, code, e.message);
    }
}

static void test_fill(void **state)
{
    (void)state;
    struct wire_fill_request w = {
        .model = "", .request_id = "", .user = "", .text = "a [MASK] b [sMASK]"};
    struct request *r = NULL;
    struct err e = ERR_INIT;
    assert_int_equal(admit_fill(&admit, &w, &r, &e), 0);
    assert_int_equal(r->mask, MASK_MASK);
    assert_int_equal(r->params.max_rounds, 8);
    assert_true(r->params.max_length <= 256);
    request_free(r);

    w.max_length = 5;
    assert_int_equal(admit_fill(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "max_length 5 leaves no room"));
    w.max_length = 257;
    assert_int_equal(admit_fill(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "context length of 256"));

    static const int32_t no_mask[] = {100}, with_sop[] = {100, 514, 516}, good[] = {100, 514, 513};
    struct wire_token_ids tokens = {no_mask, 1};
    w = (struct wire_fill_request){.model = "", .request_id = "", .user = "", .tokens = &tokens};
    assert_int_equal(admit_fill(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "masks"));
    tokens = (struct wire_token_ids){with_sop, 3};
    assert_int_equal(admit_fill(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "sop"));
    tokens = (struct wire_token_ids){good, 3};
    assert_int_equal(admit_fill(&admit, &w, &r, &e), 0);
    assert_int_equal(r->mask, MASK_SMASK);
    assert_int_equal(r->ids.n, 3); /* nothing is added to ids */
    request_free(r);
}

static void test_score(void **state)
{
    (void)state;
    static const int32_t context[] = {100, 101}, choice[] = {102, 103}, bad[] = {640};
    struct wire_token_ids tokens = {context, 2};
    struct wire_token_ids choices[7] = {{choice, 2}, {choice, 1}};
    struct wire_score_request w = {.model = "", .request_id = "", .user = "", .tokens = &tokens};
    w.choice_tokens = choices;
    w.n_choice_tokens = 2;
    struct request *r = NULL;
    struct err e = ERR_INIT;
    assert_int_equal(admit_score(&admit, &w, &r, &e), 0);
    assert_int_equal(r->prompt.ids.n, 4); /* a mask, and sop */
    assert_int_equal(r->prompt.ids.ids[2], 512);
    assert_int_equal(r->prompt.prefix_len, 3);
    assert_int_equal(r->n_choices_scored, 2);
    request_free(r);
    w.use_gmask = true;
    assert_int_equal(admit_score(&admit, &w, &r, &e), 0);
    assert_int_equal(r->prompt.ids.ids[2], 513);
    request_free(r);

    w.n_choice_tokens = 0;
    assert_int_equal(admit_score(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "1 to 6"));
    w.n_choice_tokens = 7;
    assert_int_equal(admit_score(&admit, &w, &r, &e), -EINVAL);
    w.n_choice_tokens = 2;
    choices[1] = (struct wire_token_ids){bad, 1};
    assert_int_equal(admit_score(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "choice 1: token 0"));
    choices[1] = (struct wire_token_ids){many_ids, 254};
    assert_int_equal(admit_score(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "at most 256 tokens"));
    static const char *const texts[] = {"river", ""};
    w.n_choice_tokens = 0;
    w.choices = texts;
    w.n_choices = 2;
    assert_int_equal(admit_score(&admit, &w, &r, &e), -EINVAL);
    assert_non_null(strstr(e.message, "choice 1: the text is empty"));
    w.n_choices = 1;
    assert_int_equal(admit_score(&admit, &w, &r, &e), 0);
    request_free(r);
}

static void test_tokenize(void **state)
{
    (void)state;
    struct wire_tokenize_request w = {.model = "",
                                      .text = "The [MASK] river"}; /* '[' is no piece here */
    struct token_list with = {0}, without = {0};
    struct err e = ERR_INIT;
    assert_int_equal(admit_tokenize(&admit, &w, &without, &e), 0);
    w.parse_masks = true;
    assert_int_equal(admit_tokenize(&admit, &w, &with, &e), 0);
    bool found = false;
    for (size_t i = 0; i != with.n; i++)
        found = found || with.ids[i] == 512;
    assert_true(found);
    for (size_t i = 0; i != without.n; i++)
        assert_int_not_equal(without.ids[i], 512);
    struct buf text = {0};
    struct wire_detokenize_request d = {
        .model = "", .ids = without.ids, .n_ids = (uint32_t)without.n};
    assert_int_equal(admit_detokenize(&admit, &d, &text, &e), 0);
    assert_non_null(strstr(text.data, "MASK"));
    static const int32_t image = 3;
    d.ids = &image;
    d.n_ids = 1;
    assert_int_equal(admit_detokenize(&admit, &d, &text, &e), -EINVAL);
    buf_deinit(&text);
    token_list_deinit(&with);
    token_list_deinit(&without);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_forbidden),
        cmocka_unit_test(test_generate_defaults),
        cmocka_unit_test(test_generate_options),
        cmocka_unit_test(test_bad_generate),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_tokenize),
    };
    return cmocka_run_group_tests(tests, admit_set_up, golden_tear_down);
}
