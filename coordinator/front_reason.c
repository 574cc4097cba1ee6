/* front_reason.c: what programs are told of the end of a call besides its status: ErrorInfo's
 * reasons (docs/grpc.md has the list), and when another try is worth it. Loop thread. */
#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "coordinator/front_internal.h"
#include "coordinator/sched.h"

const char *front_reason_refused(int code)
{
    switch (code) {
    case -EINVAL:
    case -EBADMSG:
        return "INVALID_REQUEST";
    case -E2BIG:
        return "TOO_LONG";
    case -ENOENT:
        return "UNKNOWN_MODEL";
    case -EACCES:
        return "KEY_NEEDED";
    case -EPERM:
        return "KEY_NOT_ALLOWED";
    case -EDQUOT:
        return "KEY_QUOTA";
    case -ENOBUFS:
        return "QUEUE_FULL";
    case -EBUSY:
        return "SERVER_FULL";
    case -ECANCELED:
        return "STOPPING";
    case -ENOMEM:
        return "OUT_OF_MEMORY";
    default:
        return "INTERNAL";
    }
}

/* It ended as no other end is: its status and its history tell. */
static const char *reason_of_error(const struct request *r)
{
    if (r->status == RPC_INVALID_ARGUMENT) /* it waited, and fits none of the groups that came */
        return "TOO_LONG";
    if (r->status == RPC_RESOURCE_EXHAUSTED)
        return "OUT_OF_MEMORY";
    return r->n_losses >= SCHED_MAX_LOSSES ? "POISON" : "INTERNAL";
}

static const char *reason_ended(const struct request *r, enum metrics_end how, bool stopping)
{
    switch (how) {
    case METRICS_END_CANCELLED:
        return "CLIENT_GONE";
    case METRICS_END_ABORTED:
        return "ABORTED_BY_OPERATOR";
    case METRICS_END_DEADLINE:
        return "DEADLINE";
    case METRICS_END_SLOW_READER:
        return "SLOW_READER";
    case METRICS_END_UNAVAILABLE:
        return stopping ? "STOPPING" : "NO_GROUP_READY";
    default:
        return reason_of_error(r);
    }
}

void front_set_end(struct front_end *ret, const struct request *r, enum metrics_end how,
                   bool stopping)
{
    *ret = (struct front_end){.status = r->status, .retry_after_ns = r->retry_after_ns};
    snprintf(ret->message, sizeof ret->message, "%s", r->message);
    if (r->status == RPC_OK)
        return;
    ret->reason = reason_ended(r, how, stopping);
    ret->ran = true;
    ret->n_tokens = r->n_completion_tokens;
    if (r->status == RPC_UNAVAILABLE && ret->retry_after_ns == 0)
        ret->retry_after_ns = FRONT_RETRY_NS;
}
