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

/* acc += weights of P panels times the word *x, the same for all lanes. */
VEC_FN void dot(int format, int type, int P, const vi *weights, const uint32_t *x, vi (*acc)[4],
                int n)
{
#ifdef VEC_HAVE_DOT_WORD
    (void)type;
    TILE_UNROLL for (int p = 0; p < P; p++) acc[p][n] =
        format == CPU_I16 ? vi_dot16_word(acc[p][n], weights[p], x)
                          : vi_dot8_word(acc[p][n], weights[p], x);
#else
    const vi v = vi_bcast(x);
    TILE_UNROLL for (int p = 0; p < P; p++) acc[p][n] =
        format == CPU_I16     ? vi_dot16(acc[p][n], weights[p], v)
        : type == K_WEIGHT_I4 ? vi_dot8_small(acc[p][n], weights[p], v)
                              : vi_dot8(acc[p][n], weights[p], v);
#endif
}

enum { PREFETCH_BYTES = 4096 };

/* What the sums start with, so that they end as sum u x - zero * sum x: exact, as everything here.
 */
VEC_FN vi minus(const int32_t *zero)
{
    return vi_set1(-*zero);
}

/* Totals are touched once a block: the registers are for the sums. */
#define TILE_IN_MEMORY(area) __asm__ volatile("" : : "r"(area) : "memory")

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
    const uint8_t *ahead = t->ahead;
    float total[TILE_INT_ROWS][TILE_INT_PANELS][PACK_LANES] __attribute__((aligned(64)));
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        vf_store(total[r][p], vf_zero());
    for (uint32_t block = 0; block < s->n_blocks; block++) {
        struct pack_block at = pack_block(s, block);
        vi sum[TILE_INT_ROWS][TILE_INT_PANELS][4];
        TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        {
            sum[r][p][0] = minus(x_zero + r);
            TILE_UNROLL for (int n = 1; n < N; n++) sum[r][p][n] = vi_zero();
        }
        for (uint32_t line = 0; ahead && line < t->ahead_lines; line++, ahead += 64)
            VEC_PREFETCH_L2(ahead);
        for (uint32_t k = 0; k < at.len; k += 8) {
            TILE_UNROLL for (int p = 0; p < P; p++) for (size_t line = 0; line < step_bytes;
                                                         line += 64)
                VEC_PREFETCH(w + (size_t)p * s->panel_bytes + line + PREFETCH_BYTES);
            TILE_UNROLL for (int i = 0; i < words; i++)
            {
                vi weights[TILE_INT_PANELS];
                TILE_UNROLL for (int p = 0; p < P; p++) weights[p] =
                    weight_word(w + (size_t)p * s->panel_bytes, format, type, i);
                TILE_UNROLL for (int r = 0; r < R; r++)
                    dot(format, type, P, weights, x + i * R + r, sum[r], i % N);
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
                vf exact = vf_from_int(sum[r][p][0]);
                vf_store(total[r][p],
                         vf_fma(exact, vf_mul(scale, vf_set1(x_scale[r])), vf_load(total[r][p])));
            }
        }
        x_scale += R;
        x_zero += R;
        TILE_IN_MEMORY(total);
    }
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        tile_store(t, (uint32_t)r, (uint32_t)p, vf_load(total[r][p]));
}

/* Sums per row and panel: about ten chains in all, where there are registers for them, and no more
 * than there are words in a step. */
#if defined CPU_ISA_avx512vnni
#define SUMS(format, R) ((R) <= 2 && format == CPU_I16 ? 4 : (R) <= 8 ? 2 : 1)
#else
#define SUMS(format, R) ((R) == 1 ? (format == CPU_I16 ? 4 : 2) : (R) <= 3 ? 2 : 1)
#endif

#define TILE_ONE(format, type, R)                                                                  \
    static void format##_##type##_one_##R(const struct tile *t)                                    \
    {                                                                                              \
        multiply_tile(t, CPU_##format, K_WEIGHT_##type, R, 1, SUMS(CPU_##format, R));              \
    }
#define TILE_WIDE(format, type, R)                                                                 \
    static void format##_##type##_wide_##R(const struct tile *t)                                   \
    {                                                                                              \
        multiply_tile(t, CPU_##format, K_WEIGHT_##type, R, TILE_INT_PANELS, 1);                    \
    }
#define TILES_ONE(R)                                                                               \
    TILE_ONE(I16, I4, R) TILE_ONE(I16, I8, R) TILE_ONE(I8, I4, R) TILE_ONE(I8, I8, R)
#define TILES_WIDE(R)                                                                              \
    TILE_WIDE(I16, I4, R) TILE_WIDE(I16, I8, R) TILE_WIDE(I8, I4, R) TILE_WIDE(I8, I8, R)

#define I16_I4_ONE(R)  I16_I4_one_##R,
#define I16_I4_WIDE(R) I16_I4_wide_##R,
#define I16_I8_ONE(R)  I16_I8_one_##R,
#define I16_I8_WIDE(R) I16_I8_wide_##R,
#define I8_I4_ONE(R)   I8_I4_one_##R,
#define I8_I4_WIDE(R)  I8_I4_wide_##R,
#define I8_I8_ONE(R)   I8_I8_one_##R,
#define I8_I8_WIDE(R)  I8_I8_wide_##R,

TILE_INT_SIZES(TILES_ONE)

#ifdef CPU_ISA_avx512vnni
#define MULTIPLY(name, ones, wides)                                                                \
    CPU_RANGE_FN(name, cpu_product)                                                                \
    {                                                                                              \
        static const tile_fn one[] = {TILE_INT_SIZES(ones)};                                       \
        tile_walk_groups(j, first, end, one);                                                      \
    }
#else
TILE_INT_SIZES(TILES_WIDE)
#define MULTIPLY(name, ones, wides)                                                                \
    CPU_RANGE_FN(name, cpu_product)                                                                \
    {                                                                                              \
        static const tile_fn one[] = {TILE_INT_SIZES(ones)}, wide[] = {TILE_INT_SIZES(wides)};     \
        tile_walk(j, first, end, one, wide);                                                       \
    }
#endif

MULTIPLY(multiply_i16_i4, I16_I4_ONE, I16_I4_WIDE)
MULTIPLY(multiply_i16_i8, I16_I8_ONE, I16_I8_WIDE)
MULTIPLY(multiply_i8_i4, I8_I4_ONE, I8_I4_WIDE)
MULTIPLY(multiply_i8_i8, I8_I8_ONE, I8_I8_WIDE)
