/* wire_cluster.c: the tables of cluster.proto. See wire_map.h. */
#include "proto/rpc/wire_cluster.h"

#include "base/util.h"
#include "glmd/v1/cluster.pb-c.h"
#include "proto/rpc/wire_map.h"

const char *wire_group_state_name(enum wire_group_state state)
{
    static const char *const names[] = {"unknown",  "forming",  "ready",
                                        "degraded", "draining", "gone"};
    return (size_t)state < ARRAY_LEN(names) ? names[state] : names[0];
}

const char *wire_rank_state_name(enum wire_rank_state state)
{
    static const char *const names[] = {"unknown", "absent", "loading", "loaded",
                                        "joining", "ready",  "failed"};
    return (size_t)state < ARRAY_LEN(names) ? names[state] : names[0];
}

bool wire_status_healthy(const struct wire_status_response *r)
{
    bool ready = false;
    for (uint32_t i = 0; i != r->n_groups; i++)
        ready |= r->groups[i].state == WIRE_GROUP_READY;
    return ready && !r->draining;
}

WIRE_MAP_EMPTY(status_request, status_request, struct wire_status_request);
WIRE_DEFINE(status_request, struct wire_status_request, status_request)

#define T struct wire_rank_status
static const struct wire_field rank_status_fields[] = {
    F_VALUE(T, rank),          F_VALUE(T, state),           F_VALUE(T, host),
    F_VALUE(T, pid),           F_VALUE(T, device),          F_VALUE(T, description),
    F_VALUE(T, weights_bytes), F_VALUE(T, kv_bytes),        F_VALUE(T, scratch_bytes),
    F_VALUE(T, loaded_bytes),  F_VALUE(T, total_bytes),     F_VALUE(T, step),
    F_VALUE(T, step_age_ms),   F_VALUE(T, compute_ms_avg),  F_VALUE(T, last_error),
    F_VALUE(T, restarts),      F_VALUE(T, fenced_messages), F_VALUE(T, stage),
    F_VALUE(T, collectives),
};
WIRE_MAP(rank_status, rank_status, T);
#undef T

#define T struct wire_group_status
static const struct wire_field group_status_fields[] = {
    F_VALUE(T, id),
    F_VALUE(T, epoch),
    F_VALUE(T, state),
    F_VALUE(T, tp_size),
    F_MESSAGES(T, ranks, &rank_status),
    F_VALUE(T, kv_blocks_total),
    F_VALUE(T, kv_blocks_free),
    F_VALUE(T, running),
    F_VALUE(T, waiting),
    F_VALUE(T, prefill_tokens_per_second),
    F_VALUE(T, decode_tokens_per_second),
    F_VALUE(T, steps),
    F_VALUE(T, prefill_tokens),
    F_VALUE(T, decode_tokens),
    F_VALUE(T, slots_total),
    F_VALUE(T, slots_used),
    F_VALUE(T, last_error),
    F_VALUE(T, pp_size),
    F_ARRAY(T, stage_layers),
};
WIRE_MAP(group_status, group_status, T);
#undef T

#define T struct wire_request_counters
static const struct wire_field request_counters_fields[] = {
    F_VALUE(T, total),    F_VALUE(T, finished), F_VALUE(T, failed),  F_VALUE(T, cancelled),
    F_VALUE(T, rejected), F_VALUE(T, resumed),  F_VALUE(T, aborted),
};
WIRE_MAP(request_counters, request_counters, T);
#undef T

#define T struct wire_loop_time
static const struct wire_field loop_time_fields[] = {
    F_VALUE(T, steps),   F_VALUE(T, plan_ns),   F_VALUE(T, result_ns),
    F_VALUE(T, updates), F_VALUE(T, update_ns),
};
WIRE_MAP(loop_time, loop_time, T);
#undef T

#define T struct wire_status_response
static const struct wire_field status_response_fields[] = {
    F_VALUE(T, version),
    F_VALUE(T, uptime_seconds),
    F_VALUE(T, cluster),
    F_POINTER(T, model, &wire_model_info_map),
    F_MESSAGES(T, groups, &group_status),
    F_POINTER(T, requests, &request_counters),
    F_VALUE(T, draining),
    F_VALUE(T, waiting),
    F_POINTER(T, loop, &loop_time),
};
WIRE_MAP(status_response, status_response, T);
WIRE_DEFINE(status_response, T, status_response)
#undef T

#define T struct wire_drain_request
static const struct wire_field drain_request_fields[] = {
    F_VALUE(T, group),
    F_VALUE(T, timeout_seconds),
};
WIRE_MAP(drain_request, drain_request, T);
WIRE_DEFINE(drain_request, T, drain_request)
#undef T

#define T struct wire_drain_response
static const struct wire_field drain_response_fields[] = {F_VALUE(T, running)};
WIRE_MAP(drain_response, drain_response, T);
WIRE_DEFINE(drain_response, T, drain_response)
#undef T

#define T struct wire_abort_request
static const struct wire_field abort_request_fields[] = {F_VALUE(T, request_id)};
WIRE_MAP(abort_request, abort_request, T);
WIRE_DEFINE(abort_request, T, abort_request)
#undef T

#define T struct wire_abort_response
static const struct wire_field abort_response_fields[] = {F_VALUE(T, aborted)};
WIRE_MAP(abort_response, abort_response, T);
WIRE_DEFINE(abort_response, T, abort_response)
#undef T

WIRE_MAP_EMPTY(metrics_request, metrics_request, struct wire_metrics_request);
WIRE_DEFINE(metrics_request, struct wire_metrics_request, metrics_request)

#define T struct wire_metrics_response
static const struct wire_field metrics_response_fields[] = {F_VALUE(T, text)};
WIRE_MAP(metrics_response, metrics_response, T);
WIRE_DEFINE(metrics_response, T, metrics_response)
#undef T

#define T struct wire_why_request
static const struct wire_field why_request_fields[] = {F_VALUE(T, request_id)};
WIRE_MAP(why_request, why_request, T);
WIRE_DEFINE(why_request, T, why_request)
#undef T

#define T struct wire_request_event
static const struct wire_field request_event_fields[] = {
    F_VALUE(T, kind),  F_VALUE(T, at_seconds), F_VALUE(T, until_seconds),
    F_VALUE(T, group), F_VALUE(T, epoch),      F_VALUE(T, n),
};
WIRE_MAP(request_event, request_event, T);
#undef T

#define T struct wire_request_timeline
static const struct wire_field request_timeline_fields[] = {
    F_VALUE(T, request_id),
    F_VALUE(T, trace_id),
    F_VALUE(T, kind),
    F_VALUE(T, priority),
    F_VALUE(T, age_seconds),
    F_VALUE(T, prompt_tokens),
    F_VALUE(T, completion_tokens),
    F_VALUE(T, ended),
    F_VALUE(T, end),
    F_VALUE(T, status),
    F_VALUE(T, message),
    F_MESSAGES(T, events, &request_event),
    F_VALUE(T, events_lost),
};
WIRE_MAP(request_timeline, request_timeline, T);
#undef T

#define T struct wire_why_response
static const struct wire_field why_response_fields[] = {F_MESSAGES(T, requests, &request_timeline)};
WIRE_MAP(why_response, why_response, T);
WIRE_DEFINE(why_response, T, why_response)
#undef T

const struct wire_map *const wire_cluster_maps[] = {&status_request,
                                                    &status_response,
                                                    &drain_request,
                                                    &drain_response,
                                                    &abort_request,
                                                    &abort_response,
                                                    &metrics_request,
                                                    &metrics_response,
                                                    &why_request,
                                                    &why_response,
                                                    NULL};
