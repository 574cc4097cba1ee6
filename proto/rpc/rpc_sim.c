/* rpc_sim.c: hosts, servers and channels of the simulated network. See rpc_sim.h.
 *
 * Servers, channels and runtimes stay in their host's lists until the network is freed: events may
 * still point to them. What is over has no address and no calls.
 */
#include "proto/rpc/rpc_sim.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/rpc_sim_impl.h"

#define DEFAULT_LATENCY_MIN (50 * NSEC_PER_USEC)
#define DEFAULT_LATENCY_MAX (300 * NSEC_PER_USEC)

enum { FIRST_PORT = 20000 };

static void *must_alloc(size_t size)
{
    void *p = calloc(1, size);
    if (!p)
        abort(); /* the simulation is over in any case */
    return p;
}

/* ---- the network ---- */

struct rpc_sim *rpc_sim_new(const struct rpc_sim_ops *ops, void *context)
{
    struct rpc_sim *n = must_alloc(sizeof *n);
    n->ops = ops;
    n->context = context;
    n->next_port = FIRST_PORT;
    return n;
}

static void free_host(struct rpc_sim_host *h)
{
    while (h->calls)
        call_discard(h->calls);
    for (struct rpc_server *s = h->servers, *next; s; s = next) {
        next = s->next;
        free(s);
    }
    for (struct rpc_channel *ch = h->channels, *next; ch; ch = next) {
        next = ch->next;
        free(ch);
    }
    for (struct rpc_runtime *r = h->runtimes, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    free(h);
}

void rpc_sim_free(struct rpc_sim *n)
{
    if (!n)
        return;
    for (struct rpc_sim_host *h = n->hosts, *next; h; h = next) {
        next = h->next;
        free_host(h);
    }
    assert(n->n_messages == 0);
    free(n);
}

size_t rpc_sim_n_messages(const struct rpc_sim *n)
{
    return n->n_messages;
}

int64_t net_random(struct rpc_sim *n, int64_t min, int64_t max)
{
    assert(min <= max);
    return min + (int64_t)(n->ops->random(n->context) % (uint64_t)(max - min + 1));
}

int64_t net_latency(struct rpc_sim_host *a, struct rpc_sim_host *b)
{
    int64_t now = clock_now_ns();
    int64_t start = MAX(now, MAX(a->blocked_until, b->blocked_until));
    int64_t x = net_random(a->net, a->latency_min, a->latency_max);
    int64_t y = net_random(a->net, b->latency_min, b->latency_max);
    return start - now + MAX(x, y);
}

struct rpc_server *net_find_server(struct rpc_sim *n, const char *target)
{
    for (struct rpc_sim_host *h = n->hosts; h; h = h->next) {
        for (struct rpc_server *s = h->servers; s && !h->dead; s = s->next) {
            if (s->started && !s->stopping && strcmp(s->address, target) == 0)
                return s;
        }
    }
    return NULL;
}

/* ---- hosts ---- */

struct rpc_sim_host *rpc_sim_host_new(struct rpc_sim *n, const char *name, void *owner)
{
    struct rpc_sim_host *h = must_alloc(sizeof *h);
    h->net = n;
    h->owner = owner;
    h->latency_min = DEFAULT_LATENCY_MIN;
    h->latency_max = DEFAULT_LATENCY_MAX;
    h->window = SIM_DEFAULT_WINDOW;
    snprintf(h->name, sizeof h->name, "%s", name);
    h->next = n->hosts;
    n->hosts = h;
    return h;
}

struct uv_loop_s *rpc_sim_host_loop(struct rpc_sim_host *h)
{
    return (struct uv_loop_s *)(void *)h;
}

void host_post(struct rpc_sim_host *h, int64_t delay_ns, void (*run)(void *arg), void *arg)
{
    h->net->ops->post(h->net->context, h->owner, delay_ns, run, arg);
}

void rpc_sim_set_latency(struct rpc_sim_host *h, int64_t min_ns, int64_t max_ns)
{
    h->latency_min = min_ns;
    h->latency_max = max_ns;
}

void rpc_sim_set_window(struct rpc_sim_host *h, size_t bytes)
{
    h->window = bytes;
}

void rpc_sim_block(struct rpc_sim_host *h, int64_t until_ns)
{
    h->blocked_until = MAX(h->blocked_until, until_ns);
}

size_t rpc_sim_n_calls(const struct rpc_sim_host *h)
{
    return h->n_calls;
}

void rpc_sim_break(struct rpc_sim_host *h)
{
    for (struct rpc_call *c = h->calls; c; c = c->next)
        call_break(c);
}

void rpc_sim_kill(struct rpc_sim_host *h, int64_t notice_ns)
{
    assert(!h->dead);
    h->dead = true;
    for (struct rpc_server *s = h->servers; s; s = s->next)
        s->address[0] = '\0';
    /* Callbacks of one call may not free another one: only call_kill ends calls here. */
    for (struct rpc_call *c = h->calls, *next; c; c = next) {
        next = c->next;
        call_kill(c, notice_ns);
    }
}

/* ---- runtimes ---- */

int rpc_runtime_new(struct uv_loop_s *loop, struct rpc_runtime **ret, struct err *e)
{
    (void)e;
    struct rpc_sim_host *h = (struct rpc_sim_host *)(void *)loop;
    struct rpc_runtime *r = must_alloc(sizeof *r);
    r->host = h;
    r->next = h->runtimes;
    h->runtimes = r;
    *ret = r;
    return 0;
}

static bool is_used(const struct rpc_runtime *r)
{
    for (const struct rpc_server *s = r->host->servers; s; s = s->next) {
        if (s->runtime == r)
            return true;
    }
    for (const struct rpc_channel *ch = r->host->channels; ch; ch = ch->next) {
        if (ch->runtime == r)
            return true;
    }
    return false;
}

static void on_runtime_stop(void *arg)
{
    struct rpc_runtime *r = arg;
    if (r->host->dead)
        return;
    if (is_used(r))
        host_post(r->host, NSEC_PER_MSEC, on_runtime_stop, r);
    else
        r->on_stopped(r->stopped_context);
}

void rpc_runtime_stop(struct rpc_runtime *r, void (*on_stopped)(void *context), void *context)
{
    assert(!r->stopping);
    r->stopping = true;
    r->on_stopped = on_stopped;
    r->stopped_context = context;
    host_post(r->host, 0, on_runtime_stop, r);
}

/* ---- servers ---- */

int rpc_server_new(struct rpc_runtime *r, const struct rpc_limits *limits, struct rpc_server **ret)
{
    struct rpc_server *s = must_alloc(sizeof *s);
    s->host = r->host;
    s->runtime = r;
    s->max_message_bytes =
        limits && limits->max_message_bytes ? limits->max_message_bytes : SIM_DEFAULT_MESSAGE_BYTES;
    s->max_calls = limits && limits->max_calls ? limits->max_calls : SIM_DEFAULT_CALLS;
    s->next = r->host->servers;
    r->host->servers = s;
    *ret = s;
    return 0;
}

int rpc_server_add(struct rpc_server *s, const struct rpc_method *methods, size_t n)
{
    assert(!s->started && s->n_methods + n <= SIM_MAX_METHODS);
    for (size_t i = 0; i != n; i++)
        s->methods[s->n_methods++] = &methods[i];
    return 0;
}

int rpc_server_listen(struct rpc_server *s, const char *address, const struct rpc_tls *tls,
                      int *ret_port, struct err *e)
{
    (void)tls;
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address)
        return err_set(e, -EINVAL, "expected HOST:PORT, found \"%s\"", address);
    int port = (int)strtol(colon + 1, NULL, 10);
    if (port == 0)
        port = s->host->net->next_port++;
    char text[sizeof s->address];
    snprintf(text, sizeof text, "%.*s:%d", (int)(colon - address), address, port);
    struct rpc_server *other = net_find_server(s->host->net, text);
    if (other)
        return err_set(e, -EADDRINUSE, "%s is taken by %s", text, other->host->name);
    memcpy(s->address, text, sizeof text);
    if (ret_port)
        *ret_port = port;
    return 0;
}

int rpc_server_start(struct rpc_server *s)
{
    s->started = true;
    return 0;
}

int server_find_method(const struct rpc_server *s, const char *path)
{
    for (size_t i = 0; i != s->n_methods; i++) {
        if (strcmp(s->methods[i]->path, path) == 0)
            return (int)i;
    }
    return -1;
}

bool server_has_room(const struct rpc_server *s, int method)
{
    size_t own_limit = s->methods[method]->max_calls;
    if (own_limit)
        return s->n_own_calls[method] < own_limit;
    size_t n_shared = s->n_calls;
    for (size_t i = 0; i != s->n_methods; i++)
        n_shared -= s->methods[i]->max_calls ? s->n_own_calls[i] : 0;
    return n_shared < s->max_calls;
}

/* Out of the list: the runtime has lost a user. The memory goes with the host. */
static void on_server_stopped(void *arg)
{
    struct rpc_server *s = arg;
    if (s->host->dead)
        return;
    s->runtime = NULL;
    s->address[0] = '\0';
    if (s->on_stopped)
        s->on_stopped(s->stopped_context);
}

void server_call_gone(struct rpc_server *s, int method)
{
    assert(s->n_calls > 0 && s->n_own_calls[method] > 0);
    s->n_calls--;
    s->n_own_calls[method]--;
    if (s->stopping && !s->n_calls && !s->stop_posted) {
        s->stop_posted = true;
        host_post(s->host, 0, on_server_stopped, s);
    }
}

static void on_grace_over(void *arg)
{
    struct rpc_server *s = arg;
    for (struct rpc_call *c = s->host->calls; c && !s->host->dead; c = c->next) {
        if (c->server == s)
            call_break(c);
    }
}

void rpc_server_shutdown(struct rpc_server *s, int64_t grace_ns, void (*on_stopped)(void *context),
                         void *context)
{
    assert(!s->stopping && grace_ns >= 0);
    s->stopping = true;
    s->on_stopped = on_stopped;
    s->stopped_context = context;
    if (s->n_calls == 0) {
        s->stop_posted = true;
        host_post(s->host, 0, on_server_stopped, s);
    } else {
        host_post(s->host, grace_ns, on_grace_over, s);
    }
}

int rpc_health_add(struct rpc_server *s)
{
    (void)s;
    return 0;
}

void rpc_health_set(struct rpc_server *s, const char *service, enum rpc_serving status)
{
    (void)s;
    (void)service;
    (void)status;
}

int rpc_reflection_add(struct rpc_server *s, const char *const *services, size_t n)
{
    (void)s;
    (void)services;
    (void)n;
    return 0;
}

/* ---- channels ---- */

int rpc_channel_new(struct rpc_runtime *r, const char *target, const struct rpc_tls *tls,
                    const struct rpc_limits *limits, struct rpc_channel **ret, struct err *e)
{
    (void)tls;
    (void)e;
    struct rpc_channel *ch = must_alloc(sizeof *ch);
    ch->host = r->host;
    ch->runtime = r;
    ch->max_message_bytes =
        limits && limits->max_message_bytes ? limits->max_message_bytes : SIM_DEFAULT_MESSAGE_BYTES;
    snprintf(ch->target, sizeof ch->target, "%s", target);
    ch->next = r->host->channels;
    r->host->channels = ch;
    *ret = ch;
    return 0;
}

void channel_call_gone(struct rpc_channel *ch)
{
    assert(ch->n_calls > 0);
    ch->n_calls--;
    if (ch->closing && !ch->n_calls)
        ch->runtime = NULL;
}

int rpc_channel_authorize(struct rpc_channel *ch, const char *key)
{
    int n = snprintf(ch->authorization, sizeof ch->authorization, "Bearer %s", key);
    return *key && (size_t)n < sizeof ch->authorization ? 0 : -EINVAL;
}

void rpc_channel_close(struct rpc_channel *ch)
{
    assert(!ch->closing);
    ch->closing = true;
    for (struct rpc_call *c = ch->host->calls; c; c = c->next) {
        if (c->channel == ch)
            call_fail(c, RPC_CANCELLED, "the channel is closed");
    }
    if (!ch->n_calls)
        ch->runtime = NULL;
}
