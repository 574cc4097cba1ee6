/* vec.h: 16 floats or 16 32-bit integers as one value, on every instruction set.
 *
 * The kernels are written once over these and compiled once per instruction set (CPU_ISA_*, see
 * kernels/CMakeLists.txt). All four versions give the same bits: every operation is exact or
 * rounds as IEEE 754 says, a*b+c is fused only in vf_fma, and sums across lanes are a fixed tree.
 * (NaN payloads excepted.) The plain C version is the definition of each operation.
 */
#ifndef GLMD_KERNELS_CPU_VEC_H
#define GLMD_KERNELS_CPU_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "watch.h"

#define VEC 16 /* lanes */

#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define VEC_FN static inline __attribute__((always_inline))
#include "vec_avx512.h"
#elif defined CPU_ISA_avx2
#define VEC_FN static inline __attribute__((always_inline))
#include "vec_avx2.h"
#else
#define VEC_FN static inline /* how far is the compiler's choice: all of it takes minutes */
#include "vec_c.h"
#endif

/* Sum of the lanes, pairing lane i with i + 8, then + 4, + 2, + 1. */
VEC_FN float vf_sum(vf a)
{
    float t[VEC] __attribute__((aligned(64)));
    vf_store(t, a);
    for (int i = 0; i < 8; i++)
        t[i] += t[i + 8];
    for (int i = 0; i < 4; i++)
        t[i] += t[i + 4];
    t[0] += t[2];
    t[1] += t[3];
    return t[0] + t[1];
}

/* The largest lane, as vf_max takes it. */
VEC_FN float vf_max_lanes(vf a)
{
    float t[VEC] __attribute__((aligned(64)));
    vf_store(t, a);
    float m = t[0];
    for (int i = 1; i < VEC; i++)
        m = m > t[i] ? m : t[i];
    return m;
}

#ifndef VEC_HAVE_MAX_LANES
VEC_FN int32_t vi_max_lanes(vi a)
{
    int32_t t[VEC] __attribute__((aligned(64)));
    vi_store(t, a);
    int32_t m = t[0];
    for (int i = 1; i < VEC; i++)
        m = m > t[i] ? m : t[i];
    return m;
}
#endif

#ifndef VEC_HAVE_SUM
VEC_FN int32_t vi_sum(vi a)
{
    int32_t t[VEC] __attribute__((aligned(64)));
    vi_store(t, a);
    int32_t s = 0;
    for (int i = 0; i < VEC; i++)
        s += t[i];
    return s;
}
#endif

#endif
