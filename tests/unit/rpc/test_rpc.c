/* test_rpc.c: calls between a server and a client of one process, over TCP and unix sockets. */
#include "rig.h"

#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/util.h"

static int setup(void **state)
{
    static struct rig rig;
    rig_init(&rig, *state);
    *state = &rig;
    return 0;
}

static int teardown(void **state)
{
    rig_deinit(*state);
    return 0;
}

static void test_unary(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Unary", "hello", 5);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, 1);
    assert_int_equal(c.last_size, 5);
    assert_memory_equal(c.last, "hello", 5);
    assert_string_equal(c.message, "");
    WAIT(r, served->n_done);
    assert_int_equal(served->status, RPC_OK);
    assert_int_equal(served->n_half_closes, 1);
    assert_int_equal(served->deadline_ns, 0);
    assert_memory_equal(served->user_agent, "grpc-c", 6);
    bool on_unix = strncmp(r->address, "unix:", 5) == 0;
    assert_memory_equal(served->peer, on_unix ? "unix:" : "ipv4:127.0.0.1:", on_unix ? 5 : 15);
}

static void test_empty_and_large(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Unary", "", 0);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, 1);
    assert_int_equal(c.last_size, 0);
    size_t size = 4 << 20; /* the limit itself */
    uint8_t *data = malloc(size);
    assert_non_null(data);
    memset(data, 'z', size);
    client_unary(r, &c, "/test.Test/Unary", data, size);
    free(data);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.last_size, size);
    assert_int_equal(c.last[63], 'z');
}

static void request_stream(struct rig *r, struct client *c, uint64_t n, uint64_t size)
{
    uint64_t request[2] = {n, size};
    client_open(r, c, "/test.Test/Stream", 0);
    assert_int_equal(rpc_send(c->call, request, sizeof request), 0);
    rpc_half_close(c->call);
}

static void test_server_stream(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    request_stream(r, &c, 5000, 100);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_string_equal(c.message, "all sent");
    assert_int_equal(c.n_messages, 5000);
    assert_int_equal(c.bytes, 500000);
    uint64_t last;
    memcpy(&last, c.last, sizeof last);
    assert_int_equal(last, 4999);
    request_stream(r, &c, 0, 0); /* no message at all */
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, 0);
}

static void test_bidi(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Bidi", 0);
    for (size_t i = 0; i < 200; i++) {
        assert_int_equal(rpc_send(c.call, &i, sizeof i), 0);
        WAIT(r, c.n_messages == i + 1 || c.n_done);
        assert_int_equal(c.n_done, 0);
        assert_memory_equal(c.last, &i, sizeof i);
    }
    for (size_t i = 0; i < 1000; i++) /* without waiting: order is kept */
        assert_int_equal(rpc_send(c.call, &i, sizeof i), 0);
    rpc_half_close(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, 1200);
    size_t last = 999;
    assert_memory_equal(c.last, &last, sizeof last);
}

static void test_refused(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Refuse", "x", 1);
    assert_int_equal(c.status, RPC_FAILED_PRECONDITION);
    assert_int_equal(strlen(c.message), 1022); /* cut before the character, not inside it */
    WAIT(r, served->n_done);
    assert_int_equal(served->status, RPC_FAILED_PRECONDITION);
}

static void test_details(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Details", "x", 1);
    assert_int_equal(c.status, RPC_ABORTED);
    assert_string_equal(c.message, "see the details");
    assert_int_equal(c.n_details, 10);
    assert_memory_equal(c.details, "any\0bytes\xff", 10);
    client_unary(r, &c, "/test.Test/LargeDetails", "x", 1); /* without them */
    assert_int_equal(c.status, RPC_ABORTED);
    assert_string_equal(c.message, "too many details");
    assert_int_equal(c.n_details, 0);
    client_unary(r, &c, "/test.Test/Refuse", "x", 1);
    assert_int_equal(c.n_details, 0);
}

static void test_unknown_method(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Nothing", "x", 1);
    assert_int_equal(c.status, RPC_UNIMPLEMENTED);
    assert_non_null(strstr(c.message, "/test.Test/Nothing"));
    assert_null(served);
}

static void test_cancel_by_client(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    WAIT(r, served && served->n_messages == 1);
    rpc_cancel(c.call);
    rpc_cancel(c.call);                            /* harmless */
    assert_int_equal(rpc_send(c.call, "y", 1), 0); /* dropped */
    WAIT(r, c.n_done && served->n_done);
    assert_int_equal(c.status, RPC_CANCELLED);
    assert_int_equal(served->status, RPC_CANCELLED);
    assert_int_equal(served->n_half_closes, 0); /* a broken call is not a finished one */
}

static void test_cancel_by_server(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    WAIT(r, served);
    rpc_cancel(served->call);
    WAIT(r, c.n_done && served->n_done);
    assert_int_equal(c.status, RPC_CANCELLED);
    assert_int_equal(served->status, RPC_CANCELLED);
}

/* A coordinator turns a rank away in the middle of its stream. */
static void test_finish_before_half_close(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    WAIT(r, served && served->n_messages == 1);
    for (int i = 0; i < 1000; i++) /* still on their way when the end comes */
        assert_int_equal(rpc_send(c.call, "y", 1), 0);
    rpc_finish(served->call, RPC_ABORTED, "fenced");
    rpc_finish(served->call, RPC_OK, "ignored");
    WAIT(r, c.n_done && served->n_done);
    assert_int_equal(c.status, RPC_ABORTED);
    assert_string_equal(c.message, "fenced");
    assert_int_equal(served->status, RPC_ABORTED);
    assert_int_equal(served->n_messages, 1); /* nothing after rpc_finish */
    assert_int_equal(served->n_half_closes, 0);
}

static void test_cancel_before_start(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    rpc_cancel(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_CANCELLED);
}

static void test_deadline(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_round_trips(r, 1); /* connected */
    int64_t deadline_ns = 200 * NSEC_PER_MSEC;
    int64_t start_ns = clock_now_ns();
    client_open(r, &c, "/test.Test/Hold", deadline_ns);
    WAIT(r, c.n_done);
    int64_t end_ns = clock_now_ns();
    assert_int_equal(c.status, RPC_DEADLINE_EXCEEDED);
    assert_true(end_ns - start_ns >= deadline_ns - NSEC_PER_MSEC);
    WAIT(r, served->n_done); /* the newest call; it may have been too late for the server */
    if (served->deadline_ns) {
        assert_int_equal(served->status, RPC_CANCELLED);
        assert_true(served->deadline_ns > start_ns);
        /* gRPC rounds what it sends up to milliseconds or coarser */
        assert_true(served->deadline_ns <= end_ns + deadline_ns);
    }
}

static void test_half_close_first(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Bidi", 0);
    rpc_half_close(c.call);
    assert_int_equal(rpc_send(c.call, "late", 4), 0); /* dropped */
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, 0);
    assert_int_equal(served->n_messages, 0);
    assert_int_equal(served->n_half_closes, 1);
}

static void test_many_calls(void **state)
{
    enum { N = 200 };
    struct rig *r = *state;
    static struct client c[N];
    memset(c, 0, sizeof c);
    for (size_t i = 0; i < N; i++) {
        client_open(r, &c[i], "/test.Test/Bidi", 0);
        assert_int_equal(rpc_send(c[i].call, &i, sizeof i), 0);
    }
    for (size_t i = 0; i < N; i++) { /* all are open at once: each has its answer */
        WAIT(r, c[i].n_messages == 1);
        assert_memory_equal(c[i].last, &i, sizeof i);
    }
    for (size_t i = 0; i < N; i++)
        rpc_half_close(c[i].call);
    for (size_t i = 0; i < N; i++) {
        WAIT(r, c[i].n_done);
        assert_int_equal(c[i].status, RPC_OK);
    }
}

static void test_channel_close(void **state)
{
    struct rig *r = *state;
    struct client c[3] = {0};
    for (int i = 0; i < 3; i++)
        client_open(r, &c[i], "/test.Test/Hold", 0);
    WAIT(r, served && served->next && served->next->next);
    rpc_channel_close(r->channel);
    r->channel = NULL;
    WAIT(r, c[0].n_done && c[1].n_done && c[2].n_done);
    for (int i = 0; i < 3; i++)
        assert_int_equal(c[i].status, RPC_CANCELLED);
}

/* ---- flow control ---- */

static void test_paused_client(void **state)
{
    enum { N = 4096, SIZE = 8192 }; /* 32 MiB */
    struct rig *r = *state;
    struct client c = {.pause_after = 1};
    request_stream(r, &c, N, SIZE);
    WAIT(r, c.n_messages == 1);
    struct served *stream = served;
    client_round_trips(r, 100);
    /* what the server got rid of is in windows and socket buffers, not more */
    assert_int_equal(c.n_messages, 1);
    assert_int_equal(c.n_done, 0);
    assert_in_range(stream->sent * SIZE, SIZE, 16 << 20);
    size_t sent = stream->sent;
    client_round_trips(r, 100);
    assert_int_equal(stream->sent, sent); /* it stands still */
    assert_in_range(rpc_queued_bytes(stream->call), 1, 512 << 10);
    rpc_resume(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, N);
    assert_int_equal(c.bytes, (size_t)N * SIZE);
}

/* Paused while gRPC is already waiting for a message: it arrives, and so does the good end, but
 * neither is told before rpc_resume. */
static struct client *pause_at_the_end(struct rig *r)
{
    static struct client c;
    c = (struct client){0};
    request_stream(r, &c, 1, 10);
    rpc_pause(c.call);
    WAIT(r, served && served->n_done); /* for the server all is over */
    client_round_trips(r, 20);
    assert_int_equal(c.n_messages, 0);
    assert_int_equal(c.n_done, 0);
    return &c;
}

static void test_paused_client_keeps_the_last_message(void **state)
{
    struct rig *r = *state;
    struct client *c = pause_at_the_end(r);
    rpc_resume(c->call);
    assert_int_equal(c->n_messages, 0); /* callbacks never run from inside a function */
    WAIT(r, c->n_done);
    assert_int_equal(c->n_messages, 1);
    assert_int_equal(c->status, RPC_OK);
}

static void test_paused_client_gives_up(void **state)
{
    struct rig *r = *state;
    struct client *c = pause_at_the_end(r);
    rpc_cancel(c->call);
    assert_int_equal(c->n_done, 0);
    WAIT(r, c->n_done);
    assert_int_equal(c->n_messages, 0);
    assert_int_equal(c->status, RPC_CANCELLED);
}

static void test_paused_server(void **state)
{
    enum { N = 512, SIZE = 65536 }; /* 32 MiB */
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Paused", 0);
    uint8_t *data = calloc(1, SIZE);
    assert_non_null(data);
    for (int i = 0; i < N; i++)
        assert_int_equal(rpc_send(c.call, data, SIZE), 0);
    free(data);
    rpc_half_close(c.call);
    WAIT(r, served);
    struct served *s = served;
    client_round_trips(r, 100);
    assert_int_equal(s->n_messages, 0);
    assert_in_range(rpc_queued_bytes(c.call), 16 << 20, 32 << 20); /* most stays with the sender */
    rpc_resume(s->call);
    WAIT(r, s->n_half_closes);
    assert_int_equal(s->n_messages, N);
    assert_int_equal(s->bytes, (size_t)N * SIZE);
    WAIT(r, !rpc_queued_bytes(c.call));
    rpc_finish(s->call, RPC_OK, "");
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
}

static void test_paused_half_close(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    WAIT(r, served);
    struct served *s = served;
    rpc_pause(s->call); /* while gRPC is already waiting for a message */
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    rpc_half_close(c.call);
    client_round_trips(r, 20);
    assert_int_equal(s->n_messages, 0);
    assert_int_equal(s->n_half_closes, 0);
    rpc_resume(s->call);
    assert_int_equal(s->n_messages, 0); /* callbacks never run from inside a function */
    WAIT(r, s->n_half_closes);
    assert_int_equal(s->n_messages, 1);
    rpc_cancel(s->call);
    WAIT(r, c.n_done);
}

static void test_queue_limit(void **state)
{
    struct rig *r = *state;
    struct client c = {.pause_after = 1};
    client_open(r, &c, "/test.Test/Flood", 0);
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    WAIT(r, served && served->n_done); /* at once, although nobody reads */
    assert_int_equal(served->status, RPC_RESOURCE_EXHAUSTED);
    assert_in_range(served->sent, 60, 64);
    WAIT(r, c.n_done || c.n_messages);
    if (c.call)
        rpc_resume(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(c.message, "reads too slowly"));
}

/* ---- another process ---- */

static const char *self;

/* A client that opens a stream, sends one message and then waits to be killed. */
static int be_client(const char *address)
{
    uv_loop_t loop;
    struct rpc_runtime *runtime;
    struct rpc_channel *channel;
    struct client c = {0};
    if (uv_loop_init(&loop) || rpc_runtime_new(&loop, &runtime, NULL) ||
        rpc_channel_new(runtime, address, NULL, NULL, &channel, NULL) ||
        rpc_open(channel, "/test.Test/Hold", 0, true, &client_callbacks, &c, &c.call) ||
        rpc_send(c.call, "x", 1))
        return 1;
    return uv_run(&loop, UV_RUN_DEFAULT);
}

static void test_client_death(void **state)
{
    struct rig *r = *state;
    pid_t pid;
    char *argv[] = {(char *)self, "client", r->address, NULL};
    assert_int_equal(posix_spawn(&pid, self, NULL, NULL, argv, environ), 0);
    WAIT(r, served && served->n_messages == 1);
    kill(pid, SIGKILL);
    WAIT(r, served->n_done);
    assert_int_equal(served->status, RPC_CANCELLED);
    assert_int_equal(served->n_half_closes, 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

#define BOTH(f)                                                                                    \
    {#f " tcp", f, setup, teardown, "tcp"},                                                        \
    {                                                                                              \
#f " unix", f, setup, teardown, "unix"                                                     \
    }

int main(int argc, char **argv)
{
    self = "/proc/self/exe";
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "client") == 0)
        return be_client(argv[2]);
    const struct CMUnitTest tests[] = {
        BOTH(test_unary),
        BOTH(test_empty_and_large),
        BOTH(test_server_stream),
        BOTH(test_bidi),
        BOTH(test_refused),
        BOTH(test_details),
        BOTH(test_unknown_method),
        BOTH(test_cancel_by_client),
        BOTH(test_cancel_by_server),
        BOTH(test_finish_before_half_close),
        BOTH(test_cancel_before_start),
        BOTH(test_deadline),
        BOTH(test_half_close_first),
        BOTH(test_many_calls),
        BOTH(test_channel_close),
        BOTH(test_paused_client),
        BOTH(test_paused_client_keeps_the_last_message),
        BOTH(test_paused_client_gives_up),
        BOTH(test_paused_server),
        BOTH(test_paused_half_close),
        BOTH(test_queue_limit),
        BOTH(test_client_death),
    };
    return cmocka_run_group_tests_name("rpc", tests, NULL, NULL);
}
