/* rpc_sim_call.c: one end of a simulated call. See rpc_sim.h.
 *
 * A message waits in its sender's queue, then in its receiver's inbox, first under way (arrive_ns
 * lies ahead), then unread. The bytes in an inbox are bounded by the window, and what does not fit
 * stays in the queue. An end goes through on_end exactly once, always from an event of its own, or
 * from call_kill; its memory goes when no posted event knows it any more.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/rpc_sim_impl.h"

/* ---- messages ---- */

static struct message *message_new(enum message_kind kind, const void *data, size_t size)
{
    struct message *m = malloc(sizeof *m + size + 1);
    if (!m)
        abort(); /* the simulation is over in any case */
    *m = (struct message){.kind = kind, .size = size};
    if (size)
        memcpy(m->data, data, size);
    m->data[size] = '\0';
    return m;
}

static void list_append(struct message_list *l, struct message *m)
{
    m->next = NULL;
    if (l->last)
        l->last->next = m;
    else
        l->first = m;
    l->last = m;
    l->bytes += m->size;
    l->n++;
}

static struct message *list_take(struct message_list *l)
{
    struct message *m = l->first;
    l->first = m->next;
    if (!l->first)
        l->last = NULL;
    l->bytes -= m->size;
    l->n--;
    return m;
}

static void list_clear(struct message_list *l)
{
    while (l->first)
        free(list_take(l));
}

static void clear_inbox(struct rpc_call *c)
{
    c->host->net->n_messages -= c->inbox.n;
    list_clear(&c->inbox);
}

/* ---- memory and events ---- */

struct rpc_call *call_new(struct rpc_sim_host *h)
{
    struct rpc_call *c = calloc(1, sizeof *c);
    if (!c)
        abort();
    c->host = h;
    c->previous = h->last_call;
    if (h->last_call)
        h->last_call->next = c;
    else
        h->calls = c;
    h->last_call = c;
    h->n_calls++;
    return c;
}

void call_discard(struct rpc_call *c)
{
    struct rpc_sim_host *h = c->host;
    if (c->previous)
        c->previous->next = c->next;
    else
        h->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    else
        h->last_call = c->previous;
    list_clear(&c->queue);
    clear_inbox(c);
    free(c->details);
    free(c);
}

void call_event_end(struct rpc_call *c)
{
    if (c->ended && c->n_events == 0)
        call_discard(c);
}

void call_post(struct rpc_call *c, struct rpc_sim_host *h, int64_t delay_ns, void (*run)(void *arg))
{
    c->n_events++;
    host_post(h, delay_ns, run, c);
}

struct rpc_call *call_event_begin(void *arg)
{
    struct rpc_call *c = arg;
    assert(c->n_events > 0);
    c->n_events--;
    return c;
}

static int64_t latency_to_peer(struct rpc_call *c)
{
    return net_latency(c->host, c->peer->host);
}

/* ---- the end ---- */

static void say_done(struct rpc_call *c)
{
    c->ended = true;
    c->host->n_calls--;
    list_clear(&c->queue);
    clear_inbox(c);
    if (c->callbacks)
        c->callbacks->on_done(c, c->end_status, c->end_message);
    if (c->server)
        server_call_gone(c->server, c->method);
    else
        channel_call_gone(c->channel);
}

static void set_end(struct rpc_call *c, enum rpc_status status, const char *message)
{
    c->end_status = status;
    snprintf(c->end_message, sizeof c->end_message, "%s", message);
}

/* The peer has gone, or the connection. */
static void on_gone(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    if (!c->ended && !c->ending) {
        c->failed = true;
        list_clear(&c->queue);
        clear_inbox(c);
        if (c->server)
            call_end(c, 0, RPC_CANCELLED, "the peer went away or its deadline passed");
        else
            call_end(c, 0, RPC_UNAVAILABLE, "the connection broke");
    }
    call_event_end(c);
}

static void detach(struct rpc_call *c)
{
    if (c->peer) {
        c->peer->peer = NULL;
        c->peer->lost = true;
        c->peer = NULL;
    }
    c->lost = true;
}

static void on_end(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    if (!c->ended) {
        struct rpc_call *p = c->peer;
        /* A server that has sent its status ends by itself, and so does its client. */
        bool must_tell = p && c->channel && !p->sent_final;
        int64_t delay = must_tell ? latency_to_peer(c) : 0;
        detach(c);
        if (must_tell)
            call_post(p, p->host, delay, on_gone);
        say_done(c);
    }
    call_event_end(c);
}

void call_end(struct rpc_call *c, int64_t delay_ns, enum rpc_status status, const char *message)
{
    if (c->ended || c->ending)
        return;
    c->ending = true;
    set_end(c, status, message);
    call_post(c, c->host, delay_ns, on_end);
}

static void on_inbox(void *arg);

static void push_inbox(struct rpc_call *to, struct message *m, int64_t latency)
{
    m->arrive_ns = MAX(to->last_arrival, clock_now_ns() + latency);
    to->last_arrival = m->arrive_ns;
    list_append(&to->inbox, m);
    to->host->net->n_messages++;
    call_post(to, to->host, m->arrive_ns - clock_now_ns(), on_inbox);
}

static void push_status_details(struct rpc_call *to, enum rpc_status status, const char *message,
                                const uint8_t *details, size_t n_details, int64_t latency)
{
    size_t size = strlen(message);
    struct message *m = malloc(sizeof *m + size + 1 + n_details);
    if (!m)
        abort();
    *m = (struct message){
        .kind = SIM_STATUS, .status = status, .size = size, .n_details = n_details};
    memcpy(m->data, message, size + 1);
    if (n_details)
        memcpy(m->data + size + 1, details, n_details);
    push_inbox(to, m, latency);
}

void call_push_status(struct rpc_call *to, enum rpc_status status, const char *message,
                      int64_t latency)
{
    push_status_details(to, status, message, NULL, 0, latency);
}

static void set_details(struct rpc_call *c, const void *details, size_t size)
{
    if (!size || size > RPC_MAX_DETAILS_BYTES)
        return;
    free(c->details);
    c->details = malloc(size);
    if (!c->details)
        abort();
    memcpy(c->details, details, size);
    c->n_details = size;
}

void call_fail(struct rpc_call *c, enum rpc_status status, const char *message)
{
    if (c->failed || c->ended || c->ending)
        return;
    c->failed = true;
    list_clear(&c->queue);
    clear_inbox(c);
    if (c->server && c->peer && !c->sent_final) {
        c->sent_final = true;
        call_push_status(c->peer, status, message, latency_to_peer(c));
    }
    call_end(c, 0, status, message);
}

void call_break(struct rpc_call *c)
{
    if (c->ended)
        return;
    struct rpc_call *p = c->peer;
    struct rpc_sim *net = c->host->net;
    detach(c);
    call_post(c, c->host, net_random(net, 0, NSEC_PER_MSEC), on_gone);
    if (p)
        call_post(p, p->host, net_random(net, 0, NSEC_PER_MSEC), on_gone);
}

void call_kill(struct rpc_call *c, int64_t notice_ns)
{
    if (c->ended)
        return;
    struct rpc_call *p = c->peer;
    detach(c);
    if (p)
        call_post(p, p->host, notice_ns, on_gone);
    c->failed = true;
    set_end(c, c->server ? RPC_CANCELLED : RPC_UNAVAILABLE, "the process ended");
    say_done(c);
    call_event_end(c);
}

void call_on_deadline(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    if (!c->ended && !c->ending && c->channel) {
        c->failed = true;
        list_clear(&c->queue);
        clear_inbox(c);
        call_end(c, 0, RPC_DEADLINE_EXCEEDED, "the deadline passed");
    } else if (!c->ended && !c->ending) {
        if (c->peer && !c->sent_final) {
            c->sent_final = true;
            call_push_status(c->peer, RPC_DEADLINE_EXCEEDED, "the deadline passed",
                             latency_to_peer(c));
        }
        c->failed = true;
        list_clear(&c->queue);
        clear_inbox(c);
        call_end(c, 0, RPC_CANCELLED, "the peer went away or its deadline passed");
    }
    call_event_end(c);
}

/* ---- sending ---- */

static bool has_room(const struct rpc_call *c, size_t size)
{
    size_t window = c->host->window, unread = c->inbox.bytes;
    return unread == 0 || unread + size <= window;
}

static void transmit(struct rpc_call *c, struct message *m)
{
    if (c->peer)
        push_inbox(c->peer, m, latency_to_peer(c));
    else
        free(m);
}

static void on_send(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    c->sending = false;
    bool open = !c->ended && !c->failed && !c->sent_final && (c->peer || c->lost);
    bool moved = false;
    while (open && c->queue.first && (!c->peer || has_room(c->peer, c->queue.first->size))) {
        transmit(c, list_take(&c->queue));
        moved = true;
    }
    if (open && !c->queue.first && c->finishing) {
        c->sent_final = true;
        if (c->peer)
            push_status_details(c->peer, c->end_status, c->end_message, c->details, c->n_details,
                                latency_to_peer(c));
        char message[sizeof c->end_message];
        memcpy(message, c->end_message, sizeof message);
        call_end(c, net_random(c->host->net, SIM_SEND_MIN_NS, SIM_SEND_MAX_NS), c->end_status,
                 message);
    } else if (open && !c->queue.first && c->half_closing) {
        c->sent_final = true;
        transmit(c, message_new(SIM_HALF_CLOSE, NULL, 0));
    } else if (moved && !c->queue.first && c->callbacks->on_drained) {
        c->callbacks->on_drained(c);
    }
    call_event_end(c);
}

void call_kick(struct rpc_call *c, int64_t delay_ns)
{
    if (c->sending)
        return;
    c->sending = true;
    call_post(c, c->host, delay_ns, on_send);
}

static void kick_soon(struct rpc_call *c)
{
    call_kick(c, net_random(c->host->net, SIM_SEND_MIN_NS, SIM_SEND_MAX_NS));
}

int rpc_send(struct rpc_call *c, const void *data, size_t size)
{
    if (c->failed || c->ended || c->ending || c->finishing || c->half_closing || c->host->dead)
        return 0;
    if (size > c->max_message_bytes) {
        call_fail(c, RPC_RESOURCE_EXHAUSTED, "a message is over the limit");
        return -EMSGSIZE;
    }
    if (c->queue.first &&
        c->queue.bytes + size + (c->queue.n + 1) * SIM_CHUNK_OVERHEAD > SIM_MAX_QUEUED_BYTES) {
        call_fail(c, RPC_RESOURCE_EXHAUSTED, "the receiver reads too slowly");
        return -ENOBUFS;
    }
    list_append(&c->queue, message_new(SIM_DATA, data, size));
    kick_soon(c);
    return 0;
}

int rpc_send_all(struct rpc_call *const *calls, size_t n, const void *data, size_t size)
{
    int code = 0;
    for (size_t i = 0; i != n; i++) {
        int r = rpc_send(calls[i], data, size);
        code = r < 0 ? r : code;
    }
    return code;
}

size_t rpc_queued_bytes(const struct rpc_call *c)
{
    return c->queue.bytes;
}

void rpc_half_close(struct rpc_call *c)
{
    assert(c->channel);
    if (c->half_closing || c->ended || c->ending)
        return;
    c->half_closing = true;
    kick_soon(c);
}

void rpc_finish(struct rpc_call *c, enum rpc_status status, const char *message)
{
    assert(c->server);
    if (c->finishing || c->failed || c->ended || c->ending)
        return;
    c->finishing = true;
    set_end(c, status, message ? message : "");
    kick_soon(c);
}

void rpc_finish_details(struct rpc_call *c, enum rpc_status status, const char *message,
                        const void *details, size_t size)
{
    if (c->finishing || c->failed || c->ended || c->ending)
        return;
    set_details(c, details, size);
    rpc_finish(c, status, message);
}

void rpc_set_pushback(struct rpc_call *c, int32_t ms)
{
    (void)c, (void)ms; /* its clients retry nothing by themselves */
}

const uint8_t *rpc_details(const struct rpc_call *c, size_t *ret_size)
{
    bool any = c->channel && !c->failed && c->n_details;
    *ret_size = any ? c->n_details : 0;
    return any ? c->details : NULL;
}

void rpc_cancel(struct rpc_call *c)
{
    call_fail(c, RPC_CANCELLED, "cancelled");
}

/* ---- receiving ---- */

/* Room in the inbox: the sender may go on. */
static void give_credit(struct rpc_call *c)
{
    if (c->peer && c->peer->queue.first)
        call_kick(c->peer, latency_to_peer(c));
}

/* An error ends a paused call at once: whether one is here. */
static const struct message *find_error(const struct rpc_call *c, int64_t now)
{
    for (const struct message *m = c->inbox.first; m && m->arrive_ns <= now; m = m->next) {
        if (m->kind == SIM_STATUS && m->status != RPC_OK)
            return m;
    }
    return NULL;
}

static void deliver(struct rpc_call *c, const struct message *m)
{
    if (m->kind == SIM_STATUS) {
        set_details(c, m->data + m->size + 1, m->n_details);
        call_end(c, 0, m->status, (const char *)m->data);
    } else if (m->kind == SIM_HALF_CLOSE) {
        if (!c->finishing && c->callbacks->on_half_close)
            c->callbacks->on_half_close(c);
    } else if (m->size > c->max_message_bytes) {
        call_fail(c, RPC_RESOURCE_EXHAUSTED, "a message is over the limit");
    } else if (!c->finishing) {
        c->callbacks->on_message(c, m->data, m->size);
    }
}

static void read_inbox(struct rpc_call *c)
{
    while (!c->failed && !c->ended && !c->ending) {
        int64_t now = clock_now_ns();
        const struct message *error = c->paused ? find_error(c, now) : NULL;
        if (error) {
            set_details(c, error->data + error->size + 1, error->n_details);
            call_end(c, 0, error->status, (const char *)error->data);
            return;
        }
        if (c->paused || !c->inbox.first || c->inbox.first->arrive_ns > now)
            return;
        struct message *m = list_take(&c->inbox);
        c->host->net->n_messages--;
        deliver(c, m);
        free(m);
        give_credit(c);
    }
}

static void on_inbox(void *arg)
{
    struct rpc_call *c = call_event_begin(arg);
    read_inbox(c);
    call_event_end(c);
}

void rpc_pause(struct rpc_call *c)
{
    c->paused = true;
}

void rpc_resume(struct rpc_call *c)
{
    if (!c->paused)
        return;
    c->paused = false;
    call_post(c, c->host, 0, on_inbox);
}

/* ---- what a call knows about itself ---- */

void rpc_set(struct rpc_call *c, const struct rpc_callbacks *callbacks, void *user)
{
    assert(callbacks && callbacks->on_message && callbacks->on_done);
    c->callbacks = callbacks;
    c->user = user;
}

struct rpc_server *rpc_server_of(const struct rpc_call *c)
{
    return c->server;
}

void *rpc_user(const struct rpc_call *c)
{
    return c->user;
}

const char *rpc_path(const struct rpc_call *c)
{
    return c->path;
}

const char *rpc_peer(const struct rpc_call *c)
{
    return c->peer_name;
}

int64_t rpc_deadline_ns(const struct rpc_call *c)
{
    return c->deadline_ns;
}

const char *rpc_metadata(const struct rpc_call *c, const char *key)
{
    return *c->header_key && strcmp(c->header_key, key) == 0 ? c->header_value : NULL;
}

void rpc_sim_set_metadata(struct rpc_call *c, const char *key, const char *value)
{
    assert(c->channel && !c->peer);
    snprintf(c->header_key, sizeof c->header_key, "%s", key);
    snprintf(c->header_value, sizeof c->header_value, "%s", value);
}
