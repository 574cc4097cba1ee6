/* run.c: one run: set up, work and faults, quiet, the end, and nothing left. */
#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/util.h"
#include "sim.h"

#define QUIET_NS  (1200 * NSEC_PER_SEC) /* until all requests have ended by themselves */
#define SETTLE_NS NSEC_PER_SEC
#define END_NS    (120 * NSEC_PER_SEC)

static void post_event(void *context, void *owner, int64_t delay_ns, void (*run)(void *arg),
                       void *arg)
{
    struct sim *s = context;
    world_post(&s->world, owner, delay_ns, run, arg);
}

static uint64_t net_random_of(void *context)
{
    struct sim *s = context;
    return rng_next(&s->world.net);
}

static const struct rpc_sim_ops net_ops = {.post = post_event, .random = net_random_of};

static void step(struct sim *s)
{
    const struct process *before = sim_coordinator_process(s);
    if (!world_step(&s->world))
        world_fail(&s->world, "nothing happens any more");
    if (before && s->coordinator)
        sim_check(s);
}

static void on_machine_start(void *arg)
{
    struct sim_machine *m = arg;
    if (!m->worker && !m->sim->closing)
        sim_worker_start(m);
}

static void start_machines(struct sim *s)
{
    for (uint32_t i = 0; i != s->plan.n_groups; i++) {
        struct sim_group *g = &s->groups[i];
        for (uint32_t k = 0; k != g->n_ranks; k++) {
            struct sim_machine *m = &s->machines[g->first_machine + k];
            *m = (struct sim_machine){.sim = s,
                                      .group = g,
                                      .number = g->first_machine + k,
                                      .rank = k,
                                      .slowness = 1,
                                      .latency_min = 50 * NSEC_PER_USEC,
                                      .latency_max = 300 * NSEC_PER_USEC};
            world_post(&s->world, NULL, g->start_ns, on_machine_start, m);
        }
        sim_note_fault(s, s->world.now_ns + g->start_ns);
    }
}

static void set_up(struct sim *s)
{
    struct err e = ERR_INIT;
    sim_make_plan(s);
    sim_keys_start(s);
    s->net = rpc_sim_new(&net_ops, s);
    s->known_answer = 42;
    model_dir_known_answer(s->model_dir, &s->known_answer);
    s->admit = (struct admit){
        .arch = model_dir_arch(s->model_dir),
        .tokenizer = s->model->tokenizer,
        .model = "",
        .max_input_bytes = (size_t)s->config.coordinator.limits.max_input_bytes,
        .max_tokens = (uint32_t)s->config.coordinator.limits.max_tokens_per_request,
        .max_masks = (uint32_t)s->config.coordinator.limits.max_masks,
        .max_choices = (uint32_t)s->config.coordinator.limits.max_choices,
    };
    if (admit_init(&s->admit, &e) < 0)
        world_fail(&s->world, "%s", e.message);
    s->away_ns = s->no_group_ns = INT64_MAX;
    sim_note_fault(s, s->world.now_ns);
    sim_coordinator_start(s);
    start_machines(s);
    sim_clients_start(s);
    sim_tenants_start(s);
    sim_faults_start(s);
    sim_operator_start(s);
}

/* All requests end and the cluster serves, in bounded time after the last fault. */
static void work(struct sim *s)
{
    struct world *w = &s->world;
    int64_t end_ns = w->now_ns + s->plan.work_ns;
    while (w->now_ns < end_ns || w->now_ns < s->last_fault_ns || !sim_clients_done(s) ||
           !sim_all_ready(s)) {
        step(s);
        int64_t quiet_ns = MAX(end_ns, s->last_fault_ns);
        if (!sim_all_ready(s) && w->now_ns > quiet_ns + sim_recovery_ns(s))
            world_fail(w, "%.0f s after the last fault not every group serves",
                       (double)(w->now_ns - quiet_ns) / 1e9);
        if (w->now_ns > quiet_ns + QUIET_NS)
            world_fail(w, "%u requests do not end", sim_clients_open(s));
    }
    /* The coordinator hears of the last cancellation a little later. */
    int64_t settled_ns = w->now_ns + SETTLE_NS;
    while (w->now_ns < settled_ns)
        step(s);
    sim_check_end(s);
}

static bool all_gone(const struct sim *s)
{
    bool gone = !s->coordinator;
    for (uint32_t i = 0; i != s->n_machines; i++)
        gone = gone && !s->machines[i].worker;
    return gone;
}

/* SIGTERM to everybody, as when a host is shut down. */
static void shut_down(struct sim *s)
{
    struct world *w = &s->world;
    int64_t end_ns = w->now_ns + END_NS;
    s->closing = true;
    sim_coordinator_drain(s);
    for (uint32_t i = 0; i != s->n_machines; i++)
        sim_worker_drain(&s->machines[i]);
    while (!all_gone(s)) {
        step(s);
        if (w->now_ns > end_ns)
            world_fail(w, "not everything has ended");
    }
    sim_clients_stop(s);
    while (world_step(w))
        ;
}

static void tear_down(struct sim *s)
{
    sim_operator_free(s);
    sim_tenants_free(s);
    sim_keys_free(s);
    sim_clients_free(s);
    sim_comms_free(s);
    sim_workers_free(s);
    sim_coordinators_free(s);
    rpc_sim_free(s->net);
    for (uint32_t i = 0; i != s->plan.n_groups; i++)
        config_deinit(&s->groups[i].config);
    config_deinit(&s->config);
    world_deinit(&s->world);
}

void sim_run(uint64_t seed, uint32_t generator, const struct sim_model *model, FILE *trace_file,
             struct sim_result *ret)
{
    struct sim *s = calloc(1, sizeof *s);
    assert(s);
    world_init(&s->world, seed, trace_file);
    s->model = model;
    s->plan.generator = s->world.generator = generator;
    s->epochs.dir_fd = -1;
    int64_t start_ns = s->world.now_ns;
    set_up(s);
    work(s);
    shut_down(s);
    trace(&s->world, "end: %llu answered, %llu errors, %llu tokens, %llu steps, %llu epochs",
          (unsigned long long)s->n_ok, (unsigned long long)s->n_errors,
          (unsigned long long)s->n_tokens, (unsigned long long)s->n_steps,
          (unsigned long long)s->n_epochs);
    *ret = (struct sim_result){
        .virtual_seconds = (double)(s->world.now_ns - start_ns) / 1e9,
        .trace_hash = s->world.trace_hash,
        .n_events = s->world.n_run,
        .n_requests = s->plan.n_requests,
        .n_ok = s->n_ok,
        .n_tokens = s->n_tokens,
        .n_steps = s->n_steps,
        .n_faults = s->n_faults,
        .n_epochs = s->n_epochs,
        .n_hits = s->n_hits,
        .n_preempted = s->n_preempted,
        .n_resumed = s->n_resumed,
    };
    tear_down(s);
    free(s);
}
