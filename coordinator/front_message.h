/* front_message.h: a message of an RPC, from its arrival until the loop knows what it says. Reading
 * it is a job (front_job.h), which outlives the RPC when that ends first.
 *
 *   loop     front_message_read -> |                              | -> take -> deinit
 *   thread                         | -> read (front_job_run) ->   |
 */
#ifndef GLMD_COORDINATOR_FRONT_MESSAGE_H
#define GLMD_COORDINATOR_FRONT_MESSAGE_H

#include "base/err.h"
#include "coordinator/front_job.h"

struct front_message;

/* What a protocol does with its messages; all required. */
struct front_message_ops {
    size_t size; /* of its struct, whose first member is a front_message */
    /* Any thread: what the bytes say goes into the struct. A failure is the message's `code`. */
    int (*read)(struct front_message *m, const uint8_t *data, size_t size);
    /* Loop thread, once, unless the RPC has left: it may take what it needs out of the struct. */
    void (*take)(void *rpc, struct front_message *m);
    /* Loop thread: what is left in the struct. */
    void (*deinit)(struct front_message *m);
};

/* Zero-initialised but for what front_message_read knows. */
struct front_message {
    struct front_job job; /* first */
    const struct front_message_ops *ops;
    void *rpc;
    struct front_message **slot; /* of the RPC, that points here; NULL: it has left */
    int method;                  /* the protocol's name for it */
    int64_t arrived_ns;
    int code;       /* why it is of no use; 0 = it is; -ECANCELED: it was not read */
    struct err why; /* not set with -ECANCELED: front_job_refusal says it */
};

/* Reads a copy of data. *slot is the message until it is taken, which may be before this returns,
 * and NULL otherwise. On failure, those of front_job_start and -ENOMEM, nothing is taken. Loop
 * thread. */
int front_message_read(struct coordinator *c, const struct front_message_ops *ops, int method,
                       void *rpc, struct front_message **slot, const uint8_t *data, size_t size);

/* The RPC is over: what it still has in *slot is taken by nobody. */
void front_message_leave(struct front_message **slot);

#endif
