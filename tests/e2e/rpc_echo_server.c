/* rpc_echo_server.c: a server over proto/rpc for test_rpc.py, which talks to it with a stock
 * client.
 *
 *   rpc_echo_server ADDRESS [CA CERT KEY]    serve; "-" for a file that is not given
 *   rpc_echo_server --make-certs DIR         write ca, server, client certificates
 *
 * Says "port N" on standard output, then a line per finished call: "PATH STATUS received sent".
 * SIGUSR1 toggles health; SIGTERM shuts down with a grace of one second, then "stopped".
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "proto/rpc/rpc.h"
#include "tests/unit/rpc/certs.h"

enum { HIGH_WATER = 64 * 1024, GRACE_MS = 1000 };

static struct {
    uv_loop_t loop;
    uv_signal_t term, toggle;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    bool serving;
} app;

struct session {
    size_t received, sent, to_send, size;
};

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)message;
    struct session *s = rpc_user(c);
    printf("%s %s %zu %zu\n", rpc_path(c), rpc_status_name(status), s->received, s->sent);
    free(s);
}

static void on_half_close(struct rpc_call *c)
{
    rpc_finish(c, RPC_OK, "");
}

static void on_nothing(struct rpc_call *c)
{
    (void)c;
}

static void count(struct rpc_call *c)
{
    ((struct session *)rpc_user(c))->received++;
}

static void send_bytes(struct rpc_call *c, const void *data, size_t size)
{
    if (rpc_send(c, data, size) == 0)
        ((struct session *)rpc_user(c))->sent++;
}

static void on_echo(struct rpc_call *c, const uint8_t *data, size_t size)
{
    count(c);
    send_bytes(c, data, size);
}

static void on_hold(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    count(c);
}

/* {u64 count, u64 size}, little-endian: so many messages, numbered, as fast as they are read */
static void stream_more(struct rpc_call *c)
{
    struct session *s = rpc_user(c);
    uint8_t *data = calloc(1, s->size + sizeof s->sent);
    if (!data)
        abort();
    while (s->sent < s->to_send && rpc_queued_bytes(c) < HIGH_WATER) {
        memcpy(data, &s->sent, sizeof s->sent);
        size_t before = s->sent;
        send_bytes(c, data, s->size);
        if (s->sent == before)
            break;
    }
    free(data);
    if (s->sent == s->to_send)
        rpc_finish(c, RPC_OK, "");
}

static void on_stream(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct session *s = rpc_user(c);
    uint64_t request[2];
    count(c);
    if (size != sizeof request) {
        rpc_finish(c, RPC_INVALID_ARGUMENT, "expected 16 bytes");
        return;
    }
    memcpy(request, data, sizeof request);
    s->to_send = request[0];
    s->size = MIN(request[1], (uint64_t)1 << 20);
    stream_more(c);
}

/* What the server knows about a call, as text. */
static void on_facts(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    count(c);
    char text[512];
    const char *value = rpc_metadata(c, "x-test");
    int64_t deadline_ns = rpc_deadline_ns(c);
    int n = snprintf(text, sizeof text, "%s|%lld|%s|%s", value ? value : "none",
                     deadline_ns ? (long long)((deadline_ns - clock_now_ns()) / NSEC_PER_MSEC) : -1,
                     rpc_peer(c), rpc_path(c));
    send_bytes(c, text, MIN((size_t)n, sizeof text - 1));
    rpc_finish(c, RPC_OK, "");
}

/* {u8 status, text}: ends with that. */
static void on_fail(struct rpc_call *c, const uint8_t *data, size_t size)
{
    char text[256];
    count(c);
    snprintf(text, sizeof text, "%.*s", size ? (int)size - 1 : 0, (const char *)data + 1);
    rpc_finish(c, size ? (enum rpc_status)data[0] : RPC_INVALID_ARGUMENT, text);
}

/* The streaming call that a reflection-only client makes: three GenerateResponse messages, each
 * with one ChoiceDelta {index, text}. */
static void on_generate(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    static const char messages[3][16] = {"\x0a\x07\x08\x01\x12\x03one",
                                         "\x0a\x07\x08\x02\x12\x03two",
                                         "\x0a\x09\x08\x03\x12\x05three"};
    count(c);
    for (int i = 0; i < 3; i++)
        send_bytes(c, messages[i], 2 + (size_t)messages[i][1]);
    rpc_finish(c, RPC_OK, "");
}

static const struct rpc_callbacks echo = {on_echo, on_half_close, NULL, on_done},
                                  hold = {on_hold, on_nothing, NULL, on_done},
                                  stream = {on_stream, on_nothing, stream_more, on_done},
                                  facts = {on_facts, on_nothing, NULL, on_done},
                                  fail = {on_fail, on_nothing, NULL, on_done},
                                  generate = {on_generate, on_nothing, NULL, on_done};

static void on_call(struct rpc_call *c, void *context)
{
    struct session *s = calloc(1, sizeof *s);
    if (!s)
        abort();
    rpc_set(c, context, s);
}

static const struct rpc_method methods[] = {
    {"/test.Test/Echo", on_call, (void *)&echo},
    {"/test.Test/Hold", on_call, (void *)&hold},
    {"/test.Test/Stream", on_call, (void *)&stream},
    {"/test.Test/Facts", on_call, (void *)&facts},
    {"/test.Test/Fail", on_call, (void *)&fail},
    {"/glmd.v1.Inference/Generate", on_call, (void *)&generate},
};

/* ---- life ---- */

static void on_runtime_stopped(void *context)
{
    (void)context;
    printf("stopped\n");
}

static void on_server_stopped(void *context)
{
    (void)context;
    uv_close((uv_handle_t *)&app.term, NULL);
    uv_close((uv_handle_t *)&app.toggle, NULL);
    rpc_runtime_stop(app.runtime, on_runtime_stopped, NULL);
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)handle;
    if (!app.server)
        return;
    if (number == SIGUSR1) {
        app.serving = !app.serving;
        rpc_health_set(app.server, "", app.serving ? RPC_SERVING : RPC_NOT_SERVING);
        return;
    }
    struct rpc_server *server = app.server;
    app.server = NULL;
    rpc_server_shutdown(server, GRACE_MS * NSEC_PER_MSEC, on_server_stopped, NULL);
}

static const char *file(const char *argument)
{
    return strcmp(argument, "-") == 0 ? NULL : argument;
}

static int serve(int argc, char **argv)
{
    static const char *const services[] = {"glmd.v1.Inference"};
    const char *first_ms = getenv("RPC_FIRST_MS");
    const struct rpc_limits limits = {
        .max_message_bytes = 4 << 20,
        .max_calls = 1000,
        .first_message_ns = first_ms ? strtol(first_ms, NULL, 10) * NSEC_PER_MSEC : 0,
    };
    struct rpc_tls tls = {0};
    struct err e = ERR_INIT;
    int port = 0;
    if (argc == 5)
        tls = (struct rpc_tls){file(argv[2]), file(argv[3]), file(argv[4]), NULL};
    if (uv_loop_init(&app.loop) || rpc_runtime_new(&app.loop, &app.runtime, &e) ||
        rpc_server_new(app.runtime, &limits, &app.server) ||
        rpc_server_add(app.server, methods, ARRAY_LEN(methods)) || rpc_health_add(app.server) ||
        rpc_reflection_add(app.server, services, ARRAY_LEN(services)) ||
        rpc_server_listen(app.server, argv[1], &tls, &port, &e) || rpc_server_start(app.server)) {
        fprintf(stderr, "rpc_echo_server: %s\n", e.message);
        return 1;
    }
    app.serving = true;
    rpc_health_set(app.server, "", RPC_SERVING);
    uv_signal_init(&app.loop, &app.term);
    uv_signal_init(&app.loop, &app.toggle);
    uv_signal_start(&app.term, on_signal, SIGTERM);
    uv_signal_start(&app.toggle, on_signal, SIGUSR1);
    printf("port %d\n", port);
    uv_run(&app.loop, UV_RUN_DEFAULT);
    return uv_loop_close(&app.loop) ? 1 : 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    log_init("echo", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (argc == 3 && strcmp(argv[1], "--make-certs") == 0) {
        struct certs *c = certs_new(argv[2]);
        certs_issue(c, "server", "glmd.test, IP:127.0.0.1", 3600);
        certs_issue(c, "client", "client.test", 3600);
        certs_free(c, true);
        return 0;
    }
    if (argc != 2 && argc != 5) {
        fprintf(stderr, "usage: rpc_echo_server ADDRESS [CA CERT KEY]\n");
        return 2;
    }
    return serve(argc, argv);
}
