/* wire_arena.c: see wire_arena.h. */
#include "proto/rpc/wire_arena.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum { LARGE_BYTES = 1024, FIRST_CHUNK = 2048, LAST_CHUNK = 65536 };

struct wire_arena_chunk {
    struct wire_arena_chunk *next;
    uint64_t data[];
};

struct wire_arena_large {
    struct wire_arena_large *next, *prev;
    size_t size;
    uint64_t data[];
};

void wire_arena_init(struct wire_arena *a, size_t limit, size_t hint)
{
    *a = (struct wire_arena){.limit = limit,
                             .next_chunk = MIN(MAX(hint, (size_t)FIRST_CHUNK), (size_t)LAST_CHUNK)};
}

void wire_arena_deinit(struct wire_arena *a)
{
    while (a->chunks) {
        struct wire_arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    while (a->large) {
        struct wire_arena_large *next = a->large->next;
        free(a->large);
        a->large = next;
    }
    a->at = a->end = NULL;
}

static void *alloc_large(struct wire_arena *a, size_t size)
{
    struct wire_arena_large *l = malloc(sizeof *l + size);
    if (!l)
        return NULL;
    *l = (struct wire_arena_large){.next = a->large, .size = size};
    if (l->next)
        l->next->prev = l;
    a->large = l;
    a->used += size;
    return l->data;
}

void *wire_arena_alloc(struct wire_arena *a, size_t size)
{
    if (size > SIZE_MAX / 4)
        return NULL;
    size = round_up(MAX(size, (size_t)1), 8);
    if (a->limit && size > a->limit - MIN(a->used, a->limit))
        return NULL;
    if (size >= LARGE_BYTES)
        return alloc_large(a, size);
    if (!a->at || size > (size_t)(a->end - a->at)) {
        struct wire_arena_chunk *c = malloc(sizeof *c + a->next_chunk);
        if (!c)
            return NULL;
        c->next = a->chunks;
        a->chunks = c;
        a->at = (uint8_t *)c->data;
        a->end = a->at + a->next_chunk;
        a->next_chunk = MIN(a->next_chunk * 2, (size_t)LAST_CHUNK);
    }
    void *p = a->at;
    a->at += size;
    a->used += size;
    return p;
}

void *wire_arena_array(struct wire_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!mul_size(n, size, &bytes))
        return NULL;
    void *p = wire_arena_alloc(a, bytes);
    if (p)
        memset(p, 0, bytes);
    return p;
}

static void *allocator_alloc(void *arena, size_t size)
{
    return wire_arena_alloc(arena, size);
}

/* protobuf-c frees its scratch memory, which is large (its smallest piece has 32 entries of 40
 * bytes), and on failure what it has built; small pieces wait for the end of the arena. */
static void allocator_free(void *arena, void *pointer)
{
    struct wire_arena *a = arena;
    for (struct wire_arena_large *l = a->large; l; l = l->next) {
        if (l->data != pointer)
            continue;
        if (l->prev)
            l->prev->next = l->next;
        else
            a->large = l->next;
        if (l->next)
            l->next->prev = l->prev;
        a->used -= l->size;
        free(l);
        return;
    }
}

ProtobufCAllocator wire_arena_allocator(struct wire_arena *a)
{
    return (ProtobufCAllocator){
        .alloc = allocator_alloc, .free = allocator_free, .allocator_data = a};
}
