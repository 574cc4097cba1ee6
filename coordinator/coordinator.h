/* coordinator.h: glmd-coordinator, the daemon.
 *
 * One loop thread does everything; gRPC's own threads hand over through a mailbox (proto/rpc).
 *
 *   front_rpc  client calls  -> admit -> request -+
 *                                                 v
 *   coordinator_pump:  sched_plan -> fleet_send_step ... fleet result -> sched_commit
 *                                                 |
 *   stream     messages  <- touched requests  <---+
 */
#ifndef GLMD_COORDINATOR_COORDINATOR_H
#define GLMD_COORDINATOR_COORDINATOR_H

#include <uv.h>

#include "coordinator/admit.h"
#include "coordinator/epoch.h"
#include "coordinator/fleet.h"
#include "coordinator/options.h"
#include "coordinator/sched.h"
#include "coordinator/spawn.h"
#include "model/model_dir.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_cluster.h"

enum coordinator_exit {
    COORDINATOR_EXIT_OK = 0,
    COORDINATOR_EXIT_CONFIG = EXIT_CONFIG, /* configuration or command line */
    COORDINATOR_EXIT_MODEL = 65,           /* model directory missing or damaged */
    COORDINATOR_EXIT_UNAVAILABLE = 69,     /* an address or the state directory is taken */
    COORDINATOR_EXIT_INTERNAL = 70,
    COORDINATOR_EXIT_KILLED = 143, /* a second signal: not everything was finished */
};

/* Tokens per second over the last seconds. */
struct rate {
    uint64_t last;
    double per_second;
};

struct front_call;

struct coordinator {
    const struct options *options; /* borrowed */
    const struct config *config;

    /* owned */
    struct model_dir *model;
    struct tokenizer *tokenizer;
    struct admit admit;
    struct epoch_store epochs;
    struct sched *sched;
    struct fleet *fleet;
    struct spawn *spawn;
    uv_loop_t loop;
    uv_timer_t tick, drain;
    uv_signal_t sigterm, sigint;
    struct rpc_runtime *runtime;
    struct rpc_server *server, *worker_server; /* the same unless worker_listen is set */
    struct rpc_method methods[16];
    char model_name[65];
    char address[300]; /* where clients of this host find us */
    char dial[300];    /* and where spawned ranks do */

    /* state */
    bool listening, said_ready, draining, stopping, pumping, pump_again;
    int exit_code;
    int port;
    unsigned n_servers; /* that have not stopped yet */
    int64_t started_ns;
    struct wire_request_counters counters;
    struct rate prefill_rate, decode_rate;
    int64_t rates_ns;
    struct front_call *calls; /* all open client calls with a request */
};

/* Runs until a signal or a failure ends it; returns the exit code. */
int coordinator_run(const struct options *o);

/* Streams what is new, plans and sends the next steps. Call after anything has changed. */
void coordinator_pump(struct coordinator *c);

/* front_rpc.c */
extern const char *const front_services[];
extern const size_t front_n_services;
/* The client methods, context c; returns how many. */
size_t front_methods(struct coordinator *c, struct rpc_method *ret);
/* A request has something new, or has ended. */
void front_touched(struct coordinator *c, struct request *r);
/* Streams that nobody reads: cancelled after deadlines.slow_reader. */
void front_tick(struct coordinator *c, int64_t now_ns);
/* Every request that has not ended ends now. */
void front_end_all(struct coordinator *c, enum rpc_status status, const char *why);

/* status.c: Cluster.Status and ListModels */
void status_on_call(struct rpc_call *c, void *coordinator);
void status_model(const struct coordinator *c, struct wire_model_info *ret);
void status_tick(struct coordinator *c, int64_t now_ns);

#endif
