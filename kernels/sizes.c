/* sizes.c: see sizes.h. Pure functions. The CPU's table is in cpu/sizes.c. */
#include "kernels/sizes.h"

#include <string.h>

extern const struct k_sizes cpu_sizes;

/* ---- CUDA: weights as many bits as on disk, activations and cache binary16 ---- */

enum {
    CUDA_HALF = 2,
    /* FP16 copies of weight slabs for long prefills, two of them, and partial sums */
    CUDA_PRODUCT_BYTES = 128 << 20,
};

static size_t cuda_act_bytes(void)
{
    return CUDA_HALF;
}

static size_t cuda_linear_bytes(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups)
{
    size_t bits = type == K_WEIGHT_F16 ? 16 : type == K_WEIGHT_I8 ? 8 : 4;
    size_t scales = type == K_WEIGHT_F16 ? 0 : (size_t)rows * n_groups * CUDA_HALF;
    return (size_t)rows * ((cols * bits + 7) / 8) + scales + (size_t)rows * CUDA_HALF;
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

static size_t cuda_kv_block_bytes(enum k_mode mode, const struct k_kv_params *p)
{
    (void)mode;
    size_t vectors = (size_t)p->n_layers * p->n_kv_heads * p->block_tokens * 2;
    if (p->type == K_KV_I8) /* and a scale */
        return vectors * (p->head_dim + CUDA_HALF);
    return p->type == K_KV_F32 ? 0 : vectors * p->head_dim * CUDA_HALF;
}

static size_t cuda_product_bytes(uint32_t max_rows, enum k_weight type, uint32_t rows,
                                 uint32_t cols, uint32_t n_groups)
{
    (void)max_rows;
    (void)type;
    (void)rows;
    (void)cols;
    (void)n_groups;
    return CUDA_PRODUCT_BYTES;
}

static const struct k_sizes cuda_sizes = {
    .backend = "cuda",
    .host_memory = false,
    .act_bytes = cuda_act_bytes,
    .linear_bytes = cuda_linear_bytes,
    .norm_bytes = cuda_norm_bytes,
    .bias_bytes = cuda_bias_bytes,
    .rope_bytes = cuda_rope_bytes,
    .kv_block_bytes = cuda_kv_block_bytes,
    .product_bytes = cuda_product_bytes,
};

const struct k_sizes *k_sizes(const char *backend)
{
    if (strcmp(backend, "cpu") == 0)
        return &cpu_sizes;
    if (strcmp(backend, "cuda") == 0 || strncmp(backend, "cuda:", 5) == 0)
        return &cuda_sizes;
    return NULL;
}
