/* library.h: long products through a library (blas.h), which is opened when it is asked for
 * (linear_device.library_rows): slabs of rows are expanded to FP16 and multiplied. */
#ifndef GLMD_KERNELS_CUDA_LIBRARY_H
#define GLMD_KERNELS_CUDA_LIBRARY_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* NULL: the library is not there or there is no memory for it. */
struct linear_library *linear_library_new(const struct linear_device *d);
void linear_library_free(struct linear_library *l);
size_t linear_library_bytes(const struct linear_library *l); /* on the device; NULL: 0 */
/* y[n_rows, rows] = x W^T + bias; a cudaError_t, or -ENOTSUP: it knows no way, nothing was done
 * that counts. */
int linear_library_product(struct linear_library *l, const struct k_linear *w, const void *x,
                           uint32_t n_rows, void *y);
/* y[n, rows] = x[n, cols] w[rows, cols]^T of halves, with y's rows `y_stride` apart; bias: [rows]
 * or NULL. As above. For benches, too. */
int linear_library_multiply(struct linear_library *l, const void *w, uint32_t rows, uint32_t cols,
                            const void *x, uint32_t n, const void *bias, void *y,
                            uint32_t y_stride);
/* Rows [panel * 128, ...) of n_panels panels as halves [rows, cols], scaled. A cudaError_t. */
int linear_expand(const struct k_linear *w, uint32_t panel, uint32_t n_panels, void *to,
                  struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
