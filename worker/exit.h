/* exit.h: how a worker's process ends. */
#ifndef GLMD_WORKER_EXIT_H
#define GLMD_WORKER_EXIT_H

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

#endif
