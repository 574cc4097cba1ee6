/* sched_fixture.c: see sched_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "reference.h"
#include "sched_fixture.h"

uint64_t fixture_random;

uint32_t rnd(uint32_t n)
{
    fixture_random = fixture_random * 6364136223846793005u + 1442695040888963407u;
    return n ? (uint32_t)(fixture_random >> 33) % n : 0;
}

static int32_t random_text_token(void)
{
    return (int32_t)(40 + rnd(470));
}

/* The front's part: an output whose text holds a stop text ends in front of it. */
static int find_stop_texts(void *context, struct request *r, uint32_t output)
{
    (void)context;
    struct output *o = &r->outputs[output];
    size_t last = o->tokens.n - 1;
    assert_int_equal(o->stop, -1);
    for (size_t k = 0; k + 1 < o->tokens.n; k++)
        assert_false(reference_is_stop_text(r, o->tokens.ids[k]));
    if (o->end_token < 0 && reference_is_stop_text(r, o->tokens.ids[last]))
        output_stop(o, last, 0);
    return 0;
}

static void random_params(struct request *r)
{
    struct request_params *p = &r->params;
    *p = (struct request_params){.temperature = 1, .top_p = 0.7f, .n_choices = 1};
    p->seed = rnd(1000);
    p->beam = r->kind != REQUEST_SCORE && rnd(3) == 0;
    p->top_k = rnd(3) == 0;
    p->min_tokens = rnd(4) == 0 ? rnd(12) : 0;
    p->ignore_end = rnd(6) == 0;
    p->n_top_logprobs = rnd(5) == 0 ? rnd(4) : 0;
    p->max_new = 1 + rnd(rnd(4) ? 12 : 60);
    p->n_beams = p->beam ? 1 + rnd(6) : 0;
    p->length_penalty = 1;
    p->no_repeat_ngram = rnd(2) * 3;
    p->consider_end = rnd(4) != 0;
    if (!p->beam && r->kind == REQUEST_GENERATE && rnd(3) == 0)
        p->n_choices = 1 + rnd(6);
    if (rnd(2)) { /* end tokens are likely: fake_engine.c's pick */
        p->bias = calloc(1, sizeof *p->bias);
        p->bias[0] =
            (struct plan_bias){rnd(2) ? golden_arch.tokens.eop : golden_arch.tokens.eos, 3};
        p->n_bias = 1;
    }
    if (rnd(5) == 0)
        p->frequency_penalty = 0.5f;
    if (rnd(6) == 0)
        p->repetition_penalty = rnd(2) ? 1.3f : 1;
    if (rnd(4) == 0) { /* 64 ids, so that some are met; end tokens among them */
        p->n_stop_ids = 1 + rnd(3);
        p->stop_ids = calloc(p->n_stop_ids, sizeof *p->stop_ids);
        for (uint32_t i = 0; i != p->n_stop_ids; i++)
            p->stop_ids[i] = rnd(4) ? 40 + (int32_t)rnd(30) : golden_arch.tokens.eop;
    }
    if (r->kind != REQUEST_SCORE && !p->beam && rnd(4) == 0)
        r->watch = find_stop_texts;
    p->forbidden = calloc(2, sizeof *p->forbidden);
    p->forbidden[0] = (struct plan_range){0, 32};
    p->forbidden[1] = (struct plan_range){512, 517};
    p->n_forbidden = 2;
}

/* Ids of one of a few texts, which begin alike. */
static void known_ids(struct token_list *l)
{
    uint32_t text = rnd(5), n = 30 + 9 * text;
    for (uint32_t i = 0; i != n; i++)
        token_list_append(l, (int32_t)(40 + (i * 37 + (i > 20 ? text : 0)) % 470));
}

static void random_ids(struct token_list *l, uint32_t n)
{
    for (uint32_t i = 0; i != n; i++)
        token_list_append(l, random_text_token());
}

struct request *fixture_random_request(void)
{
    static const int32_t masks[] = {512, 514, 513};
    static const enum mask_kind kinds[] = {MASK_MASK, MASK_SMASK, MASK_GMASK};
    struct request *r = request_new((enum request_kind)rnd(3));
    random_params(r);
    struct err e = ERR_INIT;
    if (r->kind == REQUEST_GENERATE) {
        struct token_list ids = {0};
        bool known = rnd(2);
        if (known)
            known_ids(&ids);
        else
            random_ids(&ids, 1 + rnd(60));
        if (!known && rnd(2))
            ids.ids[rnd((uint32_t)ids.n)] = 512;
        int code = rnd(4)
                       ? prompt_from_ids(&golden_arch, ids.ids, ids.n, 256, &r->prompt, &e)
                       : prompt_unidirectional(&golden_arch, ids.ids, ids.n, 256, &r->prompt, &e);
        assert_int_equal(code, 0);
        token_list_deinit(&ids);
    } else if (r->kind == REQUEST_FILL) {
        uint32_t kind = rnd(3), n_masks = 1 + rnd(4);
        if (rnd(3) == 0) {
            known_ids(&r->ids);
            n_masks = 1;
        }
        for (uint32_t i = 0; i != n_masks; i++) {
            random_ids(&r->ids, rnd(12));
            token_list_append(&r->ids, masks[kind]);
        }
        random_ids(&r->ids, rnd(10));
        r->mask = kinds[kind];
        r->params.max_rounds = 16;
        assert_int_equal(prompt_next(&golden_arch, &r->ids, r->mask, &r->prompt, &e), 0);
        r->params.max_length = (uint32_t)r->prompt.ids.n + 1 + rnd(40);
    } else {
        struct token_list ids = {0};
        if (rnd(2))
            known_ids(&ids);
        else
            random_ids(&ids, rnd(50));
        enum mask_kind kind = rnd(2) ? MASK_GMASK : MASK_MASK;
        token_list_append(&ids, kind == MASK_GMASK ? 513 : 512);
        random_ids(&ids, rnd(5));
        assert_int_equal(prompt_next(&golden_arch, &ids, kind, &r->prompt, &e), 0);
        token_list_deinit(&ids);
        r->n_choices_scored = 1 + rnd(12);
        r->choices = calloc(r->n_choices_scored, sizeof *r->choices);
        for (uint32_t i = 0; i != r->n_choices_scored; i++)
            random_ids(&r->choices[i], 1 + rnd(20));
    }
    return r;
}

struct request *fixture_request(uint32_t n_prompt, uint32_t max_new)
{
    struct request *r = request_new(REQUEST_GENERATE);
    struct token_list ids = {0};
    for (uint32_t i = 0; i + 2 < n_prompt; i++)
        token_list_append(&ids, 100);
    struct err e = ERR_INIT;
    assert_int_equal(prompt_from_ids(&golden_arch, ids.ids, ids.n, 256, &r->prompt, &e), 0);
    token_list_deinit(&ids);
    assert_int_equal(r->prompt.ids.n, n_prompt);
    r->params = (struct request_params){
        .temperature = 1, .top_k = 1, .n_choices = 1, .max_new = max_new, .ignore_end = true};
    return r;
}

/* ---- schedulers ---- */

const struct plan_limits fixture_small = {
    .n_slots = 4,
    .n_blocks = 32,
    .max_tokens = 256,
    .max_seq = 256,
    .vocab = 640,
    .n_layers = 3,
};

struct sched *fixture_sched(const struct plan_limits *limits)
{
    struct sched_config config = {
        .arch = &golden_arch, .max_queue = 2, .prefill_budget_ns = NSEC_PER_SEC};
    struct sched *s;
    assert_int_equal(sched_new(&config, &s), 0);
    if (limits) {
        struct err e = ERR_INIT;
        assert_int_equal(sched_attach(s, 0, limits, 1, 1, &e), 0);
    }
    return s;
}

static struct request *submitted[64];
static uint32_t n_submitted;

/* The request is freed by finish_all. */
int fixture_submit(struct sched *s, struct request *r, struct err *e)
{
    int code = sched_submit(s, r, e);
    if (code == 0)
        submitted[n_submitted++] = r;
    return code;
}

void fixture_finish(struct sched *s)
{
    for (uint32_t i = 0; i != n_submitted; i++) {
        sched_end(s, submitted[i], RPC_CANCELLED, "end of test");
    }
    while (sched_next_touched(s))
        ;
    while (n_submitted)
        request_free(submitted[--n_submitted]);
    assert_true(sched_consistent(s));
    sched_free(s);
}

void fixture_step(struct sched *s, uint32_t group, struct fake_engine *f, int64_t now)
{
    const struct plan *p;
    struct err e = ERR_INIT;
    assert_true(sched_plan(s, group, now, &p));
    if (sched_commit(s, group, fake_engine_step(f, p), now + 1, &e) < 0)
        fail_msg("%s", e.message);
}

void fixture_expect(struct request *r, const char *expected)
{
    struct buf found = {0};
    reference_describe(r, &found);
    assert_int_equal(r->state, REQUEST_DONE);
    assert_int_equal(r->status, RPC_OK);
    assert_string_equal(found.data, expected);
    buf_deinit(&found);
}
