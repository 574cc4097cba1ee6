/* packed.h: how the CUDA backend keeps a weight matrix in device memory. Written by pack.cc, read
 * by the product kernels; the one place where the layout is described. C and nvcc compile it.
 *
 * y[T, rows] = x[T, cols] W^T. W is the A operand of the tensor cores (mma.m16n8k16: 16 rows of W,
 * 8 tokens, 16 columns): tokens are padded to 8 instead of 16, one 128-bit load gives a lane its
 * part of whole fragments, and nothing passes through shared memory that is used once. The A
 * fragment of wgmma.m64nNk16 from registers is the same for each of the four warps, so that such a
 * kernel can read the same bytes.
 *
 *   matrix:  | panel 0: rows 0..127 | panel 1 | ...                        rows padded with zeros
 *   panel:   | block 0: columns 0..63 | block 1 | ...                      columns padded with
 * zeros block:   | tile 0: rows 0..15 | tile 1 | ... | tile 7 |                4, 8 or 16 KiB tile:
 * | quad 0 | ... |                1, 2 or 4 quads (INT4, INT8, FP16) of 512 bytes quad:    | lane 0
 * | lane 1 | ... | lane 31 |            16 bytes each: 64, 32 or 16 columns
 *
 * Lane 4g + t of a tile owns rows g and g + 8 and, of 16 columns, 2t, 2t + 1, 2t + 8 and 2t + 9:
 * the four registers a0..a3 of the fragment, two columns each.
 *
 *               columns 2t 2t+1     2t+8 2t+9
 *     row g         a0                 a2
 *     row g + 8     a1                 a3
 *
 * INT4: one 32-bit word for 16 columns, u = q + 8 in each nibble; a lane's 16 bytes are 4 words.
 *
 *     bits    0-3   4-7   8-11  12-15     16-19 20-23 24-27 28-31
 *             a0    a1    a2    a3        a0    a1    a2    a3
 *             `---- column 2t (+8) ----'  `-- column 2t + 1 (+8) -'
 *
 *     (w & 0x000f000f) | 0x64006400 is a0 as two halves 1024 + u: minus 1032 gives q, exactly;
 *     (w & 0x00f000f0) | 0x64006400 is a1 as 1024 + 16 u: minus 1152 gives 16 q, and the factor
 *     leaves with the scale of rows g + 8. The same on w >> 8 gives a2 and a3: nine instructions
 *     for eight weights.
 * INT8: two words for 16 columns, u = q + 128; word 0 is a0, a1, word 1 is a2, a3, each two bytes.
 *     Bytes (u, 0x64) are a half 1024 + u: minus 1152 gives q.
 * FP16: four words, a0..a3.
 *
 * Rows are numbered in the packed matrix, too: of one whose halves are used together (GLU: rows i
 * and rows / 2 + i), a panel holds 64 rows of the first half and, behind them, the 64 of the
 * second, so that one CTA has both. That is possible where the rows are a multiple of 128.
 *
 * Columns are numbered in the packed matrix: a group of columns with a scale of its own begins at a
 * multiple of 16 columns (PACKED_STEP), a long group at a multiple of 64, padded with zeros where
 * need be. Groups of 32, 64, 128 columns and one group per row need no padding.
 *
 * Behind the panels: scales, binary16 [n_groups][rows padded], and the bias, binary16 [rows
 * padded], which alone keeps the order of the matrix.
 *
 * Sums. The columns are cut into slices, by the shape alone, not by the GPU at hand. Within a
 * slice, steps of 16 columns are added one after another in the accumulators of the tensor core
 * (FP32), from zero. long groups (one per row, per shard): a slice lies within one group; the
 * result is sum over slices, ascending, of scale * slice, each with one rounding (fma); short
 * groups: the accumulators start anew with every group; within a slice scale * group is summed with
 * one rounding each, and the slices' sums are added in ascending order; FP16: the slices' sums are
 * added in ascending order. Then comes the bias. wgmma (gemm_wide.cuh) takes the same
 * steps of 16 columns in the same order as mma.sync; what its tensor cores lose inside of a step is
 * not documented to be the same, and asked of the device before it is used (linear.cu). Every
 * kernel keeps this order, whatever the number of tokens, so that a row of x gives the same bits in
 * every batch.
 */
#ifndef GLMD_KERNELS_CUDA_PACKED_H
#define GLMD_KERNELS_CUDA_PACKED_H

#ifdef __cplusplus
#include <cassert>
#include <cstddef>
#include <cstdint>
#else
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __CUDACC__
#define PACKED_FN static inline __host__ __device__
#elif defined(__cplusplus)
#define PACKED_FN [[maybe_unused]] static inline
#else
#define PACKED_FN static inline
#endif

enum {
    PACKED_ROWS = 128, /* of a panel */
    PACKED_COLS = 64,  /* of a block */
    PACKED_TILE = 16,  /* rows */
    PACKED_STEP = 16,  /* columns of one fragment */
    PACKED_TILES = 8,  /* of a block */
    PACKED_STEPS = 4,  /* of a block */
    PACKED_LANES = 32,
    PACKED_LANE_BYTES = 16,
    PACKED_HALF = 64, /* rows of a panel that belong to one half of a paired matrix */
    PACKED_QUAD_BYTES = 512,
    PACKED_I4_ZERO = 8,
    PACKED_I8_ZERO = 128,
    PACKED_ALIGN = 256, /* of panels, scales and bias */

    /* Slices: enough of them to fill the chip with panels x slices CTAs, none longer than what the
     * GEMV keeps of x in shared memory (8 tokens x 2048 columns: 32 KiB), none so short that a CTA
     * starts and ends only. 768 is 97 % of three waves of two CTAs on 132 SMs. */
    PACKED_WANTED_CTAS = 768,
    PACKED_MAX_SLICE_BLOCKS = 32,
    PACKED_MIN_SLICE_BYTES = 16 << 10, /* of a panel */
    PACKED_LONG_GROUP = 512,           /* columns, and at most so many groups: */
    PACKED_MAX_LONG_GROUPS = 32,
};

static_assert(PACKED_TILES * PACKED_TILE == PACKED_ROWS, "tiles of a panel");
static_assert(PACKED_STEPS * PACKED_STEP == PACKED_COLS, "steps of a block");
static_assert(PACKED_QUAD_BYTES == PACKED_LANES * PACKED_LANE_BYTES, "a lane reads 128 bits");
static_assert(PACKED_TILE * PACKED_COLS / 2 == 1 * PACKED_QUAD_BYTES,
              "INT4: a quad for 64 columns");
static_assert(PACKED_TILE * PACKED_COLS == 2 * PACKED_QUAD_BYTES, "INT8: two");
static_assert(PACKED_TILE * PACKED_COLS * 2 == 4 * PACKED_QUAD_BYTES, "FP16: four");

struct packed_shape {
    uint32_t rows, cols;
    uint32_t bits; /* 4, 8, 16 */
    uint32_t n_groups, group_cols;
    uint32_t group_pad; /* packed columns of a group */
    uint32_t n_panels, n_blocks;
    uint32_t row_pad;      /* n_panels * 128 */
    uint32_t short_groups; /* 1: groups are shorter than slices */
    /* A span (a long group, or all columns) is cut into slices, the last of which may be shorter.
     */
    uint32_t span_blocks, span_slices, slice_blocks;
    uint32_t n_slices;        /* of all spans */
    uint32_t pair_rows;       /* rows / 2 where both halves are in every panel; 0: in order */
    size_t scale_at, bias_at; /* bytes from the first panel */
    size_t bytes;             /* of everything */
};

PACKED_FN uint32_t packed_div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

PACKED_FN size_t packed_align(size_t n)
{
    return (n + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
}

PACKED_FN size_t packed_block_bytes(uint32_t bits)
{
    return (size_t)PACKED_ROWS * PACKED_COLS / 8 * bits;
}

/* Blocks of a slice of a matrix; the slices of a span are of nearly equal length. */
PACKED_FN uint32_t packed_slice_blocks(uint32_t bits, uint32_t n_panels, uint32_t n_blocks,
                                       uint32_t span_blocks)
{
    uint32_t shortest = (uint32_t)(PACKED_MIN_SLICE_BYTES / packed_block_bytes(bits));
    uint32_t blocks = packed_div_up(n_blocks, packed_div_up(PACKED_WANTED_CTAS, n_panels));
    if (blocks < shortest)
        blocks = shortest;
    if (blocks > PACKED_MAX_SLICE_BLOCKS)
        blocks = PACKED_MAX_SLICE_BLOCKS;
    return packed_div_up(span_blocks, packed_div_up(span_blocks, blocks));
}

PACKED_FN struct packed_shape packed_shape_of(uint32_t bits, uint32_t rows, uint32_t cols,
                                              uint32_t n_groups, uint32_t group_cols)
{
    struct packed_shape s;
    assert(bits == 4 || bits == 8 || bits == 16);
    assert(rows && cols && n_groups && group_cols);
    assert((uint64_t)n_groups * group_cols >= cols);
    assert((uint64_t)(n_groups - 1) * group_cols < cols);
    assert(bits != 16 || n_groups == 1);
    s.rows = rows;
    s.cols = cols;
    s.bits = bits;
    s.n_groups = n_groups;
    s.group_cols = n_groups == 1 ? cols : group_cols;
    s.short_groups =
        n_groups > 1 && (group_cols < PACKED_LONG_GROUP || n_groups > PACKED_MAX_LONG_GROUPS);
    uint32_t multiple = s.short_groups ? PACKED_STEP : PACKED_COLS;
    s.group_pad = packed_div_up(s.group_cols, multiple) * multiple;
    s.n_panels = packed_div_up(rows, PACKED_ROWS);
    s.n_blocks = packed_div_up(n_groups * s.group_pad, PACKED_COLS);
    s.row_pad = s.n_panels * PACKED_ROWS;
    s.span_blocks = s.short_groups ? s.n_blocks : s.group_pad / PACKED_COLS;
    s.slice_blocks = packed_slice_blocks(bits, s.n_panels, s.n_blocks, s.span_blocks);
    s.span_slices = packed_div_up(s.span_blocks, s.slice_blocks);
    s.n_slices = s.span_slices * (s.short_groups ? 1 : n_groups);
    s.pair_rows = 0;
    s.scale_at = packed_align((size_t)s.n_panels * s.n_blocks * packed_block_bytes(bits));
    s.bias_at = s.scale_at + packed_align(bits == 16 ? 0 : (size_t)n_groups * s.row_pad * 2);
    s.bytes = s.bias_at + packed_align((size_t)s.row_pad * 2);
    return s;
}

/* Has the two halves of the rows side by side, where that is possible. */
PACKED_FN void packed_pair(struct packed_shape *s)
{
    s->pair_rows = s->rows % PACKED_ROWS == 0 ? s->rows / 2 : 0;
}

/* The packed row of row `row` of the matrix. */
PACKED_FN uint32_t packed_row(const struct packed_shape *s, uint32_t row)
{
    if (!s->pair_rows)
        return row;
    uint32_t half = row / s->pair_rows, i = row % s->pair_rows;
    return i / PACKED_HALF * PACKED_ROWS + half * PACKED_HALF + i % PACKED_HALF;
}

/* The row of the matrix that packed row `row` holds. */
PACKED_FN uint32_t packed_source_row(const struct packed_shape *s, uint32_t row)
{
    if (!s->pair_rows)
        return row;
    uint32_t within = row % PACKED_ROWS;
    return within / PACKED_HALF * s->pair_rows + row / PACKED_ROWS * PACKED_HALF +
           within % PACKED_HALF;
}

/* The packed column of column `col` of the matrix. */
PACKED_FN uint32_t packed_col(const struct packed_shape *s, uint32_t col)
{
    return s->n_groups == 1 ? col : col / s->group_cols * s->group_pad + col % s->group_cols;
}

/* The column of the matrix that packed column `k` holds; s->cols where it is padding. */
PACKED_FN uint32_t packed_source_col(const struct packed_shape *s, uint32_t k)
{
    uint32_t group = k / s->group_pad, within = k % s->group_pad;
    if (group >= s->n_groups || within >= s->group_cols)
        return s->cols;
    uint32_t col = group * s->group_cols + within;
    return col < s->cols ? col : s->cols;
}

/* Whether columns of x lie as the packed columns do, in 16-byte pieces. */
PACKED_FN int packed_dense(const struct packed_shape *s)
{
    return s->cols % 8 == 0 && (s->n_groups == 1 || s->group_pad == s->group_cols);
}

struct packed_slice {
    uint32_t block, n_blocks;
    uint32_t group; /* of long groups: the slice's */
};

PACKED_FN struct packed_slice packed_slice_at(const struct packed_shape *s, uint32_t slice)
{
    struct packed_slice r;
    uint32_t span = slice / s->span_slices;
    uint32_t within = slice % s->span_slices * s->slice_blocks;
    uint32_t left = s->span_blocks - within;
    r.block = span * s->span_blocks + within;
    r.n_blocks = left < s->slice_blocks ? left : s->slice_blocks;
    r.group = span;
    return r;
}

/* Byte, from the first panel on, of lane `lane` of quad `quad` of a tile. */
PACKED_FN size_t packed_lane_at(uint32_t bits, uint32_t n_blocks, uint32_t panel, uint32_t block,
                                uint32_t tile, uint32_t quad, uint32_t lane)
{
    size_t quads = bits / 4;
    size_t at = ((size_t)panel * n_blocks + block) * PACKED_TILES + tile;
    return (at * quads + quad) * PACKED_QUAD_BYTES + (size_t)lane * PACKED_LANE_BYTES;
}

/* Where a weight lies. */
struct packed_place {
    size_t byte;  /* of the lane's 16 bytes, from the first panel on */
    uint32_t bit; /* of those 128 */
};

/* row, k: a packed row and column. */
PACKED_FN struct packed_place packed_place_of(const struct packed_shape *s, uint32_t row,
                                              uint32_t k)
{
    uint32_t r = row % PACKED_TILE, g = r % 8, below = r / 8;
    uint32_t step = k % PACKED_COLS / PACKED_STEP, kk = k % PACKED_STEP;
    uint32_t t = kk % 8 / 2, e = kk % 2, right = kk / 8;
    uint32_t reg = 2 * right + below; /* a0..a3 */
    uint32_t quads = s->bits / 4, steps = PACKED_STEPS / quads;
    struct packed_place p;
    p.byte = packed_lane_at(s->bits, s->n_blocks, row / PACKED_ROWS, k / PACKED_COLS,
                            row % PACKED_ROWS / PACKED_TILE, step / steps, 4 * g + t);
    p.bit = step % steps * 32 * quads;
    if (s->bits == 4)
        p.bit += 4 * reg + 16 * e;
    else if (s->bits == 8)
        p.bit += 16 * reg + 8 * e;
    else
        p.bit += 32 * reg + 16 * e;
    return p;
}

#endif
