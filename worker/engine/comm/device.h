/* device.h: sums over the ranks of a stage on their devices, beside the host's collectives.
 *
 * The host's comm stays: it joins the group, carries what the device's collectives need to come up,
 * gathers logits and brings failures to all ranks. What the device sums it sums with the table of
 * its backend (kernels/comm.h); where it cannot, sums go through the host's comm as on a CPU.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_DEVICE_H
#define GLMD_WORKER_ENGINE_COMM_DEVICE_H

#include "base/err.h"
#include "kernels/comm.h"
#include "kernels/kernels.h"
#include "worker/engine/comm/comm.h"

enum { COMM_DEVICE_WORDS = 768 };

struct comm_device {
    const struct k_comm_ops *ops;  /* with `comm` */
    struct k_comm *comm;           /* owned; NULL: sums go through the host */
    struct k_comm_times past;      /* of those that are closed */
    char words[COMM_DEVICE_WORDS]; /* what sums over ranks, and why, for people */
};

/* Zero-initialised = none. All ranks of the stage together; `host` is borrowed until close. The
 * largest sum is max_rows x cols. 0 also where sums go through the host because the choice says so
 * or auto found nothing else: `words` has the reason. A choice that cannot be had is an error. */
int comm_device_open(struct comm_device *d, enum k_comm_choice choice, const struct k_ops *ops,
                     struct k_ctx *ctx, struct comm *host, uint32_t max_rows, uint32_t cols,
                     struct err *e);
void comm_device_close(struct comm_device *d);

/* Of all that were opened until now; grows only. Waits for nothing. */
void comm_device_times(const struct comm_device *d, struct k_comm_times *ret);

/* `words`, as of now: NCCL connects when it is used. */
const char *comm_device_words(struct comm_device *d);

/* Waits for the device. A failure of its sums ends the host's comm, too. */
int comm_device_wait(struct comm_device *d, struct comm *host, struct err *e);

#endif
