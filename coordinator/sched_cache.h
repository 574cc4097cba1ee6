/* sched_cache.h: contexts that stay in a group's KV cache when nobody runs them.
 *
 * A bidirectional context (prefix) can be used again only as a whole: an entry is all its blocks,
 * the last one, partly filled, included. Causal prompts share what they have in common: an entry is
 * one full block, reached through the entries of the blocks in front of it. Tenants do not see each
 * other's. Tokens are compared, hashes only find them. Entries whose blocks nobody holds are given
 * up, the least recently used first, when their memory is wanted. Pure data, loop thread.
 */
#ifndef GLMD_COORDINATOR_SCHED_CACHE_H
#define GLMD_COORDINATOR_SCHED_CACHE_H

#include "coordinator/blocks.h"

enum { CACHE_BUCKETS = 1024 };

struct cache_entry;

struct cache {
    struct blocks *blocks; /* borrowed */
    struct cache_entry *buckets[CACHE_BUCKETS];
    struct cache_entry *oldest, *newest; /* by last use */
    uint32_t n;
    uint64_t next_id;
};

/* What is looked for. */
struct cache_key {
    uint64_t tenant;
    const int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    uint32_t prefix_len; /* 0: causal */
    uint64_t hash;       /* cache_hash */
};

/* Of a prefix, which is long; 0 for a causal key. */
uint64_t cache_hash(const struct cache_key *key);

void cache_init(struct cache *c, struct blocks *blocks);
void cache_deinit(struct cache *c); /* every block is in no table */

/* Tokens of the key that are cached: all or none of a prefix, full blocks of a causal prompt. Their
 * blocks (room for blocks_for_tokens(n_tokens)); ret_blocks may be NULL. */
uint32_t cache_find(const struct cache *c, const struct cache_key *key, uint32_t *ret_blocks);
/* They have been used now. */
void cache_touch(struct cache *c, const struct cache_key *key);

/* The key's tokens are in these blocks, which a table holds. Without memory nothing is cached. */
void cache_insert(struct cache *c, const struct cache_key *key, const uint32_t *blocks);

/* Every entry's blocks are marked, and no others. */
bool cache_consistent(const struct cache *c);

#endif
