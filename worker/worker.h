/* worker.h: one rank without a process around it: session with the coordinator, link, health,
 * progress of the engine. It is driven by the transport's callbacks and by the calls below;
 * daemon.c gives it a loop, signals and a service manager, and tests/sim a virtual clock, a
 * simulated transport and a simulated engine.
 *
 *   loop thread     everything here, session.c, link.c, health.c
 *   engine thread   opens the engine, joins groups, runs steps                        runner.c
 *
 * Orders go to the engine thread through a queue, answers come back through `post`. The loop never
 * waits for the engine thread; to get it out of a collective it aborts the comm.
 *
 *   start -> tick, answer, ... -> exit_asked -> stop -> on_stopped -> deinit
 */
#ifndef GLMD_WORKER_WORKER_H
#define GLMD_WORKER_WORKER_H

#include "model/model_dir.h"
#include "worker/health.h"
#include "worker/identity.h"
#include "worker/link.h"
#include "worker/options.h"
#include "worker/runner.h"
#include "worker/session.h"

struct worker_ops { /* all required */
    /* worker_tick is due at this time, sooner than it last said (0: at once). */
    void (*wake)(void *context, int64_t at_ns);
    /* The process must end at once, nothing can be taken apart any more. */
    void (*kill)(void *context, int code, const char *why);
    /* Engine thread: carries an answer to worker_answer on the loop thread. */
    void (*post)(void *context, struct runner_order *answer);
};

struct worker_config { /* borrowed, as everything in it */
    const struct worker_options *options;
    const struct model_dir *model;
    struct identity *identity;
    const struct worker_ops *ops;
    void *context;
};

struct worker { /* must not move */
    /* owned */
    struct runner *runner;
    struct link link;
    struct health_server health;
    struct session session;
    struct buf out;
    struct wire_loaded loaded;
    char description[256];
    /* borrowed */
    const struct worker_options *options;
    const struct model_dir *model;
    struct identity *identity;
    const struct worker_ops *ops;
    void *ops_context;
    const char *listen_addresses[1];
    uint32_t stage_layers[CONFIG_MAX_STAGES];
    struct cpus cpus; /* worker.cpus */
    /* state */
    bool exit_asked; /* for the driver: worker_stop is due, from the loop */
    int exit_code;
    bool link_open, ready_told, stopping, runner_stopped;
    void (*on_stopped)(void *context);
    int parts_left;   /* of engine thread, link, health server while stopping */
    uint64_t counter; /* of the engine thread, when it last changed */
    int64_t counter_since;
    int64_t started_ns; /* worker_start */
    int64_t stuck_ns;
    int64_t drain_end_ns; /* 0 = not draining */
    int64_t next_tick_ns;
    int64_t next_log, next_notify;
    char status[128];
};

/* Dials with the first tick. A failure is not undone: the process ends, half a transport is not
 * worth taking apart. -EINVAL: an address makes no sense. */
int worker_start(struct worker *w, const struct worker_config *config, struct rpc_runtime *rpc,
                 struct err *e);

/* Heartbeats, lease, dialling, progress. Returns the time of the next call. */
int64_t worker_tick(struct worker *w, int64_t now);

/* What the engine thread has posted; takes the order over. */
void worker_answer(struct worker *w, struct runner_order *o);

/* Finish what runs, then exit_asked. */
void worker_drain(struct worker *w, const char *why);

/* Takes everything apart; needs worker_tick and worker_answer until on_stopped. */
void worker_stop(struct worker *w, void (*on_stopped)(void *context));
void worker_deinit(struct worker *w); /* waits for the engine thread */

#endif
