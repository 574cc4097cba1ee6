/* kv.h: the paged cache of keys and values: how a block lies in memory and what its numbers mean.
 *
 * A block of one layer and key-value head is one contiguous piece, read front to back:
 *
 *   +----------------+----------------+----------------------+------------------------+
 *   | key scales     | value scales   | keys                 | values                 |
 *   | [groups * 16]  | [groups * 16]  | [groups][dim_pad][16 | [groups * 16][dim_pad] |
 *   | K_KV_I8 only   | K_KV_I8 only   |    tokens]           |                        |
 *   +----------------+----------------+----------------------+------------------------+
 *   groups = token groups of 16: ceil(block_tokens / 16)
 *
 * In keys a token is a lane, in values a dimension is one. head_dim is padded to dim_pad, a
 * multiple of 16, with zeros.
 *
 * K_KV_I8 holds x as scale * q, with a binary16 scale for each token of the block and head, one for
 * the key and one for the value:
 *
 *   scale = the smallest binary16 value with 127 * scale >= max |x|
 *   q     = round_half_even(x * (1 / scale)), in [-127, 127]: nothing saturates
 *
 * Why a scale for each token and not one for the block: tokens come one by one, and a scale that
 * grew with them would change what earlier tokens are (a replay that prefills them at once would
 * differ), while one fixed by the first token would cut off later ones. A token that is stored once
 * and depends on nothing but itself keeps batch invariance and replays exact. Scales take 64 bytes
 * of a block of 4160 (16 tokens, D = 128). A value that is not finite makes its token's scale
 * infinite or NaN, and with it all that sees the token, as in the other types.
 */
#ifndef GLMD_KERNELS_CPU_KV_H
#define GLMD_KERNELS_CPU_KV_H

#include "base/half.h"
#include "kernels/kernels.h"

enum { CPU_KV_LANES = 16, CPU_KV_I8_MAX = 127 };

#define CPU_KV_SCALE_BYTES(type) ((type) == K_KV_I8 ? sizeof(uint16_t) : 0)
#define CPU_KV_VALUE_BYTES(type)                                                                   \
    ((type) == K_KV_I8 ? sizeof(int8_t) : (type) == K_KV_F16 ? sizeof(uint16_t) : sizeof(float))
/* Keys and values of one head, `tokens` a multiple of 16. */
#define CPU_KV_HEAD_BYTES(type, tokens, dim_pad)                                                   \
    ((size_t)2 * (tokens) * (CPU_KV_SCALE_BYTES(type) + (dim_pad)*CPU_KV_VALUE_BYTES(type)))

_Static_assert(CPU_KV_HEAD_BYTES(K_KV_F32, 16, 128) == 16384, "keys and values of 16 tokens");
_Static_assert(CPU_KV_HEAD_BYTES(K_KV_F16, 16, 128) == 8192, "half of it");
_Static_assert(CPU_KV_HEAD_BYTES(K_KV_I8, 16, 128) == 64 + 4096, "a quarter, and scales");
_Static_assert(CPU_KV_HEAD_BYTES(K_KV_I8, 32, 16) == 128 + 1024, "scales of two token groups");
_Static_assert(CPU_KV_HEAD_BYTES(K_KV_I8, 16, 16) % 64 == 0, "heads begin at cache lines");

struct k_kv {
    struct k_kv_params p;
    enum k_kv_type type;   /* p.type, resolved */
    uint32_t dim_pad;      /* head_dim, to a multiple of 16 */
    uint32_t token_groups; /* ceil(block_tokens / 16) */
    size_t value_bytes;    /* of one value */
    size_t keys_at;        /* bytes of scales in front of the keys */
    size_t values_at;
    size_t head_bytes;  /* one block, layer and head */
    size_t block_bytes; /* one block, all layers: from one block to the next */
    /* [n_blocks][block_bytes], of which the first [n_layers][n_kv_heads][head_bytes] are used.
     * Memory is taken from the system when it is written first: a block takes its own and no more,
     * and the first blocks of the cache, which are given out first, are all that a small load
     * touches. */
    uint8_t *data;
};

/* Where block `block` of a layer's head begins. */
static inline uint8_t *cpu_kv_head(const struct k_kv *kv, uint32_t layer, uint32_t block,
                                   uint32_t head)
{
    return kv->data + block * kv->block_bytes +
           ((size_t)layer * kv->p.n_kv_heads + head) * kv->head_bytes;
}

/* K_KV_I8: where the scales of a token group are, keys before values. */
static inline uint16_t *cpu_kv_scales(const struct k_kv *kv, uint8_t *head, bool values,
                                      uint32_t group)
{
    return (uint16_t *)head + (size_t)((values ? kv->token_groups : 0) + group) * CPU_KV_LANES;
}

/* The scale of values up to `magnitude`, in binary16. Infinite where 127 * 65504 is not enough, NaN
 * for NaN. */
static inline uint16_t cpu_kv_scale(float magnitude)
{
    uint16_t h = half_from_float(magnitude * (1.0f / CPU_KV_I8_MAX));
    if (half_to_float(h) * CPU_KV_I8_MAX < magnitude) /* the product is exact */
        h++;
    return h;
}

#endif
