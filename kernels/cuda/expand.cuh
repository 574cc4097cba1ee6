/* expand.cuh: packed panels back to rows of halves, scaled: fp16(q * scale), as the published
 * checkpoints are dequantized. For long products through a library. */
#ifndef GLMD_KERNELS_CUDA_EXPAND_CUH
#define GLMD_KERNELS_CUDA_EXPAND_CUH

#include "dev.h"
#include "packed.h"

enum { EXPAND_THREADS = 256 };

struct expand_params {
    struct packed_shape s;
    const unsigned char *w; /* the first panel */
    const uint16_t *scale;
    uint16_t *to; /* [rows of the panels that exist, cols], from first_panel on; of a paired matrix
                   * those of the first half, then those of the second */
    uint32_t first_panel, n_panels;
    uint32_t dense; /* packed_dense */
};

/* The weight at bit `bit` of a word, as an integer or the value of a half. */
DEV_FN float expand_value(uint32_t bits, uint32_t word, uint32_t bit)
{
    if (bits == 4)
        return (float)((int32_t)(word >> bit & 15) - PACKED_I4_ZERO);
    if (bits == 8)
        return (float)((int32_t)(word >> bit & 255) - PACKED_I8_ZERO);
    return dev_from_half((uint16_t)(word >> bit & 0xffff));
}

/* A thread writes 8 columns of a row; a warp reads what it needs of 4 blocks, whole sectors, which
 * the rows g + 8 and the other half of each fragment find in the cache. Grid: pieces of 8 columns
 * of all rows of the panels. */
DEV_KERNEL(EXPAND_THREADS, 4) void expand_kernel(DEV_PARAMS(expand_params) p)
{
    const uint32_t pieces = p.s.n_blocks * (PACKED_COLS / 8);
    const uint64_t i = (uint64_t)dev_cta_x() * EXPAND_THREADS + dev_thread();
    const uint32_t row0 = p.first_panel * PACKED_ROWS;
    const uint32_t row = row0 + (uint32_t)(i / pieces), k0 = (uint32_t)(i % pieces) * 8;
    if (i >= (uint64_t)p.n_panels * PACKED_ROWS * pieces || row >= p.s.rows)
        return;
    const uint32_t group = k0 / p.s.group_pad; /* groups begin at multiples of 16 */
    float scale = 1.0f;
    if (p.s.bits != 16 && group < p.s.n_groups)
        scale = dev_from_half(p.scale[(size_t)group * p.s.row_pad + row]);
    uint32_t pair[4];
    DEV_UNROLL
    for (uint32_t t = 0; t < 4; t++) {
        struct packed_place at = packed_place_of(&p.s, row, k0 + 2 * t);
        uint32_t word = *reinterpret_cast<const uint32_t *>(p.w + at.byte + at.bit / 32 * 4);
        uint32_t bit = at.bit % 32, next = bit + (p.s.bits == 8 ? 8 : 16);
        pair[t] = dev_half2(expand_value(p.s.bits, word, bit) * scale,
                            expand_value(p.s.bits, word, next) * scale);
    }
    uint32_t place = row - row0;
    if (p.s.pair_rows)
        place = place % PACKED_ROWS / PACKED_HALF * p.n_panels * PACKED_HALF +
                place / PACKED_ROWS * PACKED_HALF + place % PACKED_HALF;
    uint16_t *to = p.to + (size_t)place * p.s.cols;
    if (p.dense) {
        if (k0 < p.s.cols)
            dev_store16(to + k0, make_uint4(pair[0], pair[1], pair[2], pair[3]));
        return;
    }
    for (uint32_t j = 0; j < 8; j++) {
        uint32_t col = packed_source_col(&p.s, k0 + j);
        if (col < p.s.cols)
            to[col] = (uint16_t)(pair[j / 2] >> 16 * (j % 2) & 0xffff);
    }
}

#endif
