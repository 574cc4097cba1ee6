/* tcp.h: the pieces of the TCP collectives: joining the mesh (tcp_join.c) and moving bytes
 * (tcp.c). */
#ifndef GLMD_WORKER_ENGINE_COMM_TCP_H
#define GLMD_WORKER_ENGINE_COMM_TCP_H

#include <stdint.h>

#include "base/err.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/token.h"

/* What ranks meet for: a rank's listening socket serves one after the other. */
enum tcp_channel { TCP_CHANNEL_NONE, TCP_CHANNEL_STAGE, TCP_CHANNEL_LINKS };

/* Connects to every rank below this one and accepts every rank above: ret_fds[r] is a non-blocking
 * connected socket, -1 at this rank's own place. On failure nothing stays open. */
int tcp_join(int listen_fd, const char *const *peers, const uint8_t token[COMM_TOKEN_BYTES],
             enum tcp_channel channel, int rank, int size, int64_t deadline_ns, int *ret_fds,
             struct err *e);

#endif
