/* rowwise.cu: norms of rows, alone or behind the residual sum, and gated linear
 * units. */
#include <cassert>
#include <cstdlib>

#include "base/half.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/glu.cuh"
#include "kernels/cuda/norm.cuh"

namespace
{

enum { GLU_THREADS = 256 };

template <int ITEMS> DEV_KERNEL(NORM_THREADS, 1) void norm_kernel(DEV_PARAMS(norm_params) p)
{
    DEV_SHARED(float, parts, 2 * NORM_WARPS);
    const size_t row = (size_t)dev_cta_x() * p.cols;
    float x[ITEMS][NORM_PIECE];
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        uint32_t col = norm_col(i);
        if (col < p.cols)
            norm_unpack(x[i], dev_load16(p.x + row + col));
    }
    norm_row<ITEMS>(p, row, x, parts);
}

struct glu_params {
    enum k_glu kind;
    const uint16_t *u; /* [n_rows, 2 inner] */
    uint16_t *g;       /* [n_rows, inner] */
    uint32_t inner;
};

DEV_KERNEL(GLU_THREADS, 1) void glu_kernel(DEV_PARAMS(glu_params) p)
{
    uint32_t col = (dev_cta_y() * GLU_THREADS + dev_thread()) * NORM_PIECE;
    if (col >= p.inner)
        return;
    const uint16_t *u = p.u + (size_t)dev_cta_x() * 2 * p.inner;
    dev_store16(p.g + (size_t)dev_cta_x() * p.inner + col,
                glu_piece(p.kind, dev_load16(u + col), dev_load16(u + p.inner + col)));
}

/* Halves on the host (NULL: zeros) as floats on the device. */
float *device_floats(struct k_ctx *c, const uint16_t *half, uint32_t n)
{
    float *host = (float *)malloc(n * sizeof *host);
    float *device = host ? (float *)cuda_new(c, n * sizeof *host) : nullptr;
    if (device) {
        for (uint32_t i = 0; i < n; i++)
            host[i] = half ? half_to_float(half[i]) : 0.0f;
        cuda_upload_bytes(c, device, host, n * sizeof *host);
    }
    free(host);
    return device;
}

void run_norm(struct k_ctx *c, const norm_params &p, uint32_t n_rows, const char *what)
{
    struct dev_launch at = {};
    at.grid = {n_rows, 1, 1};
    at.threads = NORM_THREADS;
    at.stream = c->stream;
    const uint32_t pieces = (p.cols / NORM_PIECE + NORM_THREADS - 1) / NORM_THREADS;
    assert(p.cols % NORM_PIECE == 0 && pieces <= 8);
    if (pieces == 1)
        cuda_check(c, dev_run(at, norm_kernel<1>, p), what);
    else if (pieces <= 3)
        cuda_check(c, dev_run(at, norm_kernel<3>, p), what);
    else
        cuda_check(c, dev_run(at, norm_kernel<8>, p), what);
}

} // namespace

struct k_norm *cuda_norm_new(struct k_ctx *c, enum k_norm_kind kind, const uint16_t *weight,
                             const uint16_t *bias, uint32_t cols)
{
    struct k_norm *n = (struct k_norm *)calloc(1, sizeof *n);
    if (!n)
        return nullptr;
    n->kind = kind;
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
    p.kind = n->kind;
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
    p.kind = n->kind;
    run_norm(c, p, n_rows, "residual and norm");
}

void cuda_glu(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows, uint32_t inner,
              void *g)
{
    assert(inner % NORM_PIECE == 0);
    glu_params p = {glu, (const uint16_t *)u, (uint16_t *)g, inner};
    struct dev_launch at = {};
    at.grid = {n_rows, (inner / NORM_PIECE + GLU_THREADS - 1) / GLU_THREADS, 1};
    at.threads = GLU_THREADS;
    at.stream = c->stream;
    cuda_check(c, dev_run(at, glu_kernel, p), "glu");
}
