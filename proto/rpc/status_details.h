/* status_details.h: what a status says to programs besides its code and its message, as the bytes
 * of google.rpc.Status that travel in the trailer "grpc-status-details-bin" (rpc_finish_details,
 * rpc_details). Pure functions; any thread.
 */
#ifndef GLMD_PROTO_RPC_STATUS_DETAILS_H
#define GLMD_PROTO_RPC_STATUS_DETAILS_H

#include "base/buf.h"
#include "base/err.h"
#include "proto/rpc/rpc.h"

enum { STATUS_FIELD_BYTES = 64, STATUS_REASON_BYTES = 64 };

struct status_details {
    int64_t retry_after_ns; /* RetryInfo: worth another try after this long; 0 = none given */
    char field[STATUS_FIELD_BYTES]; /* BadRequest: the field at fault; "" = none named */
    /* ErrorInfo of the domain "glmd": "QUEUE_FULL" (docs/grpc.md has the list); "" = none */
    char reason[STATUS_REASON_BYTES];
    bool has_tokens; /* ErrorInfo, committed_tokens: that the request had produced until then */
    uint64_t n_tokens;
    char quota[STATUS_FIELD_BYTES]; /* QuotaFailure: whose quota is used up; "" = nobody's */
};

/* Appends the bytes; nothing when the details are empty. The message describes the field, too.
 * -ENOMEM. */
int status_details_pack(enum rpc_status status, const char *message, const struct status_details *d,
                        struct buf *out);

/* From bytes that may be anything: what is understood of them, and nothing of what is not. -EBADMSG
 * or -E2BIG: not a Status at all; *ret is empty then. */
int status_details_unpack(const uint8_t *data, size_t size, struct status_details *ret,
                          struct err *e);

#endif
