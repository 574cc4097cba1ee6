/* test_front_job.c: long texts over gRPC are read beside the loop, and what becomes of that when
 * the client leaves, there are too many of them, or the coordinator stops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/front.h"
#include "front_rig.h"
#include "proto/rpc/wire_inference.h"
#include "proto/rpc/wire_kserve.h"

#define GENERATE "/glmd.v1.Inference/Generate"
#define TOKENIZE "/glmd.v1.Inference/Tokenize"
#define INFER    "/inference.GRPCInferenceService/ModelInfer"
#define STREAM   "/inference.GRPCInferenceService/ModelStreamInfer"
#define KEY      "river"

enum { LONG = FRONT_JOB_LONG_BYTES + 1 };

static const char *const paths[] = {
    GENERATE, "/glmd.v1.Inference/Fill",       "/glmd.v1.Inference/Score",
    TOKENIZE, "/glmd.v1.Inference/Detokenize", INFER,
    STREAM};

static bool is_answered_at_once(const char *path)
{
    return strstr(path, "okenize") != NULL;
}

static void send_more(struct front_rig *r, struct front_client *c, const char *path, const char *id,
                      size_t size)
{
    struct buf message = {0};
    front_message(&message, path, id, size);
    assert_int_equal(rpc_send(c->call, message.data, message.size), 0);
    buf_deinit(&message);
    front_rig_pass(r, NSEC_PER_MSEC);
}

/* One message of so many bytes, and the end of what the client sends. */
static struct front_client *ask(struct front_rig *r, const char *path, const char *key, size_t size)
{
    struct front_client *c = front_client_new(r, path, key, 0);
    send_more(r, c, path, "7", size);
    if (c->call)
        rpc_half_close(c->call);
    front_rig_pass(r, NSEC_PER_MSEC);
    return c;
}

static void leave(struct front_rig *r, struct front_client *c)
{
    if (c->call)
        rpc_cancel(c->call);
    front_rig_pass(r, NSEC_PER_MSEC);
    front_client_free(c);
}

static uint32_t n_requests(const struct front_rig *r)
{
    return sched_n_requests(r->core.sched);
}

static void expect_end(const struct front_client *c, enum rpc_status status, const char *reason,
                       int64_t retry_after_ns)
{
    if (c->call)
        fail_msg("expected %s, found a call that has not ended", rpc_status_name(status));
    if (c->status != status || strcmp(c->details.reason, reason) != 0)
        fail_msg("expected %s, \"%s\", found %s, \"%s\": %s", rpc_status_name(status), reason,
                 rpc_status_name(c->status), c->details.reason, c->message);
    assert_int_equal(c->details.retry_after_ns, retry_after_ns);
}

static void expect_read(struct front_rig *r, struct front_client *c, const char *path)
{
    if (is_answered_at_once(path)) {
        expect_end(c, RPC_OK, "", 0);
        assert_int_equal(c->n_messages, 1);
    } else if (!c->call) {
        fail_msg("%s: %s: %s", path, rpc_status_name(c->status), c->message);
    }
    assert_int_equal(n_requests(r), !is_answered_at_once(path));
}

static void short_ones_are_read_at_once(void **state)
{
    struct front_rig *r = *state;
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = ask(r, paths[i], NULL, FRONT_JOB_LONG_BYTES);
        expect_read(r, c, paths[i]);
        leave(r, c);
    }
    assert_int_equal(r->n_works, 0);
}

static void without_threads_all_are(void **state)
{
    (void)state;
    struct front_rig *r = front_rig_new(false, "");
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = ask(r, paths[i], NULL, LONG);
        expect_read(r, c, paths[i]);
        leave(r, c);
    }
    front_rig_free(r);
}

static void long_ones_are_read_beside_the_loop(void **state)
{
    struct front_rig *r = *state;
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = ask(r, paths[i], NULL, LONG);
        assert_int_equal(r->n_works, i + 1);
        assert_non_null(c->call); /* the half-close did not end it */
        assert_int_equal(c->n_messages, 0);
        assert_int_equal(n_requests(r), 0);
        struct front_job *j = front_rig_run(r);
        assert_int_equal(n_requests(r), 0);
        front_rig_end(r, j);
        expect_read(r, c, paths[i]);
        leave(r, c);
        assert_int_equal(r->core.n_jobs, 0);
    }
}

/* A request counts from when its message came. */
static void the_wait_counts(void **state)
{
    struct front_rig *r = *state;
    struct front_client *c = ask(r, GENERATE, NULL, LONG);
    int64_t arrived_ns = clock_now_ns();
    front_rig_pass(r, NSEC_PER_SEC);
    front_rig_work(r);
    coordinator_tick(&r->core, arrived_ns + r->config.coordinator.deadlines.request - NSEC_PER_SEC);
    front_rig_pass(r, NSEC_PER_MSEC);
    assert_non_null(c->call);
    coordinator_tick(&r->core, arrived_ns + r->config.coordinator.deadlines.request);
    front_rig_pass(r, NSEC_PER_MSEC);
    expect_end(c, RPC_UNAVAILABLE, "NO_GROUP_READY", NSEC_PER_SEC);
    front_client_free(c);
}

static void what_is_wrong_is_told_all_the_same(void **state)
{
    struct front_rig *r = *state;
    static const char *const wrong[] = {"/glmd.v1.Inference/Generate", INFER, STREAM};
    for (size_t i = 0; i != ARRAY_LEN(wrong); i++) {
        struct front_client *c = front_client_new(r, wrong[i], NULL, 0);
        char *bytes = malloc(LONG);
        assert_non_null(bytes);
        memset(bytes, 0xff, LONG);
        assert_int_equal(rpc_send(c->call, bytes, LONG), 0);
        free(bytes);
        front_rig_pass(r, NSEC_PER_MSEC);
        assert_int_equal(r->n_works, i + 1);
        front_rig_work(r);
        expect_end(c, RPC_INVALID_ARGUMENT, "INVALID_REQUEST", 0);
        front_client_free(c);
    }
    assert_int_equal(r->core.counters.rejected, ARRAY_LEN(wrong));
    assert_int_equal(r->core.counters.total, ARRAY_LEN(wrong));
}

static void the_client_leaves_while_it_is_read(void **state)
{
    struct front_rig *r = *state;
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *before = ask(r, paths[i], NULL, LONG);
        leave(r, before); /* it waits for a thread */
        front_rig_work(r);
        struct front_client *behind = ask(r, paths[i], NULL, LONG);
        struct front_job *j = front_rig_run(r);
        leave(r, behind);
        front_rig_end(r, j);
        assert_int_equal(r->core.n_jobs, 0);
        assert_int_equal(n_requests(r), 0);
    }
    assert_int_equal(r->core.counters.total, 0);
    assert_int_equal(front_n_calls(&r->core), 0);
}

static void its_deadline_passes_while_it_is_read(void **state)
{
    struct front_rig *r = *state;
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = front_client_new(r, paths[i], NULL, NSEC_PER_SEC);
        send_more(r, c, paths[i], "7", LONG);
        assert_int_equal(r->n_jobs, 1);
        front_rig_pass(r, 2 * NSEC_PER_SEC);
        assert_null(c->call);
        assert_int_equal(c->status, RPC_DEADLINE_EXCEEDED);
        front_rig_work(r);
        front_client_free(c);
    }
    assert_int_equal(r->core.counters.total, 0);
}

static void too_many_are_told_to_come_back(void **state)
{
    struct front_rig *r = *state;
    struct front_client *held[FRONT_JOB_MAX];
    for (size_t i = 0; i != ARRAY_LEN(held); i++)
        held[i] = ask(r, i % 2 ? TOKENIZE : GENERATE, NULL, LONG);
    assert_int_equal(r->n_jobs, FRONT_JOB_MAX);
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = ask(r, paths[i], NULL, LONG);
        if (strcmp(paths[i], STREAM) != 0)
            expect_end(c, RPC_RESOURCE_EXHAUSTED, "SERVER_FULL", NSEC_PER_SEC);
        leave(r, c);
    }
    assert_int_equal(r->n_works, FRONT_JOB_MAX);
    assert_int_equal(r->core.counters.rejected, ARRAY_LEN(paths));
    assert_int_equal(r->core.counters.total, ARRAY_LEN(paths));
    struct front_client *little = ask(r, TOKENIZE, NULL, 0); /* is no burden */
    expect_end(little, RPC_OK, "", 0);
    front_client_free(little);

    front_rig_end(r, front_rig_run(r));
    struct front_client *next = ask(r, TOKENIZE, NULL, LONG);
    assert_int_equal(r->n_works, FRONT_JOB_MAX + 1);
    front_rig_work(r);
    expect_end(next, RPC_OK, "", 0);
    front_client_free(next);
    for (size_t i = 0; i != ARRAY_LEN(held); i++)
        leave(r, held[i]);
}

static void a_driver_without_a_thread_is_the_same(void **state)
{
    struct front_rig *r = *state;
    r->has_no_thread = true;
    struct front_client *c = ask(r, GENERATE, NULL, LONG);
    expect_end(c, RPC_RESOURCE_EXHAUSTED, "SERVER_FULL", NSEC_PER_SEC);
    front_client_free(c);
    assert_int_equal(r->core.n_jobs, 0);
}

static void expect_stream_error(const struct front_client *c, const char *id, const char *message)
{
    struct wire_kserve_stream_response *w;
    struct err e = ERR_INIT;
    if (wire_unpack_kserve_stream_response((const uint8_t *)c->last.data, c->last.size, &w, &e) < 0)
        fail_msg("%s", e.message);
    assert_string_equal(w->error_message, message);
    assert_non_null(w->infer_response);
    assert_string_equal(w->infer_response->id, id);
    wire_free_kserve_stream_response(w);
}

static void a_stream_goes_on_when_one_of_its_texts_is_too_many(void **state)
{
    struct front_rig *r = *state;
    struct front_client *c = front_client_new(r, STREAM, NULL, 0);
    r->has_no_thread = true;
    send_more(r, c, STREAM, "first", LONG);
    assert_int_equal(c->n_messages, 1);
    expect_stream_error(c, "first", "RESOURCE_EXHAUSTED: too many long texts are read at once");
    r->has_no_thread = false;
    send_more(r, c, STREAM, "second", LONG);
    front_rig_work(r);
    assert_int_equal(n_requests(r), 1);
    send_more(r, c, STREAM, "third", 0);
    assert_int_equal(n_requests(r), 2);
    leave(r, c);
}

static void a_stream_has_one_thread_and_keeps_its_order(void **state)
{
    struct front_rig *r = *state;
    struct front_client *c = front_client_new(r, STREAM, NULL, 0);
    for (unsigned i = 0; i != 3; i++)
        send_more(r, c, STREAM, "7", LONG);
    send_more(r, c, STREAM, "7", 0);
    rpc_half_close(c->call);
    for (unsigned i = 0; i != 3; i++) {
        front_rig_pass(r, NSEC_PER_MSEC);
        assert_int_equal(r->n_jobs, 1);
        assert_int_equal(n_requests(r), i);
        front_rig_end(r, front_rig_run(r));
    }
    assert_int_equal(n_requests(r), 4); /* the short one behind them, too */
    assert_non_null(c->call);
    front_end_all(&r->core, RPC_CANCELLED, "over");
    front_rig_pass(r, NSEC_PER_MSEC);
    expect_end(c, RPC_OK, "", 0); /* the client had said all */
    assert_int_equal(c->n_messages, 4);
    front_client_free(c);
}

static void the_key_comes_first(void **state)
{
    char path[] = "/tmp/glmd-front-keys-XXXXXX";
    uint8_t hash[AUTH_HASH_BYTES];
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(auth_hash(KEY, strlen(KEY), hash), 0);
    dprintf(fd, "user sha256:");
    for (size_t i = 0; i != sizeof hash; i++)
        dprintf(fd, "%02x", hash[i]);
    dprintf(fd, "\n");
    assert_int_equal(fchmod(fd, 0640), 0);
    close(fd);
    struct front_rig *r = front_rig_new(true, path);
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        struct front_client *c = ask(r, paths[i], NULL, LONG);
        expect_end(c, RPC_UNAUTHENTICATED, "KEY_NEEDED", 0);
        front_client_free(c);
        assert_int_equal(r->n_works, i);
        c = ask(r, paths[i], KEY, LONG);
        assert_int_equal(r->n_works, i + 1);
        front_rig_work(r);
        expect_read(r, c, paths[i]);
        leave(r, c);
    }
    front_rig_free(r);
    unlink(path);
}

static void a_server_that_drains_does_not_read_them(void **state)
{
    struct front_rig *r = *state;
    struct front_client *c = ask(r, GENERATE, NULL, LONG); /* came before */
    coordinator_drain(&r->core, clock_now_ns());
    struct front_client *late = ask(r, GENERATE, NULL, LONG);
    expect_end(late, RPC_UNAVAILABLE, "DRAINING", NSEC_PER_SEC);
    assert_int_equal(r->n_works, 1);
    front_rig_work(r);
    expect_end(c, RPC_UNAVAILABLE, "DRAINING", NSEC_PER_SEC);
    front_client_free(c);
    front_client_free(late);
}

/* ---- stop ---- */

static void on_stopped(void *context)
{
    struct front_rig *r = context;
    r->n_stopped++;
}

static void a_stop_waits_for_what_is_read(void **state)
{
    struct front_rig *r = *state;
    struct front_client *c = ask(r, TOKENIZE, NULL, LONG);
    struct front_job *j = front_rig_run(r);
    coordinator_stop(&r->core, NSEC_PER_SEC, on_stopped, r);
    front_rig_pass(r, 10 * NSEC_PER_SEC);
    assert_null(c->call); /* was cut off at the end of the grace */
    assert_int_equal(r->n_stopped, 0);
    front_rig_end(r, j);
    assert_int_equal(r->n_stopped, 1);
    front_client_free(c);
}

static void what_has_begun_is_answered_the_rest_is_not_read(void **state)
{
    struct front_rig *r = *state;
    struct front_client *begun = ask(r, TOKENIZE, NULL, LONG);
    struct front_job *j = front_rig_run(r);
    struct front_client *others[ARRAY_LEN(paths)];
    for (size_t i = 0; i != ARRAY_LEN(paths); i++)
        others[i] = ask(r, paths[i], NULL, LONG);
    coordinator_stop(&r->core, NSEC_PER_SEC, on_stopped, r);
    front_rig_end(r, j);
    front_rig_work(r);
    expect_end(begun, RPC_OK, "", 0);
    front_client_free(begun);
    for (size_t i = 0; i != ARRAY_LEN(paths); i++) {
        if (strcmp(paths[i], STREAM) == 0)
            expect_stream_error(others[i], "", "UNAVAILABLE: the server stops");
        else
            expect_end(others[i], RPC_UNAVAILABLE, "STOPPING", NSEC_PER_SEC);
    }
    front_rig_pass(r, 2 * NSEC_PER_SEC);
    assert_int_equal(r->n_stopped, 1);
    for (size_t i = 0; i != ARRAY_LEN(paths); i++)
        front_client_free(others[i]);
}

static void never(struct front_job *j)
{
    (void)j;
    fail_msg("it was run");
}

/* HTTP's server may stop behind the others. */
static void none_begins_behind_a_stop(void **state)
{
    struct front_rig *r = *state;
    struct buf message = {0};
    front_message(&message, GENERATE, "", LONG);
    coordinator_stop(&r->core, NSEC_PER_SEC, on_stopped, r);
    front_rig_pass(r, 2 * NSEC_PER_SEC);
    assert_int_equal(r->n_stopped, 1);
    struct front_job job = {.run = never, .done = never, .input = message};
    assert_int_equal(front_job_start(&r->core, &job), -ECANCELED);
    assert_int_equal(r->n_works, 0);
    buf_deinit(&job.input);
}

static int set_up(void **state)
{
    *state = front_rig_new(true, "");
    return 0;
}

static int tear_down(void **state)
{
    front_rig_free(*state);
    return 0;
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(short_ones_are_read_at_once),
        cmocka_unit_test(without_threads_all_are),
        RIG_TEST(long_ones_are_read_beside_the_loop),
        RIG_TEST(the_wait_counts),
        RIG_TEST(what_is_wrong_is_told_all_the_same),
        RIG_TEST(the_client_leaves_while_it_is_read),
        RIG_TEST(its_deadline_passes_while_it_is_read),
        RIG_TEST(too_many_are_told_to_come_back),
        RIG_TEST(a_driver_without_a_thread_is_the_same),
        RIG_TEST(a_stream_goes_on_when_one_of_its_texts_is_too_many),
        RIG_TEST(a_stream_has_one_thread_and_keeps_its_order),
        cmocka_unit_test(the_key_comes_first),
        RIG_TEST(a_server_that_drains_does_not_read_them),
        RIG_TEST(a_stop_waits_for_what_is_read),
        RIG_TEST(what_has_begun_is_answered_the_rest_is_not_read),
        RIG_TEST(none_begins_behind_a_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
