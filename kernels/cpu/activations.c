/* activations.c: hands the rows of x to the product kernels, interleaved by tile so that a kernel
 * reads one stream. For a tile of R rows:
 *
 *   CPU_F32: float [k_pad][R]
 *   CPU_I16: 32-bit words [k_pad / 8][4][R], two values each
 *   CPU_I8:  32-bit words [k_pad / 8][2][R], four values each
 *
 * in the order of columns that the weights are read in (int4.h). Quantized values are
 * round(x / scale) with scale = largest magnitude of the row's block / CPU_I16_MAX (or CPU_I8_MAX).
 * With 16 bits the step is 2^-16 of that magnitude, below the rounding error that the largest value
 * itself has in binary16.
 */
#include "isa.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Block values below this count as zero, so that 1 / scale stays finite. */
#define TINY 1e-30f

struct place {
    struct pack_block b;
    uint32_t row0, n_rows; /* of the tile */
    size_t scale_idx;      /* of the tile's first row */
    uint32_t block;
};

static struct place find_place(const struct cpu_product *j, uint64_t item)
{
    const struct pack_shape *s = &j->l->shape;
    struct place p;
    uint32_t tile = (uint32_t)(item / s->n_blocks);
    p.block = (uint32_t)(item % s->n_blocks);
    p.b = pack_block(s, p.block);
    p.row0 = cpu_tile_row(j, tile);
    p.n_rows = cpu_tile_row(j, tile + 1) - p.row0;
    p.scale_idx = (size_t)p.row0 * s->n_blocks + (size_t)p.block * p.n_rows;
    return p;
}

CPU_RANGE_FN(pack_f32, cpu_product)
{
    const struct pack_shape *s = &j->l->shape;
    for (uint64_t item = first; item < end; item++) {
        struct place p = find_place(j, item);
        float *out = (float *)j->data + (size_t)p.row0 * s->k_pad + (size_t)p.b.k0 * p.n_rows;
        for (uint32_t r = 0; r < p.n_rows; r++) {
            const float *x = j->x + (size_t)(p.row0 + r) * s->cols + p.b.col0;
            for (uint32_t k = 0; k < p.b.valid; k++)
                out[(size_t)k * p.n_rows + r] = x[k];
            for (uint32_t k = p.b.valid; k < p.b.len; k++)
                out[(size_t)k * p.n_rows + r] = 0.0f;
        }
    }
}

/* q[PACK_BLOCK] = round(x / scale), zeros behind `valid`. Returns the scale and the sum of q. A
 * value that is not finite makes the scale NaN, and with it the results. */
VEC_FN float quantize(const float *x, uint32_t valid, float limit, int32_t *q, int32_t *ret_sum)
{
    vf values[PACK_BLOCK / VEC];
    vi largest = vi_zero();
    for (int i = 0; i < PACK_BLOCK / VEC; i++) {
        int left = (int)valid - i * VEC;
        values[i] = left >= VEC ? vf_load(x + i * VEC)
                                : vf_load_n(left > 0 ? x + i * VEC : x, left > 0 ? left : 0);
        largest = vi_max(largest, vi_and(vi_bits(values[i]), vi_set1(0x7fffffff)));
    }
    int32_t bits = vi_max_lanes(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    if (!(magnitude >= TINY && magnitude <= 3.4e38f)) {
        memset(q, 0, PACK_BLOCK * sizeof *q);
        *ret_sum = 0;
        return magnitude < TINY ? 0.0f : __builtin_nanf("");
    }
    const vf inverse = vf_set1(limit / magnitude);
    vi sum = vi_zero();
    for (int i = 0; i < PACK_BLOCK / VEC; i++) {
        vi v = vi_from_float(vf_rint(vf_mul(values[i], inverse)));
        vi_store(q + i * VEC, v);
        sum = vi_add(sum, v);
    }
    *ret_sum = vi_sum(sum);
    return magnitude / limit;
}

/* What the sums of a block start with, so that they end as sum u x - zero * sum x. */
static int32_t block_start(const struct cpu_product *j, int32_t sum)
{
    return -sum * (j->l->type == K_WEIGHT_I4 ? PACK_I4_ZERO : PACK_I8_ZERO);
}

/* The words of a tile's rows in one block: a row's own one behind the other, as they come out of
 * its quantization, and then those of all rows beside each other, as the kernels read them. */
struct words {
    uint32_t row[TILE_INT_ROWS][PACK_BLOCK / 2];
};

#ifdef __SSE2__
/* Words [w, w + 4) of four rows. */
VEC_FN void interleave(const struct words *words, uint32_t r, uint32_t w, uint32_t n_rows,
                       uint32_t *out)
{
    __m128i v[4];
    for (uint32_t i = 0; i < 4; i++)
        v[i] = _mm_loadu_si128((const __m128i *)(words->row[r + i] + w));
    const __m128i low_01 = _mm_unpacklo_epi32(v[0], v[1]), low_23 = _mm_unpacklo_epi32(v[2], v[3]);
    const __m128i high_01 = _mm_unpackhi_epi32(v[0], v[1]),
                  high_23 = _mm_unpackhi_epi32(v[2], v[3]);
    const __m128i word[4] = {_mm_unpacklo_epi64(low_01, low_23), _mm_unpackhi_epi64(low_01, low_23),
                             _mm_unpacklo_epi64(high_01, high_23),
                             _mm_unpackhi_epi64(high_01, high_23)};
    for (uint32_t i = 0; i < 4; i++)
        _mm_storeu_si128((__m128i *)(out + (size_t)(w + i) * n_rows + r), word[i]);
}
#endif

/* out[n_words][n_rows] */
VEC_FN void store_words(const struct words *words, uint32_t n_rows, uint32_t n_words, uint32_t *out)
{
    uint32_t r = 0;
#ifdef __SSE2__
    for (; r + 4 <= n_rows; r += 4) {
        uint32_t w = 0;
        for (; w + 4 <= n_words; w += 4)
            interleave(words, r, w, n_rows, out);
        for (; w < n_words; w++)
            for (uint32_t i = 0; i < 4; i++)
                out[(size_t)w * n_rows + r + i] = words->row[r + i][w];
    }
#endif
    for (; r < n_rows; r++)
        for (uint32_t w = 0; w < n_words; w++)
            out[(size_t)w * n_rows + r] = words->row[r][w];
}

/* q -> the words of a row, 16 bits: two values each, columns (1, 5) (0, 4) (3, 7) (2, 6) of a step
 * of 8 for INT4 weights, (0, 2) (1, 3) (4, 6) (5, 7) for INT8. */
VEC_FN void words_i16(const int32_t *q, enum k_weight type, uint32_t *words)
{
    for (uint32_t k = 0; k < PACK_BLOCK; k += 8, q += 8, words += 4) {
#ifdef __SSE2__
        __m128i a = _mm_loadu_si128((const __m128i *)q);
        __m128i b = _mm_loadu_si128((const __m128i *)(q + 4));
        __m128i low = type == K_WEIGHT_I4 ? _mm_shuffle_epi32(a, _MM_SHUFFLE(2, 3, 0, 1))
                                          : _mm_unpacklo_epi64(a, b);
        __m128i high = type == K_WEIGHT_I4 ? _mm_shuffle_epi32(b, _MM_SHUFFLE(2, 3, 0, 1))
                                           : _mm_unpackhi_epi64(a, b);
        _mm_storeu_si128((__m128i *)words, _mm_or_si128(_mm_and_si128(low, _mm_set1_epi32(0xffff)),
                                                        _mm_slli_epi32(high, 16)));
#else
        for (uint32_t w = 0; w < 4; w++) {
            uint32_t low = type == K_WEIGHT_I4 ? w ^ 1 : w / 2 * 4 + w % 2;
            uint32_t high = type == K_WEIGHT_I4 ? low + 4 : low + 2;
            words[w] = (uint32_t)(q[low] & 0xffff) | (uint32_t)q[high] << 16;
        }
#endif
    }
}

/* The same with 8 bits: four values each, columns (1, 3, 5, 7) (0, 2, 4, 6) for INT4 weights, as
 * they are for INT8. */
VEC_FN void words_i8(const int32_t *q, enum k_weight type, uint32_t *words)
{
    int8_t *bytes = (int8_t *)words;
    for (int i = 0; i < PACK_BLOCK; i += VEC)
        vi_store_i8(bytes + i, vi_load(q + i));
    if (type != K_WEIGHT_I4)
        return;
#ifdef __SSE2__
    for (int i = 0; i < PACK_BLOCK; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(bytes + i));
        __m128i odd = _mm_srli_epi16(v, 8), even = _mm_and_si128(v, _mm_set1_epi16(0xff));
        v = _mm_packus_epi16(odd, even); /* odd, odd, even, even of two steps */
        _mm_storeu_si128((__m128i *)(bytes + i), _mm_shuffle_epi32(v, _MM_SHUFFLE(3, 1, 2, 0)));
    }
#else
    for (uint32_t k = 0; k < PACK_BLOCK; k += 8) {
        int8_t step[8];
        memcpy(step, bytes + k, sizeof step);
        for (uint32_t i = 0; i < 8; i++)
            bytes[k + i] = step[i < 4 ? 2 * i + 1 : 2 * (i - 4)];
    }
#endif
}

/* `bits` of a value: 16 or 8. */
VEC_FN void pack_words(const struct cpu_product *j, uint64_t first, uint64_t end, uint32_t bits)
{
    const struct pack_shape *s = &j->l->shape;
    const enum k_weight type = j->l->type;
    for (uint64_t item = first; item < end; item++) {
        struct place p = find_place(j, item);
        struct words words;
        for (uint32_t r = 0; r < p.n_rows; r++) {
            int32_t q[PACK_BLOCK], sum;
            j->scale[p.scale_idx + r] =
                quantize(j->x + (size_t)(p.row0 + r) * s->cols + p.b.col0, p.b.valid,
                         bits == 16 ? CPU_I16_MAX : CPU_I8_MAX, q, &sum);
            j->start[p.scale_idx + r] = block_start(j, sum);
            if (bits == 16)
                words_i16(q, type, words.row[r]);
            else
                words_i8(q, type, words.row[r]);
        }
        size_t at = ((size_t)p.row0 * s->k_pad + (size_t)p.b.k0 * p.n_rows) * bits / 32;
        store_words(&words, p.n_rows, p.b.len * bits / 32, (uint32_t *)j->data + at);
    }
}

CPU_RANGE_FN(pack_i16, cpu_product)
{
    pack_words(j, first, end, 16);
}

CPU_RANGE_FN(pack_i8, cpu_product)
{
    pack_words(j, first, end, 8);
}
