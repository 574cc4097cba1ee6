/* checks.c: what must hold at any time, and at the end. */
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/fleet.h"
#include "coordinator/sched_internal.h"
#include "sim.h"

enum { MAX_MESSAGES = 200000 };

/* ---- when nothing serves ---- */

int64_t sim_recovery_ns(const struct sim *s)
{
    const struct config *c = &s->config;
    int64_t detect = 2 * c->deadlines.lease + 8 * c->deadlines.step + 20 * NSEC_PER_SEC;
    int64_t join = MAX(3 * c->deadlines.step, 60 * NSEC_PER_SEC);
    int64_t dial = 2 * c->worker.reconnect_max + 10 * NSEC_PER_SEC; /* and the fleet's backoff */
    return detect + join + dial;
}

void sim_note_fault(struct sim *s, int64_t until_ns)
{
    s->last_fault_ns = MAX(s->last_fault_ns, until_ns);
}

void sim_note_away(struct sim *s, bool away)
{
    s->away_ns = away ? INT64_MAX : s->world.now_ns;
}

void sim_check_health(struct sim *s, bool serving)
{
    if (serving == s->serving)
        return;
    trace(&s->world, "cluster: %s", serving ? "serves" : "does not serve");
    s->serving = serving;
    s->no_group_ns = serving ? s->world.now_ns : INT64_MAX;
    s->last_progress_ns = s->world.now_ns;
}

uint32_t sim_count_losses(const struct sim *s, int64_t from_ns)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i != MIN(s->n_losses, (uint32_t)SIM_MAX_LOSSES); i++)
        n += s->losses[i] >= from_ns;
    return n;
}

bool sim_all_ready(const struct sim *s)
{
    for (uint32_t i = 0; i != s->plan.n_groups; i++) {
        if (!s->groups[i].epoch)
            return false;
    }
    return s->serving;
}

/* ---- groups ---- */

/* The run's group that the scheduler has under this number. */
static struct sim_group *find_group(struct sim *s, uint32_t number)
{
    const char *name = fleet_name(sim_fleet(s), number);
    for (uint32_t i = 0; name && i != s->plan.n_groups; i++) {
        if (strcmp(s->groups[i].name, name) == 0)
            return &s->groups[i];
    }
    return NULL;
}

static void lose_group(struct sim *s, struct sim_group *g)
{
    struct world *w = &s->world;
    trace(w, "cluster: group %s is lost", g->name);
    s->losses[s->n_losses++ % SIM_MAX_LOSSES] = w->now_ns;
    if (!sim_coordinator_stopping(s) &&
        (s->plan.calm || w->now_ns > s->last_fault_ns + sim_recovery_ns(s)))
        world_fail(w, "group %s went down without a cause", g->name);
}

/* What the scheduler holds against what was there after the last event. */
static void check_groups(struct sim *s, const struct sched *d)
{
    uint64_t now[SIM_MAX_GROUPS] = {0};
    for (uint32_t i = 0; i != d->n_groups; i++) {
        struct sim_group *g = sched_attached(d, i) ? find_group(s, i) : NULL;
        if (g)
            now[g - s->groups] = d->groups[i]->epoch;
    }
    for (uint32_t i = 0; i != s->plan.n_groups; i++) {
        struct sim_group *g = &s->groups[i];
        if (g->epoch && g->epoch != now[i])
            lose_group(s, g);
        if (now[i] && now[i] < g->last_epoch)
            world_fail(&s->world, "group %s: epoch %llu comes behind %llu", g->name,
                       (unsigned long long)now[i], (unsigned long long)g->last_epoch);
        g->epoch = now[i];
        g->last_epoch = MAX(g->last_epoch, now[i]);
    }
}

/* ---- the scheduler ---- */

static bool runs_unpaused(const struct sched *d)
{
    for (uint32_t i = 0; i != d->n_groups; i++) {
        const struct request *r = d->groups[i] ? d->groups[i]->running.first : NULL;
        for (; r; r = r->next) {
            if (!r->paused)
                return true;
        }
    }
    return false;
}

/* Work that nothing holds back must move on. */
static void check_progress(struct sim *s, const struct sched *d)
{
    struct world *w = &s->world;
    struct sched_stats stats;
    sched_stats(d, &stats);
    bool has_work = (stats.n_waiting && !stats.n_running) || runs_unpaused(d);
    if (!s->serving || !has_work || stats.n_steps != s->n_steps_seen) {
        s->n_steps_seen = stats.n_steps;
        s->last_progress_ns = w->now_ns;
        return;
    }
    if (w->now_ns - s->last_progress_ns > sim_recovery_ns(s))
        world_fail(w, "%u requests run and %u wait, and no step was planned for %.1f s",
                   stats.n_running, stats.n_waiting,
                   (double)(w->now_ns - s->last_progress_ns) / 1e9);
}

/* Whoever has waited in vain for room for longer than the scheduler's patience is not overtaken by
 * those behind it, on a group that could run it. Those that have run before may go on. */
static void check_overtaken(struct sim *s, const struct sched *d, const struct request *r)
{
    for (uint32_t i = 0; i != d->n_groups; i++) {
        const struct sched_group *g = d->groups[i];
        if (!g || !g->attached || sched_group_check_fits(g, r, NULL) < 0)
            continue;
        for (const struct request *x = g->running.first; x; x = x->next) {
            if (x->id > r->id && !x->requeued && x->tenant_idx == r->tenant_idx &&
                x->priority <= r->priority && x->started_ns > r->blocked_ns + SIM_PATIENCE_NS)
                world_fail(
                    &s->world,
                    "request %s waits for %.3f s, and %s behind it has started %.3f s ago on "
                    "group %u (%u and %u losses, requeued %d and %d, priorities %d and %d)",
                    r->client_id, (double)(s->world.now_ns - r->blocked_ns) / 1e9, x->client_id,
                    (double)(s->world.now_ns - x->started_ns) / 1e9, i, r->n_losses, x->n_losses,
                    r->requeued, x->requeued, r->priority, x->priority);
        }
    }
}

static void check_starvation(struct sim *s, const struct sched *d)
{
    if (d->n_waiting > SIM_SCANNED)
        return; /* it may not have been looked at */
    for (uint32_t i = 0; queue_list(d, i); i++) {
        for (const struct request *r = queue_list(d, i)->first; r; r = r->next) {
            if (r->blocked_ns && s->world.now_ns > r->blocked_ns + SIM_PATIENCE_NS)
                check_overtaken(s, d, r);
        }
    }
}

/* Who has run before is not put behind those that have not. */
static void check_requeued(struct sim *s, const struct sched *d)
{
    for (uint32_t i = 0; queue_list(d, i); i++) {
        for (const struct request *r = queue_list(d, i)->first; r; r = r->next) {
            if (r->started_ns && !r->requeued)
                world_fail(&s->world, "%s has run before and waits as if it had not", r->client_id);
        }
    }
}

/* Those that a lost group had go to the front of the queue, whatever its limit. */
static uint64_t longest_queue(const struct sim *s)
{
    uint64_t n = s->config.coordinator.limits.max_queue;
    for (uint32_t i = 0; i != s->plan.n_groups; i++)
        n += s->groups[i].limits.n_slots;
    return n;
}

void sim_check(struct sim *s)
{
    const struct sched *d = sim_scheduler(s);
    struct world *w = &s->world;
    if (!d)
        return;
    if (!sched_consistent(d))
        world_fail(w, "the scheduler's accounts do not agree");
    if (d->n_waiting > longest_queue(s))
        world_fail(w, "%u requests wait, at most %llu may", d->n_waiting,
                   (unsigned long long)longest_queue(s));
    if (d->n_waiting >= s->config.coordinator.limits.max_queue ||
        rpc_sim_n_calls(sim_coordinator_host(s)) >= s->config.coordinator.limits.max_connections)
        s->last_full_ns = w->now_ns;
    if (rpc_sim_n_messages(s->net) > MAX_MESSAGES)
        world_fail(w, "%zu messages are under way", rpc_sim_n_messages(s->net));
    check_groups(s, d);
    check_progress(s, d);
    check_requeued(s, d);
    check_starvation(s, d);
    sim_check_tenants(s, d);
    sim_check_keys(s, d);
    sim_check_metrics(s, sim_core(s));
}

/* Whoever does not read ends when its time is over. */
static void check_paused(struct sim *s, const struct request *r)
{
    unsigned number;
    if (sscanf(r->client_id, "request-%u", &number) != 1)
        return; /* check_tenants.c says so */
    int64_t ns = sim_clients_paused_ns(s, number, r->id, r->paused);
    if (ns > s->config.coordinator.deadlines.slow_reader)
        world_fail(&s->world, "%s has been paused for %.3f s", r->client_id, (double)ns / 1e9);
}

static void check_list(struct sim *s, const struct request_list *l)
{
    for (const struct request *r = l->first; r; r = r->next) {
        check_paused(s, r);
        if (r->deadline_ns && r->deadline_ns <= s->world.now_ns)
            world_fail(&s->world, "request %llu (%s) is past its deadline by %.3f s",
                       (unsigned long long)r->id, r->client_id,
                       (double)(s->world.now_ns - r->deadline_ns) / 1e9);
    }
}

void sim_check_deadlines(struct sim *s)
{
    const struct sched *d = sim_scheduler(s);
    for (uint32_t i = 0; queue_list(d, i); i++)
        check_list(s, queue_list(d, i));
    for (uint32_t i = 0; i != d->n_groups; i++) {
        if (d->groups[i])
            check_list(s, &d->groups[i]->running);
    }
}

void sim_check_end(struct sim *s)
{
    struct sched_stats stats;
    sched_stats(sim_scheduler(s), &stats);
    s->n_hits = stats.n_hits;
    s->n_preempted = stats.n_preempted;
    s->n_resumed = stats.n_resumed;
    if (stats.n_waiting || stats.n_running || stats.n_blocks_used || stats.n_slots_used)
        world_fail(&s->world,
                   "all is answered, but %u requests wait, %u run, %u blocks and %u slots are used",
                   stats.n_waiting, stats.n_running, stats.n_blocks_used, stats.n_slots_used);
}
