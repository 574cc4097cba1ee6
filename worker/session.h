/* session.h: what a rank says to its coordinator, and what it lets its engine do. A state machine
 * without sockets, threads or clock: events go in, orders come out through struct session_ops.
 *
 *              loaded          Grant            joined
 *   LOADING ----------> IDLE ----------> JOINING ------> READY --> steps, stages + 1
 *                        ^                  |              |
 *                        +------------------+--------------+
 *                        Abort, failure, lease over, stream lost: the epoch ends
 *
 * Fencing. Epochs only grow. A message with an older epoch than that of the current grant, or for
 * an epoch that has ended here, is dropped and counted. A newer one without a Grant, or a step
 * number that is not the next, is the coordinator's error: the epoch ends with Failed(PROTOCOL).
 * Answers of the engine from an epoch that is over are dropped.
 *
 * Loop thread. `now` is clock_now_ns time.
 */
#ifndef GLMD_WORKER_SESSION_H
#define GLMD_WORKER_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/rpc/wire.h"

enum session_state { SESSION_LOADING, SESSION_IDLE, SESSION_JOINING, SESSION_READY };
const char *session_state_name(enum session_state s);

struct session_ops { /* all required */
    /* To the coordinator; only while connected. */
    void (*send)(void *context, const struct wire_worker_message *m);
    void (*send_bytes)(void *context, const void *data, size_t size); /* a packed message */
    /* Ends the stream; session_disconnected follows, then another session_connected some time. */
    void (*disconnect)(void *context);

    /* To the engine. The message is handed over. Every order is answered once, unless an
     * abort_engine comes first. */
    void (*join)(void *context, struct wire_coordinator_message *grant);
    void (*step)(void *context, struct wire_coordinator_message *step);
    /* Waiting orders are dropped, a running one fails soon. */
    void (*abort_engine)(void *context);

    /* The process should end with this code; may be called again, the first one counts. */
    void (*exit)(void *context, int code, const char *why);
};

struct session_config {
    struct wire_hello hello; /* borrowed contents; last_epoch is filled in here */
    int64_t heartbeat_ns;    /* before a Grant says something else */
    bool device_is_cpu;
};

/* What only the engine's side knows, for heartbeats. */
struct session_progress {
    uint64_t busy_ns; /* since the running order began; 0 = idle */
    uint64_t loaded_bytes, total_bytes;
    uint64_t steps, prefill_tokens, decode_tokens, compute_ns;
    /* calls of collectives and links, and the time in them */
    uint64_t all_reduces, all_reduce_ns, all_gathers, all_gather_ns, link_messages, link_ns;
    uint64_t cpu_ns, resident_bytes; /* of the process */
    uint64_t shared_rows, wide_rows; /* as in engine_stats */
};

struct session {
    /* borrowed */
    const struct session_ops *ops;
    void *context;
    struct session_config config;
    /* state */
    enum session_state state;
    bool connected;
    bool draining;
    struct wire_loaded loaded; /* once state is past LOADING; description borrowed */
    uint64_t epoch;            /* of the current grant; 0 = none */
    uint64_t last_epoch;       /* highest ever granted */
    uint64_t next_step;
    uint64_t last_done;
    unsigned n_steps;   /* in the engine */
    unsigned max_steps; /* of the grant: one for every stage, and one that waits */
    int64_t lease_ns;   /* 0 = none */
    int64_t lease_end;
    int64_t heartbeat_ns;
    int64_t next_heartbeat;
    uint64_t n_fenced;
    uint64_t n_epochs;
};

void session_init(struct session *s, const struct session_config *config,
                  const struct session_ops *ops, void *context);

/* ---- the stream ---- */
void session_connected(struct session *s, int64_t now);
void session_disconnected(struct session *s);
/* Takes the message over. */
void session_message(struct session *s, struct wire_coordinator_message *m, int64_t now);

/* ---- the engine ---- */
void session_loaded(struct session *s, const struct wire_loaded *loaded);
void session_joined(struct session *s, uint64_t epoch, uint64_t known_answer,
                    const char *collectives);
void session_join_failed(struct session *s, uint64_t epoch, int code, const char *message);
void session_step_done(struct session *s, uint64_t epoch, uint64_t step, const void *bytes,
                       size_t size);
void session_step_failed(struct session *s, uint64_t epoch, uint64_t step, int code,
                         const char *message);

/* ---- the rest ---- */
/* Heartbeat when it is due, end of the lease. Returns the time of the next call. */
int64_t session_tick(struct session *s, int64_t now, const struct session_progress *p);
/* The same time, without doing anything. */
int64_t session_next(const struct session *s, int64_t now);
/* Finish what runs, then ops->exit(0). */
void session_drain(struct session *s, const char *why);

#endif
