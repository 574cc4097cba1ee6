/* test_fleet.c: the ranks of one group and its epochs. Several groups: test_fleet_groups.c; in any
 * order: test_fleet_random.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "fleet_world.h"

static void test_group_forms(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    rank_init(&r[0], 0, 2);
    rank_init(&r[1], 1, 2);
    rank_dial(w, &r[0]);
    rank_loaded(&r[0]);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&r[0]), 0); /* rank 1 is missing */
    rank_dial(w, &r[1]);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&r[1]), 0); /* it has not loaded */
    rank_loaded(&r[1]);
    world_pass(w, 1);
    struct wire_coordinator_message *a = rank_find_sent(&r[0], SENT_GRANT),
                                    *b = rank_find_sent(&r[1], SENT_GRANT);
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->grant->epoch, 1);
    assert_int_equal(b->grant->epoch, 1);
    assert_int_equal(a->grant->comm, WIRE_COMM_SHM);
    assert_string_equal(a->grant->comm_name, b->grant->comm_name);
    assert_int_equal(a->grant->token.size, 16);
    assert_memory_equal(a->grant->token.data, b->grant->token.data, 16);
    assert_int_equal(b->grant->rank, 1);
    wire_free_coordinator_message(a);
    wire_free_coordinator_message(b);
    rank_ready(&r[1], 1, 5);
    assert_int_equal(w->seen[0].n_ready, 0);
    rank_ready(&r[0], 1, 5);
    assert_int_equal(w->seen[0].n_ready, 1);
    assert_int_equal(w->seen[0].limits.n_slots, 8); /* what both can take */
    assert_int_equal(w->seen[0].limits.n_blocks, 99);
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

struct bad_hello {
    const char *what;
    void (*spoil)(struct wire_hello *h);
    enum wire_refuse_code code;
    const char *word;
};

static void bad_protocol(struct wire_hello *h)
{
    h->protocol_min = h->protocol_max = WIRE_PROTOCOL_MAX + 1;
}
static void bad_cluster(struct wire_hello *h)
{
    h->cluster = "other";
}
static void bad_tp(struct wire_hello *h)
{
    h->tp_size = 4;
}
static void bad_rank(struct wire_hello *h)
{
    h->rank = 2;
}
static void bad_digest(struct wire_hello *h)
{
    h->model_digest = "ffffffffffffffffffffffffffffffff";
}
static void bad_activations(struct wire_hello *h)
{
    h->activations = "fp32";
}
static void bad_kv_cache(struct wire_hello *h)
{
    h->activations = "fp16+kv8";
}
static void bad_instance(struct wire_hello *h)
{
    h->instance_id.size = 3;
}
static void bad_epoch(struct wire_hello *h)
{
    h->last_epoch = UINT64_MAX;
}

static void test_wrong_ranks_are_refused(void **state)
{
    (void)state;
    static const struct bad_hello cases[] = {
        {"protocol", bad_protocol, WIRE_REFUSE_PROTOCOL, "same version"},
        {"cluster", bad_cluster, WIRE_REFUSE_CLUSTER, "cluster.name"},
        {"tp", bad_tp, WIRE_REFUSE_RANK, "group.tensor_parallel"},
        {"rank", bad_rank, WIRE_REFUSE_RANK, "rank 2 of 2"},
        {"digest", bad_digest, WIRE_REFUSE_MODEL, "digest"},
        {"activations", bad_activations, WIRE_REFUSE_MODEL, "worker.activations"},
        {"KV cache", bad_kv_cache, WIRE_REFUSE_MODEL, "worker.kv_cache"},
        {"instance", bad_instance, WIRE_REFUSE_PROTOCOL, "instance_id"},
        {"last epoch", bad_epoch, WIRE_REFUSE_PROTOCOL, "last_epoch"},
    };
    struct world *w = world_new(2);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct fake_rank r;
        rank_init(&r, 1, 2);
        cases[i].spoil(&r.hello);
        rank_dial(w, &r);
        struct wire_coordinator_message *m = rank_find_sent(&r, SENT_REFUSE);
        if (!m) {
            fail_msg("%s: not refused", cases[i].what);
            return;
        }
        if (m->refuse->code != cases[i].code || !strstr(m->refuse->reason, cases[i].word))
            fail_msg("%s: expected code %d and \"%s\", found %d and \"%s\"", cases[i].what,
                     (int)cases[i].code, cases[i].word, (int)m->refuse->code, m->refuse->reason);
        assert_true(r.call->finished);
        assert_int_equal(r.call->status, RPC_FAILED_PRECONDITION);
        wire_free_coordinator_message(m);
        rank_hang_up(&r);
    }
    /* the rank is still free for the right one */
    struct fake_rank r[2];
    world_form(w, r, 2);
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_lost_rank_ends_the_epoch(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    uint64_t epoch = world_form(w, r, 2);
    world_send_step(w, 0, 1);
    rank_hang_up(&r[1]);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_string_equal(w->seen[0].why, "rank 1 was lost");
    assert_true(rank_was_aborted(&r[0], epoch));
    assert_false(fleet_is_ready(w->fleet, 0));
    /* the late answer of the other rank changes nothing */
    rank_done(&r[0], epoch, 1, 1);
    assert_int_equal(w->seen[0].n_results, 0);
    /* it comes back; the other one is heard of again */
    world_now += NSEC_PER_MSEC;
    rank_beat(&r[0]);
    rank_dial(w, &r[1]);
    rank_loaded(&r[1]);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&r[1]), epoch + 1);
    assert_int_equal(rank_granted(&r[0]), epoch + 1);
    rank_ready(&r[0], epoch, 7); /* of the old epoch */
    rank_ready(&r[1], epoch + 1, 7);
    assert_int_equal(w->seen[0].n_ready, 1);
    rank_ready(&r[0], epoch + 1, 7);
    assert_int_equal(w->seen[0].n_ready, 2);
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_epochs_grow_over_restarts(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct fake_rank r;
    assert_int_equal(world_form(w, &r, 1), 1);
    rank_hang_up(&r);
    world_stop_fleet(w);
    world_start_fleet(w);
    assert_int_equal(world_form(w, &r, 1), 1 + EPOCH_RESERVE);
    rank_hang_up(&r);
    world_stop_fleet(w);
    /* the file was lost: the ranks remember */
    char path[128];
    snprintf(path, sizeof path, "%s/epoch", w->dir);
    unlink(path);
    world_start_fleet(w);
    rank_init(&r, 0, 1);
    r.hello.last_epoch = 41;
    rank_dial(w, &r);
    rank_loaded(&r);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&r), 42);
    rank_hang_up(&r);
    world_free(w);
}

static void test_steps(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    uint64_t epoch = world_form(w, r, 2);
    world_send_step(w, 0, 1);
    struct wire_coordinator_message *m = rank_find_sent(&r[1], SENT_STEP);
    assert_non_null(m);
    assert_int_equal(m->step->step, 1);
    wire_free_coordinator_message(m);
    rank_done(&r[1], epoch, 1, 99);
    assert_int_equal(w->seen[0].n_results, 0);
    rank_done(&r[0], epoch, 1, 99);
    assert_int_equal(w->seen[0].n_results, 1);
    world_send_step(w, 0, 2);
    rank_done(&r[0], epoch, 2, 5);
    rank_done(&r[1], epoch, 2, 6);
    assert_int_equal(w->seen[0].n_results, 1);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_non_null(strstr(w->seen[0].why, "disagree about step 2"));
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_unexpected_answers(void **state)
{
    (void)state;
    for (int how = 0; how != 3; how++) {
        struct world *w = world_new(2);
        struct fake_rank r[2];
        uint64_t epoch = world_form(w, r, 2);
        world_send_step(w, 0, 1);
        w->refuse_result = how == 2;
        rank_done(&r[0], epoch, how == 0 ? 2 : 1, 5); /* a step that is not out */
        if (how == 1)
            rank_done(&r[0], epoch, 1, 5); /* twice */
        if (how == 2)
            rank_done(&r[1], epoch, 1, 5); /* agreed, but no answer to the plan */
        if (w->seen[0].n_down != 1)
            fail_msg("case %d: expected the group to be down", how);
        rank_hang_up(&r[0]);
        rank_hang_up(&r[1]);
        world_free(w);
    }
}

static void test_known_answers_must_agree(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    for (unsigned i = 0; i != 2; i++) {
        rank_init(&r[i], i, 2);
        rank_dial(w, &r[i]);
        rank_loaded(&r[i]);
    }
    world_pass(w, 1);
    uint64_t epoch = rank_granted(&r[0]);
    rank_ready(&r[0], epoch, 7);
    rank_ready(&r[1], epoch, 8);
    assert_int_equal(w->seen[0].n_ready, 0);
    assert_true(rank_was_aborted(&r[0], epoch));
    struct fleet_group_status status;
    fleet_status(w->fleet, 0, world_now, &status);
    assert_non_null(strstr(status.group.last_error, "known answers differ"));
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_step_deadline(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    uint64_t epoch = world_form(w, r, 2);
    struct fleet_group_status status;
    fleet_status(w->fleet, 0, world_now, &status);
    assert_string_equal(status.ranks[1].collectives, "host: tests");
    world_send_step(w, 0, 1);
    rank_done(&r[0], epoch, 1, 9);
    for (int i = 0; i != 99; i++) {
        rank_beat(&r[0]);
        rank_beat(&r[1]);
        world_pass(w, NSEC_PER_SEC / 10);
    }
    assert_int_equal(w->seen[0].n_down, 0);
    rank_beat(&r[0]);
    rank_beat(&r[1]);
    world_pass(w, NSEC_PER_SEC / 5);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_non_null(strstr(w->seen[0].why, "no answer from rank 1"));
    assert_true(rank_was_aborted(&r[1], epoch));
    /* who has not been heard of since gets no new grant */
    rank_beat(&r[0]);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&r[0]), epoch);
    rank_beat(&r[0]);
    rank_beat(&r[1]);
    world_pass(w, 1);
    assert_int_equal(rank_granted(&r[0]), epoch + 1);
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_silent_rank(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    world_form(w, r, 2);
    for (int i = 0; i != 60; i++) {
        rank_beat(&r[0]);
        world_pass(w, NSEC_PER_SEC / 10);
    }
    assert_int_equal(w->seen[0].n_down, 1);
    assert_non_null(strstr(w->seen[0].why, "rank 1: nothing was heard of it"));
    assert_true(r[1].call->cancelled);
    assert_false(r[0].call->cancelled);
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_peer_failure_finds_the_cause(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    struct fake_rank r[2];
    uint64_t epoch = world_form(w, r, 2);
    const struct wire_failed failed = {
        .epoch = epoch, .step = 1, .code = WIRE_FAILURE_PEER, .message = "connection lost"};
    rank_say(&r[0], &(struct wire_worker_message){.failed = &failed});
    assert_int_equal(w->seen[0].n_down, 0); /* somebody else's fault: whose? */
    rank_hang_up(&r[1]);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_string_equal(w->seen[0].why, "rank 1 was lost");
    rank_hang_up(&r[0]);
    world_free(w);

    w = world_new(2); /* nobody goes: the rank's own word counts after a moment */
    epoch = world_form(w, r, 2);
    struct wire_failed again = failed;
    again.epoch = epoch;
    rank_say(&r[0], &(struct wire_worker_message){.failed = &again});
    world_pass(w, NSEC_PER_SEC / 10);
    assert_int_equal(w->seen[0].n_down, 0);
    world_pass(w, NSEC_PER_SEC / 2);
    assert_int_equal(w->seen[0].n_down, 1);
    assert_string_equal(w->seen[0].why,
                        "rank 0: a peer failed"); /* no text of the rank for clients */
    rank_hang_up(&r[0]);
    rank_hang_up(&r[1]);
    world_free(w);
}

static void test_second_process_waits_for_its_turn(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct fake_rank first, second, third;
    world_form(w, &first, 1);
    rank_init(&second, 0, 1);
    second.instance[0] = 77;
    rank_dial(w, &second);
    rank_loaded(&second);
    world_pass(w, NSEC_PER_SEC);
    assert_true(fleet_is_ready(w->fleet, 0));
    assert_int_equal(rank_granted(&second), 0);
    rank_init(&third, 0, 1);
    third.instance[0] = 78;
    rank_dial(w, &third);
    assert_null(rank_find_sent(&third, SENT_REFUSE)); /* it dials again: the others may be dead */
    assert_true(third.call->finished);
    assert_int_equal(third.call->status, RPC_UNAVAILABLE);
    rank_hang_up(&third);
    rank_hang_up(&first);
    world_now += NSEC_PER_MSEC;
    rank_beat(&second);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&second), 2);
    /* the same process over a new stream replaces its old one at once */
    struct fake_rank again = second;
    again.hello.instance_id.data = again.instance;
    rank_dial(w, &again);
    assert_true(second.call->finished);
    world_now += NSEC_PER_MSEC;
    rank_loaded(&again);
    rank_hang_up(&second);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&again), 3);
    rank_hang_up(&again);
    world_free(w);
}

static void assert_fenced(const struct fake_rank *r, bool expected)
{
    struct wire_coordinator_message *m = rank_find_sent(r, SENT_REFUSE);
    bool found = m && m->refuse->code == WIRE_REFUSE_FENCED;
    if (found != expected)
        fail_msg("expected the rank %s, found %s", expected ? "fenced" : "not fenced",
                 m ? m->refuse->reason : "no refusal");
    if (found) {
        assert_true(r->call->finished);
        assert_int_equal(r->call->status, RPC_FAILED_PRECONDITION);
    }
    wire_free_coordinator_message(m);
}

/* The first process of rank 0 of 1 hangs, the second has taken over: epoch 2. */
static void take_over(struct world *w, struct fake_rank *first, struct fake_rank *second)
{
    assert_int_equal(world_form(w, first, 1), 1);
    rank_init(second, 0, 1);
    second->instance[0] = 77;
    rank_dial(w, second);
    rank_loaded(second);
    rank_hang_up(first);
    world_now += NSEC_PER_MSEC;
    rank_beat(second);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(second), 2);
    rank_ready(second, 2, 7);
    assert_true(fleet_is_ready(w->fleet, 0));
}

static void test_a_process_of_an_older_epoch_is_fenced(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct fake_rank first, second, again;
    take_over(w, &first, &second);
    first.hello.last_epoch = 1;
    rank_dial(w, &first);
    assert_fenced(&first, true);
    assert_true(fleet_is_ready(w->fleet, 0));
    rank_hang_up(&first);
    /* the process that has the rank is not, whatever it remembers */
    again = second;
    again.hello.instance_id.data = again.instance;
    again.hello.last_epoch = 1;
    rank_dial(w, &again);
    assert_fenced(&again, false);
    rank_hang_up(&second);
    rank_loaded(&again);
    world_now += NSEC_PER_MSEC;
    rank_beat(&again);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&again), 3);
    /* started anew, it had no epoch and waits; so does one that had a later epoch */
    static const uint64_t last[] = {0, 3, 4};
    for (size_t i = 0; i != ARRAY_LEN(last); i++) {
        rank_init(&first, 0, 1);
        first.instance[0] = 78;
        first.hello.last_epoch = last[i];
        rank_dial(w, &first);
        assert_fenced(&first, false);
        assert_false(first.call->finished);
        rank_hang_up(&first);
    }
    rank_hang_up(&again);
    world_free(w);
}

static void test_who_waits_is_fenced_by_the_grant(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct fake_rank first, second;
    assert_int_equal(world_form(w, &first, 1), 1);
    rank_hang_up(&first);
    rank_init(&second, 0, 1); /* takes the rank, and loads for a while */
    second.instance[0] = 77;
    rank_dial(w, &second);
    first.hello.last_epoch = 1;
    rank_dial(w, &first);
    assert_fenced(&first, false); /* the rank may yet be its own again */
    rank_loaded(&first);
    rank_loaded(&second);
    world_now += NSEC_PER_MSEC;
    rank_beat(&second);
    world_pass(w, NSEC_PER_SEC);
    assert_int_equal(rank_granted(&second), 2);
    assert_fenced(&first, true);
    rank_ready(&second, 2, 7);
    rank_hang_up(&first);
    assert_true(fleet_is_ready(w->fleet, 0));
    rank_hang_up(&second);
    world_free(w);
}

static void test_what_is_of_an_older_epoch_is_counted(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    struct fake_rank first, second;
    take_over(w, &first, &second);
    assert_int_equal(fleet_n_fenced(w->fleet), 0);
    rank_ready(&second, 1, 7);
    rank_done(&second, 1, 1, 5);
    const struct wire_failed failed = {.epoch = 1, .code = WIRE_FAILURE_PEER, .message = "late"};
    rank_say(&second, &(struct wire_worker_message){.failed = &failed});
    assert_int_equal(fleet_n_fenced(w->fleet), 3);
    assert_true(fleet_is_ready(w->fleet, 0));
    rank_hang_up(&second);
    world_free(w);
}

static void test_hostile_messages(void **state)
{
    (void)state;
    static const char *const bytes[] = {"\xff\xff\xff", "\x0a\x05zz", "\x22\x02\x08\x01"};
    for (size_t i = 0; i != ARRAY_LEN(bytes); i++) {
        struct world *w = world_new(1);
        struct fake_rank r;
        world_form(w, &r, 1);
        struct buf b = {0};
        buf_append_str(&b, bytes[i]);
        fake_rpc_receive(r.call, &b);
        buf_deinit(&b);
        if (i < 2 && !r.call->finished)
            fail_msg("message %zu was accepted", i);
        rank_hang_up(&r);
        world_free(w);
    }
    /* before Hello nothing else counts */
    struct world *w = world_new(1);
    struct fake_rank r;
    rank_init(&r, 0, 1);
    r.call = fake_rpc_new();
    fleet_on_session(r.call, w->fleet);
    rank_loaded(&r);
    assert_true(r.call->finished);
    rank_hang_up(&r);
    /* limits that are not the model's */
    rank_init(&r, 0, 1);
    rank_dial(w, &r);
    r.loaded.limits.vocab = 641;
    rank_loaded(&r);
    struct wire_coordinator_message *m = rank_find_sent(&r, SENT_REFUSE);
    assert_non_null(m);
    assert_non_null(strstr(m->refuse->reason, "641"));
    wire_free_coordinator_message(m);
    rank_hang_up(&r);
    world_free(w);
}

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    world_start_clock();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_forms),
        cmocka_unit_test(test_wrong_ranks_are_refused),
        cmocka_unit_test(test_lost_rank_ends_the_epoch),
        cmocka_unit_test(test_epochs_grow_over_restarts),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_unexpected_answers),
        cmocka_unit_test(test_known_answers_must_agree),
        cmocka_unit_test(test_step_deadline),
        cmocka_unit_test(test_silent_rank),
        cmocka_unit_test(test_peer_failure_finds_the_cause),
        cmocka_unit_test(test_second_process_waits_for_its_turn),
        cmocka_unit_test(test_a_process_of_an_older_epoch_is_fenced),
        cmocka_unit_test(test_who_waits_is_fenced_by_the_grant),
        cmocka_unit_test(test_what_is_of_an_older_epoch_is_counted),
        cmocka_unit_test(test_hostile_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
