/* gemm_wide.cuh: products of many tokens on sm_90a's warpgroups (dev_wgmma.h): weights go from
 * their packed form straight into registers, as the operand that wgmma takes from there; x is the
 * one in shared memory.
 *
 * CTA: PANELS panels (128 rows each) and N tokens, two warpgroups. With one panel a warpgroup owns
 * half of it, with two a whole one, as two operations of 64 rows; a warp owns one row tile of each.
 * Blocks of 64 columns go through a ring of STAGES, as in gemm.cuh, which x already leaves swizzled
 * the way that descriptors ask for. While the operations of a block run, the next one's weights are
 * read, still packed; unpacking them is the time of one warpgroup in which the tensor cores have
 * the other's operations.
 *
 * WHOLE: all slices, one after another. The accumulators fill the registers, so that the sum over
 * slices is kept in shared memory, 16 bytes of a thread at a time. Otherwise a CTA takes one slice
 * (gemm.cuh).
 *
 * Sums have the order of packed.h: one step of 16 columns after another from zero, slice by slice.
 * Whether a warpgroup's step has the bits of a warp's is a question to the hardware, which is asked
 * at the start (linear.cu, `same_bits`): where it says no this kernel is not used.
 *
 * L2 traffic of a block, INT4, 128 tokens, in bytes per multiplication: one panel 40 a cycle of the
 * tensor cores, two panels 24: hence two where the matrix has enough of them.
 */
#ifndef GLMD_KERNELS_CUDA_GEMM_WIDE_CUH
#define GLMD_KERNELS_CUDA_GEMM_WIDE_CUH

#include "dev_wgmma.h"
#include "gemm.cuh"

enum { WIDE_GROUPS = 2, WIDE_THREADS = WIDE_GROUPS * DEV_GROUP };

/* 16-byte units. */
DEV_HOST_FN constexpr uint32_t wide_stage_units(uint32_t bits, uint32_t panels, uint32_t tokens)
{
    return panels * gemm_weight_units(bits) + tokens * GEMM_X_UNITS;
}

DEV_HOST_FN constexpr uint32_t wide_sum_units(uint32_t panels, uint32_t tokens)
{
    return panels * PACKED_ROWS * tokens * 4 / 16;
}

/* The ring, sums over slices, a flag, and what aligning the ring may cost. On its way out a tile
 * takes less than the ring. */
DEV_HOST_FN constexpr size_t wide_shared_bytes(uint32_t bits, uint32_t panels, uint32_t tokens,
                                               uint32_t stages)
{
    return (size_t)(stages * wide_stage_units(bits, panels, tokens) +
                    wide_sum_units(panels, tokens) + 1) *
               16 +
           DEV_WGMMA_ALIGN;
}

#if DEV_WGMMA

/* What a thread knows of its place. */
template <int PANELS> struct wide_place {
    static constexpr int OPS = PANELS; /* of 64 rows, for a warpgroup */
    uint32_t panel0;                   /* of the CTA */

    DEV_MEMBER uint32_t group() const
    {
        return dev_thread() / DEV_GROUP;
    }
    DEV_MEMBER uint32_t own_panel() const /* in the CTA */
    {
        return PANELS == 1 ? 0 : group();
    }
    /* Of operation m, in the panel. */
    DEV_MEMBER uint32_t tile(int m) const
    {
        return (PANELS == 1 ? group() : (uint32_t)m) * 4 + dev_warp() % 4;
    }
};

/* The last panel once more where there is none. */
template <int BITS, int PANELS, int N>
static DEV_INLINE void wide_fetch(const product_params &p, dev_shared<uint4> stage, uint32_t panel0,
                                  uint32_t token0, uint32_t block)
{
    constexpr uint32_t WEIGHTS = gemm_weight_units(BITS);
    DEV_UNROLL
    for (uint32_t r = 0; r < PANELS; r++) {
        const uint32_t panel = panel0 + r < p.s.n_panels ? panel0 + r : p.s.n_panels - 1;
        gemm_fetch_weights<BITS, WIDE_THREADS>(p, stage + r * WEIGHTS, panel, block);
    }
    gemm_fetch_x<N, WIDE_THREADS>(p, stage + PANELS * WEIGHTS, token0, block);
}

/* A lane's weights of a block, packed, for every operation. */
template <int BITS, int PANELS> struct wide_weights {
    uint32_t q[PANELS][BITS / 4][4];

    DEV_MEMBER void load(const wide_place<PANELS> &at, dev_shared<uint4> stage)
    {
        DEV_UNROLL
        for (int m = 0; m < PANELS; m++) {
            dev_shared<uint4> w = stage + at.own_panel() * gemm_weight_units(BITS) +
                                  at.tile(m) * (BITS / 4) * DEV_WARP + dev_lane();
            DEV_UNROLL
            for (int quad = 0; quad < BITS / 4; quad++) {
                uint4 r = w[quad * DEV_WARP];
                product_words(r, q[m][quad]);
            }
        }
    }
};

/* Starts the operations of a block. Nothing is in flight: ptxas would wait for it one by one before
 * it lets registers that wgmma reads be written. */
template <int BITS, int PANELS, int N>
static DEV_INLINE void wide_start(const wide_weights<BITS, PANELS> &w, dev_shared<uint4> x,
                                  dev_fragment (&a)[PANELS][PACKED_STEPS],
                                  dev_accum<N> (&sums)[PANELS])
{
    constexpr int QUADS = BITS / 4, STEPS = PACKED_STEPS / QUADS;
    DEV_UNROLL
    for (int m = 0; m < PANELS; m++)
        DEV_UNROLL
    for (int i = 0; i < PACKED_STEPS; i++) {
        uint32_t v[4];
        product_fragment<BITS>(w.q[m][i / STEPS], i % STEPS, v);
        a[m][i].set(v);
    }
    const uint64_t rows = dev_wgmma_rows(x);
    dev_wgmma_fence();
    DEV_UNROLL
    for (int step = 0; step < PACKED_STEPS; step++)
        DEV_UNROLL
    for (int m = 0; m < PANELS; m++)
        dev_wgmma(sums[m], a[m][step], dev_wgmma_step(rows, step));
    dev_wgmma_commit();
}

/* Where the thread keeps the sums of tile (m, n): the lane's four of product.cuh. */
template <int N>
static DEV_INLINE dev_shared<float4> wide_sum_at(dev_shared<float4> totals, int m, int n)
{
    return totals + ((m * (N / 8) + n) * WIDE_THREADS + dev_thread());
}

/* totals (+)= scale * sums of a slice, as product_add_slice; the accumulators start anew. */
template <int BITS, int PANELS, int N>
static DEV_INLINE void wide_add_slice(const product_params &p, const wide_place<PANELS> &at,
                                      uint32_t group, bool first, dev_shared<float4> totals,
                                      dev_accum<N> (&sums)[PANELS])
{
    const uint32_t panel = at.panel0 + at.own_panel();
    const uint32_t panel_row = (panel < p.s.n_panels ? panel : p.s.n_panels - 1) * PACKED_ROWS;
    DEV_UNROLL
    for (int m = 0; m < PANELS; m++) {
        float scale[1][2] = {{1, 1}};
        if constexpr (BITS != 16)
            product_scales<BITS, 1>(p, group, panel_row + at.tile(m) * PACKED_TILE, scale);
        DEV_UNROLL
        for (int n = 0; n < N / 8; n++) {
            dev_shared<float4> place = wide_sum_at<N>(totals, m, n);
            float4 before = make_float4(0, 0, 0, 0);
            if (!first)
                before = place[0];
            float t[4] = {before.x, before.y, before.z, before.w};
            DEV_UNROLL
            for (int j = 0; j < 4; j++) {
                float v = sums[m].get(4 * n + j);
                t[j] = BITS == 16 ? t[j] + v : dev_fma(scale[0][j / 2], v, t[j]);
            }
            place[0] = make_float4(t[0], t[1], t[2], t[3]);
        }
        sums[m].clear();
    }
}

/* A slice of several: true in the CTA that ends last, which then has the sums of all of them. */
template <int BITS, int N>
static DEV_INLINE bool wide_collect(const product_params &p, const wide_place<1> &at,
                                    uint32_t token_tile, uint32_t slice, dev_shared<float4> totals,
                                    dev_accum<N> (&sums)[1], dev_shared<uint32_t> last)
{
    const uint32_t tile = at.panel0 * p.n_token_tiles + token_tile, token0 = token_tile * N;
    float v[1][N / 8][4];
    DEV_UNROLL
    for (int i = 0; i < N / 2; i++)
        v[0][i / 4][i % 4] = sums[0].get(i);
    if (!product_hand_over(p, tile, slice, token0, v, last))
        return false;
    product_collect<BITS, false>(p, tile, at.panel0 * PACKED_ROWS + at.tile(0) * PACKED_TILE,
                                 token0, v);
    DEV_UNROLL
    for (int n = 0; n < N / 8; n++)
        wide_sum_at<N>(totals, 0, n)[0] =
            make_float4(v[0][n][0], v[0][n][1], v[0][n][2], v[0][n][3]);
    return true;
}

template <int PANELS, int N>
static DEV_INLINE void wide_store(const product_params &p, const wide_place<PANELS> &at,
                                  uint32_t token0, dev_shared<float4> totals)
{
    const uint32_t lane = dev_lane(), panel = at.panel0 + at.own_panel();
    dev_shared<uint16_t> out = dev_dynamic<uint16_t>(0, PANELS * N * PRODUCT_STRIDE);
    const bool exists = panel < p.s.n_panels;
    DEV_UNROLL
    for (int m = 0; m < PANELS; m++)
        DEV_UNROLL
    for (int n = 0; n < N / 8; n++) {
        float4 sum = wide_sum_at<N>(totals, m, n)[0];
        const float v[4] = {sum.x, sum.y, sum.z, sum.w};
        DEV_UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t row = at.tile(m) * PACKED_TILE + lane / 4 + j / 2 * 8;
            uint32_t token = (uint32_t)n * 8 + lane % 4 * 2 + j % 2;
            float r = v[j] + (exists ? product_bias(p, panel * PACKED_ROWS + row) : 0.0f);
            if (p.staged)
                out[(at.own_panel() * N + token) * PRODUCT_STRIDE + row] = dev_to_half(r);
            else if (exists)
                product_store(p, token0 + token, panel * PACKED_ROWS + row, r);
        }
    }
    if (!p.staged)
        return;
    dev_barrier();
    for (uint32_t r = 0; r < PANELS && at.panel0 + r < p.s.n_panels; r++)
        product_finish(p, out + (long)(r * N * PRODUCT_STRIDE), at.panel0 + r, token0, N);
}

#endif

/* Grid: token tiles * (WHOLE ? 1 : n_slices) * panels / PANELS, in this order. */
template <int BITS, int PANELS, int N, int STAGES, bool WHOLE>
DEV_KERNEL(WIDE_THREADS, 1)
void wide_kernel(DEV_PARAMS(product_params) p)
{
#if DEV_WGMMA
    constexpr uint32_t UNITS = wide_stage_units(BITS, PANELS, N);
    constexpr uint32_t SUMS = wide_sum_units(PANELS, N);
    static_assert(WHOLE || PANELS == 1, "slices are handed over panel by panel");
    static_assert((size_t)PANELS * N * PRODUCT_STRIDE * 2 <= (size_t)STAGES * UNITS * 16,
                  "a tile on its way out fits the ring");
    static_assert(STAGES >= 3, "one is read, one comes next, one is filled");
    dev_shared<uint4> ring =
        dev_wgmma_aligned(dev_dynamic<uint4>(0, STAGES * UNITS + SUMS + 1 + DEV_WGMMA_ALIGN / 16));
    dev_shared<float4> totals = dev_shared_as<float4>(ring + STAGES * UNITS);
    dev_shared<uint32_t> last = dev_shared_as<uint32_t>(ring + STAGES * UNITS + SUMS);
    const uint32_t token_tile = dev_cta_x() % p.n_token_tiles, rest = dev_cta_x() / p.n_token_tiles;
    const uint32_t slice0 = WHOLE ? 0 : rest % p.s.n_slices;
    const uint32_t token0 = token_tile * N;
    wide_place<PANELS> place;
    place.panel0 = (WHOLE ? rest : rest / p.s.n_slices) * PANELS;
    struct packed_slice at = packed_slice_at(&p.s, slice0);
    const uint32_t block0 = at.block, n_blocks = WHOLE ? p.s.n_blocks : at.n_blocks;

    dev_grid_wait();
    DEV_UNROLL
    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < n_blocks)
            wide_fetch<BITS, PANELS, N>(p, ring + i * UNITS, place.panel0, token0, block0 + i);
        dev_copy_commit();
    }
    dev_accum<N> sums[PANELS];
    dev_fragment a[PANELS][PACKED_STEPS];
    wide_weights<BITS, PANELS> w;
    DEV_UNROLL
    for (int m = 0; m < PANELS; m++)
        sums[m].clear();
    dev_copy_wait<STAGES - 2>();
    dev_async_fence();
    dev_barrier();
    w.load(place, ring);
    uint32_t slice = slice0, stage = 0, fill = STAGES - 1;
    DEV_NO_UNROLL
    for (uint32_t i = 0; i < n_blocks; i++) {
        wide_start<BITS, PANELS, N>(w, ring + stage * UNITS + PANELS * gemm_weight_units(BITS), a,
                                    sums);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        dev_copy_wait<STAGES - 3>();
        dev_async_fence();
        dev_barrier(); /* the next block is there, and the one before this one is read */
        if (i + STAGES - 1 < n_blocks)
            wide_fetch<BITS, PANELS, N>(p, ring + fill * UNITS, place.panel0, token0,
                                        block0 + i + STAGES - 1);
        dev_copy_commit();
        fill = fill + 1 == STAGES ? 0 : fill + 1;
        if (i + 1 < n_blocks)
            w.load(place, ring + stage * UNITS);
        dev_wgmma_wait<0>();
        DEV_UNROLL
        for (int m = 0; m < PANELS; m++)
            sums[m].arrived();
        if constexpr (WHOLE) {
            if (block0 + i + 1 == at.block + at.n_blocks) {
                wide_add_slice<BITS, PANELS, N>(p, place, at.group, slice == 0, totals, sums);
                if (++slice < p.s.n_slices)
                    at = packed_slice_at(&p.s, slice);
            }
        }
    }
    dev_grid_release();
    dev_copy_wait<0>();
    if constexpr (!WHOLE) {
        if (p.s.n_slices == 1)
            wide_add_slice<BITS, PANELS, N>(p, place, at.group, true, totals, sums);
        else if (!wide_collect<BITS, N>(p, place, token_tile, slice, totals, sums, last))
            return;
    }
    dev_barrier(); /* the ring becomes the way out */
    wide_store<PANELS, N>(p, place, token0, totals);
#else
    (void)p;
#endif
}

#endif
