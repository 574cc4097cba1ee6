/* test_fleet_groups.c: several groups of several shapes: who belongs to which, who may not disturb
 * whom, how groups come and go; and the pipeline stages of one. */
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

static uint32_t number_of(const struct world *w, const char *group)
{
    int64_t number = fleet_find(w->fleet, group);
    if (number < 0)
        fail_msg("there is no group %s", group);
    return (uint32_t)number;
}

static enum wire_group_state state_of(const struct world *w, const char *group)
{
    struct fleet_group_status status;
    fleet_status(w->fleet, number_of(w, group), world_now, &status);
    return status.group.state;
}

static void hang_up_all(struct fake_rank *ranks, unsigned n)
{
    for (unsigned i = 0; i != n; i++) {
        if (ranks[i].call)
            rank_hang_up(&ranks[i]);
    }
}

/* Dials, and expects to be refused with these words. */
static void expect_refused(struct world *w, struct fake_rank *r, const char *words)
{
    rank_dial(w, r);
    struct wire_coordinator_message *m = rank_find_sent(r, SENT_REFUSE);
    if (!m)
        fail_msg("not refused: \"%s\"", words);
    else if (m->refuse->code != WIRE_REFUSE_RANK || !strstr(m->refuse->reason, words))
        fail_msg("expected \"%s\", found %d and \"%s\"", words, (int)m->refuse->code,
                 m->refuse->reason);
    wire_free_coordinator_message(m);
    rank_hang_up(r);
}

/* ---- groups beside each other ---- */

static void test_groups_of_different_sizes(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank a[1], b[2], c[4];
    assert_int_equal(fleet_find(w->fleet, "a"), -1);
    uint64_t epochs[] = {world_form_in(w, a, "a", 1, 1), world_form_in(w, b, "b", 2, 1),
                         world_form_in(w, c, "c", 2, 2)};
    uint32_t na = number_of(w, "a"), nb = number_of(w, "b"), nc = number_of(w, "c");
    assert_true(na != nb && nb != nc && na != nc);
    assert_true(epochs[0] != epochs[1] && epochs[1] != epochs[2] && epochs[0] != epochs[2]);
    assert_int_equal(w->seen[na].n_stages, 1);
    assert_int_equal(w->seen[nc].n_stages, 2);
    assert_int_equal(w->seen[nc].limits.n_slots, 8); /* what all its ranks can take */
    assert_int_equal(w->seen[nc].limits.n_blocks, 97);
    /* steps and results stay within their group */
    world_send_step(w, nb, 1);
    struct wire_coordinator_message *m = rank_find_sent(&a[0], SENT_STEP);
    assert_null(m);
    rank_done(&b[0], epochs[1], 1, 5);
    rank_done(&b[1], epochs[1], 1, 5);
    assert_int_equal(w->seen[nb].n_results, 1);
    assert_int_equal(w->seen[na].n_results + w->seen[nc].n_results, 0);
    /* the loss of a rank, too */
    rank_hang_up(&b[1]);
    assert_int_equal(w->seen[nb].n_down, 1);
    assert_true(fleet_is_ready(w->fleet, na) && fleet_is_ready(w->fleet, nc));
    assert_true(fleet_any_ready(w->fleet));
    assert_false(rank_was_aborted(&a[0], epochs[0]));
    assert_int_equal(state_of(w, "b"), WIRE_GROUP_DEGRADED);
    assert_int_equal(state_of(w, "c"), WIRE_GROUP_READY);
    hang_up_all(a, 1);
    hang_up_all(b, 2);
    assert_int_equal(state_of(w, "b"), WIRE_GROUP_GONE);
    hang_up_all(c, 4);
    assert_false(fleet_any_ready(w->fleet));
    world_free(w);
}

/* A rank sends what belongs to another group's epoch: nothing happens there. */
static void test_foreign_epochs(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank a[1], b[2];
    uint64_t ea = world_form_in(w, a, "a", 1, 1), eb = world_form_in(w, b, "b", 2, 1);
    uint32_t na = number_of(w, "a"), nb = number_of(w, "b");
    world_send_step(w, nb, 1);
    rank_done(&b[1], eb, 1, 5);
    const struct wire_failed failed = {
        .epoch = eb, .step = 1, .code = WIRE_FAILURE_INTERNAL, .message = "not mine"};
    rank_say(&a[0], &(struct wire_worker_message){.failed = &failed});
    rank_done(&a[0], eb, 1, 5);
    rank_ready(&a[0], eb, 9);
    assert_int_equal(w->seen[nb].n_results + w->seen[nb].n_down + w->seen[na].n_down, 0);
    rank_done(&b[0], eb, 1, 5);
    assert_int_equal(w->seen[nb].n_results, 1);
    rank_done(&a[0], ea, 1, 5); /* of its own epoch, and nobody asked: its own group pays */
    assert_int_equal(w->seen[na].n_down, 1);
    assert_int_equal(w->seen[nb].n_down, 0);
    hang_up_all(a, 1);
    hang_up_all(b, 2);
    world_free(w);
}

/* One rank's idea of the last epoch cannot use up the epochs of all. */
static void test_epochs_cannot_be_used_up(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank a, b;
    rank_init_in(&a, "a", 0, 1, 1);
    a.hello.last_epoch = UINT64_C(1) << 48;
    rank_dial(w, &a);
    rank_loaded(&a);
    world_pass(w, 1);
    uint64_t epoch = rank_granted(&a);
    assert_int_equal(epoch, (UINT64_C(1) << 48) + 1);
    rank_init_in(&b, "b", 0, 1, 1);
    b.hello.last_epoch = epoch; /* as a rank would say that had an epoch since */
    rank_dial(w, &b);
    rank_loaded(&b);
    world_pass(w, 1);
    assert_int_equal(rank_granted(&b), epoch + 1);
    rank_hang_up(&b);
    b.hello.last_epoch = epoch + 2; /* granted by nobody */
    rank_dial(w, &b);
    struct wire_coordinator_message *m = rank_find_sent(&b, SENT_REFUSE);
    assert_non_null(m);
    wire_free_coordinator_message(m);
    hang_up_all(&a, 1);
    hang_up_all(&b, 1);
    world_free(w);
}

/* ---- shapes ---- */

static void test_shapes_must_agree(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[6], odd;
    for (unsigned i = 0; i != 6; i++)
        rank_init_in(&r[i], "g", i, 2, 3); /* 7 layers: 2, 2, 3 */
    rank_dial(w, &r[2]);
    rank_init_in(&odd, "g", 0, 3, 2);
    expect_refused(w, &odd, "expected a rank of 2 x 3, found one of 3 x 2");
    rank_init_in(&odd, "g", 3, 2, 3);
    odd.hello.layer_end = 5;
    expect_refused(w, &odd,
                   "expected layers 2 to 4 as the other ranks of stage 1 have, found 2 to");
    rank_init_in(&odd, "g", 0, 2, 3);
    odd.hello.layer_end = 3;
    expect_refused(w, &odd, "expected stage 0 to end at layer 2, where the next stage begins");
    odd.hello.layer_begin = 1;
    expect_refused(w, &odd, "expected stage 0 of 3 to have its part of the model's 7 layers");
    rank_init_in(&odd, "g", 4, 2, 3);
    odd.hello.layer_begin = 5;
    expect_refused(w, &odd, "expected stage 2 to begin at layer 4, where the stage before it ends");
    odd.hello.layer_begin = 4;
    odd.hello.layer_end = 8;
    expect_refused(w, &odd, "model's 7 layers, found 4 to 8");
    rank_init_in(&odd, "g", 6, 2, 3);
    expect_refused(w, &odd, "found rank 6 of 2 x 3");
    odd.hello.tp_size = 0;
    odd.hello.pp_size = 0x80000000u;
    odd.hello.rank = 0;
    expect_refused(w, &odd, "found rank 0 of 0 x 2147483648");
    rank_init_in(&odd, "g", 0, 65, 1);
    expect_refused(w, &odd, "at most 64 ranks and 32 stages");
    rank_init_in(&odd, "a/b", 0, 1, 1);
    expect_refused(w, &odd, "group.name");
    rank_init_in(&odd, "", 0, 1, 1);
    expect_refused(w, &odd, "group.name");
    /* once nobody is left, the group may have another shape */
    rank_hang_up(&r[2]);
    world_form_in(w, r, "g", 1, 2);
    assert_int_equal(fleet_max_groups(w->fleet), WORLD_GROUPS);
    hang_up_all(r, 2);
    rank_init_in(&odd, "g", 0, 1, 2);
    odd.hello.layer_end = 5; /* and other layers */
    rank_dial(w, &odd);
    assert_false(odd.call->finished);
    hang_up_all(&odd, 1);
    world_free(w);
}

static void test_stages_may_be_uneven(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[3];
    static const uint32_t begin[] = {0, 1, 6}, end[] = {1, 6, 7};
    for (unsigned i = 0; i != 3; i++) {
        rank_init_in(&r[i], "g", i, 1, 3);
        r[i].hello.layer_begin = begin[i];
        r[i].hello.layer_end = end[i];
        rank_dial(w, &r[i]);
        rank_loaded(&r[i]);
    }
    world_pass(w, 1);
    assert_int_equal(rank_granted(&r[2]), 1);
    struct fleet_group_status status;
    fleet_status(w->fleet, number_of(w, "g"), world_now, &status);
    assert_int_equal(status.group.tp_size, 1);
    assert_int_equal(status.group.pp_size, 3);
    assert_int_equal(status.group.n_stage_layers, 3);
    assert_int_equal(status.group.stage_layers[1], 5);
    assert_int_equal(status.ranks[2].stage, 2);
    hang_up_all(r, 3);
    world_free(w);
}

struct comm_case {
    const char *domains[4];
    unsigned tp, pp;
    enum wire_comm_kind comm, link;
};

/* Shared memory where all ranks of every stage, or of every column, see the same one. */
static void test_comms(void **state)
{
    (void)state;
    static const struct comm_case cases[] = {
        {{"x", "x", "x", "x"}, 2, 2, WIRE_COMM_SHM, WIRE_COMM_SHM},
        {{"x", "x", "y", "y"}, 2, 2, WIRE_COMM_SHM, WIRE_COMM_TCP}, /* a host for each stage */
        {{"x", "y", "x", "y"}, 2, 2, WIRE_COMM_TCP, WIRE_COMM_SHM}, /* a host for each column */
        {{"x", "x", "x", "y"}, 2, 2, WIRE_COMM_TCP, WIRE_COMM_TCP},
        {{"", "", "", ""}, 2, 2, WIRE_COMM_TCP, WIRE_COMM_TCP},
        {{"x", "x", "x", "x"}, 1, 4, WIRE_COMM_SELF, WIRE_COMM_SHM},
        {{"x", "y", "z", ""}, 1, 4, WIRE_COMM_SELF, WIRE_COMM_TCP},
        {{"x", "x", "x", "x"}, 4, 1, WIRE_COMM_SHM, WIRE_COMM_SELF},
        {{"x", "x", "x", "y"}, 4, 1, WIRE_COMM_TCP, WIRE_COMM_SELF},
    };
    static const char *const addresses[] = {"h0:1", "h1:1", "h2:1", "h3:1"};
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        const struct comm_case *c = &cases[i];
        struct world *w = world_new(0);
        struct fake_rank r[4];
        for (unsigned k = 0; k != 4; k++) {
            rank_init_in(&r[k], "g", k, c->tp, c->pp);
            r[k].hello.shm_domain = c->domains[k];
            r[k].hello.listen_addresses = &addresses[k];
            r[k].hello.n_listen_addresses = 1;
            rank_dial(w, &r[k]);
            rank_loaded(&r[k]);
        }
        world_pass(w, 1);
        for (unsigned k = 0; k != 4; k++) {
            struct wire_coordinator_message *m = rank_find_sent(&r[k], SENT_GRANT);
            assert_non_null(m);
            const struct wire_grant *g = m->grant;
            if (g->comm != c->comm || g->link_comm != c->link)
                fail_msg("case %zu, rank %u: expected %d and %d, found %d and %d", i, k,
                         (int)c->comm, (int)c->link, (int)g->comm, (int)g->link_comm);
            bool tcp = c->comm == WIRE_COMM_TCP || c->link == WIRE_COMM_TCP;
            bool shm = c->comm == WIRE_COMM_SHM || c->link == WIRE_COMM_SHM;
            assert_int_equal(g->n_peers, tcp ? 4 : 0);
            assert_int_equal(*g->comm_name != '\0', shm);
            if (tcp)
                assert_string_equal(g->peers[3], "h3:1");
            assert_string_equal(g->group, "g");
            assert_int_equal(g->rank, k);
            assert_int_equal(g->tp_size, c->tp);
            assert_int_equal(g->pp_size, c->pp);
            wire_free_coordinator_message(m);
        }
        hang_up_all(r, 4);
        world_free(w);
    }
}

/* ---- steps of a pipeline ---- */

static void test_the_result_is_the_last_stage_s(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[4];
    uint64_t epoch = world_form_in(w, r, "g", 2, 2);
    /* every stage has a step, and one waits */
    for (uint64_t step = 1; step != 4; step++) {
        assert_true(fleet_can_send(w->fleet, 0));
        world_send_step(w, 0, step);
    }
    assert_false(fleet_can_send(w->fleet, 0));
    /* the first stage runs ahead */
    for (uint64_t step = 1; step != 4; step++) {
        rank_done(&r[0], epoch, step, 10 + step);
        rank_done(&r[1], epoch, step, 10 + step);
    }
    assert_int_equal(w->seen[0].n_results, 0);
    rank_done(&r[3], epoch, 1, 21);
    rank_done(&r[2], epoch, 1, 21);
    assert_int_equal(w->seen[0].n_results, 1);
    assert_int_equal(w->seen[0].last_hash, 21);
    assert_true(fleet_can_send(w->fleet, 0));
    world_send_step(w, 0, 4);
    rank_done(&r[2], epoch, 2, 22);
    rank_done(&r[2], epoch, 3, 23);
    rank_done(&r[3], epoch, 2, 22);
    rank_done(&r[3], epoch, 3, 23);
    assert_int_equal(w->seen[0].n_results, 3);
    assert_int_equal(w->seen[0].last_hash, 23);
    /* ranks of a stage must agree, those of different stages cannot */
    rank_done(&r[2], epoch, 4, 24);
    rank_done(&r[3], epoch, 4, 24);
    rank_done(&r[0], epoch, 4, 14);
    rank_done(&r[1], epoch, 4, 15);
    assert_int_equal(w->seen[0].n_results, 3);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_non_null(strstr(w->seen[0].why, "disagree about step 4: rank 0 has state"));
    hang_up_all(r, 4);
    world_free(w);
}

static void test_answers_come_in_order(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[2];
    uint64_t epoch = world_form_in(w, r, "g", 1, 2);
    world_send_step(w, 0, 1);
    world_send_step(w, 0, 2);
    rank_done(&r[0], epoch, 2, 1);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_string_equal(w->seen[0].why, "rank 0 answered step 2, and it was step 1's turn");
    hang_up_all(r, 2);
    world_free(w);
}

/* A step's time counts from when it is the oldest: those behind it wait for it first. */
static void test_deadlines_of_a_pipeline(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[2];
    uint64_t epoch = world_form_in(w, r, "g", 1, 2);
    const int64_t step_ns = w->config.deadlines.step;
    for (uint64_t step = 1; step != 4; step++)
        world_send_step(w, 0, step);
    for (uint64_t step = 1; step != 4; step++) {
        for (int i = 0; i != 9; i++) {
            rank_beat(&r[0]);
            rank_beat(&r[1]);
            world_pass(w, step_ns / 10);
        }
        assert_int_equal(w->seen[0].n_down, 0);
        rank_done(&r[0], epoch, step, 1);
        rank_done(&r[1], epoch, step, 1);
        assert_int_equal(w->seen[0].n_results, step);
    }
    hang_up_all(r, 2);
    world_free(w);
}

/* ---- groups that come and go ---- */

static void test_drain(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank a[2], b[1], again;
    uint64_t epoch = world_form_in(w, a, "a", 2, 1);
    world_form_in(w, b, "b", 1, 1);
    uint32_t na = number_of(w, "a");
    world_send_step(w, na, 1);
    fleet_drain(w->fleet, na, world_now + 60 * NSEC_PER_SEC);
    assert_int_equal(state_of(w, "a"), WIRE_GROUP_DRAINING);
    assert_true(fleet_is_ready(w->fleet, na) && fleet_is_draining(w->fleet, na));
    assert_false(rank_was_drained(&a[0])); /* a request is to finish */
    rank_done(&a[0], epoch, 1, 1);
    rank_done(&a[1], epoch, 1, 1);
    assert_int_equal(w->seen[na].n_results, 1);
    fleet_release(w->fleet, na, "drained");
    assert_int_equal(w->seen[na].n_down, 1);
    assert_true(rank_was_drained(&a[0]) && rank_was_drained(&a[1]));
    /* it is not formed again, and a new process has to wait */
    rank_beat(&a[0]);
    rank_beat(&a[1]);
    rank_beat(&b[0]);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&a[0]), epoch);
    rank_init_in(&again, "a", 0, 2, 1);
    again.instance[8] = 77;
    rank_dial(w, &again);
    assert_true(again.call->finished);
    assert_int_equal(again.call->status, RPC_UNAVAILABLE);
    rank_hang_up(&again);
    /* a rank that had only lost its stream is told again */
    rank_hang_up(&a[0]);
    rank_dial(w, &a[0]);
    assert_false(a[0].call->finished);
    assert_true(rank_was_drained(&a[0]));
    hang_up_all(a, 2);
    assert_int_equal(state_of(w, "a"), WIRE_GROUP_GONE);
    assert_true(fleet_any_ready(w->fleet)); /* b never noticed */
    assert_int_equal(w->seen[number_of(w, "b")].n_down, 0);
    /* the name is free for a new life */
    rank_beat(&b[0]);
    world_form_in(w, a, "a", 2, 1);
    assert_int_equal(state_of(w, "a"), WIRE_GROUP_READY);
    hang_up_all(a, 2);
    hang_up_all(b, 1);
    world_free(w);
}

static void test_drain_ends_at_its_deadline(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank a[1], b[2];
    world_form_in(w, a, "a", 1, 1);
    world_send_step(w, 0, 1);
    fleet_drain(w->fleet, 0, world_now + NSEC_PER_SEC);
    rank_beat(&a[0]);
    world_pass(w, NSEC_PER_SEC / 2);
    assert_int_equal(w->seen[0].n_down, 0);
    rank_beat(&a[0]);
    world_pass(w, NSEC_PER_SEC / 2);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_true(rank_was_drained(&a[0]));
    hang_up_all(a, 1);
    /* when the epoch ends before, there is nothing to wait for; nor without one */
    world_form_in(w, b, "b", 2, 1);
    uint32_t nb = number_of(w, "b");
    fleet_drain(w->fleet, nb, world_now + 60 * NSEC_PER_SEC);
    rank_hang_up(&b[1]);
    assert_true(rank_was_drained(&b[0]));
    rank_hang_up(&b[0]);
    rank_init_in(&a[0], "c", 0, 2, 1);
    rank_dial(w, &a[0]);
    fleet_drain(w->fleet, number_of(w, "c"), world_now + 60 * NSEC_PER_SEC);
    assert_true(rank_was_drained(&a[0]));
    hang_up_all(a, 1);
    world_free(w);
}

static void test_groups_are_forgotten(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    struct fake_rank r[1];
    world_form_in(w, r, "a", 1, 1);
    rank_hang_up(&r[0]);
    for (int i = 0; i != 9; i++)
        world_pass(w, 60 * NSEC_PER_SEC);
    assert_int_equal(state_of(w, "a"), WIRE_GROUP_GONE);
    for (int i = 0; i != 2; i++)
        world_pass(w, 60 * NSEC_PER_SEC);
    assert_int_equal(fleet_find(w->fleet, "a"), -1);
    assert_null(fleet_name(w->fleet, 0));
    assert_int_equal(w->seen[0].n_gone, 1);
    world_free(w);
    /* those that are to be spawned stay */
    w = world_new(2);
    for (int i = 0; i != 20; i++)
        world_pass(w, 60 * NSEC_PER_SEC);
    assert_int_equal(state_of(w, "0"), WIRE_GROUP_FORMING);
    world_free(w);
}

static void test_replicas_are_there_from_the_start(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    world_stop_fleet(w);
    w->config.group.replicas = 3;
    world_start_fleet(w);
    assert_string_equal(fleet_name(w->fleet, 0), "0");
    assert_string_equal(fleet_name(w->fleet, 2), "2");
    assert_null(fleet_name(w->fleet, 3));
    struct fake_rank odd, r[2];
    rank_init_in(&odd, "1", 0, 1, 1);
    expect_refused(w, &odd, "expected a rank of 2 x 1, found one of 1 x 1");
    world_form_in(w, r, "1", 2, 1);
    assert_true(fleet_is_ready(w->fleet, 1));
    fleet_note(w->fleet, "2", 1, "killed by signal 9");
    fleet_note(w->fleet, "2", 2, "there is no rank 2");
    fleet_note(w->fleet, "x", 0, "nor such a group");
    struct fleet_group_status status;
    fleet_status(w->fleet, 2, world_now, &status);
    assert_string_equal(status.ranks[1].last_error, "killed by signal 9");
    assert_int_equal(status.ranks[1].state, WIRE_RANK_FAILED);
    hang_up_all(r, 2);
    world_free(w);
}

/* One name too many is turned away, and may come back; names that are only remembered make room. */
static void test_bounds(void **state)
{
    (void)state;
    struct world *w = world_new(0);
    w->config.coordinator.limits.max_ranks = 12;
    struct fake_rank r[WORLD_GROUPS + 1];
    char names[WORLD_GROUPS + 1][8];
    for (unsigned i = 0; i != WORLD_GROUPS + 1; i++) {
        snprintf(names[i], sizeof names[i], "g%u", i);
        rank_init_in(&r[i], names[i], 0, 1, 1);
        rank_dial(w, &r[i]);
    }
    assert_false(r[WORLD_GROUPS - 1].call->finished);
    assert_true(r[WORLD_GROUPS].call->finished);
    assert_int_equal(r[WORLD_GROUPS].call->status, RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(r[WORLD_GROUPS].call->message, "max_groups (8)"));
    rank_hang_up(&r[WORLD_GROUPS]);
    rank_hang_up(&r[3]);
    rank_dial(w, &r[WORLD_GROUPS]);
    assert_false(r[WORLD_GROUPS].call->finished);
    assert_int_equal(fleet_find(w->fleet, "g3"), -1);
    assert_int_equal(w->seen[3].n_gone, 1);
    rank_hang_up(&r[0]);
    rank_init_in(&r[0], "large", 0, 6, 1); /* 7 are there, and 12 are allowed */
    rank_dial(w, &r[0]);
    assert_true(r[0].call->finished);
    assert_non_null(strstr(r[0].call->message, "max_ranks (12)"));
    hang_up_all(r, WORLD_GROUPS + 1);
    world_free(w);
}

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    world_start_clock();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_of_different_sizes),
        cmocka_unit_test(test_foreign_epochs),
        cmocka_unit_test(test_epochs_cannot_be_used_up),
        cmocka_unit_test(test_shapes_must_agree),
        cmocka_unit_test(test_stages_may_be_uneven),
        cmocka_unit_test(test_comms),
        cmocka_unit_test(test_the_result_is_the_last_stage_s),
        cmocka_unit_test(test_answers_come_in_order),
        cmocka_unit_test(test_deadlines_of_a_pipeline),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_drain_ends_at_its_deadline),
        cmocka_unit_test(test_groups_are_forgotten),
        cmocka_unit_test(test_replicas_are_there_from_the_start),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
