/* listen.h: the gRPC servers of a coordinator: for clients, for workers and for operators, at one
 * address or at several. Loop thread. */
#ifndef GLMD_COORDINATOR_LISTEN_H
#define GLMD_COORDINATOR_LISTEN_H

#include <stdint.h>

#include "base/err.h"

struct coordinator;
struct rpc_runtime;

/* Makes the servers and listens; c->port, address and dial are known then. On failure call
 * listen_close. */
int listen_open(struct coordinator *c, struct rpc_runtime *runtime, struct err *e);

/* Takes them apart within grace_ns; coordinator_part_stopped for each, and before this returns when
 * there is none. */
void listen_close(struct coordinator *c, int64_t grace_ns);

#endif
