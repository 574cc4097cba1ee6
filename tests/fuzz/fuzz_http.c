/* Bytes of a client against the HTTP server, through a socket: heads, bodies, pipelined requests,
 * in pieces. What the server tells its user must keep its order whatever comes: a head, at most one
 * request, one end; no body above the limit. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BODY_BYTES = 512, MAX_CALLS = 64, MAX_INPUT_BYTES = 1 << 16 };

static struct {
    uv_loop_t loop;
    struct http_server *server;
    struct sockaddr_un address;
    unsigned n_open; /* calls that have not ended */
} world;

enum state { NEW, HEAD, REQUEST };

static void on_head(struct http_call *c, void *context)
{
    (void)context;
    assert(!http_user(c));
    static enum state head = HEAD;
    http_set_user(c, &head);
    world.n_open++;
    assert(http_method(c) && http_path(c) && http_peer(c));
    const char *why;
    unsigned bad = http_bad_head(c, &why);
    if (bad) {
        assert(bad >= 400 && bad < 600 && *why);
        http_respond(c, bad, "text/plain", why, strlen(why));
    } else if (strcmp(http_path(c), "/refused") == 0)
        http_respond(c, 401, "text/plain", "no", 2);
    else if (http_oversized(c) && !http_forgets(c))
        http_respond(c, 413, "text/plain", "no", 2);
}

static void on_request(struct http_call *c, void *context)
{
    static enum state request = REQUEST;
    size_t size;
    (void)context;
    assert(*(enum state *)http_user(c) == HEAD);
    http_set_user(c, &request);
    const char *body = http_body(c, &size);
    const char *echo = http_header(c, "x-echo");
    assert(size <= MAX_BODY_BYTES && body[size] == '\0');
    if (echo)
        http_set_header(c, "X-Echo", echo);
    if (strcmp(http_path(c), "/wait") == 0)
        return;
    if (strcmp(http_path(c), "/stream") == 0) {
        http_begin(c, 200, "text/event-stream", NULL);
        http_send(c, body, size);
        http_send(c, "data: x\n\n", 9);
        http_finish(c);
    } else if (http_query(c, "break")) {
        http_begin(c, 200, "text/event-stream", NULL);
        http_send(c, "x", 1);
        http_cancel(c);
    } else {
        http_respond(c, 200, "text/plain", body, size);
    }
}

static void on_done(struct http_call *c, bool complete, void *context)
{
    (void)complete;
    (void)context;
    assert(http_user(c));
    http_set_user(c, NULL);
    world.n_open--;
}

static const struct http_handler handler = {
    .on_head = on_head, .on_request = on_request, .on_done = on_done};

static void on_stopped(void *context)
{
    (void)context;
}

/* What the server owns is given back, for the leak checker. */
static void stop(void)
{
    http_server_shutdown(world.server, 0, on_stopped, NULL);
    uv_run(&world.loop, UV_RUN_DEFAULT);
    uv_loop_close(&world.loop);
}

static void start(void)
{
    char address[sizeof world.address.sun_path + 8];
    struct err e = ERR_INIT;
    int port;
    log_init("fuzz_http", LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    world.address.sun_family = AF_UNIX;
    snprintf(world.address.sun_path, sizeof world.address.sun_path, "/tmp/fuzz_http.%d.sock",
             (int)getpid());
    snprintf(address, sizeof address, "unix:%s", world.address.sun_path);
    uv_loop_init(&world.loop);
    const struct http_config config = {
        .loop = &world.loop,
        .handler = &handler,
        .limits = {.max_body_bytes = MAX_BODY_BYTES, .max_head_bytes = 2048},
    };
    if (http_server_new(&config, &world.server) < 0 ||
        http_server_listen(world.server, address, NULL, &port, &e) < 0) {
        fprintf(stderr, "%s\n", e.message);
        abort();
    }
    atexit(stop);
}

static void turn(unsigned n)
{
    for (unsigned i = 0; i != n; i++)
        uv_run(&world.loop, UV_RUN_NOWAIT);
}

static void drop_answers(int fd)
{
    char bytes[4096];
    while (read(fd, bytes, sizeof bytes) > 0)
        ;
}

/* In pieces of `step` bytes; the server has the time to look at each. */
static void send_all(int fd, const uint8_t *data, size_t size, size_t step)
{
    for (size_t at = 0; at < size; at += step) {
        ssize_t n = send(fd, data + at, MIN(step, size - at), MSG_NOSIGNAL | MSG_DONTWAIT);
        turn(2);
        if (n < 0)
            return; /* the server has closed */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!world.server)
        start();
    if (size < 1 || size > MAX_INPUT_BYTES)
        return 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&world.address, sizeof world.address) < 0)
        abort();
    turn(2);
    size_t step = data[0] % 8 ? size : 1 + size / (1 + data[0] / 8);
    send_all(fd, data + 1, size - 1, step);
    turn(4);
    drop_answers(fd);
    close(fd);
    for (unsigned i = 0; http_server_connections(world.server); i++) {
        if (i % 8 == 7) /* the sweep ends what nothing else does; it need not be waited for */
            http_server_sweep(world.server, clock_now_ns() + NSEC_PER_SEC);
        turn(1);
        assert(i < 100000);
    }
    if (world.n_open)
        abort();
    return 0;
}
