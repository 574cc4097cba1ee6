/* rig.c: see rig.h. */
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

enum { WATCHDOG_MS = 60000, STREAM_HIGH_WATER = 256 * 1024 };

struct served *served;

/* ---- server side ---- */

static void on_server_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)message;
    struct served *s = rpc_user(c);
    assert_ptr_equal(s->call, c);
    s->call = NULL;
    s->status = status;
    s->n_done++;
}

static void on_server_half_close(struct rpc_call *c)
{
    struct served *s = rpc_user(c);
    s->n_half_closes++;
    rpc_finish(c, RPC_OK, "");
}

static void count_message(struct rpc_call *c, size_t size)
{
    struct served *s = rpc_user(c);
    s->n_messages++;
    s->bytes += size;
}

static void on_echo(struct rpc_call *c, const uint8_t *data, size_t size)
{
    count_message(c, size);
    assert_int_equal(rpc_send(c, data, size), 0);
}

static void on_silent(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)data;
    count_message(c, size);
}

static void on_count_half_close(struct rpc_call *c)
{
    ((struct served *)rpc_user(c))->n_half_closes++;
}

/* Sends what it was asked for, as long as little is queued. */
static void stream_more(struct rpc_call *c)
{
    struct served *s = rpc_user(c);
    uint8_t *data = calloc(1, s->message_size + 1);
    assert_non_null(data);
    while (s->sent < s->to_send && rpc_queued_bytes(c) < STREAM_HIGH_WATER) {
        memcpy(data, &s->sent, MIN(sizeof s->sent, s->message_size));
        assert_int_equal(rpc_send(c, data, s->message_size), 0);
        s->sent++;
    }
    free(data);
    if (s->sent == s->to_send)
        rpc_finish(c, RPC_OK, "all sent");
}

static void on_stream_request(struct rpc_call *c, const uint8_t *data, size_t size)
{
    count_message(c, size);
    struct served *s = rpc_user(c);
    uint64_t request[2];
    assert_int_equal(size, sizeof request);
    memcpy(request, data, sizeof request);
    s->to_send = request[0];
    s->message_size = request[1];
    stream_more(c);
}

static void on_stream_drained(struct rpc_call *c)
{
    ((struct served *)rpc_user(c))->n_drained++;
    stream_more(c);
}

/* Sends without looking at what is queued until that is refused. */
static void on_flood_request(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)data;
    count_message(c, size);
    struct served *s = rpc_user(c);
    uint8_t *block = calloc(1, 1 << 20);
    assert_non_null(block);
    int r;
    while (!(r = rpc_send(c, block, 1 << 20)))
        s->sent++;
    free(block);
    assert_int_equal(r, -ENOBUFS);
}

static struct served *note(struct rpc_call *c, const struct rpc_callbacks *callbacks)
{
    struct served *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->call = c;
    s->deadline_ns = rpc_deadline_ns(c);
    s->next = served;
    served = s;
    snprintf(s->peer, sizeof s->peer, "%s", rpc_peer(c));
    const char *agent = rpc_metadata(c, "user-agent");
    snprintf(s->user_agent, sizeof s->user_agent, "%s", agent ? agent : "");
    assert_null(rpc_metadata(c, "not-there"));
    rpc_set(c, callbacks, s);
    return s;
}

static void on_echo_call(struct rpc_call *c, void *context)
{
    static const struct rpc_callbacks callbacks = {
        .on_message = on_echo, .on_half_close = on_server_half_close, .on_done = on_server_done};
    (void)context;
    note(c, &callbacks);
}

static void on_stream_call(struct rpc_call *c, void *context)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_stream_request,
                                                   .on_half_close = on_count_half_close,
                                                   .on_drained = on_stream_drained,
                                                   .on_done = on_server_done};
    (void)context;
    note(c, &callbacks);
}

static void on_flood_call(struct rpc_call *c, void *context)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_flood_request,
                                                   .on_done = on_server_done};
    (void)context;
    note(c, &callbacks);
}

static const struct rpc_callbacks silent_callbacks = {
    .on_message = on_silent, .on_half_close = on_count_half_close, .on_done = on_server_done};

static void on_hold_call(struct rpc_call *c, void *context)
{
    (void)context;
    note(c, &silent_callbacks);
}

static void on_paused_call(struct rpc_call *c, void *context)
{
    (void)context;
    note(c, &silent_callbacks);
    rpc_pause(c);
}

static void on_refuse_call(struct rpc_call *c, void *context)
{
    (void)context;
    note(c, &silent_callbacks);
    char message[1100];
    memset(message, 'm', sizeof message - 1);
    message[sizeof message - 1] = '\0';
    memcpy(message + 1022, "\xe2\x82\xac", 3); /* the limit of 1024 cuts this character */
    rpc_finish(c, RPC_FAILED_PRECONDITION, message);
}

static void on_details_call(struct rpc_call *c, void *context)
{
    (void)context;
    note(c, &silent_callbacks);
    rpc_finish_details(c, RPC_ABORTED, "see the details", "any\0bytes\xff", 10);
}

/* One byte more than is sent. */
static void on_large_details_call(struct rpc_call *c, void *context)
{
    static uint8_t large[RPC_MAX_DETAILS_BYTES + 1];
    (void)context;
    note(c, &silent_callbacks);
    rpc_finish_details(c, RPC_ABORTED, "too many details", large, sizeof large);
}

const struct rpc_method test_methods[] = {
    {"/test.Test/Unary", on_echo_call, NULL},
    {"/test.Test/Bidi", on_echo_call, NULL},
    {"/test.Test/Stream", on_stream_call, NULL},
    {"/test.Test/Flood", on_flood_call, NULL},
    {"/test.Test/Hold", on_hold_call, NULL},
    {"/test.Test/Paused", on_paused_call, NULL},
    {"/test.Test/Refuse", on_refuse_call, NULL},
    {"/test.Test/Own", on_echo_call, NULL, 1},
    {"/test.Test/Details", on_details_call, NULL},
    {"/test.Test/LargeDetails", on_large_details_call, NULL},
};
const size_t n_test_methods = ARRAY_LEN(test_methods);

/* ---- client side ---- */

static void on_client_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct client *k = rpc_user(c);
    k->n_messages++;
    k->bytes += size;
    k->last_size = size;
    memcpy(k->last, data, MIN(size, sizeof k->last));
    if (k->pause_after && k->n_messages == k->pause_after)
        rpc_pause(c);
}

static void on_client_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct client *k = rpc_user(c);
    assert_ptr_equal(k->call, c);
    k->call = NULL;
    k->status = status;
    snprintf(k->message, sizeof k->message, "%s", message);
    const uint8_t *details = rpc_details(c, &k->n_details);
    assert_int_equal(details != NULL, k->n_details != 0);
    if (details)
        memcpy(k->details, details, MIN(k->n_details, sizeof k->details));
    k->n_done++;
}

const struct rpc_callbacks client_callbacks = {.on_message = on_client_message,
                                               .on_done = on_client_done};

void client_open(struct rig *r, struct client *c, const char *path, int64_t deadline_ns)
{
    size_t pause_after = c->pause_after;
    *c = (struct client){.pause_after = pause_after};
    assert_int_equal(rpc_open(r->channel, path, deadline_ns, true, &client_callbacks, c, &c->call),
                     0);
}

void client_unary(struct rig *r, struct client *c, const char *path, const void *data, size_t size)
{
    client_open(r, c, path, 0);
    assert_int_equal(rpc_send(c->call, data, size), 0);
    rpc_half_close(c->call);
    WAIT(r, c->n_done);
}

void client_round_trips(struct rig *r, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct client c = {0};
        client_unary(r, &c, "/test.Test/Unary", "x", 1);
        assert_int_equal(c.status, RPC_OK);
    }
}

/* ---- the rig ---- */

static void on_watchdog(uv_timer_t *timer)
{
    struct rig *r = timer->data;
    fprintf(stderr, "line %d: waited %d s for: %s\n", r->line, WATCHDOG_MS / 1000, r->awaited);
    abort();
}

void rig_wait_start(struct rig *r, const char *what, int line)
{
    r->awaited = what;
    r->line = line;
    uv_update_time(&r->loop);
    uv_timer_start(&r->watchdog, on_watchdog, WATCHDOG_MS, 0);
}

void rig_wait_end(struct rig *r)
{
    uv_timer_stop(&r->watchdog);
}

void rig_init_bare(struct rig *r)
{
    *r = (struct rig){0};
    served = NULL; /* a test that failed may have left some */
    struct err e = ERR_INIT;
    assert_int_equal(uv_loop_init(&r->loop), 0);
    uv_timer_init(&r->loop, &r->watchdog);
    r->watchdog.data = r;
    if (rpc_runtime_new(&r->loop, &r->runtime, &e))
        fail_msg("rpc_runtime_new: %s", e.message);
    const char *tmp = getenv("TMPDIR");
    snprintf(r->directory, sizeof r->directory, "%s/glmd-rpc-XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(r->directory));
}

void rig_serve(struct rig *r, const char *kind, const struct rpc_limits *limits,
               const struct rpc_tls *tls)
{
    struct err e = ERR_INIT;
    int port = 0;
    assert_int_equal(rpc_server_new(r->runtime, limits, &r->server), 0);
    assert_int_equal(rpc_server_add(r->server, test_methods, n_test_methods), 0);
    bool chosen = r->address[0];
    bool on_unix = strcmp(kind, "unix") == 0;
    if (!chosen && on_unix)
        snprintf(r->address, sizeof r->address, "unix:%s/socket", r->directory);
    if (rpc_server_listen(r->server, chosen || on_unix ? r->address : "127.0.0.1:0", tls, &port,
                          &e))
        fail_msg("rpc_server_listen: %s", e.message);
    if (!chosen && !on_unix) {
        assert_in_range(port, 1, 65535);
        snprintf(r->address, sizeof r->address, "127.0.0.1:%d", port);
    }
    assert_int_equal(rpc_server_start(r->server), 0);
}

void rig_dial(struct rig *r, const struct rpc_limits *limits, const struct rpc_tls *tls)
{
    struct err e = ERR_INIT;
    if (rpc_channel_new(r->runtime, r->address, tls, limits, &r->channel, &e))
        fail_msg("rpc_channel_new: %s", e.message);
}

void rig_init(struct rig *r, const char *kind)
{
    rig_init_bare(r);
    rig_serve(r, kind, NULL, NULL);
    rig_dial(r, NULL, NULL);
}

static void on_server_stopped(void *context)
{
    ((struct rig *)context)->n_stopped++;
}

static void on_runtime_stopped(void *context)
{
    ((struct rig *)context)->runtime_stopped = true;
}

void rig_stop_server(struct rig *r, int64_t grace_ns)
{
    rpc_server_shutdown(r->server, grace_ns, on_server_stopped, r);
    r->server = NULL;
}

void rig_deinit(struct rig *r)
{
    if (r->channel)
        rpc_channel_close(r->channel);
    if (r->server) {
        rig_stop_server(r, 0);
    }
    rpc_runtime_stop(r->runtime, on_runtime_stopped, r);
    WAIT(r, r->runtime_stopped);
    uv_close((uv_handle_t *)&r->watchdog, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&r->loop), 0); /* nothing left behind */
    if (strncmp(r->address, "unix:", 5) == 0)
        unlink(r->address + 5);
    rmdir(r->directory);
    while (served) {
        struct served *next = served->next;
        assert_null(served->call); /* every call has had its on_done */
        assert_int_equal(served->n_done, 1);
        free(served);
        served = next;
    }
}
