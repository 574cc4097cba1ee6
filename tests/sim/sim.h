/* sim.h: a whole cluster in one thread: the production coordinator and workers (their cores), the
 * simulated transport (proto/rpc/rpc_sim.h), simulated engine threads (runner_sim.c) over the fake
 * device, clients that check what they get, and faults. docs/simulator.md says what is checked.
 */
#ifndef GLMD_TESTS_SIM_SIM_H
#define GLMD_TESTS_SIM_SIM_H

#include "base/clock.h"
#include "base/config.h"
#include "coordinator/admit.h"
#include "coordinator/epoch.h"
#include "model/model_dir.h"
#include "proto/rpc/rpc_sim.h"
#include "worker/engine/fake.h"
#include "worker/identity.h"
#include "world.h"

enum {
    SIM_MAX_GROUPS = 3,
    SIM_MAX_MACHINES = 24,
    SIM_MAX_LOSSES = 256,
    SIM_PROMPTS = 4,
    SIM_FAMILIAR = 2,
    SIM_PROMPT_TOKENS = 320,
    SIM_SCANNED = 16, /* waiting requests that the scheduler looks at */
    /* What is generated. Seeds that are kept say which one they belong to: what the first one draws
     * stays as it is, whatever newer ones draw besides. */
    SIM_GENERATOR_FIRST = 1,
    SIM_GENERATOR_KEYS = 3, /* limits of keys, from a file */
    SIM_GENERATOR = 3
};

#define SIM_OPERATOR_KEY "operators-secret"

/* The scheduler's patience of two seconds, and what may pass until it looks again. */
#define SIM_PATIENCE_NS (2500 * NSEC_PER_MSEC)

struct sim;
struct sched;
struct sim_coordinator;
struct sim_worker;
struct sim_client;
struct sim_comm;
struct sim_operation;

/* Opened once per program, shared by all runs. */
struct sim_model {
    struct model_dir *dir;
    struct model_dir *causal; /* the same architecture with the other switch */
    struct tokenizer *tokenizer;
};

/* What a seed decides before anything runs. */
struct sim_plan {
    uint32_t generator;
    bool causal;     /* the model sees what is behind a token only */
    bool familiar;   /* clients ask with what was asked before */
    uint32_t n_keys; /* names that clients give as their authorization; 0 = none do */
    bool calm;       /* no faults */
    uint32_t n_groups;
    bool one_host; /* ranks share memory; otherwise TCP */
    const char *device;
    struct fake_params fake;
    uint32_t n_requests;
    int64_t work_ns; /* requests arrive and faults happen within this time */
    uint32_t n_faults;
    uint32_t max_prompt, max_new;
    bool chatty; /* long streams and slow readers */
};

/* One copy of the model, as its ranks say it. */
struct sim_group {
    char name[16];
    uint32_t tp_size, n_stages;
    uint32_t first_machine, n_ranks;
    struct plan_limits limits;
    struct config config; /* of its ranks */
    int64_t start_ns;     /* joins so long after the start */
    /* as the scheduler has shown it */
    uint64_t epoch; /* 0 = not attached */
    uint64_t last_epoch;
};

/* A place where one rank runs; its processes come and go. */
struct sim_machine {
    struct sim *sim;
    struct sim_group *group;
    uint32_t number;           /* of the machine */
    uint32_t rank;             /* in its group */
    int64_t away_until;        /* not started before: its group has left */
    struct sim_worker *worker; /* NULL: down */
    uint32_t n_starts;
    double slowness; /* of its steps; 1 = as the device says */
    bool fail_next_step, corrupt_next_step;
    int64_t hang_next_step_ns; /* 0 = does not */
    int64_t latency_min, latency_max;
};

struct sim {
    struct world world;
    struct sim_plan plan;
    const struct sim_model *model;
    struct model_dir *model_dir; /* one of its two */
    struct config config;        /* the coordinator's */
    struct fake_config fake;
    uint64_t known_answer;
    struct rpc_sim *net;

    /* the coordinator; epochs survive its crashes */
    struct sim_coordinator *coordinator; /* NULL: down */
    struct epoch_store epochs;
    uint32_t n_coordinators;
    bool closing; /* nothing is started again */

    struct sim_group groups[SIM_MAX_GROUPS];
    struct sim_machine machines[SIM_MAX_MACHINES];
    uint32_t n_machines;
    struct sim_comm *comms;
    struct sim_worker *workers; /* every process that ever was */
    struct sim_coordinator *coordinators;

    struct sim_client *client;
    struct sim_operation *operations;
    struct sim_tenants *tenants;
    struct sim_keys *keys; /* NULL: no file of keys is in force */
    /* prompts that come again, whole or in their beginnings */
    struct {
        int32_t ids[SIM_PROMPT_TOKENS];
        uint32_t n;
    } prompts[SIM_PROMPTS], familiar[SIM_FAMILIAR];
    struct admit admit; /* what the coordinator would admit */

    /* what errors are told by: allowed or not */
    int64_t away_ns;     /* the coordinator was last away or draining; INT64_MAX = it is */
    int64_t no_group_ns; /* no group served, likewise */
    int64_t losses[SIM_MAX_LOSSES]; /* when the last ready groups were lost, a ring */
    uint32_t n_losses;
    bool serving;
    int64_t last_fault_ns;     /* end of the last fault so far */
    int64_t last_net_fault_ns; /* of those, that breaks or delays connections */
    int64_t last_full_ns;      /* the queue was full, or the server */
    int64_t last_progress_ns;
    uint64_t n_steps_seen;

    /* counts, for the summary */
    uint64_t n_ok, n_errors, n_refused, n_cancelled, n_tokens, n_steps, n_faults, n_epochs;
    uint64_t n_hits, n_preempted, n_resumed; /* of the last coordinator */
};

struct sim_result {
    double virtual_seconds;
    uint64_t trace_hash, n_events;
    uint64_t n_requests, n_ok, n_tokens, n_steps, n_faults, n_epochs;
    uint64_t n_hits, n_preempted, n_resumed;
};
/* Runs one seed from nothing to nothing; ends the program when a check fails. */
void sim_run(uint64_t seed, uint32_t generator, const struct sim_model *model, FILE *trace,
             struct sim_result *ret);

/* setup.c: what the seed decides. */
void sim_make_plan(struct sim *s);

/* sim_coordinator.c */
void sim_coordinator_start(struct sim *s);
void sim_coordinator_crash(struct sim *s, int64_t notice_ns);
void sim_coordinator_drain(struct sim *s);
struct process *sim_coordinator_process(const struct sim *s); /* NULL when down */
struct rpc_sim_host *sim_coordinator_host(const struct sim *s);
struct sched *sim_scheduler(const struct sim *s);        /* NULL when down */
struct fleet *sim_fleet(const struct sim *s);            /* likewise */
const struct coordinator *sim_core(const struct sim *s); /* likewise */
bool sim_coordinator_stopping(const struct sim *s);
void sim_coordinators_free(struct sim *s);

/* sim_worker.c */
void sim_worker_start(struct sim_machine *m);
void sim_worker_crash(struct sim_machine *m, int64_t notice_ns, int64_t restart_ns);
void sim_worker_drain(struct sim_machine *m);
struct process *sim_worker_process(struct sim_worker *w);
struct rpc_sim_host *sim_worker_host(struct sim_worker *w);
struct sim_machine *sim_worker_machine(struct sim_worker *w);
struct sim *sim_worker_sim(struct sim_worker *w);
void sim_workers_free(struct sim *s);

/* runner_sim.c */
void sim_runner_die(struct sim_worker *w); /* its process was killed */
void sim_comms_free(struct sim *s);

/* clients.c */
void sim_clients_start(struct sim *s);
bool sim_clients_done(const struct sim *s);
void sim_clients_break(struct sim *s);
uint32_t sim_clients_open(const struct sim *s); /* calls under way */
struct process *sim_clients_process(const struct sim *s);
struct rpc_channel *sim_clients_channel(const struct sim *s);
struct sim_request;
/* All that there are, by number; they come one after the other. */
struct sim_request *const *sim_clients_requests(const struct sim *s, uint32_t *ret_n);
/* What the scheduler must know of a request; false: there is no such request. */
struct sim_origin {
    uint64_t tenant;
    int32_t priority;
    int64_t deadline_ns; /* relative, 0 = none */
};
/* How long its scheduler's request `id` has been paused, as far as it was looked at. */
int64_t sim_clients_paused_ns(struct sim *s, uint32_t number, uint64_t id, bool is_paused);
bool sim_clients_origin(const struct sim *s, uint32_t number, struct sim_origin *ret);
void sim_clients_note_abort(struct sim *s, uint32_t number); /* the request may end CANCELLED */
void sim_clients_stop(struct sim *s);
void sim_clients_free(struct sim *s);

/* operator.c */
void sim_operator_start(struct sim *s);
void sim_operator_free(struct sim *s);

/* faults.c */
void sim_faults_start(struct sim *s);
/* A fault that lasts until then: errors around it are allowed. */
void sim_note_fault(struct sim *s, int64_t until_ns);

/* checks.c */
void sim_check(struct sim *s);           /* after every event of the coordinator */
void sim_check_deadlines(struct sim *s); /* after its ticks */
void sim_check_health(struct sim *s, bool serving);
void sim_note_away(struct sim *s, bool away); /* the coordinator cannot be reached, or drains */
void sim_check_end(struct sim *s);            /* drained, before the coordinator goes */
/* check_tenants.c: every event of the coordinator: whose a request is, whose context it sees, whose
 * turn it is. */
void sim_tenants_start(struct sim *s);
void sim_check_tenants(struct sim *s, const struct sched *d);

/* keys.c: a file of keys, perhaps; what they allow (the rest: clients.h). */
void sim_keys_start(struct sim *s); /* before the coordinator */
void sim_keys_free(struct sim *s);
void sim_check_keys(struct sim *s, const struct sched *d); /* after every event of it */

/* check_metrics.c */
void sim_check_metrics(struct sim *s, const struct coordinator *c);
void sim_tenants_free(struct sim *s);
/* Groups that were lost from `from` to now. */
uint32_t sim_count_losses(const struct sim *s, int64_t from_ns);
bool sim_all_ready(const struct sim *s); /* every group serves */
/* Longest time until a healthy cluster serves again after the last fault. */
int64_t sim_recovery_ns(const struct sim *s);

#endif
