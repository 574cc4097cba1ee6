/* test_session.c: the session's rules, with a recording fake in place of stream and engine. */
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
#include "session_rig.h"
#include "worker/exit.h"

static void says_hello_while_loading(void **state)
{
    (void)state;
    struct fake f;
    fake_init(&f, true);
    session_connected(&f.session, 0);
    expect(&f, "hello");
    const struct session_progress p = {.loaded_bytes = 5, .total_bytes = 9};
    session_tick(&f.session, 0, &p);
    expect(&f, "beat:LOADING");
    assert_int_equal(f.beat.loaded_bytes, 5);
    assert_int_equal(f.beat.total_bytes, 9);
    session_loaded(&f.session, &loaded);
    expect(&f, "loaded");
    session_tick(&f.session, NSEC_PER_SEC, &p);
    expect(&f, "beat:LOADED");
}

static void runs_steps_in_order(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_step(&f, 7, 2);
    expect(&f, "step:7:1 step:7:2");
    done(&f, 7, 1);
    say_step(&f, 7, 3);
    done(&f, 7, 2);
    done(&f, 7, 3);
    expect(&f, "done step:7:3 done done");
    assert_int_equal(f.session.last_done, 3);
}

static void refuses_a_third_step_in_flight(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_step(&f, 7, 2);
    say_step(&f, 7, 3);
    expect(&f, "step:7:1 step:7:2 failed:7:3:PROTOCOL abort");
}

static void refuses_gaps_and_repeats(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 2);
    expect(&f, "failed:7:2:PROTOCOL abort");
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_step(&f, 7, 1);
    expect(&f, "step:7:1 failed:7:1:PROTOCOL abort");
}

static void refuses_steps_before_ready(void **state)
{
    (void)state;
    struct fake f;
    fake_init(&f, true);
    session_loaded(&f.session, &loaded);
    session_connected(&f.session, 0);
    say_grant(&f, 7, 0);
    say_step(&f, 7, 1);
    expect(&f, "hello loaded join:7 failed:7:1:PROTOCOL abort");
    session_joined(&f.session, 7, 1, "host: shm"); /* too late: the epoch is over here */
    expect(&f, "");
}

static void validates_plans(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step_of(&f, 7, 1, 100);
    expect(&f, "failed:7:1:BAD_PLAN abort");
    assert_non_null(strstr(f.failure, "tokens[0]: expected an id below 100, found 100"));
}

static void drops_what_is_older(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 6, 9);
    say_abort(&f, 6);
    const struct wire_lease lease = {6, 5000};
    say(&f, &(struct wire_coordinator_message){.lease = &lease}, 0);
    expect(&f, "");
    assert_int_equal(f.session.n_fenced, 3);
    say_step(&f, 7, 1);
    expect(&f, "step:7:1");
    done(&f, 6, 1); /* an answer of the engine from before */
    session_step_failed(&f.session, 6, 1, -ECANCELED, "old");
    session_join_failed(&f.session, 6, -EIO, "old");
    expect(&f, "");
    done(&f, 7, 1);
    expect(&f, "done");
}

static void drops_steps_of_an_epoch_that_ended_here(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    session_step_failed(&f.session, 7, 1, -ETIMEDOUT, "rank 0 did not answer");
    expect(&f, "step:7:1 failed:7:1:PEER abort");
    say_step(&f, 7, 2); /* was on its way */
    expect(&f, "");
    assert_int_equal(f.session.n_fenced, 1);
    say_grant(&f, 8, 0);
    session_joined(&f.session, 8, 42, "host: shm");
    say_step(&f, 8, 1);
    expect(&f, "join:8 ready:8 step:8:1");
}

static void refuses_epochs_without_a_grant(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 8, 1);
    expect(&f, "failed:8:0:PROTOCOL abort");
    fake_ready(&f);
    say_abort(&f, 9);
    expect(&f, "failed:9:0:PROTOCOL abort");
}

static void a_grant_ends_the_epoch_before(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_grant(&f, 9, 0);
    expect(&f, "step:7:1 abort join:9");
    done(&f, 7, 1);
    expect(&f, "");
    session_joined(&f.session, 9, 42, "host: shm");
    say_step(&f, 9, 1);
    done(&f, 9, 1);
    expect(&f, "ready:9 step:9:1 done");
}

static void epochs_only_grow(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_grant(&f, 7, 0);
    expect(&f, "abort failed:7:0:PROTOCOL");
    say_grant(&f, 3, 0);
    expect(&f, "failed:3:0:PROTOCOL");
    session_disconnected(&f.session);
    session_connected(&f.session, 0);
    expect(&f, "hello loaded");
    assert_int_equal(f.hello_last_epoch, 7);
}

static void checks_grants(void **state)
{
    (void)state;
#define BAD_GRANT(part, ...)                                                                       \
    do {                                                                                           \
        struct fake f;                                                                             \
        fake_init(&f, true);                                                                       \
        session_loaded(&f.session, &loaded);                                                       \
        session_connected(&f.session, 0);                                                          \
        struct wire_grant g = grant_of(7);                                                         \
        __VA_ARGS__;                                                                               \
        say(&f, &(struct wire_coordinator_message){.grant = &g}, 0);                               \
        expect(&f, "hello loaded failed:7:0:PROTOCOL");                                            \
        if (!strstr(f.failure, part))                                                              \
            fail_msg("expected \"%s\", found \"%s\"", part, f.failure);                            \
    } while (0)
    BAD_GRANT("protocol", g.protocol = WIRE_PROTOCOL_MAX + 1);
    BAD_GRANT("rank: expected 1 of 2 x 1, found 0 of 2 x 1", g.rank = 0);
    BAD_GRANT("rank: expected 1 of 2 x 1, found 1 of 4 x 1", g.tp_size = 4);
    BAD_GRANT("rank: expected 1 of 2 x 1, found 1 of 2 x 3", g.pp_size = 3);
    BAD_GRANT("group: expected \"g\", found \"h\"", g.group = "h");
    BAD_GRANT("comm: SELF for 2", g.comm = WIRE_COMM_SELF);
    BAD_GRANT("no kind 4", g.comm = WIRE_COMM_NCCL);
    BAD_GRANT("no kind 0", g.comm = WIRE_COMM_UNSPECIFIED);
    BAD_GRANT("token", g.token.size = 15);
    BAD_GRANT("comm_name", g.comm_name = "../x");
    BAD_GRANT("comm_name", g.comm_name = "a/b");
    BAD_GRANT("comm_name", g.comm_name = "");
    BAD_GRANT("peers: expected 2 addresses, found 0", g.comm = WIRE_COMM_TCP);
    BAD_GRANT("comm_timeout_ms", g.comm_timeout_ms = 0);
    BAD_GRANT("lease_ms", g.lease_ms = 1);
    BAD_GRANT("heartbeat_ms", g.heartbeat_ms = 1);
}

/* A stage takes one more step than there are stages; links have a kind of their own. */
static void stages(void **state)
{
    (void)state;
    static const char *const peers[] = {"a:1", "b:1", "c:1", "d:1", "e:1", "f:1"};
    struct fake f;
    fake_init_stage(&f, true, 3);
    session_loaded(&f.session, &loaded);
    session_connected(&f.session, 0);
    expect(&f, "hello loaded");
    struct wire_grant g = grant_of(7);
    g.pp_size = 3;
    say(&f, &(struct wire_coordinator_message){.grant = &g}, 0);
    expect(&f, "failed:7:0:PROTOCOL"); /* no link_comm */
    g.link_comm = WIRE_COMM_SELF;
    say(&f, &(struct wire_coordinator_message){.grant = &g}, 0);
    expect(&f, "failed:7:0:PROTOCOL");
    g.link_comm = WIRE_COMM_TCP;
    g.peers = peers;
    g.n_peers = 2;
    say(&f, &(struct wire_coordinator_message){.grant = &g}, 0);
    expect(&f, "failed:7:0:PROTOCOL");
    if (!strstr(f.failure, "peers: expected 6 addresses, found 2"))
        fail_msg("%s", f.failure);
    g.n_peers = 6;
    say(&f, &(struct wire_coordinator_message){.grant = &g}, 0);
    session_joined(&f.session, 7, 99, "host: shm");
    expect(&f, "join:7 ready:7");
    for (uint64_t step = 1; step != 6; step++)
        say_step(&f, 7, step);
    expect(&f, "step:7:1 step:7:2 step:7:3 step:7:4 failed:7:5:PROTOCOL abort");
}

static void refuses_a_grant_while_loading(void **state)
{
    (void)state;
    struct fake f;
    fake_init(&f, true);
    session_connected(&f.session, 0);
    say_grant(&f, 7, 0);
    expect(&f, "hello failed:7:0:PROTOCOL");
}

static void a_lost_stream_ends_the_epoch(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    session_disconnected(&f.session);
    expect(&f, "step:7:1 abort");
    done(&f, 7, 1);
    session_tick(&f.session, NSEC_PER_SEC, &(struct session_progress){0});
    expect(&f, "");
    session_connected(&f.session, 0); /* the weights are still there */
    expect(&f, "hello loaded");
    say_grant(&f, 8, 0);
    expect(&f, "join:8");
}

static void the_lease_runs_out(void **state)
{
    (void)state;
    const struct session_progress p = {0};
    const int64_t ms = NSEC_PER_MSEC;
    struct fake f;
    fake_ready(&f); /* lease 5000 ms: until 4000 */
    session_tick(&f.session, 3900 * ms, &p);
    expect(&f, "beat:READY");
    const struct wire_lease lease = {7, 5000};
    say(&f, &(struct wire_coordinator_message){.lease = &lease}, 3950 * ms);
    int64_t next = session_tick(&f.session, 4000 * ms, &p);
    expect(&f, "");
    assert_int_equal(next, 4150 * ms); /* the next heartbeat */
    session_tick(&f.session, 7949 * ms, &p);
    expect(&f, "beat:READY");
    session_tick(&f.session, 7950 * ms, &p);
    expect(&f, "abort disconnect");
}

static void aborts(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_abort(&f, 7);
    expect(&f, "step:7:1 abort");
    session_step_failed(&f.session, 7, 1, -ECANCELED, "aborted");
    expect(&f, "");
    say_grant(&f, 8, 0);
    say_abort(&f, 0); /* whatever runs */
    expect(&f, "join:8 abort");
    say_abort(&f, 0);
    expect(&f, "");
}

static void translates_engine_errors(void **state)
{
    (void)state;
    static const struct {
        int code;
        bool cpu;
        const char *orders;
    } cases[] = {
        {-EINVAL, true, "step:7:1 failed:7:1:BAD_PLAN abort"},
        {-ECANCELED, true, "step:7:1 failed:7:1:ABORTED abort"},
        {-ETIMEDOUT, true, "step:7:1 failed:7:1:PEER abort"},
        {-EIO, true, "step:7:1 failed:7:1:PEER abort"},
        {-ECONNRESET, false, "step:7:1 failed:7:1:PEER abort"},
        {-EIO, false, "step:7:1 failed:7:1:DEVICE abort exit:71"},
        {-ENOMEM, true, "step:7:1 failed:7:1:INTERNAL abort"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fake f;
        fake_ready(&f);
        f.session.config.device_is_cpu = cases[i].cpu;
        say_step(&f, 7, 1);
        session_step_failed(&f.session, 7, 1, cases[i].code, "bad \xff byte");
        expect(&f, cases[i].orders);
        assert_string_equal(f.failure, "bad ? byte");
    }
}

static void a_failed_join_is_reported(void **state)
{
    (void)state;
    struct fake f;
    fake_init(&f, true);
    session_loaded(&f.session, &loaded);
    session_connected(&f.session, 0);
    say_grant(&f, 7, 0);
    session_join_failed(&f.session, 7, -ETIMEDOUT, "rank 0 did not come");
    expect(&f, "hello loaded join:7 failed:7:0:JOIN abort");
    assert_int_equal(f.session.state, SESSION_IDLE);
}

static void refusals_end_the_process(void **state)
{
    (void)state;
    static const struct {
        enum wire_refuse_code code;
        const char *orders;
    } cases[] = {
        {WIRE_REFUSE_PROTOCOL, "exit:64"}, {WIRE_REFUSE_CLUSTER, "exit:64"},
        {WIRE_REFUSE_MODEL, "exit:65"},    {WIRE_REFUSE_RANK, "exit:64"},
        {WIRE_REFUSE_FENCED, "exit:77"},   {WIRE_REFUSE_UNSPECIFIED, "exit:70"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fake f;
        fake_init(&f, true);
        session_connected(&f.session, 0);
        expect(&f, "hello");
        const struct wire_refuse refuse = {cases[i].code, "test"};
        say(&f, &(struct wire_coordinator_message){.refuse = &refuse}, 0);
        expect(&f, cases[i].orders);
    }
}

static void drains_after_the_running_steps(void **state)
{
    (void)state;
    struct fake f;
    fake_ready(&f);
    say_step(&f, 7, 1);
    say_step(&f, 7, 2);
    const struct wire_drain drain = {"test"};
    say(&f, &(struct wire_coordinator_message){.drain = &drain}, 0);
    expect(&f, "step:7:1 step:7:2");
    session_tick(&f.session, NSEC_PER_SEC, &(struct session_progress){0});
    expect(&f, "beat:DRAINING");
    done(&f, 7, 1);
    say_step(&f, 7, 3);
    expect(&f, "done");
    done(&f, 7, 2);
    expect(&f, "done exit:0");
}

static void drains_at_once_when_idle(void **state)
{
    (void)state;
    struct fake f;
    fake_init(&f, true);
    session_drain(&f.session, "test"); /* still loading */
    expect(&f, "exit:0");
    fake_ready(&f);
    session_drain(&f.session, "test");
    expect(&f, "exit:0");
    fake_init(&f, true);
    session_loaded(&f.session, &loaded);
    session_connected(&f.session, 0);
    say_grant(&f, 7, 0);
    session_drain(&f.session, "test"); /* joining: does not wait for peers */
    expect(&f, "hello loaded join:7 abort exit:0");
}

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_hello_while_loading),
        cmocka_unit_test(runs_steps_in_order),
        cmocka_unit_test(refuses_a_third_step_in_flight),
        cmocka_unit_test(refuses_gaps_and_repeats),
        cmocka_unit_test(refuses_steps_before_ready),
        cmocka_unit_test(validates_plans),
        cmocka_unit_test(drops_what_is_older),
        cmocka_unit_test(drops_steps_of_an_epoch_that_ended_here),
        cmocka_unit_test(refuses_epochs_without_a_grant),
        cmocka_unit_test(a_grant_ends_the_epoch_before),
        cmocka_unit_test(epochs_only_grow),
        cmocka_unit_test(checks_grants),
        cmocka_unit_test(stages),
        cmocka_unit_test(refuses_a_grant_while_loading),
        cmocka_unit_test(a_lost_stream_ends_the_epoch),
        cmocka_unit_test(the_lease_runs_out),
        cmocka_unit_test(aborts),
        cmocka_unit_test(translates_engine_errors),
        cmocka_unit_test(a_failed_join_is_reported),
        cmocka_unit_test(refusals_end_the_process),
        cmocka_unit_test(drains_after_the_running_steps),
        cmocka_unit_test(drains_at_once_when_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
