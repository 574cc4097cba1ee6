/* rpc_builtin.h: between a transport's server and the standard services that live inside it.
 * Internal to proto/rpc. health.c and reflection.c use rpc.h and this, and nothing of gRPC. */
#ifndef GLMD_PROTO_RPC_RPC_BUILTIN_H
#define GLMD_PROTO_RPC_RPC_BUILTIN_H

#include "proto/rpc/rpc.h"

struct health;
struct reflection;

/* A server's standard services; NULL: not added. */
struct rpc_builtin {
    struct health *health;
    struct reflection *reflection;
};

/* From the transport. Calls of built-in methods have slots of their own, so that a full server
 * still answers health checks. */
struct rpc_builtin *rpc_server_builtin(struct rpc_server *s);
int rpc_server_add_builtin(struct rpc_server *s, const struct rpc_method *methods, size_t n);

/* For the services: ends a call that has just come in, and hears no more of it. */
void rpc_refuse(struct rpc_call *c, enum rpc_status status, const char *message);

/* For the transport. `stop` when the server begins to shut down: health tells its watchers
 * NOT_SERVING; streams that would otherwise stay open end with UNAVAILABLE. `free` accepts NULL. */
void health_stop(struct health *h);
void health_free(struct health *h);
void reflection_stop(struct reflection *f);
void reflection_free(struct reflection *f);

#endif
