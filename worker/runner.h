/* runner.h: the engine thread. It opens the engine, then works off orders (join a group, run a
 * step) one at a time. Every order comes back through `post` as its own answer, except those that
 * runner_abort drops.
 *
 * Functions are called on the loop thread. Nothing here blocks but runner_free. Two
 * implementations: runner.c with a thread and a real engine, and the simulator's, where an order
 * takes virtual time.
 */
#ifndef GLMD_WORKER_RUNNER_H
#define GLMD_WORKER_RUNNER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mailbox.h"
#include "proto/rpc/wire.h"
#include "worker/engine/engine.h"
#include "worker/session.h"

struct runner; /* opaque */

enum runner_kind {
    RUNNER_OPEN,    /* answer: code, err, loaded */
    RUNNER_JOIN,    /* answer: code, err, known_answer, collectives */
    RUNNER_STEP,    /* answer: code, err, bytes */
    RUNNER_STOPPED, /* the thread has ended: runner_free will not wait */
};

enum { RUNNER_WORDS = 512 };

struct runner_order {
    struct mailbox_item item; /* first: the mailbox's messages are orders */
    struct runner_order *next;
    enum runner_kind kind;
    uint64_t epoch, step;
    struct wire_coordinator_message *message; /* owned; NULL for OPEN and STOPPED */
    /* the answer */
    int code;
    struct err err;
    struct wire_loaded loaded; /* description: valid until runner_free */
    struct weights_report report;
    uint64_t known_answer;
    char collectives[RUNNER_WORDS]; /* engine_collectives, valid UTF-8 */
    struct buf bytes;               /* WorkerMessage with StepDone */
};

struct runner_config {
    struct engine_config engine; /* progress callbacks are set here */
    int listen_fd;               /* borrowed: peers connect to it */
    /* Engine thread: hands an answer over to the loop thread; must not fail. */
    void (*post)(void *context, struct runner_order *answer);
    void *context;
};

int runner_new(const struct runner_config *config, struct runner **ret, struct err *e);

/* Take the message over. */
void runner_join(struct runner *r, struct wire_coordinator_message *grant);
void runner_step(struct runner *r, struct wire_coordinator_message *step);

/* Drops waiting orders and gets a running one out of its collectives. */
void runner_abort(struct runner *r);

/* Aborts, also the loading; RUNNER_STOPPED follows. */
void runner_stop(struct runner *r);
void runner_free(struct runner *r); /* waits for the thread; NULL is fine */

void runner_progress(struct runner *r, struct session_progress *ret);
/* Grows with everything that shows the thread is not stuck; idle = nothing to do. */
uint64_t runner_counter(struct runner *r, bool *ret_idle);

struct runner_order *runner_order_new(enum runner_kind kind); /* NULL: out of memory */
void runner_order_free(struct runner_order *o); /* an answer, after the loop has looked at it */

#endif
