/* test_stream.c: what a client has read when its stream ends equals the whole output, however the
 * messages were cut. Requests run on the scheduler with the hash engine and a real tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "coordinator/stream.h"
#include "fake_engine.h"
#include "golden_model.h"
#include "proto/rpc/wire_inference.h"

static struct tokenizer *tokenizer;

static int set_up(void **state)
{
    (void)state;
    tokenizer = golden_tokenizer();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_close(tokenizer);
    return 0;
}

/* What a client gathers. */
struct reader {
    struct buf text[16]; /* by choice or blank */
    struct token_list tokens[16];
    uint32_t n_logprobs;
    uint32_t n_messages, n_seeds, n_usages;
    enum wire_finish_reason finish[16];
    struct wire_fill_response *fill; /* the last message */
    struct wire_score_response *score;
};

static void reader_deinit(struct reader *x)
{
    for (size_t i = 0; i != ARRAY_LEN(x->text); i++) {
        buf_deinit(&x->text[i]);
        token_list_deinit(&x->tokens[i]);
    }
    wire_free_fill_response(x->fill);
    wire_free_score_response(x->score);
}

static void read_delta(struct reader *x, uint32_t index, const char *text, const int32_t *tokens,
                       uint32_t n_tokens, enum wire_finish_reason finish)
{
    assert_true(index < 16);
    assert_int_equal(x->finish[index], WIRE_FINISH_UNSPECIFIED); /* nothing behind the end */
    assert_int_equal(utf8_check(text, strlen(text)), strlen(text));
    buf_append_str(&x->text[index], text);
    token_list_extend(&x->tokens[index], tokens, n_tokens);
    x->finish[index] = finish;
}

static void read_message(struct reader *x, enum request_kind kind, const struct buf *bytes)
{
    struct err e = ERR_INIT;
    const uint8_t *data = (const uint8_t *)bytes->data;
    x->n_messages++;
    if (kind == REQUEST_GENERATE) {
        struct wire_generate_response *w;
        assert_int_equal(wire_unpack_generate_response(data, bytes->size, &w, &e), 0);
        for (uint32_t i = 0; i != w->n_choices; i++) {
            const struct wire_choice_delta *d = &w->choices[i];
            read_delta(x, d->index, d->text, d->tokens, d->n_tokens, d->finish_reason);
            x->n_logprobs += d->n_logprobs;
            for (uint32_t k = 0; k != d->n_logprobs; k++)
                assert_int_equal(d->logprobs[k].n_top, 2);
        }
        x->n_seeds += w->has_seed;
        x->n_usages += w->usage != NULL;
        wire_free_generate_response(w);
    } else if (kind == REQUEST_FILL) {
        wire_free_fill_response(x->fill);
        assert_int_equal(wire_unpack_fill_response(data, bytes->size, &x->fill, &e), 0);
        for (uint32_t i = 0; i != x->fill->n_blanks; i++) {
            const struct wire_blank_delta *d = &x->fill->blanks[i];
            read_delta(x, d->index, d->text, d->tokens, d->n_tokens, d->finish_reason);
        }
        x->n_seeds += x->fill->has_seed;
        x->n_usages += x->fill->usage != NULL;
    } else {
        assert_int_equal(wire_unpack_score_response(data, bytes->size, &x->score, &e), 0);
        x->n_usages += x->score->usage != NULL;
    }
}

/* Runs the request to its end; looks for news after every `stride` steps. */
static void run(struct request *r, bool return_ids, unsigned stride, struct reader *x)
{
    static const struct plan_limits limits = {.n_slots = 8,
                                              .n_blocks = 128,
                                              .max_tokens = 256,
                                              .max_seq = 256,
                                              .vocab = 640,
                                              .n_top_logprobs = 20,
                                              .n_layers = 3};
    *x = (struct reader){0};
    struct sched_config config = {.arch = &golden_arch, .max_queue = 4};
    struct sched *s;
    struct stream *stream;
    struct err e = ERR_INIT;
    struct fake_engine *engine = fake_engine_new(&limits);
    assert_int_equal(sched_new(&config, &s), 0);
    assert_int_equal(sched_attach(s, &limits, 1, &e), 0);
    assert_int_equal(stream_new(tokenizer, &golden_arch, r, return_ids, &stream), 0);
    assert_int_equal(sched_submit(s, r, &e), 0);
    const struct plan *p;
    for (unsigned n = 1; sched_plan(s, (int64_t)n, &p); n++) {
        assert_int_equal(sched_commit(s, fake_engine_step(engine, p), (int64_t)n, &e), 0);
        if (n % stride && r->state != REQUEST_DONE)
            continue;
        struct buf out = {0};
        int code = stream_next(stream, r, &out);
        assert_true(code >= 0);
        if (code == 1)
            read_message(x, r->kind, &out);
        buf_deinit(&out);
    }
    assert_int_equal(r->state, REQUEST_DONE);
    while (sched_next_touched(s))
        ;
    stream_free(stream);
    sched_detach(s, "end");
    sched_free(s);
    fake_engine_free(engine);
}

static struct request *new_request(enum request_kind kind, const char *text, uint64_t seed)
{
    static const struct plan_range forbidden[] = {{0, 34}, {35, 36}, {512, 517}, {518, 640}};
    struct request *r = request_new(kind);
    struct err e = ERR_INIT;
    r->params = (struct request_params){
        .temperature = 1, .seed = seed, .n_choices = 1, .max_new = 60, .max_length = 120};
    r->params.max_rounds = 8;
    r->params.length_penalty = 1;
    r->params.consider_end = true;
    r->params.forbidden = malloc(sizeof forbidden);
    memcpy(r->params.forbidden, forbidden, sizeof forbidden);
    r->params.n_forbidden = ARRAY_LEN(forbidden);
    assert_int_equal(prompt_encode_text(tokenizer, &golden_arch, text, strlen(text), 250, 8,
                                        &r->ids, &r->mask, &e),
                     0);
    assert_int_equal(prompt_next(&golden_arch, &r->ids, r->mask, &r->prompt, &e), 0);
    return r;
}

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
        struct request *r = new_request(REQUEST_GENERATE, "The river", seed);
        struct reader x;
        r->params.n_choices = 1 + (uint32_t)seed % 4;
        r->params.ignore_end = seed % 3 == 0;
        if (seed % 2) {
            r->params.logprobs = true;
            r->params.n_top_logprobs = 2;
        }
        run(r, true, 1 + (unsigned)seed % 5, &x);
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
    struct request *r = new_request(REQUEST_GENERATE, "The river", 3);
    r->params.n_forbidden = 0; /* the client wants everything: image ids, padding rows */
    r->params.ignore_end = true;
    struct reader x;
    run(r, true, 1, &x);
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
            new_request(REQUEST_FILL, "The [MASK] river [MASK] and the [MASK].", seed);
        r->params.beam = seed % 4 == 3;
        r->params.n_beams = r->params.beam ? 3 : 0;
        struct reader x;
        run(r, true, 1 + (unsigned)seed % 3, &x);
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
    struct request *r = new_request(REQUEST_SCORE, "The [MASK] river", 1);
    r->n_choices_scored = 5;
    r->choices = calloc(5, sizeof *r->choices);
    for (int i = 0; i != 5; i++) {
        for (int k = 0; k <= i; k++)
            token_list_append(&r->choices[i], 100 + 7 * i + k);
    }
    struct reader x;
    run(r, false, 1, &x);
    assert_int_equal(x.n_messages, 1);
    assert_int_equal(x.score->n_choices, 5);
    for (uint32_t i = 0; i != 5; i++) {
        assert_int_equal(x.score->choices[i].n_token_logprobs, i + 1);
        assert_true(x.score->choices[i].logprob <= x.score->choices[x.score->best].logprob);
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
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
