/* rope.h: what kernels need to rotate q and k and to file k and v in the cache: by value, for
 * rope.cu and for products that end with it (linear.h). */
#ifndef GLMD_KERNELS_CUDA_ROPE_H
#define GLMD_KERNELS_CUDA_ROPE_H

#include "kernels/cuda/kv.h"

struct cuda_seq;

struct rope_view {
    struct cuda_kv_view kv;
    const float *cos, *sin; /* [max_seq, dim / 2] */
    uint16_t *q;            /* [T, heads, dim] */
    /* of the step */
    const int32_t *positions;
    const uint32_t *row_seqs;
    const struct cuda_seq *seqs;
    const uint32_t *blocks;
    uint32_t group, dim, max_seq; /* group: q heads of a key-value head */
    uint32_t int8;                /* K_KV_I8 */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Of the step that begin_step announced. */
struct rope_view cuda_rope_view(struct k_ctx *c, const struct k_attn_params *a,
                                const struct k_rope *r, const int32_t *positions, struct k_kv *kv,
                                void *q);

#ifdef __cplusplus
}
#endif

#endif
