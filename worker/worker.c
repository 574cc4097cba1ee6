/* worker.c: session, link, engine's answers, health and progress. See worker.h. */
#include "worker/worker.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/utf8.h"
#include "base/util.h"
#include "model/shard.h"
#include "worker/engine/fake.h"
#include "worker/exit.h"

enum {
    MAX_MESSAGE_BYTES = 16 * 1024 * 1024,
    PARTS = 3, /* engine thread, link, health server */
};

#define MAX_TICK_NS     NSEC_PER_SEC
#define LEAST_STUCK_NS  (30 * NSEC_PER_SEC)
#define LOG_INTERVAL_NS (10 * NSEC_PER_SEC)
#define DRAIN_NS        (15 * NSEC_PER_SEC) /* for the running step */

static void wake(struct worker *w, int64_t at_ns)
{
    if (at_ns >= w->next_tick_ns)
        return;
    w->next_tick_ns = at_ns;
    w->ops->wake(w->ops_context, at_ns);
}

/* ---- session -> link, engine ---- */

static void op_send(void *context, const struct wire_worker_message *m)
{
    struct worker *w = context;
    buf_clear(&w->out);
    int r = wire_pack_worker_message(m, &w->out);
    if (r) {
        log_error("packing a message: %s", err_name(r));
        link_disconnect(&w->link);
        return;
    }
    link_send(&w->link, w->out.data, w->out.size);
}

static void op_send_bytes(void *context, const void *data, size_t size)
{
    struct worker *w = context;
    link_send(&w->link, data, size);
}

static void op_disconnect(void *context)
{
    struct worker *w = context;
    link_disconnect(&w->link);
}

static void op_join(void *context, struct wire_coordinator_message *grant)
{
    struct worker *w = context;
    runner_join(w->runner, grant);
}

static void op_step(void *context, struct wire_coordinator_message *step)
{
    struct worker *w = context;
    runner_step(w->runner, step);
}

static void op_abort(void *context)
{
    struct worker *w = context;
    runner_abort(w->runner);
}

static void op_exit(void *context, int code, const char *why)
{
    struct worker *w = context;
    if (w->exit_asked)
        return;
    if (code)
        log_error("ending with code %d: %s", code, why);
    else
        log_info("ending: %s", why);
    w->exit_asked = true;
    w->exit_code = code;
    wake(w, 0);
}

static const struct session_ops session_ops = {
    .send = op_send,
    .send_bytes = op_send_bytes,
    .disconnect = op_disconnect,
    .join = op_join,
    .step = op_step,
    .abort_engine = op_abort,
    .exit = op_exit,
};

/* ---- link -> session ---- */

static void on_open(void *context)
{
    struct worker *w = context;
    w->link_open = true;
    session_connected(&w->session, clock_now_ns());
    wake(w, 0); /* the first heartbeat */
}

static void on_stream_message(void *context, const uint8_t *data, size_t size)
{
    struct worker *w = context;
    struct wire_coordinator_message *m;
    struct err e = ERR_INIT;
    if (w->stopping)
        return;
    if (wire_unpack_coordinator_message(data, size, &m, &e)) {
        log_error("message of %zu bytes from the coordinator: %s", size, e.message);
        link_disconnect(&w->link);
        return;
    }
    int64_t now = clock_now_ns();
    session_message(&w->session, m, now);
    /* The lease or the heartbeat interval may have changed. */
    wake(w, session_next(&w->session, now));
}

static void on_lost(void *context)
{
    struct worker *w = context;
    if (w->link_open)
        session_disconnected(&w->session);
    w->link_open = false;
    wake(w, 0);
}

static const struct link_callbacks link_callbacks = {
    .on_open = on_open, .on_message = on_stream_message, .on_lost = on_lost};

/* ---- engine thread -> session ---- */

static int load_exit_code(int code)
{
    switch (code) {
    case -ECANCELED:
        return WORKER_EXIT_OK;
    case -EINVAL:
        return WORKER_EXIT_CONFIG;
    case -EBADMSG:
    case -ENOENT:
        return WORKER_EXIT_WEIGHTS;
    case -ENODEV:
    case -EIO:
        return WORKER_EXIT_DEVICE;
    default:
        return WORKER_EXIT_INTERNAL;
    }
}

static void on_loaded(struct worker *w, const struct runner_order *o)
{
    if (o->code) {
        if (o->code != -ECANCELED)
            log_error("loading: %s", o->err.message);
        op_exit(w, load_exit_code(o->code), "the model was not loaded");
        return;
    }
    snprintf(w->description, sizeof w->description, "%s", o->loaded.description);
    utf8_repair(w->description, strlen(w->description));
    w->loaded = o->loaded;
    w->loaded.description = w->description;
    const struct wire_memory *m = &w->loaded.memory;
    const double gib = 1024.0 * 1024 * 1024;
    log_info("memory %.3f GiB = weights %.3f + KV %.3f (%u blocks of %d tokens) + scratch %.3f; %s",
             (double)(m->weights + m->kv + m->scratch) / gib, (double)m->weights / gib,
             (double)m->kv / gib, w->loaded.limits.n_blocks, PLAN_KV_BLOCK_TOKENS,
             (double)m->scratch / gib, w->description);
    const struct weights_report *r = &o->report;
    if (r->ns > 0)
        log_info(
            "weights: %.1f MB read in %.3f s by %u threads, %.2f GB/s; %.1f MB are this rank's",
            (double)r->read_bytes / 1e6, (double)r->ns / 1e9, r->n_threads,
            (double)r->read_bytes / (double)r->ns, (double)r->bytes / 1e6);
    if (fake_is_device(w->options->device))
        log_warn("device %s: nothing is computed, every token is made up", w->options->device);
    log_info("loaded %.3f s after the start", (double)(clock_now_ns() - w->started_ns) / 1e9);
    session_loaded(&w->session, &w->loaded);
}

static void part_stopped(void *context);

static void joined(struct worker *w, const struct runner_order *o)
{
    if (*o->collectives)
        log_info("epoch %llu: sums over ranks: %s", (unsigned long long)o->epoch, o->collectives);
    session_joined(&w->session, o->epoch, o->known_answer, o->collectives);
}

void worker_answer(struct worker *w, struct runner_order *o)
{
    struct session *s = &w->session;
    switch (o->kind) {
    case RUNNER_OPEN:
        on_loaded(w, o);
        break;
    case RUNNER_JOIN:
        if (o->code)
            session_join_failed(s, o->epoch, o->code, o->err.message);
        else
            joined(w, o);
        break;
    case RUNNER_STEP:
        if (o->code)
            session_step_failed(s, o->epoch, o->step, o->code, o->err.message);
        else
            session_step_done(s, o->epoch, o->step, o->bytes.data, o->bytes.size);
        break;
    case RUNNER_STOPPED: /* after a failed open it comes before anybody stops */
        w->runner_stopped = true;
        if (w->stopping)
            part_stopped(w);
        break;
    }
    runner_order_free(o);
}

/* ---- the regular look at everything ---- */

static void tell_manager(struct worker *w, const struct session_progress *p, bool stuck)
{
    char status[sizeof w->status];
    const struct session *s = &w->session;
    if (s->state == SESSION_LOADING)
        snprintf(status, sizeof status, "loading: %.1f of %.1f GB", (double)p->loaded_bytes / 1e9,
                 (double)p->total_bytes / 1e9);
    else if (!link_heard(&w->link))
        snprintf(status, sizeof status, "waiting for the coordinator %s", w->link.config.target);
    else if (stuck)
        snprintf(status, sizeof status, "no progress in step %llu of epoch %llu",
                 (unsigned long long)s->next_step - 1, (unsigned long long)s->epoch);
    else
        snprintf(status, sizeof status, "%s, epoch %llu", session_state_name(s->state),
                 (unsigned long long)s->epoch);
    if (strcmp(status, w->status) != 0) {
        memcpy(w->status, status, sizeof status);
        notify_send("STATUS=%s", status);
    }
    if (!w->ready_told && s->state != SESSION_LOADING && link_heard(&w->link)) {
        w->ready_told = true;
        notify_send("READY=1");
    } else if (!w->ready_told && !stuck) {
        notify_send("EXTEND_TIMEOUT_USEC=300000000"); /* the largest tensor on a slow disk */
    }
    if (!stuck && notify_watchdog_interval_ns())
        notify_send("WATCHDOG=1");
}

/* Whether the engine thread has work and nothing has moved for too long. */
static bool look_for_progress(struct worker *w, int64_t now)
{
    bool idle;
    uint64_t counter = runner_counter(w->runner, &idle);
    if (idle || counter != w->counter) {
        w->counter = counter;
        w->counter_since = now;
    }
    return now - w->counter_since > w->stuck_ns;
}

static void log_loading(struct worker *w, const struct session_progress *p, int64_t now)
{
    if (w->session.state != SESSION_LOADING || now < w->next_log)
        return;
    if (w->next_log)
        log_info("loading: %.1f of %.1f GB", (double)p->loaded_bytes / 1e9,
                 (double)p->total_bytes / 1e9);
    w->next_log = now + LOG_INTERVAL_NS;
}

static void tell_health(struct worker *w, const struct session_progress *p, bool stuck, int64_t now)
{
    health_server_set(&w->health,
                      w->session.state == SESSION_READY && !stuck && !w->session.draining);
    log_loading(w, p, now);
    if (now < w->next_notify)
        return;
    int64_t interval = notify_watchdog_interval_ns();
    tell_manager(w, p, stuck);
    w->next_notify = now + (interval ? MIN(interval, MAX_TICK_NS) : MAX_TICK_NS);
}

int64_t worker_tick(struct worker *w, int64_t now)
{
    w->next_tick_ns = INT64_MAX;
    if (w->stopping || w->exit_asked)
        return w->next_tick_ns = w->stopping ? link_tick(&w->link, now) : INT64_MAX;
    struct session_progress p;
    runner_progress(w->runner, &p);
    bool stuck = look_for_progress(w, now);
    int64_t next = link_tick(&w->link, now);
    next = MIN(next, session_tick(&w->session, now, &p));
    if (w->drain_end_ns && now >= w->drain_end_ns && !w->exit_asked) {
        log_warn("the running step did not end within %lld s",
                 (long long)(DRAIN_NS / NSEC_PER_SEC));
        op_exit(w, WORKER_EXIT_OK, "stopped in the middle of a step");
    }
    tell_health(w, &p, stuck, now);
    if (stuck && !w->session.epoch && now - w->counter_since > 2 * w->stuck_ns) {
        /* aborted long ago, and still inside the engine: only a new process helps */
        w->ops->kill(w->ops_context, WORKER_EXIT_INTERNAL,
                     "the engine does not come back from an aborted step");
    }
    next = MIN(next, w->next_notify);
    if (w->drain_end_ns)
        next = MIN(next, w->drain_end_ns);
    w->next_tick_ns = w->exit_asked ? 0 : MIN(w->next_tick_ns, next);
    return w->next_tick_ns;
}

/* ---- the end ---- */

static void part_stopped(void *context)
{
    struct worker *w = context;
    assert(w->parts_left > 0);
    if (--w->parts_left == 0)
        w->on_stopped(w->ops_context);
}

void worker_stop(struct worker *w, void (*on_stopped)(void *context))
{
    assert(!w->stopping);
    w->stopping = true;
    w->exit_asked = true;
    w->on_stopped = on_stopped;
    w->parts_left = PARTS;
    health_server_stop(&w->health, part_stopped, w);
    link_close(&w->link, clock_now_ns(), part_stopped);
    if (w->runner_stopped)
        part_stopped(w);
    else
        runner_stop(w->runner);
    w->next_tick_ns = INT64_MAX; /* this call came from a tick */
    wake(w, 0);
}

void worker_deinit(struct worker *w)
{
    runner_free(w->runner);
    buf_deinit(&w->out);
}

void worker_drain(struct worker *w, const char *why)
{
    if (w->stopping)
        return;
    w->drain_end_ns = clock_now_ns() + DRAIN_NS;
    session_drain(&w->session, why);
    if (!w->exit_asked) /* tell the coordinator now */
        w->session.next_heartbeat = 0;
    wake(w, 0);
}

/* ---- the start ---- */

static const struct rpc_tls *tls_of(const struct config_tls *c, struct rpc_tls *tls)
{
    *tls = (struct rpc_tls){.ca_file = *c->ca ? c->ca : NULL,
                            .cert_file = *c->cert ? c->cert : NULL,
                            .key_file = *c->key ? c->key : NULL};
    return tls->ca_file ? tls : NULL;
}

/* Layers of every stage, as configured or shared out evenly. */
static int share_layers(struct worker *w, struct err *e)
{
    const struct config *c = &w->options->config;
    uint32_t n_layers = model_dir_arch(w->model)->n_layers, sum = 0;
    uint32_t n_stages = (uint32_t)c->group.pipeline_parallel;
    for (uint32_t i = 0; i != n_stages; i++) {
        uint32_t begin = 0, end = config_stage_layers(c, i);
        if (!end && shard_stage_layers(n_layers, n_stages, NULL, i, &begin, &end) < 0)
            return err_set(e, -EINVAL,
                           "group.pipeline_parallel: expected at most the model's %u layers, found "
                           "%u stages",
                           n_layers, n_stages);
        w->stage_layers[i] = end - begin;
        sum += end - begin;
    }
    if (sum != n_layers)
        return err_set(e, -EINVAL, "group.stage_layers: expected the model's %u layers, found %u",
                       n_layers, sum);
    return 0;
}

static uint32_t first_layer(const struct worker *w, uint32_t stage)
{
    uint32_t layer = 0;
    for (uint32_t i = 0; i != stage; i++)
        layer += w->stage_layers[i];
    return layer;
}

static void make_session(struct worker *w)
{
    const struct config *c = &w->options->config;
    uint32_t stage = w->options->rank / (uint32_t)c->group.tensor_parallel;
    w->listen_addresses[0] = w->identity->listen_address;
    utf8_repair(w->identity->hostname, strlen(w->identity->hostname));
    const struct session_config config = {
        .hello = {.protocol_min = WIRE_PROTOCOL_MIN,
                  .protocol_max = WIRE_PROTOCOL_MAX,
                  .build_version = GLMD_VERSION,
                  .cluster = c->cluster.name,
                  .instance_id = {sizeof w->identity->instance, w->identity->instance},
                  .boot_id = w->identity->boot_id,
                  .hostname = w->identity->hostname,
                  .pid = w->identity->pid,
                  .rank = w->options->rank,
                  .tp_size = (uint32_t)c->group.tensor_parallel,
                  .model_name = model_dir_arch(w->model)->name,
                  .model_digest = model_dir_digest(w->model)->hex,
                  .scheme = quant_weights_name(model_dir_scheme(w->model)->weights),
                  .device = w->options->device,
                  .activations = config_precision(c),
                  .listen_addresses = w->listen_addresses,
                  .n_listen_addresses = 1,
                  .shm_domain = w->identity->shm_domain,
                  .group = c->group.name,
                  .pp_size = (uint32_t)c->group.pipeline_parallel,
                  .layer_begin = first_layer(w, stage),
                  .layer_end = first_layer(w, stage + 1)},
        .heartbeat_ns = c->deadlines.heartbeat,
        .device_is_cpu = strncmp(w->options->device, "cpu", 3) == 0,
    };
    session_init(&w->session, &config, &session_ops, w);
}

static int start_runner(struct worker *w, struct err *e)
{
    const struct config *c = &w->options->config;
    int parsed = cpus_parse(c->worker.cpus, &w->cpus, e);
    if (parsed < 0)
        return parsed;
    const struct runner_config config = {
        .engine = {.model = w->model,
                   .tp_size = (uint32_t)c->group.tensor_parallel,
                   .tp_rank = w->options->rank % (uint32_t)c->group.tensor_parallel,
                   .pp_size = (uint32_t)c->group.pipeline_parallel,
                   .stage = w->options->rank / (uint32_t)c->group.tensor_parallel,
                   .stage_layers = w->stage_layers,
                   .device = w->options->device,
                   .mode = (enum k_mode)c->worker.activations,
                   .n_threads = (uint32_t)c->worker.threads,
                   .pin = (enum k_pin)c->worker.pin,
                   .cpus = &w->cpus,
                   .n_slots = (uint32_t)c->worker.slots,
                   .kv_type = (enum k_kv_type)c->worker.kv_cache,
                   .kv_bytes = c->worker.kv_bytes,
                   .n_kv_blocks = (uint32_t)c->worker.kv_blocks,
                   .memory_percent = (uint32_t)c->worker.memory_utilization,
                   .max_step_tokens = (uint32_t)c->worker.max_step_tokens,
                   .no_warpgroups = !c->worker.warpgroups,
                   .library_rows = (uint32_t)c->worker.library_rows,
                   .collectives = (enum k_comm_choice)c->worker.collectives,
                   .no_graphs = !c->worker.cuda_graphs,
                   .verify = c->worker.verify},
        .listen_fd = w->identity->listen_fd,
        .post = w->ops->post,
        .context = w->ops_context,
    };
    return runner_new(&config, &w->runner, e);
}

int worker_start(struct worker *w, const struct worker_config *config, struct rpc_runtime *rpc,
                 struct err *e)
{
    *w = (struct worker){.options = config->options,
                         .model = config->model,
                         .identity = config->identity,
                         .ops = config->ops,
                         .ops_context = config->context,
                         .next_tick_ns = INT64_MAX,
                         .started_ns = clock_now_ns()};
    const struct config *c = &w->options->config;
    struct rpc_tls tls;
    const struct link_config link_config = {.target = config_worker_target(c),
                                            .tls = tls_of(&c->worker.tls, &tls),
                                            .max_message_bytes = MAX_MESSAGE_BYTES,
                                            .reconnect_min = c->worker.reconnect_min,
                                            .reconnect_max = c->worker.reconnect_max};
    int r = share_layers(w, e);
    if (!r)
        r = health_server_start(&w->health, rpc, c->worker.health_listen, w->options->rank, e);
    if (!r)
        r = link_init(&w->link, rpc, &link_config, &link_callbacks, w, e);
    if (!r)
        r = start_runner(w, e);
    if (r)
        return r;
    make_session(w);
    w->counter_since = clock_now_ns();
    /* A stage also waits for those before it. */
    w->stuck_ns =
        MAX((2 + (int64_t)c->group.pipeline_parallel) * c->deadlines.step, LEAST_STUCK_NS);
    return 0;
}
