/* comm.h: sums over the ranks of a stage on their devices: the second table of a backend
 * (k_ops.comm; NULL where the host's collectives are all there is).
 *
 * A k_comm belongs to a context and to one joining of a group (an epoch): it is opened when the
 * ranks have found each other over the host's collectives, which carry what its opening needs
 * (NCCL's unique id, handles of memory, what each rank can do), and closed when the epoch is over.
 * Weights, cache and context stay. Every rank opens it with the same choice and the same sizes, in
 * the same order of calls as its peers.
 *
 *   choice   large sums                 small sums               needs
 *   nccl     NCCL moves, glmd adds      the same                 libnccl.so.2, a GPU for each rank
 *   peer     over peers' memory         one shot, with the norm  one host; P2P or page-locked
 * memory auto     nccl, else peer            peer, else nccl          what is found; tested at the
 * start host     -ENOTSUP: the caller stages through the host's collectives, which always work
 *
 * Bits. A sum is taken in FP32 in the order of the ranks and rounded to FP16 once, whatever moves
 * the bytes: nccl, peer and host give the same bits on all ranks, in every run, for every batch,
 * and whether the norm is fused or not. (NCCL's own reductions would not: with three ranks or more
 * their order depends on the algorithm, on the size of the message and on the place of a row in it.
 * They are not used.)
 *
 * Failures. A call only enqueues. What goes wrong (a peer that does not come within timeout_ns, an
 * error that NCCL reports by and by, the end of the group seen through group->state) ends the
 * k_comm: whatever is enqueued comes to an end without results, and `wait` says what it was. The
 * caller then ends the group's host comm, which the peers see in their `state`. Nothing of this is
 * a device error: k_ops.sync stays 0. Whoever waits for the context's stream (sync, upload,
 * download) is released in the same way.
 *
 * Thread: the one that drives the context. A captured step (CUDA graph) that holds sums is good
 * until the k_comm is closed.
 */
#ifndef GLMD_KERNELS_COMM_H
#define GLMD_KERNELS_COMM_H

#include <stddef.h>
#include <stdint.h>

struct k_ctx;
struct k_norm;
struct k_bias;
struct k_comm; /* opaque */

enum k_comm_choice { K_COMM_AUTO, K_COMM_NCCL, K_COMM_PEER, K_COMM_HOST };

static inline const char *k_comm_choice_name(enum k_comm_choice choice)
{
    static const char *const names[] = {"auto", "nccl", "peer", "host"};
    return names[choice];
}

/* What the ranks have in common already; borrowed until close. */
struct k_comm_group {
    int rank, size;
    int64_t timeout_ns;      /* longest wait without progress in a step */
    int64_t join_timeout_ns; /* for what is joined to come up */
    void *context;
    /* As comm_ops.all_gather: dst [size * bytes]. 0, or the group's failure. */
    int (*all_gather)(void *context, const void *src, size_t bytes, void *dst);
    /* 0, or the failure that has ended the group. Asked often, returns at once. */
    int (*state)(void *context);
};

/* What has ended since the k_comm was opened, and its time on the device: of a sum with the norm
 * where both are one kernel, without the addition where NCCL moves the bytes; waiting for other
 * ranks included. A sum that takes several pieces counts as several. */
struct k_comm_times {
    uint64_t n_sums, sum_ns;
    uint64_t n_gathers, gather_ns;
};

struct k_comm_ops {
    /* All ranks together. 0; -ENOTSUP: the choice is host, or auto found nothing that works here
     * (no failure: stage through the host); -EINVAL, -ENODEV: what was asked for cannot be had, on
     * all ranks alike; -ENOMEM, -ETIMEDOUT, -ECANCELED, -EIO: joining failed. `message`: why, in
     * each of these cases. max_rows x cols: the largest sum. */
    int (*open)(struct k_ctx *c, enum k_comm_choice choice, const struct k_comm_group *group,
                uint32_t max_rows, uint32_t cols, struct k_comm **ret, char *message, size_t size);
    /* Ends it and waits for the stream; NULL is fine. */
    void (*close)(struct k_comm *m);
    /* One line: what moves small and large sums, versions, NCCL's network and its ways as far as
     * they are known by now (cuda/nccl_log.h), variables that count. Until the next call. */
    const char *(*describe)(struct k_comm *m);
    /* x [n_rows, cols] = the sum of x over the ranks. */
    void (*sum)(struct k_comm *m, void *x, uint32_t n_rows, uint32_t cols);
    /* `sum` of r, then k_ops.residual_norm: one kernel where that pays. */
    void (*sum_residual_norm)(struct k_comm *m, const struct k_norm *n, float eps, float alpha,
                              const void *a, void *r, const struct k_bias *bias, uint32_t n_rows,
                              void *y);
    /* all [size * bytes] = every rank's `own` [bytes], in the order of the ranks. bytes: a multiple
     * of 16; both on the device. */
    void (*gather)(struct k_comm *m, const void *own, size_t bytes, void *all);
    /* Waits for nothing: the kernels keep the account, in graphs, too. */
    void (*times)(struct k_comm *m, struct k_comm_times *ret);
    /* Waits for what is enqueued in the context. 0, or the failure that ended the k_comm. */
    int (*wait)(struct k_comm *m, char *message, size_t size);
};

#endif
