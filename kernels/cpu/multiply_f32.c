/* multiply_f32.c: products with float activations, for FP16, INT8 and INT4 weights.
 *
 * A weight is w = fp16(q * scale), as the published model defines it (q * scale has at most 19
 * significant bits, so the float product is exact and is rounded once). It is made in registers,
 * once per tile, and multiplied in FP32: per row and channel one fused sum per block, in ascending
 * column order, and block sums added in ascending order.
 */
#include "tiles.h"

enum {
    BLOCK_STEPS = PACK_BLOCK / 8,
    TALL_AHEAD_BYTES = 4096, /* of a tall tile's own weights; 1 KiB is too late */
};

/* 8 columns of one panel start here. */
VEC_FN const uint8_t *step_address(const uint8_t *data, int type, uint32_t k)
{
    return data + (size_t)k * (type == K_WEIGHT_F16 ? 32 : type == K_WEIGHT_I8 ? 16 : 8);
}

/* Column k (0..7) of a step, one channel per lane. */
VEC_FN vf step_column(const uint8_t *step, int type, int k, vf scale)
{
    if (type == K_WEIGHT_F16)
        return vf_load_half((const uint16_t *)step + k * PACK_LANES);
    vf q;
    if (type == K_WEIGHT_I8) {
        vi words = vi_load(step + k / 4 * PACK_STEP_BYTES);
        vi u = vi_and(vi_srl(words, 8 * (k % 4)), vi_set1(0xff));
        q = vf_from_int(vi_sub(u, vi_set1(PACK_I8_ZERO)));
    } else {
        vi u = vi_and(vi_srl(vi_load(step), 4 * (k ^ 1)), vi_set1(15));
        q = vf_from_int(vi_sub(u, vi_set1(PACK_I4_ZERO)));
    }
    return vf_round_half(vf_mul(q, scale));
}

/* Adds blocks [block, block + B), which have the same length, to the totals. B > 1 gives a short
 * tile enough independent sums to keep the multipliers busy. */
VEC_FN void add_blocks(const struct tile *t, uint32_t block, int type, int R, int P, int B,
                       vf (*total)[TILE_ROWS][TILE_PANELS])
{
    const struct pack_shape *s = &t->j->l->shape;
    const uint8_t *w[4][TILE_PANELS];
    const float *x[4];
    vf scale[4][TILE_PANELS], sum[4][TILE_ROWS][TILE_PANELS];
    uint32_t len = 0;
    /* a few lines at a time: a block's at once would find no room among the pending loads */
    const uint32_t ahead_lines = (t->ahead_lines + BLOCK_STEPS - 1) / BLOCK_STEPS;
    const uint8_t *ahead =
        t->ahead ? t->ahead + (size_t)block * BLOCK_STEPS * ahead_lines * 64 : NULL;
    TILE_UNROLL for (int b = 0; b < B; b++)
    {
        struct pack_block at = pack_block(s, block + (uint32_t)b);
        len = at.len;
        x[b] = (const float *)t->j->data + (size_t)t->row0 * s->k_pad + (size_t)at.k0 * (size_t)R;
        TILE_UNROLL for (int p = 0; p < P; p++)
        {
            const uint8_t *panel = t->panel + (size_t)p * s->panel_bytes;
            scale[b][p] = type == K_WEIGHT_F16 ? vf_zero() : tile_scale(panel, at.group);
            w[b][p] = step_address(panel + s->scale_bytes, type, at.k0);
            TILE_UNROLL for (int r = 0; r < R; r++) sum[b][r][p] =
                TILE_F32_ORDERS == 1 ? vf_zero() : total[b][r][p];
        }
    }
    for (uint32_t k = 0; k < len; k += 8) {
        for (uint32_t i = 0; ahead && i < ahead_lines; i++, ahead += 64)
            VEC_PREFETCH_L2(ahead);
        TILE_UNROLL for (int i = 0; i < 8; i++)
        {
            TILE_UNROLL for (int b = 0; b < B; b++)
            {
                vf column[TILE_PANELS];
                TILE_UNROLL for (int p = 0; p < P; p++) column[p] =
                    step_column(step_address(w[b][p], type, k), type, i, scale[b][p]);
                TILE_UNROLL for (int r = 0; r < R; r++)
                {
                    vf v = vf_set1(x[b][(size_t)(k + (uint32_t)i) * (size_t)R + (size_t)r]);
                    TILE_UNROLL for (int p = 0; p < P; p++) sum[b][r][p] =
                        vf_fma(column[p], v, sum[b][r][p]);
                }
            }
        }
    }
    TILE_UNROLL for (int b = 0; b < B; b++) TILE_UNROLL for (int r = 0; r < R; r++)
        TILE_UNROLL for (int p = 0; p < P; p++)
    {
        if (TILE_F32_ORDERS == 1)
            total[0][r][p] = vf_add(total[0][r][p], sum[b][r][p]);
        else
            total[b][r][p] = sum[b][r][p];
    }
}

/* How many blocks, from the first on, have one length. */
static uint32_t equal_blocks(const struct pack_shape *s)
{
    if (s->blocks_per_group == 1 || s->group_pad % PACK_BLOCK == 0)
        return s->n_blocks;
    return s->n_groups == 1 ? s->n_blocks - 1 : 0; /* the last block of a group is shorter */
}

VEC_FN void multiply_tile(const struct tile *t, int type, int R, int P)
{
    const struct pack_shape *s = &t->j->l->shape;
    vf total[TILE_F32_ORDERS][TILE_ROWS][TILE_PANELS];
    TILE_UNROLL for (int i = 0; i < TILE_F32_ORDERS; i++) TILE_UNROLL for (int r = 0; r < R; r++)
        TILE_UNROLL for (int p = 0; p < P; p++) total[i][r][p] = vf_zero();
    uint32_t block = 0;
    if (R * P <= 2) {
        const int B = R * P == 1 ? 4 : 2;
        const uint32_t equal = equal_blocks(s);
        for (; block + (uint32_t)B <= equal; block += (uint32_t)B)
            add_blocks(t, block, type, R, P, B, total);
    }
    for (; block < s->n_blocks; block++)
        add_blocks(t, block, type, R, P, 1, total);
    TILE_UNROLL for (int i = 1; i < TILE_F32_ORDERS; i++) TILE_UNROLL for (int r = 0; r < R; r++)
        TILE_UNROLL for (int p = 0; p < P; p++) total[0][r][p] =
            vf_add(total[0][r][p], total[i][r][p]);
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        tile_store(t, (uint32_t)r, (uint32_t)p, total[0][r][p]);
}

#if TILE_F32_TALL
/* The same with more rows of one panel than leave room for totals in registers: every weight is
 * loaded and made once for up to 24 rows. The totals, touched once a block, are in memory. */
VEC_FN void multiply_tall_tile(const struct tile *t, int type, int R)
{
    const struct pack_shape *s = &t->j->l->shape;
    const uint8_t *w = t->panel + s->scale_bytes;
    const float *x = (const float *)t->j->data + (size_t)t->row0 * s->k_pad;
    const uint8_t *ahead = t->ahead;
    const uint32_t ahead_lines = (t->ahead_lines + BLOCK_STEPS - 1) / BLOCK_STEPS;
    float area[TILE_F32_ROWS][PACK_LANES] __attribute__((aligned(64))), (*total)[PACK_LANES] = area;
    vf sum[TILE_F32_ROWS];
    TILE_UNROLL for (int r = 0; r < R; r++)
    {
        sum[r] = vf_zero();
        vf_store(total[r], vf_zero());
    }
    TILE_IN_MEMORY(total);
    for (uint32_t block = 0; block < s->n_blocks; block++) {
        const struct pack_block at = pack_block(s, block);
        const vf scale = type == K_WEIGHT_F16 ? vf_zero() : tile_scale(t->panel, at.group);
        for (uint32_t k = 0; k < at.len; k += 8) {
            for (uint32_t i = 0; ahead && i < ahead_lines; i++, ahead += 64)
                VEC_PREFETCH_L2(ahead);
            const uint8_t *next = step_address(w, type, 8);
            for (const uint8_t *line = w; line < next; line += 64)
                VEC_PREFETCH(line + TALL_AHEAD_BYTES);
            TILE_UNROLL for (int i = 0; i < 8; i++)
            {
                vf column = step_column(w, type, i, scale);
                TILE_UNROLL for (int r = 0; r < R; r++) sum[r] =
                    vf_fma_word(column, x + i * R + r, sum[r]);
            }
            w = next;
            x += 8 * R;
        }
        if (TILE_F32_ORDERS > 1)
            continue;
        TILE_IN_MEMORY(total);
        TILE_UNROLL for (int r = 0; r < R; r++)
        {
            vf_store(total[r], vf_add(vf_load(total[r]), sum[r]));
            sum[r] = vf_zero();
        }
    }
    TILE_UNROLL for (int r = 0; r < R; r++)
        tile_store(t, (uint32_t)r, 0, TILE_F32_ORDERS > 1 ? sum[r] : vf_load(total[r]));
}
#endif

#define TILE(type, R)                                                                              \
    static void type##_one_##R(const struct tile *t)                                               \
    {                                                                                              \
        multiply_tile(t, K_WEIGHT_##type, R, 1);                                                   \
    }                                                                                              \
    static void type##_wide_##R(const struct tile *t)                                              \
    {                                                                                              \
        multiply_tile(t, K_WEIGHT_##type, R, TILE_PANELS);                                         \
    }

#define TILE_F16(R) TILE(F16, R)
#define TILE_I8(R)  TILE(I8, R)
#define TILE_I4(R)  TILE(I4, R)
TILE_SIZES(TILE_F16)
TILE_SIZES(TILE_I8)
TILE_SIZES(TILE_I4)

#if TILE_F32_TALL
#define TALL(type, R)                                                                              \
    static void type##_one_##R(const struct tile *t)                                               \
    {                                                                                              \
        multiply_tall_tile(t, K_WEIGHT_##type, R);                                                 \
    }
#define TALL_SIZE(R) TALL(F16, R) TALL(I8, R) TALL(I4, R)
TILE_TALL_SIZES(TALL_SIZE)

/* A product has tall tiles or one tile that is not. */
#define MULTIPLY(name, ones, wides)                                                                \
    CPU_PANELS_FN(name)                                                                            \
    {                                                                                              \
        static const tile_fn one[] = {TILE_SIZES(ones) TILE_TALL_SIZES(ones)},                     \
                             wide[] = {TILE_SIZES(wides)};                                         \
        if (j->n_rows > TILE_ROWS)                                                                 \
            tile_walk_groups(j, first, end, more, one, 0);                                         \
        else                                                                                       \
            tile_walk(j, first, end, more, one, wide, false);                                      \
    }
#else
#define MULTIPLY(name, ones, wides)                                                                \
    CPU_PANELS_FN(name)                                                                            \
    {                                                                                              \
        static const tile_fn one[] = {TILE_SIZES(ones)}, wide[] = {TILE_SIZES(wides)};             \
        tile_walk(j, first, end, more, one, wide, true);                                           \
    }
#endif

#define F16_ONE(R)  F16_one_##R,
#define F16_WIDE(R) F16_wide_##R,
#define I8_ONE(R)   I8_one_##R,
#define I8_WIDE(R)  I8_wide_##R,
#define I4_ONE(R)   I4_one_##R,
#define I4_WIDE(R)  I4_wide_##R,

MULTIPLY(multiply_f32_f16, F16_ONE, F16_WIDE)
MULTIPLY(multiply_f32_i8, I8_ONE, I8_WIDE)
MULTIPLY(multiply_f32_i4, I4_ONE, I4_WIDE)
