/* coordinator.h: the coordinator without a process around it: fronts, admission, scheduler, fleet,
 * streams. It is driven by the transport's callbacks and by the calls below; daemon.c gives it a
 * loop, signals and a service manager, and tests/sim a virtual clock and a simulated transport.
 *
 *   front_rpc ...  client calls  -> front: admit -> request -+
 *                                                            v
 *   coordinator_pump:  sched_plan -> fleet_send_step ... fleet result -> sched_commit
 *                                                            |
 *   stream         messages  <- front: touched requests  <---+
 *
 *   init -> listen -> tick, tick, ... [drain -> ops->drained] -> stop -> on_stopped -> deinit
 *
 * One thread does everything; the transport's own threads hand over through a mailbox (proto/rpc).
 */
#ifndef GLMD_COORDINATOR_COORDINATOR_H
#define GLMD_COORDINATOR_COORDINATOR_H

#include <stdatomic.h>

#include "coordinator/admit.h"
#include "coordinator/auth.h"
#include "coordinator/epoch.h"
#include "coordinator/fleet.h"
#include "coordinator/history.h"
#include "coordinator/loop_meter.h"
#include "coordinator/metrics.h"
#include "coordinator/sched.h"
#include "coordinator/timeline.h"
#include "model/model_dir.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_cluster.h"

/* Tokens per second over the last seconds. */
struct rate {
    uint64_t last;
    double per_second;
};

struct front_call;
struct front_job;

struct coordinator_ops { /* what the driver is told; required, but for `work` */
    /* Whether requests are served, at the start and whenever it may have changed. */
    void (*health)(void *context, bool serving);
    /* After coordinator_drain: nothing is left to finish, or the time for it is over. Once. */
    void (*drained)(void *context);
    /* Calls front_job_run(j) on another thread, and then front_job_end(j) on the loop's; not before
     * this has returned. False: it cannot for now. NULL: nothing runs beside the loop. */
    bool (*work)(void *context, struct front_job *j);
};

struct coordinator_config { /* borrowed, as everything in it */
    const struct config *config;
    const struct model_dir *model;
    const struct tokenizer *tokenizer;
    struct epoch_store *epochs;
    const struct coordinator_ops *ops;
    void *context;
    const char *rank_listen; /* "unix:PATH" where spawned ranks dial; NULL: as all others do */
};

struct coordinator { /* must not move */
    /* borrowed */
    const struct config *config;
    const struct model_dir *model;
    const struct tokenizer *tokenizer;
    struct epoch_store *epochs;
    const struct coordinator_ops *ops;
    void *ops_context;
    const char *rank_listen;

    /* owned */
    struct admit admit;
    struct auth *auth;
    struct sched *sched;
    struct fleet *fleet;
    struct timeline *timeline;
    struct rpc_server *server, *worker_server; /* the same unless worker_listen is set */
    struct rpc_server *admin_server;           /* NULL: operators use `server` */
    struct rpc_method methods[32], admin_methods[32];
    char model_name[65];
    char id_prefix[16]; /* of requests without an id of their own, new with every start */
    char address[300];  /* where clients of this host find us */
    char dial[300];     /* and where spawned ranks do */
    int port, admin_port;

    /* state */
    bool draining, told_drained, stopping, pumping, pump_again;
    int64_t drain_end_ns;
    unsigned n_servers;       /* that have not stopped yet */
    unsigned n_jobs;          /* of front_job.h, that have not ended */
    atomic_bool jobs_dropped; /* those that have not begun need not */
    void (*on_stopped)(void *context);
    void *stopped_context;
    int64_t started_ns;
    double started_at; /* seconds since 1970; stays, so that only a restart changes it */
    struct loop_meter meter;
    uint64_t n_told; /* times that a request had something new */
    struct wire_request_counters counters;
    struct coordinator_metrics metrics;
    struct rate prefill_rates[SCHED_MAX_GROUPS], decode_rates[SCHED_MAX_GROUPS];
    int64_t rates_ns;
    struct history history;
    struct front_call *calls; /* all open client calls with a request */
};

/* Limits that the model cannot have, or no memory: nothing to undo. */
int coordinator_init(struct coordinator *c, const struct coordinator_config *config, struct err *e);
void coordinator_deinit(struct coordinator *c); /* after on_stopped, or when nothing listens */

/* Makes the servers and listens; c->port, address and dial are known then. On failure call
 * coordinator_stop. */
int coordinator_listen(struct coordinator *c, struct rpc_runtime *runtime, struct err *e);

/* Leases, deadlines, slow readers; call every coordinator_tick_ns. */
void coordinator_tick(struct coordinator *c, int64_t now_ns);
int64_t coordinator_tick_ns(const struct coordinator *c);

/* No new requests; those that run may end until deadlines.drain is over. */
void coordinator_drain(struct coordinator *c, int64_t now_ns);

/* Takes a group out of service: it finishes what runs until the deadline and takes nothing new,
 * then its ranks are told to leave. Returns how many requests it is to finish. */
uint32_t coordinator_drain_group(struct coordinator *c, uint32_t group, int64_t deadline_ns);

/* Ends every request and session now and takes the servers apart within grace_ns; long texts that
 * are read meanwhile are read to their end, the others no more. on_stopped may run before this
 * returns, when there is no server. */
void coordinator_stop(struct coordinator *c, int64_t grace_ns, void (*on_stopped)(void *context),
                      void *context);

/* A server or a job has ended: on_stopped, when it was the last one of a coordinator that stops. */
void coordinator_part_stopped(struct coordinator *c);

/* Streams what is new, plans and sends the next steps. Call after anything has changed. */
void coordinator_pump(struct coordinator *c);

/* front_rpc.c */
extern const char *const front_services[];
extern const size_t front_n_services;
/* The methods of clients, and of operators when `admin`; context c; returns how many. */
size_t front_methods(struct coordinator *c, bool admin, struct rpc_method *ret);
/* Whether the caller may do this; if not, the call is finished. Whoever can open the operators'
 * Unix socket needs no key. */
bool front_rpc_allowed(struct coordinator *c, struct rpc_call *rpc, enum auth_need need);

/* metrics_text.c: everything that is counted, in Prometheus' text format. -ENOMEM, or -EFBIG when
 * out->limit is too small; METRICS_MAX_BYTES are enough for two thousand ranks. Takes about a
 * microsecond for every line. */
enum { METRICS_MAX_BYTES = 4000000 };
int coordinator_metrics(const struct coordinator *c, struct buf *out);
void metrics_on_call(struct rpc_call *c, void *coordinator); /* Cluster.Metrics */

/* why.c: Cluster.Why */
void why_on_call(struct rpc_call *c, void *coordinator);

/* cluster.c: Cluster.Drain and Cluster.Abort */
void cluster_on_drain(struct rpc_call *c, void *coordinator);
void cluster_on_abort(struct rpc_call *c, void *coordinator);

/* status.c: Cluster.Status and ListModels */
typedef int status_take(void *context, const struct wire_status_response *response);
/* Gives the state of everything to `take`, valid during the call; returns what it returns, or
 * -ENOMEM. */
int status_collect(const struct coordinator *c, status_take *take, void *context);
void status_on_call(struct rpc_call *c, void *coordinator);
void status_model(const struct coordinator *c, struct wire_model_info *ret);
void status_tick(struct coordinator *c, int64_t now_ns);

#endif
