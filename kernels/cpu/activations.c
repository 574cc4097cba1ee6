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

/* Block values below this count as zero, so that 1 / scale stays finite. */
#define TINY 1e-30f

/* 16 bits: the columns of word w of a step of 8. */
static const uint8_t order_i16_i4[4][2] = {{1, 5}, {0, 4}, {3, 7}, {2, 6}};
static const uint8_t order_i16_i8[4][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}};

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

CPU_RANGE_FN(pack_i16, cpu_product)
{
    const struct pack_shape *s = &j->l->shape;
    const uint8_t(*order)[2] = j->l->type == K_WEIGHT_I4 ? order_i16_i4 : order_i16_i8;
    for (uint64_t item = first; item < end; item++) {
        struct place p = find_place(j, item);
        uint32_t *out =
            (uint32_t *)j->data + ((size_t)p.row0 * s->k_pad + (size_t)p.b.k0 * p.n_rows) / 2;
        for (uint32_t r = 0; r < p.n_rows; r++) {
            int32_t q[PACK_BLOCK], sum;
            j->scale[p.scale_idx + r] = quantize(j->x + (size_t)(p.row0 + r) * s->cols + p.b.col0,
                                                 p.b.valid, CPU_I16_MAX, q, &sum);
            j->start[p.scale_idx + r] = block_start(j, sum);
            for (uint32_t step = 0; step < p.b.len / 8; step++)
                for (uint32_t w = 0; w < 4; w++)
                    out[(size_t)(step * 4 + w) * p.n_rows + r] =
                        (uint32_t)(q[step * 8 + order[w][0]] & 0xffff) |
                        (uint32_t)q[step * 8 + order[w][1]] << 16;
        }
    }
}

/* Bytes k0..k7 of a step -> the words (k1, k3, k5, k7) and (k0, k2, k4, k6). */
VEC_FN void split_step(uint64_t bytes, uint32_t *odd, uint32_t *even)
{
    uint64_t part[2] = {bytes >> 8, bytes};
    for (int i = 0; i < 2; i++) {
        part[i] &= UINT64_C(0x00ff00ff00ff00ff);
        part[i] = (part[i] | part[i] >> 8) & UINT64_C(0x0000ffff0000ffff);
        part[i] |= part[i] >> 16;
    }
    *odd = (uint32_t)part[0];
    *even = (uint32_t)part[1];
}

CPU_RANGE_FN(pack_i8, cpu_product)
{
    const struct pack_shape *s = &j->l->shape;
    const bool split = j->l->type == K_WEIGHT_I4;
    for (uint64_t item = first; item < end; item++) {
        struct place p = find_place(j, item);
        uint32_t *out =
            (uint32_t *)j->data + ((size_t)p.row0 * s->k_pad + (size_t)p.b.k0 * p.n_rows) / 4;
        for (uint32_t r = 0; r < p.n_rows; r++) {
            int32_t q[PACK_BLOCK], sum;
            int8_t bytes[PACK_BLOCK];
            j->scale[p.scale_idx + r] = quantize(j->x + (size_t)(p.row0 + r) * s->cols + p.b.col0,
                                                 p.b.valid, CPU_I8_MAX, q, &sum);
            j->start[p.scale_idx + r] = block_start(j, sum);
            for (int i = 0; i < PACK_BLOCK; i += VEC)
                vi_store_i8(bytes + i, vi_load(q + i));
            uint32_t *to = out + r;
            for (uint32_t k = 0; k < p.b.len; k += 8, to += (size_t)2 * p.n_rows) {
                uint32_t words[2];
                memcpy(words, bytes + k, sizeof words);
                if (split)
                    split_step((uint64_t)words[1] << 32 | words[0], &words[0], &words[1]);
                to[0] = words[0];
                to[p.n_rows] = words[1];
            }
        }
    }
}
