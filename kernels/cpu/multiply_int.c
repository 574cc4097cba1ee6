/* multiply_int.c: products of quantized activations (16 or 8 bits) with INT8 and INT4 weights.
 *
 * Within a block everything is exact 32-bit integer arithmetic, so neither the order of its terms
 * nor the width of the dot instruction matters. Per block, in ascending order, and per group:
 *   part = fma(float(sum u x - zero * sum x), activation scale, part)    from 0 in every group
 *   total = fma(part, weight scale, total)
 * so that a block ends with two vector instructions for each row, which is what 16 rows and more
 * feel: 32 dots of a block stand against them.
 */
#include "tiles.h"
#include "vmath.h"

/* The INT4 and INT8 words of a step of 8 columns, masked as word w of the activations wants it.
 * What is shifted out of a byte or of 16 bits needs no mask. */
VEC_FN vi weight_word(const uint8_t *step, int format, int type, int w)
{
    if (type == K_WEIGHT_I8 && format == CPU_I16) {
        const vi v = vi_load(step + w / 2 * PACK_STEP_BYTES);
        return w % 2 ? vi_srl16(v, 8) : vi_and(v, vi_set1(0x00ff00ff));
    }
    if (type == K_WEIGHT_I8)
        return vi_load(step + w * PACK_STEP_BYTES);
    const vi v = vi_load(step);
#ifdef VEC_HAVE_HIGH_NIBBLES
    if (w == 1)
        return format == CPU_I16 ? vi_even_high_nibbles(v) : vi_high_nibbles(v);
#endif
    if (w == 3)
        return vi_srl16(v, 12);
    return vi_and(vi_srl(v, 4 * w), vi_set1(format == CPU_I16 ? 0x000f000f : 0x0f0f0f0f));
}

/* INT4 times 8 bits where there is no dot instruction: products are summed in pairs of 16 bits,
 * which PAIR_COLS columns of nibbles fit into, and only then in 32. */
#ifdef VEC_HAVE_PAIRS
#define PAIRS(format, type) ((format) == CPU_I8 && (type) == K_WEIGHT_I4)
enum { PAIR_COLS = 32 };
static_assert(PAIR_COLS / 2 * 15 * CPU_I8_MAX <= INT16_MAX, "16-bit sums are exact");
#else
#define PAIRS(format, type)     0
#define vi_add_pairs(acc, u, s) (acc)
#define vi_widen(acc, pairs)    (acc)
enum { PAIR_COLS = PACK_BLOCK };
#endif

/* Whether a word is made before the dots with the one before it: where there are registers for two,
 * and but for short tiles in 8 bits, which it makes slower by a percent. */
#ifdef VEC_HAVE_DOT_WORD
#define AHEAD(format, R) ((format) == CPU_I16 || (R) > 8)
#else
#define AHEAD(format, R) false
#define vi_made(a)       (a)
#endif

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
        PAIRS(format, type)   ? vi_add_pairs(acc[p][n], weights[p], v)
        : format == CPU_I16   ? vi_dot16(acc[p][n], weights[p], v)
        : type == K_WEIGHT_I4 ? vi_dot8_small(acc[p][n], weights[p], v)
                              : vi_dot8(acc[p][n], weights[p], v);
#endif
}

/* How far ahead of a step its panel is brought into the first-level cache; and, where it is memory
 * that counts, into the second-level one: lines on their way to the first are too few for that. */
enum { PREFETCH_BYTES = 4096, PREFETCH_L2_BYTES = 16384 };
#ifdef VEC_HAVE_DOT_WORD
#define PREFETCH_FAR(words, R) ((words) * (R) <= 16)
#else
#define PREFETCH_FAR(words, R) false
#endif

/* What the rows of a tile have so far. Touched once a block, so it stays in memory: the registers
 * are for the sums of the block. */
struct tile_sums {
    float part[TILE_ORDERS][TILE_INT_ROWS][TILE_INT_PANELS][PACK_LANES]; /* of the group */
    float total[TILE_INT_ROWS][TILE_INT_PANELS][PACK_LANES];             /* of the groups before */
};

/* total += part * scale, part = 0 */
VEC_FN void end_group(const struct tile *t, uint32_t group, int R, int P, struct tile_sums *sums)
{
    TILE_UNROLL for (int p = 0; p < P; p++)
    {
        vf scale = tile_scale(t->panel + (size_t)p * t->j->l->shape.panel_bytes, group);
        TILE_UNROLL for (int r = 0; r < R; r++)
        {
            float *total = sums->total[r][p];
            vf part = vf_load(sums->part[0][r][p]);
            for (int i = 1; i < TILE_ORDERS; i++)
                part = vf_add(part, vf_load(sums->part[i][r][p]));
            vf_store(total, vf_fma(part, scale, vf_load(total)));
            for (int i = 0; i < TILE_ORDERS; i++)
                vf_store(sums->part[i][r][p], vf_zero());
        }
    }
}

/* `len` columns of a block: acc += weights times activations, N sums per row and panel. Where words
 * are made ahead, the dots of one never wait for it: they are taken in order, so that a word made
 * behind the dots before would be ready when the dots' ports have been idle for a while. */
VEC_FN void add_columns(const uint8_t *w, size_t panel_bytes, const uint32_t *x, uint32_t len,
                        int format, int type, int R, int P, int N, vi (*acc)[TILE_INT_PANELS][4])
{
    const int words = format == CPU_I16 ? 4 : 2;
    const size_t step_bytes = type == K_WEIGHT_I4 ? PACK_STEP_BYTES : 2 * PACK_STEP_BYTES;
    uint32_t k = 0;
    vi ahead[TILE_INT_PANELS];
    if (AHEAD(format, R))
        TILE_UNROLL for (int p = 0; p < P; p++) ahead[p] =
            weight_word(w + (size_t)p * panel_bytes, format, type, 0);
    do {
        TILE_UNROLL for (int p = 0; p < P; p++) for (size_t line = 0; line < step_bytes; line += 64)
        {
            const uint8_t *at = w + (size_t)p * panel_bytes + line;
            if (PREFETCH_FAR(words, R))
                VEC_PREFETCH_L2(at + PREFETCH_L2_BYTES);
            VEC_PREFETCH(at + PREFETCH_BYTES);
        }
        k += PACK_COLS;
        /* nothing is read behind the block */
        const uint8_t *next = AHEAD(format, R) && k >= len ? w : w + step_bytes;
        TILE_UNROLL for (int i = 0; i < words; i++)
        {
            vi weights[TILE_INT_PANELS];
            TILE_UNROLL for (int p = 0; p < P; p++)
            {
                const size_t panel = (size_t)p * panel_bytes;
                weights[p] = AHEAD(format, R) ? ahead[p] : weight_word(w + panel, format, type, i);
                if (AHEAD(format, R))
                    ahead[p] = vi_made(weight_word((i + 1 < words ? w : next) + panel, format, type,
                                                   (i + 1) % words));
            }
            TILE_UNROLL for (int r = 0; r < R; r++)
                dot(format, type, P, weights, x + i * R + r, acc[r], i % N);
        }
        w = next;
        x += words * R;
    } while (k < len);
}

/* N sums per row and panel, for short tiles: the dot instruction takes several cycles. */
VEC_FN void multiply_tile(const struct tile *t, int format, int type, int R, int P, int N)
{
    const struct pack_shape *s = &t->j->l->shape;
    const int words = format == CPU_I16 ? 4 : 2;
    const size_t step_bytes = type == K_WEIGHT_I4 ? PACK_STEP_BYTES : 2 * PACK_STEP_BYTES;
    const size_t word0 = (size_t)t->row0 * s->k_pad / 8 * (size_t)words;
    const uint32_t *x = (const uint32_t *)t->j->data + word0;
    const float *x_scale = t->j->scale + (size_t)t->row0 * s->n_blocks;
    const int32_t *x_start = t->j->start + (size_t)t->row0 * s->n_blocks;
    const uint8_t *w = t->panel + s->scale_bytes;
    const uint8_t *ahead = t->ahead;
    struct tile_sums area __attribute__((aligned(64))), *sums = &area;
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
    {
        for (int i = 0; i < TILE_ORDERS; i++)
            vf_store(sums->part[i][r][p], vf_zero());
        vf_store(sums->total[r][p], vf_zero());
    }
    TILE_IN_MEMORY(sums);
    for (uint32_t group = 0; group < s->n_groups; group++) {
        for (uint32_t left = s->group_pad, len; left; left -= len) {
            len = left < PACK_BLOCK ? left : PACK_BLOCK;
            vi sum[TILE_INT_ROWS][TILE_INT_PANELS][4];
            TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
            {
                sum[r][p][0] = vi_bcast(x_start + r);
                TILE_UNROLL for (int n = 1; n < N; n++) sum[r][p][n] = vi_zero();
            }
            for (uint32_t line = 0; ahead && line < t->ahead_lines; line++, ahead += 64)
                VEC_PREFETCH_L2(ahead);
            if (!PAIRS(format, type)) {
                add_columns(w, s->panel_bytes, x, len, format, type, R, P, N, sum);
                w += len / PACK_COLS * step_bytes;
                x += len / PACK_COLS * (uint32_t)(words * R);
            }
            for (uint32_t k = 0, n; PAIRS(format, type) && k < len; k += n) {
                n = len - k < PAIR_COLS ? len - k : PAIR_COLS;
                vi pairs[TILE_INT_ROWS][TILE_INT_PANELS][4];
                TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
                    pairs[r][p][0] = vi_zero();
                add_columns(w, s->panel_bytes, x, n, format, type, R, P, 1, pairs);
                TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
                    sum[r][p][0] = vi_widen(sum[r][p][0], pairs[r][p][0]);
                w += n / PACK_COLS * step_bytes;
                x += n / PACK_COLS * (uint32_t)(words * R);
            }
            TILE_IN_MEMORY(sums);
            TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
            {
                TILE_UNROLL for (int n = 1; n < N; n++) sum[r][p][0] =
                    vi_add(sum[r][p][0], sum[r][p][n]);
                float *part = sums->part[left / PACK_BLOCK % TILE_ORDERS][r][p];
                vf_store(part,
                         vf_fma(vf_from_int(sum[r][p][0]), vf_set1(x_scale[r]), vf_load(part)));
            }
            x_scale += R;
            x_start += R;
        }
        end_group(t, group, R, P, sums);
    }
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int p = 0; p < P; p++)
        tile_store(t, (uint32_t)r, (uint32_t)p, vf_load(sums->total[r][p]));
}

/* Sums per row and panel: about ten chains in all, where there are registers for them, and no more
 * than there are words in a step. */
#if defined CPU_ISA_avx512vnni
#define SUMS(format, R) ((R) <= 2 && format == CPU_I16 ? 4 : (R) <= 10 ? 2 : 1)
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

/* A product with a gated linear unit behind it. Where the two halves of a tile's rows meet, they
 * are still in the first cache, and never leave it: of a long batch they would be written and read
 * through memory. */
enum { GLU_PANELS = 16 }; /* of each half, at most: 48 KiB for 24 rows */

/* Rows of the left and of the right half, no power of two apart, so that they do not compete for
 * the same lines of the cache. */
struct glu_area {
    float u[TILE_INT_ROWS][2][GLU_PANELS * PACK_LANES + VEC] __attribute__((aligned(64)));
};

VEC_FN void end_glu(const struct cpu_product *j, const struct glu_area *area, uint32_t tile,
                    uint64_t panel, uint64_t n)
{
    const uint32_t inner = j->l->shape.rows / 2, row0 = cpu_tile_row(j, tile);
    const uint32_t rows = cpu_tile_row(j, tile + 1) - row0;
    const uint64_t begin_ns = j->glu_ns ? cpu_now_ns() : 0;
    for (uint32_t r = 0; r < rows; r++) {
        float *g = j->g + (size_t)(row0 + r) * inner + panel * PACK_LANES;
        for (uint64_t i = 0; i < n * PACK_LANES; i += VEC)
            vf_store(g + i,
                     vf_gated(j->glu, vf_load(area->u[r][0] + i), vf_load(area->u[r][1] + i)));
    }
    if (j->glu_ns)
        *j->glu_ns += cpu_now_ns() - begin_ns;
}

/* Visit `at` of the 2 n that end in end_glu brings in its part of where that will write: rows are
 * far apart, and a store to memory takes as long as the unit's arithmetic. */
VEC_FN void bring_in_places(const struct tile *t, uint64_t panel, uint64_t n, uint64_t at)
{
    const uint32_t inner = t->j->l->shape.rows / 2;
    for (uint64_t r = t->rows * at / (2 * n); r < t->rows * (at + 1) / (2 * n); r++) {
        const float *g = t->j->g + (t->row0 + r) * inner + panel * PACK_LANES;
        for (uint64_t i = 0; i < n * PACK_LANES; i += VEC)
            VEC_PREFETCH_L2(g + i);
    }
}

/* first, end, more: panels of a half. */
VEC_FN void walk_glu(const struct cpu_product *j, uint64_t first, uint64_t end, uint64_t more,
                     const tile_fn *fns)
{
    const struct pack_shape *s = &j->l->shape;
    const uint64_t half = s->n_panels / 2, fit = TILE_GROUP_BYTES / 2 / s->panel_bytes;
    const uint64_t group = fit < 1 ? 1 : fit < GLU_PANELS ? fit : GLU_PANELS;
    struct glu_area area;
    for (uint64_t p0 = first; p0 < end; p0 += group) {
        const uint64_t n = end - p0 < group ? end - p0 : group;
        for (uint32_t i = 0; i < j->n_tiles; i++) {
            for (uint64_t at = 0; at < 2 * n; at++) {
                const uint64_t side = at / n, p = p0 + at % n;
                struct tile t = {.j = j,
                                 .panel = j->l->panels + (side * half + p) * s->panel_bytes,
                                 .panel_idx = (uint32_t)(side * half + p)};
                tile_rows(&t, i);
                t.y = area.u[0][side] + (p - p0) * PACK_LANES;
                t.y_stride = sizeof area.u[0] / sizeof(float);
                if (j->n_tiles > 1 && p + n < more)
                    tile_look_ahead(&t, i, t.panel + n * s->panel_bytes, s->panel_bytes);
                bring_in_places(&t, p0, n, at);
                fns[t.rows - 1](&t); /* NOLINT(clang-analyzer-core.CallAndMessage): 1 to 24 */
            }
            end_glu(j, &area, i, p0, n);
        }
    }
}

#define MULTIPLY_GLU(name, ones)                                                                   \
    CPU_PANELS_FN(name)                                                                            \
    {                                                                                              \
        static const tile_fn one[] = {TILE_INT_SIZES(ones)};                                       \
        walk_glu(j, first, end, more, one);                                                        \
    }

MULTIPLY_GLU(multiply_glu_i16_i8, I16_I8_ONE)
MULTIPLY_GLU(multiply_glu_i16_i4, I16_I4_ONE)
MULTIPLY_GLU(multiply_glu_i8_i8, I8_I8_ONE)
MULTIPLY_GLU(multiply_glu_i8_i4, I8_I4_ONE)

#define MULTIPLY(name, ones, wides)                                                                \
    CPU_PANELS_FN(name)                                                                            \
    {                                                                                              \
        static const tile_fn one[] = {TILE_INT_SIZES(ones)};                                       \
        tile_walk_groups(j, first, end, more, one, TILE_GROUP_BYTES);                              \
    }
#else
TILE_INT_SIZES(TILES_WIDE)
#define MULTIPLY(name, ones, wides)                                                                \
    CPU_PANELS_FN(name)                                                                            \
    {                                                                                              \
        static const tile_fn one[] = {TILE_INT_SIZES(ones)}, wide[] = {TILE_INT_SIZES(wides)};     \
        tile_walk(j, first, end, more, one, wide, false);                                          \
    }
#endif

MULTIPLY(multiply_i16_i4, I16_I4_ONE, I16_I4_WIDE)
MULTIPLY(multiply_i16_i8, I16_I8_ONE, I16_I8_WIDE)
MULTIPLY(multiply_i8_i4, I8_I4_ONE, I8_I4_WIDE)
MULTIPLY(multiply_i8_i8, I8_I8_ONE, I8_I8_WIDE)
