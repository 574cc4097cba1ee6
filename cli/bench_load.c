/* bench_load.c: see bench_load.h. */
#include "cli/bench_load.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/wire_inference.h"

struct load;

struct stream {
    struct load *load;
    struct load_outcome *outcome;
    struct rpc_call *call; /* NULL before and after */
    uint32_t idx;
    int64_t message_ns; /* of the last message with tokens */
};

struct load {
    const struct load_config *config;
    struct load_result *result;
    uv_loop_t loop;
    uv_timer_t start_timer, end_timer, tick_timer;
    uv_signal_t interrupt;
    struct rpc_runtime *runtime;
    struct rpc_channel *channel;
    struct stream *streams; /* owned, [n_prompts] */
    double *arrivals;       /* owned, seconds from the begin */
    uint32_t next;          /* to be begun */
    bool stopping, closing;
    int failure;
    struct err *err;
};

/* ---- chance ---- */

double load_uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* SplitMix64 */
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

double load_next_arrival(double before, double rate, uint64_t *state)
{
    return rate > 0 ? before - log(1.0 - load_uniform(state)) / rate : before;
}

/* ---- one stream ---- */

static void pump(struct load *l);

static void note_error(struct load *l, enum rpc_status status, const char *message)
{
    struct load_result *r = l->result;
    char text[sizeof r->errors[0].message];
    snprintf(text, sizeof text, "%s: %s", rpc_status_name(status), message ? message : "");
    uint32_t i = 0;
    while (i != r->n_errors && strcmp(r->errors[i].message, text) != 0)
        i++;
    if (i == LOAD_MAX_ERRORS)
        i--;
    if (i == r->n_errors) {
        memcpy(r->errors[i].message, text, sizeof text);
        r->n_errors++;
    }
    r->errors[i].n++;
}

static void fail_all(struct load *l, int code, const char *what)
{
    if (!l->failure)
        l->failure = err_set(l->err, code, "%s: %s", what, err_name(code));
    l->stopping = true;
    uv_stop(&l->loop);
}

/* New tokens of a stream: times and counts. */
static void take_tokens(struct stream *s, uint32_t n)
{
    struct load_result *r = s->load->result;
    int64_t now = clock_now_ns();
    int error = 0;
    if (!s->outcome->first_ns)
        s->outcome->first_ns = now;
    else
        error = bench_samples_add(&r->gaps, (double)(now - s->message_ns));
    for (uint32_t i = 0; i != n && !error; i++)
        error = bench_samples_add(&r->token_times, (double)(now - r->begin_ns));
    s->message_ns = s->outcome->last_ns = now;
    s->outcome->n_output += n;
    r->n_messages++;
    r->n_tokens += n;
    if (error)
        fail_all(s->load, error, "samples");
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct stream *s = rpc_user(c);
    struct wire_generate_response *m;
    struct err e = ERR_INIT;
    int r = wire_unpack_generate_response(data, size, &m, &e);
    if (r < 0) {
        note_error(s->load, RPC_INTERNAL, e.message);
        rpc_cancel(c);
        return;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i != m->n_choices; i++)
        n += m->choices[i].n_tokens;
    if (n)
        take_tokens(s, n);
    if (m->usage)
        s->outcome->n_prompt = m->usage->prompt_tokens;
    wire_free_generate_response(m);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct stream *s = rpc_user(c);
    struct load *l = s->load;
    s->call = NULL;
    s->outcome->done = true;
    s->outcome->end_ns = clock_now_ns();
    s->outcome->ok = status == RPC_OK || (l->stopping && l->config->duration_ns);
    if (!s->outcome->ok)
        note_error(l, status, message);
    l->result->n_open--;
    pump(l);
}

static int send_request(struct stream *s)
{
    const struct load_config *config = s->load->config;
    const struct load_prompt *p = &config->prompts[s->idx];
    const struct wire_token_ids tokens = {p->tokens, p->n_tokens};
    const struct wire_sampling_parameters sampling = {.top_k = config->greedy ? 1 : 0,
                                                      .ignore_end = config->ignore_end};
    const struct wire_generate_request request = {.text = p->text,
                                                  .tokens = p->text ? NULL : &tokens,
                                                  .sampling = &sampling,
                                                  .max_tokens = p->max_tokens,
                                                  .best_of = p->best_of,
                                                  .return_token_ids = true};
    struct buf packed = {0};
    int r = wire_pack_generate_request(&request, &packed);
    if (r == 0)
        r = rpc_send(s->call, packed.data ? packed.data : "", packed.size);
    buf_deinit(&packed);
    if (r == 0)
        rpc_half_close(s->call);
    return r;
}

static void begin(struct load *l, uint32_t idx)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    struct stream *s = &l->streams[idx];
    double timeout = l->config->target->timeout_seconds;
    *s = (struct stream){.load = l, .outcome = &l->result->outcomes[idx], .idx = idx};
    s->outcome->begun = true;
    s->outcome->begin_ns = clock_now_ns();
    int r = rpc_open(l->channel, "/glmd.v1.Inference/Generate",
                     (int64_t)(timeout * (double)NSEC_PER_SEC), true, &callbacks, s, &s->call);
    if (r == 0) {
        l->result->n_open++;
        l->result->max_open = MAX(l->result->max_open, l->result->n_open);
        r = send_request(s);
    }
    if (r < 0)
        fail_all(l, r, "cannot begin a request");
}

/* ---- all of them ---- */

static void on_start(uv_timer_t *t)
{
    pump(t->data);
}

/* Begins what is due, and ends the loop when nothing is left. */
static void pump(struct load *l)
{
    const struct load_config *c = l->config;
    double now = (double)(clock_now_ns() - l->result->begin_ns) / (double)NSEC_PER_SEC;
    while (!l->stopping && l->next != c->n_prompts && l->arrivals[l->next] <= now &&
           (!c->max_concurrency || l->result->n_open < c->max_concurrency))
        begin(l, l->next++);
    if (l->closing)
        return;
    bool more = !l->stopping && l->next != c->n_prompts;
    if (more && l->arrivals[l->next] > now)
        uv_timer_start(&l->start_timer, on_start,
                       (uint64_t)((l->arrivals[l->next] - now) * 1000) + 1, 0);
    if (!more && !l->result->n_open)
        uv_stop(&l->loop);
}

/* No more requests; what is open is cancelled. */
static void stop(struct load *l)
{
    l->stopping = true;
    for (uint32_t i = 0; i != l->next; i++)
        if (l->streams[i].call)
            rpc_cancel(l->streams[i].call);
    pump(l);
}

static void on_end(uv_timer_t *t)
{
    stop(t->data);
}

static void on_interrupt(uv_signal_t *signal, int number)
{
    struct load *l = signal->data;
    (void)number;
    l->result->interrupted = true;
    stop(l);
    uv_signal_stop(signal); /* a second Ctrl-C ends the process */
}

static void on_tick(uv_timer_t *t)
{
    struct load *l = t->data;
    int r = l->config->on_tick(l->config->context, l->result);
    if (r < 0)
        fail_all(l, r, "measuring");
}

static int open_channel(struct load *l, struct err *e)
{
    int r = rpc_runtime_new(&l->loop, &l->runtime, e);
    return r < 0 ? r : client_channel(l->config->target, l->runtime, &l->channel, e);
}

static int prepare(struct load *l, struct err *e)
{
    const struct load_config *c = l->config;
    uint64_t chance = c->seed;
    l->result->outcomes = alloc_array(c->n_prompts, sizeof *l->result->outcomes);
    l->streams = alloc_array(c->n_prompts, sizeof *l->streams);
    l->arrivals = alloc_array(c->n_prompts, sizeof *l->arrivals);
    if (!l->result->outcomes || !l->streams || !l->arrivals)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 1; i < c->n_prompts; i++)
        l->arrivals[i] = load_next_arrival(l->arrivals[i - 1], c->rate, &chance);
    return open_channel(l, e);
}

static void start_timers(struct load *l)
{
    const struct load_config *c = l->config;
    uv_signal_start(&l->interrupt, on_interrupt, SIGINT);
    if (c->duration_ns)
        uv_timer_start(&l->end_timer, on_end, (uint64_t)(c->duration_ns / NSEC_PER_MSEC), 0);
    if (c->on_tick && c->tick_ns) {
        uint64_t ms = (uint64_t)(c->tick_ns / NSEC_PER_MSEC);
        uv_timer_start(&l->tick_timer, on_tick, ms, ms);
    }
}

static void close_all(struct load *l)
{
    l->stopping = l->closing = true;
    if (l->channel)
        rpc_channel_close(l->channel);
    if (l->runtime)
        rpc_runtime_stop(l->runtime, NULL, NULL);
    uv_close((uv_handle_t *)&l->interrupt, NULL);
    uv_close((uv_handle_t *)&l->start_timer, NULL);
    uv_close((uv_handle_t *)&l->end_timer, NULL);
    uv_close((uv_handle_t *)&l->tick_timer, NULL);
    uv_run(&l->loop, UV_RUN_DEFAULT);
    uv_loop_close(&l->loop);
    free(l->streams);
    free(l->arrivals);
}

int load_run(const struct load_config *config, struct load_result *ret, struct err *e)
{
    struct load l = {.config = config, .result = ret, .err = e};
    int r = uv_loop_init(&l.loop);
    if (r < 0)
        return err_set(e, r, "cannot create an event loop: %s", uv_strerror(r));
    uv_signal_init(&l.loop, &l.interrupt);
    uv_timer_init(&l.loop, &l.start_timer);
    uv_timer_init(&l.loop, &l.end_timer);
    uv_timer_init(&l.loop, &l.tick_timer);
    l.interrupt.data = l.start_timer.data = l.end_timer.data = l.tick_timer.data = &l;
    r = prepare(&l, e);
    if (r == 0) {
        start_timers(&l);
        ret->begin_ns = clock_now_ns();
        pump(&l);
        if (ret->n_open || l.next != config->n_prompts)
            uv_run(&l.loop, UV_RUN_DEFAULT);
        ret->end_ns = clock_now_ns();
        r = l.failure;
    }
    close_all(&l);
    return r;
}

void load_result_deinit(struct load_result *r)
{
    free(r->outcomes);
    bench_samples_deinit(&r->gaps);
    bench_samples_deinit(&r->token_times);
    *r = (struct load_result){0};
}
