/* memory.c: see memory.h. */
#include "memory.h"

#include "cuda.h"
#include "sums.h"

size_t memory_attention(uint32_t max_rows, uint32_t max_seq, uint32_t n_kv_heads, uint32_t dim_pad)
{
    const size_t bound = 64 << 20;
    size_t per_tile = (size_t)n_kv_heads * (dim_pad + 2) * sizeof(float);
    size_t tiles_of_one = (max_seq + CUDA_ATTENTION_KEYS - 1) / CUDA_ATTENTION_KEYS;
    size_t least = tiles_of_one * per_tile * CUDA_ATTENTION_ROWS;
    size_t all = (size_t)max_rows * tiles_of_one * per_tile;
    size_t most = all < bound ? all : bound;
    return least > most ? least : most;
}

struct memory_step memory_step_of(uint32_t n_rows, uint32_t n_seqs, size_t n_blocks)
{
    struct memory_step p;
    p.positions = n_rows * sizeof(int32_t);
    p.row_seqs = p.positions + n_rows * sizeof(int32_t);
    p.seqs = p.row_seqs + n_rows * sizeof(uint32_t);
    p.blocks = p.seqs + n_seqs * sizeof(struct cuda_seq);
    p.end = p.blocks + n_blocks * sizeof(uint32_t);
    return p;
}

size_t memory_step_most(uint32_t max_rows, uint32_t max_seq, uint32_t block_tokens)
{
    size_t per_seq = (max_seq + block_tokens - 1) / block_tokens;
    return memory_step_of(max_rows, max_rows, max_rows * per_seq).end;
}

size_t memory_nccl_elements(uint32_t size, uint32_t max_rows, uint32_t cols)
{
    size_t all = (size_t)max_rows * cols, small = MEMORY_NCCL_SMALL;
    small = all < small ? all : small;
    size_t slices = all + SUMS_PIECE * (size_t)MEMORY_NCCL_RANKS;
    return slices < small * size ? small * size : slices;
}

size_t memory_mailbox(uint32_t size, uint32_t row_cap, uint32_t cols)
{
    const size_t granule = 2 << 20;
    return (sums_mailbox_bytes(size, row_cap, cols) + granule - 1) / granule * granule;
}

void memory_context(uint32_t max_rows, uint32_t max_seq, enum k_mode mode,
                    const struct k_kv_params *kv, struct k_memory *ret)
{
    (void)mode; /* keys and values have one padding in all types */
    uint32_t dim_pad = (kv->head_dim + 63) / 64 * 64;
    ret->host = CUDA_STAGE_BYTES + memory_step_most(max_rows, max_seq, kv->block_tokens);
    ret->device = ret->host + memory_attention(max_rows, max_seq, kv->n_kv_heads, dim_pad) +
                  (uint64_t)max_rows * kv->n_kv_heads * sizeof(uint32_t);
}

/* Peers' memory and NCCL, or peers' memory alone, with more rows. */
size_t memory_sums(uint32_t n_ranks, uint32_t max_rows, uint32_t cols)
{
    if (n_ranks < 2)
        return 0;
    uint32_t few = max_rows < MEMORY_PEER_ROWS ? max_rows : MEMORY_PEER_ROWS;
    uint32_t rows = max_rows < MEMORY_PEER_ROWS_ALONE ? max_rows : MEMORY_PEER_ROWS_ALONE;
    size_t both = memory_mailbox(n_ranks, few, cols) +
                  memory_nccl_elements(n_ranks, max_rows, cols) * sizeof(uint16_t);
    size_t peers = memory_mailbox(n_ranks, rows, cols);
    return (both < peers ? peers : both) + sizeof(struct sums_control);
}
