/* fleet_internal.h: the state of the fleet, shared by fleet.c (the table of groups), fleet_group.c
 * (a group and its epochs), fleet_session.c (a rank's stream) and fleet_status.c. */
#ifndef GLMD_COORDINATOR_FLEET_INTERNAL_H
#define GLMD_COORDINATOR_FLEET_INTERNAL_H

#include "base/log.h"
#include "coordinator/dispatch.h"
#include "coordinator/fleet.h"
#include "proto/rpc/wire_worker.h"

enum { WHY_BYTES = ERR_MESSAGE_BYTES, NAME_BYTES = 128 };

/* One Worker.Session stream. */
struct rank_session {
    struct fleet *fleet;
    struct group *group;   /* NULL before a Hello that was taken */
    struct rpc_call *call; /* NULL once it was finished or cancelled from here */
    struct rank_session *prev, *next;
    int64_t opened_ns, heard_ns, leased_ns;
    int64_t loaded_ns;
    enum fleet_restart end; /* what the rank's next session is told as the reason */
    bool loaded, draining, ended;
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
    char collectives[512];
    /* Heartbeat, StepDone */
    struct wire_heartbeat beat;
    double compute_ns_avg;
};

struct rank {
    struct rank_session *current; /* holds the rank */
    struct rank_session *standby; /* another process, waits */
    uint32_t n_sessions;
    uint64_t epoch;                        /* the last that its `current` was granted; 0 = none */
    enum fleet_restart end;                /* of the last one */
    uint8_t instance[WIRE_INSTANCE_BYTES]; /* of the process that had it last */
    char last_error[WHY_BYTES];
};

struct stage {
    uint32_t layer_begin, layer_end; /* 0, 0: no rank has said it yet */
};

struct shape {
    uint32_t tp_size, n_stages;
};

enum group_state { GROUP_FORMING, GROUP_JOINING, GROUP_READY };

struct group {
    struct fleet *fleet;
    uint32_t number;
    char name[CONFIG_MAX_GROUP_NAME + 1];
    bool configured; /* to be spawned here: its shape is given, and it is never forgotten */
    uint32_t tp_size, n_stages, n_ranks;
    struct rank *ranks;   /* owned, [n_ranks] */
    struct stage *stages; /* owned, [n_stages] */
    uint32_t n_sessions;  /* with a Hello that was taken */
    int64_t empty_ns;     /* no session since */
    enum group_state state;
    bool was_ready;
    bool draining, leaving; /* leaving: its ranks were told */
    int64_t drain_end_ns;
    uint64_t epoch; /* 0 = none */
    struct plan_limits limits;
    int64_t ready_ns;   /* since when the epoch is ready */
    int64_t granted_ns; /* when the epoch began */
    int64_t known_ns;   /* when the group was made */
    struct fleet_ready_times times;
    int64_t down_ns;      /* end of the last epoch */
    int64_t next_form_ns; /* not before */
    int64_t backoff_ns;
    int64_t join_deadline_ns;
    int64_t failure_ns; /* a rank blames a peer: whose fault it was may show until then */
    char failure[WHY_BYTES];
    char last_error[WHY_BYTES];
    struct dispatch dispatch;
};

struct fleet {
    struct fleet_config config;
    struct group **groups; /* owned, [max_groups]; NULL = free number */
    uint32_t max_groups;
    uint32_t n_ranks;              /* of all groups */
    uint64_t n_fenced;             /* messages of epochs that are over, dropped */
    struct rank_session *sessions; /* all of them, owned until on_done */
    uint32_t n_sessions;
    bool stopping;
    struct buf packed; /* scratch of outgoing messages */
    uint64_t restarts[FLEET_RESTARTS];
};

/* The fields of a log event about a group, or about a rank's session. */
#define GROUP_LOG(g) LOG(.group = (g)->name, .epoch = (g)->epoch)
#define RANK_LOG(s)                                                                                \
    LOG(.group = (s)->group ? (s)->group->name : NULL, .rank = &(s)->rank, .epoch = (s)->granted)

/* fleet.c */
bool fleet_pack(struct fleet *f, const struct wire_coordinator_message *m); /* into f->packed */
void fleet_send(struct rank_session *s, const struct wire_coordinator_message *m);
struct group *fleet_by_name(const struct fleet *f, const char *name);
/* The group that a rank belongs to: the one of this name, made if need be. -EINVAL: it has another
 * shape; -ENOSPC: one too many. The message says what was expected and found. */
int fleet_join_group(struct fleet *f, const struct wire_hello *h, struct group **ret,
                     struct err *e);

/* fleet_group.c */
int group_new(struct fleet *f, const char *name, struct shape shape, struct group **ret);
void group_free(struct group *g);
/* The current epoch is over, if there is one. Clients read the reason: no hosts or paths. */
void group_down(struct group *g, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A rank failed because of another one: waits a moment for the cause to show. `why` as above. */
void group_blame_peer(struct group *g, const char *why, int64_t now_ns);
void group_rank_error(struct group *g, uint32_t rank, const char *what);
/* Everything that may have changed by a session's message. */
void group_joined(struct group *g, struct rank_session *s);
void group_answer(struct group *g, struct rank_session *s, struct wire_worker_message *m,
                  int64_t now_ns);
void group_leave(struct group *g, const char *why);
void group_tick(struct group *g, int64_t now_ns);
bool group_in_epoch(const struct rank_session *s); /* of its group's current epoch */

/* fleet_session.c */
/* Ends a stream from this side. */
void rank_session_close(struct rank_session *s, enum rpc_status status, const char *why);
void rank_session_tick(struct rank_session *s, int64_t now_ns);
void rank_session_tell_drain(struct rank_session *s, const char *why);
/* The rank was granted: whoever waits for it and had it in an earlier epoch is of the past. */
void rank_session_fence_standby(struct rank *k);

#endif
