/* front_grpc.c: see front_grpc.h. */
#include "coordinator/front_grpc.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/status_details.h"

struct front_origin front_grpc_origin(const struct rpc_call *rpc)
{
    return (struct front_origin){
        .key = rpc_metadata(rpc, "authorization"),
        .deadline_ns = rpc_deadline_ns(rpc),
        .traceparent = rpc_metadata(rpc, "traceparent"),
    };
}

/* For stock clients with a retry policy of their own, which look at the status alone: what is not
 * worth another try for now is never. */
static int32_t pushback_ms(const struct front_end *end)
{
    bool for_now = end->status == RPC_UNAVAILABLE || end->status == RPC_RESOURCE_EXHAUSTED;
    int64_t ms = (end->retry_after_ns + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC;
    if (!for_now)
        return RPC_PUSHBACK_NONE;
    return ms > 0 ? (int32_t)MIN(ms, (int64_t)INT32_MAX) : RPC_PUSHBACK_NEVER;
}

void front_grpc_finish(struct rpc_call *rpc, const struct front_end *end)
{
    struct status_details details = {
        .retry_after_ns = end->retry_after_ns, .has_tokens = end->ran, .n_tokens = end->n_tokens};
    struct buf bytes = {0};
    snprintf(details.field, sizeof details.field, "%s", end->field);
    snprintf(details.reason, sizeof details.reason, "%s", end->reason ? end->reason : "");
    snprintf(details.quota, sizeof details.quota, "%s", end->of_key ? "api_key" : "");
    if (end->status == RPC_OK ||
        status_details_pack(end->status, end->message, &details, &bytes) < 0)
        buf_clear(&bytes); /* the status goes without them */
    rpc_set_pushback(rpc, pushback_ms(end));
    rpc_finish_details(rpc, end->status, end->message, bytes.data, bytes.size);
    buf_deinit(&bytes);
}
