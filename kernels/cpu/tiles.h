/* tiles.h: what the product kernels share: the walk over panels and row tiles, and the end of a
 * tile. A kernel computes R rows times P panels over all columns, with its sums in registers.
 */
#ifndef GLMD_KERNELS_CPU_TILES_H
#define GLMD_KERNELS_CPU_TILES_H

#include "isa.h"

/* One tile: rows [row0, row0 + rows) times the panels from `panel` on. */
struct tile {
    const struct cpu_product *j;
    const uint8_t *panel;
    uint32_t panel_idx;
    uint32_t row0, rows;
};

typedef void (*tile_fn)(const struct tile *t);

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
    float *y = t->j->y + (size_t)(t->row0 + row) * l->shape.rows + channel;
    vf v = vf_add(total, vf_load(l->bias + channel));
    if (l->shape.rows - channel >= PACK_LANES)
        vf_store(y, v);
    else
        vf_store_n(y, v, (int)(l->shape.rows - channel));
}

/* All row tiles visit a group of panels while it is in the cache. one[r - 1] and wide[r - 1] are
 * the kernels for r rows and 1 or TILE_PANELS panels. */
VEC_FN void tile_walk(const struct cpu_product *j, uint64_t first, uint64_t end, const tile_fn *one,
                      const tile_fn *wide)
{
    size_t panel_bytes = j->l->shape.panel_bytes;
    uint32_t largest = (j->n_rows + j->n_tiles - 1) / j->n_tiles;
    /* few rows: the stream of one panel after the other is what counts */
    uint32_t step = largest >= 3 ? TILE_PANELS : 1;
    for (uint64_t p = first; p < end;) {
        uint32_t n = end - p >= step ? step : 1;
        for (uint32_t i = 0; i < j->n_tiles; i++) {
            struct tile t = {j, j->l->panels + p * panel_bytes, (uint32_t)p, cpu_tile_row(j, i), 0};
            t.rows = cpu_tile_row(j, i + 1) - t.row0;
            (n == 1 ? one : wide)[t.rows - 1](&t);
        }
        p += n;
    }
}

/* Expands X(rows) for the tile sizes of this instruction set. */
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define TILE_SIZES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#else
#define TILE_SIZES(X) X(1) X(2) X(3) X(4)
#endif

#endif
