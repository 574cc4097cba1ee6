/* front_grpc.c: see front_grpc.h. */
#include "coordinator/front_grpc.h"

#include <stdio.h>

#include "proto/rpc/status_details.h"

struct front_origin front_grpc_origin(const struct rpc_call *rpc)
{
    return (struct front_origin){
        .key = rpc_metadata(rpc, "authorization"),
        .deadline_ns = rpc_deadline_ns(rpc),
        .traceparent = rpc_metadata(rpc, "traceparent"),
    };
}

void front_grpc_finish(struct rpc_call *rpc, const struct front_end *end)
{
    struct status_details details = {.retry_after_ns = end->retry_after_ns};
    struct buf bytes = {0};
    snprintf(details.field, sizeof details.field, "%s", end->field);
    if (end->status == RPC_OK ||
        status_details_pack(end->status, end->message, &details, &bytes) < 0)
        buf_clear(&bytes); /* the status goes without them */
    rpc_finish_details(rpc, end->status, end->message, bytes.data, bytes.size);
    buf_deinit(&bytes);
}
