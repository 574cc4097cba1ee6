/* wire_random.h: random plain structs of any message, and their comparison, from the tables of
 * wire_map.h. Test code. */
#ifndef GLMD_TESTS_WIRE_RANDOM_H
#define GLMD_TESTS_WIRE_RANDOM_H

#include <stdbool.h>

#include "proto/rpc/wire_arena.h"
#include "proto/rpc/wire_map.h"

struct wire_random {
    uint64_t state;
    struct wire_arena *arena; /* borrowed: owns what the structs point to */
    bool full; /* every optional field set, every list with elements; else by chance */
};

uint64_t random_u64(struct wire_random *r);
uint32_t random_below(struct wire_random *r, uint32_t n);

/* oneof_pick: which member of the outermost oneof is set, counted from 0; larger values wrap. */
void random_fill(struct wire_random *r, const struct wire_map *m, void *plain, uint32_t oneof_pick);

/* NULL, or the name of a field that differs. */
const char *plain_differ(const struct wire_map *m, const void *a, const void *b);

/* Number of members in the message's oneof; at least 1. */
uint32_t oneof_members(const struct wire_map *m);

#endif
