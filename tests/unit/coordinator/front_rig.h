/* front_rig.h: a coordinator over the simulated transport whose driver's threads are the test's:
 * jobs (coordinator/front_job.h) are kept until the test runs them. Clients dial it, no ranks do:
 * what generates waits in the queue. */
#ifndef GLMD_TESTS_COORDINATOR_FRONT_RIG_H
#define GLMD_TESTS_COORDINATOR_FRONT_RIG_H

#include "../../sim/world.h"
#include "base/config.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_job.h"
#include "proto/rpc/rpc_sim.h"
#include "proto/rpc/status_details.h"

struct front_rig {
    struct world world;
    struct process server_process, client_process;
    struct rpc_sim *net;
    struct rpc_sim_host *server_host, *client_host;
    struct rpc_runtime *server_runtime, *client_runtime;
    struct rpc_channel *channel;
    struct config config;
    struct model_dir *model;
    struct tokenizer *tokenizer;
    struct epoch_store epochs;
    struct coordinator core;

    struct front_job *jobs[FRONT_JOB_MAX + 1]; /* that wait for a thread, oldest first */
    unsigned n_jobs, n_works;                  /* n_works: in all */
    bool has_no_thread;                        /* the next job is refused */
    unsigned n_stopped, n_runtimes_stopped;
};

/* `keys` is coordinator.keys. */
struct front_rig *front_rig_new(bool threads, const char *keys);
void front_rig_free(struct front_rig *r); /* stops it, unless it has stopped */

/* Everything that happens within this virtual time. */
void front_rig_pass(struct front_rig *r, int64_t ns);
/* The oldest job runs, on a thread that the test waits for; its end is up to front_rig_end. */
struct front_job *front_rig_run(struct front_rig *r);
void front_rig_end(struct front_rig *r, struct front_job *j);
/* Both, for every job, the ones that come meanwhile too. */
void front_rig_work(struct front_rig *r);

/* ---- clients ---- */

struct front_client {
    struct rpc_call *call; /* NULL: done */
    unsigned n_messages;
    struct buf last; /* message */
    enum rpc_status status;
    char message[1024];
    struct status_details details;
};

struct front_client *front_client_new(struct front_rig *r, const char *path, const char *key,
                                      int64_t deadline_ns);
void front_client_free(struct front_client *c);

/* A message of a method, "The river" in it where it has a text, as long as `size` (0: as it is) by
 * an unknown field, which means nothing; `id` is that of KServe's requests. */
void front_message(struct buf *ret, const char *path, const char *id, size_t size);

#endif
