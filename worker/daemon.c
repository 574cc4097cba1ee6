/* daemon.c: see daemon.h. Everything here runs on the loop thread.
 *
 * Start: what can be wrong with configuration or model is found before the loop runs. Stop: engine
 * thread, link and health server end side by side; then the transport, the mailbox and the loop.
 */
#include "worker/daemon.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/notify.h"
#include "base/util.h"
#include "kernels/cuda/nccl_log.h"
#include "worker/exit.h"
#include "worker/worker.h"

enum { KILL_MS = 10000 /* after an end was asked for: time to take everything apart */ };

struct daemon {
    /* owned */
    uv_loop_t loop;
    uv_timer_t tick_timer, kill_timer;
    uv_signal_t sigterm, sigint;
    struct mailbox mailbox;
    struct rpc_runtime *rpc;
    struct worker core;
    struct model_dir *model;
    struct identity identity;
    /* borrowed */
    const struct worker_options *options;
    /* state */
    bool signalled, stopping;
};

/* ---- the end ---- */

static void on_handle_closed(uv_handle_t *h)
{
    (void)h;
}

static void on_mailbox_closed(struct mailbox *m)
{
    struct daemon *d = m->context;
    uv_close((uv_handle_t *)&d->tick_timer, on_handle_closed);
    uv_close((uv_handle_t *)&d->kill_timer, on_handle_closed);
    uv_close((uv_handle_t *)&d->sigterm, on_handle_closed);
    uv_close((uv_handle_t *)&d->sigint, on_handle_closed);
}

static void on_rpc_stopped(void *context)
{
    struct daemon *d = context;
    d->rpc = NULL;
    mailbox_close(&d->mailbox, on_mailbox_closed);
}

static void on_core_stopped(void *context)
{
    struct daemon *d = context;
    uv_timer_stop(&d->tick_timer);
    rpc_runtime_stop(d->rpc, on_rpc_stopped, d);
}

static void on_kill_timer(uv_timer_t *t)
{
    struct daemon *d = t->data;
    log_error("the engine or the connection did not end within %d s", KILL_MS / 1000);
    _exit(d->core.exit_code ? d->core.exit_code : WORKER_EXIT_INTERNAL);
}

static void begin_stop(struct daemon *d)
{
    d->stopping = true;
    notify_send("STOPPING=1\nSTATUS=stopping");
    uv_timer_start(&d->kill_timer, on_kill_timer, KILL_MS, 0);
    worker_stop(&d->core, on_core_stopped);
}

/* ---- the core's wishes ---- */

static void on_tick(uv_timer_t *t);

static void tick_at(struct daemon *d, int64_t at_ns)
{
    int64_t now = clock_now_ns();
    if (at_ns == INT64_MAX)
        return;
    uint64_t wait_ms = at_ns > now ? (uint64_t)((at_ns - now) / NSEC_PER_MSEC + 1) : 0;
    uv_timer_start(&d->tick_timer, on_tick, wait_ms, 0);
}

static void op_wake(void *context, int64_t at_ns)
{
    tick_at(context, at_ns);
}

static void op_kill(void *context, int code, const char *why)
{
    (void)context;
    log_error("%s", why);
    _exit(code);
}

static void op_post(void *context, struct runner_order *answer)
{
    struct daemon *d = context;
    mailbox_post(&d->mailbox, &answer->item);
}

static const struct worker_ops core_ops = {.wake = op_wake, .kill = op_kill, .post = op_post};

/* ---- the loop's events ---- */

static void on_answer(struct mailbox *m, struct mailbox_item *item)
{
    struct daemon *d = m->context;
    worker_answer(&d->core, (struct runner_order *)item);
}

static void on_tick(uv_timer_t *t)
{
    struct daemon *d = t->data;
    if (d->core.exit_asked && !d->stopping)
        begin_stop(d);
    else
        tick_at(d, worker_tick(&d->core, clock_now_ns()));
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    if (d->signalled)
        _exit(WORKER_EXIT_KILLED);
    d->signalled = true;
    if (d->stopping)
        return;
    notify_send("STOPPING=1\nSTATUS=draining");
    worker_drain(&d->core, number == SIGINT ? "SIGINT" : "SIGTERM");
}

/* ---- the start ---- */

static void start_handles(struct daemon *d)
{
    uv_timer_init(&d->loop, &d->tick_timer);
    uv_timer_init(&d->loop, &d->kill_timer);
    uv_signal_init(&d->loop, &d->sigterm);
    uv_signal_init(&d->loop, &d->sigint);
    d->tick_timer.data = d->kill_timer.data = d->sigterm.data = d->sigint.data = d;
    uv_signal_start(&d->sigterm, on_signal, SIGTERM);
    uv_signal_start(&d->sigint, on_signal, SIGINT);
}

/* Everything that the loop carries. A failure here ends the process at once. */
static int start(struct daemon *d, struct err *e)
{
    const struct worker_config config = {.options = d->options,
                                         .model = d->model,
                                         .identity = &d->identity,
                                         .ops = &core_ops,
                                         .context = d};
    int r = uv_loop_init(&d->loop);
    if (!r)
        r = mailbox_init(&d->mailbox, &d->loop, on_answer, d);
    if (!r)
        r = rpc_runtime_new(&d->loop, &d->rpc, e);
    if (!r)
        r = worker_start(&d->core, &config, d->rpc, e);
    if (r)
        return r;
    start_handles(d);
    uv_timer_start(&d->tick_timer, on_tick, 0, 0);
    return 0;
}

static int open_model(struct daemon *d)
{
    struct err e = ERR_INIT;
    const struct config *c = &d->options->config;
    if (model_dir_open(c->model.dir, &d->model, &e)) {
        log_error("model %s: %s", c->model.dir, e.message);
        return WORKER_EXIT_WEIGHTS;
    }
    if (arch_check_tp(model_dir_arch(d->model), (uint32_t)c->group.tensor_parallel, &e)) {
        log_error("%s", e.message);
        return WORKER_EXIT_CONFIG;
    }
    if (identity_init(&d->identity, c->worker.listen, &e)) {
        log_error("%s", e.message);
        return e.code == -EINVAL ? WORKER_EXIT_CONFIG : WORKER_EXIT_UNAVAILABLE;
    }
    return WORKER_EXIT_OK;
}

static int run(struct daemon *d)
{
    struct err e = ERR_INIT;
    int r = start(d, &e);
    if (r) {
        log_error("%s", e.code ? e.message : err_name(r));
        _exit(r == -EINVAL ? WORKER_EXIT_CONFIG : WORKER_EXIT_UNAVAILABLE);
    }
    const struct wire_hello *hello = &d->core.session.config.hello;
    log_info("glmd-worker " GLMD_VERSION
             ": group %s, rank %u of %u x %u, layers %u to %u, on %s, model %s (%s, digest %s), "
             "peers on %s",
             hello->group, hello->rank, hello->tp_size, hello->pp_size, hello->layer_begin,
             hello->layer_end, hello->device, hello->model_name, hello->scheme, hello->model_digest,
             d->identity.listen_address);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    worker_deinit(&d->core);
    r = uv_loop_close(&d->loop);
    assert(r == 0);
    return d->core.exit_code;
}

/* With the coordinator as parent: do not outlive it. */
static int follow_parent(void)
{
    if (prctl(PR_SET_PDEATHSIG, SIGTERM))
        log_warn("prctl(PR_SET_PDEATHSIG): %s", err_name(-errno));
    return getppid() == 1 ? WORKER_EXIT_UNAVAILABLE : WORKER_EXIT_OK;
}

int daemon_run(const struct worker_options *o)
{
    struct daemon d = {.options = o, .identity = {.listen_fd = -1}};
    signal(SIGPIPE, SIG_IGN);
    notify_init();
    if (!strncmp(o->device, "cuda", 4))
        nccl_log_prepare(); /* the environment, while there are no threads */
    int code = o->spawned ? follow_parent() : WORKER_EXIT_OK;
    if (!code)
        code = open_model(&d);
    if (!code)
        code = run(&d);
    identity_deinit(&d.identity);
    model_dir_close(d.model);
    notify_deinit();
    return code;
}
