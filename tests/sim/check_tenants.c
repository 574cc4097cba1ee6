/* check_tenants.c: what tenants may expect of a scheduler: each request counts for whoever sent it,
 * nobody sees another one's contexts, and the least served one is next. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"
#include "sim.h"

enum { MAX_REQUEUED = 64 };

/* Whose tokens the blocks of a group hold. */
struct owners {
    uint64_t epoch, step; /* as they were looked at */
    uint32_t n;
    bool *owned;      /* [n] */
    uint64_t *tenant; /* [n], of the owned ones */
};

struct sim_tenants {
    uint32_t n_coordinators;         /* that there were: another one counts anew */
    uint64_t last_id;                /* of the requests that were there after the last event, */
    int64_t last_ns;                 /* when that was, */
    uint64_t requeued[MAX_REQUEUED]; /* who waited and had run before, */
    uint32_t n_requeued;
    uint32_t n_waiting;                 /* how many waited, */
    bool present[SCHED_MAX_TENANTS];    /* which tenants had requests, */
    uint64_t served[SCHED_MAX_TENANTS]; /* and what its places had been served */
    struct owners owners[SIM_MAX_GROUPS];
};

static void *must_alloc(size_t n, size_t size)
{
    void *p = alloc_array(n, size);
    if (!p)
        abort();
    return p;
}

void sim_tenants_start(struct sim *s)
{
    s->tenants = must_alloc(1, sizeof *s->tenants);
}

static void owners_deinit(struct owners *o)
{
    free(o->owned);
    free(o->tenant);
    *o = (struct owners){0};
}

void sim_tenants_free(struct sim *s)
{
    for (uint32_t i = 0; i != SIM_MAX_GROUPS; i++)
        owners_deinit(&s->tenants->owners[i]);
    free(s->tenants);
    s->tenants = NULL;
}

/* ---- whose a request is ---- */

static void check_origin(struct sim *s, const struct request *r)
{
    unsigned number;
    struct sim_origin o;
    if (sscanf(r->client_id, "request-%u", &number) != 1 || !sim_clients_origin(s, number, &o))
        world_fail(&s->world, "request \"%s\" is nobody's", r->client_id);
    if (r->tenant != o.tenant)
        world_fail(&s->world, "%s counts for tenant %016llx, expected %016llx", r->client_id,
                   (unsigned long long)r->tenant, (unsigned long long)o.tenant);
    if (r->priority != o.priority)
        world_fail(&s->world, "%s has priority %d, expected %d", r->client_id, r->priority,
                   o.priority);
    if (r->deadline_ns == 0 || (o.deadline_ns && r->deadline_ns > r->arrived_ns + o.deadline_ns))
        world_fail(&s->world, "%s may take %.3f s, its client waits for %.3f s", r->client_id,
                   (double)(r->deadline_ns - r->arrived_ns) / 1e9, (double)o.deadline_ns / 1e9);
}

/* Those that have come since the last event, of one list. Returns the newest one's number. */
static uint64_t check_new(struct sim *s, const struct request_list *l, uint64_t last_id)
{
    uint64_t newest = last_id;
    for (const struct request *r = l->first; r; r = r->next) {
        if (r->id <= last_id)
            continue;
        check_origin(s, r);
        newest = MAX(newest, r->id);
    }
    return newest;
}

/* ---- contexts ---- */

/* A block that a table has belongs to its tenant. Who finds another one's there has either got the
 * block anew, then the cache does not have it, or has taken it from the cache. */
static void own_table(struct sim *s, const struct sched_group *g, struct owners *o,
                      const struct request *r, const struct block_table *t)
{
    for (uint32_t i = 0; i != t->n; i++) {
        uint32_t b = t->ids[i];
        if (o->owned[b] && o->tenant[b] != r->tenant && g->blocks.cached[b])
            world_fail(&s->world, "%s of tenant %016llx reads block %u, a context of %016llx",
                       r->client_id, (unsigned long long)r->tenant, b,
                       (unsigned long long)o->tenant[b]);
        o->owned[b] = true;
        o->tenant[b] = r->tenant;
    }
}

static void check_contexts(struct sim *s, const struct sched_group *g, struct owners *o)
{
    if (o->epoch != g->epoch) {
        owners_deinit(o);
        o->n = g->limits.n_blocks;
        o->owned = must_alloc(o->n, sizeof *o->owned);
        o->tenant = must_alloc(o->n, sizeof *o->tenant);
        o->epoch = g->epoch;
    } else if (o->step == g->step) {
        return; /* tables grow with steps only */
    }
    o->step = g->step;
    for (uint32_t b = 0; b != o->n; b++)
        o->owned[b] = o->owned[b] && (g->blocks.refs[b] || g->blocks.cached[b]);
    for (const struct request *r = g->running.first; r; r = r->next) {
        own_table(s, g, o, r, &r->context);
        for (uint32_t i = 0; i != r->n_seqs; i++) {
            own_table(s, g, o, r, &r->seqs[i].table);
            own_table(s, g, o, r, &r->seqs[i].next);
        }
    }
}

/* ---- shares ---- */

/* What a request that has started has been given so far, at least: its prompt, and each token of an
 * output twice. */
static uint64_t given(const struct request *r)
{
    if (r->started_ns == 0)
        return 0;
    return r->n_queue_tokens + (r->kind == REQUEST_SCORE ? 0 : 2 * r->n_completion_tokens);
}

static void add_given(const struct request_list *l, uint64_t sums[SCHED_MAX_TENANTS])
{
    for (const struct request *r = l->first; r; r = r->next)
        sums[r->tenant_idx] += given(r);
}

/* Nobody was served less than what those have got that are there. */
static void check_served(struct sim *s, const struct sched *d)
{
    uint64_t sums[SCHED_MAX_TENANTS];
    memset(sums, 0, d->n_tenants * sizeof *sums);
    for (uint32_t i = 0; queue_list(d, i); i++)
        add_given(queue_list(d, i), sums);
    for (uint32_t i = 0; i != d->n_groups; i++) {
        if (d->groups[i])
            add_given(&d->groups[i]->running, sums);
    }
    for (uint32_t i = 0; i != d->n_tenants; i++) {
        if (d->tenants[i].served < sums[i])
            world_fail(&s->world,
                       "tenant %016llx was served %llu tokens, and its requests have %llu",
                       (unsigned long long)d->tenants[i].id,
                       (unsigned long long)d->tenants[i].served, (unsigned long long)sums[i]);
    }
}

/* Who comes back after a while gets no credit for the time that it did not use: it was served no
 * less than the least served one of those that were there all the time. */
static void check_lift(struct sim *s, const struct sched *d)
{
    const struct sim_tenants *t = s->tenants;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i != d->n_tenants; i++) {
        if (t->present[i] && d->tenants[i].n_requests)
            least = MIN(least, t->served[i]); /* or more */
    }
    for (uint32_t i = 0; i != d->n_tenants && least != UINT64_MAX; i++) {
        if (!t->present[i] && d->tenants[i].n_requests && d->tenants[i].served < least)
            world_fail(&s->world,
                       "tenant %016llx comes and was served %llu, the others %llu or more",
                       (unsigned long long)d->tenants[i].id,
                       (unsigned long long)d->tenants[i].served, (unsigned long long)least);
    }
}

static bool starts_now(const struct sim *s, const struct request *r)
{
    return r->started_ns == s->world.now_ns && !r->requeued;
}

/* Whether r could have had the room that x has taken: it needs no more, or it has waited for so
 * long that nobody else may take what there is. */
static bool could_start(const struct sim *s, const struct sched_group *g, const struct request *x,
                        const struct request *r)
{
    if (sched_group_check_fits(g, r, NULL) < 0)
        return false;
    if (r->blocked_ns && s->world.now_ns > r->blocked_ns + SIM_PATIENCE_NS)
        return true;
    uint32_t n_slots = request_slots(r, g->limits.n_slots);
    return n_slots <= x->n_slots_reserved && request_blocks(r, n_slots) <= x->n_blocks_reserved;
}

/* Whether it did after the last event, too. */
static bool has_waited(const struct sim_tenants *t, const struct request *r)
{
    for (uint32_t i = 0; r->requeued && i != t->n_requeued; i++) {
        if (t->requeued[i] == r->id)
            return true;
    }
    return !r->requeued && r->id <= t->last_id;
}

/* x starts, and r waits, which was there before. */
static void check_turn(struct sim *s, const struct sched *d, const struct sched_group *g,
                       const struct request *x, const struct request *r)
{
    uint64_t served_x = s->tenants->served[x->tenant_idx]; /* or more, when it started */
    uint64_t served_r = d->tenants[r->tenant_idx].served;  /* or less */
    bool is_first = r->priority > x->priority || r->requeued || served_r < served_x;
    if (has_waited(s->tenants, r) && is_first && could_start(s, g, x, r))
        world_fail(&s->world,
                   "%s (priority %d, its tenant was served %llu) starts, and %s (priority %d, "
                   "served %llu%s) waits",
                   x->client_id, x->priority, (unsigned long long)served_x, r->client_id,
                   r->priority, (unsigned long long)served_r,
                   r->requeued ? ", has run before" : "");
}

/* Those of x's tenant are the matter of check_starvation (checks.c), unless they have run before.
 */
static void check_start(struct sim *s, const struct sched *d, const struct sched_group *g,
                        const struct request *x)
{
    for (uint32_t i = 0; queue_list(d, i); i++) {
        const struct request *r = queue_list(d, i)->first;
        for (; r && r->priority >= x->priority; r = r->next) {
            if (r->requeued || r->tenant_idx != x->tenant_idx)
                check_turn(s, d, g, x, r);
        }
    }
}

static void check_turns(struct sim *s, const struct sched *d)
{
    for (uint32_t i = 0; i != d->n_groups; i++) {
        const struct request *r = d->groups[i] ? d->groups[i]->running.first : NULL;
        for (; r; r = r->next) {
            if (starts_now(s, r))
                check_start(s, d, d->groups[i], r);
        }
    }
}

/* ---- all of it ---- */

void sim_check_tenants(struct sim *s, const struct sched *d)
{
    struct sim_tenants *t = s->tenants;
    if (t->n_coordinators != s->n_coordinators) {
        t->n_coordinators = s->n_coordinators;
        t->last_id = 0;
        memset(t->served, 0, sizeof t->served);
        memset(t->present, 0, sizeof t->present);
    }
    check_served(s, d);
    check_lift(s, d);
    /* Otherwise one that waits may not have been looked at, and what starts now (a frozen process
     * has all its events at once) may have started before something else happened. */
    uint64_t n_waited = t->n_waiting + (d->next_request_id - 1 - t->last_id);
    if (n_waited <= SIM_SCANNED && t->last_ns != s->world.now_ns)
        check_turns(s, d);
    t->last_ns = s->world.now_ns;
    t->n_waiting = d->n_waiting;
    t->n_requeued = 0;
    for (const struct request *r = d->requeued.first; r && t->n_requeued != MAX_REQUEUED;
         r = r->next)
        t->requeued[t->n_requeued++] = r->id;
    for (uint32_t i = 0; i != d->n_tenants; i++) {
        t->served[i] = d->tenants[i].served;
        t->present[i] = d->tenants[i].n_requests != 0;
    }
    uint64_t newest = t->last_id;
    for (uint32_t i = 0; queue_list(d, i); i++)
        newest = MAX(newest, check_new(s, queue_list(d, i), t->last_id));
    assert(d->n_groups <= SIM_MAX_GROUPS);
    for (uint32_t i = 0; i != d->n_groups; i++) {
        const struct sched_group *g = d->groups[i];
        if (!g || !g->attached)
            continue;
        newest = MAX(newest, check_new(s, &g->running, t->last_id));
        check_contexts(s, g, &t->owners[i]);
    }
    t->last_id = newest;
}
