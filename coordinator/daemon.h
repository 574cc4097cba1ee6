/* daemon.h: glmd-coordinator, the process around a coordinator: one libuv loop, signals, spawned
 * ranks, service manager. */
#ifndef GLMD_COORDINATOR_DAEMON_H
#define GLMD_COORDINATOR_DAEMON_H

#include "coordinator/options.h"

enum daemon_exit {
    DAEMON_EXIT_OK = 0,
    DAEMON_EXIT_CONFIG = EXIT_CONFIG, /* configuration or command line */
    DAEMON_EXIT_MODEL = 65,           /* model directory missing or damaged */
    DAEMON_EXIT_UNAVAILABLE = 69,     /* an address or the state directory is taken */
    DAEMON_EXIT_INTERNAL = 70,
    DAEMON_EXIT_KILLED = 143, /* a second signal: not everything was finished */
};

/* Runs until a signal or a failure ends it; returns the exit code. */
int daemon_run(const struct options *o);

#endif
