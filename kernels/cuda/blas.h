/* blas.h: the library that long products may go to (library.h): products of halves, row-major.
 * blas_lt.cu is cuBLASLt; tests put another one in its place. */
#ifndef GLMD_KERNELS_CUDA_BLAS_H
#define GLMD_KERNELS_CUDA_BLAS_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BLAS_WORKSPACE_BYTES = 32 << 20 }; /* device memory that it takes */

struct blas;

/* NULL: it is not there, or there is no memory for it. */
struct blas *blas_open(const struct linear_device *d);
void blas_close(struct blas *b);
/* y[n, rows] = x[n, cols] w[rows, cols]^T + bias, with y's rows `y_stride` apart; bias: [rows] or
 * NULL. A cudaError_t, or -ENOTSUP: it knows no way, nothing was done. */
int blas_multiply(struct blas *b, const void *w, uint32_t rows, uint32_t cols, const void *x,
                  uint32_t n, const void *bias, void *y, uint32_t y_stride);

#ifdef __cplusplus
}
#endif

#endif
