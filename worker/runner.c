/* runner.c: see runner.h. The mutex guards the queue, the epoch that may run, and the pointer to
 * the comm (for aborting it); it is never held while the engine works. */
#include "worker/runner.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/utf8.h"
#include "base/util.h"
#include "worker/comm_watch.h"
#include "worker/engine/comm/group.h"

enum { SHM_PIECE_BYTES = 1 << 20 }; /* of a larger message */

/* Asking the kernel takes some 20 us: not with every message. */
#define USAGE_INTERVAL_NS (200 * NSEC_PER_MSEC)

struct runner {
    /* owned */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct runner_order *head, *tail; /* guarded */
    struct comm *comm;                /* guarded: pointer; driven by the engine thread */
    struct engine *engine;            /* engine thread */
    struct runner_order *open_order, *stopped_order;
    bool graphs_off; /* engine thread: it was said that nothing is recorded any more */
    /* borrowed */
    struct runner_config config;
    /* state */
    uint64_t live_epoch; /* guarded: orders of other epochs do not run; 0 = none */
    bool stop;           /* guarded */
    _Atomic bool cancel_load;
    _Atomic int64_t busy_since; /* 0 = idle */
    _Atomic uint64_t counter;
    _Atomic uint64_t loaded_bytes, total_bytes;
    _Atomic uint64_t steps, prefill_tokens, decode_tokens, compute_ns, shared_rows, wide_rows;
    struct comm_watch_times comm_times;   /* through the host */
    struct comm_watch_times device_times; /* by the device; as of the last step */
    struct process_usage usage;           /* loop thread, as of usage_ns */
    int64_t usage_ns;
};

/* ---- engine thread ---- */

static int on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct runner *r = context;
    atomic_store(&r->loaded_bytes, done_bytes);
    atomic_store(&r->total_bytes, total_bytes);
    atomic_fetch_add(&r->counter, 1);
    return atomic_load(&r->cancel_load);
}

static void open_engine(struct runner *r, struct runner_order *o)
{
    struct engine_config config = r->config.engine;
    config.on_progress = on_progress;
    config.progress_context = r;
    o->code = engine_open(&config, &r->engine, &o->err);
    if (o->code)
        return;
    struct engine_memory memory;
    engine_memory(r->engine, &memory);
    engine_limits(r->engine, &o->loaded.limits);
    o->loaded.memory = (struct wire_memory){memory.weights, memory.kv, memory.scratch};
    o->loaded.block_tokens = PLAN_KV_BLOCK_TOKENS;
    o->loaded.description = engine_describe(r->engine);
    engine_weights_report(r->engine, &o->report);
}

static void close_comm(struct runner *r)
{
    if (r->engine)
        engine_drop_comm(r->engine);
    pthread_mutex_lock(&r->mutex);
    struct comm *comm = r->comm;
    r->comm = NULL;
    pthread_mutex_unlock(&r->mutex);
    comm_close(comm);
}

static enum comm_transport transport_of(enum wire_comm_kind kind)
{
    return kind == WIRE_COMM_SHM ? COMM_SHM : kind == WIRE_COMM_TCP ? COMM_TCP : COMM_SELF;
}

/* The grant was checked by the session. */
static int new_comm(struct runner *r, const struct wire_grant *g, struct comm **ret, struct err *e)
{
    const struct engine_config *c = &r->config.engine;
    const struct comm_group_config config = {
        .tp_size = (int)c->tp_size,
        .pp_size = (int)c->pp_size,
        .rank = (int)g->rank,
        .within_stage = transport_of(g->comm),
        .between_stages = transport_of(g->link_comm),
        .name = g->comm_name,
        .token = g->token.data,
        .listen_fd = r->config.listen_fd,
        .peers = g->peers,
        .piece_bytes = SHM_PIECE_BYTES,
        .link_bytes = engine_link_bytes(r->engine),
        .timeout_ns = (int64_t)g->comm_timeout_ms * NSEC_PER_MSEC,
    };
    return comm_group_new(&config, ret, e);
}

/* Makes the comm reachable for aborts, unless its epoch is over by now. */
static int adopt_comm(struct runner *r, struct comm *comm, uint64_t epoch, struct err *e)
{
    pthread_mutex_lock(&r->mutex);
    bool live = r->live_epoch == epoch;
    if (live)
        r->comm = comm;
    pthread_mutex_unlock(&r->mutex);
    if (live)
        return 0;
    comm_close(comm);
    return err_set(e, -ECANCELED, "epoch %llu ended while the group was joined",
                   (unsigned long long)epoch);
}

static void join(struct runner *r, struct runner_order *o)
{
    struct comm *comm = NULL;
    close_comm(r);
    o->code = new_comm(r, o->message->grant, &comm, &o->err);
    if (!o->code)
        o->code = comm_watch_new(comm, &r->counter, &r->comm_times, &comm);
    if (!o->code)
        o->code = adopt_comm(r, comm, o->epoch, &o->err);
    if (!o->code)
        o->code = engine_set_comm(r->engine, comm, &o->err);
    if (!o->code)
        o->code = engine_known_answer(r->engine, &o->known_answer, &o->err);
    snprintf(o->collectives, sizeof o->collectives, "%s", engine_collectives(r->engine));
    utf8_repair(o->collectives, strlen(o->collectives));
}

static void publish_stats(struct runner *r)
{
    struct engine_stats s;
    engine_stats(r->engine, &s);
    atomic_store(&r->steps, s.steps);
    atomic_store(&r->prefill_tokens, s.prefill_tokens);
    atomic_store(&r->decode_tokens, s.decode_tokens);
    atomic_store(&r->compute_ns, s.compute_ns);
    atomic_store(&r->shared_rows, s.shared_rows);
    atomic_store(&r->wide_rows, s.wide_rows);
    struct k_comm_times t;
    engine_collective_times(r->engine, &t);
    atomic_store(&r->device_times.n[COMM_WATCH_REDUCE], t.n_sums);
    atomic_store(&r->device_times.ns[COMM_WATCH_REDUCE], t.sum_ns);
    atomic_store(&r->device_times.n[COMM_WATCH_GATHER], t.n_gathers);
    atomic_store(&r->device_times.ns[COMM_WATCH_GATHER], t.gather_ns);
}

/* Until a time of clock_now_ns, or until the epoch is over. */
static void wait_until(struct runner *r, uint64_t epoch, int64_t until_ns)
{
    const struct timespec t = {until_ns / NSEC_PER_SEC, until_ns % NSEC_PER_SEC};
    pthread_mutex_lock(&r->mutex);
    while (!r->stop && r->live_epoch == epoch && clock_now_ns() < until_ns)
        pthread_cond_timedwait(&r->wake, &r->mutex, &t);
    pthread_mutex_unlock(&r->mutex);
}

/* The first rank of the last stage: the others have chosen the same, which their state hashes show,
 * so that the coordinator need not read it all again from each of them. */
static bool tells_results(const struct runner *r)
{
    const struct engine_config *c = &r->config.engine;
    return c->tp_rank == 0 && c->stage + 1 >= c->pp_size;
}

/* Says once that the device records no more steps: it is slower from here on, not wrong. */
static void watch_graphs(struct runner *r)
{
    struct k_graph_stats s;
    if (r->config.engine.no_graphs || r->graphs_off)
        return;
    engine_graphs(r->engine, &s);
    r->graphs_off = s.off != NULL;
    if (s.off)
        log_warn("decode steps are launched one by one from here on: %s", s.off);
}

static void step(struct runner *r, struct runner_order *o)
{
    const struct step_result *result;
    int64_t begin_ns = clock_now_ns();
    o->code = engine_step(r->engine, o->message->step, &result, &o->err);
    publish_stats(r);
    watch_graphs(r);
    if (o->code)
        return;
    if (engine_is_fake(r->engine))
        wait_until(r, o->epoch, begin_ns + result->compute_ns);
    struct step_result told = *result;
    if (!tells_results(r))
        told.n_items = told.n_groups = 0;
    const struct wire_worker_message m = {.step_done = &told};
    o->code = wire_pack_worker_message(&m, &o->bytes);
    if (o->code)
        err_set(&o->err, o->code, "result of step %llu: %s", (unsigned long long)o->step,
                err_name(o->code));
}

/* The next order, NULL when the thread should end. */
static struct runner_order *next_order(struct runner *r, bool *ret_live)
{
    pthread_mutex_lock(&r->mutex);
    while (!r->head && !r->stop)
        pthread_cond_wait(&r->wake, &r->mutex);
    struct runner_order *o = r->stop ? NULL : r->head;
    if (o) {
        r->head = o->next;
        *ret_live = o->epoch == r->live_epoch;
        atomic_store(&r->busy_since, clock_now_ns());
    }
    pthread_mutex_unlock(&r->mutex);
    return o;
}

static void answer(struct runner *r, struct runner_order *o)
{
    atomic_fetch_add(&r->counter, 1);
    atomic_store(&r->busy_since, 0);
    r->config.post(r->config.context, o);
}

static void *run(void *context)
{
    struct runner *r = context;
    struct runner_order *o = r->open_order;
    pthread_setname_np(pthread_self(), ENGINE_THREAD_NAME);
    r->open_order = NULL;
    atomic_store(&r->busy_since, clock_now_ns());
    open_engine(r, o);
    bool opened = !o->code, live;
    answer(r, o);
    while (opened && (o = next_order(r, &live))) {
        if (!live)
            o->code =
                err_set(&o->err, -ECANCELED, "epoch %llu is over", (unsigned long long)o->epoch);
        else if (o->kind == RUNNER_JOIN)
            join(r, o);
        else
            step(r, o);
        answer(r, o);
    }
    close_comm(r);
    engine_close(r->engine);
    r->engine = NULL;
    o = r->stopped_order;
    r->stopped_order = NULL;
    r->config.post(r->config.context, o);
    return NULL;
}

/* ---- loop thread ---- */

int runner_new(const struct runner_config *config, struct runner **ret, struct err *e)
{
    struct runner *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, -ENOMEM, "out of memory");
    r->config = *config;
    r->open_order = runner_order_new(RUNNER_OPEN);
    r->stopped_order = runner_order_new(RUNNER_STOPPED);
    pthread_mutex_init(&r->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    int error = r->open_order && r->stopped_order ? 0 : ENOMEM;
    if (!error) {
        sigset_t all, before; /* signals are the loop thread's */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&r->thread, NULL, run, r);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error) {
        runner_order_free(r->open_order);
        runner_order_free(r->stopped_order);
        pthread_cond_destroy(&r->wake);
        pthread_mutex_destroy(&r->mutex);
        free(r);
        return err_set(e, -error, "engine thread: %s", err_name(-error));
    }
    *ret = r;
    return 0;
}

static void enqueue(struct runner *r, enum runner_kind kind, uint64_t epoch, uint64_t step_number,
                    struct wire_coordinator_message *m)
{
    struct runner_order *o = runner_order_new(kind);
    if (!o)
        abort(); /* a few hundred bytes: nothing can be answered without them */
    o->epoch = epoch;
    o->step = step_number;
    o->message = m;
    pthread_mutex_lock(&r->mutex);
    if (kind == RUNNER_JOIN)
        r->live_epoch = epoch;
    if (r->head)
        r->tail->next = o;
    else
        r->head = o;
    r->tail = o;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->mutex);
}

void runner_join(struct runner *r, struct wire_coordinator_message *grant)
{
    enqueue(r, RUNNER_JOIN, grant->grant->epoch, 0, grant);
}

void runner_step(struct runner *r, struct wire_coordinator_message *step_message)
{
    const struct plan *p = step_message->step;
    enqueue(r, RUNNER_STEP, p->epoch, p->step, step_message);
}

void runner_abort(struct runner *r)
{
    pthread_mutex_lock(&r->mutex);
    struct runner_order *dropped = r->head;
    r->head = r->tail = NULL;
    r->live_epoch = 0;
    if (r->comm)
        r->comm->ops->abort(r->comm);
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->mutex);
    while (dropped) {
        struct runner_order *next = dropped->next;
        runner_order_free(dropped);
        dropped = next;
    }
}

void runner_stop(struct runner *r)
{
    atomic_store(&r->cancel_load, true);
    runner_abort(r);
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->mutex);
}

void runner_free(struct runner *r)
{
    if (!r)
        return;
    runner_stop(r);
    pthread_join(r->thread, NULL);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->mutex);
    free(r);
}

void runner_progress(struct runner *r, struct session_progress *ret)
{
    int64_t since = atomic_load(&r->busy_since);
    int64_t now = clock_now_ns();
    const struct comm_watch_times *t = &r->comm_times, *d = &r->device_times;
    if (now - r->usage_ns >= USAGE_INTERVAL_NS || r->usage_ns == 0) {
        process_usage(&r->usage);
        r->usage_ns = now;
    }
    *ret = (struct session_progress){
        .busy_ns = since && now > since ? (uint64_t)(now - since) : 0,
        .loaded_bytes = atomic_load(&r->loaded_bytes),
        .total_bytes = atomic_load(&r->total_bytes),
        .steps = atomic_load(&r->steps),
        .prefill_tokens = atomic_load(&r->prefill_tokens),
        .decode_tokens = atomic_load(&r->decode_tokens),
        .compute_ns = atomic_load(&r->compute_ns),
        .all_reduces =
            atomic_load(&t->n[COMM_WATCH_REDUCE]) + atomic_load(&d->n[COMM_WATCH_REDUCE]),
        .all_reduce_ns =
            atomic_load(&t->ns[COMM_WATCH_REDUCE]) + atomic_load(&d->ns[COMM_WATCH_REDUCE]),
        .all_gathers =
            atomic_load(&t->n[COMM_WATCH_GATHER]) + atomic_load(&d->n[COMM_WATCH_GATHER]),
        .all_gather_ns =
            atomic_load(&t->ns[COMM_WATCH_GATHER]) + atomic_load(&d->ns[COMM_WATCH_GATHER]),
        .link_messages = atomic_load(&t->n[COMM_WATCH_LINK]),
        .link_ns = atomic_load(&t->ns[COMM_WATCH_LINK]),
        .cpu_ns = r->usage.cpu_ns,
        .resident_bytes = r->usage.resident_bytes,
        .shared_rows = atomic_load(&r->shared_rows),
        .wide_rows = atomic_load(&r->wide_rows),
    };
}

uint64_t runner_counter(struct runner *r, bool *ret_idle)
{
    *ret_idle = !atomic_load(&r->busy_since);
    return atomic_load(&r->counter);
}
