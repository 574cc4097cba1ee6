/* linear.h: weight matrices on the device and their products; inside libglmd_cuda.so. The k_ops
 * table calls these with the products of its context (products.c). Device pointers everywhere but
 * in k_linear_src. One thread, one stream; nothing but packing waits for the device.
 *
 * Which kernel a product of T tokens runs on (linear.cu, `linear_plan_for`):
 *   T <= 8            gemv.cuh
 *   more              gemm.cuh: tiles of 16, 32, 64 or 128 tokens; slices in parallel where the
 *                     matrix has few rows, otherwise one CTA for all of them
 *   33 and more       gemm_wide.cuh, on sm_90a where it gives the same bits (`warpgroups`): tiles
 * of 64 or 128 tokens T >= library_rows expanded to FP16 and multiplied by cuBLASLt, where that was
 * asked for
 *
 * Batch invariance: all but the last give the same bits for a row of x in every batch, on one kind
 * of tensor core (sm_75 sums 8 columns at a time, later ones 16). That warpgroups sum as warps do
 * is looked at on the device, when the products are initialized. cuBLASLt chooses its order of sums
 * by the number of tokens, and weights are rounded to FP16 after scaling: with library_rows set,
 * results of long batches differ in the last bits from those of short ones, and nothing more is
 * promised than that equal calls give equal bits. 0 = never is the default.
 */
#ifndef GLMD_KERNELS_CUDA_LINEAR_H
#define GLMD_KERNELS_CUDA_LINEAR_H

#include "packed.h"
#include "rope.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
struct linear_library; /* cuBLASLt, where it is used */

/* Where memory comes from, and the way to it; `upload` need not be done when it returns, but `src`
 * may be changed. */
struct linear_memory {
    void *arg;
    void *(*alloc)(void *arg, size_t bytes); /* NULL: there is not enough */
    void (*free)(void *arg, void *p);
    void (*upload)(void *arg, void *dst, const void *src, size_t bytes);
    void (*download)(void *arg, void *dst, const void *src, size_t bytes); /* waits */
};

struct linear_device {
    struct linear_memory memory;
    struct CUstream_st *stream;
    uint32_t arch; /* 750, 800, ... */
    uint32_t n_sms;
    size_t shared_bytes; /* of a CTA, with opt-in */
    uint32_t max_rows, max_cols;
    uint32_t library_rows; /* 0: never */
    bool warpgroups; /* products_init: whether they may be used, where they give the same bits */
};

struct cuda_products {
    struct linear_device device;
    int error; /* the first cudaError_t of a launch or copy; sticky */

    /* owned */
    void *partials; /* sums of slices */
    size_t partial_bytes;
    uint32_t *counters; /* LINEAR_MAX_TILES */
    void *staging;      /* rows of a matrix on their way to its panels */
    size_t staging_bytes;
    struct linear_library *library; /* or NULL */
};

struct k_linear {
    struct packed_shape shape;
    void *memory; /* panels, scales, bias */
};

/* ---- plan.c: plain arithmetic, without a device ---- */

enum linear_kernel {
    LINEAR_GEMV,  /* 1 to 8 tokens */
    LINEAR_SLICE, /* a CTA for each slice */
    LINEAR_WHOLE, /* a CTA for all slices */
    /* sm_90a's warpgroups, not with short groups: */
    LINEAR_WIDE_SLICE,
    LINEAR_WIDE,
    LINEAR_WIDE2, /* a CTA for all slices of two panels */
    LINEAR_LIBRARY,
};
enum {
    LINEAR_MAX_TILES = 1 << 16,     /* CTAs of one slice, where slices are handed over */
    LINEAR_MAX_PARTIALS = 64 << 20, /* bytes; more than that is not worth cutting for */
    LINEAR_STAGING = 32 << 20,      /* bytes of rows that are packed at a time */
};

/* How a product is launched. */
struct linear_plan {
    enum linear_kernel kernel;
    uint32_t tokens; /* of a CTA */
    uint32_t n_ctas, n_threads;
    size_t shared_bytes, partial_bytes;
};

/* What becomes of a product x W^T + bias: in every case of its values rounded to halves, but for
 * LINEAR_FLOATS. */
enum linear_end_kind {
    LINEAR_HALVES, /* y[n_rows, rows] */
    LINEAR_FLOATS, /* the same: logits */
    LINEAR_GLU,    /* y[n_rows, rows / 2], as k_ops.glu */
    LINEAR_ROPE,   /* rope.q and the cache, as k_ops.rope_kv */
};
struct linear_end {
    enum linear_end_kind kind;
    void *y;
    enum k_glu glu;
    struct rope_view rope;
};

const char *linear_kernel_name(enum linear_kernel k);
/* Whether the kernels of such a matrix can do that. */
bool linear_can_end(const struct packed_shape *s, const struct linear_end *end);
/* The shape of such a matrix; group_cols 0: groups as even as n_groups allows. */
struct packed_shape linear_shape(enum k_weight type, uint32_t rows, uint32_t cols,
                                 uint32_t n_groups, uint32_t group_cols);
struct linear_plan linear_plan_for(const struct linear_device *d, const struct packed_shape *s,
                                   uint32_t n_rows);
/* The most bytes of partial sums that products with up to max_rows tokens take on any device. */
size_t linear_partial_bound(const struct packed_shape *s, uint32_t max_rows);
/* Device memory that linear_new keeps to pack such a matrix; a feed keeps none. */
size_t linear_staging_bytes(const struct packed_shape *s);
/* All that products keep for such a matrix beside itself; the largest one serves all. */
size_t linear_product_bytes(const struct packed_shape *s, uint32_t max_rows);
/* Dynamic shared memory of a GEMM: its ring of blocks, or the tile of y on its way out. */
size_t linear_gemm_shared(uint32_t bits, uint32_t tokens);
size_t linear_wide_shared(uint32_t bits, enum linear_kernel kernel, uint32_t tokens);
size_t linear_bytes(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups);

/* ---- linear.cu ---- */

/* 0, -ENOMEM, -ENOSYS: no library, or no room for it, or -EIO with `error` set. */
int products_init(struct cuda_products *p, const struct linear_device *device);
void products_deinit(struct cuda_products *p);
/* Device bytes that products_init takes. */
size_t products_bytes(const struct cuda_products *p);

/* NULL: out of memory. The source may be freed afterwards. */
struct k_linear *linear_new(struct cuda_products *p, const struct k_linear_src *src);
/* The same without weights and scales, which come piece by piece: data and scale are not looked at.
 */
struct k_linear *linear_begin(struct cuda_products *p, const struct k_linear_src *src);
/* Packs rows [first_row, first_row + n_rows), whole panels but for the last one, or their scales,
 * from device memory, where they lie as in k_linear_src. Any thread, any stream; a cudaError_t. */
int linear_pack_rows(struct k_linear *l, const void *from, uint32_t first_row, uint32_t n_rows,
                     struct CUstream_st *stream);
int linear_pack_scales(struct k_linear *l, const uint16_t *from, uint32_t first_row,
                       uint32_t n_rows, struct CUstream_st *stream);
/* A matrix of this shape without contents: bench programs fill it on the device. */
struct k_linear *linear_blank(struct cuda_products *p, enum k_weight type, uint32_t rows,
                              uint32_t cols, uint32_t n_groups, uint32_t group_cols);
void linear_free(struct cuda_products *p, struct k_linear *l);

/* x W^T + bias, x[n_rows, cols] halves. -ENOTSUP, nothing done: not with this matrix or with so
 * many rows; LINEAR_HALVES and LINEAR_FLOATS always are. */
int linear_multiply(struct cuda_products *p, const struct k_linear *l, const void *x,
                    uint32_t n_rows, const struct linear_end *end);
void linear_embed(struct cuda_products *p, const struct k_linear *table, uint32_t first_row,
                  const int32_t *ids, uint32_t n_rows, void *y);
void linear_gather(struct cuda_products *p, const void *x, uint32_t cols, const uint32_t *rows,
                   uint32_t n, void *y);

/* Runs a kernel of this kind with so many tokens to a CTA instead of what linear_plan_for chooses,
 * for tests and benches; all of them give the same bits. -EINVAL: there is none. */
int linear_run(struct cuda_products *p, const struct k_linear *l, const void *x, uint32_t n_rows,
               const struct linear_end *end, enum linear_kernel kernel, uint32_t tokens);

/* pack.c: the reference of the packed form, on the host: all of a matrix, shape->bytes. */
void linear_pack(const struct packed_shape *s, const struct k_linear_src *src, void *to);
/* The weight at (row, col) of a packed matrix, as an integer or as the bits of a half. */
int32_t linear_unpack(const struct packed_shape *s, const void *packed, uint32_t row, uint32_t col);
#ifdef __cplusplus
}
#endif

#endif
