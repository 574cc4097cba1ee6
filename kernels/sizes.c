/* sizes.c: see sizes.h. Pure functions. The CPU's table is in cpu/sizes.c. */
#include "kernels/sizes.h"

#include "cuda/linear.h"
#include "cuda/memory.h"
#include "cuda/sample.h"

#include <string.h>

extern const struct k_sizes cpu_sizes;

/* ---- CUDA: weights as many bits as on disk, activations and cache binary16 ---- */

enum { CUDA_HALF = 2 };

static size_t cuda_act_bytes(void)
{
    return CUDA_HALF;
}

static size_t cuda_norm_bytes(uint32_t cols)
{
    return 2 * (size_t)cols * sizeof(float);
}

static size_t cuda_bias_bytes(uint32_t cols)
{
    return (size_t)cols * sizeof(float);
}

static size_t cuda_rope_bytes(uint32_t max_seq, uint32_t half_dim)
{
    return 2 * (size_t)max_seq * half_dim * sizeof(float);
}

/* As kernels/cuda/kv.h lays a block out. */
static size_t cuda_kv_block_bytes(enum k_mode mode, const struct k_kv_params *p)
{
    enum k_kv_type type = k_kv_resolve(p->type, mode);
    size_t vectors = (size_t)p->n_layers * p->n_kv_heads * p->block_tokens * 2;
    size_t dim_pad = ((size_t)p->head_dim + 63) / 64 * 64;
    if (type == K_KV_I8) /* and a scale */
        return vectors * (dim_pad + CUDA_HALF);
    return type == K_KV_F16 ? vectors * dim_pad * CUDA_HALF : 0;
}

static size_t cuda_product_bytes(uint32_t max_rows, enum k_weight type, uint32_t rows,
                                 uint32_t cols, uint32_t n_groups)
{
    struct packed_shape s = linear_shape(type, rows, cols, n_groups, 0);
    return linear_product_bytes(&s, max_rows);
}

static const struct k_sizes cuda_sizes = {
    .backend = "cuda",
    .host_memory = false,
    .act_bytes = cuda_act_bytes,
    .linear_bytes = linear_bytes,
    .norm_bytes = cuda_norm_bytes,
    .bias_bytes = cuda_bias_bytes,
    .rope_bytes = cuda_rope_bytes,
    .kv_block_bytes = cuda_kv_block_bytes,
    .product_bytes = cuda_product_bytes,
    .context_memory = memory_context,
    .sums_bytes = memory_sums,
    .sampler_bytes = sample_bytes,
};

const struct k_sizes *k_sizes(const char *backend)
{
    if (strcmp(backend, "cpu") == 0)
        return &cpu_sizes;
    if (strcmp(backend, "cuda") == 0 || strncmp(backend, "cuda:", 5) == 0)
        return &cuda_sizes;
    return NULL;
}
