/* rpc_sim_impl.h: shared by rpc_sim.c (hosts, servers, channels), rpc_sim_call.c (calls) and
 * rpc_sim_open.c (how they begin). */
#ifndef GLMD_PROTO_RPC_RPC_SIM_IMPL_H
#define GLMD_PROTO_RPC_RPC_SIM_IMPL_H

#include "base/clock.h"
#include "proto/rpc/rpc_sim.h"

/* From a send to its event. */
#define SIM_SEND_MIN_NS (1 * NSEC_PER_USEC)
#define SIM_SEND_MAX_NS (20 * NSEC_PER_USEC)

enum {
    SIM_DEFAULT_MESSAGE_BYTES = 4 << 20,
    SIM_MAX_QUEUED_BYTES = 64 << 20,
    SIM_CHUNK_OVERHEAD = 256, /* counted per queued message, as the real one does */
    SIM_MAX_STATUS_BYTES = 1024,
    SIM_DEFAULT_CALLS = 1024,
    SIM_DEFAULT_WINDOW = 65536,
};

struct rpc_sim {
    const struct rpc_sim_ops *ops;
    void *context;
    struct rpc_sim_host *hosts; /* owned, newest first */
    size_t n_messages;
    int next_port;
};

struct rpc_sim_host {
    struct rpc_sim *net;
    struct rpc_sim_host *next;
    char name[64];
    void *owner;
    bool dead;
    int64_t latency_min, latency_max, blocked_until;
    size_t window;
    /* owned */
    struct rpc_runtime *runtimes;
    struct rpc_server *servers;
    struct rpc_channel *channels;
    struct rpc_call *calls; /* in order of opening */
    struct rpc_call *last_call;
    size_t n_calls;
};

struct rpc_runtime {
    struct rpc_sim_host *host;
    struct rpc_runtime *next;
    bool stopping;
    void (*on_stopped)(void *context);
    void *stopped_context;
};

enum { SIM_MAX_METHODS = 32 };

struct rpc_server {
    struct rpc_sim_host *host;
    struct rpc_runtime *runtime;
    struct rpc_server *next;
    char address[300]; /* "" = does not listen */
    const struct rpc_method *methods[SIM_MAX_METHODS];
    size_t n_methods;
    size_t max_message_bytes, max_calls;
    size_t n_calls;
    size_t n_own_calls[SIM_MAX_METHODS]; /* of those, per method */
    bool started, stopping, stop_posted;
    void (*on_stopped)(void *context);
    void *stopped_context;
};

struct rpc_channel {
    struct rpc_sim_host *host;
    struct rpc_runtime *runtime;
    struct rpc_channel *next;
    char target[300];
    char authorization[160]; /* "Bearer KEY"; "" = none */
    size_t max_message_bytes;
    bool closing;
    size_t n_calls;
};

enum message_kind { SIM_DATA, SIM_HALF_CLOSE, SIM_STATUS };

struct message {
    struct message *next;
    enum message_kind kind;
    enum rpc_status status;
    int64_t arrive_ns; /* once it is under way */
    size_t size;
    size_t n_details; /* STATUS: bytes of details behind the text */
    uint8_t data[];   /* STATUS: the text, NUL-terminated, [size]; then the details */
};

struct message_list {
    struct message *first, *last;
    size_t bytes, n;
};

/* One end of a call. The two ends know each other until one of them is over. */
struct rpc_call {
    struct rpc_sim_host *host;
    struct rpc_server *server;   /* or */
    int method;                  /* of the server */
    struct rpc_channel *channel; /* one of the two */
    struct rpc_call *previous, *next;
    struct rpc_call *peer; /* NULL: not accepted yet, or gone */
    const struct rpc_callbacks *callbacks;
    void *user;
    char path[128], peer_name[80];
    char header_key[32], header_value[160]; /* "" = none */
    int64_t opened_ns, deadline_ns;         /* 0 = none */
    size_t max_message_bytes;

    struct message_list queue; /* not sent yet */
    struct message_list inbox; /* under way to here, or here and not read */
    int64_t last_arrival;      /* of the inbox */
    unsigned n_events;         /* posted and not run: the object stays until they have */

    bool wait_for_ready;
    bool lost;    /* the peer is gone and nobody has noticed: bytes go nowhere */
    bool sending; /* a send event is posted */
    bool paused;
    bool half_closing; /* client */
    bool finishing;    /* server */
    bool sent_final;
    bool heard_half_close;
    bool failed; /* ended from here, or broken: nothing but on_done follows */
    bool ending; /* the event of the end is posted */
    bool ended;  /* on_done has run */
    enum rpc_status end_status;
    char end_message[SIM_MAX_STATUS_BYTES + 1];
    uint8_t
        *details; /* owned, [n_details]: server: to send with the status; client: came with it */
    size_t n_details;
};

/* rpc_sim.c */
void host_post(struct rpc_sim_host *h, int64_t delay_ns, void (*run)(void *arg), void *arg);
/* A draw of the way between two hosts, blocked times included. */
int64_t net_latency(struct rpc_sim_host *a, struct rpc_sim_host *b);
int64_t net_random(struct rpc_sim *n, int64_t min, int64_t max);
struct rpc_server *net_find_server(struct rpc_sim *n, const char *target);
/* The method's index, or -1. */
int server_find_method(const struct rpc_server *s, const char *path);
/* Whether one more call of it may come in. */
bool server_has_room(const struct rpc_server *s, int method);
void server_call_gone(struct rpc_server *s, int method);
void channel_call_gone(struct rpc_channel *ch);

/* rpc_sim_call.c */
/* Ends this side with a status from an event; tells the peer nothing. */
void call_end(struct rpc_call *c, int64_t delay_ns, enum rpc_status status, const char *message);
/* The server gives up a call (grace over, cancelled). */
void call_fail(struct rpc_call *c, enum rpc_status status, const char *message);
/* The connection under a call is gone: both ends learn of it. */
void call_break(struct rpc_call *c);
/* This end's process dies: on_done now. */
void call_kill(struct rpc_call *c, int64_t notice_ns);
void call_discard(struct rpc_call *c); /* memory only */
/* The newest of the host's. */
struct rpc_call *call_new(struct rpc_sim_host *h);
/* An event of the call on `h`; each begins with call_event_begin, which gives the call that it was
 * posted for, and ends with call_event_end, after which the call may be gone. */
void call_post(struct rpc_call *c, struct rpc_sim_host *h, int64_t delay_ns,
               void (*run)(void *arg));
struct rpc_call *call_event_begin(void *arg);
void call_event_end(struct rpc_call *c);
void call_on_deadline(void *arg); /* an event */
/* A status under way to this end. */
void call_push_status(struct rpc_call *to, enum rpc_status status, const char *message,
                      int64_t latency);
/* What is queued is sent after the delay. */
void call_kick(struct rpc_call *c, int64_t delay_ns);

#endif
