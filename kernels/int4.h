/* int4.h: how the CPU backend keeps a weight matrix in memory. Written by cpu/pack.c, read by the
 * product kernels; the one place where the layout is described.
 *
 * y[T, rows] = x[T, cols] W^T. The rows of W (output channels) are cut into panels of 16, one
 * channel per vector lane, so that a sum over the columns stays in its lane and its order depends
 * on the column alone. A thread owns a contiguous range of panels and reads it front to back: one
 * sequential stream.
 *
 *   matrix:  | panel 0: channels 0..15 | panel 1: channels 16..31 | ...      (last one zero padded)
 *   panel:   | scales: n_groups x 16 binary16, padded to 64 bytes | data: k_pad columns |
 *   columns: | group 0, padded to a multiple of 8 | group 1, padded | ...    k_pad in all
 *
 * INT4 data: steps of 8 columns, 64 bytes: one 32-bit word per channel, 8 unsigned nibbles in it.
 *
 *   byte      4c      4c+1     4c+2     4c+3        c = channel within the panel
 *           +--------+--------+--------+--------+
 *   bits 0-3|  k1    |   k3   |   k5   |   k7   |   k0..k7 = columns of the step
 *   bits 4-7|  k0    |   k2   |   k4   |   k6   |
 *           +--------+--------+--------+--------+
 *
 *   This is the order of the bytes on disk (even column in the high nibble), so that packing is
 *   a transposition of words and an XOR with 0x88888888: q in [-8, 7] is kept as u = q + 8. The
 *   zero point leaves through the activations: sum q x = sum u x - 8 sum x. In a padding column
 *   u = 8 and x = 0.
 *   Ways to read a word w:
 *     (w & 0x0f0f0f0f), (w >> 4 & 0x0f0f0f0f)   bytes k1 k3 k5 k7 and k0 k2 k4 k6 (u8 x s8 dots)
 *     (w >> 4t & 0x000f000f), t = 0..3          pairs (k1,k5) (k0,k4) (k3,k7) (k2,k6) (16 bit dots)
 *     (w >> 4(k ^ 1) & 15)                      column k (FP32 products)
 *
 * INT8 data: steps of 4 columns, 64 bytes: one word per channel, byte j = column j, u = q + 128.
 *     (w & 0x00ff00ff), (w >> 8 & 0x00ff00ff)   pairs (k0,k2) (k1,k3)
 *
 * FP16 data: steps of 1 column, 32 bytes: 16 binary16 values, one per channel. No scales.
 *
 * Sums. Every kernel sums over blocks: a group is cut into pieces of BLOCK columns (the last one
 * may be shorter), each block is summed by itself, and block sums are added in ascending order.
 * Activations that are quantized are quantized per row and block.
 */
#ifndef GLMD_KERNELS_INT4_H
#define GLMD_KERNELS_INT4_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PACK_LANES = 16,      /* output channels of a panel */
    PACK_STEP_BYTES = 64, /* INT4: 8 columns, INT8: 4 columns, FP16: 2 columns */
    PACK_COLS = 8,        /* groups are padded to a multiple of this many columns */
    PACK_BLOCK = 128,     /* columns of a block: of a partial sum and of an activation scale */
    PACK_ALIGN = 64,
    PACK_I4_ZERO = 8,
    PACK_I8_ZERO = 128,
};

/* One step of a panel. */
struct pack_i4_step {
    uint32_t channel[PACK_LANES]; /* 8 columns each */
};
struct pack_i8_step {
    uint8_t channel[PACK_LANES][4];
};
struct pack_f16_step {
    uint16_t column[2][PACK_LANES];
};
static_assert(sizeof(struct pack_i4_step) == PACK_STEP_BYTES, "8 columns x 16 channels x 4 bits");
static_assert(sizeof(struct pack_i8_step) == PACK_STEP_BYTES, "4 columns x 16 channels x 8 bits");
static_assert(sizeof(struct pack_f16_step) == PACK_STEP_BYTES, "2 columns x 16 channels x 16 bits");
static_assert(PACK_BLOCK % PACK_COLS == 0, "a block is a whole number of steps");
/* 16 bit activations times unsigned weights, summed over a block, fit 32 bits. */
static_assert((int64_t)PACK_BLOCK * 255 * 32767 <= INT32_MAX, "block sums are exact");

/* The geometry of a packed matrix: plain numbers, so that bench and tests can use them too. */
struct pack_shape {
    uint32_t rows, cols;
    uint32_t bits; /* 4, 8, 16 */
    uint32_t n_groups, group_cols;
    uint32_t n_panels;
    uint32_t group_pad;        /* columns of a group in memory */
    uint32_t blocks_per_group; /* the last block of a group may be short */
    uint32_t n_blocks;
    uint32_t k_pad;      /* n_groups * group_pad */
    size_t scale_bytes;  /* of a panel, padded; 0 for FP16 */
    size_t panel_bytes;  /* scales and data */
    size_t matrix_bytes; /* all panels */
};

/* One block of columns. */
struct pack_block {
    uint32_t group;
    uint32_t k0, len;     /* in packed columns: multiples of PACK_COLS */
    uint32_t col0, valid; /* in columns of the matrix; valid <= len */
};

static inline struct pack_shape pack_shape(uint32_t bits, uint32_t rows, uint32_t cols,
                                           uint32_t n_groups, uint32_t group_cols)
{
    struct pack_shape s = {.rows = rows, .cols = cols, .bits = bits};
    assert(bits == 4 || bits == 8 || bits == 16);
    assert(rows && cols && n_groups && group_cols);
    assert((uint64_t)n_groups * group_cols >= cols);
    assert((uint64_t)(n_groups - 1) * group_cols < cols);
    s.n_groups = n_groups;
    s.group_cols = group_cols;
    s.n_panels = (rows + PACK_LANES - 1) / PACK_LANES;
    s.group_pad = (group_cols + PACK_COLS - 1) / PACK_COLS * PACK_COLS;
    s.blocks_per_group = (s.group_pad + PACK_BLOCK - 1) / PACK_BLOCK;
    s.n_blocks = n_groups * s.blocks_per_group;
    s.k_pad = n_groups * s.group_pad;
    if (bits != 16)
        s.scale_bytes =
            ((size_t)n_groups * PACK_LANES * 2 + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
    s.panel_bytes = s.scale_bytes + (size_t)s.k_pad * PACK_LANES * bits / 8;
    s.matrix_bytes = s.n_panels * s.panel_bytes;
    return s;
}

static inline struct pack_block pack_block(const struct pack_shape *s, uint32_t block)
{
    struct pack_block b;
    uint32_t within = block % s->blocks_per_group * PACK_BLOCK;
    b.group = block / s->blocks_per_group;
    b.k0 = b.group * s->group_pad + within;
    b.len = s->group_pad - within < PACK_BLOCK ? s->group_pad - within : PACK_BLOCK;
    b.col0 = b.group * s->group_cols + within;
    uint32_t group_left = s->group_cols > within ? s->group_cols - within : 0;
    uint32_t left = s->cols > b.col0 ? s->cols - b.col0 : 0;
    b.valid = b.len < group_left ? b.len : group_left;
    b.valid = b.valid < left ? b.valid : left;
    return b;
}

#endif
