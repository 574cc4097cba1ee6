/* random.h: random numbers for tests (Marsaglia's xorshift64): the same sequence in every run. A
 * state for each file that includes this. */
#ifndef GLMD_TESTS_SUPPORT_RANDOM_H
#define GLMD_TESTS_SUPPORT_RANDOM_H

#include <assert.h>
#include <stdint.h>

/* Another sequence: *random_state() = anything but 0. */
static inline uint64_t *random_state(void)
{
    static uint64_t state = 88172645463325252u;
    return &state;
}

static inline uint32_t random_u32(void)
{
    uint64_t x = *random_state();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *random_state() = x;
    return (uint32_t)(x >> 32);
}

/* In [0, n). */
static inline uint32_t random_below(uint32_t n)
{
    assert(n);
    return random_u32() % n;
}

#endif
