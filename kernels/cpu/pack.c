/* pack.c: from rows as they lie on disk (kernels.h) to panels (int4.h). */
#include "cpu.h"

#include <assert.h>
#include <string.h>

/* The rows of a panel; `n` of them exist. */
struct rows {
    const uint8_t *row[PACK_LANES];
    uint32_t n;
};

static struct rows panel_rows(const struct k_linear *l, const struct k_linear_src *src,
                              uint32_t panel)
{
    struct rows r = {.n = 0};
    size_t row_bytes = (size_t)src->cols * l->shape.bits / 8;
    uint32_t first = panel * PACK_LANES;
    for (; r.n < PACK_LANES && first + r.n < src->rows; r.n++)
        r.row[r.n] = (const uint8_t *)src->data + (first + r.n) * row_bytes;
    return r;
}

static void pack_scales(const struct k_linear_src *src, uint32_t panel, uint16_t *scales)
{
    for (uint32_t g = 0; g < src->n_groups; g++)
        for (uint32_t c = 0; c < PACK_LANES; c++) {
            uint32_t row = panel * PACK_LANES + c;
            scales[(size_t)g * PACK_LANES + c] =
                row < src->rows ? src->scale[(size_t)row * src->n_groups + g] : 0;
        }
}

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

/* Whole words of all rows, from byte `offset` of a row on: a transposition. */
static void pack_whole_words(const struct rows *r, size_t offset, uint32_t n_words, uint32_t flip,
                             uint32_t *data)
{
    for (uint32_t w = 0; w < n_words; w++) {
        uint32_t step[PACK_LANES] = {0};
        for (uint32_t c = 0; c < r->n; c++)
            memcpy(&step[c], r->row[c] + offset + (size_t)w * 4, 4);
        for (uint32_t c = 0; c < PACK_LANES; c++)
            data[(size_t)w * PACK_LANES + c] = step[c] ^ flip;
    }
}

static void pack_words(const struct k_linear *l, const struct k_linear_src *src, uint32_t panel,
                       uint32_t *data)
{
    const struct pack_shape *s = &l->shape;
    const uint32_t step = 32 / s->bits; /* columns of a word */
    const uint32_t flip = s->bits == 4 ? 0x88888888 : 0x80808080;
    const struct rows r = panel_rows(l, src, panel);
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        struct pack_block at = pack_block(s, b);
        uint32_t *to = data + (size_t)at.k0 / step * PACK_LANES;
        uint32_t whole = s->bits == 4 && at.col0 % 2 ? 0 : at.valid / step;
        pack_whole_words(&r, (size_t)at.col0 * s->bits / 8, whole, flip, to);
        for (uint32_t w = whole; w < at.len / step; w++)
            for (uint32_t c = 0; c < PACK_LANES; c++) {
                uint32_t k = w * step, valid = at.valid > k ? at.valid - k : 0;
                uint32_t word =
                    c < r.n && valid ? source_word(s->bits, r.row[c], at.col0 + k, valid) : 0;
                to[(size_t)w * PACK_LANES + c] = word ^ flip;
            }
    }
}

static void pack_halves(const struct k_linear *l, const struct k_linear_src *src, uint32_t panel,
                        uint16_t *data)
{
    const struct rows r = panel_rows(l, src, panel);
    for (uint32_t k = 0; k < l->shape.k_pad; k++)
        for (uint32_t c = 0; c < PACK_LANES; c++) {
            uint16_t value = 0;
            if (c < r.n && k < src->cols)
                memcpy(&value, r.row[c] + (size_t)k * 2, 2);
            data[(size_t)k * PACK_LANES + c] = value;
        }
}

void cpu_pack(const struct k_linear *l, const struct k_linear_src *src, uint32_t first,
              uint32_t end)
{
    const struct pack_shape *s = &l->shape;
    for (uint32_t panel = first; panel < end; panel++) {
        uint8_t *to = l->panels + (size_t)panel * s->panel_bytes;
        if (s->bits == 16) {
            pack_halves(l, src, panel, (uint16_t *)to);
            continue;
        }
        pack_scales(src, panel, (uint16_t *)to);
        pack_words(l, src, panel, (uint32_t *)(to + s->scale_bytes));
    }
}
