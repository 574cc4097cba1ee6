/* front.h: client calls, whatever protocol they came over.
 *
 * A protocol (front_rpc.c, front_http.c) turns what its client sent into a plain struct of
 * inference.proto and opens a call with it. What the request produces comes back as the same plain
 * structs, to be packed as the protocol likes:
 *
 *   front_prepare_generate -> front_open -> call -> ops->message ... ops->end   (the call is gone)
 *                                                -> front_gone                  (the client is)
 *
 * Admission, deadlines, slow readers, the log-probabilities of a prompt before its output, and the
 * counters are here, once for all protocols. Loop thread; ops are called from coordinator_pump
 * only, never from inside a function of this file that opens a call.
 */
#ifndef GLMD_COORDINATOR_FRONT_H
#define GLMD_COORDINATOR_FRONT_H

#include "coordinator/auth.h"
#include "coordinator/stream.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_inference.h"

struct coordinator;
struct front_call; /* opaque */

/* How a call ended, or why it was refused. */
struct front_end {
    enum rpc_status status;
    char message[512];      /* for the client; "" with RPC_OK */
    int64_t retry_after_ns; /* refused for now: when to try again; 0 = nobody knows */
    char field[64];         /* of the request, as its message names it, at fault; "" = none */
    const char *reason;     /* static, for programs: "QUEUE_FULL"; NULL = none */
    bool of_key;            /* refused because of what its key may use for now */
    bool ran;               /* it was queued, at least; n_tokens of its output were there */
    uint64_t n_tokens;
};

/* What the protocol does for a call; all required. */
struct front_ops {
    /* 0, or -ENOMEM: the call then ends with RPC_INTERNAL. The message is valid during the call. */
    int (*message)(void *user, const struct stream_message *m);
    /* The end, once; the call is gone when this returns. */
    void (*end)(void *user, const struct front_end *end);
    /* Bytes that wait for the client to read them: over limits.max_stream_bytes the request pauses
     * until front_drained, at most deadlines.slow_reader. */
    size_t (*unsent)(void *user);
};

/* What a call says beside its message. Strings are read while the call is opened. */
struct front_origin {
    const char *key;         /* value of the "authorization" header; NULL or "" = none */
    int64_t deadline_ns;     /* of the client, monotonic; 0 = deadlines.request from now */
    int64_t arrived_ns;      /* monotonic; 0 = now */
    const char *traceparent; /* value of that header (W3C); NULL or "" = none */
    bool open_ended; /* Generate: max_tokens is the server's, and bends to the key's limits */
};

/* Whether generations of the client with this "authorization" are taken at all, asked before its
 * message is looked at (front_open asks again). False: *ret_refused says why not. */
bool front_takes(struct coordinator *c, const char *key, struct front_end *ret_refused);

/* The half of a call that needs no loop: what admission makes of a message, which takes a while for
 * long ones (front_job.h). Any thread, while the coordinator is there; what it reads of it never
 * changes. */
struct front_prepared {
    struct request *request, *echo; /* owned */
    bool return_ids;
    struct err error; /* code 0: admitted */
    /* For whoever asks why it was not. */
    enum request_kind kind;
    char id[REQUEST_ID_BYTES];
};
void front_prepare_generate(const struct coordinator *c, const struct wire_generate_request *w,
                            struct front_prepared *ret);
void front_prepare_fill(const struct coordinator *c, const struct wire_fill_request *w,
                        struct front_prepared *ret);
void front_prepare_score(const struct coordinator *c, const struct wire_score_request *w,
                         struct front_prepared *ret);
void front_prepared_deinit(struct front_prepared *p);

/* The other half: opens a call. Takes what was prepared. NULL: refused, and *ret_refused says why
 * (nothing is called back). Otherwise call coordinator_pump when the callbacks may come. */
struct front_call *front_open(struct coordinator *c, const struct front_origin *origin,
                              struct front_prepared *p, const struct front_ops *ops, void *user,
                              struct front_end *ret_refused);

/* The name of the request, for answers and logs: the client's, or one that was made for it. */
const char *front_request_id(const struct front_call *f);
/* Its entry in the timeline. */
uint64_t front_timeline(const struct front_call *f);

/* The client has read everything that was sent. Pumps. */
void front_drained(struct front_call *f);
/* The client is gone: its request ends, ops are not called any more, the call is no longer the
 * protocol's. Pumps. */
void front_gone(struct front_call *f);

/* For what is no generation: whether the client with this "authorization" may do it. False:
 * *ret_refused says why not. */
bool front_allowed(struct coordinator *c, const char *key, enum auth_need need,
                   struct front_end *ret_refused);

/* The status that tells a client about a negative errno value of admission, unpacking or auth.h. */
enum rpc_status front_status(int code);
/* Fills in *ret from a failure, and counts it as a request that arrived and was refused. A message
 * that starts with the name of a field and a colon, as admission's do, sets the field, too. */
void front_refuse(struct coordinator *c, int code, const char *message, struct front_end *ret);

uint32_t front_n_calls(const struct coordinator *c); /* that have not ended; walks them */
/* A request has something new, or has ended. */
void front_touched(struct coordinator *c, struct request *r);
/* Streams that nobody reads: cancelled after deadlines.slow_reader. */
void front_tick(struct coordinator *c, int64_t now_ns);
/* Ends the requests of this id, or, if there are none, of the id behind its prefix
 * (request_id_behind_prefix); returns how many there were. */
uint32_t front_abort(struct coordinator *c, const char *request_id);
/* Every request that has not ended ends now. */
void front_end_all(struct coordinator *c, enum rpc_status status, const char *why);

#endif
