/* tiles.h: what the product kernels share: the walk over panels and row tiles, and the end of a
 * tile. A kernel computes R rows times P panels over all columns, with its sums in registers.
 */
#ifndef GLMD_KERNELS_CPU_TILES_H
#define GLMD_KERNELS_CPU_TILES_H

#include "isa.h"

/* Chains that the sums of blocks are added up in. One: ascending order, the same for every batch
 * and cut. bench/cpu-speed --order asks what that costs, with kernels that are free of it. */
#ifdef CPU_FREE_ORDER
enum { TILE_ORDERS = 2, TILE_F32_ORDERS = 4 };
#else
enum { TILE_ORDERS = 1, TILE_F32_ORDERS = 1 };
#endif

/* One tile: rows [row0, row0 + rows) times the panels from `panel` on. */
struct tile {
    const struct cpu_product *j;
    const uint8_t *panel;
    uint32_t panel_idx;
    uint32_t row0, rows;
    float *y; /* where the first row's first channel goes; rows are y_stride apart */
    size_t y_stride;
    const uint8_t *ahead; /* lines to bring into the second-level cache on the way, or NULL */
    uint32_t ahead_lines; /* for each block */
};

typedef void (*tile_fn)(const struct tile *t);

/* The compiler forgets where `sums` points to, and with it what it could keep in registers. */
#define TILE_IN_MEMORY(sums) __asm__ volatile("" : "+r"(sums) : : "memory")

/* The panel's scales of one group. */
VEC_FN vf tile_scale(const uint8_t *panel, uint32_t group)
{
    return vf_load_half((const uint16_t *)panel + (size_t)group * PACK_LANES);
}

/* y = total + bias for one row and panel. */
VEC_FN void tile_store(const struct tile *t, uint32_t row, uint32_t panel, vf total)
{
    const struct k_linear *l = t->j->l;
    uint32_t channel = (t->panel_idx + panel) * PACK_LANES;
    float *y = t->y + row * t->y_stride + panel * PACK_LANES;
    vf v = vf_add(total, vf_load(l->bias + channel));
    if (l->shape.rows - channel >= PACK_LANES)
        vf_store(y, v);
    else
        vf_store_n(y, v, (int)(l->shape.rows - channel));
}

/* The rows of tile i. */
VEC_FN void tile_rows(struct tile *t, uint32_t i)
{
    t->row0 = cpu_tile_row(t->j, i);
    t->rows = cpu_tile_row(t->j, i + 1) - t->row0;
}

/* The same, which go to their places in the product's y. */
VEC_FN void tile_place(struct tile *t, uint32_t i)
{
    tile_rows(t, i);
    t->y_stride = t->j->l->shape.rows;
    t->y = t->j->y + t->row0 * t->y_stride + (size_t)t->panel_idx * PACK_LANES;
}

/* What tile i of several brings in while it works: its part of the `bytes` at `next`. */
VEC_FN void tile_look_ahead(struct tile *t, uint32_t i, const uint8_t *next, size_t bytes)
{
    const uint32_t n_blocks = t->j->l->shape.n_blocks;
    uint64_t lines = (bytes + 63) / 64, part = (lines + t->j->n_tiles - 1) / t->j->n_tiles;
    t->ahead = next + i * part * 64;
    t->ahead_lines = (uint32_t)((part + n_blocks - 1) / n_blocks);
}

/* All row tiles visit a group of panels while it is in the cache, and the next group, before panel
 * `more`, comes meanwhile, if `ahead`: the first tile would wait for memory and the others leave it
 * idle. one[r - 1] and wide[r - 1] are the kernels for r rows and 1 or TILE_PANELS panels. */
VEC_FN void tile_walk(const struct cpu_product *j, uint64_t first, uint64_t end, uint64_t more,
                      const tile_fn *one, const tile_fn *wide, bool ahead)
{
    size_t panel_bytes = j->l->shape.panel_bytes;
    uint32_t largest = (j->n_rows + j->n_tiles - 1) / j->n_tiles;
    /* few rows: the stream of one panel after the other is what counts */
    uint32_t step = largest >= 3 ? TILE_PANELS : 1;
    for (uint64_t p = first; p < end;) {
        uint32_t n = end - p >= step ? step : 1;
        for (uint32_t i = 0; i < j->n_tiles; i++) {
            struct tile t = {
                .j = j, .panel = j->l->panels + p * panel_bytes, .panel_idx = (uint32_t)p};
            tile_place(&t, i);
            if (ahead && j->n_tiles > 1 && p + n < more)
                tile_look_ahead(&t, i, t.panel + n * panel_bytes,
                                (more - p - n < n ? more - p - n : n) * panel_bytes);
            (n == 1 ? one : wide)[t.rows - 1](&t);
        }
        p += n;
    }
}

/* Bytes of panels that are kept in the second-level cache beside a tile of activations, and as many
 * of the next panels on their way. */
enum { TILE_GROUP_BYTES = 512 << 10 };

/* The same for tiles of one panel. The rows of a long batch do not fit beside the weights, so that
 * a tile visits a group of panels (group_bytes of them, but one at least) before the next one
 * comes; each visit brings in a part of the next group, because waiting for memory and multiplying
 * take about the same time at 16 rows. */
VEC_FN void tile_walk_groups(const struct cpu_product *j, uint64_t first, uint64_t end,
                             uint64_t more, const tile_fn *fns, size_t group_bytes)
{
    const struct pack_shape *s = &j->l->shape;
    uint64_t group = s->panel_bytes < group_bytes ? group_bytes / s->panel_bytes : 1;
    for (uint64_t p0 = first; p0 < end; p0 += group) {
        uint64_t n = end - p0 < group ? end - p0 : group;
        for (uint32_t i = 0; i < j->n_tiles; i++)
            for (uint64_t p = p0; p < p0 + n; p++) {
                struct tile t = {
                    .j = j, .panel = j->l->panels + p * s->panel_bytes, .panel_idx = (uint32_t)p};
                tile_place(&t, i);
                if (j->n_tiles > 1 && p + n < more)
                    tile_look_ahead(&t, i, t.panel + n * s->panel_bytes, s->panel_bytes);
                fns[t.rows - 1](&t);
            }
    }
}

/* Expands X(rows) for the tile sizes of this instruction set. */
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define TILE_SIZES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define TILE_TALL_SIZES(X)                                                                         \
    X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24)
#else
#define TILE_SIZES(X) X(1) X(2) X(3) X(4)
#endif

#if defined CPU_ISA_avxvnni
#define TILE_INT_SIZES(X) TILE_SIZES(X) X(5) X(6)
#elif defined CPU_ISA_avx512vnni
#define TILE_INT_SIZES(X) TILE_SIZES(X) TILE_TALL_SIZES(X)
#else
#define TILE_INT_SIZES(X) TILE_SIZES(X)
#endif

#endif
