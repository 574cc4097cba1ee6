/* rpc_grpc_server.c: listening, accepting, dispatch by path, shutdown.
 *
 * RPC_ACCEPT_DEPTH call objects wait inside gRPC; each that comes back with a call is replaced.
 * Shutdown, in this order: no object is replaced any more, the standard services end their streams,
 * gRPC sends GOAWAY and waits for the open calls, the grace timer cancels what is left, and once
 * gRPC has no call and the last on_done has run, the server goes.
 */
#include "proto/rpc/rpc_grpc.h"

#include <assert.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "proto/rpc/status_details.h"

/* When a call that found the server full may be worth another try. */
#define UNREAD_NS        (120 * NSEC_PER_SEC)
#define FULL_RETRY_NS    NSEC_PER_SEC
#define FIRST_MESSAGE_NS (30 * NSEC_PER_SEC)

static void accept_next(struct rpc_server *s);
static void on_accepted(struct event *e, bool ok);
static void on_closed(struct event *e, bool ok);

/* ---- setting up ---- */

static grpc_server *create(const struct rpc_server *s)
{
    grpc_arg args[] = {
        /* Two daemons on one port would share it silently. */
        {.key = GRPC_ARG_ALLOW_REUSEPORT, .value.integer = 0},
        RPC_GRPC_ARGS(s->max_message_bytes),
        {.key = GRPC_ARG_MAX_CONCURRENT_STREAMS,
         .value.integer = (int)(s->max_calls + 2 * RPC_BUILTIN_CALLS)},
        /* Pings of our own clients come every 5 s, also without calls. Stock clients that are idle
         * look at their connection every 5 s only, so that they get longer to answer. */
        {.key = GRPC_ARG_KEEPALIVE_TIME_MS, .value.integer = 4000},
        {.key = GRPC_ARG_KEEPALIVE_TIMEOUT_MS, .value.integer = 8000},
        {.key = GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, .value.integer = 1000},
        {.key = GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, .value.integer = 10000},
    };
    for (size_t i = 0; i < ARRAY_LEN(args); i++)
        args[i].type = GRPC_ARG_INTEGER;
    grpc_channel_args list = {ARRAY_LEN(args), args};
    return grpc_server_create(&list, NULL);
}

int rpc_server_new(struct rpc_runtime *r, const struct rpc_limits *limits, struct rpc_server **ret)
{
    runtime_assert_loop(r);
    assert(!r->stopping);
    struct rpc_server *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->runtime = r;
    s->max_message_bytes =
        limits && limits->max_message_bytes ? limits->max_message_bytes : RPC_DEFAULT_MESSAGE_BYTES;
    s->max_calls = limits && limits->max_calls ? limits->max_calls : RPC_DEFAULT_MAX_CALLS;
    s->first_message_ns =
        limits && limits->first_message_ns ? limits->first_message_ns : FIRST_MESSAGE_NS;
    s->unread_ns = limits && limits->unread_ns ? limits->unread_ns : UNREAD_NS;
    assert(s->max_message_bytes <= RPC_MAX_QUEUED_BYTES && s->max_calls <= RPC_MAX_CALLS);
    int code = uv_timer_init(r->loop, &s->grace);
    if (code) {
        free(s);
        return code;
    }
    s->server = create(s);
    grpc_server_register_completion_queue(s->server, r->cq, NULL);
    r->n_users++;
    *ret = s;
    return 0;
}

static int add_methods(struct rpc_server *s, const struct rpc_method *methods, size_t n,
                       bool builtin)
{
    runtime_assert_loop(s->runtime);
    assert(!s->started);
    for (size_t i = 0; i < n; i++) {
        assert(methods[i].path[0] == '/' && methods[i].on_call);
        if (s->n_methods == RPC_MAX_METHODS)
            return -ENOSPC;
        s->methods[s->n_methods] = &methods[i];
        s->is_builtin[s->n_methods++] = builtin;
    }
    return 0;
}

int rpc_server_add(struct rpc_server *s, const struct rpc_method *methods, size_t n)
{
    return add_methods(s, methods, n, false);
}

int rpc_server_add_builtin(struct rpc_server *s, const struct rpc_method *methods, size_t n)
{
    return add_methods(s, methods, n, true);
}

struct rpc_builtin *rpc_server_builtin(struct rpc_server *s)
{
    return &s->services;
}

int rpc_server_listen(struct rpc_server *s, const char *address, const struct rpc_tls *tls,
                      int *ret_port, struct err *e)
{
    runtime_assert_loop(s->runtime);
    assert(!s->started);
    int code = address_check(address, true, e);
    if (code)
        return code;
    grpc_server_credentials *creds;
    struct creds_source *source;
    code = creds_server(tls, &creds, &source, e);
    if (code)
        return code;
    code = address_probe(address, e); /* gRPC says only that it did not work */
    int port = 0;
    if (!code) {
        port = grpc_server_add_http2_port(s->server, address, creds);
        if (port <= 0)
            code = address_probe(address, e); /* somebody was faster? */
        if (port <= 0 && !code)
            code = err_set(e, -EIO, "cannot listen on %s: see gRPC's message in the log", address);
    }
    grpc_server_credentials_release(creds);
    if (code) {
        creds_source_free(source);
        return code;
    }
    assert(!source || !s->creds); /* one address with TLS at most */
    if (source)
        s->creds = source;
    if (ret_port)
        *ret_port = port;
    return 0;
}

/* Calls that say nothing take the places of others. */
static void end_silent(struct call_list *l, int64_t before_ns)
{
    for (struct rpc_call *c = l->first; c; c = c->next) {
        if (!c->heard && c->accepted_ns < before_ns)
            rpc_finish(c, RPC_DEADLINE_EXCEEDED, "the call brought no message in time");
    }
}

/* What is sent waits for the peer's window; a peer that never opens it would keep the call, and
 * what is queued behind, for ever. */
static void end_unread(struct call_list *l, int64_t before_ns)
{
    for (struct rpc_call *c = l->first; c; c = c->next) {
        if (c->sending && c->sending_ns < before_ns)
            call_fail(c, RPC_RESOURCE_EXHAUSTED, "the output was not read in time");
    }
}

static void on_sweep(uv_timer_t *timer)
{
    struct rpc_server *s = timer->data;
    int64_t now_ns = clock_now_ns();
    end_silent(&s->calls, now_ns - s->first_message_ns);
    end_silent(&s->builtin_calls, now_ns - s->first_message_ns);
    end_unread(&s->calls, now_ns - s->unread_ns);
    end_unread(&s->builtin_calls, now_ns - s->unread_ns);
    for (size_t i = 0; i < s->n_methods; i++)
        end_unread(&s->own_calls[i], now_ns - s->unread_ns);
}

int rpc_server_start(struct rpc_server *s)
{
    runtime_assert_loop(s->runtime);
    assert(!s->started && !s->stopping);
    s->started = true;
    grpc_server_start(s->server);
    for (int i = 0; i < RPC_ACCEPT_DEPTH; i++)
        accept_next(s);
    int64_t shortest_ns = MIN(s->first_message_ns, s->unread_ns);
    uint64_t period_ms = (uint64_t)(shortest_ns / NSEC_PER_MSEC / 4) + 1;
    s->grace.data = s;
    uv_timer_start(&s->grace, on_sweep, period_ms, period_ms);
    return s->n_accepting ? 0 : -ENOMEM;
}

/* ---- calls ---- */

static void accept_next(struct rpc_server *s)
{
    struct rpc_call *c = call_new(s->runtime);
    if (!c) {
        log_warn("rpc: no memory to accept another call; %zu still can be", s->n_accepting);
        return;
    }
    c->server = s;
    c->max_message_bytes = s->max_message_bytes;
    c->accept_event.run = on_accepted;
    call_get(c);
    s->n_accepting++;
    event_release(&c->accept_event);
    grpc_call_error error =
        grpc_server_request_call(s->server, &c->call, &c->details, &c->metadata, s->runtime->cq,
                                 s->runtime->cq, &c->accept_event);
    assert(error == GRPC_CALL_OK);
}

static int64_t deadline_from(gpr_timespec deadline)
{
    gpr_timespec at = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(at, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0)
        return 0;
    gpr_timespec left = gpr_time_sub(at, gpr_now(GPR_CLOCK_MONOTONIC));
    int64_t limit = INT64_MAX / 4 / NSEC_PER_SEC; /* centuries: as good as none */
    if (left.tv_sec > limit)
        return 0;
    int64_t ns = left.tv_sec < 0 ? 0 : left.tv_sec * NSEC_PER_SEC + left.tv_nsec;
    int64_t result = clock_now_ns() + ns;
    return result ? result : 1;
}

/* The list that a method's calls count in, and how many may be in it. */
static const struct rpc_method *find_method(struct rpc_server *s, const char *path,
                                            struct call_list **ret_list, size_t *ret_limit)
{
    *ret_list = &s->calls;
    *ret_limit = s->max_calls;
    for (size_t i = 0; i < s->n_methods; i++) {
        const struct rpc_method *m = s->methods[i];
        if (strcmp(path, m->path) != 0)
            continue;
        if (s->is_builtin[i]) {
            *ret_list = &s->builtin_calls;
            *ret_limit = RPC_BUILTIN_CALLS;
        } else if (m->max_calls) {
            *ret_list = &s->own_calls[i];
            *ret_limit = m->max_calls;
        }
        return m;
    }
    return NULL;
}

static void refuse_for_now(struct rpc_call *c, enum rpc_status status, const char *reason,
                           const char *message)
{
    struct status_details details = {.retry_after_ns = FULL_RETRY_NS};
    struct buf bytes = {0};
    snprintf(details.reason, sizeof details.reason, "%s", reason);
    if (status_details_pack(status, message, &details, &bytes) < 0)
        buf_clear(&bytes);
    rpc_set_pushback(c, FULL_RETRY_NS / NSEC_PER_MSEC);
    rpc_finish_details(c, status, message, bytes.data, bytes.size);
    buf_deinit(&bytes);
}

/* Decides what becomes of a new call; NULL: it has been refused. */
static const struct rpc_method *admit(struct rpc_server *s, struct rpc_call *c)
{
    struct call_list *list;
    size_t limit;
    const struct rpc_method *method = find_method(s, c->path, &list, &limit);
    char reason[256];
    if (s->stopping) {
        refuse_for_now(c, RPC_UNAVAILABLE, "STOPPING", "the server is shutting down");
    } else if (!method) {
        snprintf(reason, sizeof reason, "there is no method \"%.128s\" here", c->path);
        rpc_finish(c, RPC_UNIMPLEMENTED, reason);
    } else if (list->n >= limit) {
        snprintf(reason, sizeof reason, "the server already has its limit of %zu calls; try later",
                 limit);
        refuse_for_now(c, RPC_RESOURCE_EXHAUSTED, "SERVER_FULL", reason);
    } else {
        call_list_add(list, c);
        return method;
    }
    call_list_add(&s->refused_calls, c);
    return NULL;
}

static void on_accepted(struct event *e, bool ok)
{
    struct rpc_call *c = event_owner(e, struct rpc_call, accept_event);
    struct rpc_server *s = c->server;
    s->n_accepting--;
    if (!ok) { /* shutting down */
        c->n_pending--;
        call_free(c);
        server_call_gone(s);
        return;
    }
    if (!s->stopping)
        accept_next(s);
    c->started = true;
    c->accepted_ns = clock_now_ns();
    c->path = grpc_slice_to_c_string(c->details.method);
    c->deadline_ns = deadline_from(c->details.deadline);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &c->cancelled;
    call_batch(c, &op, 1, &c->close_event, on_closed);
    const struct rpc_method *method = admit(s, c);
    if (method) {
        method->on_call(c, method->context);
        assert(c->callbacks); /* on_call must rpc_set */
        call_receive(c);
    }
    call_put(c);
}

static void on_closed(struct event *e, bool ok)
{
    (void)ok;
    struct rpc_call *c = event_owner(e, struct rpc_call, close_event);
    call_closed(c);
    call_put(c);
}

/* ---- shutting down ---- */

static size_t count_calls(const struct rpc_server *s)
{
    size_t n = s->calls.n + s->builtin_calls.n + s->refused_calls.n;
    for (size_t i = 0; i < s->n_methods; i++)
        n += s->own_calls[i].n;
    return n;
}

static void free_if_over(struct rpc_server *s)
{
    if (!s->drained || !s->grace_closed || s->n_accepting || count_calls(s))
        return;
    grpc_server_destroy(s->server);
    creds_source_free(s->creds);
    health_free(s->services.health);
    reflection_free(s->services.reflection);
    struct rpc_runtime *r = s->runtime;
    void (*on_stopped)(void *context) = s->on_stopped;
    void *context = s->on_stopped_context;
    free(s);
    if (on_stopped)
        on_stopped(context);
    runtime_user_gone(r);
}

void server_call_gone(struct rpc_server *s)
{
    free_if_over(s);
}

static void on_grace_closed(uv_handle_t *handle)
{
    struct rpc_server *s = handle->data;
    s->grace_closed = true;
    free_if_over(s);
}

static void on_grace_over(uv_timer_t *timer)
{
    struct rpc_server *s = timer->data;
    grpc_server_cancel_all_calls(s->server);
}

static void on_shut_down(struct event *e, bool ok)
{
    (void)ok;
    struct rpc_server *s = event_owner(e, struct rpc_server, shutdown_event);
    s->drained = true;
    uv_close((uv_handle_t *)&s->grace, on_grace_closed);
}

void rpc_server_shutdown(struct rpc_server *s, int64_t grace_ns, void (*on_stopped)(void *context),
                         void *context)
{
    runtime_assert_loop(s->runtime);
    assert(!s->stopping && grace_ns >= 0);
    s->stopping = true;
    s->on_stopped = on_stopped;
    s->on_stopped_context = context;
    s->grace.data = s;
    uv_timer_stop(&s->grace);
    if (s->services.health)
        health_stop(s->services.health);
    if (s->services.reflection)
        reflection_stop(s->services.reflection);
    s->shutdown_event.run = on_shut_down;
    event_release(&s->shutdown_event);
    grpc_server_shutdown_and_notify(s->server, s->runtime->cq, &s->shutdown_event);
    uv_update_time(s->runtime->loop);
    uint64_t grace_ms = (uint64_t)(grace_ns / NSEC_PER_MSEC) + (grace_ns % NSEC_PER_MSEC != 0);
    if (grace_ms)
        uv_timer_start(&s->grace, on_grace_over, grace_ms, 0);
    else
        grpc_server_cancel_all_calls(s->server);
}
