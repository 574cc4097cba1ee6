/* fleet_status.c: groups and ranks as operators see them. See fleet.h. */
#include <assert.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/fleet_internal.h"

static enum wire_rank_state rank_state(const struct rank *k)
{
    const struct rank_session *s = k->current;
    if (!s)
        return *k->last_error ? WIRE_RANK_FAILED : WIRE_RANK_ABSENT;
    if (!s->loaded)
        return WIRE_RANK_LOADING;
    if (!group_in_epoch(s))
        return WIRE_RANK_LOADED;
    return s->ready ? WIRE_RANK_READY : WIRE_RANK_JOINING;
}

uint32_t fleet_n_ranks(const struct fleet *f, uint32_t group)
{
    return f->groups[group] ? f->groups[group]->n_ranks : 0;
}

bool fleet_rank_serves(const struct fleet *f, uint32_t group, uint32_t rank)
{
    const struct group *g = f->groups[group];
    const struct rank_session *s = g && rank < g->n_ranks ? g->ranks[rank].current : NULL;
    return s && !s->ended && s->loaded && !s->draining;
}

static enum wire_group_state group_state(const struct group *g)
{
    if (g->n_sessions == 0 && (g->draining || !g->configured))
        return WIRE_GROUP_GONE;
    if (g->draining)
        return WIRE_GROUP_DRAINING;
    if (g->state == GROUP_READY)
        return WIRE_GROUP_READY;
    return g->was_ready ? WIRE_GROUP_DEGRADED : WIRE_GROUP_FORMING;
}

static void rank_status(const struct group *g, uint32_t i, int64_t now_ns,
                        struct wire_rank_status *ret)
{
    const struct rank *k = &g->ranks[i];
    const struct rank_session *s = k->current;
    *ret = (struct wire_rank_status){
        .rank = i,
        .stage = i / g->tp_size,
        .state = rank_state(k),
        .last_error = k->last_error,
        .restarts = k->n_sessions ? k->n_sessions - 1 : 0,
    };
    if (!s)
        return;
    const struct dispatch_step *oldest = dispatch_oldest(&g->dispatch);
    ret->host = s->host;
    ret->pid = s->pid;
    ret->device = s->device;
    ret->description = s->description;
    ret->collectives = s->ready ? s->collectives : "";
    ret->weights_bytes = s->memory.weights;
    ret->kv_bytes = s->memory.kv;
    ret->scratch_bytes = s->memory.scratch;
    ret->loaded_bytes = s->loaded ? s->beat.total_bytes : s->beat.loaded_bytes;
    ret->total_bytes = s->beat.total_bytes;
    ret->step = s->beat.step;
    if (oldest && !oldest->answered[i])
        ret->step_age_ms = (uint64_t)MAX((now_ns - oldest->sent_ns) / NSEC_PER_MSEC, INT64_C(1));
    ret->compute_ms_avg = s->compute_ns_avg / (double)NSEC_PER_MSEC;
    ret->fenced_messages = s->beat.fenced_messages;
}

void fleet_status(const struct fleet *f, uint32_t group, int64_t now_ns,
                  struct fleet_group_status *ret)
{
    const struct group *g = f->groups[group];
    assert(g);
    for (uint32_t i = 0; i != g->n_ranks; i++)
        rank_status(g, i, now_ns, &ret->ranks[i]);
    for (uint32_t i = 0; i != g->n_stages; i++)
        ret->stage_layers[i] = g->stages[i].layer_end - g->stages[i].layer_begin;
    ret->group = (struct wire_group_status){
        .id = g->name,
        .epoch = g->epoch,
        .state = group_state(g),
        .tp_size = g->tp_size,
        .pp_size = g->n_stages,
        .stage_layers = ret->stage_layers,
        .n_stage_layers = g->n_stages,
        .ranks = ret->ranks,
        .n_ranks = g->n_ranks,
        .last_error = g->last_error,
    };
}

/* ---- numbers ---- */

uint64_t fleet_restarts(const struct fleet *f, enum fleet_restart reason)
{
    return f->restarts[reason];
}

uint64_t fleet_n_fenced(const struct fleet *f)
{
    return f->n_fenced;
}

void fleet_ready_times(const struct fleet *f, uint32_t group, struct fleet_ready_times *ret)
{
    const struct group *g = f->groups[group];
    assert(g);
    *ret = g->times;
}

const struct wire_heartbeat *fleet_heartbeat(const struct fleet *f, uint32_t group, uint32_t rank,
                                             int64_t *ret_heard_ns)
{
    const struct group *g = f->groups[group];
    assert(g && rank < g->n_ranks);
    const struct rank_session *s = g->ranks[rank].current;
    if (!s)
        return NULL;
    *ret_heard_ns = s->heard_ns;
    return &s->beat;
}
