/* fleet.h: ranks on any number of hosts, and the groups that they form.
 *
 * A group is one copy of the model: tensor_parallel x pipeline_parallel ranks, known by its name.
 * Groups come and go: the first rank that names one says what its shape is, later ones must agree;
 * a group that all ranks have left for a while is forgotten. Each has its own epochs, steps and
 * deadlines, and nothing that its ranks do reaches another one:
 *
 *   ABSENT ranks dial --Hello--> checked --Loaded--> all ranks loaded: Grant (new epoch)
 *     FORMING ----------------------------------------------------------> JOINING
 *        ^                                                                   | all Ready,
 *        |   a rank is lost, fails, hangs, disagrees: the epoch is over      v same answer
 *        +---------------------------------------------------------------- READY
 *
 * A group that drains takes no new requests (that is the scheduler's business) until fleet_release
 * sends its ranks away.
 *
 * Serves Worker.Session. A rank belongs to the process that holds it; a second process for the same
 * rank waits until the first is gone. Ranks with another model, shape, mode or protocol are refused
 * with the reason. Loop thread.
 */
#ifndef GLMD_COORDINATOR_FLEET_H
#define GLMD_COORDINATOR_FLEET_H

#include "base/config.h"
#include "coordinator/epoch.h"
#include "coordinator/loop_meter.h"
#include "model/arch.h"
#include "proto/plan.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_cluster.h"
#include "proto/rpc/wire_worker.h"

struct fleet; /* opaque */

/* A group's number, below coordinator.limits.max_groups, is its own until `gone`. */
struct fleet_ops {
    /* The group is ready. False: its limits cannot be used (the message was logged). */
    bool (*ready)(void *context, uint32_t group, const struct plan_limits *limits,
                  uint32_t n_stages, uint64_t epoch);
    /* All ranks agree on the result of the oldest step; valid during the call. False: it does not
     * answer its plan; `e` says why, and the group goes down. */
    bool (*result)(void *context, uint32_t group, const struct step_result *result, struct err *e);
    /* The epoch is over; only after `ready`. */
    void (*down)(void *context, uint32_t group, const char *why);
    /* The group is forgotten; its number may be another one's from now on. */
    void (*gone)(void *context, uint32_t group, const char *name);
    /* fleet_rank_serves may say something else from now on. */
    void (*rank)(void *context, uint32_t group, uint32_t rank);
};

struct fleet_config {
    const struct config *config; /* borrowed, as everything here */
    const struct arch *arch;
    const char *model_digest;
    const char *scheme; /* "int4", ... */
    bool has_known_answer;
    uint64_t known_answer;
    struct epoch_store *epochs;
    struct loop_meter *meter; /* NULL: nobody measures */
    const struct fleet_ops *ops;
    void *context;
};

/* With workers: spawn, the groups that are to be spawned are there from the start. */
int fleet_new(const struct fleet_config *config, struct fleet **ret);
void fleet_free(struct fleet *f); /* when no session is left */

/* For rpc_method: context = the fleet. */
void fleet_on_session(struct rpc_call *c, void *fleet);

/* ---- groups by number ---- */

uint32_t fleet_max_groups(const struct fleet *f);
int64_t fleet_find(const struct fleet *f, const char *name);   /* its number, or -1 */
const char *fleet_name(const struct fleet *f, uint32_t group); /* NULL: no such group */
bool fleet_is_ready(const struct fleet *f, uint32_t group);    /* false: no such group */
bool fleet_is_draining(const struct fleet *f, uint32_t group); /* also while it leaves */
bool fleet_can_send(const struct fleet *f, uint32_t group);    /* one more step */
uint32_t fleet_n_ranks(const struct fleet *f, uint32_t group); /* 0: no such group */
/* A process holds the rank, has loaded its weights and does not leave. */
bool fleet_rank_serves(const struct fleet *f, uint32_t group, uint32_t rank);

/* What the ready group can take. */
void fleet_limits(const struct fleet *f, uint32_t group, struct plan_limits *ret_limits,
                  uint64_t *ret_epoch);

/* Sends a step to every rank of the ready group; fleet_can_send said yes. */
void fleet_send_step(struct fleet *f, uint32_t group, const struct plan *p, uint32_t n_tokens,
                     int64_t now_ns);

/* The group is to leave: fleet_release when it has nothing to finish; by itself at the deadline, or
 * when its epoch ends before. */
void fleet_drain(struct fleet *f, uint32_t group, int64_t deadline_ns);
/* Its ranks are told to leave. Once all have, the name is free for new ranks. */
void fleet_release(struct fleet *f, uint32_t group, const char *why);

/* ---- all of them ---- */

bool fleet_any_ready(const struct fleet *f); /* one that does not drain */

/* Leases, deadlines, formation: call at least every heartbeat. */
void fleet_tick(struct fleet *f, int64_t now_ns);

/* No group is formed any more; every session ends with this reason. */
void fleet_stop(struct fleet *f, const char *why);
uint32_t fleet_n_sessions(const struct fleet *f);

/* What happened to a rank outside of its session (a spawned process that ended). */
void fleet_note(struct fleet *f, const char *group, uint32_t rank, const char *what);

/* ---- numbers ---- */

/* Why a rank had to join again: how its session before that ended. */
enum fleet_restart {
    FLEET_RESTART_LOST,        /* the stream ended: the process died, or the connection */
    FLEET_RESTART_RECONNECTED, /* the same process opened another stream */
    FLEET_RESTART_REPLACED,    /* another process waited for the rank */
    FLEET_RESTART_SILENT,      /* deadlines.lease */
    FLEET_RESTART_SLOW,        /* deadlines.hello: the weights were not loaded in time */
    FLEET_RESTART_PROTOCOL,    /* it sent what it must not */
    FLEET_RESTART_DRAINED,
    FLEET_RESTARTS,
};

/* Since the coordinator started. */
uint64_t fleet_restarts(const struct fleet *f, enum fleet_restart reason);
/* What ranks said about epochs that were over, and was dropped. */
uint64_t fleet_n_fenced(const struct fleet *f);

/* How long it took until the group was ready, the last time; 0 = it never was. */
struct fleet_ready_times {
    int64_t load_ns;  /* of its slowest rank, from the first word to the weights in memory */
    int64_t join_ns;  /* from the grants to the last rank's known answer */
    int64_t total_ns; /* from the end of the epoch before, or since the group is known */
};

void fleet_ready_times(const struct fleet *f, uint32_t group, struct fleet_ready_times *ret);

/* What the rank's process said last, and when it was heard; NULL: nobody has the rank. */
const struct wire_heartbeat *fleet_heartbeat(const struct fleet *f, uint32_t group, uint32_t rank,
                                             int64_t *ret_heard_ns);

/* ---- status ---- */

struct fleet_group_status {
    struct wire_group_status group; /* what is known here; the rest is zero */
    struct wire_rank_status ranks[CONFIG_MAX_GROUP_RANKS];
    uint32_t stage_layers[CONFIG_MAX_STAGES];
};

/* The strings live until the next call of any fleet function; `ret` must not move. */
void fleet_status(const struct fleet *f, uint32_t group, int64_t now_ns,
                  struct fleet_group_status *ret);

#endif
