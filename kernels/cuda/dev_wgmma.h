/* dev_wgmma.h: the tensor cores of sm_90a as warpgroups use them: asynchronously, with one operand
 * in registers and one in shared memory. Beside dev.h, in both builds.
 *
 * A warpgroup is 4 warps, threads [128 i, 128 i + 128) of the CTA. All of them reach every function
 * below together, with the same operands from shared memory.
 *
 *   d[64, N] += a[64, 16] b[N, 16]^T, FP16 with FP32 sums
 *
 * Warp w of the group has rows 16 w .. 16 w + 15 of a and d, with the fragments of dev_mma_16816:
 * its lane 4g + t holds of d, for every 8 columns j of N, d[4j .. 4j + 3]: row g columns 2t, 2t +
 * 1, then row g + 8.
 *
 * b is in shared memory: rows of 64 halves, 128 bytes apart, the first at a multiple of 1024 bytes;
 * 16-byte piece c of row r lies at place c ^ r % 8 (the 128-byte swizzle; address bits 4-6 ^= bits
 * 7-9). A descriptor says where, for wgmma: bits 0-13 the address / 16, 32-45 the bytes from 8 rows
 * to the next 8 / 16, 16-29 one (of no use with a swizzle), 62-63 the swizzle (1: 128 bytes), 49-51
 * zero for bases at 1024 bytes; 16 columns further are 32 bytes, 2 in the descriptor. (PTX ISA,
 * asynchronous warpgroup level matrix instructions.)
 *
 * Order
 * - What threads wrote to b (or waited for, of asynchronous copies) they show to the tensor cores
 *   with dev_async_fence, before the barrier.
 * - dev_wgmma_fence lies between the last change of registers (fragments, accumulators) and the
 *   first dev_wgmma that uses them.
 * - dev_wgmma only starts. Until its group has been committed and waited for nobody touches the
 *   accumulators, changes the fragments or writes b.
 */
#ifndef GLMD_KERNELS_CUDA_DEV_WGMMA_H
#define GLMD_KERNELS_CUDA_DEV_WGMMA_H

#include "dev.h"

enum { DEV_GROUP = 128, DEV_WGMMA_ALIGN = 1024 };

#if defined(__CUDACC__)
#include "dev_wgmma_nvcc.h" // IWYU pragma: export
#else
#include "emu_wgmma.h" // IWYU pragma: export
#endif

/* 16 columns further in b. */
DEV_FN uint64_t dev_wgmma_step(uint64_t b, int step)
{
    return b + 2 * (uint64_t)step;
}

DEV_FN uint64_t dev_wgmma_descriptor(uint32_t shared_address)
{
    return (uint64_t)((shared_address & 0x3ffff) >> 4) | (uint64_t)1 << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

#endif
