/* bench.h: what kernels/bench/gpu-speed asks of the CUDA backend beyond the operations: ceilings,
 * single kernels, comparisons. libglmd_cuda.so exports it as glmd_cuda_bench. The context is one of
 * glmd_cuda_ops. Errors are the context's: k_ops.sync reports them. */
#ifndef GLMD_KERNELS_CUDA_BENCH_H
#define GLMD_KERNELS_CUDA_BENCH_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_bench {
    /* Records what f enqueues, once, as a graph, and runs that `samples` times: seconds of each, in
     * ascending order. 0, or -EIO. */
    int (*time)(struct k_ctx *c, void (*f)(void *arg), void *arg, uint32_t samples,
                double *ret_seconds);

    /* Ceilings; bytes: a multiple of 16. read: sums what it reads into `word`, which nobody needs.
     */
    void (*copy)(struct k_ctx *c, void *dst, const void *src, size_t bytes);
    void (*read)(struct k_ctx *c, const void *src, size_t bytes, uint32_t *word);
    /* Random bits; as halves: +-[1/16, 1/8). */
    void (*noise)(struct k_ctx *c, void *dst, size_t bytes, uint32_t seed, bool halves);

    /* A matrix of random weights made on the device; NULL: out of memory. */
    struct k_linear *(*matrix)(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                               uint32_t group_cols, uint32_t seed);
    struct linear_plan (*plan)(struct k_ctx *c, const struct k_linear *l, uint32_t n_rows);

    /* cuBLASLt; NULL: it is not there. */
    struct linear_library *(*library_new)(struct k_ctx *c);
    void (*library_free)(struct linear_library *l);
    /* y[n, rows] = x[n, cols] w[rows, cols]^T, halves. */
    void (*dense)(struct k_ctx *c, struct linear_library *l, const void *w, uint32_t rows,
                  uint32_t cols, const void *x, uint32_t n, void *y);
    /* The published way: weights to FP16, then the library. */
    void (*expanded)(struct k_ctx *c, struct linear_library *l, const struct k_linear *w,
                     const void *x, uint32_t n, void *y);
};

extern const struct cuda_bench glmd_cuda_bench;

/* bench_kernels.cu; cudaError_t */
int bench_copy(void *dst, const void *src, size_t bytes, uint32_t n_sms,
               struct CUstream_st *stream);
int bench_read(const void *src, size_t bytes, uint32_t *word, uint32_t n_sms,
               struct CUstream_st *stream);
int bench_noise(void *dst, size_t bytes, uint32_t seed, bool halves, struct CUstream_st *stream);
int bench_fill(void *dst, size_t n, uint16_t half, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
