/* embed.c: reads one row back out of a packed FP16 matrix. */
#include "isa.h"

void CPU_FN(embed)(const struct k_linear *table, uint32_t row, float *y)
{
    const struct pack_shape *s = &table->shape;
    const uint8_t *panel = table->panels + (size_t)(row / PACK_LANES) * s->panel_bytes;
    const uint16_t *lane = (const uint16_t *)panel + row % PACK_LANES;
    for (uint32_t i = 0; i < s->cols; i += VEC) {
        int n = s->cols - i < VEC ? (int)(s->cols - i) : VEC;
        uint16_t half[VEC] = {0};
        for (int k = 0; k < n; k++)
            half[k] = lane[(size_t)(i + (uint32_t)k) * PACK_LANES];
        vf_store_n(y + i, vf_load_half(half), n);
    }
}
