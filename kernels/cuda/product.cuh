/* product.cuh: what the product kernels share: parameters, weights out of their packed form
 * (packed.h), sums and scales, the end of a row. The order of all sums is that of packed.h.
 *
 * A warp owns M row tiles of 16 rows and N tiles of 8 tokens. Lane 4g + t holds of tile (m, n)
 *   v[m][n][0], [1]   row 16 m + g,     tokens 8 n + 2 t, 8 n + 2 t + 1
 *   v[m][n][2], [3]   row 16 m + g + 8, the same tokens
 */
#ifndef GLMD_KERNELS_CUDA_PRODUCT_CUH
#define GLMD_KERNELS_CUDA_PRODUCT_CUH

#include "glu.cuh"
#include "linear.h"
#include "rope.cuh"

enum { PRODUCT_STRIDE = PACKED_ROWS + 8 }; /* halves of a token in a tile on its way out */

struct product_params {
    struct packed_shape s;
    const unsigned char *w; /* the first panel */
    const uint16_t *scale;  /* [n_groups, row_pad], unused for FP16 */
    const uint16_t *bias;   /* [row_pad] */
    const uint16_t *x;      /* [n_tokens, cols] */
    void *y;                /* as `end` says */
    float *partials;        /* sums of slices, where they are added by another CTA */
    uint32_t *counters;     /* [CTAs of one slice], zero between kernels */
    uint32_t n_tokens, n_token_tiles;
    uint32_t dense;  /* x can be read in 16-byte pieces (packed_dense, and its address) */
    uint32_t staged; /* a tile goes out through shared memory (product_finish) */
    enum linear_end_kind end;
    enum k_glu glu;
    struct rope_view rope;
};

/* Eight halves of x at packed columns k0.. of a token, whatever the padding; zeros beyond. */
DEV_FN uint4 product_x_unit(const product_params &p, uint32_t token, uint32_t k0)
{
    uint32_t v[4] = {0, 0, 0, 0};
    DEV_UNROLL
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t col = packed_source_col(&p.s, k0 + i);
        if (token < p.n_tokens && col < p.s.cols)
            v[i / 2] |= (uint32_t)p.x[(size_t)token * p.s.cols + col] << 16 * (i % 2);
    }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

/* x at packed columns k0..k0 + 7 into shared memory; the caller waits. */
DEV_FN void product_stage_x(const product_params &p, dev_shared<uint4> to, uint32_t token,
                            uint32_t k0)
{
    if (p.dense) {
        bool valid = token < p.n_tokens && k0 < p.s.cols;
        dev_copy16(to, p.x + (valid ? (size_t)token * p.s.cols + k0 : 0), valid);
    } else {
        to[0] = product_x_unit(p, token, k0);
    }
}

/* ---- weights ---- */

/* Fragment `step` of a lane's 16 bytes; INT4: rows g + 8 times 16. */
template <int BITS>
static DEV_INLINE void product_fragment(const uint32_t (&q)[4], int step, uint32_t (&a)[4])
{
    if constexpr (BITS == 4) {
        uint32_t w = q[step], w8 = w >> 8;
        a[0] = dev_half2_sub(dev_and_or(w, 0x000f000f, 0x64006400), 0x64086408);
        a[1] = dev_half2_sub(dev_and_or(w, 0x00f000f0, 0x64006400), 0x64806480);
        a[2] = dev_half2_sub(dev_and_or(w8, 0x000f000f, 0x64006400), 0x64086408);
        a[3] = dev_half2_sub(dev_and_or(w8, 0x00f000f0, 0x64006400), 0x64806480);
    } else if constexpr (BITS == 8) {
        DEV_UNROLL
        for (int i = 0; i < 2; i++) {
            uint32_t w = q[2 * step + i];
            a[2 * i] = dev_half2_sub(dev_byte_perm(w, 0x64646464, 0x4140), 0x64806480);
            a[2 * i + 1] = dev_half2_sub(dev_byte_perm(w, 0x64646464, 0x4342), 0x64806480);
        }
    } else {
        DEV_UNROLL
        for (int i = 0; i < 4; i++)
            a[i] = q[i];
    }
}

static_assert(PACKED_I4_ZERO == 8, "0x6408 is 1024 + 8, 0x6480 is 1024 + 16 * 8");
static_assert(PACKED_I8_ZERO == 128, "0x6480 is 1024 + 128");

DEV_FN void product_words(uint4 v, uint32_t (&q)[4])
{
    q[0] = v.x;
    q[1] = v.y;
    q[2] = v.z;
    q[3] = v.w;
}

/* ---- scales and sums ---- */

/* Scales of the lane's rows in tiles from row0 on; INT4: without the 16 of rows g + 8. Beyond the
 * last group: zeros, as the weights there. */
template <int BITS, int M>
static DEV_INLINE void product_scales(const product_params &p, uint32_t group, uint32_t row0,
                                      float (&scale)[M][2])
{
    DEV_UNROLL
    for (int m = 0; m < M; m++) {
        const uint16_t *at =
            p.scale + (size_t)group * p.s.row_pad + row0 + m * PACKED_TILE + dev_lane() / 4;
        bool exists = group < p.s.n_groups;
        scale[m][0] = exists ? dev_from_half(at[0]) : 0.0f;
        scale[m][1] = exists ? dev_from_half(at[8]) * (BITS == 4 ? 0.0625f : 1.0f) : 0.0f;
    }
}

template <int M, int N> static DEV_INLINE void product_clear(float (&v)[M][N][4])
{
    DEV_UNROLL
    for (int m = 0; m < M; m++)
        DEV_UNROLL
    for (int n = 0; n < N; n++)
        DEV_UNROLL
    for (int j = 0; j < 4; j++)
        v[m][n][j] = 0.0f;
}

/* sum += scale * v, one rounding each. */
template <int M, int N>
static DEV_INLINE void product_add_scaled(float (&sum)[M][N][4], const float (&v)[M][N][4],
                                          const float (&scale)[M][2])
{
    DEV_UNROLL
    for (int m = 0; m < M; m++)
        DEV_UNROLL
    for (int n = 0; n < N; n++)
        DEV_UNROLL
    for (int j = 0; j < 4; j++)
        sum[m][n][j] = dev_fma(scale[m][j / 2], v[m][n][j], sum[m][n][j]);
}

/* The result of one slice is added to the total. */
template <int BITS, bool SHORT, int M, int N>
static DEV_INLINE void product_add_slice(const product_params &p, uint32_t group, uint32_t row0,
                                         float (&total)[M][N][4], const float (&v)[M][N][4])
{
    if constexpr (BITS != 16 && !SHORT) {
        float scale[M][2];
        product_scales<BITS, M>(p, group, row0, scale);
        product_add_scaled(total, v, scale);
    } else {
        DEV_UNROLL
        for (int m = 0; m < M; m++)
            DEV_UNROLL
        for (int n = 0; n < N; n++)
            DEV_UNROLL
        for (int j = 0; j < 4; j++)
            total[m][n][j] += v[m][n][j];
    }
}

/* The sums of a slice: c are the accumulators, since the start of the slice or, with short groups,
 * of the group; `sum` what earlier groups of the slice gave. */
template <int BITS, bool SHORT, int M, int N> struct product_sums {
    float c[M][N][4];
    float sum[SHORT ? M : 1][SHORT ? N : 1][4];
    float scale[SHORT ? M : 1][2]; /* of the group */
    uint32_t group, left;          /* steps */

    DEV_MEMBER void begin(const product_params &p, uint32_t block, uint32_t row0)
    {
        product_clear(c);
        if constexpr (SHORT) {
            product_clear(sum);
            uint32_t steps = p.s.group_pad / PACKED_STEP, step = block * PACKED_STEPS;
            group = step / steps;
            left = steps - step % steps;
            product_scales<BITS, M>(p, group, row0, scale);
        }
    }

    /* After a step of 16 columns. */
    DEV_MEMBER void step(const product_params &p, uint32_t row0)
    {
        if constexpr (SHORT) {
            if (--left == 0) {
                product_add_scaled(sum, c, scale);
                product_clear(c);
                group++;
                left = p.s.group_pad / PACKED_STEP;
                product_scales<BITS, M>(p, group, row0, scale);
            }
        }
    }

    /* The slice's result is in `c`. */
    DEV_MEMBER void end(const product_params &p)
    {
        if constexpr (SHORT) {
            if (left != p.s.group_pad / PACKED_STEP)
                product_add_scaled(sum, c, scale);
            DEV_UNROLL
            for (int m = 0; m < M; m++)
                DEV_UNROLL
            for (int n = 0; n < N; n++)
                DEV_UNROLL
            for (int j = 0; j < 4; j++)
                c[m][n][j] = sum[m][n][j];
        }
    }
};

/* ---- slices of several CTAs ---- */

/* Where the lane's part of (m, n) of a slice lies: a thread writes and reads 16 bytes, a warp 512
 * contiguous ones. `tile` counts panels and token tiles. */
template <int M, int N>
static DEV_INLINE float *product_partial(const product_params &p, uint32_t tile, uint32_t slice,
                                         int m, int n)
{
    size_t part = ((size_t)tile * p.s.n_slices + slice) * (M * N) + m * N + n;
    return p.partials + (part * dev_threads() + dev_thread()) * 4;
}

/* Writes the slice's result; true in the CTA that wrote the last slice of its tile, all threads of
 * which then see all slices. token0: of the lane's warp. */
template <int M, int N>
static DEV_INLINE bool product_hand_over(const product_params &p, uint32_t tile, uint32_t slice,
                                         uint32_t token0, const float (&v)[M][N][4],
                                         dev_shared<uint32_t> last)
{
    DEV_UNROLL
    for (int m = 0; m < M; m++)
        DEV_UNROLL
    for (int n = 0; n < N; n++)
        if (token0 + 8 * n + 2 * (dev_lane() % 4) < p.n_tokens) {
            const float(&r)[4] = v[m][n];
            dev_store16(product_partial<M, N>(p, tile, slice, m, n),
                        make_uint4(dev_float_bits(r[0]), dev_float_bits(r[1]), dev_float_bits(r[2]),
                                   dev_float_bits(r[3])));
        }
    dev_fence();
    dev_barrier();
    if (dev_thread() == 0)
        last[0] = dev_atomic_add(p.counters + tile, 1) == p.s.n_slices - 1;
    dev_barrier();
    uint32_t is_last = last[0];
    if (is_last) {
        dev_fence();
        if (dev_thread() == 0)
            p.counters[tile] = 0;
    }
    return is_last != 0;
}

template <int BITS, bool SHORT, int M, int N>
static DEV_INLINE void product_collect(const product_params &p, uint32_t tile, uint32_t row0,
                                       uint32_t token0, float (&total)[M][N][4])
{
    product_clear(total);
    for (uint32_t slice = 0; slice < p.s.n_slices; slice++) {
        float v[M][N][4];
        DEV_UNROLL
        for (int m = 0; m < M; m++)
            DEV_UNROLL
        for (int n = 0; n < N; n++) {
            uint4 r = make_uint4(0, 0, 0, 0);
            if (token0 + 8 * n + 2 * (dev_lane() % 4) < p.n_tokens)
                r = dev_load16_l2(product_partial<M, N>(p, tile, slice, m, n));
            v[m][n][0] = dev_bits_float(r.x);
            v[m][n][1] = dev_bits_float(r.y);
            v[m][n][2] = dev_bits_float(r.z);
            v[m][n][3] = dev_bits_float(r.w);
        }
        product_add_slice<BITS, SHORT>(p, slice / p.s.span_slices, row0, total, v);
    }
}

/* ---- the end ---- */

/* row: of the packed matrix. */
DEV_FN float product_bias(const product_params &p, uint32_t row)
{
    return dev_from_half(p.bias[packed_source_row(&p.s, row)]);
}

/* LINEAR_HALVES, LINEAR_FLOATS. row: of the packed matrix. */
DEV_FN void product_store(const product_params &p, uint32_t token, uint32_t row, float v)
{
    if (token >= p.n_tokens || row >= p.s.rows)
        return;
    size_t at = (size_t)token * p.s.rows + packed_source_row(&p.s, row);
    if (p.end == LINEAR_FLOATS)
        static_cast<float *>(p.y)[at] = v;
    else
        static_cast<uint16_t *>(p.y)[at] = dev_to_half(v);
}

/* A tile of a panel that is on its way out lies in shared memory, as halves, the bias added:
 * [tokens][PRODUCT_STRIDE]. From there it goes, as `end` says, in whole rows. All threads of the
 * CTA, behind a barrier. */

DEV_FN uint4 product_piece(dev_shared<uint16_t> out, uint32_t token, uint32_t row)
{
    uint4 v = dev_shared_as<uint4>(out + (long)(token * PRODUCT_STRIDE + row))[0];
    return v;
}

DEV_FN void product_rows(const product_params &p, dev_shared<uint16_t> out, uint32_t panel,
                         uint32_t token0, uint32_t n_tokens)
{
    constexpr uint32_t UNITS = PACKED_ROWS / 8;
    for (uint32_t i = dev_thread(); i < n_tokens * UNITS; i += dev_threads()) {
        uint32_t token = i / UNITS, row = panel * PACKED_ROWS + i % UNITS * 8;
        if (token0 + token < p.n_tokens && row < p.s.rows)
            dev_store16(static_cast<uint16_t *>(p.y) + (size_t)(token0 + token) * p.s.rows +
                            packed_source_row(&p.s, row),
                        product_piece(out, token, i % UNITS * 8));
    }
}

/* The halves of the rows are halves of the panel. */
DEV_FN void product_glu(const product_params &p, dev_shared<uint16_t> out, uint32_t panel,
                        uint32_t token0, uint32_t n_tokens)
{
    constexpr uint32_t UNITS = PACKED_HALF / 8;
    for (uint32_t i = dev_thread(); i < n_tokens * UNITS; i += dev_threads()) {
        uint32_t token = i / UNITS, row = i % UNITS * 8;
        if (token0 + token < p.n_tokens)
            dev_store16(static_cast<uint16_t *>(p.y) + (size_t)(token0 + token) * p.s.pair_rows +
                            panel * PACKED_HALF + row,
                        glu_piece(p.glu, product_piece(out, token, row),
                                  product_piece(out, token, PACKED_HALF + row)));
    }
}

/* A warp for each vector: a panel holds one or more, whole. */
DEV_FN void product_rope(const product_params &p, dev_shared<uint16_t> out, uint32_t panel,
                         uint32_t token0, uint32_t n_tokens)
{
    const rope_view &r = p.rope;
    const uint32_t vectors = PACKED_ROWS / r.dim, half = r.dim / 2, of_head = r.group + 2;
    for (uint32_t i = dev_warp(); i < n_tokens * vectors; i += dev_threads() / DEV_WARP) {
        const uint32_t token = i / vectors, row = token0 + token;
        const uint32_t vector = panel * vectors + i % vectors;
        const uint32_t kv_head = vector / of_head, which = vector % of_head;
        if (row >= p.n_tokens || kv_head >= r.kv.n_kv_heads)
            continue; /* the whole warp */
        dev_shared<uint32_t> words =
            dev_shared_as<uint32_t>(out + (long)(token * PRODUCT_STRIDE + i % vectors * r.dim));
        uint32_t lo = 0, hi = 0;
        if (rope_col() < half) {
            lo = words[dev_lane()];
            hi = words[half / 2 + dev_lane()];
        }
        rope_values v = rope_unpack(lo, hi);
        if (which <= r.group)
            v = rope_rotate(v, rope_angles_of(r, row));
        if (which < r.group) {
            const size_t head = ((size_t)row * r.kv.n_kv_heads + kv_head) * r.group + which;
            rope_store_halves(r.q + head * r.dim, half, v);
            continue;
        }
        rope_slot at;
        if (rope_find(r, row, kv_head, &at))
            rope_file(r, at, which > r.group, v);
    }
}

DEV_FN void product_finish(const product_params &p, dev_shared<uint16_t> out, uint32_t panel,
                           uint32_t token0, uint32_t n_tokens)
{
    if (p.end == LINEAR_GLU)
        product_glu(p, out, panel, token0, n_tokens);
    else if (p.end == LINEAR_ROPE)
        product_rope(p, out, panel, token0, n_tokens);
    else
        product_rows(p, out, panel, token0, n_tokens);
}

#endif
