/* rpc.h: the transport seam. Calls as objects with callbacks on one libuv loop; bytes in, bytes
 * out.
 *
 * Two implementations: rpc_grpc.c (gRPC core) and a simulated one for tests. Nothing outside
 * proto/rpc includes gRPC or generated code; messages are packed and unpacked by wire.h.
 *
 * Threads: gRPC's completion queue has a thread of its own; every callback arrives on the loop
 * thread, and every function below is called on the loop thread.
 *
 * Life cycle of a call, server or client side:
 *   on_call/rpc_open -> [on_message ...] -> [on_half_close] -> on_done, exactly once; the call
 * object dies when on_done returns. After on_done nothing else arrives. Sends after the peer has
 * gone are dropped. rpc_cancel may be called at any time before on_done. Back-pressure: rpc_send
 * queues; rpc_queued_bytes tells how much is unsent; on_drained fires when the queue empties. A
 * message larger than the limit fails the call with RESOURCE_EXHAUSTED.
 *
 * Callbacks run from the loop only, never from inside a function of this file. After rpc_finish or
 * rpc_cancel nothing but on_done arrives. Messages are plain: a peer that compresses them gets
 * UNIMPLEMENTED, because inflating has no bound.
 */
#ifndef GLMD_PROTO_RPC_RPC_H
#define GLMD_PROTO_RPC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct uv_loop_s;
struct rpc_runtime; /* gRPC library, completion queue and its thread, bound to a loop */
struct rpc_server;
struct rpc_channel;
struct rpc_call;

enum rpc_status { /* the codes of gRPC */
                  RPC_OK = 0,
                  RPC_CANCELLED = 1,
                  RPC_UNKNOWN = 2,
                  RPC_INVALID_ARGUMENT = 3,
                  RPC_DEADLINE_EXCEEDED = 4,
                  RPC_NOT_FOUND = 5,
                  RPC_ALREADY_EXISTS = 6,
                  RPC_PERMISSION_DENIED = 7,
                  RPC_RESOURCE_EXHAUSTED = 8,
                  RPC_FAILED_PRECONDITION = 9,
                  RPC_ABORTED = 10,
                  RPC_OUT_OF_RANGE = 11,
                  RPC_UNIMPLEMENTED = 12,
                  RPC_INTERNAL = 13,
                  RPC_UNAVAILABLE = 14,
                  RPC_DATA_LOSS = 15,
                  RPC_UNAUTHENTICATED = 16,
};
const char *rpc_status_name(enum rpc_status s); /* "INVALID_ARGUMENT" */

struct rpc_callbacks {
    void (*on_message)(struct rpc_call *c, const uint8_t *data,
                       size_t size); /* data: this call only */
    /* Server: the client has sent all it will. Not called when the call breaks. May be NULL. */
    void (*on_half_close)(struct rpc_call *c);
    void (*on_drained)(struct rpc_call *c); /* may be NULL */
    /* The end. Server: status is what was sent, or RPC_CANCELLED when the peer went away (also its
     * deadline). Client: what the server said. */
    void (*on_done)(struct rpc_call *c, enum rpc_status status, const char *message);
};

struct rpc_limits {
    size_t max_message_bytes; /* received and sent; 0 = 4 MiB, at most 64 MiB */
    size_t
        max_calls; /* server: calls at once, more are refused with RESOURCE_EXHAUSTED; 0 = 1024 */
    int64_t first_message_ns; /* server: a call that has brought no message for so long ends with
                                 DEADLINE_EXCEEDED (methods with max_calls aside); 0 = 30 s */
    int64_t unread_ns; /* server: a message or a status that the peer does not read ends the call
                          after so long, with RESOURCE_EXHAUSTED; 0 = 120 s */
};

/* NULL or "" for all certificate files: plaintext. Server: cert + key, and ca to demand client
 * certificates. Client: ca, and cert + key for mutual TLS. The files are read and checked when the
 * address is listened on or the channel made. */
struct rpc_tls {
    const char *ca_file, *cert_file, *key_file;
    const char
        *target_name; /* client: name expected in the server's certificate, NULL = the host */
};

int rpc_runtime_new(struct uv_loop_s *loop, struct rpc_runtime **ret, struct err *e);
/* After every server is shut down and every channel closed; on_stopped runs on the loop, then the
 * runtime is gone. */
void rpc_runtime_stop(struct rpc_runtime *r, void (*on_stopped)(void *context), void *context);

/* One RPC of a server. `on_call` sets callbacks and user data (rpc_set) before it returns; the
 * request of a unary or server-streaming RPC arrives as one on_message followed by on_half_close.
 */
struct rpc_method {
    const char *path; /* "/glmd.v1.Inference/Generate" */
    void (*on_call)(struct rpc_call *c, void *context);
    void *context;
    /* 0: its calls count towards the server's max_calls. Otherwise it has room of its own for so
     * many, whatever the other methods do. */
    size_t max_calls;
};

int rpc_server_new(struct rpc_runtime *r, const struct rpc_limits *limits, struct rpc_server **ret);
/* Methods may be added until start; the array is borrowed. Unknown paths: UNIMPLEMENTED. */
int rpc_server_add(struct rpc_server *s, const struct rpc_method *methods, size_t n);
/* "127.0.0.1:8130", "[::]:8130", "unix:/run/glmd/rpc.sock". Port 0 picks one (ret_port). The port
 * is not shared with other processes (no SO_REUSEPORT): -EADDRINUSE says so. */
int rpc_server_listen(struct rpc_server *s, const char *address, const struct rpc_tls *tls,
                      int *ret_port, struct err *e);
int rpc_server_start(struct rpc_server *s);
/* No new calls; open ones may end until grace_ns is over, then they are cancelled. */
void rpc_server_shutdown(struct rpc_server *s, int64_t grace_ns, void (*on_stopped)(void *context),
                         void *context);

int rpc_channel_new(struct rpc_runtime *r, const char *target, const struct rpc_tls *tls,
                    const struct rpc_limits *limits, struct rpc_channel **ret, struct err *e);
/* Sends "authorization: Bearer KEY" with every call from here on. -EINVAL: the key is not printable
 * ASCII, or is longer than 1 KiB. */
int rpc_channel_authorize(struct rpc_channel *ch, const char *key);
void rpc_channel_close(struct rpc_channel *ch); /* its calls are cancelled */

/* Opens a call; deadline_ns is relative, 0 = none. wait_for_ready: do not fail while the channel is
 * still connecting. */
int rpc_open(struct rpc_channel *ch, const char *path, int64_t deadline_ns, bool wait_for_ready,
             const struct rpc_callbacks *callbacks, void *user, struct rpc_call **ret);

void rpc_set(struct rpc_call *c, const struct rpc_callbacks *callbacks,
             void *user); /* server side */
void *rpc_user(const struct rpc_call *c);
struct rpc_server *rpc_server_of(const struct rpc_call *c); /* server side; NULL on the client's */
const char *rpc_path(const struct rpc_call *c);
const char *rpc_peer(const struct rpc_call *c); /* "ipv4:127.0.0.1:5000" */
int64_t
rpc_deadline_ns(const struct rpc_call *c); /* server: monotonic clock_now_ns time; 0 = none */
const char *rpc_metadata(const struct rpc_call *c,
                         const char *key); /* server: request header or NULL */

/* Copies. 0 also when the message is dropped because the call is ending. -EMSGSIZE (over the
 * message limit) and -ENOBUFS (64 MiB wait already: the peer reads too slowly) have failed the call
 * with RESOURCE_EXHAUSTED; -ENOMEM leaves it as it was. */
int rpc_send(struct rpc_call *c, const void *data, size_t size);
/* The same message to several calls, copied once; a failure is that of the last call that has one.
 */
int rpc_send_all(struct rpc_call *const *calls, size_t n, const void *data, size_t size);
size_t rpc_queued_bytes(const struct rpc_call *c);
void rpc_half_close(struct rpc_call *c); /* client: no more messages */
/* Server: sends the status behind all queued messages; a second one is ignored. message <= 1 KiB
 * (longer ones are cut), UTF-8. */
void rpc_finish(struct rpc_call *c, enum rpc_status status, const char *message);
/* With details for programs (status_details.h), at most RPC_MAX_DETAILS_BYTES: more are left out.
 */
enum { RPC_MAX_DETAILS_BYTES = 2048 };
void rpc_finish_details(struct rpc_call *c, enum rpc_status status, const char *message,
                        const void *details, size_t size);
/* Server, before rpc_finish: what stock clients that retry by themselves obey (the trailer
 * "grpc-retry-pushback-ms"): again after so many milliseconds, or never. */
enum { RPC_PUSHBACK_NEVER = -1, RPC_PUSHBACK_NONE = -2 };
void rpc_set_pushback(struct rpc_call *c, int32_t ms);
/* Client, from on_done only: the details that came with the status; NULL = none. */
const uint8_t *rpc_details(const struct rpc_call *c, size_t *ret_size);
/* Ends the call at once, past everything queued. The peer sees CANCELLED. */
void rpc_cancel(struct rpc_call *c);

/* Stop and resume reading messages of a call (flow control reaches the peer). Messages, half-close
 * and the good end of a client's call wait for rpc_resume; an error ends a paused call at once. */
void rpc_pause(struct rpc_call *c);
void rpc_resume(struct rpc_call *c);

/* grpc.health.v1 (Check, Watch) and server reflection (v1 and v1alpha), added before start. They
 * answer also when max_calls is reached. The whole server is NOT_SERVING until rpc_health_set says
 * otherwise; rpc_server_shutdown tells watchers NOT_SERVING. */
enum rpc_serving { RPC_SERVING_UNKNOWN = 0, RPC_SERVING = 1, RPC_NOT_SERVING = 2 };
int rpc_health_add(struct rpc_server *s);
/* service "" = the whole server; unknown services are added, RPC_SERVING_UNKNOWN takes one away. */
void rpc_health_set(struct rpc_server *s, const char *service, enum rpc_serving status);
/* Full names of the services to list ("glmd.v1.Inference"); the standard ones are listed besides.
 * -ENOENT: a name that no .proto file of this build has. */
int rpc_reflection_add(struct rpc_server *s, const char *const *services, size_t n);

#endif
