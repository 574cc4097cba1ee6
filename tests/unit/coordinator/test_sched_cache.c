/* test_sched_cache.c: contexts that stay in the cache: who hits them, what that saves, and that
 * they are never in anybody's way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"
#include "sched_fixture.h"

static const struct plan_limits limits = {
    .n_slots = 8,
    .n_blocks = 40,
    .max_tokens = 256,
    .max_seq = 256,
    .vocab = 640,
    .n_layers = 3,
};

static struct arch arch;

struct rig {
    struct sched *s;
    struct fake_engine *engine;
    int64_t now;
    uint32_t n_prefill; /* tokens of items that are no decodes, since they were looked at */
};

static void open_rig(struct rig *t, enum arch_context context)
{
    struct err e = ERR_INIT;
    arch = golden_arch;
    arch.context = context;
    struct sched_config config = {
        .arch = &arch, .max_queue = 16, .prefill_budget_ns = NSEC_PER_SEC};
    *t = (struct rig){.engine = fake_engine_new(&limits), .now = NSEC_PER_SEC};
    assert_int_equal(sched_new(&config, &t->s), 0);
    assert_int_equal(sched_attach(t->s, 0, &limits, 1, 1, &e), 0);
}

static void close_rig(struct rig *t)
{
    assert_int_equal(sched_n_requests(t->s), 0);
    sched_free(t->s);
    fake_engine_free(t->engine);
}

static bool step(struct rig *t)
{
    const struct plan *p;
    struct err e = ERR_INIT;
    if (!sched_plan(t->s, 0, t->now, &p))
        return false;
    for (uint32_t i = 0; i != p->n_items; i++)
        t->n_prefill +=
            p->items[i].start == 0 || p->items[i].n_tokens > 1 ? p->items[i].n_tokens : 0;
    t->now += 10 * NSEC_PER_MSEC;
    assert_int_equal(sched_commit(t->s, 0, fake_engine_step(t->engine, p), t->now, &e), 0);
    assert_true(sched_consistent(t->s));
    return true;
}

/* A prompt of n tokens whose ids from `differs` on are another text's. */
static struct request *new_request(uint32_t n, uint32_t differs, uint32_t n_choices)
{
    struct request *r = fixture_request(n, 12);
    for (uint32_t i = differs; i + 2 < n; i++)
        r->prompt.ids.ids[i] = 200;
    r->params.n_choices = n_choices;
    r->params.top_k = 0;
    r->params.seed = n_choices;
    return r;
}

static void discard(struct rig *t, struct request *r)
{
    while (sched_next_touched(t->s))
        ;
    request_free(r);
}

static void submit(struct rig *t, struct request *r)
{
    struct err e = ERR_INIT;
    assert_int_equal(sched_submit(t->s, r, &e), 0);
}

/* Runs it to its end; the answer is what it would be without a cache. Returns the prompt tokens
 * that had to be computed. */
static uint32_t run(struct rig *t, struct request *r)
{
    struct buf expected = {0}, found = {0};
    struct sched_stats before, after;
    reference_run(&arch, r, &expected);
    sched_stats(t->s, &before);
    t->n_prefill = 0;
    submit(t, r);
    while (step(t))
        ;
    assert_int_equal(r->status, RPC_OK);
    sched_stats(t->s, &after);
    assert_int_equal(r->n_cached_tokens, after.n_hit_tokens - before.n_hit_tokens);
    reference_describe(r, &found);
    assert_string_equal(found.data, expected.data);
    buf_deinit(&expected);
    buf_deinit(&found);
    discard(t, r);
    return t->n_prefill;
}

static void expect_hits(const struct rig *t, uint64_t n_hits, uint64_t n_tokens)
{
    struct sched_stats s;
    sched_stats(t->s, &s);
    assert_int_equal(s.n_hits, n_hits);
    assert_int_equal(s.n_hit_tokens, n_tokens);
    assert_int_equal(s.n_blocks_used, 0);
}

static void test_the_same_context(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    assert_int_equal(run(&t, new_request(60, 60, 1)), 60);
    expect_hits(&t, 0, 0);
    assert_int_equal(run(&t, new_request(60, 60, 1)), 0); /* its last token is like a decode */
    expect_hits(&t, 1, 59);
    assert_int_equal(run(&t, new_request(60, 60, 4)), 0);
    expect_hits(&t, 2, 118);
    struct sched_stats s;
    sched_stats(t.s, &s);
    assert_int_equal(s.n_blocks_cached, 4);
    close_rig(&t);
}

static void test_other_contexts_and_tenants(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    run(&t, new_request(60, 60, 1));
    assert_int_equal(run(&t, new_request(60, 50, 1)), 60); /* begins alike: not the same */
    assert_int_equal(run(&t, new_request(61, 61, 1)), 61);
    struct request *r = new_request(60, 60, 1);
    r->tenant = 7;
    assert_int_equal(run(&t, r), 60);
    r = new_request(60, 60, 1);
    r->prompt.prefix_len = 0; /* unidirectional: other keys and values */
    assert_int_equal(run(&t, r), 60);
    expect_hits(&t, 0, 0);
    close_rig(&t);
}

static void test_beams_and_scores(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    for (uint32_t i = 0; i != 2; i++) {
        struct request *r = new_request(40, 40, 1);
        r->params.beam = true;
        r->params.n_beams = 4;
        r->params.length_penalty = 1;
        assert_int_equal(run(&t, r), i == 0 ? 40 : 0);
    }
    struct request *r = new_request(40, 40, 1);
    r->kind = REQUEST_SCORE;
    r->n_choices_scored = 3;
    r->choices = calloc(3, sizeof *r->choices);
    for (uint32_t i = 0; i != 3; i++) {
        for (uint32_t k = 0; k != 4; k++)
            token_list_append(&r->choices[i], (int32_t)(100 + i));
    }
    assert_int_equal(run(&t, r), 12); /* sop and three tokens of each choice */
    expect_hits(&t, 2, 78);
    close_rig(&t);
}

/* While the first one still runs, a second one shares its blocks: both fit where two alone would
 * not. */
static void test_sharing_with_one_that_runs(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    struct request *r[4];
    for (uint32_t i = 0; i != 4; i++) {
        r[i] = new_request(200, 200, 1); /* 14 blocks, 12 of them full of context */
        submit(&t, r[i]);
    }
    step(&t);
    step(&t);
    for (uint32_t i = 0; i != 4; i++)
        assert_int_equal(r[i]->state, i < 2 ? REQUEST_RUNNING : REQUEST_QUEUED);
    sched_end(t.s, r[1], RPC_CANCELLED, "makes room");
    step(&t);
    for (uint32_t i = 2; i != 4; i++)
        assert_int_equal(r[i]->state, REQUEST_RUNNING);
    while (step(&t))
        ;
    for (uint32_t i = 0; i != 4; i++)
        discard(&t, r[i]);
    expect_hits(&t, 2, 398);
    close_rig(&t);
}

/* Cached blocks are given up for whoever needs them, the longest unused first. */
static void test_eviction(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    run(&t, new_request(200, 10, 1)); /* a context of 13 blocks */
    run(&t, new_request(200, 20, 1));
    run(&t, new_request(200, 10, 1)); /* is used again */
    expect_hits(&t, 1, 199);
    run(&t, new_request(200, 30, 1)); /* needs 14 of the 14 others */
    run(&t, new_request(201, 30, 1)); /* the second one has to go */
    run(&t, new_request(200, 10, 1));
    expect_hits(&t, 2, 398);
    assert_int_equal(run(&t, new_request(200, 20, 1)), 200);
    run(&t, new_request(230, 30, 4)); /* nearly all of the memory */
    expect_hits(&t, 2, 398);
    close_rig(&t);
}

/* Causal prompts share whole blocks of what they have in common. */
static void test_causal_prefixes(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, ARCH_CONTEXT_CAUSAL);
    assert_int_equal(run(&t, new_request(100, 100, 1)), 100);
    assert_int_equal(run(&t, new_request(100, 50, 1)), 100 - 48);
    expect_hits(&t, 1, 48);
    assert_int_equal(run(&t, new_request(120, 98, 1)), 120 - 96);
    expect_hits(&t, 2, 48 + 96);
    assert_int_equal(run(&t, new_request(100, 50, 3)), 99 - 96); /* both texts are there */
    expect_hits(&t, 3, 48 + 96 + 96);
    struct request *r = new_request(100, 100, 1);
    r->tenant = 7;
    assert_int_equal(run(&t, r), 100);
    close_rig(&t);
}

/* The group is lost: what was cached is, too. */
static void test_cache_ends_with_the_epoch(void **state)
{
    (void)state;
    struct rig t;
    struct err e = ERR_INIT;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    run(&t, new_request(60, 60, 1));
    sched_detach(t.s, 0, "lost");
    fake_engine_free(t.engine);
    t.engine = fake_engine_new(&limits);
    assert_int_equal(sched_attach(t.s, 0, &limits, 1, 2, &e), 0);
    assert_int_equal(run(&t, new_request(60, 60, 1)), 60);
    close_rig(&t);
}

/* Of two groups, the one that has the context gets the request, though both are idle. */
static void test_affinity(void **state)
{
    (void)state;
    struct rig t;
    struct err e = ERR_INIT;
    open_rig(&t, ARCH_CONTEXT_BIDIRECTIONAL);
    run(&t, new_request(60, 60, 1));
    struct plan_limits other = limits;
    other.n_blocks *= 2; /* more free memory */
    assert_int_equal(sched_attach(t.s, 1, &other, 1, 2, &e), 0);
    struct request *r = new_request(60, 60, 1), *fresh = new_request(61, 61, 1);
    submit(&t, fresh);
    submit(&t, r);
    const struct plan *p;
    assert_true(sched_plan(t.s, 1, t.now, &p));
    assert_int_equal(fresh->group, 1);
    assert_int_equal(r->group, 0);
    sched_end(t.s, fresh, RPC_CANCELLED, "enough");
    sched_end(t.s, r, RPC_CANCELLED, "enough");
    discard(&t, fresh);
    discard(&t, r);
    close_rig(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_context),
        cmocka_unit_test(test_other_contexts_and_tenants),
        cmocka_unit_test(test_beams_and_scores),
        cmocka_unit_test(test_sharing_with_one_that_runs),
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_causal_prefixes),
        cmocka_unit_test(test_cache_ends_with_the_epoch),
        cmocka_unit_test(test_affinity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
