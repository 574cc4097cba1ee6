/* sizes.c: what things take on the CPU, as a table (kernels/sizes.h). The arithmetic stands beside
 * the allocations that follow it: linear.c, kv.c, sequence.c. */
#include "kernels/sizes.h"
#include "cpu.h"

static size_t act_bytes(void)
{
    return sizeof(float);
}

static size_t norm_bytes(uint32_t cols)
{
    return 2 * (size_t)cols * sizeof(float);
}

static size_t bias_bytes(uint32_t cols)
{
    return (size_t)cols * sizeof(float);
}

static void context_memory(uint32_t max_rows, uint32_t max_seq, enum k_mode mode,
                           const struct k_kv_params *kv, struct k_memory *ret)
{
    (void)max_rows, (void)max_seq, (void)mode, (void)kv;
    *ret = (struct k_memory){0};
}

static size_t sums_bytes(uint32_t n_ranks, uint32_t max_rows, uint32_t cols)
{
    (void)n_ranks, (void)max_rows, (void)cols;
    return 0; /* they go through the engine's own buffers */
}

const struct k_sizes cpu_sizes = {
    .backend = "cpu",
    .host_memory = true,
    .act_bytes = act_bytes,
    .linear_bytes = cpu_sizes_linear,
    .norm_bytes = norm_bytes,
    .bias_bytes = bias_bytes,
    .rope_bytes = cpu_sizes_rope,
    .kv_block_bytes = cpu_sizes_kv_block,
    .product_bytes = cpu_sizes_product,
    .context_memory = context_memory,
    .sums_bytes = sums_bytes,
};
