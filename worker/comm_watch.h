/* comm_watch.h: collectives that count. A group's comm seen through a wrapper that notes every call
 * that came back, so that a long step can be told from one that is stuck, and how long the calls of
 * each kind took, so that waiting for peers can be told from computing. Engine thread, except
 * abort. */
#ifndef GLMD_WORKER_COMM_WATCH_H
#define GLMD_WORKER_COMM_WATCH_H

#include <stdatomic.h>
#include <stdint.h>

#include "worker/engine/comm/comm.h"

enum comm_watch_kind { COMM_WATCH_REDUCE, COMM_WATCH_GATHER, COMM_WATCH_LINK, COMM_WATCH_KINDS };

/* Written by the engine thread, read by any; barriers count as gathers. */
struct comm_watch_times {
    _Atomic uint64_t n[COMM_WATCH_KINDS], ns[COMM_WATCH_KINDS];
};

/* Owns `inner` from here on, also on failure. `counter` and `times` are borrowed, and only grow. */
int comm_watch_new(struct comm *inner, _Atomic uint64_t *counter, struct comm_watch_times *times,
                   struct comm **ret);

#endif
