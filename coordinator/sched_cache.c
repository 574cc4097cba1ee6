/* sched_cache.c: see sched_cache.h. */
#include "coordinator/sched_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct cache_entry {
    struct cache_entry *next_in_bucket;
    struct cache_entry *older, *newer;
    uint64_t id, hash;
    uint64_t tenant;
    uint64_t parent; /* causal: id of the entry of the block in front; 0 = it is the first */
    uint32_t prefix_len;
    uint32_t n_tokens, n_blocks;
    uint32_t *blocks; /* [n_blocks], behind the tokens in one allocation */
    int32_t tokens[]; /* [n_tokens] */
};

/* One piece of a key: a whole prefix, or one block of a causal prompt. */
struct piece {
    uint64_t tenant, parent;
    const int32_t *tokens;
    uint32_t n_tokens, prefix_len;
    uint64_t hash;
};

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

static uint64_t hash_of(const struct piece *p)
{
    uint64_t h = mix(mix(mix(0, p->tenant), p->parent), p->prefix_len);
    for (uint32_t i = 0; i != p->n_tokens; i++)
        h = mix(h, (uint32_t)p->tokens[i]);
    return h;
}

static struct piece make_piece(const struct cache_key *key, uint32_t first, uint32_t n,
                               uint64_t parent)
{
    struct piece p = {.tenant = key->tenant,
                      .parent = parent,
                      .tokens = key->tokens + first,
                      .n_tokens = n,
                      .prefix_len = key->prefix_len};
    p.hash = key->prefix_len ? key->hash : hash_of(&p);
    return p;
}

uint64_t cache_hash(const struct cache_key *key)
{
    struct piece p = {.tenant = key->tenant,
                      .tokens = key->tokens,
                      .n_tokens = key->n_tokens,
                      .prefix_len = key->prefix_len};
    return key->prefix_len ? hash_of(&p) : 0;
}

/* Pieces of a key, one behind the other; false: there are no more. A context that fills no block is
 * not worth an entry. */
static bool next_piece(const struct cache_key *key, uint32_t first, uint64_t parent,
                       struct piece *ret)
{
    uint32_t left = key->n_tokens - first;
    if (left < PLAN_KV_BLOCK_TOKENS || (key->prefix_len && first))
        return false;
    *ret = make_piece(key, first, key->prefix_len ? left : PLAN_KV_BLOCK_TOKENS, parent);
    return true;
}

static struct cache_entry *find(const struct cache *c, const struct piece *p)
{
    struct cache_entry *e = c->buckets[p->hash % CACHE_BUCKETS];
    for (; e; e = e->next_in_bucket) {
        if (e->hash == p->hash && e->tenant == p->tenant && e->parent == p->parent &&
            e->prefix_len == p->prefix_len && e->n_tokens == p->n_tokens &&
            memcmp(e->tokens, p->tokens, p->n_tokens * sizeof *p->tokens) == 0)
            return e;
    }
    return NULL;
}

static void unlink_age(struct cache *c, struct cache_entry *e)
{
    *(e->older ? &e->older->newer : &c->oldest) = e->newer;
    *(e->newer ? &e->newer->older : &c->newest) = e->older;
}

static void link_newest(struct cache *c, struct cache_entry *e)
{
    e->older = c->newest;
    e->newer = NULL;
    *(c->newest ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

static void drop(struct cache *c, struct cache_entry *e)
{
    struct cache_entry **at = &c->buckets[e->hash % CACHE_BUCKETS];
    while (*at != e)
        at = &(*at)->next_in_bucket;
    *at = e->next_in_bucket;
    unlink_age(c, e);
    for (uint32_t i = 0; i != e->n_blocks; i++)
        blocks_uncache(c->blocks, e->blocks[i]);
    c->n--;
    free(e);
}

static bool has_idle(const struct cache *c, const struct cache_entry *e)
{
    for (uint32_t i = 0; i != e->n_blocks; i++) {
        if (blocks_is_idle(c->blocks, e->blocks[i]))
            return true;
    }
    return false;
}

/* The least recently used entry that frees something. */
static void evict(void *context)
{
    struct cache *c = context;
    struct cache_entry *e = c->oldest;
    while (!has_idle(c, e))
        e = e->newer;
    drop(c, e);
}

void cache_init(struct cache *c, struct blocks *blocks)
{
    *c = (struct cache){.blocks = blocks, .next_id = 1};
    blocks->evict = evict;
    blocks->evict_context = c;
}

void cache_deinit(struct cache *c)
{
    for (struct cache_entry *e = c->oldest, *newer; e; e = newer) {
        newer = e->newer;
        drop(c, e);
    }
}

uint32_t cache_find(const struct cache *c, const struct cache_key *key, uint32_t *ret_blocks)
{
    uint32_t n = 0, n_blocks = 0;
    uint64_t parent = 0;
    struct piece p;
    while (next_piece(key, n, parent, &p)) {
        const struct cache_entry *e = find(c, &p);
        if (!e)
            break;
        if (ret_blocks)
            memcpy(ret_blocks + n_blocks, e->blocks, e->n_blocks * sizeof *ret_blocks);
        n += e->n_tokens;
        n_blocks += e->n_blocks;
        parent = e->id;
    }
    return n;
}

void cache_touch(struct cache *c, const struct cache_key *key)
{
    uint32_t n = 0;
    uint64_t parent = 0;
    struct piece p;
    struct cache_entry *e;
    while (next_piece(key, n, parent, &p) && (e = find(c, &p))) {
        unlink_age(c, e);
        link_newest(c, e);
        n += e->n_tokens;
        parent = e->id;
    }
}

static struct cache_entry *new_entry(struct cache *c, const struct piece *p, const uint32_t *blocks)
{
    uint32_t n_blocks = blocks_for_tokens(p->n_tokens);
    struct cache_entry *e =
        malloc(sizeof *e + p->n_tokens * sizeof *e->tokens + n_blocks * sizeof *e->blocks);
    if (!e)
        return NULL;
    *e = (struct cache_entry){.id = c->next_id++,
                              .hash = p->hash,
                              .tenant = p->tenant,
                              .parent = p->parent,
                              .prefix_len = p->prefix_len,
                              .n_tokens = p->n_tokens,
                              .n_blocks = n_blocks,
                              .blocks = (uint32_t *)(e->tokens + p->n_tokens)};
    memcpy(e->tokens, p->tokens, p->n_tokens * sizeof *e->tokens);
    memcpy(e->blocks, blocks, n_blocks * sizeof *e->blocks);
    for (uint32_t i = 0; i != n_blocks; i++)
        blocks_cache(c->blocks, blocks[i]);
    e->next_in_bucket = c->buckets[e->hash % CACHE_BUCKETS];
    c->buckets[e->hash % CACHE_BUCKETS] = e;
    link_newest(c, e);
    c->n++;
    return e;
}

/* Whether a block is an entry's already: it came from the cache, whose entry was given up under
 * another name since. */
static bool any_cached(const struct cache *c, const uint32_t *blocks, uint32_t n)
{
    for (uint32_t i = 0; i != n; i++) {
        if (c->blocks->cached[blocks[i]])
            return true;
    }
    return false;
}

void cache_insert(struct cache *c, const struct cache_key *key, const uint32_t *blocks)
{
    uint32_t n = 0;
    uint64_t parent = 0;
    struct piece p;
    while (next_piece(key, n, parent, &p)) {
        struct cache_entry *e = find(c, &p);
        const uint32_t *own = blocks + n / PLAN_KV_BLOCK_TOKENS;
        if (!e && !any_cached(c, own, blocks_for_tokens(p.n_tokens)))
            e = new_entry(c, &p, own);
        if (!e)
            return;
        n += e->n_tokens;
        parent = e->id;
    }
}

bool cache_consistent(const struct cache *c)
{
    uint32_t n = 0, n_blocks = 0, n_marked = 0;
    for (const struct cache_entry *e = c->oldest; e; e = e->newer) {
        n++;
        n_blocks += e->n_blocks;
        for (uint32_t i = 0; i != e->n_blocks; i++) {
            if (!c->blocks->cached[e->blocks[i]])
                return false;
        }
    }
    for (uint32_t i = 0; i != c->blocks->n; i++)
        n_marked += c->blocks->cached[i];
    return n == c->n && n_blocks == n_marked;
}
