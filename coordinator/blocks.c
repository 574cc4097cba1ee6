/* blocks.c: see blocks.h. */
#include "coordinator/blocks.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

int blocks_init(struct blocks *b, uint32_t n)
{
    *b = (struct blocks){.n = n, .n_free = n};
    b->refs = alloc_array(n, sizeof *b->refs);
    b->free = alloc_array(n, sizeof *b->free);
    b->cached = alloc_array(n, sizeof *b->cached);
    if (!b->refs || !b->free || !b->cached) {
        blocks_deinit(b);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i != n; i++)
        b->free[i] = n - 1 - i; /* block 0 is taken first */
    return 0;
}

void blocks_deinit(struct blocks *b)
{
    free(b->refs);
    free(b->free);
    free(b->cached);
    *b = (struct blocks){0};
}

bool blocks_reserve(struct blocks *b, struct block_lease *lease, uint32_t n)
{
    if (n > blocks_available(b))
        return false;
    b->n_reserved += n;
    lease->left += n;
    return true;
}

void blocks_end_lease(struct blocks *b, struct block_lease *lease)
{
    assert(b->n_reserved >= lease->left);
    b->n_reserved -= lease->left;
    lease->left = 0;
}

static uint32_t take(struct blocks *b, struct block_lease *lease)
{
    assert(lease->left > 0);
    while (b->n_free == 0) {
        assert(b->n_idle > 0);
        b->evict(b->evict_context);
    }
    lease->left--;
    b->n_reserved--;
    uint32_t id = b->free[--b->n_free];
    assert(b->refs[id] == 0);
    b->refs[id] = 1;
    return id;
}

static void unref(struct blocks *b, struct block_lease *lease, uint32_t id)
{
    assert(id < b->n && b->refs[id] > 0);
    if (--b->refs[id])
        return;
    assert(b->n_free < b->n);
    if (b->cached[id])
        b->n_idle++;
    else
        b->free[b->n_free++] = id;
    lease->left++;
    b->n_reserved++;
}

int block_table_init(struct block_table *t, uint32_t max_tokens)
{
    *t = (struct block_table){.capacity = blocks_for_tokens(max_tokens)};
    t->ids = alloc_array(t->capacity, sizeof *t->ids);
    return t->ids ? 0 : -ENOMEM;
}

void block_table_deinit(struct block_table *t)
{
    assert(t->n == 0); /* released before */
    free(t->ids);
    *t = (struct block_table){0};
}

void block_table_extend(struct blocks *b, struct block_lease *lease, struct block_table *t,
                        uint32_t n_tokens)
{
    uint32_t need = blocks_for_tokens(n_tokens);
    assert(need <= t->capacity);
    while (t->n < need)
        t->ids[t->n++] = take(b, lease);
}

bool block_table_fork(struct blocks *b, struct block_lease *lease, struct block_table *dst,
                      const struct block_table *src, uint32_t n_tokens, struct plan_copy *ret_copy)
{
    uint32_t n_whole = n_tokens / PLAN_KV_BLOCK_TOKENS;
    assert(dst->n == 0 && n_whole <= dst->capacity);
    assert(blocks_for_tokens(n_tokens) <= src->n);
    for (uint32_t i = 0; i != n_whole; i++) {
        dst->ids[i] = src->ids[i];
        b->refs[src->ids[i]]++;
    }
    dst->n = n_whole;
    if (n_tokens % PLAN_KV_BLOCK_TOKENS == 0)
        return false;
    assert(n_whole < dst->capacity);
    dst->ids[dst->n++] = take(b, lease);
    *ret_copy = (struct plan_copy){.src = src->ids[n_whole], .dst = dst->ids[n_whole]};
    return true;
}

void block_table_release(struct blocks *b, struct block_lease *lease, struct block_table *t)
{
    while (t->n)
        unref(b, lease, t->ids[--t->n]);
}

void block_table_share(struct blocks *b, struct block_lease *lease, struct block_table *t,
                       const uint32_t *ids, uint32_t n)
{
    assert(n <= t->capacity - t->n);
    for (uint32_t i = 0; i != n; i++) {
        assert(b->cached[ids[i]]);
        if (b->refs[ids[i]]++ == 0) {
            assert(lease->left > 0 && b->n_idle > 0);
            lease->left--;
            b->n_reserved--;
            b->n_idle--;
        }
        t->ids[t->n++] = ids[i];
    }
}

void blocks_cache(struct blocks *b, uint32_t id)
{
    assert(b->refs[id] > 0 && !b->cached[id]);
    b->cached[id] = true;
}

void blocks_uncache(struct blocks *b, uint32_t id)
{
    assert(b->cached[id]);
    b->cached[id] = false;
    if (b->refs[id])
        return;
    b->n_idle--;
    b->free[b->n_free++] = id;
}

void block_table_swap(struct block_table *a, struct block_table *b)
{
    struct block_table t = *a;
    *a = *b;
    *b = t;
}

bool blocks_consistent(const struct blocks *b)
{
    if (b->n_free > b->n || b->n_reserved > b->n_free + b->n_idle)
        return false;
    uint32_t n_unused = 0, n_idle = 0;
    for (uint32_t i = 0; i != b->n; i++) {
        n_unused += b->refs[i] == 0 && !b->cached[i];
        n_idle += blocks_is_idle(b, i);
    }
    if (n_unused != b->n_free || n_idle != b->n_idle)
        return false;
    for (uint32_t i = 0; i != b->n_free; i++) {
        if (b->free[i] >= b->n || b->refs[b->free[i]] != 0 || b->cached[b->free[i]])
            return false;
    }
    return true;
}
