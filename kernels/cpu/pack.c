/* pack.c: from rows as they lie on disk (kernels.h) to panels (int4.h). Transpositions, of 32-bit
 * words (8 INT4 or 4 INT8 columns) and of halves (FP16 columns, scales). Panels are written past
 * the caches: they are larger than these, and whoever reads them next is another thread. */
#include "cpu.h"
#include "watch.h"

#include <assert.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* The rows of a panel; `n` of them exist. */
struct rows {
    const uint8_t *row[PACK_LANES];
    uint32_t n;
};

/* Rows of a panel out of a piece that begins at the panel's first row. */
static struct rows rows_of(const void *data, size_t row_bytes, uint32_t n)
{
    struct rows r = {.n = n < PACK_LANES ? n : PACK_LANES};
    for (uint32_t c = 0; c < r.n; c++)
        r.row[c] = (const uint8_t *)data + c * row_bytes;
    return r;
}

/* ---- transpositions ---- */

#ifdef __SSE2__

static inline void stream(void *to, __m128i v)
{
    watch_bytes(to, sizeof v);
    _mm_stream_si128(to, v);
}

/* Words [0, 4) of four rows to lanes [lane, lane + 4) of four steps. */
static inline void transpose_words(const uint8_t *const row[4], size_t offset, __m128i flip,
                                   uint32_t *to)
{
    __m128i a = _mm_loadu_si128((const __m128i *)(row[0] + offset));
    __m128i b = _mm_loadu_si128((const __m128i *)(row[1] + offset));
    __m128i c = _mm_loadu_si128((const __m128i *)(row[2] + offset));
    __m128i d = _mm_loadu_si128((const __m128i *)(row[3] + offset));
    __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
    __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
    const __m128i step[4] = {_mm_unpacklo_epi64(ab_low, cd_low), _mm_unpackhi_epi64(ab_low, cd_low),
                             _mm_unpacklo_epi64(ab_high, cd_high),
                             _mm_unpackhi_epi64(ab_high, cd_high)};
    for (int i = 0; i < 4; i++)
        stream(to + (size_t)i * PACK_LANES, _mm_xor_si128(step[i], flip));
}

/* Halves [0, 8) of eight rows to lanes of eight columns. */
static inline void transpose_halves(const uint8_t *const row[8], size_t offset, uint16_t *to)
{
    __m128i v[8], w[8];
    for (int i = 0; i < 8; i++)
        v[i] = _mm_loadu_si128((const __m128i *)(row[i] + offset));
    for (int i = 0; i < 4; i++) { /* pairs of rows (2i, 2i + 1): columns 0..3, 4..7 */
        w[i] = _mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        w[4 + i] = _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int h = 0; h < 2; h++) { /* four columns each */
        const __m128i *p = w + 4 * (size_t)h;
        __m128i low_01 = _mm_unpacklo_epi32(p[0], p[1]), low_23 = _mm_unpacklo_epi32(p[2], p[3]);
        __m128i high_01 = _mm_unpackhi_epi32(p[0], p[1]), high_23 = _mm_unpackhi_epi32(p[2], p[3]);
        const __m128i column[4] = {
            _mm_unpacklo_epi64(low_01, low_23), _mm_unpackhi_epi64(low_01, low_23),
            _mm_unpacklo_epi64(high_01, high_23), _mm_unpackhi_epi64(high_01, high_23)};
        for (int i = 0; i < 4; i++)
            stream(to + (size_t)(4 * h + i) * PACK_LANES, column[i]);
    }
}

/* What was streamed is there for everybody who is told of it. */
static void finish_writing(void)
{
    _mm_sfence();
}

#else

static void finish_writing(void) {}

#endif

/* Whole words of all rows, from byte `offset` of a row on. */
static void pack_whole_words(const struct rows *r, size_t offset, uint32_t n_words, uint32_t flip,
                             uint32_t *data)
{
    uint32_t w = 0;
#ifdef __SSE2__
    const __m128i flips = _mm_set1_epi32((int)flip);
    for (; r->n == PACK_LANES && w + 4 <= n_words; w += 4)
        for (uint32_t c = 0; c < PACK_LANES; c += 4)
            transpose_words(r->row + c, offset + (size_t)w * 4, flips,
                            data + (size_t)w * PACK_LANES + c);
#endif
    for (; w < n_words; w++) {
        uint32_t step[PACK_LANES] = {0};
        for (uint32_t c = 0; c < r->n; c++)
            memcpy(&step[c], r->row[c] + offset + (size_t)w * 4, 4);
        for (uint32_t c = 0; c < PACK_LANES; c++)
            data[(size_t)w * PACK_LANES + c] = step[c] ^ flip;
    }
}

/* n halves of all rows; lanes without a row become zeros. */
static void pack_halves(const struct rows *r, uint32_t n, uint16_t *data)
{
    uint32_t k = 0;
#ifdef __SSE2__
    for (; r->n == PACK_LANES && k + 8 <= n; k += 8)
        for (uint32_t c = 0; c < PACK_LANES; c += 8)
            transpose_halves(r->row + c, (size_t)k * 2, data + (size_t)k * PACK_LANES + c);
#endif
    for (; k < n; k++) {
        uint16_t column[PACK_LANES] = {0};
        for (uint32_t c = 0; c < r->n; c++)
            memcpy(&column[c], r->row[c] + (size_t)k * 2, 2);
        memcpy(data + (size_t)k * PACK_LANES, column, sizeof column);
    }
}

/* ---- panels ---- */

/* The word of 8 (INT4) or 4 (INT8) columns from `col` on, of which only `valid` exist, or which
 * begins in the middle of a byte. */
static uint32_t source_word(uint32_t bits, const uint8_t *row, uint32_t col, uint32_t valid)
{
    uint32_t word = 0;
    if (bits == 8) {
        memcpy(&word, row + col, valid < 4 ? valid : 4);
        return word;
    }
    for (uint32_t k = 0; k < 8 && k < valid; k++) {
        uint32_t at = col + k;
        uint32_t nibble = (uint32_t)row[at / 2] >> (at % 2 ? 0 : 4) & 15;
        word |= nibble << 4 * (k ^ 1);
    }
    return word;
}

static void pack_words(const struct pack_shape *s, const struct rows *r, uint32_t *data)
{
    const uint32_t step = 32 / s->bits; /* columns of a word */
    const uint32_t flip = s->bits == 4 ? 0x88888888 : 0x80808080;
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        struct pack_block at = pack_block(s, b);
        uint32_t *to = data + (size_t)at.k0 / step * PACK_LANES;
        uint32_t whole = s->bits == 4 && at.col0 % 2 ? 0 : at.valid / step;
        pack_whole_words(r, (size_t)at.col0 * s->bits / 8, whole, flip, to);
        for (uint32_t w = whole; w < at.len / step; w++)
            for (uint32_t c = 0; c < PACK_LANES; c++) {
                uint32_t k = w * step, valid = at.valid > k ? at.valid - k : 0;
                uint32_t word =
                    c < r->n && valid ? source_word(s->bits, r->row[c], at.col0 + k, valid) : 0;
                to[(size_t)w * PACK_LANES + c] = word ^ flip;
            }
    }
}

static void check_piece(const struct pack_shape *s, uint32_t first_row, uint32_t n_rows)
{
    assert(first_row % PACK_LANES == 0);
    assert(n_rows && first_row + n_rows <= s->rows);
    assert(n_rows % PACK_LANES == 0 || first_row + n_rows == s->rows);
}

void cpu_pack_rows(const struct k_linear *l, uint32_t first_row, uint32_t n_rows, const void *data)
{
    const struct pack_shape *s = &l->shape;
    const size_t row_bytes = (size_t)s->cols * s->bits / 8;
    check_piece(s, first_row, n_rows);
    for (uint32_t i = 0; i < n_rows; i += PACK_LANES) {
        uint8_t *to = l->panels + (size_t)(first_row + i) / PACK_LANES * s->panel_bytes;
        struct rows r = rows_of((const uint8_t *)data + i * row_bytes, row_bytes, n_rows - i);
        if (s->bits == 16) {
            pack_halves(&r, s->cols, (uint16_t *)to);
            memset(to + (size_t)s->cols * PACK_LANES * 2, 0,
                   (size_t)(s->k_pad - s->cols) * PACK_LANES * 2);
        } else {
            pack_words(s, &r, (uint32_t *)(to + s->scale_bytes));
        }
    }
    finish_writing();
}

void cpu_pack_scales(const struct k_linear *l, uint32_t first_row, uint32_t n_rows,
                     const uint16_t *scale)
{
    const struct pack_shape *s = &l->shape;
    const size_t row_bytes = (size_t)s->n_groups * sizeof *scale;
    check_piece(s, first_row, n_rows);
    assert(s->bits != 16);
    for (uint32_t i = 0; i < n_rows; i += PACK_LANES) {
        uint8_t *to = l->panels + (size_t)(first_row + i) / PACK_LANES * s->panel_bytes;
        struct rows r = rows_of((const uint8_t *)scale + i * row_bytes, row_bytes, n_rows - i);
        pack_halves(&r, s->n_groups, (uint16_t *)to);
    }
    finish_writing();
}
