/* test_sched.c: the scheduler against an engine whose model is a hash: every request gets exactly
 * what it would get alone, whatever else runs, and accounts balance after every call. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"

/* The sizes of the golden model. */
static const struct arch arch = {
    .name = "test",
    .n_layers = 3,
    .hidden = 64,
    .n_heads = 4,
    .vocab = 640,
    .max_seq = 256,
    .tokens = {.mask = 512,
               .gmask = 513,
               .smask = 514,
               .eod = 515,
               .sop = 516,
               .eop = 517,
               .enc = 518,
               .dblock = 519,
               .eos = 34,
               .n_image_tokens = 32,
               .special_base = 512},
};

static uint64_t random_state;

static uint32_t rnd(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return n ? (uint32_t)(random_state >> 33) % n : 0;
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
        p->bias[0] = (struct plan_bias){rnd(2) ? arch.tokens.eop : arch.tokens.eos, 3};
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
            p->stop_ids[i] = rnd(4) ? 40 + (int32_t)rnd(30) : arch.tokens.eop;
    }
    if (r->kind != REQUEST_SCORE && !p->beam && rnd(4) == 0)
        r->watch = find_stop_texts;
    p->forbidden = calloc(2, sizeof *p->forbidden);
    p->forbidden[0] = (struct plan_range){0, 32};
    p->forbidden[1] = (struct plan_range){512, 517};
    p->n_forbidden = 2;
}

static void random_ids(struct token_list *l, uint32_t n)
{
    for (uint32_t i = 0; i != n; i++)
        token_list_append(l, random_text_token());
}

static struct request *random_request(void)
{
    static const int32_t masks[] = {512, 514, 513};
    static const enum mask_kind kinds[] = {MASK_MASK, MASK_SMASK, MASK_GMASK};
    struct request *r = request_new((enum request_kind)rnd(3));
    random_params(r);
    struct err e = ERR_INIT;
    if (r->kind == REQUEST_GENERATE) {
        struct token_list ids = {0};
        random_ids(&ids, 1 + rnd(60));
        if (rnd(2))
            ids.ids[rnd((uint32_t)ids.n)] = 512;
        int code = rnd(4) ? prompt_from_ids(&arch, ids.ids, ids.n, 256, &r->prompt, &e)
                          : prompt_unidirectional(&arch, ids.ids, ids.n, 256, &r->prompt, &e);
        assert_int_equal(code, 0);
        token_list_deinit(&ids);
    } else if (r->kind == REQUEST_FILL) {
        uint32_t kind = rnd(3), n_masks = 1 + rnd(4);
        for (uint32_t i = 0; i != n_masks; i++) {
            random_ids(&r->ids, rnd(12));
            token_list_append(&r->ids, masks[kind]);
        }
        random_ids(&r->ids, rnd(10));
        r->mask = kinds[kind];
        r->params.max_rounds = 16;
        assert_int_equal(prompt_next(&arch, &r->ids, r->mask, &r->prompt, &e), 0);
        r->params.max_length = (uint32_t)r->prompt.ids.n + 1 + rnd(40);
    } else {
        struct token_list ids = {0};
        random_ids(&ids, rnd(50));
        enum mask_kind kind = rnd(2) ? MASK_GMASK : MASK_MASK;
        token_list_append(&ids, kind == MASK_GMASK ? 513 : 512);
        random_ids(&ids, rnd(5));
        assert_int_equal(prompt_next(&arch, &ids, kind, &r->prompt, &e), 0);
        token_list_deinit(&ids);
        r->n_choices_scored = 1 + rnd(12);
        r->choices = calloc(r->n_choices_scored, sizeof *r->choices);
        for (uint32_t i = 0; i != r->n_choices_scored; i++)
            random_ids(&r->choices[i], 1 + rnd(20));
    }
    return r;
}

/* ---- one run ---- */

enum { MAX_LIVE = 40 };

struct expectation {
    struct request *request;
    struct buf text;
};

struct run {
    struct sched *s;
    struct fake_engine *engine;
    struct plan_limits limits;
    uint64_t epoch;
    int64_t now;
    struct expectation live[MAX_LIVE];
    uint32_t n_live;
    const struct step_result *pending[SCHED_MAX_IN_FLIGHT];
    uint32_t n_pending, max_pending;
    uint32_t n_ok, n_ended;
    uint64_t trace; /* hash of every plan */
    uint64_t seed;
};

static void check(struct run *t, bool ok, const char *what)
{
    if (ok)
        return;
    fail_msg("seed %llu: %s", (unsigned long long)t->seed, what);
}

/* Usage counts what the client can see, end tokens, and tokens that completed a stop text. */
static void check_usage(struct run *t, const struct request *r)
{
    uint64_t n = 0;
    if (r->kind != REQUEST_GENERATE || r->params.beam)
        return;
    for (uint32_t i = 0; i != r->n_outputs; i++)
        n += r->outputs[i].tokens.n + (r->outputs[i].end_token >= 0) + (r->outputs[i].stop >= 0);
    if (n != r->n_completion_tokens)
        fail_msg("seed %llu: %llu tokens, usage says %llu", (unsigned long long)t->seed,
                 (unsigned long long)n, (unsigned long long)r->n_completion_tokens);
}

static void collect(struct run *t)
{
    for (struct request *r; (r = sched_next_touched(t->s));) {
        if (r->state != REQUEST_DONE || r->touched)
            continue;
        check_usage(t, r);
        uint32_t i = 0;
        while (t->live[i].request != r)
            i++;
        if (r->status == RPC_OK) {
            struct buf found = {0};
            reference_describe(r, &found);
            if (strcmp(found.data, t->live[i].text.data) != 0)
                fail_msg(
                    "seed %llu request %llu kind %d beam %d choices %u\nexpected\n%s\nfound\n%s",
                    (unsigned long long)t->seed, (unsigned long long)r->id, (int)r->kind,
                    (int)r->params.beam, r->params.n_choices, t->live[i].text.data, found.data);
            buf_deinit(&found);
            t->n_ok++;
        } else {
            check(t,
                  r->status == RPC_CANCELLED || r->status == RPC_DEADLINE_EXCEEDED ||
                      r->status == RPC_UNAVAILABLE || r->status == RPC_INVALID_ARGUMENT,
                  r->message);
            t->n_ended++;
        }
        buf_deinit(&t->live[i].text);
        request_free(r);
        t->live[i] = t->live[--t->n_live];
    }
}

static void submit(struct run *t)
{
    if (t->n_live == MAX_LIVE)
        return;
    struct request *r = random_request();
    struct buf text = {0};
    reference_run(&arch, r, &text);
    if (rnd(10) == 0)
        r->deadline_ns = t->now + (int64_t)rnd(30) * NSEC_PER_MSEC;
    struct err e = ERR_INIT;
    int code = sched_submit(t->s, r, &e);
    if (code < 0) {
        check(t, code == -E2BIG || code == -ENOBUFS, e.message);
        check(t, e.message[0], "a refusal without a message");
        request_free(r);
        buf_deinit(&text);
        return;
    }
    t->live[t->n_live++] = (struct expectation){r, text};
}

static void attach(struct run *t)
{
    struct err e = ERR_INIT;
    if (sched_attach(t->s, &t->limits, ++t->epoch, &e) < 0)
        fail_msg("%s", e.message);
}

static bool plan(struct run *t)
{
    const struct plan *p;
    if (t->n_pending == t->max_pending || !sched_plan(t->s, t->now, &p))
        return false;
    const struct step_result *result = fake_engine_step(t->engine, p);
    t->trace = t->trace * 31 + result->state_hash;
    t->pending[t->n_pending++] = result;
    return true;
}

static bool commit(struct run *t)
{
    if (t->n_pending == 0)
        return false;
    struct err e = ERR_INIT;
    if (sched_commit(t->s, t->pending[0], t->now, &e) < 0)
        fail_msg("%s", e.message);
    t->n_pending--;
    memmove(t->pending, t->pending + 1, t->n_pending * sizeof t->pending[0]);
    return true;
}

static void random_action(struct run *t)
{
    uint32_t what = rnd(100);
    if (what < 12) {
        submit(t);
    } else if (what < 14 && t->n_live) {
        sched_end(t->s, t->live[rnd(t->n_live)].request, RPC_CANCELLED, "the client went away");
    } else if (what < 18 && t->n_live) {
        struct request *r = t->live[rnd(t->n_live)].request;
        sched_pause(t->s, r, !r->paused);
    } else if (what < 19 && rnd(6) == 0) {
        sched_detach(t->s, "a rank was lost");
        t->n_pending = 0;
        collect(t);
        check(t, sched_consistent(t->s), "accounts do not balance after a detach");
        attach(t);
    } else if (what < 60) {
        plan(t);
    } else {
        commit(t);
    }
    t->now += NSEC_PER_MSEC;
    sched_expire(t->s, t->now);
}

/* Runs until nothing is left: every request must end. */
static void drain(struct run *t)
{
    for (uint32_t i = 0; i != t->n_live; i++)
        sched_pause(t->s, t->live[i].request, false);
    uint32_t n_steps = 0;
    while (plan(t) || commit(t)) {
        collect(t);
        t->now += NSEC_PER_MSEC;
        check(t, ++n_steps < 100000, "requests do not end");
    }
    collect(t);
    check(t, t->n_live == 0, "requests are left, but there is nothing to plan");
    check(t, sched_n_requests(t->s) == 0, "the scheduler holds requests that have ended");
}

static uint64_t run_seed(uint64_t seed, uint32_t n_actions, uint32_t *ret_ok)
{
    struct run t = {.seed = seed, .now = NSEC_PER_SEC};
    random_state = seed * 2654435761u + 1;
    t.max_pending = 1 + rnd(2);
    t.limits = (struct plan_limits){
        .n_slots = 2 + rnd(14),
        .n_blocks = 20 + rnd(120),
        .max_tokens = 128 + rnd(128),
        .max_seq = arch.max_seq,
        .vocab = arch.vocab,
        .n_top_logprobs = 3,
        .n_layers = arch.n_layers,
    };
    struct sched_config config = {.arch = &arch, .max_queue = 8};
    assert_int_equal(sched_new(&config, &t.s), 0);
    t.engine = fake_engine_new(&t.limits);
    submit(&t); /* waits for the group */
    attach(&t);
    for (uint32_t i = 0; i != n_actions; i++) {
        random_action(&t);
        collect(&t);
        check(&t, sched_consistent(t.s), "accounts do not balance");
    }
    drain(&t);
    struct sched_stats stats;
    sched_stats(t.s, &stats);
    check(&t, stats.n_blocks_used == 0 && stats.n_slots_used == 0, "memory is left in use");
    sched_detach(t.s, "end");
    sched_free(t.s);
    fake_engine_free(t.engine);
    *ret_ok += t.n_ok;
    return t.trace;
}

static uint64_t first_seed(void)
{
    const char *text = getenv("GLMD_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

static void test_random_interleavings(void **state)
{
    (void)state;
    uint32_t n_ok = 0;
    for (uint64_t seed = first_seed(); seed != first_seed() + 300; seed++)
        run_seed(seed, 400, &n_ok);
    printf("300 seeds from %llu, %u requests equal to the reference\n",
           (unsigned long long)first_seed(), n_ok);
    assert_true(n_ok > 3000);
}

static void test_same_seed_same_plans(void **state)
{
    (void)state;
    uint32_t n_ok = 0;
    for (uint64_t seed = 1; seed != 20; seed++) {
        uint64_t a = run_seed(seed, 300, &n_ok), b = run_seed(seed, 300, &n_ok);
        if (a != b)
            fail_msg("seed %llu: traces %llx and %llx", (unsigned long long)seed,
                     (unsigned long long)a, (unsigned long long)b);
    }
}

/* ---- single cases ---- */

static struct sched *new_sched(const struct plan_limits *limits)
{
    struct sched_config config = {.arch = &arch, .max_queue = 2};
    struct sched *s;
    assert_int_equal(sched_new(&config, &s), 0);
    if (limits) {
        struct err e = ERR_INIT;
        assert_int_equal(sched_attach(s, limits, 1, &e), 0);
    }
    return s;
}

static struct request *plain_request(uint32_t n_prompt, uint32_t max_new)
{
    struct request *r = request_new(REQUEST_GENERATE);
    struct token_list ids = {0};
    for (uint32_t i = 0; i + 2 < n_prompt; i++)
        token_list_append(&ids, 100);
    struct err e = ERR_INIT;
    assert_int_equal(prompt_from_ids(&arch, ids.ids, ids.n, 256, &r->prompt, &e), 0);
    token_list_deinit(&ids);
    assert_int_equal(r->prompt.ids.n, n_prompt);
    r->params = (struct request_params){
        .temperature = 1, .top_k = 1, .n_choices = 1, .max_new = max_new, .ignore_end = true};
    return r;
}

static const struct plan_limits small = {
    .n_slots = 4,
    .n_blocks = 32,
    .max_tokens = 256,
    .max_seq = 256,
    .vocab = 640,
    .n_layers = 3,
};

static void finish_all(struct sched *s)
{
    sched_detach(s, "end of test");
    for (struct request *r; (r = sched_next_touched(s));)
        request_free(r);
}

static void test_queue_is_bounded(void **state)
{
    (void)state;
    struct sched *s = new_sched(NULL);
    struct err e = ERR_INIT;
    struct request *r[3];
    for (int i = 0; i != 3; i++)
        r[i] = plain_request(10, 5);
    assert_int_equal(sched_submit(s, r[0], &e), 0);
    assert_int_equal(sched_submit(s, r[1], &e), 0);
    assert_int_equal(sched_submit(s, r[2], &e), -ENOBUFS);
    assert_non_null(strstr(e.message, "2 requests wait"));
    request_free(r[2]);
    for (int i = 0; i != 2; i++)
        sched_end(s, r[i], RPC_CANCELLED, "test");
    finish_all(s);
    sched_free(s);
}

static void expect_refused(struct request *r, const char *word)
{
    struct sched *s = new_sched(&small);
    struct err e = ERR_INIT;
    assert_int_equal(sched_submit(s, r, &e), -E2BIG);
    if (!strstr(e.message, word))
        fail_msg("expected \"%s\" in \"%s\"", word, e.message);
    request_free(r);
    /* the same while no group is there: it ends when the group turns out to be too small */
    finish_all(s);
    sched_free(s);
}

static void test_what_can_never_run_is_refused(void **state)
{
    (void)state;
    struct request *r = plain_request(200, 100);
    expect_refused(r, "at most 256 tokens");
    r = plain_request(20, 10);
    r->params.n_choices = 5;
    expect_refused(r, "worker.slots");
    r = plain_request(100, 100);
    r->params.n_choices = 4;
    expect_refused(r, "KV blocks");
    r = plain_request(20, 10);
    r->params.n_top_logprobs = 1;
    expect_refused(r, "top_logprobs");
}

static void test_waiting_request_ends_when_group_is_too_small(void **state)
{
    (void)state;
    struct sched *s = new_sched(NULL);
    struct request *r = plain_request(20, 10);
    r->params.n_choices = 5;
    struct err e = ERR_INIT;
    assert_int_equal(sched_submit(s, r, &e), 0);
    assert_int_equal(sched_attach(s, &small, 1, &e), 0);
    assert_ptr_equal(sched_next_touched(s), r);
    assert_int_equal(r->state, REQUEST_DONE);
    assert_int_equal(r->status, RPC_INVALID_ARGUMENT);
    request_free(r);
    finish_all(s);
    sched_free(s);
}

static void test_group_with_other_sizes_is_refused(void **state)
{
    (void)state;
    struct sched *s = new_sched(NULL);
    struct plan_limits l = small;
    struct err e = ERR_INIT;
    l.vocab = 641;
    assert_int_equal(sched_attach(s, &l, 1, &e), -EINVAL);
    l = small;
    l.max_tokens = 3;
    assert_int_equal(sched_attach(s, &l, 1, &e), -EINVAL);
    l = small;
    l.n_blocks = 0;
    assert_int_equal(sched_attach(s, &l, 1, &e), -EINVAL);
    assert_int_equal(sched_attach(s, &small, 1, &e), 0);
    finish_all(s);
    sched_free(s);
}

static void test_deadline_in_queue_and_running(void **state)
{
    (void)state;
    struct sched *s = new_sched(&small);
    struct err e = ERR_INIT;
    struct request *running = plain_request(100, 150), *waiting = plain_request(100, 100);
    running->deadline_ns = 50;
    waiting->deadline_ns = 20;
    waiting->params.n_choices = 2; /* needs more blocks than are left */
    running->params.n_choices = 2;
    assert_int_equal(sched_submit(s, running, &e), 0);
    assert_int_equal(sched_submit(s, waiting, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 1, &p));
    assert_int_equal(p->n_items, 1);
    assert_int_equal(waiting->state, REQUEST_QUEUED);
    assert_int_equal(sched_expire(s, 19), 20);
    assert_int_equal(sched_expire(s, 20), 50);
    assert_int_equal(waiting->status, RPC_DEADLINE_EXCEEDED);
    assert_int_equal(sched_expire(s, 50), 0);
    assert_int_equal(running->status, RPC_DEADLINE_EXCEEDED);
    assert_true(sched_consistent(s));
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_blocks_used, 0);
    finish_all(s);
    sched_free(s);
}

/* What a request gives alone. */
static void expect_reference(struct request *r, const char *expected)
{
    struct buf found = {0};
    reference_describe(r, &found);
    assert_int_equal(r->state, REQUEST_DONE);
    assert_int_equal(r->status, RPC_OK);
    assert_string_equal(found.data, expected);
    buf_deinit(&found);
}

static void test_next_step_runs_ahead(void **state)
{
    (void)state;
    struct sched *s = new_sched(&small);
    struct fake_engine *f = fake_engine_new(&small);
    struct err e = ERR_INIT;
    struct request *r = plain_request(10, 3);
    struct buf expected = {0};
    reference_run(&arch, r, &expected);
    assert_int_equal(sched_submit(s, r, &e), 0);
    const struct plan *p;
    const struct step_result *results[3];
    assert_true(sched_plan(s, 1, &p));
    results[0] = fake_engine_step(f, p);
    assert_true(sched_plan(s, 1, &p));
    assert_int_equal(p->items[0].n_tokens, 1);
    assert_int_equal(p->items[0].tokens[0], PLAN_TOKEN_PREVIOUS);
    assert_int_equal(p->items[0].sampling.output_index, 1);
    results[1] = fake_engine_step(f, p);
    assert_false(sched_plan(s, 1, &p)); /* two are out */
    assert_int_equal(sched_commit(s, results[0], 2, &e), 0);
    assert_true(sched_plan(s, 2, &p));
    results[2] = fake_engine_step(f, p);
    assert_int_equal(sched_commit(s, results[1], 3, &e), 0);
    assert_false(sched_plan(s, 3, &p)); /* the third token, which is out, is the last */
    assert_int_equal(sched_commit(s, results[2], 4, &e), 0);
    expect_reference(r, expected.data);
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_discarded, 0);
    buf_deinit(&expected);
    finish_all(s);
    sched_free(s);
    fake_engine_free(f);
}

static int stop_at_once(void *context, struct request *r, uint32_t output)
{
    (void)context;
    output_stop(&r->outputs[output], 1, 0);
    return 0;
}

/* A sequence ends while its next token is out; slot and blocks serve another one at once. */
static void test_memory_of_a_discarded_token_is_given_away(void **state)
{
    (void)state;
    struct plan_limits l = small;
    l.n_slots = 1;
    l.n_blocks = 2;
    struct sched *s = new_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    struct request *first = plain_request(10, 20), *second = plain_request(12, 4);
    struct buf expected = {0};
    reference_run(&arch, second, &expected);
    first->watch = stop_at_once;
    assert_int_equal(sched_submit(s, first, &e), 0);
    assert_int_equal(sched_submit(s, second, &e), 0);
    const struct plan *p;
    const struct step_result *results[3];
    for (int i = 0; i != 2; i++) {
        assert_true(sched_plan(s, 1, &p));
        results[i] = fake_engine_step(f, p);
    }
    uint32_t gen = p->items[0].slot_gen, block = p->items[0].blocks[0];
    assert_int_equal(sched_commit(s, results[0], 2, &e), 0);
    assert_int_equal(first->outputs[0].tokens.n, 1);
    assert_int_equal(first->state, REQUEST_DONE);
    assert_true(sched_plan(s, 2, &p)); /* the discarded token's step is still out */
    assert_int_equal(p->n_items, 1);
    assert_int_equal(p->items[0].n_tokens, 12);
    assert_int_equal(p->items[0].slot_gen, gen + 1);
    assert_int_equal(p->items[0].blocks[0], block);
    results[2] = fake_engine_step(f, p);
    assert_int_equal(sched_commit(s, results[1], 3, &e), 0);
    assert_int_equal(first->n_completion_tokens, 1);
    assert_int_equal(sched_commit(s, results[2], 3, &e), 0);
    while (sched_plan(s, 4, &p))
        assert_int_equal(sched_commit(s, fake_engine_step(f, p), 4, &e), 0);
    expect_reference(second, expected.data);
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_discarded, 1);
    buf_deinit(&expected);
    finish_all(s);
    sched_free(s);
    fake_engine_free(f);
}

static void test_long_prefill_does_not_starve(void **state)
{
    (void)state;
    struct plan_limits l = small;
    l.max_tokens = 100;
    struct sched *s = new_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    assert_int_equal(sched_submit(s, plain_request(10, 200), &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 1, &p));
    assert_int_equal(sched_commit(s, fake_engine_step(f, p), 1, &e), 0);
    /* 100 tokens do not fit beside the decode of the first: they get a step of their own */
    assert_int_equal(sched_submit(s, plain_request(100, 20), &e), 0);
    assert_true(sched_plan(s, 2, &p));
    assert_int_equal(p->n_items, 1);
    assert_int_equal(p->items[0].n_tokens, 100);
    assert_int_equal(sched_commit(s, fake_engine_step(f, p), 2, &e), 0);
    assert_true(sched_plan(s, 3, &p));
    assert_int_equal(p->n_items, 2); /* both decode */
    assert_int_equal(sched_commit(s, fake_engine_step(f, p), 3, &e), 0);
    finish_all(s);
    sched_free(s);
    fake_engine_free(f);
}

static void spoil(struct sched *s, struct step_result *r, int how, struct result_item *item)
{
    (void)s;
    switch (how) {
    case 0:
        r->step++;
        break;
    case 1:
        r->epoch--;
        break;
    case 2:
        r->n_items = 0;
        break;
    case 3:
        item->slot_gen++;
        break;
    case 4:
        item->token = 640;
        break;
    case 5:
        item->token = -1;
        break;
    case 6:
        item->n_scores = 1;
        break;
    case 7:
        item->n_top = 5;
        break;
    case 8:
        r->n_groups = 1;
        break;
    }
}

static void test_wrong_results_are_refused(void **state)
{
    (void)state;
    struct sched *s = new_sched(&small);
    struct fake_engine *f = fake_engine_new(&small);
    struct err e = ERR_INIT;
    assert_int_equal(sched_submit(s, plain_request(10, 20), &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 1, &p));
    const struct step_result *good = fake_engine_step(f, p);
    for (int how = 0; how != 9; how++) {
        struct result_item item = good->items[0];
        struct step_result bad = *good;
        bad.items = &item;
        spoil(s, &bad, how, &item);
        int code = sched_commit(s, &bad, 1, &e);
        if (code != -EBADMSG)
            fail_msg("case %d: expected %d, found %d", how, -EBADMSG, code);
    }
    assert_int_equal(sched_commit(s, good, 1, &e), 0);
    assert_int_equal(sched_commit(s, good, 1, &e), -EBADMSG); /* none is out */
    finish_all(s);
    sched_free(s);
    fake_engine_free(f);
}

static void test_detach_ends_running_keeps_waiting(void **state)
{
    (void)state;
    struct sched *s = new_sched(&small);
    struct err e = ERR_INIT;
    struct request *a = plain_request(10, 20), *b = plain_request(200, 50);
    a->params.n_choices = 4;
    assert_int_equal(sched_submit(s, a, &e), 0);
    assert_int_equal(sched_submit(s, b, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 1, &p));
    sched_detach(s, "rank 1 was lost");
    assert_int_equal(a->state, REQUEST_DONE);
    assert_int_equal(a->status, RPC_UNAVAILABLE);
    assert_string_equal(a->message, "rank 1 was lost");
    assert_int_equal(b->state, REQUEST_QUEUED);
    assert_int_equal(sched_attach(s, &small, 2, &e), 0);
    assert_true(sched_plan(s, 1, &p));
    assert_int_equal(p->epoch, 2);
    assert_int_equal(p->step, 1);
    assert_int_equal(b->state, REQUEST_RUNNING);
    finish_all(s);
    sched_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_what_can_never_run_is_refused),
        cmocka_unit_test(test_waiting_request_ends_when_group_is_too_small),
        cmocka_unit_test(test_group_with_other_sizes_is_refused),
        cmocka_unit_test(test_deadline_in_queue_and_running),
        cmocka_unit_test(test_next_step_runs_ahead),
        cmocka_unit_test(test_memory_of_a_discarded_token_is_given_away),
        cmocka_unit_test(test_long_prefill_does_not_starve),
        cmocka_unit_test(test_wrong_results_are_refused),
        cmocka_unit_test(test_detach_ends_running_keeps_waiting),
        cmocka_unit_test(test_same_seed_same_plans),
        cmocka_unit_test(test_random_interleavings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
