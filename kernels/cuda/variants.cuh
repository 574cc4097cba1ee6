/* variants.cuh: the kernels that there are: a table for each kind of weights. */
#ifndef GLMD_KERNELS_CUDA_VARIANTS_CUH
#define GLMD_KERNELS_CUDA_VARIANTS_CUH

#include "gemm_wide.cuh"
#include "gemv.cuh"
#include "linear.h"

struct variant {
    uint32_t bits, short_groups;
    enum linear_kernel kernel;
    uint32_t tokens, threads;
    void (*function)(const product_params p); /* NULL behind the last one */
    size_t shared;                            /* 0: by the shape */
};

extern const struct variant variants_i4[], variants_i8[], variants_f16[];

constexpr int variant_stages(int bits)
{
    return bits == 16 ? 3 : 4;
}

template <int BITS, bool SHORT> constexpr struct variant variant_gemv()
{
    return {BITS, SHORT, LINEAR_GEMV, GEMV_TOKENS, GEMV_THREADS, gemv_kernel<BITS, SHORT>, 0};
}

/* N: tiles of 8 tokens of a warp; WN: columns of warps. */
template <int BITS, bool SHORT, int N, int WN, bool WHOLE> constexpr struct variant variant_gemm()
{
    return {BITS,
            SHORT,
            WHOLE ? LINEAR_WHOLE : LINEAR_SLICE,
            N * WN * 8,
            GEMM_ROW_WARPS * WN * DEV_WARP,
            gemm_kernel<BITS, SHORT, N, WN, variant_stages(BITS), WHOLE>,
            gemm_shared_bytes(BITS, N * WN * 8, variant_stages(BITS))};
}

constexpr int variant_wide_stages(int bits, int panels)
{
    return panels == 2 && bits == 8 ? 3 : 4;
}

/* PANELS of a CTA, N tokens; sm_90a. */
template <int BITS, int PANELS, int N, bool WHOLE> constexpr struct variant variant_wide()
{
    return {BITS,
            false,
            !WHOLE        ? LINEAR_WIDE_SLICE
            : PANELS == 2 ? LINEAR_WIDE2
                          : LINEAR_WIDE,
            N,
            WIDE_THREADS,
            wide_kernel<BITS, PANELS, N, variant_wide_stages(BITS, PANELS), WHOLE>,
            wide_shared_bytes(BITS, PANELS, N, variant_wide_stages(BITS, PANELS))};
}

/* Short groups keep three sums in registers instead of two: fewer tokens to a warp. */
#define VARIANTS_LONG(BITS)                                                                        \
    variant_gemv<BITS, false>(), variant_gemm<BITS, false, 2, 1, false>(),                         \
        variant_gemm<BITS, false, 4, 1, false>(), variant_gemm<BITS, false, 8, 1, false>(),        \
        variant_gemm<BITS, false, 4, 1, true>(), variant_gemm<BITS, false, 8, 1, true>(),          \
        variant_gemm<BITS, false, 8, 2, true>()
#define VARIANTS_SHORT(BITS)                                                                       \
    variant_gemv<BITS, true>(), variant_gemm<BITS, true, 2, 1, false>(),                           \
        variant_gemm<BITS, true, 4, 1, false>(), variant_gemm<BITS, true, 4, 2, false>(),          \
        variant_gemm<BITS, true, 4, 1, true>(), variant_gemm<BITS, true, 4, 2, true>()

#define VARIANTS_WIDE(BITS) variant_wide<BITS, 1, 64, true>(), variant_wide<BITS, 1, 128, true>()

#endif
