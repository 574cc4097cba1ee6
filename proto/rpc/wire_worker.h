/* wire_worker.h: the messages of worker.proto as plain structs. Conventions: wire.h; what the
 * fields mean and in which order messages come: worker.proto. Steps and their results are the
 * structs of plan.h. */
#ifndef GLMD_PROTO_RPC_WIRE_WORKER_H
#define GLMD_PROTO_RPC_WIRE_WORKER_H

#include "proto/plan.h"
#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_declare.h"

/* Version of the conversation in worker.proto that this build speaks. */
enum { WIRE_PROTOCOL_MIN = 3, WIRE_PROTOCOL_MAX = 3 };

enum { WIRE_INSTANCE_BYTES = 16, WIRE_TOKEN_BYTES = 16 };

/* ---- worker to coordinator ---- */

struct wire_hello {
    uint32_t protocol_min, protocol_max;
    const char *build_version;
    const char *cluster;
    struct wire_bytes instance_id; /* WIRE_INSTANCE_BYTES */
    const char *boot_id;
    const char *hostname;
    uint32_t pid;
    uint32_t rank, tp_size;
    const char *model_name;
    const char *model_digest;
    const char *scheme;
    const char *device;
    const char *activations;
    const char *const *listen_addresses;
    uint32_t n_listen_addresses;
    const char *shm_domain;
    uint64_t last_epoch;
    const char *group;
    uint32_t pp_size;
    uint32_t layer_begin, layer_end;
};

struct wire_memory {
    uint64_t weights, kv, scratch;
};

struct wire_loaded {
    struct plan_limits limits;
    struct wire_memory memory;
    uint32_t block_tokens;
    const char *description;
};

struct wire_ready {
    uint64_t epoch;
    uint64_t known_answer;
    const char *collectives;
};

enum wire_failure_code {
    WIRE_FAILURE_UNSPECIFIED,
    WIRE_FAILURE_INTERNAL,
    WIRE_FAILURE_BAD_PLAN,
    WIRE_FAILURE_DEVICE,
    WIRE_FAILURE_PEER,
    WIRE_FAILURE_ABORTED,
    WIRE_FAILURE_JOIN,
    WIRE_FAILURE_PROTOCOL,
};

struct wire_failed {
    uint64_t epoch, step;
    enum wire_failure_code code;
    const char *message;
};

enum wire_worker_state {
    WIRE_WORKER_UNSPECIFIED,
    WIRE_WORKER_LOADING,
    WIRE_WORKER_LOADED,
    WIRE_WORKER_JOINING,
    WIRE_WORKER_READY,
    WIRE_WORKER_DRAINING,
};

struct wire_heartbeat {
    enum wire_worker_state state;
    uint64_t epoch, step;
    uint64_t busy_ns;
    uint64_t loaded_bytes, total_bytes;
    uint64_t steps, prefill_tokens, decode_tokens, compute_ns;
    uint64_t fenced_messages;
    uint64_t all_reduces, all_reduce_ns;
    uint64_t all_gathers, all_gather_ns;
    uint64_t link_messages, link_ns;
    uint64_t cpu_ns, resident_bytes;
    uint64_t shared_rows, wide_rows;
};

struct wire_worker_message { /* exactly one */
    const struct wire_hello *hello;
    const struct wire_loaded *loaded;
    const struct wire_ready *ready;
    const struct step_result *step_done; /* without logits */
    const struct wire_failed *failed;
    const struct wire_heartbeat *heartbeat;
};

/* ---- coordinator to worker ---- */

enum wire_comm_kind {
    WIRE_COMM_UNSPECIFIED,
    WIRE_COMM_SELF,
    WIRE_COMM_SHM,
    WIRE_COMM_TCP,
    WIRE_COMM_NCCL,
};

struct wire_grant {
    const char *group;
    uint64_t epoch;
    uint32_t protocol;
    uint32_t rank, tp_size;
    enum wire_comm_kind comm;
    const char *comm_name;
    struct wire_bytes token;  /* WIRE_TOKEN_BYTES */
    const char *const *peers; /* TCP: one of every rank */
    uint32_t n_peers;
    struct wire_bytes comm_id;
    uint32_t comm_timeout_ms;
    uint32_t lease_ms;
    uint32_t heartbeat_ms;
    uint32_t pp_size;
    enum wire_comm_kind link_comm;
};

struct wire_abort {
    uint64_t epoch;
    const char *reason;
};

enum wire_refuse_code {
    WIRE_REFUSE_UNSPECIFIED,
    WIRE_REFUSE_PROTOCOL,
    WIRE_REFUSE_CLUSTER,
    WIRE_REFUSE_MODEL,
    WIRE_REFUSE_RANK,
    WIRE_REFUSE_FENCED,
};

struct wire_refuse {
    enum wire_refuse_code code;
    const char *reason;
};

struct wire_drain {
    const char *reason;
};

struct wire_lease {
    uint64_t epoch;
    uint32_t lease_ms;
};

struct wire_coordinator_message { /* exactly one */
    const struct wire_grant *grant;
    const struct plan *step; /* not validated */
    const struct wire_abort *abort;
    const struct wire_refuse *refuse;
    const struct wire_drain *drain;
    const struct wire_lease *lease;
};

WIRE_DECLARE(worker_message, struct wire_worker_message);
WIRE_DECLARE(coordinator_message, struct wire_coordinator_message);

#endif
