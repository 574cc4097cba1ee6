/* rope.cuh: one vector of a token, q, k or v of a head, rotated and filed, by a warp: lane l holds
 * columns 2l, 2l + 1 of either half.
 *
 * Products and sums are rounded one by one, as on the CPU: what is rotated and how it is quantized
 * has the CPU's bits wherever the inputs have.
 */
#ifndef GLMD_KERNELS_CUDA_ROPE_CUH
#define GLMD_KERNELS_CUDA_ROPE_CUH

#include "dev.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rope.h"

static_assert(CUDA_MAX_HEAD_DIM / 4 == DEV_WARP, "a lane holds one pair of columns of either half");

/* Columns 2l, 2l + 1 of the first half of a head, and those of the second; zeros beyond. */
struct rope_values {
    float lo[2], hi[2];
};

struct rope_angles {
    float cos[2], sin[2];
};

DEV_FN uint32_t rope_col()
{
    return 2 * dev_lane();
}

/* From the two words of the lane. */
DEV_FN rope_values rope_unpack(uint32_t lo, uint32_t hi)
{
    rope_values v;
    v.lo[0] = dev_half2_lo(lo);
    v.lo[1] = dev_half2_hi(lo);
    v.hi[0] = dev_half2_lo(hi);
    v.hi[1] = dev_half2_hi(hi);
    return v;
}

DEV_FN rope_angles rope_angles_of(const rope_view &p, uint32_t row)
{
    rope_angles a = {{0, 0}, {0, 0}};
    const uint32_t half = p.dim / 2, position = (uint32_t)p.positions[row];
    if (rope_col() < half && position < p.max_seq) {
        DEV_UNROLL
        for (int i = 0; i < 2; i++) {
            a.cos[i] = p.cos[(size_t)position * half + rope_col() + i];
            a.sin[i] = p.sin[(size_t)position * half + rope_col() + i];
        }
    }
    return a;
}

DEV_FN rope_values rope_rotate(const rope_values &x, const rope_angles &a)
{
    rope_values y;
    DEV_UNROLL
    for (int i = 0; i < 2; i++) {
        y.lo[i] = x.lo[i] * a.cos[i] - x.hi[i] * a.sin[i];
        y.hi[i] = x.hi[i] * a.cos[i] + x.lo[i] * a.sin[i];
    }
    return y;
}

DEV_FN void rope_store_halves(uint16_t *to, uint32_t half, const rope_values &v)
{
    if (rope_col() < half) {
        *reinterpret_cast<uint32_t *>(to + rope_col()) = dev_half2(v.lo[0], v.lo[1]);
        *reinterpret_cast<uint32_t *>(to + half + rope_col()) = dev_half2(v.hi[0], v.hi[1]);
    }
}

/* The smallest binary16 value with 127 times it >= magnitude. */
DEV_FN uint16_t rope_scale_of(float magnitude)
{
    uint16_t h = dev_to_half(magnitude * (1.0f / 127));
    if (dev_from_half(h) * 127 < magnitude)
        h++;
    return h;
}

DEV_FN uint32_t rope_quantized(float x, float inverse)
{
    return (uint32_t)(int32_t)dev_round_even(x * inverse) & 0xff;
}

/* One vector of the head becomes a token's key or value. Integers are in the order of magnitudes,
 * and NaN comes last. */
DEV_FN void rope_store_int8(uint8_t *to, uint16_t *to_scale, uint32_t half, const rope_values &v)
{
    uint32_t largest = 0;
    DEV_UNROLL
    for (int i = 0; i < 2; i++) {
        uint32_t lo = dev_float_bits(v.lo[i]) & 0x7fffffff,
                 hi = dev_float_bits(v.hi[i]) & 0x7fffffff;
        largest = largest < lo ? lo : largest;
        largest = largest < hi ? hi : largest;
    }
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2) {
        uint32_t other = dev_shfl_xor(largest, d);
        largest = largest < other ? other : largest;
    }
    const uint16_t stored = rope_scale_of(dev_bits_float(largest));
    const float scale = dev_from_half(stored);
    const bool usable = scale > 0.0f && scale <= 65504.0f; /* not all zeros, and finite */
    const float inverse = usable ? dev_div(1.0f, scale) : 0.0f;
    if (dev_lane() == 0)
        *to_scale = stored;
    if (rope_col() < half) {
        uint32_t lo = 0, hi = 0;
        if (usable) {
            lo = rope_quantized(v.lo[0], inverse) | rope_quantized(v.lo[1], inverse) << 8;
            hi = rope_quantized(v.hi[0], inverse) | rope_quantized(v.hi[1], inverse) << 8;
        }
        *reinterpret_cast<uint16_t *>(to + rope_col()) = (uint16_t)lo;
        *reinterpret_cast<uint16_t *>(to + half + rope_col()) = (uint16_t)hi;
    }
}

/* Where the token of a row has its key and value of one head. */
struct rope_slot {
    uint8_t *head;
    uint32_t slot;
};

/* False: the row is padding. */
DEV_FN bool rope_find(const rope_view &p, uint32_t row, uint32_t kv_head, rope_slot *ret)
{
    const struct cuda_seq seq = p.seqs[p.row_seqs[row]];
    if (row - seq.row0 >= seq.n_rows)
        return false;
    const uint32_t token = seq.start + row - seq.row0;
    const uint32_t block = p.blocks[seq.first_block + token / p.kv.block_tokens];
    ret->slot = token % p.kv.block_tokens;
    ret->head = p.kv.data + ((size_t)block * p.kv.n_kv_heads + kv_head) * p.kv.head_bytes;
    return true;
}

/* A key that was rotated, or a value. Padding of vectors stays as it was: zeros. */
DEV_FN void rope_file(const rope_view &p, const rope_slot &at, bool is_value, const rope_values &v)
{
    uint8_t *to =
        at.head + (is_value ? p.kv.values_at : p.kv.keys_at) + (size_t)at.slot * p.kv.vector_bytes;
    if (p.int8) {
        uint16_t *scales = reinterpret_cast<uint16_t *>(at.head);
        rope_store_int8(to, scales + (is_value ? p.kv.block_tokens : 0) + at.slot, p.dim / 2, v);
    } else {
        rope_store_halves(reinterpret_cast<uint16_t *>(to), p.dim / 2, v);
    }
}

#endif
