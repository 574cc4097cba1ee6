/* memory.h: how much a CUDA context and its sums over ranks take, as plain arithmetic (memory.c):
 * what allocates asks it, and so does the planner of the cluster, which has no device.
 */
#ifndef GLMD_KERNELS_CUDA_MEMORY_H
#define GLMD_KERNELS_CUDA_MEMORY_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MEMORY_PEER_ROWS = 32,        /* of a sum over peers, where NCCL takes the larger ones */
    MEMORY_PEER_ROWS_ALONE = 128, /* where it does not */
    MEMORY_NCCL_SMALL = 1 << 18,  /* elements: sums that are gathered whole */
    MEMORY_NCCL_RANKS = 64,
};

/* Partial sums of decode attention: for one long sequence of 16 rows at least, at most 64 MiB or
 * what all rows could take; what does not fit goes in several launches (attention.cu). */
size_t memory_attention(uint32_t max_rows, uint32_t max_seq, uint32_t n_kv_heads, uint32_t dim_pad);
/* A step's arrays, on the device and page-locked. */
struct memory_step {
    size_t positions, row_seqs, seqs, blocks, end; /* where they lie; ids are first */
};
struct memory_step memory_step_of(uint32_t n_rows, uint32_t n_seqs, size_t n_blocks);
size_t memory_step_most(uint32_t max_rows, uint32_t max_seq, uint32_t block_tokens);

/* Elements that NCCL moves from the peers: slices of a large sum, or the whole of a small one. */
size_t memory_nccl_elements(uint32_t size, uint32_t max_rows, uint32_t cols);
/* A mailbox: a multiple of 2 MiB, so that what is shown to other processes is it and nothing else.
 */
size_t memory_mailbox(uint32_t size, uint32_t row_cap, uint32_t cols);

/* As k_sizes has them. */
void memory_context(uint32_t max_rows, uint32_t max_seq, enum k_mode mode,
                    const struct k_kv_params *kv, struct k_memory *ret);
size_t memory_sums(uint32_t n_ranks, uint32_t max_rows, uint32_t cols);

#ifdef __cplusplus
}
#endif

#endif
