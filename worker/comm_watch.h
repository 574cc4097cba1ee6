/* comm_watch.h: collectives that count. A group's comm seen through a wrapper that notes every call
 * that came back, so that a long step can be told from one that is stuck. Engine thread, except
 * abort. */
#ifndef GLMD_WORKER_COMM_WATCH_H
#define GLMD_WORKER_COMM_WATCH_H

#include <stdatomic.h>
#include <stdint.h>

#include "worker/engine/comm/comm.h"

/* Owns `inner` from here on, also on failure. `counter` is borrowed. */
int comm_watch_new(struct comm *inner, _Atomic uint64_t *counter, struct comm **ret);

#endif
