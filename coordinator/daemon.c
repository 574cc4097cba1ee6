/* daemon.c: start and stop of the process. See daemon.h. Everything runs on the loop thread. */
#include "coordinator/daemon.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_http.h"
#include "coordinator/front_job.h"
#include "coordinator/spawn.h"

#define STOP_GRACE_NS  (2 * NSEC_PER_SEC)
#define SPAWN_GRACE_NS (10 * NSEC_PER_SEC)

enum { MAX_SOCKET_PATH = 107 };

struct daemon {
    const struct options *options; /* borrowed */

    /* owned */
    struct model_dir *model;
    struct tokenizer *tokenizer;
    struct epoch_store epochs;
    char rank_listen[MAX_SOCKET_PATH + 8];
    struct coordinator core;
    struct front_http *http; /* NULL: none */
    struct spawn *spawn;
    uv_loop_t loop;
    uv_timer_t tick;
    uv_signal_t sigterm, sigint;
    struct rpc_runtime *runtime;

    /* state */
    bool listening, said_ready, signalled, stopping;
    unsigned n_parts; /* core, HTTP, spawned ranks: that have not stopped yet */
    int exit_code;
};

/* ---- stop ---- */

static void on_handle_closed(uv_handle_t *h)
{
    (void)h; /* part of the daemon */
}

static void on_runtime_stopped(void *context)
{
    struct daemon *d = context;
    d->runtime = NULL;
    uv_handle_t *const handles[] = {(uv_handle_t *)&d->tick, (uv_handle_t *)&d->sigterm,
                                    (uv_handle_t *)&d->sigint};
    for (size_t i = 0; i != ARRAY_LEN(handles); i++)
        uv_close(handles[i], on_handle_closed);
}

static void on_part_stopped(void *context)
{
    struct daemon *d = context;
    assert(d->n_parts > 0);
    if (--d->n_parts)
        return;
    d->spawn = NULL;
    d->http = NULL;
    if (d->runtime)
        rpc_runtime_stop(d->runtime, on_runtime_stopped, d);
    else
        on_runtime_stopped(d);
}

/* Everything ends; the loop runs out when all handles are closed. */
static void begin_stop(struct daemon *d, int exit_code)
{
    if (d->stopping)
        return;
    d->stopping = true;
    d->exit_code = exit_code;
    log_info("stopping");
    notify_send("STOPPING=1");
    struct spawn *spawn = d->spawn;
    struct front_http *http = d->http;
    d->n_parts = 1 + (http != NULL) + (spawn != NULL);
    coordinator_stop(&d->core, STOP_GRACE_NS, on_part_stopped, d); /* its requests end here */
    if (http)
        front_http_stop(http, STOP_GRACE_NS, on_part_stopped, d);
    if (spawn)
        spawn_stop(spawn, SPAWN_GRACE_NS, on_part_stopped, d);
}

/* ---- the core's events ---- */

/* "glmd-coordinator ready: grpc=127.0.0.1:8130 http=127.0.0.1:8000" */
static void say(const char *what, const struct daemon *d)
{
    printf("glmd-coordinator %s: grpc=%s%s%s\n", what, d->core.address, d->http ? " http=" : "",
           d->http ? front_http_address(d->http) : "");
    fflush(stdout);
}

static void on_health(void *context, bool serving)
{
    struct daemon *d = context;
    notify_send("STATUS=%s", d->core.draining ? "draining"
                             : serving        ? "serving"
                                              : "waiting for ranks");
    if (!serving || d->said_ready)
        return;
    d->said_ready = true;
    say("ready", d);
}

static void on_drained(void *context)
{
    begin_stop(context, DAEMON_EXIT_OK);
}

/* A thread of libuv's pool. */
static void on_work(uv_work_t *work)
{
    front_job_run(work->data);
}

static void on_worked(uv_work_t *work, int status)
{
    struct front_job *j = work->data;
    assert(status == 0); /* nothing cancels it */
    free(work);
    front_job_end(j);
}

static bool start_work(void *context, struct front_job *j)
{
    struct daemon *d = context;
    uv_work_t *work = calloc(1, sizeof *work);
    if (!work)
        return false;
    work->data = j;
    if (uv_queue_work(&d->loop, work, on_work, on_worked) == 0)
        return true;
    free(work);
    return false;
}

static const struct coordinator_ops core_ops = {
    .health = on_health, .drained = on_drained, .work = start_work};

/* ---- the loop's events ---- */

static void on_signal(uv_signal_t *handle, int signal_number)
{
    struct daemon *d = handle->data;
    if (d->signalled) {
        log_warn("second signal: stopping at once");
        if (d->stopping)
            _exit(DAEMON_EXIT_KILLED);
        begin_stop(d, DAEMON_EXIT_KILLED);
        return;
    }
    d->signalled = true;
    log_info("%s: draining, %u requests are left", signal_number == SIGTERM ? "SIGTERM" : "SIGINT",
             sched_n_requests(d->core.sched));
    coordinator_drain(&d->core, clock_now_ns());
}

static void on_tick(uv_timer_t *t)
{
    struct daemon *d = t->data;
    if (d->stopping)
        return;
    coordinator_tick(&d->core, clock_now_ns());
    /* The loop turns, and the fleet's tick ends every step that takes too long. */
    notify_send("WATCHDOG=1");
}

/* A group that was drained stays away. */
static bool on_rank_exit(void *context, const char *group, uint32_t rank, const char *what)
{
    struct daemon *d = context;
    if (d->stopping)
        return false;
    int64_t number = fleet_find(d->core.fleet, group);
    if (number >= 0 && fleet_is_draining(d->core.fleet, (uint32_t)number))
        return false;
    fleet_note(d->core.fleet, group, rank, what);
    return true;
}

/* ---- start ---- */

static int open_model(struct daemon *d, struct err *e)
{
    const char *dir = d->options->config.model.dir;
    int r = model_dir_open(dir, &d->model, e);
    if (r == 0)
        r = tokenizer_open(dir, model_dir_arch(d->model), &d->tokenizer, e);
    return r;
}

/* A socket in the state directory, which nobody else has. NULL: no ranks are spawned, or the path
 * is too long for one. */
static const char *rank_listen(struct daemon *d)
{
    int n = snprintf(d->rank_listen, sizeof d->rank_listen, "unix:%s/ranks.sock",
                     d->options->state_dir);
    bool fits = n > 0 && (size_t)n < sizeof d->rank_listen &&
                strlen(d->rank_listen + strlen("unix:")) <= MAX_SOCKET_PATH;
    return fits && d->options->config.group.workers == CONFIG_WORKERS_SPAWN ? d->rank_listen : NULL;
}

static int open_core(struct daemon *d, struct err *e)
{
    const struct coordinator_config config = {
        .config = &d->options->config,
        .model = d->model,
        .tokenizer = d->tokenizer,
        .epochs = &d->epochs,
        .ops = &core_ops,
        .context = d,
        .rank_listen = rank_listen(d),
    };
    return coordinator_init(&d->core, &config, e);
}

/* Of groups that are spawned; others say their own. */
static int check_shape(const struct config *c, const struct arch *a, struct err *e)
{
    if (c->group.workers != CONFIG_WORKERS_SPAWN)
        return 0;
    if (arch_check_tp(a, (uint32_t)c->group.tensor_parallel, e) < 0)
        return err_prefix(e, "group.tensor_parallel");
    uint32_t n_stages = (uint32_t)c->group.pipeline_parallel, n_layers = 0;
    if (n_stages > a->n_layers)
        return err_set(e, -EINVAL,
                       "group.pipeline_parallel: expected at most the model's %u layers, "
                       "found %u stages",
                       a->n_layers, n_stages);
    for (uint32_t i = 0; i != n_stages; i++)
        n_layers += config_stage_layers(c, i);
    if (c->group.stage_layers.n && n_layers != a->n_layers)
        return err_set(e, -EINVAL, "group.stage_layers: expected the model's %u layers, found %u",
                       a->n_layers, n_layers);
    return 0;
}

/* Whoever waits for the file finds a whole number in it. */
static int write_port_file(const char *flag, const char *path, int port, struct err *e)
{
    if (!path)
        return 0;
    struct buf temporary = {0};
    if (buf_printf(&temporary, "%s.new", path) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    FILE *f = fopen(temporary.data, "we");
    int r = 0;
    if (!f || fprintf(f, "%d\n", port) < 0)
        r = err_set(e, -errno, "%s %s: %s", flag, path, err_name(-errno));
    if (f && fclose(f) < 0 && r == 0)
        r = err_set(e, -errno, "%s %s: %s", flag, path, err_name(-errno));
    if (r == 0 && rename(temporary.data, path) < 0)
        r = err_set(e, -errno, "%s %s: %s", flag, path, err_name(-errno));
    buf_deinit(&temporary);
    return r;
}

static int start_ranks(struct daemon *d, struct err *e)
{
    if (d->options->config.group.workers != CONFIG_WORKERS_SPAWN)
        return 0;
    const struct spawn_config spawn = {
        .loop = &d->loop,
        .options = d->options,
        .coordinator = d->core.dial,
        .on_exit = on_rank_exit,
        .context = d,
    };
    return spawn_new(&spawn, &d->spawn, e);
}

static void init_loop(struct daemon *d)
{
    uv_loop_init(&d->loop);
    uv_timer_init(&d->loop, &d->tick);
    uv_signal_init(&d->loop, &d->sigterm);
    uv_signal_init(&d->loop, &d->sigint);
    d->tick.data = d->sigterm.data = d->sigint.data = d;
}

static void start_loop(struct daemon *d)
{
    uint64_t tick_ms = (uint64_t)(coordinator_tick_ns(&d->core) / NSEC_PER_MSEC);
    uv_timer_start(&d->tick, on_tick, tick_ms, tick_ms);
    uv_signal_start(&d->sigterm, on_signal, SIGTERM);
    uv_signal_start(&d->sigint, on_signal, SIGINT);
    notify_send("READY=1");
}

/* What needs the loop; on failure everything that was opened is stopped by the loop. */
static int start(struct daemon *d, struct err *e)
{
    int r = rpc_runtime_new(&d->loop, &d->runtime, e);
    if (r == 0)
        r = coordinator_listen(&d->core, d->runtime, e);
    d->listening = r == 0;
    if (r == 0 && *d->options->config.coordinator.http.listen)
        r = front_http_new(&d->core, &d->loop, &d->http, e);
    if (r == 0)
        say("listening", d);
    if (r == 0 && d->http)
        r = write_port_file("--http-port-file", d->options->http_port_file,
                            front_http_port(d->http), e);
    if (r == 0)
        r = write_port_file("--port-file", d->options->port_file, d->core.port, e);
    if (r == 0)
        r = start_ranks(d, e);
    if (r == 0)
        start_loop(d);
    return r;
}

static void run_loop(struct daemon *d)
{
    struct err e = ERR_INIT;
    init_loop(d);
    if (start(d, &e) < 0) {
        log_error("%s", e.message);
        begin_stop(d, DAEMON_EXIT_UNAVAILABLE);
    }
    uv_run(&d->loop, UV_RUN_DEFAULT);
    int busy = uv_loop_close(&d->loop);
    assert(busy == 0);
    (void)busy;
}

static void close_all(struct daemon *d)
{
    if (d->listening && d->options->port_file)
        unlink(d->options->port_file);
    if (d->listening && d->options->http_port_file)
        unlink(d->options->http_port_file);
    coordinator_deinit(&d->core);
    epoch_close(&d->epochs);
    tokenizer_close(d->tokenizer);
    model_dir_close(d->model);
}

int daemon_run(const struct options *o)
{
    struct daemon *d = calloc(1, sizeof *d);
    if (!d)
        return DAEMON_EXIT_INTERNAL;
    d->options = o;
    d->epochs.dir_fd = -1;
    signal(SIGPIPE, SIG_IGN);
    notify_init();
    struct err e = ERR_INIT;
    d->exit_code = DAEMON_EXIT_MODEL;
    int r = open_model(d, &e);
    if (r == 0) {
        d->exit_code = DAEMON_EXIT_CONFIG;
        r = check_shape(&o->config, model_dir_arch(d->model), &e);
    }
    if (r == 0) {
        d->exit_code = DAEMON_EXIT_UNAVAILABLE;
        r = epoch_open(o->state_dir, &d->epochs, &e);
    }
    if (r == 0) {
        d->exit_code = DAEMON_EXIT_MODEL;
        r = open_core(d, &e);
    }
    if (r == 0)
        run_loop(d); /* sets the exit code */
    else
        log_error("%s", e.message);
    int code = d->exit_code;
    close_all(d);
    notify_deinit();
    free(d);
    return code;
}
