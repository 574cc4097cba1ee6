/* rpc_sim_open.c: how a simulated call begins: dialling, accepting, refusing. See rpc_sim.h. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/rpc_sim_impl.h"

#define CONNECT_TIMEOUT (3 * NSEC_PER_SEC)
#define CONNECT_RETRY   (50 * NSEC_PER_MSEC)

static void refuse(struct rpc_call *c, struct rpc_server *s, enum rpc_status status,
                   const char *message)
{
    call_push_status(c, status, message, net_latency(c->host, s->host));
}

static void accept_call(struct rpc_call *c, struct rpc_server *s)
{
    int method = server_find_method(s, c->path);
    if (method < 0) {
        refuse(c, s, RPC_UNIMPLEMENTED, "there is no such method here");
        return;
    }
    if (!server_has_room(s, method)) {
        refuse(c, s, RPC_RESOURCE_EXHAUSTED, "the server already has its limit of calls");
        return;
    }
    struct rpc_call *p = call_new(s->host);
    p->server = s;
    p->method = method;
    s->n_calls++;
    s->n_own_calls[method]++;
    p->max_message_bytes = s->max_message_bytes;
    memcpy(p->path, c->path, sizeof p->path);
    memcpy(p->header_key, c->header_key, sizeof p->header_key);
    memcpy(p->header_value, c->header_value, sizeof p->header_value);
    snprintf(p->peer_name, sizeof p->peer_name, "sim:%s", c->host->name);
    p->peer = c;
    c->peer = p;
    if (c->deadline_ns) { /* as long as the client had left when it called */
        p->deadline_ns = clock_now_ns() + (c->deadline_ns - c->opened_ns);
        call_post(p, p->host, p->deadline_ns - clock_now_ns(), call_on_deadline);
    }
    s->methods[method]->on_call(p, s->methods[method]->context);
    assert(p->callbacks); /* on_call must rpc_set */
    call_kick(c, 0);
}

static void on_connect_failed(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    if (!c->ended && !c->ending) {
        c->failed = true;
        call_end(c, 0, RPC_UNAVAILABLE, "failed to connect");
    }
    call_event_end(c);
}

/* On the server's host, if it still is there. */
static void on_accept(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    struct rpc_server *s = net_find_server(c->host->net, c->channel->target);
    if (c->ended || c->ending || c->failed)
        ;
    else if (s)
        accept_call(c, s);
    else
        call_post(c, c->host, net_latency(c->host, c->host), on_connect_failed);
    call_event_end(c);
}

static void on_dial(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    struct rpc_server *s = net_find_server(c->host->net, c->channel->target);
    if (!c->ended && !c->ending && !c->failed) {
        int64_t delay = net_latency(c->host, s ? s->host : c->host);
        if (s && delay <= CONNECT_TIMEOUT)
            call_post(c, s->host, delay, on_accept);
        else if (c->wait_for_ready)
            call_post(c, c->host, MIN(delay, CONNECT_TIMEOUT) + CONNECT_RETRY, on_dial);
        else
            call_post(c, c->host, MIN(delay, CONNECT_TIMEOUT), on_connect_failed);
    }
    call_event_end(c);
}

int rpc_open(struct rpc_channel *ch, const char *path, int64_t deadline_ns, bool wait_for_ready,
             const struct rpc_callbacks *callbacks, void *user, struct rpc_call **ret)
{
    if (ch->host->dead || ch->closing)
        return -ESHUTDOWN;
    struct rpc_call *c = call_new(ch->host);
    c->channel = ch;
    ch->n_calls++;
    c->callbacks = callbacks;
    c->user = user;
    c->wait_for_ready = wait_for_ready;
    c->opened_ns = clock_now_ns();
    c->max_message_bytes = ch->max_message_bytes;
    snprintf(c->path, sizeof c->path, "%s", path);
    snprintf(c->peer_name, sizeof c->peer_name, "sim:%.70s", ch->target);
    if (*ch->authorization)
        rpc_sim_set_metadata(c, "authorization", ch->authorization);
    if (deadline_ns) {
        c->deadline_ns = clock_now_ns() + deadline_ns;
        call_post(c, c->host, deadline_ns, call_on_deadline);
    }
    call_post(c, c->host, net_random(ch->host->net, SIM_SEND_MIN_NS, SIM_SEND_MAX_NS), on_dial);
    *ret = c;
    return 0;
}
