/* rows.cuh: kernels around the products that only move data: packing a matrix, looking up rows of a
 * packed table, gathering rows of an activation. */
#ifndef GLMD_KERNELS_CUDA_ROWS_CUH
#define GLMD_KERNELS_CUDA_ROWS_CUH

#include "dev.h"
#include "packed.h"

enum { ROWS_THREADS = 256 };

struct repack_params {
    struct packed_shape s;
    const unsigned char *from; /* rows 128 * first .. as in k_linear_src */
    unsigned char *to;         /* the first panel of the matrix */
    uint32_t first, n;         /* pieces of 128 rows of the source */
};

/* The bits of the weight at (row of the source, packed column), as they are kept: with the zero
 * point added. */
DEV_FN uint32_t repack_value(const repack_params &p, uint32_t row, uint32_t k)
{
    uint32_t zero = p.s.bits == 4 ? PACKED_I4_ZERO : p.s.bits == 8 ? PACKED_I8_ZERO : 0;
    uint32_t col = packed_source_col(&p.s, k);
    if (row >= p.s.rows || col >= p.s.cols)
        return zero;
    size_t at = (size_t)(row - p.first * PACKED_ROWS) * p.s.cols + col;
    if (p.s.bits == 4)
        return ((uint32_t)p.from[at / 2] >> (at % 2 ? 0 : 4) & 15) ^ zero;
    if (p.s.bits == 8)
        return p.from[at] ^ zero;
    return (uint32_t)p.from[2 * at] | (uint32_t)p.from[2 * at + 1] << 8;
}

/* A thread writes the 16 bytes of a lane: tiles go where their rows belong. Grid: 16-byte units of
 * the rows. */
DEV_KERNEL(ROWS_THREADS, 2) void repack_kernel(DEV_PARAMS(repack_params) p)
{
    const uint32_t quads = p.s.bits / 4, steps = PACKED_STEPS / quads;
    const uint32_t block_units = PACKED_TILES * quads * PACKED_LANES;
    const uint64_t n = (uint64_t)p.n * p.s.n_blocks * block_units;
    const uint64_t unit = (uint64_t)dev_cta_x() * ROWS_THREADS + dev_thread();
    if (unit >= n)
        return;
    const uint32_t lane = (uint32_t)(unit % PACKED_LANES);
    const uint32_t quad = (uint32_t)(unit / PACKED_LANES % quads);
    const uint32_t tile = (uint32_t)(unit / PACKED_LANES / quads % PACKED_TILES);
    const uint64_t whole_block = unit / block_units;
    const uint32_t block = (uint32_t)(whole_block % p.s.n_blocks);
    const uint32_t piece = p.first + (uint32_t)(whole_block / p.s.n_blocks);
    const uint32_t source = piece * PACKED_ROWS + tile * PACKED_TILE;
    const uint32_t row0 = packed_row(&p.s, source);
    uint64_t low = 0, high = 0;
    for (uint32_t step = 0; step < steps; step++)
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t reg = i / 2, e = i % 2;
            uint32_t row = lane / 4 + reg % 2 * 8;
            uint32_t k = block * PACKED_COLS + (quad * steps + step) * PACKED_STEP + lane % 4 * 2 +
                         e + reg / 2 * 8;
            uint32_t bit = packed_place_of(&p.s, row, k).bit;
            uint64_t value = (uint64_t)repack_value(p, source + row, k) << bit % 64;
            low |= bit < 64 ? value : 0;
            high |= bit < 64 ? 0 : value;
        }
    dev_store16(
        p.to + packed_lane_at(p.s.bits, p.s.n_blocks, row0 / PACKED_ROWS, block,
                              row0 % PACKED_ROWS / PACKED_TILE, quad, lane),
        make_uint4((uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)));
}

struct rescale_params {
    struct packed_shape s;
    const uint16_t *from; /* [n, n_groups]: rows from first_row on */
    uint16_t *to;         /* [n_groups, row_pad] */
    uint32_t first_row, n, n_groups;
};

/* Grid: values. */
DEV_KERNEL(ROWS_THREADS, 2) void rescale_kernel(DEV_PARAMS(rescale_params) p)
{
    const uint64_t i = (uint64_t)dev_cta_x() * ROWS_THREADS + dev_thread();
    if (i >= (uint64_t)p.n * p.n_groups)
        return;
    const uint32_t row = packed_row(&p.s, p.first_row + (uint32_t)(i % p.n));
    const uint32_t group = (uint32_t)(i / p.n);
    p.to[(size_t)group * p.s.row_pad + row] = p.from[i % p.n * p.n_groups + group];
}

struct lookup_params {
    struct packed_shape s;
    const unsigned char *table; /* the first panel, FP16 */
    const int32_t *ids;
    uint16_t *y; /* [n, cols] */
    uint32_t first_row, n;
};

/* y[i] = row ids[i] - first_row of the table, or zeros. A thread copies a pair of columns, which
 * lie in one register of one lane. Grid: x = pieces of a row, y = rows. */
DEV_KERNEL(ROWS_THREADS, 2) void lookup_kernel(DEV_PARAMS(lookup_params) p)
{
    const uint32_t i = dev_cta_y(), col = (dev_cta_x() * ROWS_THREADS + dev_thread()) * 2;
    if (col >= p.s.cols)
        return;
    const int64_t row = (int64_t)p.ids[i] - p.first_row;
    uint32_t pair = 0;
    if (row >= 0 && row < p.s.rows) {
        struct packed_place at = packed_place_of(&p.s, (uint32_t)row, col);
        pair = *reinterpret_cast<const uint32_t *>(p.table + at.byte + at.bit / 8);
    }
    uint16_t *to = p.y + (size_t)i * p.s.cols + col;
    to[0] = (uint16_t)(pair & 0xffff);
    if (col + 1 < p.s.cols)
        to[1] = (uint16_t)(pair >> 16);
}

struct gather_params {
    const uint16_t *x; /* [.., cols] */
    const uint32_t *rows;
    uint16_t *y;           /* [n, cols] */
    uint32_t cols, vector; /* 1: rows are multiples of 16 bytes, at such addresses */
};

/* y[i] = x[rows[i]]. Grid: x = pieces of 8 columns per thread, y = rows. */
DEV_KERNEL(ROWS_THREADS, 2) void gather_kernel(DEV_PARAMS(gather_params) p)
{
    const uint32_t i = dev_cta_y(), col = (dev_cta_x() * ROWS_THREADS + dev_thread()) * 8;
    if (col >= p.cols)
        return;
    const uint16_t *from = p.x + (size_t)p.rows[i] * p.cols + col;
    uint16_t *to = p.y + (size_t)i * p.cols + col;
    if (p.vector) {
        dev_store16(to, dev_load16(from));
        return;
    }
    for (uint32_t j = 0; j < 8 && col + j < p.cols; j++)
        to[j] = from[j];
}

#endif
