/* gemm.cuh: products of any number of tokens on the tensor cores (mma.sync).
 *
 * CTA: one panel (128 rows) and WN * N * 8 tokens. A warp owns 32 rows and N * 8 tokens: 4 warps
 * cover the rows, WN times as many the tokens. Blocks of 64 columns go through a ring of STAGES in
 * shared memory, filled by asynchronous copies: weights as they lie in memory, x as rows of 128
 * bytes whose 16-byte pieces are exchanged (piece ^ token % 8), so that ldmatrix meets all banks.
 *
 * WHOLE: a CTA takes all slices, one after another, and adds them up in registers: no traffic but
 * weights, x and y. Otherwise a CTA takes one slice, for matrices of few rows and few tokens, and
 * the CTA that ends last adds the slices: the same sums in the same order, the same bits.
 */
#ifndef GLMD_KERNELS_CUDA_GEMM_CUH
#define GLMD_KERNELS_CUDA_GEMM_CUH

#include "product.cuh"

enum {
    GEMM_ROW_WARPS = 4,
    GEMM_TILES = PACKED_TILES / GEMM_ROW_WARPS, /* of a warp */
    GEMM_X_UNITS = PACKED_COLS / 8,             /* 16-byte pieces of a token and block */
};

/* 16-byte units of a stage: weights, then x. */
DEV_HOST_FN constexpr uint32_t gemm_weight_units(uint32_t bits)
{
    return PACKED_ROWS * PACKED_COLS / 8 * bits / 16;
}

DEV_HOST_FN constexpr uint32_t gemm_stage_units(uint32_t bits, uint32_t tokens)
{
    return gemm_weight_units(bits) + tokens * GEMM_X_UNITS;
}

DEV_HOST_FN constexpr size_t gemm_shared_bytes(uint32_t bits, uint32_t tokens, uint32_t stages)
{
    size_t ring = (size_t)stages * gemm_stage_units(bits, tokens) * 16;
    size_t out = (size_t)tokens * PRODUCT_STRIDE * 2;
    return ring < out ? out : ring;
}

/* The weights of block `block` of a panel into their place in the ring. */
template <int BITS, int THREADS>
static DEV_INLINE void gemm_fetch_weights(const product_params &p, dev_shared<uint4> to,
                                          uint32_t panel, uint32_t block)
{
    constexpr uint32_t WEIGHTS = gemm_weight_units(BITS);
    const unsigned char *w = p.w + packed_lane_at(BITS, p.s.n_blocks, panel, block, 0, 0, 0);
    DEV_UNROLL
    for (uint32_t i = 0; i < WEIGHTS / THREADS; i++) {
        uint32_t unit = i * THREADS + dev_thread();
        dev_copy16_stream(to + unit, w + (size_t)unit * 16);
    }
    static_assert(WEIGHTS % THREADS == 0, "no remainder");
}

/* The same columns of x. */
template <int TOKENS, int THREADS>
static DEV_INLINE void gemm_fetch_x(const product_params &p, dev_shared<uint4> to, uint32_t token0,
                                    uint32_t block)
{
    DEV_UNROLL
    for (uint32_t i = 0; i < TOKENS * GEMM_X_UNITS / THREADS; i++) {
        uint32_t unit = i * THREADS + dev_thread(), token = unit / GEMM_X_UNITS;
        uint32_t piece = unit % GEMM_X_UNITS;
        product_stage_x(p, to + token * GEMM_X_UNITS + (piece ^ token % 8), token0 + token,
                        block * PACKED_COLS + piece * 8);
    }
    static_assert(TOKENS * GEMM_X_UNITS % THREADS == 0, "no remainder");
}

template <int BITS, int TOKENS, int THREADS>
static DEV_INLINE void gemm_fetch(const product_params &p, dev_shared<uint4> stage, uint32_t panel,
                                  uint32_t token0, uint32_t block)
{
    gemm_fetch_weights<BITS, THREADS>(p, stage, panel, block);
    gemm_fetch_x<TOKENS, THREADS>(p, stage + gemm_weight_units(BITS), token0, block);
}

/* One block of columns. */
template <int BITS, bool SHORT, int N>
static DEV_INLINE void gemm_block(const product_params &p, dev_shared<uint4> stage, uint32_t row0,
                                  uint32_t first_token, product_sums<BITS, SHORT, GEMM_TILES, N> &v)
{
    constexpr int QUADS = BITS / 4, STEPS = PACKED_STEPS / QUADS;
    const uint32_t lane = dev_lane(), tile = dev_warp() % GEMM_ROW_WARPS * GEMM_TILES;
    dev_shared<uint4> w = stage + tile * QUADS * DEV_WARP + lane;
    /* lane i gives row i % 8 of matrix i / 8: tokens 0-7 columns 0-7, 8-15; tokens 8-15 the same */
    const uint32_t token = first_token + lane / 16 * 8 + lane % 8;
    dev_shared<uint4> x = stage + gemm_weight_units(BITS) + token * GEMM_X_UNITS;
    DEV_UNROLL
    for (int quad = 0; quad < QUADS; quad++) {
        uint32_t q[GEMM_TILES][4];
        DEV_UNROLL
        for (int m = 0; m < GEMM_TILES; m++) {
            uint4 r = w[(m * QUADS + quad) * DEV_WARP];
            product_words(r, q[m]);
        }
        DEV_UNROLL
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[GEMM_TILES][4];
            DEV_UNROLL
            for (int m = 0; m < GEMM_TILES; m++)
                product_fragment<BITS>(q[m], step, a[m]);
            uint32_t piece = (uint32_t)(quad * STEPS + step) * 2 + lane / 8 % 2;
            DEV_UNROLL
            for (int n = 0; n < N; n += 2) {
                uint32_t b[4];
                dev_ldmatrix4(b, x + (long)(n * 8 * GEMM_X_UNITS + (piece ^ token % 8)));
                DEV_UNROLL
                for (int m = 0; m < GEMM_TILES; m++) {
                    dev_mma_16816(v.c[m][n], a[m], b[0], b[1]);
                    dev_mma_16816(v.c[m][n + 1], a[m], b[2], b[3]);
                }
            }
            v.step(p, row0);
        }
    }
}

/* The tile on its way out: through shared memory, so that whole rows of 256 bytes are written. */
template <int TOKENS, int N>
static DEV_INLINE void gemm_store(const product_params &p, uint32_t panel, uint32_t token0,
                                  uint32_t first_token, const float (&total)[GEMM_TILES][N][4])
{
    const uint32_t lane = dev_lane(), tile = dev_warp() % GEMM_ROW_WARPS * GEMM_TILES;
    dev_shared<uint16_t> out = dev_dynamic<uint16_t>(0, TOKENS * PRODUCT_STRIDE);
    DEV_UNROLL
    for (int m = 0; m < GEMM_TILES; m++)
        DEV_UNROLL
    for (int n = 0; n < N; n++)
        DEV_UNROLL
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t row = (tile + (uint32_t)m) * PACKED_TILE + lane / 4 + j / 2 * 8;
        uint32_t token = first_token + (uint32_t)n * 8 + lane % 4 * 2 + j % 2;
        float v = total[m][n][j] + product_bias(p, panel * PACKED_ROWS + row);
        if (p.staged)
            out[token * PRODUCT_STRIDE + row] = dev_to_half(v);
        else
            product_store(p, token0 + token, panel * PACKED_ROWS + row, v);
    }
    if (!p.staged)
        return;
    dev_barrier();
    product_finish(p, out, panel, token0, TOKENS);
}

/* Grid: token tiles * (WHOLE ? 1 : n_slices) * panels, in this order. */
template <int BITS, bool SHORT, int N, int WN, int STAGES, bool WHOLE>
DEV_KERNEL(GEMM_ROW_WARPS *WN *DEV_WARP, 1)
void gemm_kernel(DEV_PARAMS(product_params) p)
{
    constexpr int TOKENS = WN * N * 8, THREADS = GEMM_ROW_WARPS * WN * DEV_WARP;
    constexpr uint32_t UNITS = gemm_stage_units(BITS, TOKENS);
    DEV_SHARED(uint32_t, last, 1);
    dev_shared<uint4> ring = dev_dynamic<uint4>(0, STAGES * UNITS);
    const uint32_t token_tile = dev_cta_x() % p.n_token_tiles, rest = dev_cta_x() / p.n_token_tiles;
    const uint32_t slice0 = WHOLE ? 0 : rest % p.s.n_slices;
    const uint32_t panel = WHOLE ? rest : rest / p.s.n_slices;
    const uint32_t token0 = token_tile * TOKENS;
    const uint32_t first_token =
        dev_warp() / GEMM_ROW_WARPS * (N * 8); /* of the warp, in the tile */
    const uint32_t row0 =
        panel * PACKED_ROWS + dev_warp() % GEMM_ROW_WARPS * (GEMM_TILES * PACKED_TILE);
    struct packed_slice at = packed_slice_at(&p.s, slice0);
    const uint32_t block0 = at.block, n_blocks = WHOLE ? p.s.n_blocks : at.n_blocks;

    dev_grid_wait();
    DEV_UNROLL
    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < n_blocks)
            gemm_fetch<BITS, TOKENS, THREADS>(p, ring + i * UNITS, panel, token0, block0 + i);
        dev_copy_commit();
    }
    product_sums<BITS, SHORT, GEMM_TILES, N> sums;
    float total[GEMM_TILES][N][4];
    if constexpr (WHOLE)
        product_clear(total);
    sums.begin(p, block0, row0);
    uint32_t slice = slice0, stage = 0, free_stage = STAGES - 1;
    DEV_NO_UNROLL
    for (uint32_t i = 0; i < n_blocks; i++) {
        dev_copy_wait<STAGES - 2>();
        dev_barrier(); /* block i is there, and nobody reads block i - 1 any more */
        if (i + STAGES - 1 < n_blocks)
            gemm_fetch<BITS, TOKENS, THREADS>(p, ring + free_stage * UNITS, panel, token0,
                                              block0 + i + STAGES - 1);
        dev_copy_commit();
        gemm_block<BITS, SHORT, N>(p, ring + stage * UNITS, row0, first_token, sums);
        free_stage = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if constexpr (WHOLE) {
            if (block0 + i + 1 == at.block + at.n_blocks) {
                sums.end(p);
                product_add_slice<BITS, SHORT>(p, at.group, row0, total, sums.c);
                if (++slice < p.s.n_slices) {
                    at = packed_slice_at(&p.s, slice);
                    sums.begin(p, at.block, row0);
                }
            }
        }
    }
    dev_grid_release();
    dev_copy_wait<0>();
    dev_barrier(); /* the ring becomes the way out */
    if constexpr (!WHOLE) {
        sums.end(p);
        uint32_t tile = panel * p.n_token_tiles + token_tile;
        if (p.s.n_slices == 1) {
            product_clear(total);
            product_add_slice<BITS, SHORT>(p, at.group, row0, total, sums.c);
        } else {
            if (!product_hand_over(p, tile, slice, token0 + first_token, sums.c, last + 0))
                return;
            product_collect<BITS, SHORT>(p, tile, row0, token0 + first_token, total);
        }
    }
    gemm_store<TOKENS>(p, panel, token0, first_token, total);
}

#endif
