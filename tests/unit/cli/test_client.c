/* test_client.c: fill, generate, score and status as a person or script uses them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/cli/fake_coordinator.h"

#define RUN(c, input, verb, ...)                                                                   \
    child_run(*state, c, input, verb, (const char *const[]){__VA_ARGS__, NULL})

static void check_exit(const struct child *c, int expected)
{
    if (c->exit_code != expected)
        fail_msg("expected exit code %d, found %d; output \"%s\", errors \"%s\"", expected,
                 c->exit_code, c->out_text.data ? c->out_text.data : "",
                 c->err_text.data ? c->err_text.data : "");
}

static void check_text(const struct buf *found, const char *expected)
{
    assert_string_equal(found->data ? found->data : "", expected);
}

static void check_contains(const struct buf *found, const char *expected)
{
    if (!found->data || !strstr(found->data, expected))
        fail_msg("expected \"%s\" in \"%s\"", expected, found->data ? found->data : "");
}

static json_t *parse(const struct child *c)
{
    json_error_t error;
    json_t *root = json_loads(c->out_text.data ? c->out_text.data : "", 0, &error);
    if (!root)
        fail_msg("%s in \"%s\"", error.text, c->out_text.data);
    return root;
}

static void test_generate(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "generate", "--max-tokens", "12", "--temperature", "0.5", "--top-k", "3",
        "--top-p", "0.9", "--seed", "18446744073709551615", "--min-tokens", "2", "--logit-bias",
        "17=-2.5", "--stats", "Hello");
    check_exit(&c, 0);
    check_text(&c.out_text, "Gr\xc3\xbc\xc3\x9f\x1b[0m\n"); /* no terminal: as it is */
    check_contains(&c.err_text, "5 prompt tokens in 0.500 s, 9 tokens in 2.000 s: 4.0 tokens/s");
    check_contains(&c.err_text, "seed 77");
    child_deinit(&c);
    const struct wire_sampling_parameters *s = f->generate->sampling;
    assert_string_equal(f->generate->text, "Hello");
    assert_int_equal(f->generate->max_tokens, 12);
    assert_int_equal(s->strategy, WIRE_STRATEGY_UNSPECIFIED);
    assert_true(s->has_temperature && s->temperature == 0.5f);
    assert_true(s->has_top_p && s->top_p == 0.9f);
    assert_int_equal(s->top_k, 3);
    assert_true(s->has_seed && s->seed == UINT64_MAX);
    assert_int_equal(s->min_tokens, 2);
    assert_int_equal(s->n_logit_bias, 1);
    assert_int_equal(s->logit_bias[0].token, 17);
    assert_true(s->logit_bias[0].bias == -2.5f);
    assert_null(s->invalid_ids);
}

static void test_generate_ends_and_penalties(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "generate", "--min-p", "0.125", "--repetition-penalty", "1.25",
        "--presence-penalty", "-0.5", "--frequency-penalty", "2", "--stop", "\n\n", "--stop", "河",
        "--stop-id", "20", "--include-stop", "--ignore-end", "--best-of", "5", "--priority", "-7",
        "--user", "someone", "--json", "Hello");
    check_exit(&c, 0);
    json_t *root = parse(&c);
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(choice, "ended_by")), "\n\n");
    assert_null(json_object_get(root, "prompt_logprobs"));
    json_decref(root);
    child_deinit(&c);
    const struct wire_sampling_parameters *s = f->generate->sampling;
    assert_true(s->min_p == 0.125f && s->repetition_penalty == 1.25f &&
                s->presence_penalty == -0.5f && s->frequency_penalty == 2);
    assert_int_equal(s->n_stop, 2);
    assert_string_equal(s->stop[1], "河");
    assert_int_equal(s->n_stop_token_ids, 1);
    assert_int_equal(s->stop_token_ids[0], 20);
    assert_true(s->include_stop && s->ignore_end);
    assert_int_equal(f->generate->best_of, 5);
    assert_int_equal(f->generate->priority, -7);
    assert_string_equal(f->generate->user, "someone");
    assert_false(f->generate->has_prompt_logprobs);
}

static void test_generate_prompt_logprobs(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "generate", "--prompt-logprobs", "1", "--json", "Hello");
    check_exit(&c, 0);
    json_t *root = parse(&c);
    json_t *prompt = json_object_get(root, "prompt_logprobs");
    assert_int_equal(json_array_size(prompt), 2);
    json_t *first = json_array_get(prompt, 0);
    assert_int_equal(json_integer_value(json_object_get(first, "token")), 9);
    assert_int_equal(json_array_size(json_object_get(first, "top")), 1);
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    assert_int_equal(json_integer_value(json_object_get(choice, "ended_by")), 517);
    json_decref(root);
    child_deinit(&c);
    assert_int_equal(f->generate->prompt_logprobs, 1);
    assert_false(f->generate->prompt_only);

    c = (struct child){0};
    RUN(&c, NULL, "generate", "--prompt-logprobs", "0", "--prompt-only", "Hello");
    check_exit(&c, 0);
    check_text(&c.out_text, "prompt: 2 tokens, log-probability -2.00000, -1.00000 a token\n");
    child_deinit(&c);
    assert_true(f->generate->has_prompt_logprobs && f->generate->prompt_only);
    assert_int_equal(f->generate->prompt_logprobs, 0);
}

static void test_generate_reads_standard_input(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, "two\nlines\n", "generate", "-");
    check_exit(&c, 0);
    assert_string_equal(f->generate->text, "two\nlines");
    child_deinit(&c);
    c = (struct child){0};
    RUN(&c, "caf\xe9", "generate", "-");
    check_exit(&c, 1);
    check_contains(&c.err_text, "invalid byte at offset 3");
    child_deinit(&c);
}

static void test_generate_choices(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "generate", "--beams", "4", "--n", "2", "--length-penalty", "0.5",
        "--no-repeat-ngram", "3", "--no-consider-end", "--any-token", "Hello");
    check_exit(&c, 0);
    check_text(&c.out_text, "[0]\nGr\xc3\xbc\xc3\x9f\x1b[0m\n[1] score -1.250000\nzwei\n");
    child_deinit(&c);
    const struct wire_sampling_parameters *s = f->generate->sampling;
    assert_int_equal(s->strategy, WIRE_STRATEGY_BEAM);
    assert_int_equal(s->beam->num_beams, 4);
    assert_true(s->beam->has_length_penalty && s->beam->length_penalty == 0.5);
    assert_int_equal(s->beam->no_repeat_ngram_size, 3);
    assert_true(s->beam->has_consider_end && !s->beam->consider_end);
    assert_non_null(s->invalid_ids);
    assert_int_equal(s->invalid_ids->n_ranges, 0);
}

static void test_generate_json(void **state)
{
    struct child c = {0};
    RUN(&c, NULL, "generate", "--json", "Hello");
    check_exit(&c, 0);
    json_t *root = parse(&c);
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(choice, "text")),
                        "Gr\xc3\xbc\xc3\x9f\x1b[0m");
    assert_string_equal(json_string_value(json_object_get(choice, "finish_reason")), "stop");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(choice, "tokens"), 0)), 100);
    assert_string_equal(json_string_value(json_object_get(root, "seed")), "77");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(root, "usage"), "completion_tokens")),
        9);
    json_decref(root);
    child_deinit(&c);
}

static void test_interrupt_cancels(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {.interrupt_at = "Gr\xc3\xbc"};
    int ended = f->n_ended;
    RUN(&c, NULL, "generate", "forever");
    check_exit(&c, 1);
    check_contains(&c.err_text, "glmd generate: cancelled");
    check_text(&c.out_text, "Gr\xc3\xbc\n");
    child_deinit(&c);
    while (f->n_ended == ended) /* the server learns of it */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->last_end, RPC_CANCELLED);
}

static void test_timeout(void **state)
{
    struct child c = {0};
    RUN(&c, NULL, "generate", "--timeout", "0.2", "forever");
    check_exit(&c, 1);
    check_contains(&c.err_text, "within 0.2 s");
    child_deinit(&c);
}

static void test_refusal(void **state)
{
    struct child c = {0};
    RUN(&c, NULL, "fill", "refuse");
    check_exit(&c, 1);
    check_text(&c.err_text, "glmd fill: INVALID_ARGUMENT: the text has 9 tokens, the limit is 8\n");
    child_deinit(&c);
}

static void test_nobody_answers(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    char address[sizeof f->address];
    memcpy(address, f->address, sizeof address);
    snprintf(f->address, sizeof f->address, "unix:/nonexistent/glmd.sock");
    RUN(&c, NULL, "fill", "text");
    memcpy(f->address, address, sizeof address);
    check_exit(&c, 3);
    check_contains(&c.err_text, "no coordinator answers at unix:/nonexistent/glmd.sock");
    check_contains(&c.err_text, "glmd-coordinator");
    child_deinit(&c);
}

static void test_fill(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "fill", "--max-length", "99", "the [MASK] sat");
    check_exit(&c, 0);
    check_text(&c.out_text, "the cat sat\n");
    check_text(&c.err_text, ""); /* no terminal: blanks are not shown */
    assert_string_equal(f->fill->text, "the [MASK] sat");
    assert_int_equal(f->fill->max_length, 99);
    child_deinit(&c);

    c = (struct child){0};
    RUN(&c, NULL, "fill", "--all", "--beams", "2", "the [MASK] sat");
    check_exit(&c, 0);
    check_text(&c.out_text, "[0] score -0.500000\nthe cat sat\n[1] score -1.500000\nthe dog sat\n");
    child_deinit(&c);

    c = (struct child){0};
    RUN(&c, NULL, "fill", "--json", "--calls", "the [MASK] sat");
    check_exit(&c, 0);
    json_t *root = parse(&c);
    json_t *call = json_array_get(json_object_get(root, "calls"), 0);
    assert_int_equal(json_array_size(json_object_get(call, "input")), 2);
    assert_int_equal(json_array_size(json_object_get(root, "results")), 2);
    assert_true(f->fill->return_token_ids);
    json_decref(root);
    child_deinit(&c);
}

static void test_score(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "score", "--choice", "yes", "--choice", "no", "--tokens", "--gmask", "Is it?");
    check_exit(&c, 0);
    check_text(&c.out_text, "     -3.00000  yes  (-1.0000 -2.0000)\n"
                            "*    -1.00000  no  (-1.0000)\n");
    assert_int_equal(f->score->n_choices, 2);
    assert_string_equal(f->score->choices[1], "no");
    assert_true(f->score->use_gmask);
    child_deinit(&c);

    c = (struct child){0};
    RUN(&c, NULL, "score", "--json", "--choice", "yes", "--choice", "no", "Is it?");
    check_exit(&c, 0);
    json_t *root = parse(&c);
    assert_int_equal(json_integer_value(json_object_get(root, "best")), 1);
    json_decref(root);
    child_deinit(&c);

    c = (struct child){0}; /* an answer that does not fit the question */
    RUN(&c, NULL, "score", "--choice", "a", "--choice", "b", "--choice", "c", "Is it?");
    check_exit(&c, 1);
    check_contains(&c.err_text, "scored 2 choices of 3");
    child_deinit(&c);
}

static void test_status(void **state)
{
    struct fake_coordinator *f = *state;
    struct child c = {0};
    RUN(&c, NULL, "status", NULL);
    check_exit(&c, 0);
    check_contains(&c.out_text, "glmd-coordinator 1.2.3, up 1h 2m");
    check_contains(&c.out_text, "group g0  ready  epoch 4  TP 2");
    check_contains(&c.out_text, "decode 12.5 tokens/s");
    check_contains(&c.out_text, "3.0 GiB");
    check_contains(&c.out_text, "1.500 s");
    child_deinit(&c);

    f->degraded = true;
    c = (struct child){0};
    RUN(&c, NULL, "status", NULL);
    check_exit(&c, 3);
    check_contains(&c.out_text, "degraded");
    check_contains(&c.out_text, "loaded 25 %");
    check_contains(&c.out_text, "last error: connection lost");
    child_deinit(&c);

    c = (struct child){0};
    RUN(&c, NULL, "status", "--json");
    check_exit(&c, 3);
    json_t *root = parse(&c);
    assert_true(json_is_false(json_object_get(root, "healthy")));
    json_t *group = json_array_get(json_object_get(root, "groups"), 0);
    assert_int_equal(json_array_size(json_object_get(group, "ranks")), 2);
    json_decref(root);
    child_deinit(&c);
    f->degraded = false;
}

static void test_watch(void **state)
{
    struct child c = {.interrupt_at = "group g0"};
    int calls = ((struct fake_coordinator *)*state)->n_calls;
    RUN(&c, NULL, "status", "--watch", "0.1");
    if (c.exit_code != -1) /* ended by the signal between two screens, or cancelled in a call */
        check_exit(&c, 1);
    assert_true(((struct fake_coordinator *)*state)->n_calls > calls);
    child_deinit(&c);
}

static void test_wrong_command_lines(void **state)
{
    static const struct {
        const char *verb, *args[4], *message;
    } cases[] = {
        {"generate", {"--temperature", "warm", "x"}, "expected a number from 0 to 10"},
        {"generate", {"--max-tokens", "0", "x"}, "--max-tokens 0: expected a whole number"},
        {"generate", {"--max-tokens", "5x", "x"}, "--max-tokens 5x"},
        {"generate", {"--n", "65", "x"}, "from 1 to 64"},
        {"generate", {"--logit-bias", "5", "x"}, "expected ID=BIAS"},
        {"generate", {"--length-penalty", "1", "x"}, "need --beams"},
        {"generate", {"--beams=2", "--stop=a", "x"}, "do not go with --beams"},
        {"generate", {"--stop", "", "x"}, "--stop: expected 1 to 256 bytes"},
        {"generate", {"--stop-id", "-1", "x"}, "--stop-id -1: expected a whole number"},
        {"generate", {"--repetition-penalty", "0", "x"}, "expected a number from 0.01 to 100"},
        {"generate", {"--prompt-only", "x"}, "needs --prompt-logprobs"},
        {"fill", {"--priority", "101", "x"}, "--priority 101: expected a whole number from -100"},
        {"score", {"--priority", "x", "y"}, "--priority x: expected a whole"},
        {"generate", {"two", "words"}, "put it in quotes"},
        {"generate", {"--nonsense"}, "nonsense"},
        {"generate", {""}, "the text is empty"},
        {"fill", {"--calls", "x"}, "--calls needs --json"},
        {"score", {"x"}, "--choice TEXT is missing"},
        {"status", {"x"}, "unexpected argument \"x\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c = {0};
        child_run(*state, &c, NULL, cases[i].verb, cases[i].args);
        check_exit(&c, 2);
        check_contains(&c.err_text, cases[i].message);
        check_text(&c.out_text, "");
        child_deinit(&c);
    }
}

static void test_help(void **state)
{
    static const char *const verbs[] = {"fill", "generate", "score", "status"};
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        struct child c = {0};
        RUN(&c, NULL, verbs[i], "--help");
        check_exit(&c, 0);
        check_contains(&c.out_text, "usage: glmd");
        check_contains(&c.out_text, "--coordinator");
        child_deinit(&c);
    }
}

static int setup(void **state)
{
    static struct fake_coordinator fake;
    fake_coordinator_start(&fake);
    *state = &fake;
    return 0;
}

static int teardown(void **state)
{
    fake_coordinator_stop(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_generate_ends_and_penalties),
        cmocka_unit_test(test_generate_prompt_logprobs),
        cmocka_unit_test(test_generate_reads_standard_input),
        cmocka_unit_test(test_generate_choices),
        cmocka_unit_test(test_generate_json),
        cmocka_unit_test(test_interrupt_cancels),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_refusal),
        cmocka_unit_test(test_nobody_answers),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_watch),
        cmocka_unit_test(test_wrong_command_lines),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
