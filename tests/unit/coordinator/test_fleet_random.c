/* test_fleet_random.c: whatever the processes of several groups do, in any order: a group is ready
 * exactly between `ready` and `down`, epochs grow, and nothing is left at the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "fleet_world.h"

static void hang_up_all(struct fake_rank *ranks, unsigned n)
{
    for (unsigned i = 0; i != n; i++) {
        if (ranks[i].call)
            rank_hang_up(&ranks[i]);
    }
}

enum { N_GROUPS = 3, N_RANKS = 1 + 2 + 4, N_PROCESSES = 2 * N_RANKS };

static uint64_t random_state;

static uint32_t rnd(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static const struct {
    const char *name;
    unsigned tp, pp;
} plan_of[N_GROUPS] = {{"a", 1, 1}, {"b", 2, 1}, {"c", 2, 2}};

struct run {
    struct world *w;
    struct fake_rank p[N_PROCESSES]; /* two for every rank */
    uint64_t done_epoch[N_PROCESSES], n_done[N_PROCESSES];
    uint64_t next_step[WORLD_GROUPS], step_epoch[WORLD_GROUPS];
};

/* The next step of the newest grant; sometimes any other. */
static void answer(struct run *x, unsigned i, uint64_t epoch)
{
    if (x->done_epoch[i] != epoch) {
        x->done_epoch[i] = epoch;
        x->n_done[i] = 0;
    }
    struct wire_coordinator_message *m = rank_find_sent(&x->p[i], SENT_STEP);
    bool due = m && m->step->epoch == epoch && m->step->step > x->n_done[i];
    wire_free_coordinator_message(m);
    if (due)
        rank_done(&x->p[i], epoch, ++x->n_done[i], rnd(60) ? 3 : 4);
    else if (rnd(30) == 0)
        rank_done(&x->p[i], epoch, 1 + rnd(4), 3);
}

static void say_failed(struct fake_rank *r, uint64_t epoch)
{
    const struct wire_failed failed = {
        .epoch = epoch, .code = (enum wire_failure_code)rnd(8), .message = "m"};
    rank_say(r, &(struct wire_worker_message){.failed = &failed});
}

static void random_message(struct run *x, unsigned i)
{
    struct fake_rank *r = &x->p[i];
    uint64_t epoch = rnd(20) ? rank_granted(r) : 1 + rnd((uint32_t)x->w->last_epoch + 2);
    switch (rnd(8)) {
    case 0:
    case 1:
    case 2:
        rank_ready(r, epoch, rnd(60) ? 7 : 8);
        break;
    case 3:
    case 4:
    case 5:
        answer(x, i, epoch);
        break;
    case 6:
        if (!rnd(10))
            say_failed(r, epoch);
        break;
    default:
        rank_beat(r);
        break;
    }
}

static void init_processes(struct run *x)
{
    unsigned n = 0;
    for (unsigned g = 0; g != N_GROUPS; g++) {
        for (unsigned k = 0; k != 2 * plan_of[g].tp * plan_of[g].pp; k++, n++) {
            unsigned rank = k / 2;
            rank_init_in(&x->p[n], plan_of[g].name, rank, plan_of[g].tp, plan_of[g].pp);
            x->p[n].instance[15] = (uint8_t)n;
        }
    }
    assert_int_equal(n, N_PROCESSES);
}

/* Whatever the ranks do: a group is ready exactly between `ready` and `down`. */
static void random_turn(struct run *x)
{
    struct world *w = x->w;
    unsigned i = rnd(N_PROCESSES);
    struct fake_rank *r = &x->p[i];
    if (!r->call) {
        rank_dial(w, r);
        rank_loaded(r);
    } else if (rnd(150) == 0 || (r->call->finished && rnd(2)) || (rank_was_drained(r) && rnd(2))) {
        rank_hang_up(r);
    } else {
        random_message(x, i);
    }
    if (rnd(4) == 0)
        world_pass(w, (int64_t)rnd(300) * NSEC_PER_MSEC);
    uint32_t g = rnd(WORLD_GROUPS);
    if (x->step_epoch[g] != w->seen[g].epoch) {
        x->step_epoch[g] = w->seen[g].epoch;
        x->next_step[g] = 1;
    }
    if (fleet_can_send(w->fleet, g))
        world_send_step(w, g, x->next_step[g]++);
    if (rnd(400) == 0 && fleet_name(w->fleet, g) && !fleet_is_draining(w->fleet, g))
        fleet_drain(w->fleet, g, world_now + (int64_t)rnd(2000) * NSEC_PER_MSEC);
    if (rnd(20) == 0 && fleet_is_draining(w->fleet, g))
        fleet_release(w->fleet, g, "drained");
    for (g = 0; g != WORLD_GROUPS; g++)
        assert_int_equal(fleet_is_ready(w->fleet, g), w->seen[g].n_ready == w->seen[g].n_down + 1);
}

static void test_random_interleavings(void **state)
{
    (void)state;
    unsigned n_ready = 0, n_results = 0;
    for (uint64_t seed = 1; seed != 13; seed++) {
        struct run x = {.w = world_new(0)};
        random_state = seed * 2654435761u + 1;
        init_processes(&x);
        for (int n = 0; n != 1500; n++)
            random_turn(&x);
        fleet_stop(x.w->fleet, "end");
        hang_up_all(x.p, N_PROCESSES);
        assert_int_equal(fleet_n_sessions(x.w->fleet), 0);
        for (unsigned g = 0; g != WORLD_GROUPS; g++) {
            n_ready += x.w->seen[g].n_ready;
            n_results += x.w->seen[g].n_results;
        }
        world_free(x.w);
    }
    printf("%u groups formed, %u results\n", n_ready, n_results);
    assert_true(n_ready > 100 && n_results > 100);
}

/* ---- one group, two processes for each rank, messages that are wrong now and then ---- */

static void random_message_of_one(struct world *w, struct fake_rank *r)
{
    uint64_t epoch = rank_granted(r);
    if (rnd(20) == 0)
        epoch = rnd(8); /* another one, old or never granted */
    switch (rnd(8)) {
    case 0:
        if (rnd(10) == 0) /* a second one is an error */
            rank_loaded(r);
        break;
    case 1:
    case 2:
    case 3:
        rank_ready(r, epoch, rnd(40) ? 7 : 8);
        break;
    case 4:
        rank_done(r, epoch, 1 + rnd(3), rnd(10) ? 3 : 4);
        break;
    case 5:
        if (!rnd(4))
            say_failed(r, epoch);
        break;
    default:
        rank_beat(r);
        break;
    }
    (void)w;
}

static unsigned run_one_group(uint64_t seed)
{
    enum { RANKS = 3, PROCESSES = 6 };
    random_state = seed * 2654435761u + 1;
    struct world *w = world_new(RANKS);
    struct fake_rank p[PROCESSES]; /* two for every rank */
    uint64_t next_step = 1, step_epoch = 0;
    for (unsigned i = 0; i != PROCESSES; i++) {
        rank_init(&p[i], i % RANKS, RANKS);
        p[i].instance[1] = (uint8_t)i;
        p[i].hello.instance_id.data = p[i].instance;
    }
    for (int n = 0; n != 600; n++) {
        struct fake_rank *r = &p[rnd(PROCESSES)];
        if (!r->call) {
            rank_dial(w, r);
            rank_loaded(r);
        } else if (rnd(100) == 0 || (r->call->finished && rnd(2))) {
            rank_hang_up(r);
        } else {
            random_message_of_one(w, r);
        }
        if (rnd(3) == 0)
            world_pass(w, (int64_t)rnd(400) * NSEC_PER_MSEC);
        if (fleet_is_ready(w->fleet, 0) && rnd(2)) {
            next_step = w->seen[0].epoch == step_epoch ? next_step : 1;
            if (next_step <= w->seen[0].n_results + 1 || next_step == 1) {
                struct fleet_group_status status;
                fleet_status(w->fleet, 0, world_now, &status);
                assert_int_equal(status.group.state, WIRE_GROUP_READY);
                if (step_epoch != w->seen[0].epoch) {
                    world_send_step(w, 0, next_step++);
                    step_epoch = w->seen[0].epoch;
                }
            }
        }
        assert_true(w->seen[0].n_down <= w->seen[0].n_ready &&
                    w->seen[0].n_ready <= w->seen[0].n_down + 1);
        assert_int_equal(fleet_is_ready(w->fleet, 0), w->seen[0].n_ready == w->seen[0].n_down + 1);
    }
    fleet_stop(w->fleet, "end");
    hang_up_all(p, PROCESSES);
    assert_int_equal(fleet_n_sessions(w->fleet), 0);
    unsigned n_ready = w->seen[0].n_ready;
    world_free(w);
    return n_ready;
}

static void test_one_group(void **state)
{
    (void)state;
    unsigned n_ready = 0;
    for (uint64_t seed = 1; seed != 25; seed++)
        n_ready += run_one_group(seed);
    printf("%u groups formed\n", n_ready);
    assert_true(n_ready > 20);
}

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    world_start_clock();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_interleavings),
                                       cmocka_unit_test(test_one_group)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
