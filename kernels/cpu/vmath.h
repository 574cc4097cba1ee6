/* vmath.h: exp2, the normal distribution and the logistic function over vec.h. Polynomials fitted
 * for this file (least squares on Chebyshev nodes, or the least largest error),
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

/* Phi(n w + f) - 1/2 for n = 0 .. 15, w = 3/8, |f| <= w / 2, Phi the cumulative normal
 * distribution: coefficients of f^5 to f^0. From n = 15 on it counts as 1/2. */
static const float vec_normal[6][VEC] = {
    {0x1.446e3ep-7f, 0x1.b6e088p-8f, -0x1.022f94p-13f, -0x1.565cb6p-8f, -0x1.7e0e02p-8f,
     -0x1.aea660p-9f, -0x1.f796a2p-12f, 0x1.f398dap-11f, 0x1.20e2eap-10f, 0x1.79a302p-11f,
     0x1.68c944p-12f, 0x1.0f318ap-13f, 0x1.4b7f32p-15f, 0x1.4f7848p-17f, 0x1.1c37ecp-19f, 0.0f},
    {0.0f, 0x1.0dee7cp-6f, 0x1.753426p-6f, 0x1.1917b6p-6f, 0x1.901f86p-8f, -0x1.61954ap-9f,
     -0x1.8ec88ep-8f, -0x1.61d102p-8f, -0x1.b46bbcp-9f, -0x1.a17e78p-10f, -0x1.4332c0p-11f,
     -0x1.9dc250p-13f, -0x1.bb8f3ap-15f, -0x1.917308p-17f, -0x1.347b7ep-19f, 0.0f},
    {-0x1.1056e0p-4f, -0x1.b44d54p-5f, -0x1.67c45ap-6f, 0x1.335286p-7f, 0x1.ba12cap-6f,
     0x1.d883f2p-6f, 0x1.601ad6p-6f, 0x1.995b36p-7f, 0x1.8344dap-8f, 0x1.306a2ap-9f,
     0x1.926fa8p-11f, 0x1.c2ca00p-13f, 0x1.ae0edep-15f, 0x1.5eb56cp-17f, 0x1.ea451ep-20f, 0.0f},
    {0.0f, -0x1.1d93c8p-4f, -0x1.ce89dap-4f, -0x1.e828fcp-4f, -0x1.8de140p-4f, -0x1.0824acp-4f,
     -0x1.2484aep-5f, -0x1.119fccp-6f, -0x1.b3a9dcp-8f, -0x1.289dd0p-9f, -0x1.5a9140p-11f,
     -0x1.5c46e8p-13f, -0x1.2d8d6ap-15f, -0x1.c28290p-18f, -0x1.22a010p-20f, 0.0f},
    {0x1.988452p-2f, 0x1.7cc794p-2f, 0x1.345d60p-2f, 0x1.b1ec62p-3f, 0x1.094086p-3f, 0x1.19bfa4p-4f,
     0x1.0402dep-5f, 0x1.a0f228p-7f, 0x1.227212p-8f, 0x1.5f90f8p-10f, 0x1.71b940p-12f,
     0x1.51cfd6p-14f, 0x1.0c29fcp-16f, 0x1.71e664p-19f, 0x1.bb4c8cp-22f, 0.0f},
    {0.0f, 0x1.2b5b0ep-3f, 0x1.17ef00p-2f, 0x1.7a9412p-2f, 0x1.bb96e4p-2f, 0x1.e0dfc6p-2f,
     0x1.f37b6ep-2f, 0x1.fb9046p-2f, 0x1.fe9e22p-2f, 0x1.ff9f40p-2f, 0x1.ffe8d2p-2f, 0x1.fffb24p-2f,
     0x1.ffff1cp-2f, 0x1.ffffdcp-2f, 0x1.fffffap-2f, 0x1.000000p-1f},
};

/* x * Phi(x): GELU in its exact (erf) form, as x / 2 + |x| (Phi(|x|) - 1/2). The absolute error of
 * Phi is below 4e-8; for x below -5.44 the result is 0. */
VEC_FN vf vf_gelu(vf x)
{
    const vf shift = vf_set1(0x1.8p23f); /* adding it leaves the nearest integer, as in vf_exp2 */
    vf magnitude = vf_from_bits(vi_and(vi_bits(x), vi_set1(0x7fffffff)));
    vf t = vf_min(vf_set1(5.625f), magnitude); /* in this order NaN passes */
    vf n = vf_fma(t, vf_set1(0x1.555556p+1f), shift);
    vi idx = vi_bits(n);
    vf f = vf_fma(vf_sub(n, shift), vf_set1(-0.375f), t);
    vf p = vf_lookup(vec_normal[0], idx);
    p = vf_fma(p, f, vf_lookup(vec_normal[1], idx));
    p = vf_fma(p, f, vf_lookup(vec_normal[2], idx));
    p = vf_fma(p, f, vf_lookup(vec_normal[3], idx));
    p = vf_fma(p, f, vf_lookup(vec_normal[4], idx));
    p = vf_fma(p, f, vf_lookup(vec_normal[5], idx));
    return vf_fma(magnitude, p, vf_mul(x, vf_set1(0.5f)));
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
