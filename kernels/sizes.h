/* sizes.h: how much memory things take on a kind of device, as plain arithmetic: it needs no device
 * and no weights. The CPU backend allocates by its table; `glmd plan` asks both.
 *
 * The CUDA table states what the CUDA backend is designed to need and has not been measured.
 */
#ifndef GLMD_KERNELS_SIZES_H
#define GLMD_KERNELS_SIZES_H

#include "kernels/kernels.h"
#include "kernels/sample.h"

struct k_sizes {
    const char *backend; /* as k_backend calls it */
    bool host_memory;    /* the device computes in host memory: k_ops.host_view works */

    size_t (*act_bytes)(void); /* of an element of an activation */
    /* What linear_new, norm_new, bias_new and rope_new make. */
    size_t (*linear_bytes)(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups);
    size_t (*norm_bytes)(uint32_t cols);
    size_t (*bias_bytes)(uint32_t cols);
    size_t (*rope_bytes)(uint32_t max_seq, uint32_t half_dim);
    size_t (*kv_block_bytes)(enum k_mode mode, const struct k_kv_params *p); /* as in k_ops */
    /* What a context keeps for products with such a matrix, of up to max_rows rows; the largest one
     * serves all. */
    size_t (*product_bytes)(uint32_t max_rows, enum k_weight type, uint32_t rows, uint32_t cols,
                            uint32_t n_groups);
    /* What else a context keeps that has such a cache, as k_ops.context_memory says. */
    void (*context_memory)(uint32_t max_rows, uint32_t max_seq, enum k_mode mode,
                           const struct k_kv_params *kv, struct k_memory *ret);
    /* At most so much for sums over ranks of up to max_rows x cols (k_ops.comm). */
    size_t (*sums_bytes)(uint32_t n_ranks, uint32_t max_rows, uint32_t cols);
    /* What a sampler takes; NULL: the host samples. */
    size_t (*sampler_bytes)(const struct k_sampler_params *p);
};

/* "cpu" or "cuda", or a device name of them ("cuda:0"); NULL: neither. */
const struct k_sizes *k_sizes(const char *backend);

#endif
