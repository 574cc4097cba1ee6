/* kv.h: the paged cache of keys and values on a GPU: how a block lies in memory.
 *
 * A block of one layer and key-value head is one contiguous piece of B tokens (B = block_tokens, a
 * multiple of 16):
 *
 *   +------------+--------------+-----------------+-----------------+
 *   | key scales | value scales | keys            | values          |
 *   | [B]        | [B]          | [B][dim_pad]    | [B][dim_pad]    |
 *   +------------+--------------+-----------------+-----------------+
 *   scales: K_KV_I8 only, binary16          dim_pad: head_dim, to a multiple of 64, zeros behind
 *
 * K_KV_I8 holds x as scale * q as the CPU backend does (kernels/cpu/kv.h): the scale of a token and
 * head is the smallest binary16 value with 127 * scale >= max |x|, q = round_half_even(x / scale).
 */
#ifndef GLMD_KERNELS_CUDA_KV_H
#define GLMD_KERNELS_CUDA_KV_H

#include "kernels/kernels.h"

/* What kernels need of the cache of one layer; by value. */
struct cuda_kv_view {
    uint8_t *data; /* [n_blocks][n_kv_heads][head_bytes] of the layer */
    uint32_t n_kv_heads, block_tokens, dim_pad;
    uint32_t vector_bytes; /* one key or value */
    uint32_t keys_at, values_at;
    uint32_t head_bytes; /* one block and head */
};

struct k_kv {
    struct k_kv_params p;
    enum k_kv_type type;      /* p.type, resolved */
    struct cuda_kv_view view; /* of layer 0 */
    size_t layer_bytes;
};

static inline struct cuda_kv_view cuda_kv_layer(const struct k_kv *kv, uint32_t layer)
{
    struct cuda_kv_view v = kv->view;
    v.data += layer * kv->layer_bytes;
    return v;
}

#endif
