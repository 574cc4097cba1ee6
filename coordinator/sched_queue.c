/* sched_queue.c: which waiting request starts next, and on which group. See sched.h. */
#include <assert.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* Whether everything that the request can need is free on the group. */
static bool has_room(const struct sched_group *g, const struct request *r)
{
    uint32_t n_slots = request_slots(r, g->limits.n_slots);
    return n_slots <= g->limits.n_slots - g->n_reserved_slots &&
           request_blocks(r, n_slots) <= blocks_available(&g->blocks);
}

/* The group with the fewest sequences, then the most free memory, of those with room. */
static uint32_t choose_group(const struct sched *s, const struct request *r)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i != s->n_groups; i++) {
        const struct sched_group *g = s->groups[i],
                                 *b = best != UINT32_MAX ? s->groups[best] : NULL;
        if (!sched_attached(s, i) || g->draining || sched_group_check_fits(g, r, NULL) < 0 ||
            !has_room(g, r))
            continue;
        if (!b || g->n_reserved_slots < b->n_reserved_slots ||
            (g->n_reserved_slots == b->n_reserved_slots &&
             blocks_available(&g->blocks) > blocks_available(&b->blocks)))
            best = i;
    }
    return best;
}

/* Starts the first waiting request if everything it can need is there. */
static bool admit_one(struct sched *s, int64_t now_ns)
{
    struct request *r = s->waiting.first;
    uint32_t group = r ? choose_group(s, r) : UINT32_MAX;
    if (group == UINT32_MAX)
        return false;
    struct sched_group *g = s->groups[group];
    uint32_t n_slots = request_slots(r, g->limits.n_slots);
    bool ok = blocks_reserve(&g->blocks, &r->lease, (uint32_t)request_blocks(r, n_slots));
    assert(ok);
    g->n_reserved_slots += n_slots;
    r->n_slots_reserved = n_slots;
    list_remove(&s->waiting, r);
    sched_start(s, group, r, now_ns);
    return true;
}

void sched_admit(struct sched *s, int64_t now_ns)
{
    while (admit_one(s, now_ns))
        ;
}
