/* rpc_requests.h: the requests of the standard services, from bytes to answer. Pure functions over
 * untrusted input, apart from the calls that carry them, so that tests and fuzzers reach them.
 * Internal to proto/rpc. */
#ifndef GLMD_PROTO_RPC_RPC_REQUESTS_H
#define GLMD_PROTO_RPC_RPC_REQUESTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "proto/rpc/descriptors.h"

enum {
    HEALTH_MAX_SERVICE_BYTES = 128,
    REFLECTION_MAX_REQUEST_BYTES = 4096,
};

/* The service that a HealthCheckRequest asks for. -EBADMSG or -E2BIG; a name that is too long for
 * any service is -ENOENT. */
int health_read_request(const uint8_t *data, size_t size,
                        char ret_service[HEALTH_MAX_SERVICE_BYTES + 1], struct err *e);

/* Appends the serialized ServerReflectionResponse. Asking for something that is not there is not an
 * error: the response says so. */
int reflection_answer(const struct descriptors *d, const char *const *services, size_t n_services,
                      const uint8_t *data, size_t size, struct buf *ret_response, struct err *e);

#endif
