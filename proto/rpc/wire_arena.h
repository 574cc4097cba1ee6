/* wire_arena.h: memory of one unpacked message: many small pieces, a limit, one release.
 *
 * Small pieces are cut from chunks and never freed one by one. Large ones have a malloc of their
 * own and can be freed: protobuf-c takes scratch memory of that kind while it unpacks. Not
 * thread-safe: an arena belongs to whoever holds the message.
 */
#ifndef GLMD_PROTO_RPC_WIRE_ARENA_H
#define GLMD_PROTO_RPC_WIRE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

struct wire_arena_chunk;
struct wire_arena_large;

struct wire_arena {
    struct wire_arena_chunk *chunks; /* owned */
    struct wire_arena_large *large;  /* owned, doubly linked */
    uint8_t *at, *end;               /* free part of the newest chunk */
    size_t used;                     /* bytes handed out and not freed */
    size_t limit;                    /* 0 = none */
    size_t next_chunk;               /* size of the next chunk */
};

/* `hint`: bytes expected, for the first chunk. */
void wire_arena_init(struct wire_arena *a, size_t limit, size_t hint);
void wire_arena_deinit(struct wire_arena *a);

/* 8-byte aligned, not zeroed; NULL over the limit or out of memory. */
void *wire_arena_alloc(struct wire_arena *a, size_t size);
/* Zeroed array; NULL as above or when the product overflows. n = 0 gives a valid pointer. */
void *wire_arena_array(struct wire_arena *a, size_t n, size_t size);

/* For protobuf-c; borrows the arena. */
ProtobufCAllocator wire_arena_allocator(struct wire_arena *a);

#endif
