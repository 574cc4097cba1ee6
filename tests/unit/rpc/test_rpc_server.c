/* test_rpc_server.c: limits, addresses, start, restart and shutdown of servers; addresses of
 * channels. */
#include "rig.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/status_details.h"

static int setup(void **state)
{
    static struct rig rig;
    rig_init_bare(&rig);
    *state = &rig;
    return 0;
}

static int teardown(void **state)
{
    rig_deinit(*state);
    return 0;
}

/* ---- limits ---- */

static void test_oversize_request(void **state)
{
    struct rig *r = *state;
    const struct rpc_limits small = {.max_message_bytes = 1000};
    rig_serve(r, "tcp", &small, NULL);
    rig_dial(r, NULL, NULL);
    uint8_t data[1001] = {0};
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Unary", data, 1000);
    assert_int_equal(c.status, RPC_OK);
    client_open(r, &c, "/test.Test/Hold", 0);
    assert_int_equal(rpc_send(c.call, data, 1001), 0);
    WAIT(r, c.n_done && served->n_done);
    assert_int_equal(c.status, RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(c.message, "1001 vs. 1000"));
    assert_int_equal(served->status, RPC_CANCELLED);
    assert_int_equal(served->n_messages, 0);
    assert_int_equal(served->n_half_closes, 0); /* not taken for the end of the request */
}

static void test_oversize_response(void **state)
{
    struct rig *r = *state;
    const struct rpc_limits small = {.max_message_bytes = 1000};
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, &small, NULL);
    uint64_t request[2] = {1, 1001};
    struct client c = {0};
    client_unary(r, &c, "/test.Test/Stream", request, sizeof request);
    assert_int_equal(c.status, RPC_RESOURCE_EXHAUSTED);
    assert_int_equal(c.n_messages, 0);
}

static void test_oversize_send(void **state)
{
    struct rig *r = *state;
    const struct rpc_limits small = {.max_message_bytes = 1000};
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, &small, NULL);
    uint8_t data[1001] = {0};
    struct client c = {0};
    client_open(r, &c, "/test.Test/Bidi", 0);
    assert_int_equal(rpc_send(c.call, data, 1001), -EMSGSIZE);
    assert_int_equal(c.n_done, 0); /* not from inside the function */
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_RESOURCE_EXHAUSTED);
    assert_string_equal(c.message, "a message of 1001 bytes is over the limit of 1000");
}

static void test_max_calls(void **state)
{
    struct rig *r = *state;
    const struct rpc_limits few = {.max_calls = 4};
    rig_serve(r, "tcp", &few, NULL);
    rig_dial(r, NULL, NULL);
    struct client c[4] = {0}, more = {0};
    for (int i = 0; i < 4; i++) {
        client_open(r, &c[i], "/test.Test/Bidi", 0);
        assert_int_equal(rpc_send(c[i].call, "x", 1), 0);
        WAIT(r, c[i].n_messages == 1);
    }
    client_unary(r, &more, "/test.Test/Unary", "x", 1);
    assert_int_equal(more.status, RPC_RESOURCE_EXHAUSTED);
    assert_string_equal(more.message, "the server already has its limit of 4 calls; try later");
    struct status_details details;
    assert_int_equal(status_details_unpack(more.details, more.n_details, &details, NULL), 0);
    assert_int_equal(details.retry_after_ns, NSEC_PER_SEC);
    assert_string_equal(details.reason, "SERVER_FULL");
    /* a method with room of its own is not kept out, and has a limit, too */
    struct client own = {0};
    client_open(r, &own, "/test.Test/Own", 0);
    assert_int_equal(rpc_send(own.call, "x", 1), 0);
    WAIT(r, own.n_messages == 1);
    client_unary(r, &more, "/test.Test/Own", "x", 1);
    assert_int_equal(more.status, RPC_RESOURCE_EXHAUSTED);
    assert_string_equal(more.message, "the server already has its limit of 1 calls; try later");
    rpc_half_close(own.call);
    WAIT(r, own.n_done);
    assert_int_equal(own.status, RPC_OK);
    rpc_half_close(c[0].call);
    WAIT(r, c[0].n_done && !served->next->next->next->next->call); /* behind own */
    client_unary(r, &more, "/test.Test/Unary", "x", 1);
    assert_int_equal(more.status, RPC_OK);
    for (int i = 1; i < 4; i++)
        rpc_cancel(c[i].call);
    WAIT(r, c[1].n_done && c[2].n_done && c[3].n_done);
}

/* ---- addresses ---- */

static int listen_error(struct rig *r, const char *address, struct err *e)
{
    struct rpc_server *server;
    assert_int_equal(rpc_server_new(r->runtime, NULL, &server), 0);
    int code = rpc_server_listen(server, address, NULL, NULL, e);
    int n = r->n_stopped;
    r->server = server;
    rig_stop_server(r, 0); /* also of a server that never started */
    WAIT(r, r->n_stopped == n + 1);
    return code;
}

static void test_port_in_use(void **state)
{
    struct rig *r = *state;
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, NULL, NULL);
    struct rpc_server *first = r->server;
    struct err e = ERR_INIT;
    assert_int_equal(listen_error(r, r->address, &e), -EADDRINUSE);
    assert_non_null(strstr(e.message, r->address));
    assert_non_null(strstr(e.message, "another process listens on that port"));
    r->server = first;
    client_round_trips(r, 1);
}

static void test_unix_in_use(void **state)
{
    struct rig *r = *state;
    rig_serve(r, "unix", NULL, NULL);
    rig_dial(r, NULL, NULL);
    struct rpc_server *first = r->server;
    struct err e = ERR_INIT;
    assert_int_equal(listen_error(r, r->address, &e), -EADDRINUSE);
    assert_non_null(strstr(e.message, "another process listens there"));
    r->server = first;
    client_round_trips(r, 1); /* its socket file is still there */
}

static void test_unix_left_over(void **state)
{
    struct rig *r = *state;
    char path[104];
    snprintf(path, sizeof path, "%s/socket", r->directory);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    close(fd); /* the file stays, as after a crash */
    rig_serve(r, "unix", NULL, NULL);
    rig_dial(r, NULL, NULL);
    client_round_trips(r, 1);
}

static void test_unix_not_a_socket(void **state)
{
    struct rig *r = *state;
    char path[128], address[140];
    snprintf(path, sizeof path, "%s/file", r->directory);
    snprintf(address, sizeof address, "unix:%s", path);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    struct err e = ERR_INIT;
    assert_int_equal(listen_error(r, address, &e), -EEXIST);
    struct stat st;
    assert_int_equal(stat(path, &st), 0); /* not removed */
    unlink(path);
}

static void test_bad_addresses(void **state)
{
    static const char long_path[] =
        "unix:/a/path/that/is/longer/than/the/one/hundred/and/seven/bytes/which/fit/into/a/socket/"
        "address/of/this/system/or/another";
    static const char *const bad[] = {
        "",           "8130",          ":8130",   "127.0.0.1",   "127.0.0.1:",    "host:http",
        "host:65536", "host:-1",       "host:+1", "::1:8130",    "[::1:8130",     "[]:1",
        "a b:1",      "dns:///host:1", "unix:",   "host:123456", "http://host:1", long_path};
    struct rig *r = *state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct err e = ERR_INIT;
        struct rpc_channel *ch = NULL;
        int code = rpc_channel_new(r->runtime, bad[i], NULL, NULL, &ch, &e);
        if (code != -EINVAL)
            fail_msg("\"%s\": expected %d, found %d", bad[i], -EINVAL, code);
        assert_non_null(strstr(e.message, "expected HOST:PORT"));
        e = (struct err)ERR_INIT;
        code = listen_error(r, bad[i], &e);
        if (code != -EINVAL)
            fail_msg("listen \"%s\": expected %d, found %d", bad[i], -EINVAL, code);
    }
    struct err e = ERR_INIT;
    struct rpc_channel *ch = NULL;
    assert_int_equal(rpc_channel_new(r->runtime, "host:0", NULL, NULL, &ch, &e), -EINVAL);
    /* documentation address: belongs to nobody here */
    assert_int_equal(listen_error(r, "192.0.2.1:0", &e), -EADDRNOTAVAIL);
    assert_int_equal(listen_error(r, "unix:/not/there/socket", &e), -ENOENT);
}

static void test_nobody_there(void **state)
{
    struct rig *r = *state;
    snprintf(r->address, sizeof r->address, "unix:%s/nobody", r->directory);
    rig_dial(r, NULL, NULL);
    struct client c = {0};
    assert_int_equal(
        rpc_open(r->channel, "/test.Test/Unary", 0, false, &client_callbacks, &c, &c.call), 0);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_UNAVAILABLE);
    client_open(r, &c, "/test.Test/Unary", 50 * NSEC_PER_MSEC); /* waits, until its deadline */
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_DEADLINE_EXCEEDED);
}

static void test_ipv6(void **state)
{
    struct rig *r = *state;
    struct err e = ERR_INIT;
    int port;
    assert_int_equal(rpc_server_new(r->runtime, NULL, &r->server), 0);
    assert_int_equal(rpc_server_add(r->server, test_methods, n_test_methods), 0);
    int code = rpc_server_listen(r->server, "[::1]:0", NULL, &port, &e);
    if (code == -EADDRNOTAVAIL || code == -EAFNOSUPPORT)
        skip(); /* a machine without IPv6 */
    assert_int_equal(code, 0);
    assert_int_equal(rpc_server_start(r->server), 0);
    snprintf(r->address, sizeof r->address, "[::1]:%d", port);
    rig_dial(r, NULL, NULL);
    client_round_trips(r, 1);
    assert_memory_equal(served->peer, "ipv6:[::1]:", 11);
}

/* ---- shutdown and restart ---- */

static void test_restart(void **state)
{
    const char *kind = "tcp";
    struct rig *r = *state;
    rig_serve(r, kind, NULL, NULL);
    rig_dial(r, NULL, NULL);
    struct client broken = {0};
    client_open(r, &broken, "/test.Test/Hold", 0);
    WAIT(r, served);
    for (int i = 1; i <= 3; i++) {
        rig_stop_server(r, 0);
        WAIT(r, r->n_stopped == i);
        WAIT(r, broken.n_done);
        /* the server ended it, or the connection was gone before that arrived */
        assert_true(broken.status == RPC_CANCELLED || broken.status == RPC_UNAVAILABLE);
        rig_serve(r, kind, NULL, NULL); /* the same port */
        client_round_trips(r, 2);       /* the same channel */
    }
}

static void test_grace(void **state)
{
    struct rig *r = *state;
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, NULL, NULL);
    struct client c = {0}, late = {0};
    client_open(r, &c, "/test.Test/Bidi", 0);
    assert_int_equal(rpc_send(c.call, "x", 1), 0);
    WAIT(r, c.n_messages == 1);
    rig_stop_server(r, 3600 * NSEC_PER_SEC);
    /* an open call goes on */
    assert_int_equal(rpc_send(c.call, "y", 1), 0);
    WAIT(r, c.n_messages == 2);
    assert_int_equal(r->n_stopped, 0);
    /* a new one finds nobody */
    assert_int_equal(
        rpc_open(r->channel, "/test.Test/Unary", 0, false, &client_callbacks, &late, &late.call),
        0);
    WAIT(r, late.n_done);
    assert_int_equal(late.status, RPC_UNAVAILABLE);
    rpc_half_close(c.call);
    WAIT(r, c.n_done && r->n_stopped);
    assert_int_equal(c.status, RPC_OK);
}

static void test_grace_over(void **state)
{
    struct rig *r = *state;
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, NULL, NULL);
    struct client c = {0};
    client_open(r, &c, "/test.Test/Hold", 0);
    WAIT(r, served);
    int64_t start_ns = clock_now_ns();
    rig_stop_server(r, 100 * NSEC_PER_MSEC);
    WAIT(r, r->n_stopped);
    int64_t took_ns = clock_now_ns() - start_ns;
    assert_true(took_ns >= 99 * NSEC_PER_MSEC);
    assert_int_equal(served->status, RPC_CANCELLED);
    WAIT(r, c.n_done);
    assert_true(c.status == RPC_CANCELLED || c.status == RPC_UNAVAILABLE);
}

/* Everything asked to stop at once, with calls open in every state. */
static void test_stop_all_at_once(void **state)
{
    struct rig *r = *state;
    rig_serve(r, "tcp", NULL, NULL);
    rig_dial(r, NULL, NULL);
    client_round_trips(r, 1);
    static struct client c[6];
    memset(c, 0, sizeof c);
    static const char *const paths[] = {"Hold", "Bidi", "Paused", "Stream", "Flood", "Unary"};
    for (int i = 0; i < 6; i++) {
        char path[64];
        snprintf(path, sizeof path, "/test.Test/%s", paths[i]);
        client_open(r, &c[i], path, 0);
    }
    rpc_pause(c[1].call);
    rpc_half_close(c[2].call);
    /* teardown closes the channel, the server and the runtime without running the loop between */
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        TEST(test_oversize_request),
        TEST(test_oversize_response),
        TEST(test_oversize_send),
        TEST(test_max_calls),
        TEST(test_port_in_use),
        TEST(test_unix_in_use),
        TEST(test_unix_left_over),
        TEST(test_unix_not_a_socket),
        TEST(test_bad_addresses),
        TEST(test_nobody_there),
        TEST(test_ipv6),
        TEST(test_restart),
        TEST(test_grace),
        TEST(test_grace_over),
        TEST(test_stop_all_at_once),
    };
    return cmocka_run_group_tests_name("rpc_server", tests, NULL, NULL);
}
