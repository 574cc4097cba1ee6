/* fleet.c: the table of groups. See fleet.h. */
#include "coordinator/fleet.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/fleet_internal.h"

/* A group that all ranks have left stays in the status for this long. */
#define FORGET_NS (600 * NSEC_PER_SEC)

/* ---- the table ---- */

static void forget(struct fleet *f, struct group *g)
{
    assert(g->n_sessions == 0 && g->state == GROUP_FORMING);
    char name[sizeof g->name];
    uint32_t number = g->number;
    memcpy(name, g->name, sizeof name);
    log_info("group %s is forgotten", name);
    f->groups[number] = NULL;
    f->n_ranks -= g->n_ranks;
    group_free(g);
    f->config.ops->gone(f->config.context, number, name);
}

/* The group that has been empty for the longest time; NULL when there is none. */
static struct group *longest_empty(const struct fleet *f)
{
    struct group *found = NULL;
    for (uint32_t i = 0; i != f->max_groups; i++) {
        struct group *g = f->groups[i];
        if (g && !g->configured && g->n_sessions == 0 && (!found || g->empty_ns < found->empty_ns))
            found = g;
    }
    return found;
}

static int64_t free_number(const struct fleet *f)
{
    for (uint32_t i = 0; i != f->max_groups; i++) {
        if (!f->groups[i])
            return i;
    }
    return -1;
}

/* Makes room at the cost of groups that are only remembered. */
static int add_group(struct fleet *f, const char *name, struct shape shape, struct group **ret,
                     struct err *e)
{
    uint64_t max_ranks = f->config.config->coordinator.limits.max_ranks;
    uint32_t n_ranks = shape.tp_size * shape.n_stages;
    struct group *old;
    while ((free_number(f) < 0 || f->n_ranks + n_ranks > max_ranks) && (old = longest_empty(f)))
        forget(f, old);
    int64_t number = free_number(f);
    if (number < 0)
        return err_set(e, -ENOSPC,
                       "group %s is one more than coordinator.limits.max_groups (%u) allows", name,
                       f->max_groups);
    if (f->n_ranks + n_ranks > max_ranks)
        return err_set(e, -ENOSPC,
                       "group %s of %u ranks is more than coordinator.limits.max_ranks (%llu) "
                       "allows beside the %u that are known",
                       name, n_ranks, (unsigned long long)max_ranks, f->n_ranks);
    int r = group_new(f, name, shape, ret);
    if (r < 0)
        return err_set(e, r, "out of memory");
    (*ret)->number = (uint32_t)number;
    f->groups[number] = *ret;
    f->n_ranks += n_ranks;
    return 0;
}

struct group *fleet_by_name(const struct fleet *f, const char *name)
{
    for (uint32_t i = 0; i != f->max_groups; i++) {
        if (f->groups[i] && strcmp(f->groups[i]->name, name) == 0)
            return f->groups[i];
    }
    return NULL;
}

int fleet_join_group(struct fleet *f, const struct wire_hello *h, struct group **ret, struct err *e)
{
    const struct shape shape = {h->tp_size, h->pp_size};
    struct group *g = fleet_by_name(f, h->group);
    bool same = g && g->tp_size == shape.tp_size && g->n_stages == shape.n_stages;
    if (g && !same && !g->configured && g->n_sessions == 0) {
        forget(f, g); /* nobody is left of its old shape */
        g = NULL;
    }
    if (!g)
        return add_group(f, h->group, shape, ret, e);
    if (g->n_sessions == 0)
        memset(g->stages, 0, g->n_stages * sizeof *g->stages);
    if (!same)
        return err_set(e, -EINVAL,
                       "group %s has %u x %u ranks (group.tensor_parallel x "
                       "group.pipeline_parallel): expected a rank of %u x %u, found one of %u x "
                       "%u%s",
                       g->name, g->tp_size, g->n_stages, g->tp_size, g->n_stages, shape.tp_size,
                       shape.n_stages,
                       g->configured ? "" : ": stop all its ranks before the shape changes");
    *ret = g;
    return 0;
}

/* ---- life ---- */

static int add_configured(struct fleet *f)
{
    const struct config *c = f->config.config;
    const struct shape shape = {(uint32_t)c->group.tensor_parallel,
                                (uint32_t)c->group.pipeline_parallel};
    if (c->group.workers != CONFIG_WORKERS_SPAWN)
        return 0;
    for (uint32_t i = 0; i != c->group.replicas; i++) {
        char name[CONFIG_MAX_GROUP_NAME + 8];
        struct err e = ERR_INIT;
        struct group *g = NULL;
        config_replica_name(c, i, name);
        int r = add_group(f, name, shape, &g, &e);
        if (r < 0 || !g) {
            log_error("%s", e.message);
            return r;
        }
        g->configured = true;
    }
    return 0;
}

int fleet_new(const struct fleet_config *config, struct fleet **ret)
{
    struct fleet *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->config = *config;
    f->max_groups = (uint32_t)config->config->coordinator.limits.max_groups;
    f->groups = alloc_array(f->max_groups, sizeof(struct group *));
    int r = f->groups ? add_configured(f) : -ENOMEM;
    if (r < 0)
        fleet_free(f);
    else
        *ret = f;
    return r;
}

void fleet_free(struct fleet *f)
{
    if (!f)
        return;
    assert(f->n_sessions == 0);
    for (uint32_t i = 0; f->groups && i != f->max_groups; i++)
        group_free(f->groups[i]);
    free(f->groups);
    buf_deinit(&f->packed);
    free(f);
}

bool fleet_pack(struct fleet *f, const struct wire_coordinator_message *m)
{
    buf_clear(&f->packed);
    int r = wire_pack_coordinator_message(m, &f->packed);
    if (r < 0)
        log_error("cannot pack a message to the ranks: %s", err_name(r));
    return r == 0;
}

void fleet_send(struct rank_session *s, const struct wire_coordinator_message *m)
{
    if (!s->ended && s->call && fleet_pack(s->fleet, m))
        rpc_send(s->call, s->fleet->packed.data, s->fleet->packed.size);
}

/* ---- groups by number ---- */

static struct group *by_number(const struct fleet *f, uint32_t group)
{
    return group < f->max_groups ? f->groups[group] : NULL;
}

uint32_t fleet_max_groups(const struct fleet *f)
{
    return f->max_groups;
}

int64_t fleet_find(const struct fleet *f, const char *name)
{
    const struct group *g = fleet_by_name(f, name);
    return g ? (int64_t)g->number : -1;
}

const char *fleet_name(const struct fleet *f, uint32_t group)
{
    const struct group *g = by_number(f, group);
    return g ? g->name : NULL;
}

bool fleet_is_ready(const struct fleet *f, uint32_t group)
{
    const struct group *g = by_number(f, group);
    return g && g->state == GROUP_READY;
}

bool fleet_is_draining(const struct fleet *f, uint32_t group)
{
    const struct group *g = by_number(f, group);
    return g && g->draining;
}

bool fleet_can_send(const struct fleet *f, uint32_t group)
{
    const struct group *g = by_number(f, group);
    return g && g->state == GROUP_READY && dispatch_has_room(&g->dispatch);
}

void fleet_limits(const struct fleet *f, uint32_t group, struct plan_limits *ret_limits,
                  uint64_t *ret_epoch)
{
    const struct group *g = by_number(f, group);
    assert(g && g->state == GROUP_READY);
    *ret_limits = g->limits;
    *ret_epoch = g->epoch;
}

void fleet_drain(struct fleet *f, uint32_t group, int64_t deadline_ns)
{
    struct group *g = by_number(f, group);
    assert(g);
    if (g->draining || f->stopping)
        return;
    log_event(LOG_LEVEL_INFO, GROUP_LOG(g), "group %s drains", g->name);
    g->draining = true;
    g->drain_end_ns = deadline_ns;
    if (g->state != GROUP_READY)
        group_leave(g, "drained");
}

void fleet_release(struct fleet *f, uint32_t group, const char *why)
{
    struct group *g = by_number(f, group);
    assert(g && g->draining);
    group_leave(g, why);
}

/* ---- all of them ---- */

bool fleet_any_ready(const struct fleet *f)
{
    for (uint32_t i = 0; i != f->max_groups; i++) {
        if (fleet_is_ready(f, i) && !fleet_is_draining(f, i))
            return true;
    }
    return false;
}

uint32_t fleet_n_sessions(const struct fleet *f)
{
    return f->n_sessions;
}

void fleet_note(struct fleet *f, const char *group, uint32_t rank, const char *what)
{
    struct group *g = fleet_by_name(f, group);
    if (g && rank < g->n_ranks)
        group_rank_error(g, rank, what);
}

void fleet_tick(struct fleet *f, int64_t now_ns)
{
    for (struct rank_session *s = f->sessions, *next; s; s = next) {
        next = s->next;
        rank_session_tick(s, now_ns);
    }
    for (uint32_t i = 0; i != f->max_groups; i++) {
        struct group *g = f->groups[i];
        if (!g)
            continue;
        group_tick(g, now_ns);
        if (!g->configured && g->n_sessions == 0 && now_ns - g->empty_ns > FORGET_NS)
            forget(f, g);
    }
}

void fleet_stop(struct fleet *f, const char *why)
{
    f->stopping = true;
    for (uint32_t i = 0; i != f->max_groups; i++) {
        if (f->groups[i])
            group_down(f->groups[i], "%s", why);
    }
    for (struct rank_session *s = f->sessions; s; s = s->next)
        rank_session_close(s, RPC_UNAVAILABLE, why);
}
