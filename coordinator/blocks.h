/* blocks.h: who holds which block of the ranks' KV cache.
 *
 * The memory is in the ranks; the accounts are here, in one place per group. A request reserves at
 * admission what its whole life can need (a lease), so that nothing runs out later. Tables of one
 * request share blocks by reference count (choices and beams of one context); the last, partly
 * filled block is copied when a table is forked. Pure data, loop thread.
 *
 * Cached blocks keep their contents when no table holds them any more: they are idle then, count as
 * available, and are given up (the evict callback) when nothing else is left to take.
 */
#ifndef GLMD_COORDINATOR_BLOCKS_H
#define GLMD_COORDINATOR_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/plan.h"

struct blocks {
    /* owned */
    uint32_t *refs; /* [n] tables that hold the block */
    uint32_t *free; /* stack of unused blocks, [n_free] of n */
    bool *cached;   /* [n] */
    /* state */
    uint32_t n;
    uint32_t n_free;
    uint32_t n_idle;     /* cached, and in no table */
    uint32_t n_reserved; /* promised to leases and not taken yet; <= n_free + n_idle */
    /* Uncaches something that is idle; NULL while nothing is cached. */
    void (*evict)(void *context);
    void *evict_context;
};

/* What a request was promised: `left` blocks that it does not hold yet. */
struct block_lease {
    uint32_t left;
};

/* A sequence's blocks: entry i holds tokens [16 i, 16 i + 16). */
struct block_table {
    uint32_t *ids; /* owned */
    uint32_t n;
    uint32_t capacity;
};

int blocks_init(struct blocks *b, uint32_t n);
void blocks_deinit(struct blocks *b);

static inline uint32_t blocks_for_tokens(uint32_t n_tokens)
{
    return n_tokens / PLAN_KV_BLOCK_TOKENS + (n_tokens % PLAN_KV_BLOCK_TOKENS != 0);
}

/* Blocks that a new lease could get. */
static inline uint32_t blocks_available(const struct blocks *b)
{
    return b->n_free + b->n_idle - b->n_reserved;
}

static inline uint32_t blocks_used(const struct blocks *b)
{
    return b->n - b->n_free - b->n_idle;
}

/* Promises n blocks; false when there are not enough. */
bool blocks_reserve(struct blocks *b, struct block_lease *lease, uint32_t n);
/* Gives back what is left of a lease. Every table must have been released before. */
void blocks_end_lease(struct blocks *b, struct block_lease *lease);

/* Room for the largest table a sequence can have: afterwards nothing allocates. */
int block_table_init(struct block_table *t, uint32_t max_tokens);
void block_table_deinit(struct block_table *t);

/* Takes blocks until the table covers n_tokens. The lease must cover them (asserted). */
void block_table_extend(struct blocks *b, struct block_lease *lease, struct block_table *t,
                        uint32_t n_tokens);

/* dst (empty) = a fork of src after n_tokens: whole blocks are shared; a last, partly filled block
 * becomes a block of dst's own. Returns whether *ret_copy must run before dst is used. */
bool block_table_fork(struct blocks *b, struct block_lease *lease, struct block_table *dst,
                      const struct block_table *src, uint32_t n_tokens, struct plan_copy *ret_copy);

/* Drops the table's references; blocks that nobody else holds return to the lease. */
void block_table_release(struct blocks *b, struct block_lease *lease, struct block_table *t);

/* Appends cached blocks to a table. Idle ones are paid from the lease, as if they were taken. */
void block_table_share(struct blocks *b, struct block_lease *lease, struct block_table *t,
                       const uint32_t *ids, uint32_t n);

/* A block that a table holds is to keep its contents. */
void blocks_cache(struct blocks *b, uint32_t id);
void blocks_uncache(struct blocks *b, uint32_t id);
static inline bool blocks_is_idle(const struct blocks *b, uint32_t id)
{
    return b->cached[id] && b->refs[id] == 0;
}

/* Exchanges the contents of two tables. */
void block_table_swap(struct block_table *a, struct block_table *b);

/* Whether free stack, counts and reservations agree: O(n), for tests and after failures. */
bool blocks_consistent(const struct blocks *b);

#endif
