/* pack.c: the packed form on the host, one weight at a time: what the device's packing and the
 * kernels' fragments are checked against (linear.h). */
#include "linear.h"

#include <string.h>

/* The weight on disk, with the zero point added. */
static uint32_t source_bits(const struct k_linear_src *src, uint32_t row, uint32_t col)
{
    size_t at = (size_t)row * src->cols + col;
    const uint8_t *data = src->data;
    if (src->type == K_WEIGHT_I4)
        return ((uint32_t)data[at / 2] >> (at % 2 ? 0 : 4) & 15) ^ PACKED_I4_ZERO;
    if (src->type == K_WEIGHT_I8)
        return data[at] ^ PACKED_I8_ZERO;
    uint16_t half;
    memcpy(&half, data + at * 2, 2);
    return half;
}

static void put(uint8_t *lane, uint32_t bits, uint32_t bit, uint32_t value)
{
    if (bits == 4) {
        uint32_t shift = bit % 8;
        lane[bit / 8] = (uint8_t)((lane[bit / 8] & ~(15u << shift)) | value << shift);
    } else {
        lane[bit / 8] = (uint8_t)value;
        if (bits == 16)
            lane[bit / 8 + 1] = (uint8_t)(value >> 8);
    }
}

void linear_pack(const struct packed_shape *s, const struct k_linear_src *src, void *to)
{
    uint8_t *out = to;
    uint32_t zero = s->bits == 4 ? PACKED_I4_ZERO : s->bits == 8 ? PACKED_I8_ZERO : 0;
    memset(out, 0, s->bytes);
    for (uint32_t row = 0; row < s->row_pad; row++)
        for (uint32_t k = 0; k < s->n_blocks * PACKED_COLS; k++) {
            uint32_t from = packed_source_row(s, row), col = packed_source_col(s, k);
            bool exists = row < s->rows && col < s->cols;
            struct packed_place at = packed_place_of(s, row, k);
            put(out + at.byte, s->bits, at.bit, exists ? source_bits(src, from, col) : zero);
        }
    uint16_t *scale = (uint16_t *)(out + s->scale_at), *bias = (uint16_t *)(out + s->bias_at);
    for (uint32_t row = 0; row < s->rows; row++) {
        const uint32_t place = packed_row(s, row);
        for (uint32_t g = 0; src->scale && g < s->n_groups; g++)
            scale[(size_t)g * s->row_pad + place] = src->scale[(size_t)row * s->n_groups + g];
        if (src->bias)
            bias[row] = src->bias[row];
    }
}

int32_t linear_unpack(const struct packed_shape *s, const void *packed, uint32_t row, uint32_t col)
{
    struct packed_place at = packed_place_of(s, packed_row(s, row), packed_col(s, col));
    const uint8_t *lane = (const uint8_t *)packed + at.byte + at.bit / 8;
    if (s->bits == 4)
        return (int32_t)(lane[0] >> at.bit % 8 & 15) - PACKED_I4_ZERO;
    if (s->bits == 8)
        return (int32_t)lane[0] - PACKED_I8_ZERO;
    return (int32_t)(lane[0] | lane[1] << 8);
}
