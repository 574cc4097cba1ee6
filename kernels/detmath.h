/* detmath.h: exp and log with the same bits everywhere: whatever the C library, the compiler and
 * the device.
 *
 * Ranks of one group may run on hosts with different C libraries, and all of them must choose the
 * same token and report the same bits; so must a GPU and the CPU it is checked against. Plain IEEE
 * arithmetic in a fixed order; the build forbids contraction to fused multiply-adds (-ffp-contract=
 * off, and -fmad=false for nvcc). The loops over det_expf vectorise.
 */
#ifndef GLMD_KERNELS_DETMATH_H
#define GLMD_KERNELS_DETMATH_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DET_FN static inline __host__ __device__
#else
#define DET_FN static inline
#endif

/* exp(x) for x <= 0, relative error below 2e-7; exactly 0 below -87 (and there the true value is
 * below 1.7e-38). */
DET_FN float det_expf(float x)
{
    /* Without a branch, so that loops over it vectorise: below -87 compute exp(0), return 0. */
    uint32_t keep = 0u - (uint32_t)(x >= -87.0f);
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= keep;
    memcpy(&x, &bits, sizeof x);
    /* n = round(x / ln 2): adding 1.5 * 2^23 leaves the integer in the low mantissa bits. */
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f; /* ln 2 in two parts; the first product is exact */
    r = r - n * -2.12194440e-4f;
    /* Minimax polynomial of exp on [-ln2/2, ln2/2] (Cephes expf). */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23; /* 2^n; the bits of 1.5 * 2^23 leave on top */
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    float y = p * scale;
    memcpy(&bits, &y, sizeof bits);
    bits &= keep;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* Natural logarithm of a positive, normal x; relative error below 1e-15. */
DET_FN double det_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    bits = (bits & UINT64_C(0x000fffffffffffff)) | UINT64_C(0x3ff0000000000000);
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) { /* m in [sqrt(1/2), sqrt(2)) */
        m *= 0.5;
        exponent++;
    }
    /* log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172 */
    double s = (m - 1.0) / (m + 1.0);
    double s2 = s * s;
    double sum = 0.0;
    for (int k = 23; k >= 1; k -= 2)
        sum = sum * s2 + 1.0 / k;
    return 2.0 * s * sum + exponent * 0.69314718055994530942;
}

#endif
