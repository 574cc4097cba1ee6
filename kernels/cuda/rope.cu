/* rope.cu: rotates q and k and files k and v in the cache, in its type (kv.h). A warp takes one
 * token and key-value head: its q heads, then k, then v; lane l holds columns 2l, 2l + 1 (and every
 * 64th further) of either half of a head.
 *
 * Products and sums are rounded one by one, as on the CPU: what is rotated and how it is quantized
 * has the CPU's bits wherever the inputs have.
 */
#include <cassert>
#include <cstdlib>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dev.h"
#include "kernels/cuda/kv.h"

struct k_rope {
    uint32_t max_seq, half_dim;
    float *cos, *sin; /* device, [max_seq, half_dim] */
};

namespace
{

enum { WARPS = 4, THREADS = WARPS * DEV_WARP, PAIRS = CUDA_MAX_HEAD_DIM / 4 / DEV_WARP };
static_assert(PAIRS == 1, "a lane holds one pair of columns of either half");

struct rope_params {
    struct cuda_kv_view kv;
    const float *cos, *sin;
    const uint16_t *qkv; /* [T, kv heads, group + 2, dim] */
    uint16_t *q;         /* [T, heads, dim] */
    const int32_t *positions;
    const uint32_t *row_seqs;
    const struct cuda_seq *seqs;
    const uint32_t *blocks;
    uint32_t group, dim, max_seq;
};

/* Columns 2l, 2l + 1 of the first half of a head, and those of the second; zeros beyond. */
struct lane_values {
    float lo[2], hi[2];
};

DEV_FN lane_values load_lane(const uint16_t *x, uint32_t half, uint32_t col)
{
    lane_values v = {{0, 0}, {0, 0}};
    if (col < half) {
        uint32_t lo = *reinterpret_cast<const uint32_t *>(x + col);
        uint32_t hi = *reinterpret_cast<const uint32_t *>(x + half + col);
        v.lo[0] = dev_half2_lo(lo);
        v.lo[1] = dev_half2_hi(lo);
        v.hi[0] = dev_half2_lo(hi);
        v.hi[1] = dev_half2_hi(hi);
    }
    return v;
}

DEV_FN lane_values rotate(const lane_values &x, const float *cos, const float *sin)
{
    lane_values y;
    DEV_UNROLL
    for (int i = 0; i < 2; i++) {
        y.lo[i] = x.lo[i] * cos[i] - x.hi[i] * sin[i];
        y.hi[i] = x.hi[i] * cos[i] + x.lo[i] * sin[i];
    }
    return y;
}

DEV_FN void store_halves(uint16_t *to, uint32_t half, uint32_t col, const lane_values &v)
{
    if (col < half) {
        *reinterpret_cast<uint32_t *>(to + col) = dev_half2(v.lo[0], v.lo[1]);
        *reinterpret_cast<uint32_t *>(to + half + col) = dev_half2(v.hi[0], v.hi[1]);
    }
}

/* The smallest binary16 value with 127 times it >= magnitude. */
DEV_FN uint16_t scale_of(float magnitude)
{
    uint16_t h = dev_to_half(magnitude * (1.0f / 127));
    if (dev_from_half(h) * 127 < magnitude)
        h++;
    return h;
}

DEV_FN uint32_t quantized(float x, float inverse)
{
    return (uint32_t)(int32_t)dev_round_even(x * inverse) & 0xff;
}

/* One vector of the head becomes a token's key or value. Integers are in the order of magnitudes,
 * and NaN comes last. */
DEV_FN void store_int8(uint8_t *to, uint16_t *to_scale, uint32_t half, uint32_t col,
                       const lane_values &v)
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
    const uint16_t stored = scale_of(dev_bits_float(largest));
    const float scale = dev_from_half(stored);
    const bool usable = scale > 0.0f && scale <= 65504.0f; /* not all zeros, and finite */
    const float inverse = usable ? dev_div(1.0f, scale) : 0.0f;
    if (dev_lane() == 0)
        *to_scale = stored;
    if (col < half) {
        uint32_t lo = 0, hi = 0;
        if (usable) {
            lo = quantized(v.lo[0], inverse) | quantized(v.lo[1], inverse) << 8;
            hi = quantized(v.hi[0], inverse) | quantized(v.hi[1], inverse) << 8;
        }
        *reinterpret_cast<uint16_t *>(to + col) = (uint16_t)lo;
        *reinterpret_cast<uint16_t *>(to + half + col) = (uint16_t)hi;
    }
}

template <bool INT8> DEV_KERNEL(THREADS, 1) void rope_kernel(DEV_PARAMS(rope_params) p)
{
    const uint32_t row = dev_cta_x();
    const uint32_t kv_head = dev_cta_y() * WARPS + dev_warp();
    if (kv_head >= p.kv.n_kv_heads)
        return; /* the whole warp */
    const uint32_t half = p.dim / 2, col = 2 * dev_lane();
    const uint32_t position = (uint32_t)p.positions[row];
    float cos[2] = {0, 0}, sin[2] = {0, 0};
    if (col < half && position < p.max_seq) {
        DEV_UNROLL
        for (int i = 0; i < 2; i++) {
            cos[i] = p.cos[(size_t)position * half + col + i];
            sin[i] = p.sin[(size_t)position * half + col + i];
        }
    }
    const uint16_t *x = p.qkv + ((size_t)row * p.kv.n_kv_heads + kv_head) * (p.group + 2) * p.dim;
    uint16_t *q = p.q + ((size_t)row * p.kv.n_kv_heads + kv_head) * p.group * p.dim;
    DEV_NO_UNROLL
    for (uint32_t h = 0; h < p.group; h++)
        store_halves(q + h * p.dim, half, col,
                     rotate(load_lane(x + h * p.dim, half, col), cos, sin));

    const lane_values k = rotate(load_lane(x + p.group * p.dim, half, col), cos, sin);
    const lane_values v = load_lane(x + (p.group + 1) * p.dim, half, col);
    const struct cuda_seq seq = p.seqs[p.row_seqs[row]];
    if (row - seq.row0 >= seq.n_rows)
        return; /* padding: the whole warp */
    const uint32_t token = seq.start + row - seq.row0;
    const uint32_t block = p.blocks[seq.first_block + token / p.kv.block_tokens];
    const uint32_t slot = token % p.kv.block_tokens;
    uint8_t *head = p.kv.data + ((size_t)block * p.kv.n_kv_heads + kv_head) * p.kv.head_bytes;
    uint8_t *key = head + p.kv.keys_at + (size_t)slot * p.kv.vector_bytes;
    uint8_t *value = head + p.kv.values_at + (size_t)slot * p.kv.vector_bytes;
    if constexpr (INT8) {
        uint16_t *scales = reinterpret_cast<uint16_t *>(head);
        store_int8(key, scales + slot, half, col, k);
        store_int8(value, scales + p.kv.block_tokens + slot, half, col, v);
    } else {
        store_halves(reinterpret_cast<uint16_t *>(key), half, col, k);
        store_halves(reinterpret_cast<uint16_t *>(value), half, col, v);
    }
    /* padding stays as it was: zeros */
}

} // namespace

struct k_rope *cuda_rope_new(struct k_ctx *c, const float *cos, const float *sin, uint32_t max_seq,
                             uint32_t half_dim)
{
    struct k_rope *r = (struct k_rope *)calloc(1, sizeof *r);
    if (!r)
        return nullptr;
    const size_t bytes = (size_t)max_seq * half_dim * sizeof(float);
    r->max_seq = max_seq;
    r->half_dim = half_dim;
    r->cos = (float *)cuda_new(c, bytes);
    r->sin = (float *)cuda_new(c, bytes);
    if (!r->cos || !r->sin) {
        cuda_rope_free(c, r);
        return nullptr;
    }
    cuda_upload_bytes(c, r->cos, cos, bytes);
    cuda_upload_bytes(c, r->sin, sin, bytes);
    return r;
}

void cuda_rope_free(struct k_ctx *c, struct k_rope *r)
{
    if (!r)
        return;
    cuda_free(c, r->cos);
    cuda_free(c, r->sin);
    free(r);
}

void cuda_rope_kv(struct k_ctx *c, const struct k_attn_params *a, const struct k_rope *r,
                  const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                  uint32_t n_seqs, struct k_kv *kv, void *q)
{
    assert(a->n_kv_heads && a->n_heads % a->n_kv_heads == 0);
    assert(a->n_kv_heads == kv->p.n_kv_heads && a->head_dim == kv->p.head_dim);
    assert(a->layer < kv->p.n_layers && r->half_dim * 2 == a->head_dim);
    rope_params p = {};
    p.kv = cuda_kv_layer(kv, a->layer);
    p.cos = r->cos;
    p.sin = r->sin;
    p.qkv = (const uint16_t *)qkv;
    p.q = (uint16_t *)q;
    p.positions = cuda_step_positions(c, positions);
    p.row_seqs = c->step.row_seqs;
    p.seqs = c->step.seqs;
    p.blocks = c->step.blocks;
    p.group = a->n_heads / a->n_kv_heads;
    p.dim = a->head_dim;
    p.max_seq = r->max_seq;
    struct dev_launch at = {};
    at.grid = {cuda_step_rows(c, seqs, n_seqs), (a->n_kv_heads + WARPS - 1) / WARPS, 1};
    at.threads = THREADS;
    at.stream = c->stream;
    if (kv->type == K_KV_I8)
        cuda_check(c, dev_run(at, rope_kernel<true>, p), "rope");
    else
        cuda_check(c, dev_run(at, rope_kernel<false>, p), "rope");
}
