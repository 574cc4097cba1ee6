/* test_sched_place.c: on which group a request runs: each thing that counts, by itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/clock.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "sched_fixture.h"

enum { N_GROUPS = 2 };

struct rig {
    struct sched *s;
    struct fake_engine *engines[N_GROUPS];
    int64_t now;
};

/* Two groups with so many slots each, and these blocks. */
static void open_rig(struct rig *t, uint32_t n_slots, const uint32_t n_blocks[N_GROUPS])
{
    struct sched_config config = {
        .arch = &golden_arch, .max_queue = 64, .prefill_budget_ns = NSEC_PER_SEC};
    struct err e = ERR_INIT;
    *t = (struct rig){.now = NSEC_PER_SEC};
    assert_int_equal(sched_new(&config, &t->s), 0);
    for (uint32_t i = 0; i != N_GROUPS; i++) {
        struct plan_limits l = fixture_small;
        l.n_slots = n_slots;
        l.n_blocks = n_blocks[i];
        t->engines[i] = fake_engine_new(&l);
        assert_int_equal(sched_attach(t->s, i, &l, 1, 1 + i, &e), 0);
    }
}

static void close_rig(struct rig *t)
{
    fixture_finish(t->s);
    for (uint32_t i = 0; i != N_GROUPS; i++)
        fake_engine_free(t->engines[i]);
}

static struct request *submit(struct rig *t, struct request *r)
{
    struct err e = ERR_INIT;
    if (fixture_submit(t->s, r, &e) < 0)
        fail_msg("%s", e.message);
    return r;
}

/* A step of a group that takes so long; false: it has nothing to do. */
static bool step(struct rig *t, uint32_t group, int64_t ns)
{
    const struct plan *p;
    struct err e = ERR_INIT;
    if (!sched_plan(t->s, group, t->now, &p))
        return false;
    t->now += ns;
    assert_int_equal(sched_commit(t->s, group, fake_engine_step(t->engines[group], p), t->now, &e),
                     0);
    return true;
}

static void run_on(struct rig *t, uint32_t group, struct request *r, int64_t step_ns)
{
    sched_drain(t->s, !group, true);
    submit(t, r);
    while (r->state != REQUEST_DONE)
        assert_true(step(t, group, step_ns));
    assert_int_equal(r->group, group);
    sched_drain(t->s, !group, false);
}

/* Where it starts. Steps take no time, so that nothing is measured by them. */
static uint32_t place_of(struct rig *t, struct request *r)
{
    submit(t, r);
    for (uint32_t i = 0; i != N_GROUPS && r->state == REQUEST_QUEUED; i++)
        step(t, i, 0);
    assert_int_equal(r->state, REQUEST_RUNNING);
    return r->group;
}

/* A group that drains starts nobody, however much room it has, and ends what it has. */
static void test_a_draining_group_starts_nobody(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, 4, (uint32_t[]){64, 32});
    struct request *old = fixture_request(20, 50);
    assert_int_equal(place_of(&t, old), 0); /* the larger one */
    sched_drain(t.s, 0, true);
    for (uint32_t i = 0; i != 4; i++)
        assert_int_equal(place_of(&t, fixture_request(20, 40)), 1);
    struct request *waits = submit(&t, fixture_request(20, 5));
    while (old->state != REQUEST_DONE)
        assert_true(step(&t, 0, 0)); /* goes on with what it has */
    assert_false(step(&t, 0, 0));
    assert_int_equal(waits->state, REQUEST_QUEUED);
    sched_drain(t.s, 0, false);
    assert_true(step(&t, 0, 0));
    assert_int_equal(waits->group, 0);
    close_rig(&t);
}

/* Equal otherwise: the one with fewer of its slots in use, then the one with more free memory. */
static void test_load_then_memory(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, 4, (uint32_t[]){64, 96});
    assert_int_equal(place_of(&t, fixture_request(20, 40)), 1); /* more memory */
    assert_int_equal(place_of(&t, fixture_request(21, 40)), 0); /* more slots; less memory still */
    assert_int_equal(place_of(&t, fixture_request(22, 40)), 1);
    close_rig(&t);
}

/* A context counts for more than load and memory, also before anything is measured. */
static void test_context_before_load(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, 4, (uint32_t[]){64, 96});
    run_on(&t, 0, fixture_request(60, 5), 0); /* steps without time: nothing is known of speed */
    sched_drain(t.s, 1, true);
    assert_int_equal(place_of(&t, fixture_request(20, 100)), 0);
    sched_drain(t.s, 1, false);
    assert_int_equal(place_of(&t, fixture_request(60, 6)), 0); /* more load, less memory */
    assert_int_equal(place_of(&t, fixture_request(61, 6)), 1); /* another context */
    close_rig(&t);
}

/* A group whose prompts take longer, or that has prompts to run first, is the worse place. */
static void test_the_shortest_wait(void **state)
{
    (void)state;
    struct rig t;
    open_rig(&t, 8, (uint32_t[]){96, 96});
    run_on(&t, 0, fixture_request(100, 5), 75 * NSEC_PER_MSEC);
    run_on(&t, 1, fixture_request(101, 5), 50 * NSEC_PER_MSEC);
    struct request *r[3];
    for (uint32_t i = 0; i != 3; i++)
        r[i] = submit(&t, fixture_request(i == 2 ? 101 : 102 + i, 5));
    assert_true(step(&t, 0, 0));
    assert_int_equal(r[0]->group, 1); /* faster */
    assert_int_equal(r[1]->group, 0); /* not behind the first one */
    assert_int_equal(r[2]->group, 1); /* nearly all of it is in the cache */
    close_rig(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_draining_group_starts_nobody),
        cmocka_unit_test(test_load_then_memory),
        cmocka_unit_test(test_context_before_load),
        cmocka_unit_test(test_the_shortest_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
