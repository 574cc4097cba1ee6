/* vmath.h: exp2, the normal distribution and the logistic function over vec.h. Polynomials fitted
 * for this file (least squares on Chebyshev nodes, reweighted towards the largest error),
 * coefficients rounded to binary32; errors were measured against the double-precision library.
 */
#ifndef GLMD_KERNELS_CPU_VMATH_H
#define GLMD_KERNELS_CPU_VMATH_H

#include "kernels/kernels.h"
#include "vec.h"

/* 2^x for x below 127; relative error below 1.2e-7; 0 below -126. NaN stays NaN. The whole number
 * is rounded, and moved to the exponent, by adding 1.5 * 2^23. */
VEC_FN vf vf_exp2(vf x)
{
    const vf lowest = vf_set1(-126.0f), shift = vf_set1(0x1.8p23f);
    vf t = vf_max(lowest, x); /* in this order NaN passes */
    vf n = vf_add(t, shift);
    vf f = vf_sub(t, vf_sub(n, shift)); /* exact, [-0.5, 0.5] */
    vf p = vf_set1(0x1.41fbdap-13f);
    p = vf_fma(p, f, vf_set1(0x1.5f3e50p-10f));
    p = vf_fma(p, f, vf_set1(0x1.3b2d4cp-7f));
    p = vf_fma(p, f, vf_set1(0x1.c6aee8p-5f));
    p = vf_fma(p, f, vf_set1(0x1.ebfbdcp-3f));
    p = vf_fma(p, f, vf_set1(0x1.62e430p-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    vf scaled = vf_from_bits(vi_add(vi_bits(p), vi_sll(vi_bits(n), 23)));
    return vf_select_lt(x, lowest, vf_zero(), scaled);
}

/* 2^x for x below 120; relative error below 3e-6, which is enough for what becomes integers. At
 * least 2^-120. NaN stays NaN. */
VEC_FN vf vf_exp2_coarse(vf x)
{
    vf t = vf_max(vf_set1(-120.0f), x); /* in this order NaN passes */
    vf f = vf_fraction(t);              /* exact, [-0.5, 0.5] */
    vf p = vf_set1(0x1.3997d6p-7f);
    p = vf_fma(p, f, vf_set1(0x1.ca1440p-5f));
    p = vf_fma(p, f, vf_set1(0x1.ec06dap-3f));
    p = vf_fma(p, f, vf_set1(0x1.62e0dcp-1f));
    p = vf_fma(p, f, vf_set1(0x1.ffffe8p-1f));
    return vf_scale_2(p, vf_sub(t, f));
}

/* x * Phi(x), Phi the cumulative normal distribution: GELU in its exact (erf) form.
 * Phi(-|x|) = erfc(t) / 2 with t = |x| / sqrt(2) and erfc(t) = 2^(t P(t)), so that nothing cancels:
 * the absolute error of Phi is below 5e-8. Beyond t = 5.7 (Phi < 4e-16) the tail counts as 0. */
VEC_FN vf vf_gelu(vf x)
{
    const vf end = vf_set1(5.7f);
    vf magnitude = vf_from_bits(vi_and(vi_bits(x), vi_set1(0x7fffffff)));
    vf t0 = vf_mul(magnitude, vf_set1(0x1.6a09e6p-1f));
    vf t = vf_min(end, t0);
    vf p = vf_set1(-0x1.e3b872p-28f);
    p = vf_fma(p, t, vf_set1(0x1.186710p-22f));
    p = vf_fma(p, t, vf_set1(-0x1.211010p-18f));
    p = vf_fma(p, t, vf_set1(0x1.5c87bap-15f));
    p = vf_fma(p, t, vf_set1(-0x1.0e56e2p-12f));
    p = vf_fma(p, t, vf_set1(0x1.1220a6p-10f));
    p = vf_fma(p, t, vf_set1(-0x1.42f000p-9f));
    p = vf_fma(p, t, vf_set1(0x1.242a9cp-13f));
    p = vf_fma(p, t, vf_set1(0x1.c71282p-6f));
    p = vf_fma(p, t, vf_set1(-0x1.2fd462p-3f));
    p = vf_fma(p, t, vf_set1(-0x1.d63c82p-1f));
    p = vf_fma(p, t, vf_set1(-0x1.a0be98p+0f));
    vf tail = vf_mul(vf_set1(0.5f), vf_exp2(vf_mul(p, t)));
    tail = vf_select_lt(t0, end, tail, vf_zero());
    vf phi = vf_select_lt(x, vf_zero(), tail, vf_sub(vf_set1(1.0f), tail));
    return vf_mul(x, phi);
}

/* x / (1 + e^-x): SiLU. The absolute error of the logistic function is below 1e-7. */
VEC_FN vf vf_silu(vf x)
{
    vf e = vf_exp2(vf_min(vf_set1(127.0f), vf_mul(x, vf_set1(-0x1.715476p+0f))));
    return vf_div(x, vf_add(vf_set1(1.0f), e));
}

VEC_FN vf vf_gated(enum k_glu kind, vf left, vf right)
{
    return kind == K_GLU_SWIGLU ? vf_mul(vf_silu(left), right) : vf_mul(left, vf_gelu(right));
}

#endif
