/* rpc_grpc.h: what the files of the gRPC implementation share. Internal to proto/rpc.
 *
 * rpc_grpc.c        library, completion queue and its thread, events to the loop
 * rpc_grpc_call.c   a call: sending queue, receiving, flow control, end
 * rpc_grpc_server.c listening, accepting, dispatch by path, shutdown
 * rpc_grpc_client.c channels, opening calls
 * rpc_grpc_creds.c  certificate files -> credentials
 * rpc_grpc_addr.c   addresses: syntax, and why one cannot be bound
 *
 * Threads: the completion-queue thread does nothing but move finished operations (struct event)
 * into the mailbox; all state below belongs to the loop thread.
 */
#ifndef GLMD_PROTO_RPC_RPC_GRPC_H
#define GLMD_PROTO_RPC_RPC_GRPC_H

#include <pthread.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <uv.h>

#include "base/mailbox.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/rpc_builtin.h"

enum {
    RPC_DEFAULT_MESSAGE_BYTES = 4 << 20,
    RPC_DEFAULT_MAX_CALLS = 1024,
    RPC_MAX_CALLS = 1 << 20,
    RPC_BUILTIN_CALLS =
        64, /* health and reflection have slots of their own: a full server answers */
    RPC_ACCEPT_DEPTH = 32,           /* calls that gRPC may hand over before the loop re-arms */
    RPC_MAX_QUEUED_BYTES = 64 << 20, /* unsent, per call */
    RPC_MAX_STATUS_BYTES = 1024,
    RPC_MAX_METADATA_BYTES = 8192,
    RPC_MAX_METHODS = 64,
};

/* What clients and servers alike want of gRPC (struct grpc_arg). It inflates without a limit: a few
 * kilobytes could become gigabytes. Channelz: books about every message, which nothing here serves.
 * A peer that does not read, or whose messages are not read, holds 64 KiB per stream. */
#define RPC_GRPC_ARGS(max_bytes)                                                                   \
    {.key = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, .value.integer = (int)(max_bytes)},               \
        {.key = GRPC_ARG_MAX_METADATA_SIZE, .value.integer = RPC_MAX_METADATA_BYTES},              \
        {.key = GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET,                                \
         .value.integer = 1 << GRPC_COMPRESS_NONE},                                                \
        {.key = GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, .value.integer = 0},                    \
        {.key = GRPC_ARG_ENABLE_CHANNELZ, .value.integer = 0},                                     \
        {.key = GRPC_ARG_HTTP2_BDP_PROBE, .value.integer = 0},                                     \
        {.key = GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, .value.integer = 65536},                    \
        {.key = GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, .value.integer = 1},                      \
    {                                                                                              \
        .key = GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, .value.integer = 0                           \
    }

/* The tag of one operation. `run` is called on the loop thread when the operation is over. One
 * operation at a time per event. */
struct event {
    struct mailbox_item item; /* first member */
    void (*run)(struct event *e, bool ok);
    bool ok;
};

#define event_owner(event, type, member) ((type *)((char *)(event)-offsetof(type, member)))

/* ThreadSanitizer does not see into libgrpc: what happens before an operation starts happens before
 * its completion is handled. */
void event_release(struct event *e);

struct rpc_runtime {
    struct uv_loop_s *loop; /* borrowed */
    grpc_completion_queue *cq;
    pthread_t cq_thread, loop_thread;
    struct mailbox mailbox;
    struct event cq_down; /* posted by the completion-queue thread as its last act */
    size_t n_users;       /* servers and channels alive */
    bool stopping, draining;
    void (*on_stopped)(void *context);
    void *on_stopped_context;
};

void runtime_assert_loop(const struct rpc_runtime *r);
void runtime_user_gone(struct rpc_runtime *r);

/* ---- calls ---- */

struct chunk { /* a message waiting to be sent */
    struct chunk *next;
    grpc_byte_buffer *buffer;
    size_t size;
};

struct call_list {
    struct rpc_call *first;
    size_t n;
};

struct rpc_call {
    /* borrowed; exactly one of server and channel is set */
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_channel *channel;

    /* owned */
    grpc_call *call;
    char *path, *peer;
    char *metadata_text; /* server: all request headers, NUL-terminated values; made on demand */
    const char **metadata_values;
    struct chunk *queue, **queue_tail;
    grpc_byte_buffer *incoming; /* being received */
    grpc_byte_buffer *held;     /* arrived while paused */

    /* the user's */
    const struct rpc_callbacks *callbacks;
    void *user;

    /* operations under way; the call lives until all are back */
    unsigned n_pending;
    struct event accept_event, start_event, receive_event, send_event, close_event, resume_event;
    struct call_list *link;           /* the list it is in, of the server or channel */
    struct rpc_call *next, *previous; /* there */

    /* receiving */
    bool started; /* the first operations are under way */
    bool receiving, paused, resuming;
    bool held_end;    /* half-close that arrived while paused */
    bool receive_end; /* the peer sends no more */

    /* sending */
    size_t queued_bytes, n_queued, max_message_bytes;
    bool sending, sending_message, sent_initial, sent_final;
    bool half_closing; /* client: rpc_half_close was called */
    bool finishing;    /* server: rpc_finish was called */
    bool broken;       /* nothing can be sent any more */
    enum rpc_status finish_status;
    char finish_message[RPC_MAX_STATUS_BYTES + 1];
    uint8_t *finish_details; /* owned, [n_finish_details]; NULL = none */
    size_t n_finish_details;
    int64_t sending_ns; /* since when what is being sent is with gRPC */
    char pushback[12];  /* milliseconds as text; "" = not said */

    /* the end */
    bool failed;   /* ended by this side: rpc_cancel, or a limit */
    bool closed;   /* the last word from gRPC is here */
    bool ended;    /* on_done has been called */
    int cancelled; /* server: out parameter of RECV_CLOSE_ON_SERVER */

    /* server: filled in by gRPC */
    grpc_call_details details;
    grpc_metadata_array metadata;
    int64_t accepted_ns; /* server */
    bool heard;          /* a message has come, or the end of them */
    int64_t deadline_ns;

    /* client: filled in by gRPC */
    grpc_metadata_array initial_metadata, trailing_metadata;
    grpc_status_code status;
    grpc_slice status_details;
};

struct rpc_call *call_new(struct rpc_runtime *r);
void call_free(struct rpc_call *c);
void call_list_add(struct call_list *l, struct rpc_call *c);
void call_list_remove(struct call_list *l, struct rpc_call *c);

/* Starts operations under `e`; `run` gets the result. Exactly one call_put per call_batch or
 * call_get: the last one ends the call when the end is due. */
void call_batch(struct rpc_call *c, const grpc_op *ops, size_t n, struct event *e,
                void (*run)(struct event *e, bool ok));
void call_get(struct rpc_call *c);
void call_put(struct rpc_call *c);

void call_receive(struct rpc_call *c); /* arms the next RECV_MESSAGE when there should be one */
/* Ends the call from this side at once, past everything that is queued. */
void call_fail(struct rpc_call *c, enum rpc_status status, const char *message);
/* The last operation of the call is back: close_event of either side. */
void call_closed(struct rpc_call *c);

/* ---- servers ---- */

struct rpc_server {
    struct rpc_runtime *runtime; /* borrowed */
    grpc_server *server;         /* owned */
    const struct rpc_method *methods[RPC_MAX_METHODS];
    bool is_builtin[RPC_MAX_METHODS];
    size_t n_methods;
    size_t max_calls, max_message_bytes;
    struct call_list calls, builtin_calls, refused_calls;
    struct call_list own_calls[RPC_MAX_METHODS]; /* of methods with a limit of their own */
    size_t n_accepting;                          /* call objects that wait inside gRPC */
    bool started, stopping, drained;
    struct event shutdown_event;
    int64_t first_message_ns, unread_ns;
    uv_timer_t grace; /* looks for silent calls; in the end: until this, open calls may go on */
    bool grace_closed;
    void (*on_stopped)(void *context);
    void *on_stopped_context;
    struct rpc_builtin services; /* owned */
    struct creds_source *creds;  /* owned; of the address with TLS; NULL = there is none */
};

void server_call_gone(struct rpc_server *s);

/* ---- channels ---- */

struct rpc_channel {
    struct rpc_runtime *runtime; /* borrowed */
    grpc_channel *channel;       /* owned */
    char *authorization;         /* owned; "Bearer KEY"; NULL = none */
    struct call_list calls;
    size_t max_message_bytes;
    bool closing;
};

void channel_call_gone(struct rpc_channel *ch);

/* ---- credentials and addresses ---- */

/* Files are read and checked here: what gRPC would only log much later becomes an error now. A
 * server reads its files again when they change: *ret_source (NULL for plaintext) is for
 * creds_source_free once the server is gone. */
struct creds_source;
int creds_server(const struct rpc_tls *tls, grpc_server_credentials **ret,
                 struct creds_source **ret_source, struct err *e);
void creds_source_free(struct creds_source *s); /* NULL is fine */
int creds_client(const struct rpc_tls *tls, grpc_channel_credentials **ret, struct err *e);

/* "HOST:PORT", "[IPV6]:PORT" or "unix:PATH"; port 0 only when `listening`. */
int address_check(const char *address, bool listening, struct err *e);
/* 0 when the address can be listened on just now; otherwise the reason. */
int address_probe(const char *address, struct err *e);

#endif
