/* sim_worker.c: the process around a worker core: what worker/daemon.c and the service manager do,
 * on virtual time, and its crashes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/util.h"
#include "sim.h"
#include "worker/exit.h"
#include "worker/worker.h"

#define RESTART_NS (200 * NSEC_PER_MSEC)
#define KILL_NS    (10 * NSEC_PER_SEC) /* as worker/daemon.c: time to take everything apart */

struct sim_worker {
    struct process process;
    struct sim_worker *next; /* in sim.workers */
    struct sim *sim;
    struct sim_machine *machine;
    struct rpc_sim_host *host;
    struct rpc_runtime *runtime;
    struct worker_options options; /* config is the run's own copy, borrowed */
    struct identity identity;
    struct worker core;
    bool stopping;
    int64_t next_tick_ns;
};

struct process *sim_worker_process(struct sim_worker *w)
{
    return &w->process;
}

struct rpc_sim_host *sim_worker_host(struct sim_worker *w)
{
    return w->host;
}

struct sim_machine *sim_worker_machine(struct sim_worker *w)
{
    return w->machine;
}

struct sim *sim_worker_sim(struct sim_worker *w)
{
    return w->sim;
}

/* ---- the end ---- */

static void on_start(void *context)
{
    struct sim_machine *m = context;
    if (m->sim->closing || m->worker)
        return;
    int64_t wait_ns = m->away_until - m->sim->world.now_ns;
    if (wait_ns > 0)
        world_post(&m->sim->world, NULL, wait_ns, on_start, m);
    else
        sim_worker_start(m);
}

static void gone(struct sim_worker *w, int64_t restart_ns)
{
    worker_deinit(&w->core);
    w->process.dead = true;
    w->machine->worker = NULL;
    if (!w->sim->closing)
        world_post(&w->sim->world, NULL, restart_ns, on_start, w->machine);
}

static void on_runtime_stopped(void *context)
{
    struct sim_worker *w = context;
    struct sim *s = w->sim;
    trace(&s->world, "worker: ends with code %d", w->core.exit_code);
    /* systemd/glmd-worker@.service: RestartPreventExitStatus=64 65 */
    if (w->core.exit_code == WORKER_EXIT_CONFIG || w->core.exit_code == WORKER_EXIT_WEIGHTS)
        world_fail(&s->world, "%s ended with code %d: nothing would start it again",
                   w->process.name, w->core.exit_code);
    rpc_sim_kill(w->host, 0); /* nothing is left on it */
    gone(w, RESTART_NS);
}

static void on_core_stopped(void *context)
{
    struct sim_worker *w = context;
    rpc_runtime_stop(w->runtime, on_runtime_stopped, w);
}

void sim_worker_crash(struct sim_machine *m, int64_t notice_ns, int64_t restart_ns)
{
    struct sim_worker *w = m->worker;
    if (!w)
        return;
    trace(&m->sim->world, "%s: crashes", w->process.name);
    w->process.dead = true;
    sim_runner_die(w);
    rpc_sim_kill(w->host, notice_ns);
    gone(w, restart_ns);
}

void sim_worker_drain(struct sim_machine *m)
{
    struct sim_worker *w = m->worker;
    if (!w || w->stopping)
        return;
    trace(&m->sim->world, "%s: SIGTERM", w->process.name);
    worker_drain(&w->core, "SIGTERM");
}

/* ---- the core's wishes ---- */

static void on_tick(void *context, uint64_t at_ns);

static void tick_at(struct sim_worker *w, int64_t at_ns)
{
    if (at_ns == INT64_MAX)
        return;
    w->next_tick_ns = MAX(at_ns, w->sim->world.now_ns);
    world_post_value(&w->sim->world, &w->process, w->next_tick_ns - w->sim->world.now_ns, on_tick,
                     w, (uint64_t)w->next_tick_ns);
}

static void on_kill_time(void *context)
{
    struct sim_worker *w = context;
    if (w->process.dead)
        return;
    trace(&w->sim->world, "worker: did not end in time");
    sim_worker_crash(w->machine, 0, RESTART_NS);
}

static void on_tick(void *context, uint64_t at_ns)
{
    struct sim_worker *w = context;
    if (w->process.dead || (int64_t)at_ns != w->next_tick_ns)
        return; /* another tick has been asked for since */
    w->next_tick_ns = INT64_MAX;
    if (w->core.exit_asked && !w->stopping) {
        w->stopping = true;
        world_post(&w->sim->world, &w->process, KILL_NS, on_kill_time, w);
        worker_stop(&w->core, on_core_stopped);
        return;
    }
    int64_t next = worker_tick(&w->core, w->sim->world.now_ns);
    if (!w->process.dead)
        tick_at(w, next);
}

static void op_wake(void *context, int64_t at_ns)
{
    tick_at(context, at_ns);
}

static void on_killed(void *context)
{
    struct sim_worker *w = context;
    if (!w->process.dead)
        sim_worker_crash(w->machine, 0, RESTART_NS);
}

/* _exit, in effect: a moment later, because the core is on the stack. */
static void op_kill(void *context, int code, const char *why)
{
    struct sim_worker *w = context;
    trace(&w->sim->world, "worker: kills itself, code %d: %s", code, why);
    world_post(&w->sim->world, &w->process, 0, on_killed, w);
}

struct posted {
    struct sim_worker *worker;
    struct runner_order *answer;
};

static void on_posted(void *arg)
{
    struct posted *p = arg;
    if (p->worker->process.dead)
        runner_order_free(p->answer);
    else
        worker_answer(&p->worker->core, p->answer);
    free(p);
}

/* The mailbox: answers keep their order, and come a little later. */
static void op_post(void *context, struct runner_order *answer)
{
    struct sim_worker *w = context;
    struct posted *p = malloc(sizeof *p);
    assert(p);
    *p = (struct posted){w, answer};
    world_post(&w->sim->world, &w->process, 10 * NSEC_PER_USEC, on_posted, p);
}

static const struct worker_ops ops = {.wake = op_wake, .kill = op_kill, .post = op_post};

/* ---- the start ---- */

static void make_identity(struct sim_worker *w)
{
    struct identity *id = &w->identity;
    uint32_t host = w->sim->plan.one_host ? 0 : w->machine->number;
    *id = (struct identity){.listen_fd = -1, .pid = 1000 + w->machine->n_starts};
    random_bytes(id->instance, sizeof id->instance);
    snprintf(id->boot_id, sizeof id->boot_id, "boot-%u", host);
    snprintf(id->hostname, sizeof id->hostname, "host-%u", host);
    snprintf(id->shm_domain, sizeof id->shm_domain, "shm-%u", host);
    snprintf(id->listen_address, sizeof id->listen_address, "host-%u:%u", host,
             9000 + w->machine->number);
}

void sim_worker_start(struct sim_machine *m)
{
    struct sim *s = m->sim;
    struct sim_worker *w = calloc(1, sizeof *w);
    assert(w && !m->worker);
    w->sim = s;
    w->machine = m;
    w->next = s->workers;
    s->workers = w;
    m->worker = w;
    snprintf(w->process.name, sizeof w->process.name, "rank%s/%u.%u", m->group->name, m->rank,
             m->n_starts++);
    w->host = rpc_sim_host_new(s->net, w->process.name, &w->process);
    rpc_sim_set_latency(w->host, m->latency_min, m->latency_max);
    trace(&s->world, "%s: starts", w->process.name);
    make_identity(w);
    w->options = (struct worker_options){
        .config = m->group->config, .rank = m->rank, .device = s->plan.device};
    const struct worker_config config = {.options = &w->options,
                                         .model = s->model_dir,
                                         .identity = &w->identity,
                                         .ops = &ops,
                                         .context = w};
    struct err e = ERR_INIT;
    int r = rpc_runtime_new(rpc_sim_host_loop(w->host), &w->runtime, &e);
    if (r == 0)
        r = worker_start(&w->core, &config, w->runtime, &e);
    if (r < 0)
        world_fail(&s->world, "%s does not start: %s", w->process.name, e.message);
    w->next_tick_ns = INT64_MAX;
    tick_at(w, s->world.now_ns);
}

void sim_workers_free(struct sim *s)
{
    for (struct sim_worker *w = s->workers, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    s->workers = NULL;
}
