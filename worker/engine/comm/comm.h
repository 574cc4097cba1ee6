/* comm.h: the collectives seam between the ranks of a group.
 *
 * A group is a grid of n_stages x size ranks: the `size` ranks of a stage hold the same layers and
 * add up their partial sums; what a stage has computed goes to the ranks of the same number in the
 * next stage. A rank's number in its group is stage * size + rank.
 *
 *             rank 0   rank 1   ...
 *   stage 0     o  <----->  o       collectives: within a stage
 *               |           |       send, recv: from a stage to the next, and from the last to the
 *   stage 1     o  <----->  o       first (the column is a ring)
 *               |           |
 *
 * Sums run in rank order 0 .. size-1, so that every rank gets the same bits in every run. A call
 * waits at most the deadline it was created with, then fails on every rank of its stage or column
 * (-ETIMEDOUT); abort() from any thread makes all pending and future calls return -ECANCELED. After
 * a failure a comm is good for nothing but abort and close.
 *
 * A transport makes either the comm of one stage (n_stages 1: collectives) or that of one column
 * (size 1: send and recv; its collectives are those of one rank). comm_grid_new puts the two of a
 * rank together; comm_group_new (group.h) does all of it from the rank's place in the group.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_COMM_H
#define GLMD_WORKER_ENGINE_COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct comm;

enum { COMM_MAX_RANKS = 64, COMM_MAX_STAGES = 64 };

struct comm_ops {
    const char *name; /* "self", "inproc", "shm", "tcp" */
    /* In place, n floats, over the ranks of the stage. */
    int (*all_reduce)(struct comm *c, float *data, size_t n);
    /* dst holds size * bytes; rank r's part lies at r * bytes. src may be dst + rank * bytes. */
    int (*all_gather)(struct comm *c, const void *src, size_t bytes, void *dst);
    int (*barrier)(struct comm *c);
    /* A message to the same rank of the next stage. Returns as soon as it is buffered: it waits
     * only when the link's `link_bytes` are full of what has not been received. */
    int (*send)(struct comm *c, const void *data, size_t bytes);
    /* The next message of the previous stage, which must have `bytes` bytes; else -EIO. */
    int (*recv)(struct comm *c, void *data, size_t bytes);
    /* 0, or what the next call would fail with because this rank or a peer has ended the comm; any
     * thread, at once. For whoever waits for something else, as a device that sums over ranks. */
    int (*state)(struct comm *c);
    void (*abort)(struct comm *c); /* thread-safe, idempotent */
    void (*close)(struct comm *c); /* drops what has been sent and not received */
};

struct comm { /* head of every implementation */
    const struct comm_ops *ops;
    int rank, size;      /* within the stage */
    int stage, n_stages; /* send and recv: only with n_stages > 1 */
    int64_t timeout_ns;  /* longest wait in a call; 0: nobody to wait for */
};

/* One rank: every call is a no-op or a copy. */
int comm_self_new(struct comm **ret);

/* ---- the ranks of a stage ---- */

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

/* ---- the stages of a column ----
 *
 * As above, with stages in place of ranks. `link_bytes`: what a link to the next stage holds of
 * messages that have not been received; a stage runs ahead of the next one as long as its output
 * fits (engine_link_bytes: a whole step). Longer messages go in pieces. */

int comm_inproc_links_new(int n_stages, size_t link_bytes, int64_t timeout_ns, struct comm **ret);

/* The name must be another one than that of the stage's segment. */
int comm_shm_links_new(const char *name, const uint8_t token[16], int stage, int n_stages,
                       size_t link_bytes, int64_t timeout_ns, struct comm **ret, struct err *e);

/* The listening socket may be that of comm_tcp_new: a rank joins its stage first, then its column.
 * A thread of its own moves the bytes, so that a step's output is on its way while the next step is
 * computed; `link_bytes` are kept on both sides. */
int comm_tcp_links_new(int listen_fd, const char *const *peers, const uint8_t token[16], int stage,
                       int n_stages, size_t link_bytes, int64_t timeout_ns, struct comm **ret,
                       struct err *e);

/* ---- both ---- */

/* A rank's place in the grid: the collectives of `stage_comm` (n_stages 1), the messages of `links`
 * (size 1); when one fails, so does the other. Owns both from here on, also on failure. */
int comm_grid_new(struct comm *stage_comm, struct comm *links, struct comm **ret);

static inline void comm_close(struct comm *c)
{
    if (c)
        c->ops->close(c);
}

#endif
