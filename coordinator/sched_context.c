/* sched_context.c: how requests use cached contexts; see sched_cache.h for what is kept.
 *
 * A lease covers what a request holds alone. Idle blocks are paid by whoever takes them; those of
 * one that runs are used for nothing, and return to the lease of whoever drops them last. So who
 * gives a block up before its end and wants one again must not have shared it: beams (their last,
 * partly filled block) and Fill (everything, between rounds) show their contexts when the round is
 * over, and a Fill that takes one from the cache pays for it besides all that it can need.
 */
#include <assert.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* The last token runs in any case: it gives the first output. */
static struct cache_key key_of(const struct request *r)
{
    return (struct cache_key){.tenant = r->tenant,
                              .tokens = r->prompt.ids.ids,
                              .n_tokens = (uint32_t)r->prompt.ids.n - 1,
                              .prefix_len = r->prompt.prefix_len,
                              .hash = r->context_hash};
}

void context_prepare(const struct sched *s, struct request *r)
{
    if (s->config.arch->context == ARCH_CONTEXT_CAUSAL)
        r->prompt.prefix_len = 0;
    struct cache_key key = key_of(r);
    r->context_hash = cache_hash(&key);
}

uint32_t context_cached(const struct sched_group *g, const struct request *r)
{
    struct cache_key key = key_of(r);
    return g->cache.n ? cache_find(&g->cache, &key, NULL) : 0;
}

uint64_t context_blocks(const struct sched_group *g, const struct request *r, uint32_t n_slots,
                        uint32_t n_hit)
{
    uint64_t n = request_blocks(r, n_slots);
    if (n_hit == 0)
        return n;
    struct cache_key key = key_of(r);
    uint32_t ids[PLAN_MAX_TOKENS / PLAN_KV_BLOCK_TOKENS], n_blocks = blocks_for_tokens(n_hit);
    assert(n_blocks <= ARRAY_LEN(ids));
    cache_find(&g->cache, &key, ids);
    if (r->kind == REQUEST_FILL)
        return n + n_blocks;
    for (uint32_t i = 0; i != n_hit / PLAN_KV_BLOCK_TOKENS; i++)
        n -= !blocks_is_idle(&g->blocks, ids[i]);
    return n +
           (n_hit % PLAN_KV_BLOCK_TOKENS != 0); /* the last one is copied, and held until then */
}

void context_take(struct sched_group *g, struct request *r)
{
    struct cache_key key = key_of(r);
    uint32_t ids[PLAN_MAX_TOKENS / PLAN_KV_BLOCK_TOKENS];
    uint32_t n = cache_find(&g->cache, &key, ids);
    assert(n == r->n_hit);
    block_table_share(&g->blocks, &r->lease, &r->context, ids, blocks_for_tokens(n));
    cache_touch(&g->cache, &key);
    g->n_hits++;
    g->n_hit_tokens += n;
}

void context_give(struct sched_group *g, struct request *r, const struct seq *q)
{
    struct cache_key key = key_of(r);
    if (r->context_cached || q->table.n * PLAN_KV_BLOCK_TOKENS < key.n_tokens)
        return;
    r->context_cached = true;
    cache_insert(&g->cache, &key, q->table.ids);
}
