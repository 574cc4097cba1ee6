/* links.h: what the links of all host transports share: messages over a ring to the next stage and
 * a ring from the previous one. A transport embeds struct comm_links, fills it and brings its own
 * abort and close. Engine thread, except `fail`. */
#ifndef GLMD_WORKER_ENGINE_COMM_LINKS_H
#define GLMD_WORKER_ENGINE_COMM_LINKS_H

#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/ring.h"

struct comm_links {
    struct comm base;
    struct comm_ring out, in;
    int64_t timeout_ns;
    uint64_t n_sent, n_received; /* messages */
    /* Bytes went into `out` or came out of `in`; NULL where the peer sees the rings itself. */
    void (*moved)(struct comm_links *l);
    /* Ends the column with this code, the first one stays; returns that. Any thread. */
    int (*fail)(struct comm_links *l, int code);
};

/* The operations for the transport's table. */
int comm_links_all_reduce(struct comm *c, float *data, size_t n);
int comm_links_all_gather(struct comm *c, const void *src, size_t bytes, void *dst);
int comm_links_barrier(struct comm *c);
int comm_links_send(struct comm *c, const void *data, size_t bytes);
int comm_links_recv(struct comm *c, void *data, size_t bytes);
void comm_links_abort(struct comm *c);

/* How much the link from `stage` to the next one holds: what leaves the last stage are a few
 * tokens. */
size_t comm_links_capacity(int stage, int n_stages, size_t link_bytes);

int comm_links_check(int stage, int n_stages, size_t link_bytes, struct err *e);

#endif
