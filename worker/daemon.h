/* daemon.h: glmd-worker, the process around one rank: libuv loop, mailbox of the engine thread,
 * signals, service manager. */
#ifndef GLMD_WORKER_DAEMON_H
#define GLMD_WORKER_DAEMON_H

#include "worker/options.h"

/* Runs until a signal, a refusal or a failure ends it; returns the exit code. */
int daemon_run(const struct worker_options *o);

#endif
