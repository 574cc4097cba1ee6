/* fleet.h: the ranks and their group.
 *
 *   ABSENT ranks dial --Hello--> checked --Loaded--> all ranks loaded: Grant (new epoch)
 *     FORMING ----------------------------------------------------------> JOINING
 *        ^                                                                   | all Ready,
 *        |   a rank is lost, fails, hangs, disagrees: the epoch is over      v same answer
 *        +---------------------------------------------------------------- READY
 *
 * Serves Worker.Session. A rank belongs to the process that holds it; a second process for the same
 * rank waits until the first is gone. Ranks with another model, layout, mode or protocol are
 * refused with the reason. Loop thread.
 */
#ifndef GLMD_COORDINATOR_FLEET_H
#define GLMD_COORDINATOR_FLEET_H

#include "base/config.h"
#include "coordinator/epoch.h"
#include "model/arch.h"
#include "proto/plan.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_cluster.h"

struct fleet; /* opaque */

struct fleet_ops {
    /* The group is ready. False: its limits cannot be used (the message was logged). */
    bool (*ready)(void *context, const struct plan_limits *limits, uint64_t epoch);
    /* All ranks agree on the result of the oldest step; valid during the call. False: it does not
     * answer its plan; `e` says why, and the group goes down. */
    bool (*result)(void *context, const struct step_result *result, struct err *e);
    /* The epoch is over; only after `ready`. */
    void (*down)(void *context, const char *why);
};

struct fleet_config {
    const struct config *config; /* borrowed, as everything here */
    const struct arch *arch;
    const char *model_digest;
    const char *scheme; /* "int4", ... */
    bool has_known_answer;
    uint64_t known_answer;
    struct epoch_store *epochs;
    const struct fleet_ops *ops;
    void *context;
};

int fleet_new(const struct fleet_config *config, struct fleet **ret);
void fleet_free(struct fleet *f); /* when no session is left */

/* For rpc_method: context = the fleet. */
void fleet_on_session(struct rpc_call *c, void *fleet);

/* Sends a step to every rank of the ready group. */
void fleet_send_step(struct fleet *f, const struct plan *p, uint32_t n_tokens, int64_t now_ns);
bool fleet_is_ready(const struct fleet *f);

/* Leases, deadlines, formation: call at least every heartbeat. */
void fleet_tick(struct fleet *f, int64_t now_ns);

/* No group is formed any more; every session ends with this reason. */
void fleet_stop(struct fleet *f, const char *why);
uint32_t fleet_n_sessions(const struct fleet *f);

/* What happened to a rank outside of its session (a spawned process that ended). */
void fleet_note(struct fleet *f, uint32_t rank, const char *what);

/* Group and ranks for Status; the strings live until the next call of any fleet function. `ranks`
 * has room for tensor_parallel entries. */
void fleet_status(const struct fleet *f, int64_t now_ns, struct wire_group_status *ret_group,
                  struct wire_rank_status *ret_ranks);

#endif
