/* gemv.cuh: products of 1 to 8 tokens, bound by reading the weights once.
 *
 * CTA: one panel (128 rows) and one slice of its columns; each of 8 warps owns a tile of 16 rows.
 * A lane's weights go from memory to registers, 8 loads of 16 bytes in flight, past shared memory;
 * x of the slice (8 tokens, zeros for those that do not exist) is in shared memory. All token
 * counts do the same work. Slices are added by the CTA that ends last, in ascending order.
 */
#ifndef GLMD_KERNELS_CUDA_GEMV_CUH
#define GLMD_KERNELS_CUDA_GEMV_CUH

#include "product.cuh"

enum { GEMV_TOKENS = 8, GEMV_THREADS = 256, GEMV_DEPTH = 8 };
static_assert(GEMV_THREADS / DEV_WARP == PACKED_TILES, "a warp for each tile");

/* 32-bit words of a token's x in shared memory: the lanes of a fragment (8 tokens, 4 words) meet 32
 * different banks. */
PACKED_FN uint32_t gemv_x_stride(const struct packed_shape *s)
{
    return s->slice_blocks * (PACKED_COLS / 2) + 4;
}

PACKED_FN size_t gemv_shared_bytes(const struct packed_shape *s)
{
    size_t x = (size_t)GEMV_TOKENS * gemv_x_stride(s) * 4;
    size_t out = (size_t)GEMV_TOKENS * PRODUCT_STRIDE * 2;
    return x < out ? out : x;
}

/* Grid: panels * n_slices. */
template <int BITS, bool SHORT>
DEV_KERNEL(GEMV_THREADS, 3)
void gemv_kernel(DEV_PARAMS(product_params) p)
{
    constexpr int QUADS = BITS / 4, STEPS = PACKED_STEPS / QUADS;
    DEV_SHARED(uint32_t, last, 1);
    const uint32_t stride = gemv_x_stride(&p.s);
    dev_shared<uint32_t> xs = dev_dynamic<uint32_t>(0, GEMV_TOKENS * stride);
    const uint32_t panel = dev_cta_x() / p.s.n_slices, slice = dev_cta_x() % p.s.n_slices;
    const struct packed_slice at = packed_slice_at(&p.s, slice);
    const uint32_t tile = dev_warp(), lane = dev_lane();
    const uint32_t row0 = panel * PACKED_ROWS + tile * PACKED_TILE;
    const uint32_t n_quads = at.n_blocks * QUADS;
    const unsigned char *w =
        p.w + packed_lane_at(BITS, p.s.n_blocks, panel, at.block, tile, 0, lane);

    /* quad i: block i / QUADS, whose tiles lie behind each other */
    uint4 ring[GEMV_DEPTH];
    DEV_UNROLL
    for (uint32_t i = 0; i < GEMV_DEPTH; i++)
        if (i < n_quads)
            ring[i] =
                dev_stream16(w + (size_t)(i / QUADS) * PACKED_TILES * QUADS * PACKED_QUAD_BYTES +
                             i % QUADS * PACKED_QUAD_BYTES);

    dev_grid_wait(); /* weights depend on nobody, x does */
    const uint32_t units = at.n_blocks * (PACKED_COLS / 8);
    for (uint32_t i = dev_thread(); i < GEMV_TOKENS * units; i += GEMV_THREADS) {
        uint32_t token = i / units, unit = i % units;
        product_stage_x(p, dev_shared_as<uint4>(xs + token * stride + unit * 4), token,
                        at.block * PACKED_COLS + unit * 8);
    }
    dev_copy_commit();
    dev_copy_wait<0>();
    dev_barrier();

    product_sums<BITS, SHORT, 1, 1> sums;
    sums.begin(p, at.block, row0);
    dev_shared<uint32_t> b = xs + lane / 4 * stride + lane % 4;
    for (uint32_t i0 = 0; i0 < n_quads; i0 += GEMV_DEPTH) {
        DEV_UNROLL
        for (uint32_t j = 0; j < GEMV_DEPTH; j++) {
            uint32_t i = i0 + j, next = i + GEMV_DEPTH;
            if (i < n_quads) {
                uint32_t q[4];
                product_words(ring[j], q);
                if (next < n_quads)
                    ring[j] = dev_stream16(
                        w + (size_t)(next / QUADS) * PACKED_TILES * QUADS * PACKED_QUAD_BYTES +
                        next % QUADS * PACKED_QUAD_BYTES);
                DEV_UNROLL
                for (int step = 0; step < STEPS; step++) {
                    uint32_t a[4], word = (i * STEPS + (uint32_t)step) * (PACKED_STEP / 2);
                    product_fragment<BITS>(q, step, a);
                    uint32_t b0 = b[word], b1 = b[word + 4];
                    dev_mma_16816(sums.c[0][0], a, b0, b1);
                    sums.step(p, row0);
                }
            }
        }
    }
    dev_grid_release();
    sums.end(p);

    float total[1][1][4];
    if (p.s.n_slices == 1) {
        product_clear(total);
        product_add_slice<BITS, SHORT>(p, at.group, row0, total, sums.c);
    } else {
        if (!product_hand_over(p, panel, slice, 0, sums.c, last + 0))
            return;
        product_collect<BITS, SHORT>(p, panel, row0, 0, total);
    }
    dev_shared<uint16_t> out = dev_dynamic<uint16_t>(0, GEMV_TOKENS * PRODUCT_STRIDE);
    if (p.staged)
        dev_barrier(); /* x becomes the way out */
    DEV_UNROLL
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t row = row0 + lane / 4 + j / 2 * 8, token = lane % 4 * 2 + j % 2;
        float v = total[0][0][j] + product_bias(p, row);
        if (p.staged)
            out[token * PRODUCT_STRIDE + row % PACKED_ROWS] = dev_to_half(v);
        else
            product_store(p, token, row, v);
    }
    if (p.staged) {
        dev_barrier();
        product_finish(p, out, panel, 0, GEMV_TOKENS);
    }
}

#endif
