/* faults.c: what goes wrong, and when. */
#include "base/clock.h"
#include "base/util.h"
#include "sim.h"

enum fault {
    RANK_CRASH,
    RANK_POWER,
    RANK_FREEZE,
    RANK_TERM,
    RANK_BREAK,
    RANK_BLOCK,
    RANK_SLOW,
    RANK_SLOW_NET,
    DEVICE_FAILS,
    DEVICE_HANGS,
    RANK_DIVERGES,
    COORDINATOR_CRASH,
    COORDINATOR_FREEZE,
    COORDINATOR_TERM,
    COORDINATOR_BLOCK,
    GROUP_LEAVES,
    CLIENTS_BREAK,
    N_FAULTS,
};

static struct sim_machine *some_machine(struct sim *s)
{
    return &s->machines[rng_below(&s->world.faults, s->n_machines)];
}

static int64_t draw(struct sim *s, int64_t min_ms, int64_t max_ms)
{
    return rng_between(&s->world.faults, min_ms * NSEC_PER_MSEC, max_ms * NSEC_PER_MSEC);
}

static void freeze(struct sim *s, struct process *p, int64_t ns)
{
    if (!p)
        return;
    trace(&s->world, "fault: %s stands still for %.3f s", p->name, (double)ns / 1e9);
    p->frozen_until = MAX(p->frozen_until, s->world.now_ns + ns);
    sim_note_fault(s, p->frozen_until);
}

static void block(struct sim *s, struct rpc_sim_host *h, const char *name, int64_t ns)
{
    if (!h)
        return;
    trace(&s->world, "fault: the network of %s is away for %.3f s", name, (double)ns / 1e9);
    rpc_sim_block(h, s->world.now_ns + ns);
    sim_note_fault(s, s->world.now_ns + ns);
    s->last_net_fault_ns = MAX(s->last_net_fault_ns, s->world.now_ns + ns);
}

static void on_slow_over(void *arg)
{
    struct sim_machine *m = arg;
    m->slowness = 1;
}

static void set_latency(struct sim_machine *m, int64_t min_ns, int64_t max_ns)
{
    m->latency_min = min_ns;
    m->latency_max = max_ns;
    if (m->worker)
        rpc_sim_set_latency(sim_worker_host(m->worker), min_ns, max_ns);
}

static void on_slow_net_over(void *arg)
{
    set_latency(arg, 50 * NSEC_PER_USEC, 300 * NSEC_PER_USEC);
}

static void slow_rank(struct sim *s, struct sim_machine *m)
{
    int64_t ns = draw(s, 200, 8000);
    m->slowness = (double)rng_between(&s->world.faults, 2, 60);
    trace(&s->world, "fault: rank %s/%u is %.0f times slower for %.3f s", m->group->name, m->rank,
          m->slowness, (double)ns / 1e9);
    world_post(&s->world, NULL, ns, on_slow_over, m);
    sim_note_fault(s, s->world.now_ns + ns);
}

static void slow_net(struct sim *s, struct sim_machine *m)
{
    int64_t ns = draw(s, 200, 8000), max = draw(s, 2, 400);
    trace(&s->world, "fault: messages of rank %s/%u take up to %.3f s for %.3f s", m->group->name,
          m->rank, (double)max / 1e9, (double)ns / 1e9);
    set_latency(m, NSEC_PER_MSEC, max);
    world_post(&s->world, NULL, ns, on_slow_net_over, m);
    sim_note_fault(s, s->world.now_ns + ns);
}

/* All ranks of a group are terminated, and come back together some time later. */
static void group_leaves(struct sim *s)
{
    struct sim_group *g = &s->groups[rng_below(&s->world.faults, s->plan.n_groups)];
    int64_t until_ns = s->world.now_ns + draw(s, 500, 15000);
    trace(&s->world, "fault: group %s leaves", g->name);
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        struct sim_machine *m = &s->machines[g->first_machine + i];
        m->away_until = until_ns;
        sim_worker_drain(m);
    }
    sim_note_fault(s, until_ns);
}

static void fault_rank(struct sim *s, enum fault f)
{
    struct sim_machine *m = some_machine(s);
    struct sim_worker *w = m->worker;
    if (!w)
        return;
    const char *name = sim_worker_process(w)->name;
    switch (f) {
    case RANK_CRASH:
        sim_worker_crash(m, draw(s, 0, 5), draw(s, 10, 3000));
        break;
    case RANK_POWER: /* nobody hears of it until keepalives fail */
        sim_worker_crash(m, draw(s, 5000, 20000), draw(s, 100, 5000));
        break;
    case RANK_FREEZE:
        freeze(s, sim_worker_process(w), draw(s, 5, rng_chance(&s->world.faults, 50) ? 300 : 9000));
        break;
    case RANK_TERM:
        sim_worker_drain(m);
        break;
    case RANK_BREAK:
        trace(&s->world, "fault: the connections of %s break", name);
        rpc_sim_break(sim_worker_host(w));
        break;
    case RANK_BLOCK:
        block(s, sim_worker_host(w), name, draw(s, 10, 9000));
        break;
    case RANK_SLOW:
        slow_rank(s, m);
        break;
    case RANK_SLOW_NET:
        slow_net(s, m);
        break;
    case DEVICE_FAILS:
        m->fail_next_step = true;
        break;
    case DEVICE_HANGS:
        m->hang_next_step_ns = draw(s, 100, rng_chance(&s->world.faults, 80) ? 15000 : 150000);
        break;
    case RANK_DIVERGES:
        m->corrupt_next_step = true;
        break;
    default:
        break;
    }
}

static void fault_others(struct sim *s, enum fault f)
{
    switch (f) {
    case COORDINATOR_CRASH:
        sim_coordinator_crash(s, rng_chance(&s->world.faults, 70) ? draw(s, 0, 5)
                                                                  : draw(s, 3000, 9000));
        break;
    case COORDINATOR_FREEZE:
        freeze(s, sim_coordinator_process(s),
               draw(s, 5, rng_chance(&s->world.faults, 50) ? 300 : 9000));
        break;
    case COORDINATOR_TERM:
        sim_coordinator_drain(s);
        break;
    case COORDINATOR_BLOCK:
        block(s, sim_coordinator_host(s), "the coordinator", draw(s, 10, 6000));
        break;
    case GROUP_LEAVES:
        group_leaves(s);
        break;
    case CLIENTS_BREAK:
        trace(&s->world, "fault: the clients' connections break");
        s->last_net_fault_ns = MAX(s->last_net_fault_ns, s->world.now_ns + NSEC_PER_SEC);
        sim_clients_break(s);
        break;
    default:
        break;
    }
}

static void on_fault(void *arg)
{
    struct sim *s = arg;
    enum fault f = (enum fault)rng_below(&s->world.faults, N_FAULTS);
    s->n_faults++;
    sim_note_fault(s, s->world.now_ns);
    if (f < COORDINATOR_CRASH)
        fault_rank(s, f);
    else
        fault_others(s, f);
}

void sim_faults_start(struct sim *s)
{
    for (uint32_t i = 0; i != s->plan.n_faults; i++)
        world_post(&s->world, NULL, rng_between(&s->world.faults, 0, s->plan.work_ns), on_fault, s);
}
