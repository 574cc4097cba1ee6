/* link.c: see link.h. */
#include "worker/link.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"

enum { MAX_QUEUED_BYTES = 32 * 1024 * 1024, CLOSE_MS = 1000 };

static const char session_path[] = "/glmd.v1.Worker/Session";
static const int64_t log_interval_ns = 60 * NSEC_PER_SEC;

static void dial(struct link *l);

static void on_timer(uv_timer_t *t)
{
    dial(t->data);
}

static void on_timer_closed(uv_handle_t *h)
{
    struct link *l = h->data;
    rpc_channel_close(l->channel);
    l->channel = NULL;
    l->on_closed(l->context);
}

static void finish_close(struct link *l)
{
    uv_close((uv_handle_t *)&l->timer, on_timer_closed);
}

static uint64_t jittered_ms(int64_t pause_ns)
{
    uint32_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
        random = 0;
    int64_t extra = pause_ns / 4 / 1024 * (random % 1024);
    return (uint64_t)((pause_ns + extra) / NSEC_PER_MSEC) + 1;
}

static void pause_and_dial(struct link *l)
{
    uv_timer_start(&l->timer, on_timer, jittered_ms(l->pause_ns), 0);
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
    l->callbacks->on_lost(l->context);
    if (l->closing)
        finish_close(l);
    else
        pause_and_dial(l);
}

static const struct rpc_callbacks call_callbacks = {.on_message = on_message, .on_done = on_done};

static void dial(struct link *l)
{
    int r = rpc_open(l->channel, session_path, 0, false, &call_callbacks, l, &l->call);
    if (r) {
        l->call = NULL;
        log_failure(l, RPC_INTERNAL, err_name(r));
        pause_and_dial(l);
        return;
    }
    l->callbacks->on_open(l->context);
}

int link_init(struct link *l, uv_loop_t *loop, struct rpc_runtime *runtime,
              const struct link_config *config, const struct link_callbacks *callbacks,
              void *context, struct err *e)
{
    *l = (struct link){.runtime = runtime,
                       .config = *config,
                       .callbacks = callbacks,
                       .context = context,
                       .pause_ns = config->reconnect_min};
    const struct rpc_limits limits = {.max_message_bytes = config->max_message_bytes};
    int r = rpc_channel_new(runtime, config->target, config->tls, &limits, &l->channel, e);
    if (r)
        return r;
    l->config.tls = NULL; /* the channel has read it */
    uv_timer_init(loop, &l->timer);
    l->timer.data = l;
    return 0;
}

void link_start(struct link *l)
{
    assert(!l->started);
    l->started = true;
    dial(l);
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

static void on_close_timeout(uv_timer_t *t)
{
    struct link *l = t->data;
    if (l->call)
        rpc_cancel(l->call);
}

void link_close(struct link *l, void (*on_closed)(void *context))
{
    assert(!l->closing);
    l->closing = true;
    l->on_closed = on_closed;
    uv_timer_stop(&l->timer);
    if (!l->call) {
        finish_close(l);
        return;
    }
    rpc_half_close(l->call); /* behind what is queued; the coordinator ends the call then */
    uv_timer_start(&l->timer, on_close_timeout, CLOSE_MS, 0);
}
