/* comm_internal.h: what the files of the device collectives share (contract: kernels/comm.h).
 *
 *   comm.c       opening, the choice, waiting, failing; the table
 *   comm_nccl.c  communicators of NCCL, which move what sums.cu adds
 *   comm_peer.c  mailboxes in the memory of peers' devices or in page-locked memory of the host
 */
#ifndef GLMD_KERNELS_CUDA_COMM_INTERNAL_H
#define GLMD_KERNELS_CUDA_COMM_INTERNAL_H

#include <stdbool.h>

#include "kernels/comm.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/sums.h"

enum { COMM_WHY_BYTES = 192, COMM_MAX_SIZE = SUMS_MAX_PARTS };

/* What a rank says of itself before anything else. */
struct comm_facts {
    uint32_t layout; /* of this struct: ranks of different versions do not go on */
    uint32_t choice, max_rows, cols;
    uint64_t process; /* no two processes have the same number */
    int32_t device;
    int32_t nccl_version; /* 0: it is not there, and why */
    char nccl_missing[COMM_WHY_BYTES];
    char host[40]; /* boot id */
    char pci_bus[16];
};

struct nccl_group {
    const struct nccl_library *library;
    struct ncclComm *comm;
    uint16_t *scratch; /* device: parts of the peers */
    size_t scratch_elements;
    int version;
};

struct peer_group {
    struct sums_mailboxes boxes;
    struct cuda_mailbox *own;     /* borrowed from the context: this rank's mailbox */
    void *opened[SUMS_MAX_PEERS]; /* memory of other processes */
    int held[SUMS_MAX_PEERS];     /* what says so to them (mailbox.h), where `opened` is */
    void *shared;                 /* host memory of all ranks, mapped */
    size_t shared_bytes;
    bool pinned;
};

struct k_comm {
    struct k_ctx *c;           /* borrowed */
    struct k_comm_group group; /* its context is borrowed */
    uint32_t max_rows, cols;
    struct comm_facts *facts; /* owned, [size] */
    struct nccl_group nccl;
    struct peer_group peer;
    uint32_t peer_rows; /* sums of at most so many rows go to the peers; 0 = none */
    bool has_nccl;
    bool nccl_follows;            /* for all that is known when peers are joined */
    struct sums_control *control; /* owned; device */
    struct sums_signals *signals; /* owned; page-locked */
    int failed;                   /* the first failure; 0 = none */
    char failure[256];
    char reasons[512]; /* what auto could not have */
    char description[768];
};

/* ---- comm.c ---- */

/* Ends the comm with this failure, unless it has ended: NCCL is aborted, kernels stop waiting. */
__attribute__((format(printf, 3, 4))) int comm_fail(struct k_comm *m, int code, const char *format,
                                                    ...);
/* Until the stream has run dry or the comm has failed and given everything up. */
void comm_watch(struct k_comm *m);
/* One look at the group and at NCCL: 0 or the failure. */
int comm_look(struct k_comm *m);
/* All ranks say how something went: 0 when it went well everywhere; else the code of the first rank
 * where it did not, and its reason in `ret_why`, on all of them alike. A failure of the group is
 * that of the comm. */
int comm_agree(struct k_comm *m, int code, const char *why, char *ret_why, size_t size);
int64_t comm_now_ns(void);
void comm_pause(int64_t ns);

/* ---- comm_nccl.c ---- */

/* All ranks; 0, or -EIO, -ETIMEDOUT, -ENOMEM with the reason; nothing is left then. */
int nccl_join(struct k_comm *m, char *why, size_t size);
void nccl_leave(struct k_comm *m);
/* 0 or a failure of the comm. */
int nccl_look(struct k_comm *m);
void nccl_sum(struct k_comm *m, uint16_t *x, size_t n);
void nccl_gather(struct k_comm *m, const void *own, size_t bytes, void *all);

/* ---- comm_peer.c ---- */

/* All ranks, on one host; with self-test. */
int peer_join(struct k_comm *m, bool pinned, char *why, size_t size);
void peer_leave(struct k_comm *m);

#endif
