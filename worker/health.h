/* health.h: the rank's own small gRPC server: grpc.health.v1 and reflection. Loop thread. */
#ifndef GLMD_WORKER_HEALTH_H
#define GLMD_WORKER_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/rpc/rpc.h"

struct health_server {
    struct rpc_server *server; /* owned; NULL = no server */
    char service[32];          /* "glmd.Worker/0", beside "" */
    bool serving;
};

/* address "": no server. Logs the address. */
int health_server_start(struct health_server *h, struct rpc_runtime *runtime, const char *address,
                        uint32_t rank, struct err *e);
void health_server_set(struct health_server *h, bool serving);
/* NOT_SERVING, then the end; on_stopped runs from the loop, or at once without a server. */
void health_server_stop(struct health_server *h, void (*on_stopped)(void *context), void *context);

#endif
