/* pack.c: from rows as they lie on disk (kernels.h) to panels (int4.h). */
#include "cpu.h"

#include <assert.h>
#include <string.h>

/* Row `row` of the source, or NULL where the last panel has no such row. */
static const uint8_t *source_row(const struct k_linear *l, const struct k_linear_src *src,
                                 uint32_t row)
{
    if (row >= src->rows)
        return NULL;
    size_t row_bytes = (size_t)src->cols * l->shape.bits / 8;
    return (const uint8_t *)src->data + row * row_bytes;
}

static void pack_scales(const struct k_linear *l, const struct k_linear_src *src, uint32_t panel,
                        uint16_t *scales)
{
    for (uint32_t g = 0; g < src->n_groups; g++)
        for (uint32_t c = 0; c < PACK_LANES; c++) {
            uint32_t row = panel * PACK_LANES + c;
            scales[(size_t)g * PACK_LANES + c] =
                row < src->rows ? src->scale[(size_t)row * src->n_groups + g] : 0;
        }
    (void)l;
}

/* The word of 8 (INT4) or 4 (INT8) columns from `col` on, of which `valid` exist. */
static uint32_t source_word(uint32_t bits, const uint8_t *row, uint32_t col, uint32_t valid)
{
    uint32_t word = 0;
    if (bits == 8) {
        memcpy(&word, row + col, valid < 4 ? valid : 4);
        return word;
    }
    if (col % 2 == 0 && valid >= 8) {
        memcpy(&word, row + col / 2, 4);
        return word;
    }
    for (uint32_t k = 0; k < 8 && k < valid; k++) {
        uint32_t at = col + k;
        uint32_t nibble = (uint32_t)row[at / 2] >> (at % 2 ? 0 : 4) & 15;
        word |= nibble << 4 * (k ^ 1);
    }
    return word;
}

static void pack_words(const struct k_linear *l, const struct k_linear_src *src, uint32_t panel,
                       uint8_t *data)
{
    const struct pack_shape *s = &l->shape;
    const uint32_t step = 32 / s->bits; /* columns of a word */
    const uint32_t flip = s->bits == 4 ? 0x88888888 : 0x80808080;
    for (uint32_t c = 0; c < PACK_LANES; c++) {
        const uint8_t *row = source_row(l, src, panel * PACK_LANES + c);
        for (uint32_t b = 0; b < s->n_blocks; b++) {
            struct pack_block at = pack_block(s, b);
            for (uint32_t k = 0; k < at.len; k += step) {
                uint32_t valid = at.valid > k ? at.valid - k : 0;
                uint32_t word = row && valid ? source_word(s->bits, row, at.col0 + k, valid) : 0;
                word ^= flip;
                size_t idx = (size_t)(at.k0 + k) / step * PACK_LANES + c;
                memcpy(data + idx * sizeof word, &word, sizeof word);
            }
        }
    }
}

static void pack_halves(const struct k_linear *l, const struct k_linear_src *src, uint32_t panel,
                        uint16_t *data)
{
    for (uint32_t c = 0; c < PACK_LANES; c++) {
        const uint8_t *row = source_row(l, src, panel * PACK_LANES + c);
        for (uint32_t k = 0; k < l->shape.k_pad; k++) {
            uint16_t value = 0;
            if (row && k < src->cols)
                memcpy(&value, row + (size_t)k * 2, 2);
            data[(size_t)k * PACK_LANES + c] = value;
        }
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
        pack_scales(l, src, panel, (uint16_t *)to);
        pack_words(l, src, panel, to + s->scale_bytes);
    }
}
