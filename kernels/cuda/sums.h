/* sums.h: the kernels of sums over ranks (sums.cu), as the files of the comm launch them.
 *
 * Both kinds add in FP32 in the order of the ranks and round to FP16 once.
 *
 * Parts: the ranks' values lie in this device's memory already (NCCL moved them).
 *
 * Peers: a rank writes its rows into its slot of every peer's mailbox and a flag behind each row;
 * when the flags of a row are there it adds up what lies in its own mailbox, and goes on with the
 * residual sum and the norm where that is asked for. In page-locked host memory there is one
 * mailbox for all, which everyone reads.
 *
 *   mailbox:  parity 0 [size][row_cap][cols] halves | parity 1 | flags [2][size][row_cap]
 *
 * More than SUMS_ONE_SHOT_ROWS rows of more than two ranks go in two shots, by the same slots and
 * flags: a rank sends row i to rank i % size alone, which adds up and sends the sum to the others,
 * with the flag in its own slot, where it had nothing to send before: 2 (size - 1) / size of the
 * bytes that size - 1 whole messages take.
 *
 * The flag is the number of the sum. Two parities are enough, without a barrier at the end: a rank
 * that fills a parity for the second time has seen all flags of the sum in between (or a sum that
 * is made of them), which a peer sets when its kernel for the first time has ended. Ranks make
 * progress in the order of the rows, whatever their grids: all rows are sent before the first one
 * is waited for.
 */
#ifndef GLMD_KERNELS_CUDA_SUMS_H
#define GLMD_KERNELS_CUDA_SUMS_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SUMS_MAX_PEERS = 16,
    SUMS_MAX_PARTS = 64,
    SUMS_MAX_COLS = 32768, /* of the peers' kernel: what fits into a CTA's registers */
    SUMS_PIECE = 8,        /* columns come in such pieces */
    SUMS_ONE_SHOT_ROWS = 32,
    SUMS_TICK_NS = 1024,
};

enum sums_kind { SUMS_SUM, SUMS_GATHER, SUMS_KINDS };

/* What has ended and how long it took on the device: from its kernel's beginning, or that of NCCL's
 * transfer, waiting for the other ranks included. */
struct sums_times {
    uint64_t n[SUMS_KINDS], ticks[SUMS_KINDS]; /* of SUMS_TICK_NS */
};

/* On the device; the kernels' own. */
struct sums_control {
    uint32_t number;  /* of the last sum that has ended */
    uint32_t n_ended; /* CTAs of the running one */
    uint32_t failed;  /* nothing is waited for any more */
    uint32_t began;   /* of a transfer, in ticks: sums_mark */
    struct sums_times times;
};

/* Page-locked: between the host and the kernels. */
struct sums_signals {
    uint32_t number;         /* as in the control: progress */
    uint32_t failed;         /* a peer's flag did not come */
    uint32_t stop;           /* written by the host: give up */
    struct sums_times times; /* as in the control */
};

/* x[n] = sum over the ranks: part r lies at parts + r * stride, that of `rank` in x. */
struct sums_parts {
    uint16_t *x;
    const uint16_t *parts;
    size_t n, stride; /* multiples of SUMS_PIECE */
    uint32_t rank, size;
    bool ends; /* the transfer that sums_mark has begun */
    struct sums_control *control;
    struct sums_signals *signals;
};
int sums_of_parts(const struct sums_parts *p, struct CUstream_st *stream);

/* Enqueues a look at the device's clock: where a transfer begins, or where it ends and counts. */
int sums_mark(struct sums_control *control, struct sums_signals *signals, enum sums_kind kind,
              bool ends, struct CUstream_st *stream);

/* Where a rank writes and reads. Addresses of parity 0; the other one lies behind it. */
struct sums_mailboxes {
    uint32_t rank, size;
    uint32_t row_cap, cols;
    uint32_t n_targets;
    uint16_t *target[SUMS_MAX_PEERS];       /* this rank's slot in each of the mailboxes */
    uint32_t *target_flags[SUMS_MAX_PEERS]; /* [row_cap] */
    const uint16_t *source[SUMS_MAX_PEERS]; /* by rank: its slot in the mailbox read here */
    const uint32_t *source_flags[SUMS_MAX_PEERS];
    struct sums_control *control;
    struct sums_signals *signals;
    uint32_t max_ctas;   /* in flight at once: few where ranks share a device */
    uint32_t max_spins;  /* of a wait for a flag: what ends it where nobody else does */
    uint32_t n_free_sms; /* of a device that nobody shares; 0: nothing is prefetched */
    /* The next product's weights, which a sum with SMs to spare brings into the L2 cache. */
    const unsigned char *next;
    size_t next_bytes;
    uint64_t key; /* the same on all ranks of the group, and on no others (emulation) */
};
/* Elements of a parity, and bytes of the whole. */
static inline size_t sums_mailbox_parity(uint32_t size, uint32_t row_cap, uint32_t cols)
{
    return (size_t)size * row_cap * cols;
}
static inline size_t sums_mailbox_bytes(uint32_t size, uint32_t row_cap, uint32_t cols)
{
    return 2 * (sums_mailbox_parity(size, row_cap, cols) * sizeof(uint16_t) +
                (size_t)size * row_cap * sizeof(uint32_t));
}

/* x [n_rows, cols] = the sum of x over the ranks; n_rows <= row_cap. */
int sums_of_peers(const struct sums_mailboxes *m, uint16_t *x, uint32_t n_rows,
                  struct CUstream_st *stream);
/* The same for r, then cuda_residual_norm. */
int sums_of_peers_norm(const struct sums_mailboxes *m, const struct k_norm *n, float eps,
                       float alpha, const void *a, void *r, const struct k_bias *bias,
                       uint32_t n_rows, void *y, struct CUstream_st *stream);

/* all[r * stride ..] = `own` [n] of rank r, bit by bit; n: a multiple of SUMS_PIECE, at most
 * row_cap rows of the mailbox. A sum like the others as far as numbers and flags go. */
struct sums_gather {
    const uint16_t *own;
    uint16_t *all;
    size_t n, stride;
};
int sums_gather_peers(const struct sums_mailboxes *m, const struct sums_gather *g,
                      struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
