/* coordinator.c: start, the pump, drain and stop of the daemon. See coordinator.h. */
#include "coordinator/coordinator.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/util.h"

enum {
    STEPS_IN_FLIGHT = 1, /* the scheduler can have two; sequences wait for their own token anyway */
    TICK_MS = 100,
};
#define STOP_GRACE_NS  (2 * NSEC_PER_SEC)
#define SPAWN_GRACE_NS (10 * NSEC_PER_SEC)

static void begin_stop(struct coordinator *c, int exit_code);

/* ---- the pump ---- */

static void pump_touched(struct coordinator *c)
{
    for (struct request *r; (r = sched_next_touched(c->sched));)
        front_touched(c, r);
}

static void pump_steps(struct coordinator *c)
{
    const struct plan *p;
    while (fleet_is_ready(c->fleet) && sched_attached(c->sched) &&
           sched_n_in_flight(c->sched) < STEPS_IN_FLIGHT) {
        int64_t now = clock_now_ns();
        if (!sched_plan(c->sched, now, &p))
            return;
        uint32_t n_tokens = 0;
        for (uint32_t i = 0; i != p->n_items; i++)
            n_tokens += p->items[i].n_tokens;
        fleet_send_step(c->fleet, p, n_tokens, now);
    }
}

void coordinator_pump(struct coordinator *c)
{
    c->pump_again = true;
    if (c->pumping)
        return;
    c->pumping = true;
    while (c->pump_again) {
        c->pump_again = false;
        pump_touched(c);
        pump_steps(c);
        pump_touched(c); /* planning may have ended some */
    }
    c->pumping = false;
    if (c->draining && !c->stopping && sched_n_requests(c->sched) == 0)
        begin_stop(c, COORDINATOR_EXIT_OK);
}

/* ---- the fleet's events ---- */

static void set_health(struct coordinator *c)
{
    bool serving = fleet_is_ready(c->fleet) && !c->draining;
    enum rpc_serving state = serving ? RPC_SERVING : RPC_NOT_SERVING;
    rpc_health_set(c->server, "", state);
    rpc_health_set(c->server, "glmd.v1.Inference", state);
    notify_send("STATUS=%s", c->draining ? "draining" : serving ? "serving" : "waiting for ranks");
}

static void say_ready(struct coordinator *c)
{
    if (c->said_ready)
        return;
    c->said_ready = true;
    printf("glmd-coordinator ready: grpc=%s\n", c->address);
    fflush(stdout);
}

static bool on_group_ready(void *context, const struct plan_limits *limits, uint64_t epoch)
{
    struct coordinator *c = context;
    struct err e = ERR_INIT;
    if (sched_attach(c->sched, limits, epoch, &e) < 0) {
        log_error("the group cannot be used: %s", e.message);
        return false;
    }
    set_health(c);
    say_ready(c);
    coordinator_pump(c);
    return true;
}

static bool on_step_result(void *context, const struct step_result *result, struct err *e)
{
    struct coordinator *c = context;
    if (sched_commit(c->sched, result, clock_now_ns(), e) < 0)
        return false;
    coordinator_pump(c);
    return true;
}

static void on_group_down(void *context, const char *why)
{
    struct coordinator *c = context;
    char message[256];
    snprintf(message, sizeof message, "the group of workers was lost while the request ran: %.180s",
             why);
    sched_detach(c->sched, message);
    set_health(c);
    coordinator_pump(c);
}

static const struct fleet_ops fleet_ops = {
    .ready = on_group_ready, .result = on_step_result, .down = on_group_down};

/* ---- stop ---- */

static void on_handle_closed(uv_handle_t *h)
{
    (void)h; /* part of the coordinator */
}

static void on_runtime_stopped(void *context)
{
    struct coordinator *c = context;
    c->runtime = NULL;
    uv_handle_t *const handles[] = {(uv_handle_t *)&c->tick, (uv_handle_t *)&c->drain,
                                    (uv_handle_t *)&c->sigterm, (uv_handle_t *)&c->sigint};
    for (size_t i = 0; i != ARRAY_LEN(handles); i++)
        uv_close(handles[i], on_handle_closed);
}

static void stop_runtime_when_alone(struct coordinator *c)
{
    if (c->n_servers || c->spawn)
        return;
    if (c->runtime)
        rpc_runtime_stop(c->runtime, on_runtime_stopped, c);
    else
        on_runtime_stopped(c);
}

static void on_server_stopped(void *context)
{
    struct coordinator *c = context;
    assert(c->n_servers > 0);
    c->n_servers--;
    stop_runtime_when_alone(c);
}

static void on_spawn_stopped(void *context)
{
    struct coordinator *c = context;
    c->spawn = NULL;
    stop_runtime_when_alone(c);
}

/* Everything ends; the loop runs out when all handles are closed. */
static void begin_stop(struct coordinator *c, int exit_code)
{
    if (c->stopping)
        return;
    c->stopping = true;
    c->exit_code = exit_code;
    log_info("stopping");
    notify_send("STOPPING=1");
    if (c->sched)
        front_end_all(c, RPC_UNAVAILABLE, "the server stops");
    if (c->fleet)
        fleet_stop(c->fleet, "the coordinator stops");
    if (c->spawn)
        spawn_stop(c->spawn, SPAWN_GRACE_NS, on_spawn_stopped, c);
    c->n_servers = (c->server != NULL) + (c->worker_server && c->worker_server != c->server);
    if (c->worker_server && c->worker_server != c->server)
        rpc_server_shutdown(c->worker_server, STOP_GRACE_NS, on_server_stopped, c);
    if (c->server)
        rpc_server_shutdown(c->server, STOP_GRACE_NS, on_server_stopped, c);
    stop_runtime_when_alone(c);
}

static void on_drain_over(uv_timer_t *t)
{
    struct coordinator *c = t->data;
    log_warn("the drain time is over: %u requests are cut off", sched_n_requests(c->sched));
    begin_stop(c, COORDINATOR_EXIT_OK);
}

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct coordinator *c = handle->data;
    if (c->draining) {
        log_warn("second signal: stopping at once");
        if (c->stopping)
            _exit(COORDINATOR_EXIT_KILLED);
        begin_stop(c, COORDINATOR_EXIT_KILLED);
        return;
    }
    log_info("%s: draining, %u requests are left", signal_number == SIGTERM ? "SIGTERM" : "SIGINT",
             sched_n_requests(c->sched));
    c->draining = true;
    set_health(c);
    if (!fleet_is_ready(c->fleet))
        front_end_all(c, RPC_UNAVAILABLE, "the server stops, and no group of workers is ready");
    uv_timer_start(&c->drain, on_drain_over,
                   (uint64_t)(c->config->coordinator.deadlines.drain / NSEC_PER_MSEC), 0);
    coordinator_pump(c);
}

static void on_tick(uv_timer_t *t)
{
    struct coordinator *c = t->data;
    if (c->stopping)
        return;
    int64_t now = clock_now_ns();
    fleet_tick(c->fleet, now);
    sched_expire(c->sched, now);
    front_tick(c, now);
    status_tick(c, now);
    coordinator_pump(c);
    /* The loop turns, and fleet_tick ends every step that takes too long. */
    notify_send("WATCHDOG=1");
}

static void on_rank_exit(void *context, uint32_t rank, const char *what)
{
    struct coordinator *c = context;
    if (!c->stopping)
        fleet_note(c->fleet, rank, what);
}

/* ---- start ---- */

static int open_model(struct coordinator *c, struct err *e)
{
    const char *dir = c->config->model.dir;
    int r = model_dir_open(dir, &c->model, e);
    if (r == 0)
        r = tokenizer_open(dir, model_dir_arch(c->model), &c->tokenizer, e);
    if (r < 0)
        return r;
    const struct arch *a = model_dir_arch(c->model);
    const char *name = *c->config->model.name ? c->config->model.name : a->name;
    snprintf(c->model_name, sizeof c->model_name, "%s", name);
    c->admit = (struct admit){
        .arch = a,
        .tokenizer = c->tokenizer,
        .model = c->model_name,
        .max_input_bytes = (size_t)c->config->coordinator.limits.max_input_bytes,
        .max_tokens = (uint32_t)c->config->coordinator.limits.max_tokens_per_request,
        .max_masks = (uint32_t)c->config->coordinator.limits.max_masks,
        .max_choices = (uint32_t)c->config->coordinator.limits.max_choices,
    };
    return admit_init(&c->admit, e);
}

static int open_scheduler(struct coordinator *c, struct err *e)
{
    const struct arch *a = model_dir_arch(c->model);
    const struct sched_config sched = {
        .arch = a, .max_queue = (uint32_t)c->config->coordinator.limits.max_queue};
    struct fleet_config fleet = {
        .config = c->config,
        .arch = a,
        .model_digest = model_dir_digest(c->model)->hex,
        .scheme = quant_weights_name(model_dir_scheme(c->model)->weights),
        .epochs = &c->epochs,
        .ops = &fleet_ops,
        .context = c,
    };
    /* The manifest's answer is that of the exact mode; the others may rightly round elsewhere. */
    fleet.has_known_answer = c->config->worker.activations == CONFIG_ACTIVATIONS_FP32 &&
                             model_dir_known_answer(c->model, &fleet.known_answer) == 0;
    int r = sched_new(&sched, &c->sched);
    if (r == 0)
        r = fleet_new(&fleet, &c->fleet);
    return r < 0 ? err_set(e, r, "out of memory") : 0;
}

/* HOST:PORT that reaches us from this host: wildcards become the loopback address. */
static void reachable(const char *address, int port, char ret[300])
{
    const char *colon = strrchr(address, ':');
    if (strncmp(address, "unix:", 5) == 0 || !colon) {
        snprintf(ret, 300, "%s", address);
        return;
    }
    int n = (int)(colon - address);
    bool any4 =
        n == 0 || (n == 7 && strncmp(address, "0.0.0.0", 7) == 0) || (n == 1 && *address == '*');
    bool any6 = n == 4 && strncmp(address, "[::]", 4) == 0;
    if (any4 || any6)
        snprintf(ret, 300, "%s:%d", any4 ? "127.0.0.1" : "[::1]", port);
    else
        snprintf(ret, 300, "%.*s:%d", n, address, port);
}

static int open_servers(struct coordinator *c, struct err *e)
{
    const struct config *f = c->config;
    const struct rpc_limits limits = {.max_calls = (size_t)f->coordinator.limits.max_connections};
    bool separate = *f->coordinator.worker_listen;
    size_t n = front_methods(c, c->methods);
    assert(n < ARRAY_LEN(c->methods));
    c->methods[n] = (struct rpc_method){"/glmd.v1.Worker/Session", fleet_on_session, c->fleet};

    int r = rpc_server_new(c->runtime, &limits, &c->server);
    if (r == 0 && separate)
        r = rpc_server_new(c->runtime, &limits, &c->worker_server);
    else
        c->worker_server = c->server;
    if (r == 0)
        r = rpc_server_add(c->server, c->methods, n);
    if (r == 0)
        r = rpc_server_add(c->worker_server, &c->methods[n], 1);
    if (r == 0)
        r = rpc_health_add(c->server);
    if (r == 0)
        r = rpc_reflection_add(c->server, front_services, front_n_services);
    if (r < 0)
        return err_set(e, r, "cannot set up the server: %s", err_name(r));
    return 0;
}

static int listen_and_start(struct coordinator *c, struct err *e)
{
    const struct config *f = c->config;
    const struct rpc_tls tls = {.ca_file = *f->coordinator.tls.ca ? f->coordinator.tls.ca : NULL,
                                .cert_file = f->coordinator.tls.cert,
                                .key_file = f->coordinator.tls.key};
    const struct rpc_tls *use_tls = *f->coordinator.tls.cert ? &tls : NULL;
    bool separate = c->worker_server != c->server;
    const char *worker_listen = separate ? f->coordinator.worker_listen : f->coordinator.listen;
    int r = rpc_server_listen(c->server, f->coordinator.listen, use_tls, &c->port, e);
    int worker_port = c->port;
    if (r == 0 && separate)
        r = rpc_server_listen(c->worker_server, worker_listen, use_tls, &worker_port, e);
    if (r < 0)
        return r;
    reachable(f->coordinator.listen, c->port, c->address);
    reachable(worker_listen, worker_port, c->dial);
    c->listening = true;
    r = rpc_server_start(c->server);
    if (r == 0 && separate)
        r = rpc_server_start(c->worker_server);
    if (r < 0)
        return err_set(e, r, "cannot start the server: %s", err_name(r));
    rpc_health_set(c->server, "glmd.v1.Cluster", RPC_SERVING);
    printf("glmd-coordinator listening: grpc=%s\n", c->address);
    fflush(stdout);
    log_info("listening on %s%s%s, model %s, digest %s", c->address,
             separate ? ", for workers on " : "", separate ? c->dial : "", c->model_name,
             model_dir_digest(c->model)->hex);
    return 0;
}

/* Whoever waits for the file finds a whole number in it. */
static int write_port_file(const struct coordinator *c, struct err *e)
{
    const char *path = c->options->port_file;
    if (!path)
        return 0;
    struct buf temporary = {0};
    if (buf_printf(&temporary, "%s.new", path) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    FILE *f = fopen(temporary.data, "we");
    int r = 0;
    if (!f || fprintf(f, "%d\n", c->port) < 0)
        r = err_set(e, -errno, "--port-file %s: %s", path, err_name(-errno));
    if (f && fclose(f) < 0 && r == 0)
        r = err_set(e, -errno, "--port-file %s: %s", path, err_name(-errno));
    if (r == 0 && rename(temporary.data, path) < 0)
        r = err_set(e, -errno, "--port-file %s: %s", path, err_name(-errno));
    buf_deinit(&temporary);
    return r;
}

static int start_ranks(struct coordinator *c, struct err *e)
{
    if (c->config->group.workers != CONFIG_WORKERS_SPAWN)
        return 0;
    const struct spawn_config spawn = {
        .loop = &c->loop,
        .options = c->options,
        .coordinator = c->dial,
        .on_exit = on_rank_exit,
        .context = c,
    };
    return spawn_new(&spawn, &c->spawn, e);
}

static void init_loop(struct coordinator *c)
{
    uv_loop_init(&c->loop);
    uv_timer_init(&c->loop, &c->tick);
    uv_timer_init(&c->loop, &c->drain);
    uv_signal_init(&c->loop, &c->sigterm);
    uv_signal_init(&c->loop, &c->sigint);
    c->tick.data = c->drain.data = c->sigterm.data = c->sigint.data = c;
}

static void start_loop(struct coordinator *c)
{
    int64_t tick_ms = MIN(c->config->deadlines.heartbeat / NSEC_PER_MSEC, (int64_t)TICK_MS);
    uv_timer_start(&c->tick, on_tick, (uint64_t)tick_ms, (uint64_t)tick_ms);
    uv_signal_start(&c->sigterm, on_signal, SIGTERM);
    uv_signal_start(&c->sigint, on_signal, SIGINT);
    set_health(c);
    notify_send("READY=1");
}

/* What needs the loop; on failure everything that was opened is stopped by the loop. */
static int start(struct coordinator *c, struct err *e)
{
    int r = rpc_runtime_new(&c->loop, &c->runtime, e);
    if (r == 0)
        r = open_servers(c, e);
    if (r == 0)
        r = listen_and_start(c, e);
    if (r == 0)
        r = write_port_file(c, e);
    if (r == 0)
        r = start_ranks(c, e);
    if (r == 0)
        start_loop(c);
    return r;
}

static void close_all(struct coordinator *c)
{
    if (c->listening && c->options->port_file)
        unlink(c->options->port_file);
    fleet_free(c->fleet);
    sched_free(c->sched);
    epoch_close(&c->epochs);
    tokenizer_close(c->tokenizer);
    model_dir_close(c->model);
}

int coordinator_run(const struct options *o)
{
    struct coordinator *c = calloc(1, sizeof *c);
    if (!c)
        return COORDINATOR_EXIT_INTERNAL;
    c->options = o;
    c->config = &o->config;
    c->epochs.dir_fd = -1;
    c->started_ns = c->rates_ns = clock_now_ns();
    signal(SIGPIPE, SIG_IGN);
    notify_init();
    struct err e = ERR_INIT;
    int code = COORDINATOR_EXIT_MODEL;
    int r = open_model(c, &e);
    if (r == 0) {
        code = COORDINATOR_EXIT_CONFIG;
        r = arch_check_tp(model_dir_arch(c->model), (uint32_t)o->config.group.tensor_parallel, &e);
        if (r < 0)
            err_prefix(&e, "group.tensor_parallel");
    }
    if (r == 0) {
        code = COORDINATOR_EXIT_UNAVAILABLE;
        r = epoch_open(o->state_dir, &c->epochs, &e);
    }
    if (r == 0)
        r = open_scheduler(c, &e);
    if (r == 0) {
        init_loop(c);
        r = start(c, &e);
        if (r < 0) {
            log_error("%s", e.message);
            begin_stop(c, code);
        }
        uv_run(&c->loop, UV_RUN_DEFAULT);
        int busy = uv_loop_close(&c->loop);
        assert(busy == 0);
        (void)busy;
        code = c->exit_code;
    } else {
        log_error("%s", e.message);
    }
    close_all(c);
    notify_deinit();
    free(c);
    return code;
}
