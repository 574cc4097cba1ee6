/* caller.h: a channel to a coordinator on a loop of its own, and calls over it, one after the
 * other, each run to its end. What the tool's verbs and the client library share. Belongs to the
 * thread that opened it. */
#ifndef GLMD_CLI_CALLER_H
#define GLMD_CLI_CALLER_H

#include <uv.h>

#include "base/buf.h"
#include "base/err.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/status_details.h"

/* How a call ended. */
struct call_end {
    enum rpc_status status;
    char message[1024]; /* of the server, or the transport */
    struct status_details details;
    struct err failure; /* of on_message, which ended the call; code 0 = none */
    size_t n_messages;  /* that came */
};

struct caller {
    uv_loop_t loop;
    struct rpc_runtime *runtime; /* owned */
    struct rpc_channel *channel; /* owned; set after caller_open */
    /* the call under way */
    struct rpc_call *rpc; /* NULL: none */
    bool cancelled, done;
    struct call_end *end;
    int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e);
    void *context;
};

struct call {
    const char *path;          /* "/glmd.v1.Inference/Fill" */
    const struct buf *request; /* packed */
    int64_t deadline_ns;       /* relative; 0 = none */
    /* Each response message, in order. A negative value ends the call; e says why. */
    int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e);
    void *context;
};

/* Loop and runtime. On failure call caller_close, too. */
int caller_open(struct caller *c, struct err *e);
/* Runs the call on the loop until it is over. -ENOMEM: it could not be started. */
int caller_run(struct caller *c, const struct call *call, struct call_end *ret, struct err *e);
/* From a callback: ends the call under way. */
void caller_cancel(struct caller *c);
/* Also runs to their end what else is on the loop, which must be closing. */
void caller_close(struct caller *c);

#endif
