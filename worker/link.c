/* link.c: see link.h. */
#include "worker/link.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/util.h"

#define CLOSE_NS NSEC_PER_SEC

enum { MAX_QUEUED_BYTES = 32 * 1024 * 1024 };

static const char session_path[] = "/glmd.v1.Worker/Session";
static const int64_t log_interval_ns = 60 * NSEC_PER_SEC;

static int64_t jittered(int64_t pause_ns)
{
    uint32_t random;
    if (random_bytes(&random, sizeof random) < 0)
        random = 0;
    return pause_ns + pause_ns / 4 / 1024 * (random % 1024);
}

static void pause_dialling(struct link *l)
{
    l->next_ns = clock_now_ns() + jittered(l->pause_ns);
    l->pause_ns = MIN(l->pause_ns * 2, l->config.reconnect_max);
}

static void log_failure(struct link *l, enum rpc_status status, const char *message)
{
    char failure[sizeof l->last_failure];
    snprintf(failure, sizeof failure, "%s%s%s", rpc_status_name(status), *message ? ": " : "",
             message);
    int64_t now = clock_now_ns();
    if (!l->heard && strcmp(failure, l->last_failure) == 0 && now < l->next_log)
        return;
    if (l->heard)
        log_warn("lost the coordinator %s (%s); dialling again", l->config.target, failure);
    else
        log_warn("no coordinator at %s (%s); trying again until there is one", l->config.target,
                 failure);
    memcpy(l->last_failure, failure, sizeof failure);
    l->next_log = now + log_interval_ns;
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct link *l = rpc_user(c);
    if (!l->heard) {
        l->heard = true;
        l->pause_ns = l->config.reconnect_min;
        l->last_failure[0] = 0;
        log_info("connected to the coordinator %s", l->config.target);
    }
    if (!l->closing)
        l->callbacks->on_message(l->context, data, size);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct link *l = rpc_user(c);
    assert(l->call == c);
    l->call = NULL;
    if (!l->closing)
        log_failure(l, status, message ? message : "");
    l->heard = false;
    if (!l->closing)
        pause_dialling(l);
    l->callbacks->on_lost(l->context);
}

static const struct rpc_callbacks call_callbacks = {.on_message = on_message, .on_done = on_done};

/* The certificates may be new ones by now: a channel reads them when it is made. */
static void renew_channel(struct link *l)
{
    const struct rpc_limits limits = {.max_message_bytes = l->config.max_message_bytes};
    struct rpc_channel *channel;
    struct err e = ERR_INIT;
    int r = rpc_channel_new(l->runtime, l->config.target, l->config.tls, &limits, &channel, &e);
    if (r < 0) {
        log_error("%s; the certificates that were read before stay in use", e.message);
        return;
    }
    rpc_channel_close(l->channel);
    l->channel = channel;
}

static void dial(struct link *l)
{
    if (l->config.tls && l->dialled)
        renew_channel(l);
    l->dialled = true;
    int r = rpc_open(l->channel, session_path, 0, false, &call_callbacks, l, &l->call);
    if (r) {
        l->call = NULL;
        log_failure(l, RPC_INTERNAL, err_name(r));
        pause_dialling(l);
        return;
    }
    l->next_ns = INT64_MAX;
    l->callbacks->on_open(l->context);
}

int link_init(struct link *l, struct rpc_runtime *runtime, const struct link_config *config,
              const struct link_callbacks *callbacks, void *context, struct err *e)
{
    *l = (struct link){.runtime = runtime,
                       .config = *config,
                       .callbacks = callbacks,
                       .context = context,
                       .pause_ns = config->reconnect_min};
    if (config->tls) {
        l->tls = *config->tls;
        l->config.tls = &l->tls;
    }
    const struct rpc_limits limits = {.max_message_bytes = config->max_message_bytes};
    return rpc_channel_new(runtime, config->target, config->tls, &limits, &l->channel, e);
}

static void finish_close(struct link *l)
{
    l->closed = true;
    rpc_channel_close(l->channel);
    l->channel = NULL;
    l->next_ns = INT64_MAX;
    l->on_closed(l->context);
}

int64_t link_tick(struct link *l, int64_t now)
{
    if (l->closing && !l->closed && !l->call) {
        finish_close(l);
    } else if (l->closing && l->call && now >= l->next_ns) {
        rpc_cancel(l->call); /* on_done follows */
        l->next_ns = INT64_MAX;
    } else if (!l->closing && !l->call && now >= l->next_ns) {
        dial(l);
    }
    return l->next_ns;
}

void link_send(struct link *l, const void *data, size_t size)
{
    if (!l->call)
        return;
    if (rpc_queued_bytes(l->call) > MAX_QUEUED_BYTES) {
        log_warn("the coordinator does not read; %zu bytes are waiting", rpc_queued_bytes(l->call));
        rpc_cancel(l->call);
        return;
    }
    int r = rpc_send(l->call, data, size);
    if (r) {
        log_error("sending %zu bytes: %s", size, err_name(r));
        rpc_cancel(l->call);
    }
}

void link_disconnect(struct link *l)
{
    if (l->call)
        rpc_cancel(l->call);
}

bool link_heard(const struct link *l)
{
    return l->call && l->heard;
}

void link_close(struct link *l, int64_t now, void (*on_closed)(void *context))
{
    assert(!l->closing);
    l->closing = true;
    l->on_closed = on_closed;
    l->next_ns = now + CLOSE_NS;
    if (l->call)
        rpc_half_close(l->call); /* behind what is queued; the coordinator ends the call then */
}
