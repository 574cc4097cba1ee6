/* test_sched_groups.c: single cases of groups: lost ones, several, stages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"
#include "sched_fixture.h"

/* The group is lost while r has some output: it goes on in front of who waited, with the same
 * tokens. */
static void expect_resumed(struct request *r, uint32_t n_steps)
{
    struct sched *s = fixture_sched(&fixture_small);
    struct fake_engine *f = fake_engine_new(&fixture_small);
    struct err e = ERR_INIT;
    struct request *other = fixture_request(200, 50);
    struct buf expected = {0};
    reference_run(&golden_arch, r, &expected);
    assert_int_equal(fixture_submit(s, r, &e), 0);
    assert_int_equal(fixture_submit(s, other, &e), 0);
    for (uint32_t i = 0; i != n_steps; i++)
        fixture_step(s, 0, f, 1);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 1, &p)); /* is out when the group is lost */
    sched_detach(s, 0, "rank 1 was lost");
    assert_int_equal(r->state, REQUEST_QUEUED);
    assert_true(sched_consistent(s));
    uint64_t n_tokens = r->n_completion_tokens;
    fake_engine_free(f);
    f = fake_engine_new(&fixture_small);
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 2, &e), 0);
    assert_true(sched_plan(s, 0, 1, &p));
    assert_int_equal(p->epoch, 2);
    assert_int_equal(p->step, 1);
    assert_int_equal(p->items[0].start, 0);
    assert_int_equal(p->items[0].prefix_len, r->prompt.prefix_len);
    assert_int_equal(r->state, REQUEST_RUNNING);
    assert_int_equal(r->n_completion_tokens, n_tokens);
    assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 1, &e), 0);
    while (r->state != REQUEST_DONE)
        fixture_step(s, 0, f, 2);
    fixture_expect(r, expected.data);
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_true(stats.n_resumed >= 1);
    buf_deinit(&expected);
    fixture_finish(s);
    fake_engine_free(f);
}

static void test_lost_group_single_sequence(void **state)
{
    (void)state;
    struct request *r = fixture_request(100, 150); /* leaves no blocks for the other */
    r->params.top_k = 0;
    r->params.seed = 7;
    r->params.presence_penalty = 0.5f;
    expect_resumed(r, 20);
}

static void test_lost_group_choices(void **state)
{
    (void)state;
    struct request *r = fixture_request(20, 60);
    r->params.n_choices = 4;
    r->params.top_k = 0;
    expect_resumed(r, 9);
}

static void test_lost_group_beams(void **state)
{
    (void)state;
    struct request *r = fixture_request(20, 60);
    r->params.beam = true;
    r->params.n_beams = 4;
    r->params.length_penalty = 1;
    r->params.no_repeat_ngram = 3;
    expect_resumed(r, 12);
}

static void test_lost_group_score(void **state)
{
    (void)state;
    struct request *r = fixture_request(30, 1);
    r->kind = REQUEST_SCORE;
    r->n_choices_scored = 10;
    r->choices = calloc(10, sizeof *r->choices);
    for (uint32_t i = 0; i != 10; i++) {
        for (uint32_t k = 0; k != 5 + 7 * i; k++)
            token_list_append(&r->choices[i], (int32_t)(100 + k));
    }
    expect_resumed(r, 3);
}

static void test_query_of_death(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct err e = ERR_INIT;
    struct request *deadly = fixture_request(10, 20), *innocent = fixture_request(10, 20);
    assert_int_equal(fixture_submit(s, deadly, &e), 0);
    assert_int_equal(fixture_submit(s, innocent, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 1, &p));
    sched_detach(s, 0, "rank 1 was lost");
    assert_int_equal(deadly->n_losses, 1);
    sched_pause(s, innocent, true); /* takes part in no step */
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 2, &e), 0);
    assert_true(sched_plan(s, 0, 1, &p));
    sched_detach(s, 0, "rank 1 was lost");
    assert_int_equal(deadly->state, REQUEST_DONE);
    assert_int_equal(deadly->status, RPC_INTERNAL);
    assert_non_null(strstr(deadly->message, "lost 2 times"));
    assert_non_null(strstr(deadly->message, "rank 1 was lost"));
    assert_int_equal(innocent->state, REQUEST_QUEUED);
    fixture_finish(s);
}

/* A group is lost and none comes back: the deadline holds. */
static void test_deadline_after_a_loss(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct err e = ERR_INIT;
    struct request *r = fixture_request(10, 20);
    r->deadline_ns = 100;
    assert_int_equal(fixture_submit(s, r, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 1, &p));
    sched_detach(s, 0, "rank 1 was lost");
    assert_int_equal(sched_expire(s, 99), 100);
    assert_int_equal(sched_expire(s, 100), 0);
    assert_int_equal(r->status, RPC_UNAVAILABLE);
    fixture_finish(s);
}

/* What fits only the larger group waits for that one; the smaller one serves others meanwhile. */
static void test_groups_of_different_sizes(void **state)
{
    (void)state;
    struct plan_limits large = fixture_small;
    large.n_slots = 8;
    large.n_blocks = 128;
    struct sched *s = fixture_sched(NULL);
    struct err e = ERR_INIT;
    assert_int_equal(sched_attach(s, 3, &fixture_small, 1, 1, &e), 0);
    assert_int_equal(sched_attach(s, 5, &large, 1, 2, &e), 0);
    struct request *first = fixture_request(20, 20), *second = fixture_request(20, 20);
    struct request *third = fixture_request(20, 20);
    first->params.n_choices = second->params.n_choices = 5;
    third->params.n_choices = 9;
    assert_int_equal(fixture_submit(s, third, &e), -E2BIG);
    assert_non_null(strstr(e.message, "at most 8"));
    third->params.n_choices = 1;
    assert_int_equal(fixture_submit(s, first, &e), 0);
    assert_int_equal(fixture_submit(s, second, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 5, 1, &p));
    assert_false(sched_plan(s, 3, 1, &p));
    assert_int_equal(first->group, 5);
    assert_int_equal(second->state, REQUEST_QUEUED);
    sched_detach(s, 5, "lost");
    assert_int_equal(fixture_submit(s, third, &e), -ENOBUFS);
    assert_false(sched_plan(s, 3, 1, &p)); /* both can only run on the other */
    assert_int_equal(sched_attach(s, 5, &large, 1, 3, &e), 0);
    assert_true(sched_plan(s, 5, 1, &p));
    assert_int_equal(first->state, REQUEST_RUNNING);
    request_free(third);
    fixture_finish(s);
}

static void test_requests_spread_over_groups(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(NULL);
    struct err e = ERR_INIT;
    const struct plan *p;
    struct request *r[2];
    for (uint32_t i = 0; i != 2; i++) {
        assert_int_equal(sched_attach(s, i, &fixture_small, 1, i + 1, &e), 0);
        r[i] = fixture_request(10, 20);
        assert_int_equal(fixture_submit(s, r[i], &e), 0);
    }
    assert_true(sched_plan(s, 0, 1, &p));
    assert_int_equal(p->epoch, 1);
    assert_true(sched_plan(s, 1, 1, &p));
    assert_int_equal(p->epoch, 2);
    assert_int_equal(sched_n_in_flight(s, 0) + sched_n_in_flight(s, 1), 2);
    assert_int_not_equal(r[0]->group, r[1]->group);
    struct sched_group_stats stats;
    sched_group_stats(s, 1, &stats);
    assert_int_equal(stats.n_running, 1);
    fixture_finish(s);
}

/* ---- a large request between small ones that come without end ---- */

enum { N_GROUPS = 3 };

struct crowd {
    struct sched *s;
    struct fake_engine *engines[N_GROUPS];
    int64_t now;
    struct request *small[400];
    uint32_t n_small;
};

/* Steps of 20 ms on every group. */
static void crowd_step(struct crowd *c)
{
    const struct step_result *results[N_GROUPS] = {NULL};
    struct err e = ERR_INIT;
    for (uint32_t i = 0; i != N_GROUPS; i++) {
        const struct plan *p;
        if (sched_plan(c->s, i, c->now, &p))
            results[i] = fake_engine_step(c->engines[i], p);
    }
    c->now += 20 * NSEC_PER_MSEC;
    for (uint32_t i = 0; i != N_GROUPS; i++) {
        if (results[i])
            assert_int_equal(sched_commit(c->s, i, results[i], c->now, &e), 0);
    }
    assert_true(sched_consistent(c->s));
}

/* A small one always waits behind the large one. Their lengths keep slots from being free together.
 */
static void crowd_push(struct crowd *c)
{
    static const uint32_t lengths[] = {40, 6, 23, 11, 33};
    struct err e = ERR_INIT;
    if (c->n_small && c->small[c->n_small - 1]->state == REQUEST_QUEUED)
        return;
    assert_true(c->n_small < ARRAY_LEN(c->small));
    c->small[c->n_small] = fixture_request(10, lengths[c->n_small % ARRAY_LEN(lengths)]);
    assert_int_equal(sched_submit(c->s, c->small[c->n_small++], &e), 0);
}

/* Behind `from`, before `to`. */
static uint32_t started(const struct crowd *c, uint32_t group, int64_t from, int64_t to)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i != c->n_small; i++) {
        const struct request *r = c->small[i];
        n += r->started_ns > from && r->started_ns < to && r->group == group;
    }
    return n;
}

/* All slots of a large group: `busy` has none to give for long, the other one drains. Both are
 * held, so that the large one starts where it can; the small group, which could not run it, is not.
 */
static void expect_both_held(uint32_t busy)
{
    struct crowd c = {.s = fixture_sched(NULL), .now = NSEC_PER_SEC};
    struct plan_limits limits[N_GROUPS] = {fixture_small, fixture_small, fixture_small};
    struct err e = ERR_INIT;
    limits[1].n_slots = 2; /* between the two others */
    for (uint32_t i = 0; i != N_GROUPS; i++) {
        c.engines[i] = fake_engine_new(&limits[i]);
        assert_int_equal(sched_attach(c.s, i, &limits[i], 1, i + 1, &e), 0);
    }
    uint32_t free_group = 2 - busy;
    for (uint32_t i = 0; i != N_GROUPS; i++)
        sched_drain(c.s, i, i != busy);
    struct request *slow = fixture_request(10, 230);
    assert_int_equal(sched_submit(c.s, slow, &e), 0);
    crowd_step(&c);
    assert_int_equal(slow->group, busy);
    for (uint32_t i = 0; i != N_GROUPS; i++)
        sched_drain(c.s, i, false);
    for (uint32_t i = 0; i != 20; i++) { /* full, and not in step */
        crowd_push(&c);
        crowd_step(&c);
    }
    struct request *large = fixture_request(20, 5);
    large->params.n_choices = 4;
    assert_int_equal(sched_submit(c.s, large, &e), 0);
    int64_t blocked = c.now, patient = blocked + 2 * NSEC_PER_SEC;
    while (large->state == REQUEST_QUEUED) {
        crowd_push(&c);
        crowd_step(&c);
        if (c.now > patient + NSEC_PER_SEC)
            fail_msg("waits for %lld ms; %u, %u and %u small ones started behind it since it was "
                     "no longer patient",
                     (long long)((c.now - blocked) / NSEC_PER_MSEC), started(&c, 0, patient, c.now),
                     started(&c, 1, patient, c.now), started(&c, 2, patient, c.now));
    }
    assert_int_equal(large->group, free_group);
    assert_int_equal(slow->state, REQUEST_RUNNING);
    assert_true(started(&c, free_group, blocked, patient) > 0); /* it was patient for a while */
    for (uint32_t i = 0; i != N_GROUPS; i++) {
        uint32_t n = started(&c, i, patient, large->started_ns);
        if ((n > 0) != (i == 1))
            fail_msg("group %u: %u small ones started in front of the large one", i, n);
    }
    sched_end(c.s, slow, RPC_CANCELLED, "end of test");
    sched_end(c.s, large, RPC_CANCELLED, "end of test");
    for (uint32_t i = 0; i != c.n_small; i++)
        sched_end(c.s, c.small[i], RPC_CANCELLED, "end of test");
    while (sched_next_touched(c.s))
        ;
    for (uint32_t i = 0; i != c.n_small; i++)
        request_free(c.small[i]);
    request_free(slow);
    request_free(large);
    sched_free(c.s);
    for (uint32_t i = 0; i != N_GROUPS; i++)
        fake_engine_free(c.engines[i]);
}

static void test_patience_holds_every_group(void **state)
{
    (void)state;
    expect_both_held(0);
    expect_both_held(2);
}

/* Three stages: up to four steps are out, each with a third of the sequences, and no sequence is in
 * two of them. */
static void test_stages_share_the_sequences(void **state)
{
    (void)state;
    struct plan_limits l = fixture_small;
    l.n_slots = 6;
    struct sched *s = fixture_sched(NULL);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    assert_int_equal(sched_attach(s, 0, &l, 3, 1, &e), 0);
    struct request *r = fixture_request(10, 40);
    r->params.n_choices = 6;
    assert_int_equal(fixture_submit(s, r, &e), 0);
    fixture_step(s, 0, f, 1); /* the context */
    const struct plan *p;
    uint32_t n_items = 0;
    const struct step_result *results[4];
    bool seen[6] = {false};
    for (int i = 0; i != 3; i++) {
        assert_true(sched_plan(s, 0, 1, &p));
        assert_int_equal(p->n_items, 2);
        for (uint32_t k = 0; k != p->n_items; k++) {
            assert_false(seen[p->items[k].slot]);
            seen[p->items[k].slot] = true;
            n_items++;
        }
        results[i] = fake_engine_step(f, p);
    }
    assert_int_equal(n_items, 6);
    assert_false(sched_plan(s, 0, 1, &p));
    assert_int_equal(sched_commit(s, 0, results[0], 1, &e), 0);
    assert_true(sched_plan(s, 0, 1, &p));
    assert_int_equal(p->n_items, 2);
    fixture_finish(s);
    fake_engine_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost_group_single_sequence),
        cmocka_unit_test(test_lost_group_choices),
        cmocka_unit_test(test_lost_group_beams),
        cmocka_unit_test(test_lost_group_score),
        cmocka_unit_test(test_query_of_death),
        cmocka_unit_test(test_deadline_after_a_loss),
        cmocka_unit_test(test_groups_of_different_sizes),
        cmocka_unit_test(test_requests_spread_over_groups),
        cmocka_unit_test(test_patience_holds_every_group),
        cmocka_unit_test(test_stages_share_the_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
