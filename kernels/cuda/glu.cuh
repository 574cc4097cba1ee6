/* glu.cuh: gated linear units of 8 columns: for rowwise.cu, and for the end of a product whose rows
 * are packed in pairs (product.cuh). */
#ifndef GLMD_KERNELS_CUDA_GLU_CUH
#define GLMD_KERNELS_CUDA_GLU_CUH

#include "norm.cuh"

/* x Phi(x), the exact form. */
DEV_FN float glu_gelu(float x)
{
    return x * (0.5f + 0.5f * dev_erf(x * 0x1.6a09e6p-1f));
}

/* x / (1 + e^-x) */
DEV_FN float glu_silu(float x)
{
    return dev_div(x, 1.0f + dev_exp(-x));
}

/* 8 columns of either half of u (halves) as 8 columns of g. */
DEV_FN uint4 glu_piece(enum k_glu kind, uint4 first, uint4 second)
{
    float left[NORM_PIECE], right[NORM_PIECE];
    norm_unpack(left, first);
    norm_unpack(right, second);
    DEV_UNROLL
    for (int i = 0; i < NORM_PIECE; i++)
        left[i] =
            kind == K_GLU_SWIGLU ? glu_silu(left[i]) * right[i] : left[i] * glu_gelu(right[i]);
    return norm_pack(left);
}

#endif
