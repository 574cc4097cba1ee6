/* sched_check.c: what must always hold, for tests; see sched_consistent. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* Adds one table to the counts of references. */
static void count_table(uint32_t *refs, const struct block_table *t)
{
    for (uint32_t i = 0; i != t->n; i++)
        refs[t->ids[i]]++;
}

static bool slots_consistent(const struct sched_group *g, const uint8_t *slot_used)
{
    uint32_t n_used = 0;
    for (uint32_t i = 0; i != g->limits.n_slots; i++)
        n_used += slot_used[i];
    for (uint32_t i = 0; i != g->n_free_slots; i++) {
        if (slot_used[g->free_slots[i]])
            return false;
    }
    return n_used + g->n_free_slots == g->limits.n_slots && n_used <= g->n_reserved_slots;
}

static bool group_consistent(const struct sched *s, uint32_t group)
{
    const struct sched_group *g = s->groups[group];
    if (!g || !g->attached)
        return !g || g->running.n == 0;
    uint32_t *refs = alloc_array(g->limits.n_blocks, sizeof *refs);
    uint8_t *slot_used = alloc_array(g->limits.n_slots, sizeof *slot_used);
    bool ok = refs && slot_used && blocks_consistent(&g->blocks) && cache_consistent(&g->cache);
    uint64_t n_reserved = 0;
    uint32_t n_reserved_slots = 0, n_running = 0;
    for (const struct request *r = g->running.first; ok && r; r = r->next) {
        ok = r->state == REQUEST_RUNNING && r->group == group;
        n_running++;
        n_reserved += r->lease.left;
        n_reserved_slots += r->n_slots_reserved;
        count_table(refs, &r->context);
        for (uint32_t i = 0; i != r->n_seqs; i++) {
            const struct seq *q = &r->seqs[i];
            count_table(refs, &q->table);
            count_table(refs, &q->next);
            if (q->slot == REQUEST_SLOT_NONE)
                continue;
            ok = ok && !slot_used[q->slot];
            slot_used[q->slot] = 1;
        }
    }
    ok = ok && n_running == g->running.n && n_reserved == g->blocks.n_reserved &&
         n_reserved_slots == g->n_reserved_slots &&
         memcmp(refs, g->blocks.refs, g->limits.n_blocks * sizeof *refs) == 0 &&
         slots_consistent(g, slot_used);
    free(refs);
    free(slot_used);
    return ok;
}

static bool queue_consistent(const struct sched *s)
{
    uint32_t n = 0;
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; queue_list(s, i); i++) {
        const struct request *before = NULL;
        for (const struct request *r = queue_list(s, i)->first; r; before = r, r = r->next) {
            if (r->state != REQUEST_QUEUED || r->seqs || r->lease.left || r->n_slots_reserved)
                return false;
            if (r->requeued != (i == 0) || (i && r->tenant_idx != i - 1) || r->prev != before)
                return false;
            if (before && (before->priority < r->priority ||
                           (before->priority == r->priority && before->id > r->id)))
                return false;
            n++;
            n_tokens += r->n_queue_tokens;
        }
    }
    return n == s->n_waiting && n_tokens == s->n_waiting_tokens;
}

/* Every request belongs to one tenant. */
static bool tenants_consistent(const struct sched *s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i != s->n_tenants; i++) {
        if (s->tenants[i].waiting.n > s->tenants[i].n_requests)
            return false;
        n += s->tenants[i].n_requests;
    }
    return n == sched_n_requests(s);
}

bool sched_consistent(const struct sched *s)
{
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (!group_consistent(s, i))
            return false;
    }
    return queue_consistent(s) && tenants_consistent(s);
}
