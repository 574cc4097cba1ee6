/* clients.c: the clients' calls: when they come, how they read, when they give up. See clients.h.
 */
#include "clients.h"

#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/status_details.h"

struct sim_client {
    struct process process;
    struct rpc_sim_host *host;
    struct rpc_runtime *runtime;
    struct rpc_channel *channel;
    struct sim_request **requests; /* all of the run, by number */
    uint32_t n_made, n_open;
};

static const char *path_of(const struct sim_request *q)
{
    return q->kind == REQUEST_GENERATE ? "/glmd.v1.Inference/Generate"
           : q->kind == REQUEST_FILL   ? "/glmd.v1.Inference/Fill"
                                       : "/glmd.v1.Inference/Score";
}

/* ---- a call ---- */

static void cancel(struct sim_request *q)
{
    if (!q->call)
        return;
    trace(&q->sim->world, "request %u: cancels", q->number);
    q->cancelled = true;
    rpc_cancel(q->call);
}

static void on_cancel_time(void *arg)
{
    cancel(arg);
}

static void on_pause_over(void *arg)
{
    struct sim_request *q = arg;
    if (q->call)
        rpc_resume(q->call);
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct sim_request *q = rpc_user(c);
    struct sim *s = q->sim;
    q->n_messages++;
    sim_request_message(q, data, size);
    if (q->n_messages == q->cancel_message) {
        cancel(q);
    } else if (q->n_messages == q->pause_message) {
        q->paused = true;
        rpc_pause(c);
        world_post(&s->world, &s->client->process, q->pause_ns, on_pause_over, q);
    }
}

static int64_t retry_hint(const struct rpc_call *c)
{
    size_t size;
    const uint8_t *data = rpc_details(c, &size);
    struct status_details d = {0};
    struct err e = ERR_INIT;
    if (data && status_details_unpack(data, size, &d, &e) < 0)
        world_fail(&((struct sim_request *)rpc_user(c))->sim->world, "status details: %s",
                   e.message);
    return d.retry_after_ns;
}

static void open_call(struct sim_request *q);

static void on_retry(void *arg)
{
    open_call(arg);
}

/* Waits for as long as it was told. Nothing of an answer has come. */
static void try_again(struct sim_request *q, int64_t retry_ns)
{
    struct sim *s = q->sim;
    trace(&s->world, "request %u: comes again in %lld us", q->number,
          (long long)(retry_ns / NSEC_PER_USEC));
    q->first_sent_ns = q->sent_ns;
    q->n_tries++;
    q->n_messages = 0;
    world_post(&s->world, &s->client->process, retry_ns, on_retry, q);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct sim_request *q = rpc_user(c);
    struct sim *s = q->sim;
    int64_t retry_ns = retry_hint(c);
    q->call = NULL;
    q->done_ns = s->world.now_ns;
    assert(s->client->n_open > 0);
    s->client->n_open--;
    if (sim_keys_wants_retry(q, status, message) &&
        sim_keys_may_refuse(q, status, message, retry_ns)) {
        try_again(q, retry_ns);
        return;
    }
    q->done = true;
    trace(&s->world, "request %u: %s %s, %u messages, %u+%u tokens", q->number,
          rpc_status_name(status), message, q->n_messages, q->usage.prompt_tokens,
          q->usage.completion_tokens);
    sim_request_verify(q, status, message, retry_ns);
    sim_request_free_answer(q);
    request_free(q->fresh);
    request_free(q->echo);
    q->fresh = q->echo = NULL;
    buf_deinit(&q->packed);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};

static void open_call(struct sim_request *q)
{
    struct sim *s = q->sim;
    struct sim_client *c = s->client;
    q->sent_ns = s->world.now_ns;
    c->n_open++;
    int r = rpc_open(c->channel, path_of(q), q->deadline_ns, rng_chance(&s->world.work, 80),
                     &callbacks, q, &q->call);
    if (r < 0)
        world_fail(&s->world, "rpc_open: %s", err_name(r));
    if (q->key)
        rpc_sim_set_metadata(q->call, "authorization", q->key);
    rpc_send(q->call, q->packed.data, q->packed.size);
    rpc_half_close(q->call);
    if (q->cancel_ns)
        world_post(&s->world, &c->process, q->cancel_ns, on_cancel_time, q);
}

static void on_arrival(void *arg)
{
    struct sim_request *q = arg;
    struct sim *s = q->sim;
    sim_request_make(q);
    trace(&s->world, "request %u: %s, %zu bytes%s%s%s%s%s", q->number, path_of(q), q->packed.size,
          q->n_stops ? ", stop texts" : "", q->echo ? ", scores its prompt" : "",
          q->fresh && q->fresh->params.n_best ? ", best of some" : "", q->key ? ", has a key" : "",
          !q->admitted    ? ", not admissible"
          : !q->fits_some ? ", too large"
                          : "");
    open_call(q);
}

/* ---- all of them ---- */

static void plan_arrivals(struct sim *s)
{
    struct rng *r = &s->world.work;
    struct sim_client *c = s->client;
    int64_t burst_ns = 0;
    c->requests = calloc(s->plan.n_requests, sizeof(struct sim_request *));
    assert(c->requests);
    for (uint32_t i = 0; i != s->plan.n_requests; i++) {
        struct sim_request *q = calloc(1, sizeof *q);
        assert(q);
        q->sim = s;
        q->number = i;
        c->requests[c->n_made++] = q;
        /* One in four comes right behind the one before. */
        if (!i || rng_chance(r, 75))
            burst_ns = rng_between(r, 0, s->plan.work_ns);
        else
            burst_ns += rng_between(r, 0, 2 * NSEC_PER_MSEC);
        world_post(&s->world, &c->process, burst_ns, on_arrival, q);
    }
}

void sim_clients_start(struct sim *s)
{
    struct sim_client *c = calloc(1, sizeof *c);
    assert(c);
    s->client = c;
    snprintf(c->process.name, sizeof c->process.name, "clients");
    c->host = rpc_sim_host_new(s->net, "clients", &c->process);
    if (s->plan.chatty || rng_chance(&s->world.work, 40)) /* small windows: back-pressure sooner */
        rpc_sim_set_window(c->host, (size_t)rng_between(&s->world.work, 64, 2048));
    struct err e = ERR_INIT;
    int r = rpc_runtime_new(rpc_sim_host_loop(c->host), &c->runtime, &e);
    if (r == 0)
        r = rpc_channel_new(c->runtime, s->config.coordinator.listen, NULL, NULL, &c->channel, &e);
    if (r < 0)
        world_fail(&s->world, "clients: %s", e.message);
    plan_arrivals(s);
}

bool sim_clients_done(const struct sim *s)
{
    for (uint32_t i = 0; i != s->client->n_made; i++) {
        if (!s->client->requests[i]->done)
            return false;
    }
    return true;
}

struct sim_request *const *sim_clients_requests(const struct sim *s, uint32_t *ret_n)
{
    *ret_n = s->client->n_made;
    return s->client->requests;
}

uint32_t sim_clients_open(const struct sim *s)
{
    return s->client->n_open;
}

struct process *sim_clients_process(const struct sim *s)
{
    return &s->client->process;
}

struct rpc_channel *sim_clients_channel(const struct sim *s)
{
    return s->client->channel;
}

void sim_clients_note_abort(struct sim *s, uint32_t number)
{
    assert(number < s->client->n_made);
    s->client->requests[number]->aborted = true;
}

bool sim_clients_origin(const struct sim *s, uint32_t number, struct sim_origin *ret)
{
    if (number >= s->client->n_made)
        return false;
    const struct sim_request *q = s->client->requests[number];
    const char *who = q->key && *q->key ? q->key : q->user;
    *ret = (struct sim_origin){.tenant = s->keys ? sim_keys_tenant(q)
                                         : *who  ? admit_tenant(who)
                                                 : 0,
                               .priority = q->priority,
                               .deadline_ns = q->deadline_ns};
    return true;
}

int64_t sim_clients_paused_ns(struct sim *s, uint32_t number, uint64_t id, bool is_paused)
{
    assert(number < s->client->n_made);
    struct sim_request *q = s->client->requests[number];
    int64_t now_ns = s->world.now_ns;
    if (!is_paused)
        q->held_ns = 0;
    else if (q->held_ns == 0 || q->held_id != id)
        q->held_ns = now_ns;
    q->held_id = id;
    return is_paused ? now_ns - q->held_ns : 0;
}

void sim_clients_break(struct sim *s)
{
    rpc_sim_break(s->client->host);
}

void sim_clients_stop(struct sim *s)
{
    s->client->process.dead = true;
    rpc_sim_kill(s->client->host, 0);
}

void sim_clients_free(struct sim *s)
{
    struct sim_client *c = s->client;
    for (uint32_t i = 0; i != c->n_made; i++)
        free(c->requests[i]);
    free(c->requests);
    free(c);
    s->client = NULL;
}
