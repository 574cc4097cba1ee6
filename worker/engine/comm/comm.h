/* comm.h: the collectives seam between the ranks of a group.
 *
 * Sums run in rank order 0 .. size-1, so that every rank gets the same bits in every run. A call
 * waits at most the deadline it was created with, then fails on every rank (-ETIMEDOUT); abort()
 * from any thread makes all pending and future calls return -ECANCELED.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_COMM_H
#define GLMD_WORKER_ENGINE_COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct comm;

enum { COMM_MAX_RANKS = 64 };

struct comm_ops {
    const char *name; /* "self", "inproc", "shm", "tcp", "nccl" */
    /* In place, n floats. */
    int (*all_reduce)(struct comm *c, float *data, size_t n);
    /* dst holds size * bytes; rank r's part lies at r * bytes. src may be dst + rank * bytes. */
    int (*all_gather)(struct comm *c, const void *src, size_t bytes, void *dst);
    int (*barrier)(struct comm *c);
    void (*abort)(struct comm *c); /* thread-safe, idempotent */
    void (*close)(struct comm *c);
};

struct comm { /* head of every implementation */
    const struct comm_ops *ops;
    int rank, size;
};

/* One rank: every call is a no-op or a copy. */
int comm_self_new(struct comm **ret);

/* Ranks as threads of one process (tests, `glmd logits --tp`): fills ret[0 .. size-1]. */
int comm_inproc_new(int size, int64_t timeout_ns, struct comm **ret);

/* Ranks as processes of one host: rank 0 creates the shared-memory segment /dev/shm/<name> (mode
 * 0600, unlinked once all have joined), the others wait for it. `max_bytes`: largest message;
 * longer ones go in pieces. `token`: 16 bytes that all ranks of this group and epoch were given. */
int comm_shm_new(const char *name, const uint8_t token[16], int rank, int size, size_t max_bytes,
                 int64_t timeout_ns, struct comm **ret, struct err *e);

/* Ranks on several hosts: full mesh of TCP connections. `listen_fd`: this rank's listening socket
 * (its address was reported in the handshake; borrowed). peers[r] = "host:port" of rank r. */
int comm_tcp_new(int listen_fd, const char *const *peers, const uint8_t token[16], int rank,
                 int size, int64_t timeout_ns, struct comm **ret, struct err *e);

static inline void comm_close(struct comm *c)
{
    if (c)
        c->ops->close(c);
}

#endif
