/* http_echo_server.c: a server over coordinator/http.h for test_http_transport.py.
 *
 *   http_echo_server ADDRESS [CERT KEY [CA]]
 *
 * Says "port N", then a line per event of a call: "request METHOD PATH", "drained PATH QUEUED",
 * "done PATH COMPLETE". SIGTERM shuts down with a grace of one second, then "stopped".
 *
 *   /echo    the body back               /wait     no answer, ever
 *   /info    what the head said          /idle     a stream that says nothing but heartbeats
 *   /small   a body of at most 10 bytes  /stream   ?n=N blocks of ?size=S bytes, as they are read
 *   /early   answered before its body    /tick     ?n=N events, one every 10 ms
 *   /break   a stream that breaks        /answer   lets the calls of /wait be answered
 *   /last    like /tick, and the connection ends behind it
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/http.h"

enum { HIGH_WATER = 64 * 1024 };

static struct {
    uv_loop_t loop;
    uv_signal_t term;
    struct http_server *server;
    struct http_call *waiting[4096];
    unsigned n_waiting;
} app;

struct session {
    struct http_call *call; /* NULL: over */
    uv_timer_t timer;
    size_t n, size, sent, max_queued;
};

static size_t number(const struct http_call *c, const char *name)
{
    const char *text = http_query(c, name);
    return text ? strtoul(text, NULL, 10) : 0;
}

static bool is(const struct http_call *c, const char *path)
{
    return strcmp(http_path(c), path) == 0;
}

static void text(struct http_call *c, unsigned status, const char *body)
{
    http_respond(c, status, "text/plain", body, strlen(body));
}

/* ---- streams ---- */

static void send_blocks(struct session *s)
{
    char block[65536];
    while (s->call && s->sent < s->n && http_queued_bytes(s->call) < HIGH_WATER) {
        memset(block, 'a' + (int)(s->sent % 26), sizeof block);
        http_send(s->call, block, MIN(s->size, sizeof block));
        s->sent++;
        s->max_queued = MAX(s->max_queued, http_queued_bytes(s->call));
    }
    if (s->call && s->sent == s->n)
        http_finish(s->call);
}

static void on_tick(uv_timer_t *t)
{
    struct session *s = t->data;
    char event[64];
    snprintf(event, sizeof event, "data: %zu\n\n", s->sent++);
    http_send(s->call, event, strlen(event));
    if (s->sent < s->n)
        return;
    uv_timer_stop(t);
    if (is(s->call, "/break"))
        http_cancel(s->call);
    else if (is(s->call, "/last"))
        http_close_after(s->call);
    if (!is(s->call, "/break"))
        http_finish(s->call);
}

static void on_closed(uv_handle_t *h)
{
    free(h->data);
}

static void start_stream(struct http_call *c)
{
    struct session *s = calloc(1, sizeof *s);
    if (!s)
        abort();
    s->call = c;
    s->n = number(c, "n");
    s->size = number(c, "size");
    s->timer.data = s;
    uv_timer_init(&app.loop, &s->timer);
    http_set_user(c, s);
    http_begin(c, 200, is(c, "/stream") ? "application/octet-stream" : "text/event-stream",
               is(c, "/idle") ? ": still here\n\n" : NULL);
    if (is(c, "/stream"))
        send_blocks(s);
    else if (!is(c, "/idle"))
        uv_timer_start(&s->timer, on_tick, 10, 10);
}

/* ---- calls ---- */

static void on_head(struct http_call *c, void *context)
{
    const char *why;
    unsigned bad = http_bad_head(c, &why);
    (void)context;
    if (bad)
        text(c, bad, why);
    else if (http_crowded(c))
        text(c, 503, "crowded\n");
    else if (is(c, "/early"))
        text(c, 401, "not you\n");
    else if (is(c, "/small"))
        http_set_max_body(c, 10);
    if (http_oversized(c))
        text(c, 413, "too long\n");
}

static void info(struct http_call *c)
{
    char body[1024];
    const char *query = http_query(c, "q"), *header = http_header(c, "x-test");
    const char *peer = http_peer(c);
    int n = snprintf(body, sizeof body, "%s|%s|%s|%s|%.9s", http_method(c), http_path(c),
                     query ? query : "-", header ? header : "-", peer);
    if (header && http_set_header(c, "X-Echo", header) < 0)
        snprintf(body, sizeof body, "refused");
    http_respond(c, 200, "text/plain", body, (size_t)MIN(n, (int)sizeof body - 1));
}

static void on_request(struct http_call *c, void *context)
{
    size_t size;
    const char *body = http_body(c, &size);
    (void)context;
    printf("request %s %s\n", http_method(c), http_path(c));
    if (http_oversized(c)) {
        text(c, 413, "too long\n");
    } else if (is(c, "/echo") || is(c, "/small")) {
        http_respond(c, 200, "application/octet-stream", body, size);
    } else if (is(c, "/wait")) {
        app.waiting[app.n_waiting++ % ARRAY_LEN(app.waiting)] = c;
    } else if (is(c, "/answer")) {
        for (unsigned i = 0; i != MIN(app.n_waiting, ARRAY_LEN(app.waiting)); i++) {
            if (app.waiting[i])
                text(app.waiting[i], 200, "at last\n");
        }
        text(c, 200, "done\n");
    } else if (is(c, "/stream") || is(c, "/tick") || is(c, "/idle") || is(c, "/break") ||
               is(c, "/last")) {
        start_stream(c);
    } else {
        info(c);
    }
}

static void on_drained(struct http_call *c, void *context)
{
    (void)context;
    if (is(c, "/stream"))
        send_blocks(http_user(c));
}

static void on_done(struct http_call *c, bool complete, void *context)
{
    struct session *s = http_user(c);
    (void)context;
    printf("done %s %d %zu\n", http_path(c), complete, s ? s->max_queued : 0);
    for (unsigned i = 0; i != ARRAY_LEN(app.waiting); i++) {
        if (app.waiting[i] == c)
            app.waiting[i] = NULL;
    }
    if (!s)
        return;
    s->call = NULL;
    uv_close((uv_handle_t *)&s->timer, on_closed);
}

static const struct http_handler handler = {
    .on_head = on_head, .on_request = on_request, .on_drained = on_drained, .on_done = on_done};

/* ---- the process ---- */

static void on_stopped(void *context)
{
    (void)context;
    uv_close((uv_handle_t *)&app.term, NULL);
}

static void on_term(uv_signal_t *h, int number_)
{
    (void)number_;
    uv_signal_stop(h);
    http_server_shutdown(app.server, NSEC_PER_SEC, on_stopped, NULL);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    log_init("http_echo_server", getenv("HTTP_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN,
             LOG_FORMAT_TEXT);
    uv_loop_init(&app.loop);
    uv_signal_init(&app.loop, &app.term);
    uv_signal_start(&app.term, on_term, SIGTERM);
    const char *short_times = getenv("HTTP_SHORT"); /* milliseconds of every timeout */
    int64_t ns = short_times ? strtol(short_times, NULL, 10) * NSEC_PER_MSEC : 0;
    const struct http_config config = {
        .loop = &app.loop,
        .handler = &handler,
        .limits = {.max_body_bytes = 100000,
                   .max_connections = getenv("HTTP_FEW") ? 4 : 2000,
                   .head_ns = ns,
                   .idle_ns = ns,
                   .body_ns = ns,
                   .heartbeat_ns = ns},
    };
    const struct http_tls tls = {.cert_file = argc > 3 ? argv[2] : NULL,
                                 .key_file = argc > 3 ? argv[3] : NULL,
                                 .ca_file = argc > 4 ? argv[4] : NULL};
    struct err e = ERR_INIT;
    int port = 0;
    if (http_server_new(&config, &app.server) < 0)
        return 1;
    if (http_server_listen(app.server, argv[1], argc > 3 ? &tls : NULL, &port, &e) < 0) {
        fprintf(stderr, "%s\n", e.message);
        http_server_shutdown(app.server, 0, on_stopped, NULL);
        uv_run(&app.loop, UV_RUN_DEFAULT);
        return 1;
    }
    printf("port %d\n", port);
    uv_run(&app.loop, UV_RUN_DEFAULT);
    int r = uv_loop_close(&app.loop);
    printf("stopped\n");
    return r == 0 ? 0 : 3;
}
