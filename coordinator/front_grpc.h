/* front_grpc.h: what the client protocols over gRPC share: where a call comes from, and how it
 * ends. Loop thread. */
#ifndef GLMD_COORDINATOR_FRONT_GRPC_H
#define GLMD_COORDINATOR_FRONT_GRPC_H

#include "coordinator/front.h"

struct front_origin front_grpc_origin(const struct rpc_call *rpc);

/* Ends the call with the status and its details: ErrorInfo, RetryInfo where another try is worth
 * it, BadRequest where a field is at fault, QuotaFailure where a key's quota is. */
void front_grpc_finish(struct rpc_call *rpc, const struct front_end *end);

/* front_kserve.c: the methods of inference.GRPCInferenceService, context c; returns how many. */
size_t front_kserve_methods(struct coordinator *c, struct rpc_method *ret);

#endif
