/* norm.cuh: the norm of a row in the registers of a CTA, with the residual sum in front of it where
 * there is one: for rowwise.cu, and for sums over ranks that go on with it (sums.cuh).
 *
 * A row is one CTA's. Its values stay in registers between the sums: mean first (RMSNorm:
 * zero), then the squares of the differences. A thread owns pieces of 8 columns, thread by thread
 * across the row; sums run over a thread's pieces, over the lanes of a warp by butterfly and over
 * the warps in order: an order that depends on the number of columns alone.
 */
#ifndef GLMD_KERNELS_CUDA_NORM_CUH
#define GLMD_KERNELS_CUDA_NORM_CUH

#include "dev.h"
#include "kernels/kernels.h"

struct k_norm {
    enum k_norm_kind kind;
    uint32_t cols;
    float *weight, *bias; /* device, [cols] */
};

struct k_bias {
    uint32_t cols;
    float *values; /* device, [cols] */
};

enum { NORM_THREADS = 512, NORM_WARPS = NORM_THREADS / DEV_WARP, NORM_PIECE = 8 };
enum { NORM_MAX_COLS = NORM_THREADS * NORM_PIECE * 8 };

struct norm_params {
    const uint16_t *a;  /* NULL: a plain norm of x */
    const uint16_t *x;  /* [n_rows, cols] */
    uint16_t *residual; /* x = alpha a + x + bias goes here, with `a` */
    uint16_t *y;
    const float *residual_bias; /* or NULL */
    const float *weight, *bias;
    float alpha, eps;
    uint32_t cols;
    enum k_norm_kind kind;
};

DEV_FN void norm_unpack(float *to, uint4 v)
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    DEV_UNROLL
    for (int i = 0; i < 4; i++) {
        to[2 * i] = dev_half2_lo(w[i]);
        to[2 * i + 1] = dev_half2_hi(w[i]);
    }
}

DEV_FN uint4 norm_pack(const float *from)
{
    return make_uint4(dev_half2(from[0], from[1]), dev_half2(from[2], from[3]),
                      dev_half2(from[4], from[5]), dev_half2(from[6], from[7]));
}

DEV_FN void norm_load8(float *to, const float *from)
{
    DEV_UNROLL
    for (int i = 0; i < 2; i++) {
        uint4 v = dev_load16(from + 4 * i);
        to[4 * i] = dev_bits_float(v.x);
        to[4 * i + 1] = dev_bits_float(v.y);
        to[4 * i + 2] = dev_bits_float(v.z);
        to[4 * i + 3] = dev_bits_float(v.w);
    }
}

/* The same bits in all threads. `parts` [NORM_WARPS] is free again at the next barrier but one. */
DEV_FN float norm_sum(float v, dev_shared<float> parts)
{
    v = dev_warp_sum(v);
    if (dev_lane() == 0)
        parts[dev_warp()] = v;
    dev_barrier();
    float sum = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < NORM_WARPS; i++) {
        float part = parts[i];
        sum += part;
    }
    return sum;
}

/* The first column of this thread's piece `i`. */
DEV_FN uint32_t norm_col(int i)
{
    return ((uint32_t)i * NORM_THREADS + dev_thread()) * NORM_PIECE;
}

/* x: this thread's pieces of the row that begins at element `row`. `parts`: [2 * NORM_WARPS]; may
 * be used again for the next row. */
template <int ITEMS>
DEV_INLINE void norm_row(const norm_params &p, size_t row, float (&x)[ITEMS][NORM_PIECE],
                         dev_shared<float> parts)
{
    float sum = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = norm_col(i);
        if (col >= p.cols)
            continue;
        if (p.a) {
            float a[NORM_PIECE], bias[NORM_PIECE] = {0, 0, 0, 0, 0, 0, 0, 0};
            norm_unpack(a, dev_load16(p.a + row + col));
            if (p.residual_bias)
                norm_load8(bias, p.residual_bias + col);
            DEV_UNROLL
            for (int j = 0; j < NORM_PIECE; j++)
                x[i][j] = dev_fma(p.alpha, a[j], x[i][j]) + bias[j];
            dev_store16(p.residual + row + col, norm_pack(x[i]));
        }
        DEV_UNROLL
        for (int j = 0; j < NORM_PIECE; j++)
            sum += x[i][j];
    }
    const float mean = p.kind == K_NORM_RMS ? 0.0f : dev_div(norm_sum(sum, parts), (float)p.cols);
    float squares = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        if (norm_col(i) >= p.cols)
            continue;
        DEV_UNROLL
        for (int j = 0; j < NORM_PIECE; j++) {
            float d = x[i][j] - mean;
            squares = dev_fma(d, d, squares);
        }
    }
    const float variance = dev_div(norm_sum(squares, parts + NORM_WARPS), (float)p.cols);
    const float inverse = dev_rsqrt(variance + p.eps);
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = norm_col(i);
        if (col >= p.cols)
            continue;
        float weight[NORM_PIECE], bias[NORM_PIECE], y[NORM_PIECE];
        norm_load8(weight, p.weight + col);
        norm_load8(bias, p.bias + col);
        DEV_UNROLL
        for (int j = 0; j < NORM_PIECE; j++)
            y[j] = dev_fma((x[i][j] - mean) * inverse, weight[j], bias[j]);
        dev_store16(p.y + row + col, norm_pack(y));
    }
}

#endif
