/* stream_rig.c: see stream_rig.h. */
#include "stream_rig.h"

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
#include "fake_engine.h"
#include "golden_arch.h"

void reader_deinit(struct reader *x)
{
    for (size_t i = 0; i != ARRAY_LEN(x->text); i++) {
        buf_deinit(&x->text[i]);
        token_list_deinit(&x->tokens[i]);
    }
    wire_free_fill_response(x->fill);
    wire_free_score_response(x->scored);
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

static void read_end(struct reader *x, uint32_t index, const char *stop, int32_t stop_token,
                     double score)
{
    assert_true(strlen(stop) < sizeof x->stop[index]);
    memcpy(x->stop[index], stop, strlen(stop) + 1);
    x->stop_token[index] = stop_token;
    x->score[index] = score;
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
            if (d->finish_reason)
                read_end(x, d->index, d->stop, d->has_stop_token ? d->stop_token : -1, d->score);
            for (uint32_t k = 0; k != d->n_logprobs; k++)
                assert_int_equal(d->logprobs[k].n_top, 2);
        }
        x->n_seeds += w->has_seed;
        x->n_usages += w->usage != NULL;
        if (w->usage)
            x->usage = *w->usage;
        wire_free_generate_response(w);
    } else if (kind == REQUEST_FILL) {
        wire_free_fill_response(x->fill);
        assert_int_equal(wire_unpack_fill_response(data, bytes->size, &x->fill, &e), 0);
        for (uint32_t i = 0; i != x->fill->n_blanks; i++) {
            const struct wire_blank_delta *d = &x->fill->blanks[i];
            read_delta(x, d->index, d->text, d->tokens, d->n_tokens, d->finish_reason);
            if (d->finish_reason)
                read_end(x, d->index, d->stop, d->has_stop_token ? d->stop_token : -1, 0);
        }
        x->n_seeds += x->fill->has_seed;
        x->n_usages += x->fill->usage != NULL;
    } else {
        assert_int_equal(wire_unpack_score_response(data, bytes->size, &x->scored, &e), 0);
        x->n_usages += x->scored->usage != NULL;
    }
}

void rig_run(const struct tokenizer *tokenizer, struct request *r, bool return_ids, unsigned stride,
             struct reader *x)
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
    assert_int_equal(sched_attach(s, 0, &limits, 1, 1, &e), 0);
    assert_int_equal(stream_new(tokenizer, &golden_arch, r, return_ids, &stream), 0);
    assert_int_equal(sched_submit(s, r, &e), 0);
    const struct plan *p;
    for (unsigned n = 1; sched_plan(s, 0, (int64_t)n, &p); n++) {
        assert_int_equal(sched_commit(s, 0, fake_engine_step(engine, p), (int64_t)n, &e), 0);
        if (n % stride && r->state != REQUEST_DONE)
            continue;
        struct buf out = {0};
        int code = stream_next(stream, r, stream_pack, &out);
        assert_true(code >= 0);
        if (code == 1)
            read_message(x, r->kind, &out);
        buf_deinit(&out);
    }
    assert_int_equal(r->state, REQUEST_DONE);
    while (sched_next_touched(s))
        ;
    stream_free(stream);
    sched_detach(s, 0, "end");
    sched_free(s);
    fake_engine_free(engine);
}

struct request *rig_request(const struct tokenizer *tokenizer, enum request_kind kind,
                            const char *text, uint64_t seed)
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
