/* dev.h: the thin layer that kernels are written on. One source, two builds: nvcc turns every
 * function below into an intrinsic or a line of PTX (dev_nvcc.h); the host's C++ compiler runs the
 * same kernel on an emulation of warps and shared memory (emu.h), so that every kernel is executed,
 * not only compiled, where there is no GPU.
 *
 * How a kernel is written so that both builds work:
 *
 *   struct scale_params { const float *x; float *y; uint32_t n; };      // one struct by value
 *
 *   template <int ITEMS>                                                 // .cuh or .cu
 *   DEV_KERNEL(128, 4) void scale_kernel(DEV_PARAMS(scale_params) p)    // threads, CTAs per SM
 *   {
 *       DEV_SHARED(float, tile, 128 * ITEMS);                           // flat, at the top
 *       dev_shared<uint4> stage = dev_dynamic<uint4>(0, 64);            // byte offset, elements
 *       ...
 *       float v = tile[i];           // read into a typed variable, never `auto`
 *       tile[i] = v;                 // whole elements; tile + n is a pointer; no &tile[i]
 *       dev_barrier();               // every thread of the CTA, never under a divergent branch
 *   }
 *
 *   struct dev_launch at = {.grid = {blocks, 1, 1}, .threads = 128, .shared = bytes,
 *                           .stream = stream};
 *   dev_run(at, scale_kernel<4>, params);
 *
 * Rules
 * - CTAs are one-dimensional, a multiple of 32 threads, at most 1024. Threads, CTAs and the grid
 *   are asked for by dev_thread(), dev_cta_x() ..., never by threadIdx and the like.
 * - Warp operations (mma, ldmatrix, shfl, ballot, warp_sync) are reached by all 32 lanes together:
 *   no lane has returned, none is in another branch. A CTA barrier is reached by all threads.
 * - Shared memory is touched through dev_shared<T> alone (a plain pointer for nvcc, checked for
 *   bounds, alignment and races by the emulation). Between a write and another thread's access
 *   lies dev_barrier(), or dev_warp_sync() inside a warp. shfl and mma order nothing.
 * - Global memory is plain pointers; 128-bit accesses go through dev_load16 & co.
 * - Halves are their bits: uint16_t, two of them uint32_t (the lower address in the low bits).
 * - a * b + c is two roundings in both builds (nvcc runs with -fmad=false); dev_fma is one.
 * - Code that depends on the architecture asks `DEV_ARCH >= 800` (750, 800, 860, 890, 900, 1000,
 *   1200) with the preprocessor or `if constexpr`. The emulation is built as 750, 800 and 900.
 * - Host code launches through dev_run, so that the launch configuration is executed too.
 *
 * Warpgroups (sm_90a): dev_wgmma.h. Left out: textures, cooperative groups, clusters, TMA.
 */
#ifndef GLMD_KERNELS_CUDA_DEV_H
#define GLMD_KERNELS_CUDA_DEV_H

#include <cstddef>
#include <cstdint>

enum { DEV_WARP = 32 };

/* Stream as the runtime knows it; the emulation ignores it. */
struct CUstream_st;

struct dev_launch {
    struct {
        unsigned x, y, z;
    } grid;
    unsigned threads;
    size_t shared; /* bytes of dynamic shared memory */
    struct CUstream_st *stream;
    /* May start while the kernel in front of it ends (sm_90 and later); then it calls
     * dev_grid_wait before it touches what that kernel writes. */
    bool overlaps;
};

#if defined(__CUDACC__)
#include "dev_nvcc.h" // IWYU pragma: export
#else
#include "emu.h" // IWYU pragma: export
#endif

/* ---- what is the same in both builds ---- */

DEV_FN unsigned dev_lane()
{
    return dev_thread() % DEV_WARP;
}

DEV_FN unsigned dev_warp()
{
    return dev_thread() / DEV_WARP;
}

/* Of the math library, the device's or the host's: not the same in the last places. */
DEV_FN float dev_exp(float v)
{
    return expf(v);
}
DEV_FN float dev_exp2(float v)
{
    return exp2f(v);
}
DEV_FN float dev_log(float v)
{
    return logf(v);
}
DEV_FN float dev_erf(float v)
{
    return erff(v);
}
DEV_FN float dev_tanh(float v)
{
    return tanhf(v);
}
DEV_FN float dev_abs(float v)
{
    return fabsf(v);
}
DEV_FN float dev_floor(float v)
{
    return floorf(v);
}
DEV_FN float dev_round_even(float v)
{
    return rintf(v);
}

DEV_FN uint32_t dev_half2(float lo, float hi)
{
    return (uint32_t)dev_to_half(lo) | (uint32_t)dev_to_half(hi) << 16;
}

DEV_FN float dev_half2_lo(uint32_t h)
{
    return dev_from_half((uint16_t)(h & 0xffff));
}

DEV_FN float dev_half2_hi(uint32_t h)
{
    return dev_from_half((uint16_t)(h >> 16));
}

/* All lanes get the same bits: a butterfly, whose order depends on the lane numbers alone. */
DEV_FN float dev_warp_sum(float v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2)
        v += dev_shfl_xor(v, d);
    return v;
}

DEV_FN float dev_warp_max(float v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2) {
        float other = dev_shfl_xor(v, d);
        v = v < other ? other : v;
    }
    return v;
}

/* c[16, 8] += a[16, 16] b[16, 8], FP16 with FP32 sums. Lane 4g + t holds
 *   a[0] row g      k 2t, 2t+1     a[2] row g      k 2t+8, 2t+9
 *   a[1] row g + 8  k 2t, 2t+1     a[3] row g + 8  k 2t+8, 2t+9
 *   b[0] k 2t, 2t+1 column g       b[1] k 2t+8, 2t+9 column g
 *   c[0], c[1] row g columns 2t, 2t+1     c[2], c[3] row g + 8 */
DEV_FN void dev_mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#if DEV_ARCH >= 800
    dev_mma_k16(c, a, b0, b1);
#else
    dev_mma_k8(c, a[0], a[1], b0);
    dev_mma_k8(c, a[2], a[3], b1);
#endif
}

#endif
