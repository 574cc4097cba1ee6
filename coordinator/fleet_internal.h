/* fleet_internal.h: the state of the fleet, shared by fleet.c and fleet_session.c. */
#ifndef GLMD_COORDINATOR_FLEET_INTERNAL_H
#define GLMD_COORDINATOR_FLEET_INTERNAL_H

#include "coordinator/dispatch.h"
#include "coordinator/fleet.h"
#include "proto/rpc/wire_worker.h"

enum { WHY_BYTES = ERR_MESSAGE_BYTES, NAME_BYTES = 128 };

/* One Worker.Session stream. */
struct rank_session {
    struct fleet *fleet;
    struct rpc_call *call; /* NULL once it was finished or cancelled from here */
    struct rank_session *prev, *next;
    int64_t opened_ns, heard_ns, leased_ns;
    bool hello, loaded, draining, ended;
    /* Hello */
    uint32_t rank;
    uint8_t instance[WIRE_INSTANCE_BYTES];
    uint64_t last_epoch;
    uint32_t pid;
    char host[NAME_BYTES], device[64], shm_domain[NAME_BYTES], address[NAME_BYTES + 128];
    /* Loaded */
    struct plan_limits limits;
    struct wire_memory memory;
    char description[256];
    /* the epoch */
    uint64_t granted; /* 0 = none */
    bool ready;
    uint64_t known_answer;
    /* Heartbeat, StepDone */
    struct wire_heartbeat beat;
    double compute_ns_avg;
};

struct rank {
    struct rank_session *current; /* holds the rank */
    struct rank_session *standby; /* another process, waits */
    uint32_t n_sessions;
    char last_error[WHY_BYTES];
};

enum fleet_state { FLEET_FORMING, FLEET_JOINING, FLEET_READY };

struct fleet {
    struct fleet_config config;
    uint32_t n_ranks;
    struct rank ranks[DISPATCH_MAX_RANKS];
    struct rank_session *sessions; /* all of them, owned until on_done */
    uint32_t n_sessions;
    enum fleet_state state;
    bool stopping, was_ready;
    uint64_t epoch;
    struct plan_limits limits;
    int64_t down_ns;      /* end of the last epoch */
    int64_t next_form_ns; /* not before */
    int64_t backoff_ns;
    int64_t join_deadline_ns;
    int64_t failure_ns; /* a rank blames a peer: whose fault it was may show until then */
    char failure[WHY_BYTES];
    char last_error[WHY_BYTES];
    struct dispatch dispatch;
    struct buf packed; /* scratch of outgoing messages */
};

/* fleet.c */
void fleet_send(struct rank_session *s, const struct wire_coordinator_message *m);
/* The current epoch is over, if there is one. Clients read the reason: no hosts or paths. */
void fleet_down(struct fleet *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A rank failed because of another one: waits a moment for the cause to show. `why` as above. */
void fleet_blame_peer(struct fleet *f, const char *why, int64_t now_ns);
void fleet_rank_error(struct fleet *f, uint32_t rank, const char *what);
/* Everything that may have changed by a session's message. */
void fleet_joined(struct fleet *f, struct rank_session *s);
void fleet_answer(struct fleet *f, struct rank_session *s, struct wire_worker_message *m,
                  int64_t now_ns);

/* fleet_session.c */
/* Ends a stream from this side. */
void session_close(struct rank_session *s, enum rpc_status status, const char *why);

#endif
