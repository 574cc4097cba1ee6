/* sim_coordinator.c: the process around a coordinator core: what coordinator/daemon.c does, on
 * virtual time, and its crashes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "sim.h"

#define STOP_GRACE_NS (2 * NSEC_PER_SEC)
#define RESTART_NS    (500 * NSEC_PER_MSEC)

struct sim_coordinator {
    struct process process;
    struct sim_coordinator *next; /* in sim.coordinators */
    struct sim *sim;
    struct rpc_sim_host *host;
    struct rpc_runtime *runtime;
    struct coordinator core;
    bool stopping;
};

struct process *sim_coordinator_process(const struct sim *s)
{
    return s->coordinator ? &s->coordinator->process : NULL;
}

struct rpc_sim_host *sim_coordinator_host(const struct sim *s)
{
    return s->coordinator ? s->coordinator->host : NULL;
}

struct sched *sim_scheduler(const struct sim *s)
{
    return s->coordinator ? s->coordinator->core.sched : NULL;
}

const struct coordinator *sim_core(const struct sim *s)
{
    return s->coordinator ? &s->coordinator->core : NULL;
}

struct fleet *sim_fleet(const struct sim *s)
{
    return s->coordinator ? s->coordinator->core.fleet : NULL;
}

bool sim_coordinator_stopping(const struct sim *s)
{
    return !s->coordinator || s->coordinator->core.draining || s->coordinator->stopping;
}

static void on_start(void *context)
{
    struct sim *s = context;
    if (!s->closing)
        sim_coordinator_start(s);
}

static void gone(struct sim_coordinator *c, int64_t restart_ns)
{
    struct sim *s = c->sim;
    coordinator_deinit(&c->core);
    c->process.dead = true;
    s->coordinator = NULL;
    if (!s->closing)
        world_post(&s->world, NULL, restart_ns, on_start, s);
}

static void on_runtime_stopped(void *context)
{
    struct sim_coordinator *c = context;
    trace(&c->sim->world, "coordinator: ends");
    rpc_sim_kill(c->host, 0); /* nothing is left on it */
    gone(c, RESTART_NS);
}

static void on_core_stopped(void *context)
{
    struct sim_coordinator *c = context;
    rpc_runtime_stop(c->runtime, on_runtime_stopped, c);
}

static void on_drained(void *context)
{
    struct sim_coordinator *c = context;
    if (c->process.dead || c->stopping)
        return;
    trace(&c->sim->world, "coordinator: drained, %u requests left",
          sched_n_requests(c->core.sched));
    c->stopping = true;
    coordinator_stop(&c->core, STOP_GRACE_NS, on_core_stopped, c);
}

static void on_health(void *context, bool serving)
{
    struct sim_coordinator *c = context;
    if (!c->process.dead)
        sim_check_health(c->sim, serving);
}

static const struct coordinator_ops ops = {.health = on_health, .drained = on_drained};

static void on_tick(void *context)
{
    struct sim_coordinator *c = context;
    if (c->process.dead || c->stopping)
        return;
    coordinator_tick(&c->core, c->sim->world.now_ns);
    if (c->process.dead || c->stopping)
        return;
    sim_check_deadlines(c->sim);
    world_post(&c->sim->world, &c->process, coordinator_tick_ns(&c->core), on_tick, c);
}

void sim_coordinator_start(struct sim *s)
{
    struct sim_coordinator *c = calloc(1, sizeof *c);
    assert(c && !s->coordinator);
    c->sim = s;
    c->next = s->coordinators;
    s->coordinators = c;
    snprintf(c->process.name, sizeof c->process.name, "coord.%u", s->n_coordinators++);
    c->host = rpc_sim_host_new(s->net, c->process.name, &c->process);
    s->coordinator = c;
    trace(&s->world, "coordinator: starts");
    sim_note_away(s, false);
    for (uint32_t i = 0; i != s->plan.n_groups; i++)
        s->groups[i].epoch = 0;
    const struct coordinator_config config = {.config = &s->config,
                                              .model = s->model_dir,
                                              .tokenizer = s->model->tokenizer,
                                              .epochs = &s->epochs,
                                              .ops = &ops,
                                              .context = c};
    struct err e = ERR_INIT;
    int r = rpc_runtime_new(rpc_sim_host_loop(c->host), &c->runtime, &e);
    if (r == 0)
        r = coordinator_init(&c->core, &config, &e);
    if (r == 0)
        r = coordinator_listen(&c->core, c->runtime, &e);
    if (r < 0)
        world_fail(&s->world, "the coordinator does not start: %s", e.message);
    world_post(&s->world, &c->process, coordinator_tick_ns(&c->core), on_tick, c);
}

void sim_coordinator_crash(struct sim *s, int64_t notice_ns)
{
    struct sim_coordinator *c = s->coordinator;
    if (!c)
        return;
    trace(&s->world, "%s: crashes", c->process.name);
    sim_check_health(s, false);
    sim_note_away(s, true);
    c->process.dead = true;
    rpc_sim_kill(c->host, notice_ns);
    gone(c, rng_between(&s->world.faults, 50 * NSEC_PER_MSEC, 3 * NSEC_PER_SEC));
}

void sim_coordinator_drain(struct sim *s)
{
    struct sim_coordinator *c = s->coordinator;
    if (!c || c->core.draining)
        return;
    trace(&s->world, "%s: SIGTERM", c->process.name);
    sim_note_away(s, true);
    coordinator_drain(&c->core, s->world.now_ns);
}

void sim_coordinators_free(struct sim *s)
{
    assert(!s->coordinator);
    for (struct sim_coordinator *c = s->coordinators, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    s->coordinators = NULL;
}
