/* worker.c: puts the rank together and takes it apart: loop, session, link, engine thread, health,
 * service manager, signals. See worker.h. Everything here runs on the loop thread.
 *
 * Start: what can be wrong with configuration or model is found before the loop runs. Stop: engine
 * thread, link and health server end side by side; then the transport, the mailbox and the loop.
 */
#include "worker/worker.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/utf8.h"
#include "base/util.h"
#include "model/model_dir.h"
#include "worker/health.h"
#include "worker/identity.h"
#include "worker/link.h"
#include "worker/runner.h"
#include "worker/session.h"

enum {
    MAX_MESSAGE_BYTES = 16 * 1024 * 1024,
    MAX_TICK_MS = 1000,
    DRAIN_MS = 15000, /* after SIGTERM: time for the running step */
    KILL_MS = 10000,  /* after that: time to take everything apart */
    PARTS = 3,        /* engine thread, link, health server */
    DESCRIPTION_BYTES = 256,
};

static const int64_t least_stuck_ns = 30 * NSEC_PER_SEC;
static const int64_t log_interval_ns = 10 * NSEC_PER_SEC;

struct worker {
    /* owned */
    uv_loop_t loop;
    uv_timer_t tick_timer, end_timer;
    uv_signal_t sigterm, sigint;
    struct mailbox mailbox;
    struct rpc_runtime *rpc;
    struct runner *runner;
    struct link link;
    struct health_server health;
    struct session session;
    struct model_dir *model;
    struct identity identity;
    struct buf out;
    struct wire_loaded loaded;
    char description[DESCRIPTION_BYTES];
    /* borrowed */
    const struct worker_options *options;
    const char *listen_addresses[1];
    /* state */
    bool link_open, ready_told, exit_asked, stopping, runner_stopped, signalled;
    int exit_code;
    int parts_left; /* of PARTS that still run while stopping */
    int64_t stream_since;
    uint64_t counter; /* of the engine thread, when it last changed */
    int64_t counter_since;
    int64_t stuck_ns;
    int64_t next_log, next_notify;
    char status[128];
};

static void begin_stop(struct worker *w);

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

static void on_tick(uv_timer_t *t);

/* The stop itself begins from the loop, not from inside whatever called. */
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
    if (!w->stopping)
        uv_timer_start(&w->tick_timer, on_tick, 0, 0);
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
    w->stream_since = clock_now_ns();
    session_connected(&w->session, w->stream_since);
    uv_timer_start(&w->tick_timer, on_tick, 0, 0);
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
    session_message(&w->session, m, clock_now_ns());
    if (!w->exit_asked) /* the lease or the heartbeat interval may have changed */
        uv_timer_start(&w->tick_timer, on_tick, 1, 0);
}

static void on_lost(void *context)
{
    struct worker *w = context;
    if (w->link_open)
        session_disconnected(&w->session);
    w->link_open = false;
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
    session_loaded(&w->session, &w->loaded);
}

static void part_stopped(void *context);

static void on_answer(struct mailbox *mailbox, struct mailbox_item *item)
{
    struct worker *w = mailbox->context;
    struct runner_order *o = (struct runner_order *)item;
    struct session *s = &w->session;
    switch (o->kind) {
    case RUNNER_OPEN:
        on_loaded(w, o);
        break;
    case RUNNER_JOIN:
        if (o->code)
            session_join_failed(s, o->epoch, o->code, o->err.message);
        else
            session_joined(s, o->epoch, o->known_answer);
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
    w->next_log = now + log_interval_ns;
}

static void on_tick(uv_timer_t *t)
{
    struct worker *w = t->data;
    if (w->exit_asked) {
        begin_stop(w);
        return;
    }
    int64_t now = clock_now_ns();
    struct session_progress p;
    runner_progress(w->runner, &p);
    bool stuck = look_for_progress(w, now);
    int64_t next = session_tick(&w->session, now, &p);
    health_server_set(&w->health,
                      w->session.state == SESSION_READY && !stuck && !w->session.draining);
    log_loading(w, &p, now);
    if (now >= w->next_notify) {
        int64_t interval = notify_watchdog_interval_ns();
        tell_manager(w, &p, stuck);
        w->next_notify = now + (interval ? MIN(interval, MAX_TICK_MS * NSEC_PER_MSEC)
                                         : MAX_TICK_MS * NSEC_PER_MSEC);
    }
    if (stuck && !w->session.epoch && now - w->counter_since > 2 * w->stuck_ns) {
        /* aborted long ago, and still inside the engine: only a new process helps */
        log_error("the engine does not come back from an aborted step");
        _exit(WORKER_EXIT_INTERNAL);
    }
    next = MIN(next, w->next_notify);
    int64_t wait_ms = next > now ? (next - now) / NSEC_PER_MSEC + 1 : 1;
    if (!w->exit_asked)
        uv_timer_start(&w->tick_timer, on_tick, (uint64_t)wait_ms, 0);
}

/* ---- the end ---- */

static void on_handle_closed(uv_handle_t *h)
{
    (void)h;
}

static void on_mailbox_closed(struct mailbox *m)
{
    struct worker *w = m->context;
    uv_close((uv_handle_t *)&w->tick_timer, on_handle_closed);
    uv_close((uv_handle_t *)&w->end_timer, on_handle_closed);
    uv_close((uv_handle_t *)&w->sigterm, on_handle_closed);
    uv_close((uv_handle_t *)&w->sigint, on_handle_closed);
}

static void on_rpc_stopped(void *context)
{
    struct worker *w = context;
    w->rpc = NULL;
    mailbox_close(&w->mailbox, on_mailbox_closed);
}

static void part_stopped(void *context)
{
    struct worker *w = context;
    assert(w->parts_left > 0);
    if (--w->parts_left == 0)
        rpc_runtime_stop(w->rpc, on_rpc_stopped, w);
}

static void on_kill_timer(uv_timer_t *t)
{
    struct worker *w = t->data;
    log_error("the engine or the connection did not end within %d s", KILL_MS / 1000);
    _exit(w->exit_code ? w->exit_code : WORKER_EXIT_INTERNAL);
}

static void begin_stop(struct worker *w)
{
    if (w->stopping)
        return;
    w->stopping = true;
    w->exit_asked = true;
    w->parts_left = PARTS;
    uv_timer_stop(&w->tick_timer);
    notify_send("STOPPING=1\nSTATUS=stopping");
    uv_timer_start(&w->end_timer, on_kill_timer, KILL_MS, 0);
    health_server_stop(&w->health, part_stopped, w);
    link_close(&w->link, part_stopped);
    if (w->runner_stopped)
        part_stopped(w);
    else
        runner_stop(w->runner);
}

static void on_drain_timer(uv_timer_t *t)
{
    struct worker *w = t->data;
    log_warn("the running step did not end within %d s", DRAIN_MS / 1000);
    op_exit(w, WORKER_EXIT_OK, "stopped in the middle of a step");
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct worker *w = handle->data;
    if (w->signalled)
        _exit(WORKER_EXIT_KILLED);
    w->signalled = true;
    if (w->stopping)
        return;
    notify_send("STOPPING=1\nSTATUS=draining");
    uv_timer_start(&w->end_timer, on_drain_timer, DRAIN_MS, 0);
    session_drain(&w->session, number == SIGINT ? "SIGINT" : "SIGTERM");
    if (!w->exit_asked) /* tell the coordinator now */
        w->session.next_heartbeat = 0;
    uv_timer_start(&w->tick_timer, on_tick, 0, 0);
}

/* ---- the start ---- */

static const struct rpc_tls *tls_of(const struct config_tls *c, struct rpc_tls *tls)
{
    *tls = (struct rpc_tls){.ca_file = *c->ca ? c->ca : NULL,
                            .cert_file = *c->cert ? c->cert : NULL,
                            .key_file = *c->key ? c->key : NULL};
    return tls->ca_file ? tls : NULL;
}

static void make_session(struct worker *w)
{
    static const char *const activations[] = {"fp32", "fp16", "a8"};
    const struct config *c = &w->options->config;
    w->listen_addresses[0] = w->identity.listen_address;
    utf8_repair(w->identity.hostname, strlen(w->identity.hostname));
    const struct session_config config = {
        .hello = {.protocol_min = WIRE_PROTOCOL_MIN,
                  .protocol_max = WIRE_PROTOCOL_MAX,
                  .build_version = GLMD_VERSION,
                  .cluster = c->cluster.name,
                  .instance_id = {sizeof w->identity.instance, w->identity.instance},
                  .boot_id = w->identity.boot_id,
                  .hostname = w->identity.hostname,
                  .pid = (uint32_t)getpid(),
                  .rank = w->options->rank,
                  .tp_size = (uint32_t)c->group.tensor_parallel,
                  .model_name = model_dir_arch(w->model)->name,
                  .model_digest = model_dir_digest(w->model)->hex,
                  .scheme = quant_weights_name(model_dir_scheme(w->model)->weights),
                  .device = w->options->device,
                  .activations = activations[c->worker.activations],
                  .listen_addresses = w->listen_addresses,
                  .n_listen_addresses = 1,
                  .shm_domain = w->identity.shm_domain},
        .heartbeat_ns = c->deadlines.heartbeat,
        .device_is_cpu = strncmp(w->options->device, "cpu", 3) == 0,
    };
    session_init(&w->session, &config, &session_ops, w);
}

static int start_runner(struct worker *w, struct err *e)
{
    const struct config *c = &w->options->config;
    const struct runner_config config = {
        .engine = {.model = w->model,
                   .tp_size = (uint32_t)c->group.tensor_parallel,
                   .tp_rank = w->options->rank,
                   .device = w->options->device,
                   .mode = (enum k_mode)c->worker.activations,
                   .n_threads = (uint32_t)c->worker.threads,
                   .n_slots = (uint32_t)c->worker.slots,
                   .kv_bytes = c->worker.kv_bytes,
                   .max_step_tokens = (uint32_t)c->worker.max_step_tokens,
                   .verify = c->worker.verify},
        .listen_fd = w->identity.listen_fd,
        .answers = &w->mailbox,
    };
    return runner_new(&config, &w->runner, e);
}

static void start_handles(struct worker *w)
{
    uv_timer_init(&w->loop, &w->tick_timer);
    uv_timer_init(&w->loop, &w->end_timer);
    uv_signal_init(&w->loop, &w->sigterm);
    uv_signal_init(&w->loop, &w->sigint);
    w->tick_timer.data = w->end_timer.data = w->sigterm.data = w->sigint.data = w;
    uv_signal_start(&w->sigterm, on_signal, SIGTERM);
    uv_signal_start(&w->sigint, on_signal, SIGINT);
}

/* Everything that the loop carries. A failure here ends the process at once: nothing of value has
 * been done, and half a transport is not worth taking apart. */
static int start(struct worker *w, struct err *e)
{
    const struct config *c = &w->options->config;
    struct rpc_tls tls;
    const struct link_config link_config = {.target = config_worker_target(c),
                                            .tls = tls_of(&c->worker.tls, &tls),
                                            .max_message_bytes = MAX_MESSAGE_BYTES,
                                            .reconnect_min = c->worker.reconnect_min,
                                            .reconnect_max = c->worker.reconnect_max};
    int r = uv_loop_init(&w->loop);
    if (!r)
        r = mailbox_init(&w->mailbox, &w->loop, on_answer, w);
    if (!r)
        r = rpc_runtime_new(&w->loop, &w->rpc, e);
    if (!r)
        r = health_server_start(&w->health, w->rpc, c->worker.health_listen, w->options->rank, e);
    if (!r)
        r = link_init(&w->link, &w->loop, w->rpc, &link_config, &link_callbacks, w, e);
    if (!r)
        r = start_runner(w, e);
    if (r)
        return r;
    start_handles(w);
    make_session(w);
    w->counter_since = clock_now_ns();
    w->stuck_ns = MAX(3 * c->deadlines.step, least_stuck_ns);
    uv_timer_start(&w->tick_timer, on_tick, 0, 0);
    link_start(&w->link);
    return 0;
}

static int open_model(struct worker *w)
{
    struct err e = ERR_INIT;
    const struct config *c = &w->options->config;
    if (model_dir_open(c->model.dir, &w->model, &e)) {
        log_error("model %s: %s", c->model.dir, e.message);
        return WORKER_EXIT_WEIGHTS;
    }
    if (arch_check_tp(model_dir_arch(w->model), (uint32_t)c->group.tensor_parallel, &e)) {
        log_error("%s", e.message);
        return WORKER_EXIT_CONFIG;
    }
    if (identity_init(&w->identity, c->worker.listen, &e)) {
        log_error("%s", e.message);
        return e.code == -EINVAL ? WORKER_EXIT_CONFIG : WORKER_EXIT_UNAVAILABLE;
    }
    return WORKER_EXIT_OK;
}

static int run(struct worker *w)
{
    struct err e = ERR_INIT;
    int r = start(w, &e);
    if (r) {
        log_error("%s", e.code ? e.message : err_name(r));
        _exit(r == -EINVAL ? WORKER_EXIT_CONFIG : WORKER_EXIT_UNAVAILABLE);
    }
    log_info("glmd-worker " GLMD_VERSION ": rank %u of %llu on %s, model %s (%s, digest %s), peers "
             "on %s",
             w->options->rank, (unsigned long long)w->options->config.group.tensor_parallel,
             w->options->device, w->session.config.hello.model_name, w->session.config.hello.scheme,
             w->session.config.hello.model_digest, w->identity.listen_address);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    runner_free(w->runner);
    r = uv_loop_close(&w->loop);
    assert(r == 0);
    buf_deinit(&w->out);
    return w->exit_code;
}

/* With the coordinator as parent: do not outlive it. */
static int follow_parent(void)
{
    if (prctl(PR_SET_PDEATHSIG, SIGTERM))
        log_warn("prctl(PR_SET_PDEATHSIG): %s", err_name(-errno));
    return getppid() == 1 ? WORKER_EXIT_UNAVAILABLE : WORKER_EXIT_OK;
}

int worker_run(const struct worker_options *o)
{
    struct worker w = {.options = o, .identity = {.listen_fd = -1}};
    signal(SIGPIPE, SIG_IGN);
    notify_init();
    int code = o->spawned ? follow_parent() : WORKER_EXIT_OK;
    if (!code)
        code = open_model(&w);
    if (!code)
        code = run(&w);
    identity_deinit(&w.identity);
    model_dir_close(w.model);
    notify_deinit();
    return code;
}
