/* multiply_int.c: products of quantized activations (16 or 8 bits) with INT8 and INT4 weights.
 *
 * Within a block everything is exact 32-bit integer arithmetic, so neither the order of its terms
 * nor the width of the dot instruction matters. Per block, in ascending order:
 *   total = fma(float(sum u x - zero * sum x), activation scale * weight scale, total)
 */
#include "tiles.h"

/* The INT4 and INT8 words of a step of 8 columns, masked as word w of the activations wants it. */
VEC_FN vi weight_word(const uint8_t *step, int format, int type, int w)
{
    if (type == K_WEIGHT_I4)
        return vi_and(vi_srl(vi_load(step), 4 * w),
                      vi_set1(format == CPU_I16 ? 0x000f000f : 0x0f0f0f0f));
    if (format == CPU_I16)
        return vi_and(vi_srl(vi_load(step + w / 2 * PACK_STEP_BYTES), 8 * (w % 2)),
                      vi_set1(0x00ff00ff));
    return vi_load(step + w * PACK_STEP_BYTES);
}

VEC_FN vi dot(int format, int type, vi acc, vi weights, vi x)
{
    if (format == CPU_I16)
        return vi_dot16(acc, weights, x);
    return type == K_WEIGHT_I4 ? vi_dot8_small(acc, weights, x) : vi_dot8(acc, weights, x);
}

enum { PREFETCH_BYTES = 2048 };

/* N sums per row and panel, for short tiles: the dot instruction takes several cycles. */
VEC_FN void multiply_tile(const struct tile *t, int format, int type, int R, int P, int N)
{
    const struct pack_shape *s = &t->j->l->shape;
    const int words = format == CPU_I16 ? 4 : 2;
    const size_t step_bytes = type == K_WEIGHT_I4 ? PACK_STEP_BYTES : 2 * PACK_STEP_BYTES;
    const size_t word0 = (size_t)t->row0 * s->k_pad / 8 * (size_t)words;
    const uint32_t *x = (const uint32_t *)t->j->data + word0;
    const float *x_scale = t->j->scale + (size_t)t->row0 * s->n_blocks;
    const int32_t *x_zero = t->j->zero + (size_t)t->row0 * s->n_blocks;
    const uint8_t *w = t->panel + s->scale_bytes;
    vf total[TILE_ROWS][TILE_PANELS];
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++) total[r][p] =
        vf_zero();
    for (uint32_t block = 0; block < s->n_blocks; block++) {
        struct pack_block at = pack_block(s, block);
        vi sum[TILE_ROWS][TILE_PANELS][4];
        TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
            TILE_UNROLL for (int n = 0; n < N; n++) sum[r][p][n] = vi_zero();
        for (uint32_t k = 0; k < at.len; k += 8) {
            if (R <= 4)
                TILE_UNROLL for (int p = 0; p < P; p++) for (size_t line = 0; line < step_bytes;
                                                             line += 64)
                    VEC_PREFETCH(w + (size_t)p * s->panel_bytes + line + PREFETCH_BYTES);
            TILE_UNROLL for (int i = 0; i < words; i++)
            {
                vi weights[TILE_PANELS];
                TILE_UNROLL for (int p = 0; p < P; p++) weights[p] =
                    weight_word(w + (size_t)p * s->panel_bytes, format, type, i);
                TILE_UNROLL for (int r = 0; r < R; r++)
                {
                    vi v = vi_bcast(x + i * R + r);
                    TILE_UNROLL for (int p = 0; p < P; p++) sum[r][p][i % N] =
                        dot(format, type, sum[r][p][i % N], weights[p], v);
                }
            }
            w += step_bytes;
            x += words * R;
        }
        TILE_UNROLL for (int p = 0; p < P; p++)
        {
            vf scale = tile_scale(t->panel + (size_t)p * s->panel_bytes, at.group);
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                TILE_UNROLL for (int n = 1; n < N; n++) sum[r][p][0] =
                    vi_add(sum[r][p][0], sum[r][p][n]);
                vf exact = vf_from_int(vi_sub(sum[r][p][0], vi_set1(x_zero[r])));
                total[r][p] = vf_fma(exact, vf_mul(scale, vf_set1(x_scale[r])), total[r][p]);
            }
        }
        x_scale += R;
        x_zero += R;
    }
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        tile_store(t, (uint32_t)r, (uint32_t)p, total[r][p]);
}

/* Sums per row and panel: about four chains in all, and no more than there are words in a step. */
#define SUMS(format, R) ((R) == 1 ? (format == CPU_I16 ? 4 : 2) : (R) <= 3 ? 2 : 1)

#define TILE(format, type, R)                                                                      \
    static void format##_##type##_one_##R(const struct tile *t)                                    \
    {                                                                                              \
        multiply_tile(t, CPU_##format, K_WEIGHT_##type, R, 1, SUMS(CPU_##format, R));              \
    }                                                                                              \
    static void format##_##type##_wide_##R(const struct tile *t)                                   \
    {                                                                                              \
        multiply_tile(t, CPU_##format, K_WEIGHT_##type, R, TILE_PANELS, 1);                        \
    }

#define TILE_I16_I4(R) TILE(I16, I4, R)
#define TILE_I16_I8(R) TILE(I16, I8, R)
#define TILE_I8_I4(R)  TILE(I8, I4, R)
#define TILE_I8_I8(R)  TILE(I8, I8, R)
TILE_SIZES(TILE_I16_I4)
TILE_SIZES(TILE_I16_I8)
TILE_SIZES(TILE_I8_I4)
TILE_SIZES(TILE_I8_I8)

#define I16_I4_ONE(R)  I16_I4_one_##R,
#define I16_I4_WIDE(R) I16_I4_wide_##R,
#define I16_I8_ONE(R)  I16_I8_one_##R,
#define I16_I8_WIDE(R) I16_I8_wide_##R,
#define I8_I4_ONE(R)   I8_I4_one_##R,
#define I8_I4_WIDE(R)  I8_I4_wide_##R,
#define I8_I8_ONE(R)   I8_I8_one_##R,
#define I8_I8_WIDE(R)  I8_I8_wide_##R,

CPU_RANGE_FN(multiply_i16_i4, cpu_product)
{
    static const tile_fn one[] = {TILE_SIZES(I16_I4_ONE)}, wide[] = {TILE_SIZES(I16_I4_WIDE)};
    tile_walk(j, first, end, one, wide);
}

CPU_RANGE_FN(multiply_i16_i8, cpu_product)
{
    static const tile_fn one[] = {TILE_SIZES(I16_I8_ONE)}, wide[] = {TILE_SIZES(I16_I8_WIDE)};
    tile_walk(j, first, end, one, wide);
}

CPU_RANGE_FN(multiply_i8_i4, cpu_product)
{
    static const tile_fn one[] = {TILE_SIZES(I8_I4_ONE)}, wide[] = {TILE_SIZES(I8_I4_WIDE)};
    tile_walk(j, first, end, one, wide);
}

CPU_RANGE_FN(multiply_i8_i8, cpu_product)
{
    static const tile_fn one[] = {TILE_SIZES(I8_I8_ONE)}, wide[] = {TILE_SIZES(I8_I8_WIDE)};
    tile_walk(j, first, end, one, wide);
}
