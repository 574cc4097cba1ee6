/* test_stream.c: what a client has read when its stream ends equals the whole output, however the
 * messages were cut. Requests run on the scheduler with the hash engine and a real tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "golden_model.h"
#include "stream_rig.h"

static void expect_decoded(const struct token_list *tokens, const struct buf *found)
{
    struct buf whole = {0};
    assert_int_equal(stream_decode(tokenizer, tokens->ids, tokens->n, &whole), 0);
    assert_string_equal(found->data ? found->data : "", whole.data);
    buf_deinit(&whole);
}

static void test_generate(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed != 60; seed++) {
        struct request *r = rig_request(tokenizer, REQUEST_GENERATE, "The river", seed);
        struct reader x;
        r->params.n_choices = 1 + (uint32_t)seed % 4;
        r->params.ignore_end = seed % 3 == 0;
        if (seed % 2) {
            r->params.logprobs = true;
            r->params.n_top_logprobs = 2;
        }
        rig_run(tokenizer, r, true, 1 + (unsigned)seed % 5, &x);
        size_t n_tokens = 0;
        for (uint32_t i = 0; i != r->params.n_choices; i++) {
            const struct output *o = &r->outputs[i];
            expect_decoded(&o->tokens, &x.text[i]);
            assert_int_equal(x.tokens[i].n, o->tokens.n);
            if (o->tokens.n)
                assert_memory_equal(x.tokens[i].ids, o->tokens.ids, o->tokens.n * sizeof(int32_t));
            assert_int_equal(x.finish[i],
                             o->end_token >= 0 ? WIRE_FINISH_STOP : WIRE_FINISH_LENGTH);
            n_tokens += o->tokens.n;
        }
        assert_int_equal(x.n_logprobs, seed % 2 ? n_tokens : 0);
        assert_int_equal(x.n_seeds, 1);
        assert_int_equal(x.n_usages, 1);
        reader_deinit(&x);
        request_free(r);
    }
}

static void test_ids_without_text_are_left_out(void **state)
{
    (void)state;
    struct request *r = rig_request(tokenizer, REQUEST_GENERATE, "The river", 3);
    r->params.n_forbidden = 0; /* the client wants everything: image ids, padding rows */
    r->params.ignore_end = true;
    struct reader x;
    rig_run(tokenizer, r, true, 1, &x);
    assert_int_equal(x.tokens[0].n, 60);
    expect_decoded(&r->outputs[0].tokens, &x.text[0]);
    reader_deinit(&x);
    request_free(r);
}

static void test_fill(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed != 40; seed++) {
        struct request *r =
            rig_request(tokenizer, REQUEST_FILL, "The [MASK] river [MASK] and the [MASK].", seed);
        r->params.beam = seed % 4 == 3;
        r->params.n_beams = r->params.beam ? 3 : 0;
        struct reader x;
        rig_run(tokenizer, r, true, 1 + (unsigned)seed % 3, &x);
        assert_int_equal(r->n_rounds, 3);
        assert_int_equal(x.n_usages, 1);
        if (!x.fill) {
            fail_msg("seed %llu: no message", (unsigned long long)seed);
            return;
        }
        assert_int_equal(x.fill->n_results, r->rounds[2].n_outputs);
        assert_int_equal(x.fill->n_calls, 3);
        const struct wire_filled_text *best = &x.fill->results[0];
        assert_int_equal(best->n_blanks, 3);
        for (uint32_t k = 0; k != 3; k++) {
            expect_decoded(&r->rounds[k].outputs[0], &x.text[k]);
            assert_string_equal(x.text[k].data ? x.text[k].data : "", best->blanks[k]);
            assert_int_not_equal(x.finish[k], WIRE_FINISH_UNSPECIFIED);
            const struct wire_fill_call *call = &x.fill->calls[k];
            assert_int_equal(call->n_input, r->rounds[k].input.n);
            size_t n_new = r->rounds[k].outputs[0].n + (r->rounds[k].end_tokens[0] >= 0);
            assert_int_equal(call->outputs[0].n_ids, call->n_input + n_new);
        }
        struct buf whole = {0}; /* r->ids: filled by the best output of every round */
        size_t n = r->ids.n - (r->ids.ids[r->ids.n - 1] == golden_arch.tokens.eos);
        assert_int_equal(stream_decode(tokenizer, r->ids.ids, n, &whole), 0);
        assert_string_equal(best->text, whole.data);
        buf_deinit(&whole);
        reader_deinit(&x);
        request_free(r);
    }
}

static void test_score(void **state)
{
    (void)state;
    struct request *r = rig_request(tokenizer, REQUEST_SCORE, "The [MASK] river", 1);
    r->n_choices_scored = 5;
    r->choices = calloc(5, sizeof *r->choices);
    for (int i = 0; i != 5; i++) {
        for (int k = 0; k <= i; k++)
            token_list_append(&r->choices[i], 100 + 7 * i + k);
    }
    struct reader x;
    rig_run(tokenizer, r, false, 1, &x);
    assert_int_equal(x.n_messages, 1);
    assert_int_equal(x.scored->n_choices, 5);
    for (uint32_t i = 0; i != 5; i++) {
        assert_int_equal(x.scored->choices[i].n_token_logprobs, i + 1);
        assert_true(x.scored->choices[i].logprob <= x.scored->choices[x.scored->best].logprob);
    }
    reader_deinit(&x);
    request_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_ids_without_text_are_left_out),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_score),
    };
    return cmocka_run_group_tests(tests, golden_set_up, golden_tear_down);
}
