/* rowwise.cu: norms of rows, alone or behind the residual sum, and GeGLU.
 *
 * A row is one CTA's. Its values stay in registers between the sums: mean first, then the squares
 * of the differences. A thread owns pieces of 8 columns, thread by thread across the row; sums run
 * over a thread's pieces, over the lanes of a warp by butterfly and over the warps in order: an
 * order that depends on the number of columns alone.
 */
#include <cassert>
#include <cstdlib>

#include "base/half.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dev.h"

struct k_norm {
    uint32_t cols;
    float *weight, *bias; /* device, [cols] */
};

struct k_bias {
    uint32_t cols;
    float *values; /* device, [cols] */
};

namespace
{

enum { THREADS = 512, WARPS = THREADS / DEV_WARP, PIECE = 8, GLU_THREADS = 256 };

struct norm_params {
    const uint16_t *a;  /* NULL: a plain norm of x */
    const uint16_t *x;  /* [n_rows, cols] */
    uint16_t *residual; /* x = alpha a + x + bias goes here, with `a` */
    uint16_t *y;
    const float *residual_bias; /* or NULL */
    const float *weight, *bias;
    float alpha, eps;
    uint32_t cols;
};

DEV_FN void unpack(float *to, uint4 v)
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    DEV_UNROLL
    for (int i = 0; i < 4; i++) {
        to[2 * i] = dev_half2_lo(w[i]);
        to[2 * i + 1] = dev_half2_hi(w[i]);
    }
}

DEV_FN uint4 pack(const float *from)
{
    return make_uint4(dev_half2(from[0], from[1]), dev_half2(from[2], from[3]),
                      dev_half2(from[4], from[5]), dev_half2(from[6], from[7]));
}

DEV_FN void load8(float *to, const float *from)
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

/* The same bits in all threads. `parts` [WARPS] is free again at the next barrier but one. */
DEV_FN float row_sum(float v, dev_shared<float> parts)
{
    v = dev_warp_sum(v);
    if (dev_lane() == 0)
        parts[dev_warp()] = v;
    dev_barrier();
    float sum = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < WARPS; i++) {
        float part = parts[i];
        sum += part;
    }
    return sum;
}

template <int ITEMS> DEV_KERNEL(THREADS, 1) void norm_kernel(DEV_PARAMS(norm_params) p)
{
    DEV_SHARED(float, parts, 2 * WARPS);
    const size_t row = (size_t)dev_cta_x() * p.cols;
    float x[ITEMS][PIECE];
    float sum = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = (i * THREADS + dev_thread()) * PIECE;
        if (col >= p.cols)
            continue;
        unpack(x[i], dev_load16(p.x + row + col));
        if (p.a) {
            float a[PIECE], bias[PIECE] = {0, 0, 0, 0, 0, 0, 0, 0};
            unpack(a, dev_load16(p.a + row + col));
            if (p.residual_bias)
                load8(bias, p.residual_bias + col);
            DEV_UNROLL
            for (int j = 0; j < PIECE; j++)
                x[i][j] = dev_fma(p.alpha, a[j], x[i][j]) + bias[j];
            dev_store16(p.residual + row + col, pack(x[i]));
        }
        DEV_UNROLL
        for (int j = 0; j < PIECE; j++)
            sum += x[i][j];
    }
    const float mean = dev_div(row_sum(sum, parts), (float)p.cols);
    float squares = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = (i * THREADS + dev_thread()) * PIECE;
        if (col >= p.cols)
            continue;
        DEV_UNROLL
        for (int j = 0; j < PIECE; j++) {
            float d = x[i][j] - mean;
            squares = dev_fma(d, d, squares);
        }
    }
    const float variance = dev_div(row_sum(squares, parts + WARPS), (float)p.cols);
    const float inverse = dev_rsqrt(variance + p.eps);
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = (i * THREADS + dev_thread()) * PIECE;
        if (col >= p.cols)
            continue;
        float weight[PIECE], bias[PIECE], y[PIECE];
        load8(weight, p.weight + col);
        load8(bias, p.bias + col);
        DEV_UNROLL
        for (int j = 0; j < PIECE; j++)
            y[j] = dev_fma((x[i][j] - mean) * inverse, weight[j], bias[j]);
        dev_store16(p.y + row + col, pack(y));
    }
}

struct glu_params {
    const uint16_t *u; /* [n_rows, 2 inner] */
    uint16_t *g;       /* [n_rows, inner] */
    uint32_t inner;
};

/* x Phi(x), the exact form. */
DEV_FN float gelu(float x)
{
    return x * (0.5f + 0.5f * dev_erf(x * 0x1.6a09e6p-1f));
}

DEV_KERNEL(GLU_THREADS, 1) void geglu_kernel(DEV_PARAMS(glu_params) p)
{
    uint32_t col = (dev_cta_y() * GLU_THREADS + dev_thread()) * PIECE;
    if (col >= p.inner)
        return;
    const uint16_t *u = p.u + (size_t)dev_cta_x() * 2 * p.inner;
    float value[PIECE], gate[PIECE];
    unpack(value, dev_load16(u + col));
    unpack(gate, dev_load16(u + p.inner + col));
    DEV_UNROLL
    for (int i = 0; i < PIECE; i++)
        value[i] = value[i] * gelu(gate[i]);
    dev_store16(p.g + (size_t)dev_cta_x() * p.inner + col, pack(value));
}

/* Halves on the host as floats on the device. */
float *device_floats(struct k_ctx *c, const uint16_t *half, uint32_t n)
{
    float *host = (float *)malloc(n * sizeof *host);
    float *device = host ? (float *)cuda_new(c, n * sizeof *host) : nullptr;
    if (device) {
        for (uint32_t i = 0; i < n; i++)
            host[i] = half_to_float(half[i]);
        cuda_upload_bytes(c, device, host, n * sizeof *host);
    }
    free(host);
    return device;
}

void run_norm(struct k_ctx *c, const norm_params &p, uint32_t n_rows, const char *what)
{
    struct dev_launch at = {};
    at.grid = {n_rows, 1, 1};
    at.threads = THREADS;
    at.stream = c->stream;
    const uint32_t pieces = (p.cols / PIECE + THREADS - 1) / THREADS;
    assert(p.cols % PIECE == 0 && pieces <= 8);
    if (pieces == 1)
        cuda_check(c, dev_run(at, norm_kernel<1>, p), what);
    else if (pieces <= 3)
        cuda_check(c, dev_run(at, norm_kernel<3>, p), what);
    else
        cuda_check(c, dev_run(at, norm_kernel<8>, p), what);
}

} // namespace

struct k_norm *cuda_norm_new(struct k_ctx *c, const uint16_t *weight, const uint16_t *bias,
                             uint32_t cols)
{
    struct k_norm *n = (struct k_norm *)calloc(1, sizeof *n);
    if (!n)
        return nullptr;
    n->cols = cols;
    n->weight = device_floats(c, weight, cols);
    n->bias = device_floats(c, bias, cols);
    if (!n->weight || !n->bias) {
        cuda_norm_free(c, n);
        return nullptr;
    }
    return n;
}

void cuda_norm_free(struct k_ctx *c, struct k_norm *n)
{
    if (!n)
        return;
    cuda_free(c, n->weight);
    cuda_free(c, n->bias);
    free(n);
}

struct k_bias *cuda_bias_new(struct k_ctx *c, const uint16_t *bias, uint32_t cols)
{
    struct k_bias *b = (struct k_bias *)calloc(1, sizeof *b);
    if (!b)
        return nullptr;
    b->cols = cols;
    b->values = device_floats(c, bias, cols);
    if (!b->values) {
        cuda_bias_free(c, b);
        return nullptr;
    }
    return b;
}

void cuda_bias_free(struct k_ctx *c, struct k_bias *b)
{
    if (!b)
        return;
    cuda_free(c, b->values);
    free(b);
}

void cuda_norm(struct k_ctx *c, const struct k_norm *n, float eps, const void *x, uint32_t n_rows,
               void *y)
{
    norm_params p = {};
    p.x = (const uint16_t *)x;
    p.y = (uint16_t *)y;
    p.weight = n->weight;
    p.bias = n->bias;
    p.eps = eps;
    p.cols = n->cols;
    run_norm(c, p, n_rows, "norm");
}

void cuda_residual_norm(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                        const void *a, void *r, const struct k_bias *bias, uint32_t n_rows, void *y)
{
    assert(!bias || bias->cols == n->cols);
    norm_params p = {};
    p.a = (const uint16_t *)a;
    p.x = (const uint16_t *)r;
    p.residual = (uint16_t *)r;
    p.y = (uint16_t *)y;
    p.residual_bias = bias ? bias->values : nullptr;
    p.weight = n->weight;
    p.bias = n->bias;
    p.alpha = alpha;
    p.eps = eps;
    p.cols = n->cols;
    run_norm(c, p, n_rows, "residual and norm");
}

void cuda_geglu(struct k_ctx *c, const void *u, uint32_t n_rows, uint32_t inner, void *g)
{
    assert(inner % PIECE == 0);
    glu_params p = {(const uint16_t *)u, (uint16_t *)g, inner};
    struct dev_launch at = {};
    at.grid = {n_rows, (inner / PIECE + GLU_THREADS - 1) / GLU_THREADS, 1};
    at.threads = GLU_THREADS;
    at.stream = c->stream;
    cuda_check(c, dev_run(at, geglu_kernel, p), "geglu");
}
