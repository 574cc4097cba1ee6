/* philox.h: Philox4x32-10, the counter-based generator behind every random choice.
 *
 * Four 32-bit words as a pure function of a key and a counter: no state moves between processes,
 * every rank draws the same number, and a replay is exact. Source: Salmon, Moraes, Dror, Shaw,
 * "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#ifndef GLMD_KERNELS_PHILOX_H
#define GLMD_KERNELS_PHILOX_H

#include <stdint.h>

#include "kernels/detmath.h"

struct philox {
    uint32_t word[4];
};

DET_FN struct philox philox4x32(uint64_t seed, struct philox counter)
{
    uint32_t key0 = (uint32_t)seed;
    uint32_t key1 = (uint32_t)(seed >> 32);
    uint32_t *c = counter.word;
    for (int round = 0; round != 10; round++) {
        uint64_t p0 = UINT64_C(0xD2511F53) * c[0];
        uint64_t p1 = UINT64_C(0xCD9E8D57) * c[2];
        uint32_t hi0 = (uint32_t)(p0 >> 32);
        uint32_t hi1 = (uint32_t)(p1 >> 32);
        c[0] = hi1 ^ c[1] ^ key0;
        c[1] = (uint32_t)p1;
        c[2] = hi0 ^ c[3] ^ key1;
        c[3] = (uint32_t)p0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

/* Uniform in [0, 1), 53 bits. */
DET_FN double philox_uniform(struct philox p)
{
    return ((double)(p.word[0] >> 5) * 0x1p26 + (double)(p.word[1] >> 6)) * 0x1p-53;
}

#endif
