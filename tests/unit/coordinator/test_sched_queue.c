/* test_sched_queue.c: who starts next: priorities, fairness between tenants, preemption, patience,
 * and the bounds of the queue. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"
#include "sched_fixture.h"

enum { MAX_REQUESTS = 1200 };

struct rig {
    struct sched *s;
    struct fake_engine *engine;
    int64_t now;
    struct request *requests[MAX_REQUESTS];
    uint32_t n;
};

static void open_rig(struct rig *t, const struct plan_limits *l, struct sched_config config)
{
    struct err e = ERR_INIT;
    *t = (struct rig){.now = NSEC_PER_SEC, .engine = fake_engine_new(l)};
    config.arch = &golden_arch;
    config.prefill_budget_ns = NSEC_PER_SEC;
    if (config.max_queue == 0)
        config.max_queue = MAX_REQUESTS;
    assert_int_equal(sched_new(&config, &t->s), 0);
    assert_int_equal(sched_attach(t->s, 0, l, 1, 1, &e), 0);
}

static void close_rig(struct rig *t)
{
    for (uint32_t i = 0; i != t->n; i++) {
        sched_end(t->s, t->requests[i], RPC_CANCELLED, "end of test");
    }
    while (sched_next_touched(t->s))
        ;
    while (t->n)
        request_free(t->requests[--t->n]);
    assert_true(sched_consistent(t->s));
    sched_free(t->s);
    fake_engine_free(t->engine);
}

static struct request *submit_choices(struct rig *t, uint32_t n_prompt, uint32_t max_new,
                                      int32_t priority, uint64_t tenant, uint32_t n_choices)
{
    struct request *r = fixture_request(n_prompt, max_new);
    struct err e = ERR_INIT;
    r->priority = priority;
    r->tenant = tenant;
    r->params.n_choices = n_choices;
    if (sched_submit(t->s, r, &e) < 0)
        fail_msg("%s", e.message);
    return t->requests[t->n++] = r;
}

static struct request *submit(struct rig *t, uint32_t n_prompt, uint32_t max_new, int32_t priority,
                              uint64_t tenant)
{
    return submit_choices(t, n_prompt, max_new, priority, tenant, 1);
}

/* One step that takes 10 ms. */
static bool step(struct rig *t)
{
    const struct plan *p;
    struct err e = ERR_INIT;
    if (!sched_plan(t->s, 0, t->now, &p))
        return false;
    t->now += 10 * NSEC_PER_MSEC;
    assert_int_equal(sched_commit(t->s, 0, fake_engine_step(t->engine, p), t->now, &e), 0);
    assert_true(sched_consistent(t->s));
    return true;
}

static void test_priorities(void **state)
{
    (void)state;
    struct rig t;
    struct plan_limits l = fixture_small;
    l.n_slots = 1;
    open_rig(&t, &l, (struct sched_config){0});
    static const int32_t priorities[] = {0, -1, 5, 0, 5, -1};
    static const uint32_t order[] = {2, 4, 0, 3, 1, 5};
    for (uint32_t i = 0; i != 6; i++)
        submit(&t, 10, 5, priorities[i], 0);
    for (uint32_t i = 0; i != 6; i++) {
        struct request *r = t.requests[order[i]];
        while (r->state != REQUEST_DONE)
            assert_true(step(&t));
        for (uint32_t k = i + 1; k != 6; k++)
            assert_int_equal(t.requests[order[k]]->state, REQUEST_QUEUED);
    }
    close_rig(&t);
}

/* Tokens of the tenant's requests so far. */
static uint64_t served(const struct rig *t, uint64_t tenant)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i != t->n; i++)
        n += t->requests[i]->tenant == tenant ? t->requests[i]->n_completion_tokens : 0;
    return n;
}

static void expect_about(uint64_t found, uint64_t expected, const char *what)
{
    if (found * 10 < expected * 8 || found * 10 > expected * 12)
        fail_msg("%s: expected about %llu tokens, found %llu", what, (unsigned long long)expected,
                 (unsigned long long)found);
}

/* One tenant floods the queue first; the others get their shares all the same. One that comes late
 * shares from then on, and does not catch up. */
static void test_tenants_share(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){0});
    for (uint32_t i = 0; i != 200; i++)
        submit(&t, 10, 10, 0, 1);
    for (uint32_t i = 0; i != 100; i++)
        submit(&t, 10, 20, 0, 2); /* half as many, twice as long */
    for (uint32_t i = 0; i != 200; i++)
        step(&t);
    expect_about(served(&t, 2), served(&t, 1), "the second tenant");
    uint64_t before[2] = {served(&t, 1), served(&t, 2)};
    for (uint32_t i = 0; i != 100; i++)
        submit(&t, 10, 10, 0, 3);
    for (uint32_t i = 0; i != 150; i++)
        step(&t);
    uint64_t share = (served(&t, 1) - before[0] + served(&t, 2) - before[1] + served(&t, 3)) / 3;
    expect_about(served(&t, 1) - before[0], share, "the first tenant, then");
    expect_about(served(&t, 2) - before[1], share, "the second tenant, then");
    expect_about(served(&t, 3), share, "the late tenant");
    close_rig(&t);
}

/* More tenants than there are places: all are served, and accounts balance. */
static void test_many_tenants(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){0});
    for (uint32_t i = 0; i != 1000; i++)
        submit(&t, 10, 2, 0, i);
    while (step(&t))
        ;
    for (uint32_t i = 0; i != t.n; i++)
        assert_int_equal(t.requests[i]->status, RPC_OK);
    submit(&t, 10, 2, 0, 5000);
    while (step(&t))
        ;
    assert_int_equal(t.requests[1000]->status, RPC_OK);
    close_rig(&t);
}

/* A large request waits while small ones come and go without end; it starts all the same. */
static void test_large_request_is_not_starved(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){0});
    for (uint32_t i = 0; i != 3; i++)
        submit(&t, 10, 20 + 5 * i, 0, 0);
    step(&t);
    struct request *large = submit_choices(&t, 100, 60, 0, 0, 4); /* all slots, most blocks */
    bool passed = false;
    uint32_t n_steps = 0;
    while (large->state == REQUEST_QUEUED) {
        if (t.n < MAX_REQUESTS && n_steps % 8 == 0) {
            struct request *small = submit(&t, 10, 30, 0, 0);
            step(&t);
            passed = passed || small->state == REQUEST_RUNNING;
        }
        step(&t);
        if (++n_steps == 1000)
            fail_msg("the large request still waits after %u steps", n_steps);
    }
    printf("%u steps of 10 ms until the large request ran\n", n_steps);
    assert_true(passed); /* it was patient for a while */
    close_rig(&t);
}

static void expect_same(struct request *r, const struct buf *expected)
{
    struct buf found = {0};
    reference_describe(r, &found);
    assert_int_equal(r->status, RPC_OK);
    assert_string_equal(found.data, expected->data);
    buf_deinit(&found);
}

/* The youngest of the lowest priority makes room, and goes on later with the same tokens. */
static void test_preemption(void **state)
{
    (void)state;
    struct rig t;
    struct buf expected = {0};
    open_rig(&t, &fixture_small, (struct sched_config){0});
    struct request *old = submit(&t, 20, 100, 0, 0), *young = submit(&t, 20, 101, 0, 0);
    struct request *important = submit(&t, 20, 100, 1, 0);
    reference_run(&golden_arch, young, &expected);
    for (uint32_t i = 0; i != 10; i++)
        step(&t);
    assert_int_equal(young->state, REQUEST_RUNNING);
    struct request *equal = submit(&t, 100, 60, 0, 0);
    step(&t);
    assert_int_equal(equal->state, REQUEST_QUEUED); /* nobody makes room for an equal */
    struct request *urgent = submit(&t, 100, 60, 1, 0);
    step(&t);
    assert_int_equal(urgent->state, REQUEST_RUNNING);
    assert_int_equal(young->state, REQUEST_QUEUED);
    assert_int_equal(old->state, REQUEST_RUNNING);
    assert_int_equal(important->state, REQUEST_RUNNING);
    struct sched_stats stats;
    sched_stats(t.s, &stats);
    assert_int_equal(stats.n_preempted, 1);
    while (young->state == REQUEST_QUEUED)
        assert_true(step(&t));
    assert_int_equal(equal->state, REQUEST_QUEUED); /* the front of the class comes first */
    while (young->state != REQUEST_DONE)
        assert_true(step(&t));
    expect_same(young, &expected);
    buf_deinit(&expected);
    close_rig(&t);
}

/* The lowest priority before the youngest. */
static void test_preemption_takes_the_lowest(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){0});
    struct request *lowest = submit(&t, 20, 100, -5, 0), *lower = submit(&t, 20, 100, -1, 0);
    struct request *low = submit(&t, 20, 100, 0, 0), *young = submit(&t, 20, 30, 1, 0);
    step(&t);
    assert_int_equal(young->state, REQUEST_RUNNING);
    submit(&t, 20, 100, 2, 0);
    step(&t);
    assert_int_equal(lowest->state, REQUEST_QUEUED);
    assert_true(lower->state == REQUEST_RUNNING && low->state == REQUEST_RUNNING);
    submit(&t, 20, 100, 2, 0);
    step(&t);
    assert_int_equal(lower->state, REQUEST_QUEUED);
    assert_true(low->state == REQUEST_RUNNING && young->state == REQUEST_RUNNING);
    struct sched_stats stats;
    sched_stats(t.s, &stats);
    assert_int_equal(stats.n_preempted, 2); /* nobody who then had to make room for himself */
    close_rig(&t);
}

/* The first choice says nothing more after three tokens. */
static int end_the_first_early(void *context, struct request *r, uint32_t output)
{
    (void)context;
    if (output == 0 && r->outputs[0].tokens.n == 3)
        output_stop(&r->outputs[0], 3, 0);
    return 0;
}

/* The slot of a choice that has ended is another request's while the other choices run. */
static void test_slot_of_an_ended_choice(void **state)
{
    (void)state;
    struct rig t;
    struct plan_limits l = fixture_small;
    l.n_slots = 2;
    open_rig(&t, &l, (struct sched_config){0});
    struct request *both = submit_choices(&t, 20, 50, 0, 0, 2), *next = submit(&t, 20, 5, 0, 0);
    both->watch = end_the_first_early;
    step(&t);
    assert_int_equal(next->state, REQUEST_QUEUED);
    while (next->state != REQUEST_DONE)
        assert_true(step(&t));
    assert_int_equal(both->state, REQUEST_RUNNING);
    assert_true(both->outputs[1].tokens.n < 15);
    close_rig(&t);
}

/* Urgent requests without end cannot keep another one from ever ending. */
static void test_preemption_does_not_thrash(void **state)
{
    (void)state;
    struct rig t;
    struct plan_limits l = fixture_small;
    l.n_slots = 1;
    open_rig(&t, &l, (struct sched_config){0});
    struct request *r = submit(&t, 20, 60, 0, 0);
    uint32_t n_steps = 0;
    while (r->state != REQUEST_DONE && n_steps++ != 2000) {
        step(&t);
        if (r->state == REQUEST_RUNNING && r->n_completion_tokens % 10 == 5)
            submit(&t, 10, 5, 1, 0);
    }
    assert_int_equal(r->status, RPC_OK);
    assert_int_equal(r->n_preempted, 3);
    close_rig(&t);
}

/* It would not be enough: nobody is disturbed for nothing. */
static void test_no_vain_preemption(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){0});
    submit(&t, 20, 100, 2, 0);
    struct request *low = submit(&t, 20, 100, 0, 0);
    step(&t);
    struct request *large = submit_choices(&t, 100, 60, 1, 0, 4);
    step(&t);
    step(&t);
    assert_int_equal(large->state, REQUEST_QUEUED);
    assert_int_equal(low->state, REQUEST_RUNNING);
    close_rig(&t);
}

static int refused(struct rig *t, uint32_t n_prompt, int32_t priority, const char *word)
{
    struct request *r = fixture_request(n_prompt, 10);
    struct err e = ERR_INIT;
    r->priority = priority;
    int code = sched_submit(t->s, r, &e);
    if (code == 0) {
        t->requests[t->n++] = r;
        return 0;
    }
    assert_int_equal(code, -ENOBUFS);
    assert_true(r->retry_after_ns >= NSEC_PER_SEC);
    if (!strstr(e.message, word) || !strstr(e.message, "try again in about"))
        fail_msg("expected \"%s\" and a hint in \"%s\"", word, e.message);
    request_free(r);
    return code;
}

static void test_queue_is_bounded_in_tokens(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, &fixture_small, (struct sched_config){.max_queue_tokens = 250});
    assert_int_equal(refused(&t, 200, 0, ""), 0);
    assert_int_equal(refused(&t, 50, 0, ""), 0);
    assert_int_equal(refused(&t, 10, 0, "prompts of 250 tokens wait"), -ENOBUFS);
    close_rig(&t);
}

static void test_queue_is_bounded_in_time(void **state)
{
    (void)state;
    struct rig t;
    struct plan_limits l = fixture_small;
    l.n_slots = 1;
    open_rig(&t, &l, (struct sched_config){.max_wait_ns = 2 * NSEC_PER_SEC});
    struct request *first = submit(&t, 10, 50, 0, 0);
    while (first->state != REQUEST_DONE)
        step(&t); /* about a token in 10 ms */
    uint32_t n = 0;
    while (refused(&t, 10, 0, "the first token would take") == 0) {
        if (n == 0)
            step(&t);
        if (++n == 100)
            fail_msg("%u requests wait, none is refused", n);
    }
    printf("%u requests of 10 + 10 tokens wait for 2 s at most\n", n);
    assert_true(n > 5 && n < 40);
    assert_int_equal(refused(&t, 10, 1, ""), 0); /* nobody is in front of this one */
    close_rig(&t);
}

/* Nothing waits, but what runs keeps the only slot for longer than anybody would wait. */
static void test_queue_knows_what_runs(void **state)
{
    (void)state;
    struct rig t;
    struct plan_limits l = fixture_small;
    l.n_slots = 1;
    open_rig(&t, &l, (struct sched_config){.max_wait_ns = NSEC_PER_SEC / 2});
    struct request *first = submit(&t, 10, 200, 0, 0);
    while (first->state != REQUEST_DONE)
        step(&t); /* outputs have 200 tokens, a token takes about 10 ms */
    assert_int_equal(refused(&t, 10, 0, ""), 0); /* the slot is free */
    struct request *small = t.requests[t.n - 1];
    while (small->state != REQUEST_DONE)
        step(&t);
    struct request *second = submit(&t, 10, 200, 0, 0);
    step(&t);
    assert_int_equal(second->state, REQUEST_RUNNING);
    assert_int_equal(refused(&t, 10, 0, "the first token would take"), -ENOBUFS);
    while (second->outputs[0].tokens.n < 170)
        step(&t);
    assert_int_equal(refused(&t, 10, 0, ""), 0); /* 30 tokens are left */
    close_rig(&t);
}

/* What goes on is not asked again, whoever has come in between. */
static void test_second_half_passes_a_full_queue(void **state)
{
    (void)state;
    struct rig t;
    struct err e = ERR_INIT;
    open_rig(&t, &fixture_small, (struct sched_config){.max_queue_tokens = 100});
    assert_int_equal(refused(&t, 100, 0, ""), 0);
    assert_int_equal(refused(&t, 10, 0, "prompts of 100 tokens wait"), -ENOBUFS);
    struct request *r = fixture_request(10, 10);
    assert_int_equal(sched_go_on(t.s, r, &e), 0);
    t.requests[t.n++] = r;
    while (r->state != REQUEST_DONE)
        step(&t);
    assert_int_equal(r->status, RPC_OK);
    close_rig(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_tenants_share),
        cmocka_unit_test(test_many_tenants),
        cmocka_unit_test(test_large_request_is_not_starved),
        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_preemption_takes_the_lowest),
        cmocka_unit_test(test_slot_of_an_ended_choice),
        cmocka_unit_test(test_preemption_does_not_thrash),
        cmocka_unit_test(test_no_vain_preemption),
        cmocka_unit_test(test_queue_is_bounded_in_tokens),
        cmocka_unit_test(test_queue_is_bounded_in_time),
        cmocka_unit_test(test_queue_knows_what_runs),
        cmocka_unit_test(test_second_half_passes_a_full_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
