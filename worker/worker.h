/* worker.h: glmd-worker, the daemon of one rank.
 *
 *   loop thread     libuv: session with the coordinator (gRPC callbacks), heartbeats, signals,
 *                   health server, service manager            worker.c session.c link.c health.c
 *   engine thread   opens the engine, joins groups, runs steps                        runner.c
 *
 * Orders go to the engine thread through a queue, answers come back through a mailbox. The loop
 * never waits for the engine thread; to get it out of a collective it aborts the comm.
 */
#ifndef GLMD_WORKER_WORKER_H
#define GLMD_WORKER_WORKER_H

#include "worker/options.h"

/* Exit codes, as far as sysexits.h has them under its numbers. The units do not restart after 64
 * and 65. */
enum worker_exit {
    WORKER_EXIT_OK = 0,           /* SIGTERM, or drained */
    WORKER_EXIT_CONFIG = 64,      /* configuration or command line; refused for rank or cluster */
    WORKER_EXIT_WEIGHTS = 65,     /* model directory missing or damaged; refused for the model */
    WORKER_EXIT_UNAVAILABLE = 69, /* an address cannot be listened on, or the parent is gone */
    WORKER_EXIT_INTERNAL = 70,    /* out of memory, a bug, an engine that does not stop */
    WORKER_EXIT_DEVICE = 71,      /* the device failed or is missing; a new process may help */
    WORKER_EXIT_FENCED = 77,      /* another process took over this rank */
    WORKER_EXIT_KILLED = 143,     /* a second SIGTERM */
};

/* Runs until a signal, a refusal or a failure ends it; returns the exit code. */
int worker_run(const struct worker_options *o);

#endif
