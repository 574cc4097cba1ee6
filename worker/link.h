/* link.h: the stream to the coordinator, dialled again and again.
 *
 * Driven by calls: link_tick dials when the pause is over; every function that changes the time of
 * the next look says so by its return value or through the callbacks. Each end of the stream is
 * followed by a pause that doubles from reconnect_min to reconnect_max (plus up to a quarter, drawn
 * at random, so that ranks do not come in step), and starts over once the coordinator has said
 * something. Loop thread. Bytes only: what they mean is the session's.
 */
#ifndef GLMD_WORKER_LINK_H
#define GLMD_WORKER_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/rpc/rpc.h"

struct link_callbacks {
    void (*on_open)(void *context); /* a stream was opened: what is sent goes there */
    void (*on_message)(void *context, const uint8_t *data, size_t size);
    void (*on_lost)(void *context); /* follows every on_open once; link_tick is due then */
};

struct link_config {
    const char *target;        /* borrowed */
    const struct rpc_tls *tls; /* copied; its strings are borrowed. NULL = plaintext */
    size_t max_message_bytes;
    int64_t reconnect_min, reconnect_max;
};

struct link { /* must not move */
    /* owned */
    struct rpc_channel *channel;
    struct rpc_call *call; /* NULL while pausing */
    /* borrowed */
    struct rpc_runtime *runtime;
    struct link_config config;
    const struct link_callbacks *callbacks;
    void *context;
    void (*on_closed)(void *context);
    /* state */
    struct rpc_tls tls; /* config.tls, when there is one */
    bool closing, closed, heard, dialled;
    int64_t next_ns; /* dial, or cut off the closing stream; INT64_MAX = nothing to wait for */
    int64_t pause_ns;
    int64_t next_log; /* failures are logged when they change, and once a minute */
    char last_failure[256];
};

/* -EINVAL: the address makes no sense. */
int link_init(struct link *l, struct rpc_runtime *runtime, const struct link_config *config,
              const struct link_callbacks *callbacks, void *context, struct err *e);

/* The first call dials. Returns the time of the next call. */
int64_t link_tick(struct link *l, int64_t now);

/* Dropped while there is no stream, or when the coordinator has stopped reading (then the stream
 * ends). */
void link_send(struct link *l, const void *data, size_t size);
void link_disconnect(struct link *l);  /* on_lost follows from the loop */
bool link_heard(const struct link *l); /* the coordinator has said something on this stream */

/* No more dialling; sends what is queued, for at most a second. on_closed comes last, from
 * link_tick, which is due. */
void link_close(struct link *l, int64_t now, void (*on_closed)(void *context));

#endif
