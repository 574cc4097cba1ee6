/* rpc_grpc_client.c: channels and the calls opened on them. A channel connects on the first call,
 * keeps trying as long as a call waits for it, and connects again by itself when the server comes
 * back; a broken call is never resumed or retried here. */
#include "proto/rpc/rpc_grpc.h"

#include <assert.h>
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

enum { MAX_KEY_BYTES = 1024 };

static grpc_channel *create(const struct rpc_channel *ch, const char *target,
                            const struct rpc_tls *tls, grpc_channel_credentials *creds)
{
    grpc_arg args[] = {
        {.key = GRPC_ARG_ENABLE_RETRIES, .value.integer = 0},
        /* Channels share connections unless told not to: a new one must not inherit a dead one. */
        {.key = GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, .value.integer = 1},
        {.key = GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, .value.integer = 50},
        {.key = GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, .value.integer = 500},
        /* In spite of its name the time that one attempt may take. */
        {.key = GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, .value.integer = 3000},
        {.key = GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, .value.integer = 1000},
        {.key = GRPC_ARG_KEEPALIVE_TIME_MS, .value.integer = 5000},
        {.key = GRPC_ARG_KEEPALIVE_TIMEOUT_MS, .value.integer = 3000},
        RPC_GRPC_ARGS(ch->max_message_bytes),
        /* What the environment or the DNS says about proxies and policies is not for us. */
        {.key = GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
        {.key = GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, .value.integer = 1},
        {.key = NULL}, /* target name */
    };
    size_t n = ARRAY_LEN(args) - 1;
    for (size_t i = 0; i < n; i++)
        args[i].type = GRPC_ARG_INTEGER;
    if (tls && tls->target_name && tls->target_name[0]) {
        args[n].type = GRPC_ARG_STRING;
        args[n].key = GRPC_SSL_TARGET_NAME_OVERRIDE_ARG;
        args[n++].value.string = (char *)tls->target_name;
    }
    grpc_channel_args list = {n, args};
    return grpc_channel_create(target, creds, &list);
}

int rpc_channel_new(struct rpc_runtime *r, const char *target, const struct rpc_tls *tls,
                    const struct rpc_limits *limits, struct rpc_channel **ret, struct err *e)
{
    runtime_assert_loop(r);
    assert(!r->stopping);
    int code = address_check(target, false, e);
    if (code)
        return code;
    grpc_channel_credentials *creds;
    code = creds_client(tls, &creds, e);
    if (code)
        return code;
    struct rpc_channel *ch = calloc(1, sizeof *ch);
    if (!ch) {
        grpc_channel_credentials_release(creds);
        return err_set(e, -ENOMEM, "no memory for a channel to %s", target);
    }
    ch->runtime = r;
    ch->max_message_bytes =
        limits && limits->max_message_bytes ? limits->max_message_bytes : RPC_DEFAULT_MESSAGE_BYTES;
    assert(ch->max_message_bytes <= RPC_MAX_QUEUED_BYTES);
    ch->channel = create(ch, target, tls, creds);
    grpc_channel_credentials_release(creds);
    r->n_users++;
    *ret = ch;
    return 0;
}

static void free_if_over(struct rpc_channel *ch)
{
    if (!ch->closing || ch->calls.n)
        return;
    struct rpc_runtime *r = ch->runtime;
    grpc_channel_destroy(ch->channel);
    if (ch->authorization)
        explicit_bzero(ch->authorization, strlen(ch->authorization));
    free(ch->authorization);
    free(ch);
    runtime_user_gone(r);
}

void channel_call_gone(struct rpc_channel *ch)
{
    free_if_over(ch);
}

int rpc_channel_authorize(struct rpc_channel *ch, const char *key)
{
    runtime_assert_loop(ch->runtime);
    size_t n = strnlen(key, MAX_KEY_BYTES + 1);
    for (size_t i = 0; i != n; i++) {
        if (key[i] < '!' || key[i] > '~')
            return -EINVAL;
    }
    if (n == 0 || n > MAX_KEY_BYTES)
        return -EINVAL;
    size_t size = sizeof "Bearer " + n;
    char *value = malloc(size);
    if (!value)
        return -ENOMEM;
    snprintf(value, size, "Bearer %s", key);
    free(ch->authorization);
    ch->authorization = value;
    return 0;
}

void rpc_channel_close(struct rpc_channel *ch)
{
    runtime_assert_loop(ch->runtime);
    assert(!ch->closing);
    ch->closing = true;
    for (struct rpc_call *c = ch->calls.first; c; c = c->next)
        rpc_cancel(c); /* their ends come later, from the loop */
    free_if_over(ch);
}

/* ---- calls ---- */

static void on_started(struct event *e, bool ok)
{
    (void)ok; /* a call that could not start ends with a status, too */
    call_put(event_owner(e, struct rpc_call, start_event));
}

static void on_status(struct event *e, bool ok)
{
    (void)ok;
    struct rpc_call *c = event_owner(e, struct rpc_call, close_event);
    call_closed(c);
    call_put(c);
}

static void start(struct rpc_call *c, bool wait_for_ready)
{
    c->started = true;
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET |
                   (wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0);
    grpc_metadata header = {0};
    if (c->channel->authorization) {
        header = (grpc_metadata){
            .key = grpc_slice_from_static_string("authorization"),
            .value = grpc_slice_from_copied_string(c->channel->authorization),
        };
        ops[0].data.send_initial_metadata.count = 1;
        ops[0].data.send_initial_metadata.metadata = &header;
    }
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &c->initial_metadata;
    call_batch(c, ops, 2, &c->start_event, on_started);
    if (c->channel->authorization)
        grpc_slice_unref(header.value);
    grpc_op op = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    op.data.recv_status_on_client.trailing_metadata = &c->trailing_metadata;
    op.data.recv_status_on_client.status = &c->status;
    op.data.recv_status_on_client.status_details = &c->status_details;
    call_batch(c, &op, 1, &c->close_event, on_status);
    call_receive(c);
}

int rpc_open(struct rpc_channel *ch, const char *path, int64_t deadline_ns, bool wait_for_ready,
             const struct rpc_callbacks *callbacks, void *user, struct rpc_call **ret)
{
    runtime_assert_loop(ch->runtime);
    assert(!ch->closing && path[0] == '/' && deadline_ns >= 0);
    assert(callbacks && callbacks->on_message && callbacks->on_done);
    struct rpc_call *c = call_new(ch->runtime);
    if (!c)
        return -ENOMEM;
    c->channel = ch;
    c->max_message_bytes = ch->max_message_bytes;
    c->callbacks = callbacks;
    c->user = user;
    c->path = gpr_strdup(path);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (deadline_ns) {
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_nanos(deadline_ns, GPR_TIMESPAN));
        c->deadline_ns = clock_now_ns() + deadline_ns;
    }
    grpc_slice method = grpc_slice_from_copied_string(path);
    c->call = grpc_channel_create_call(ch->channel, NULL, GRPC_PROPAGATE_DEFAULTS, ch->runtime->cq,
                                       method, NULL, deadline, NULL);
    grpc_slice_unref(method);
    call_list_add(&ch->calls, c);
    start(c, wait_for_ready);
    *ret = c;
    return 0;
}
