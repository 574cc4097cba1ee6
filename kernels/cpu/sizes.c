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
};
