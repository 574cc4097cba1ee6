/* mailbox.h: the mailboxes of a context: device memory that the ranks of other processes write into
 * (comm_peer.c), and who has it open.
 *
 * Memory must be closed by all who have opened it before its owner frees it or gives it another
 * use; what the runtime says otherwise is undefined. Owner and peers may be ranks of an epoch that
 * has ended in disorder, and have no word to exchange. So who has a mailbox open holds a shared
 * lock on a file of its own, without contents and soon without a name: the lock ends with the
 * peer's closing, or with its process, however that ends. The owner asks for the file exclusively.
 *
 *   owner                               peer
 *   mailbox_get, shows memory and name
 *                                       mailbox_hold, then opens the memory
 *   mailbox_unlink: all have come
 *   ... sums ...
 *                                       closes the memory, then the lock's descriptor
 *   the next mailbox_get, or
 *   mailbox_free_all: not before that
 *
 * Ranks of the same process reach a mailbox without opening it: whoever runs them drops their comms
 * before it closes a context.
 */
#ifndef GLMD_KERNELS_CUDA_MAILBOX_H
#define GLMD_KERNELS_CUDA_MAILBOX_H

#include "kernels/cuda/cuda.h"

/* A mailbox of `bytes` that nobody has open, kept from an earlier epoch or new; with a file to lock
 * if it is `shared` with other processes. Those that are free and of another size are given back.
 * 0; -ENOMEM; -EBUSY: all that there may be are still open elsewhere; or what the file failed with.
 * Valid until mailbox_free_all. */
int mailbox_get(struct k_ctx *c, size_t bytes, bool shared, struct cuda_mailbox **ret);
/* Nobody else will come. */
void mailbox_unlink(struct cuda_mailbox *b);
/* Waits for those who have one open, c->mailbox_wait_ns in all, and frees what nobody has; the rest
 * lives as long as the process. */
void mailbox_free_all(struct k_ctx *c);

/* By a peer, before it opens the memory. *ret: a descriptor, to be closed after it. Or -errno. */
int mailbox_hold(const char *name, int *ret);

#endif
