/* wire_cluster.h: the messages of cluster.proto as plain structs. Conventions: wire.h; what the
 * fields mean: cluster.proto. */
#ifndef GLMD_PROTO_RPC_WIRE_CLUSTER_H
#define GLMD_PROTO_RPC_WIRE_CLUSTER_H

#include "proto/rpc/wire_declare.h"
#include "proto/rpc/wire_inference.h"

enum wire_group_state {
    WIRE_GROUP_UNSPECIFIED,
    WIRE_GROUP_FORMING,
    WIRE_GROUP_READY,
    WIRE_GROUP_DEGRADED,
    WIRE_GROUP_DRAINING,
    WIRE_GROUP_GONE,
};

enum wire_rank_state {
    WIRE_RANK_UNSPECIFIED,
    WIRE_RANK_ABSENT,
    WIRE_RANK_LOADING,
    WIRE_RANK_LOADED,
    WIRE_RANK_JOINING,
    WIRE_RANK_READY,
    WIRE_RANK_FAILED,
};

struct wire_status_request {
    char empty;
};

struct wire_rank_status {
    uint32_t rank;
    enum wire_rank_state state;
    const char *host;
    uint32_t pid;
    const char *device;
    const char *description;
    uint64_t weights_bytes;
    uint64_t kv_bytes;
    uint64_t scratch_bytes;
    uint64_t loaded_bytes;
    uint64_t total_bytes;
    uint64_t step;
    uint64_t step_age_ms;
    double compute_ms_avg;
    const char *last_error;
    uint32_t restarts;
    uint64_t fenced_messages;
    uint32_t stage;
    const char *collectives;
};

struct wire_group_status {
    const char *id;
    uint64_t epoch;
    enum wire_group_state state;
    uint32_t tp_size;
    const struct wire_rank_status *ranks;
    uint32_t n_ranks;
    uint32_t kv_blocks_total;
    uint32_t kv_blocks_free;
    uint32_t running;
    uint32_t waiting;
    double prefill_tokens_per_second;
    double decode_tokens_per_second;
    uint64_t steps;
    uint64_t prefill_tokens;
    uint64_t decode_tokens;
    uint32_t slots_total;
    uint32_t slots_used;
    const char *last_error;
    uint32_t pp_size;
    const uint32_t *stage_layers;
    uint32_t n_stage_layers;
};

struct wire_request_counters {
    uint64_t total;
    uint64_t finished;
    uint64_t failed;
    uint64_t cancelled;
    uint64_t rejected;
    uint64_t resumed;
    uint64_t aborted;
};

struct wire_loop_time {
    uint64_t steps;
    uint64_t plan_ns;
    uint64_t result_ns;
    uint64_t updates;
    uint64_t update_ns;
};

struct wire_status_response {
    const char *version;
    double uptime_seconds;
    const char *cluster;
    const struct wire_model_info *model;
    const struct wire_group_status *groups;
    uint32_t n_groups;
    const struct wire_request_counters *requests;
    bool draining;
    uint32_t waiting;
    const struct wire_loop_time *loop; /* NULL: an older coordinator */
};

struct wire_drain_request {
    const char *group;
    double timeout_seconds;
};

struct wire_drain_response {
    uint32_t running;
};

struct wire_abort_request {
    const char *request_id;
};

struct wire_abort_response {
    uint32_t aborted;
};

/* "ready"; "unknown" for numbers that have no name here. */
const char *wire_group_state_name(enum wire_group_state state);
const char *wire_rank_state_name(enum wire_rank_state state);
/* Whether requests are served: a group is ready, and nobody drains the server. */
bool wire_status_healthy(const struct wire_status_response *r);

struct wire_metrics_request {
    char empty;
};

struct wire_metrics_response {
    const char *text;
};

struct wire_why_request {
    const char *request_id;
};

enum wire_event_kind {
    WIRE_EVENT_UNSPECIFIED,
    WIRE_EVENT_QUEUED,
    WIRE_EVENT_STARTED,
    WIRE_EVENT_PREFILL,
    WIRE_EVENT_FIRST_TOKEN,
    WIRE_EVENT_PREEMPTED,
    WIRE_EVENT_LOST,
    WIRE_EVENT_PAUSED,
    WIRE_EVENT_GOES_ON,
    WIRE_EVENT_ENDED,
    WIRE_EVENT_REFUSED,
};

struct wire_request_event {
    enum wire_event_kind kind;
    double at_seconds, until_seconds;
    const char *group;
    uint64_t epoch;
    uint32_t n;
};

struct wire_request_timeline {
    const char *request_id, *trace_id, *kind;
    int32_t priority;
    double age_seconds;
    uint32_t prompt_tokens;
    uint64_t completion_tokens;
    bool ended;
    const char *end, *status, *message;
    const struct wire_request_event *events;
    uint32_t n_events;
    uint32_t events_lost;
};

struct wire_why_response {
    const struct wire_request_timeline *requests;
    uint32_t n_requests;
};

WIRE_DECLARE(status_request, struct wire_status_request);
WIRE_DECLARE(status_response, struct wire_status_response);
WIRE_DECLARE(drain_request, struct wire_drain_request);
WIRE_DECLARE(drain_response, struct wire_drain_response);
WIRE_DECLARE(abort_request, struct wire_abort_request);
WIRE_DECLARE(abort_response, struct wire_abort_response);
WIRE_DECLARE(metrics_request, struct wire_metrics_request);
WIRE_DECLARE(metrics_response, struct wire_metrics_response);
WIRE_DECLARE(why_request, struct wire_why_request);
WIRE_DECLARE(why_response, struct wire_why_response);

#endif
