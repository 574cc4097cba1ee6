/* spawn.h: ranks as child processes, for one host (group.workers: spawn): group.replicas groups of
 * the configured shape.
 *
 * Each rank is started with the coordinator's own configuration, watched, and started again after a
 * pause that doubles with every death. Loop thread.
 */
#ifndef GLMD_COORDINATOR_SPAWN_H
#define GLMD_COORDINATOR_SPAWN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "coordinator/options.h"

struct uv_loop_s;
struct spawn; /* opaque */

struct spawn_config {
    struct uv_loop_s *loop;
    const struct options *options; /* borrowed */
    const char *coordinator;       /* borrowed: HOST:PORT that the ranks dial */
    /* A rank's process ended: "exit code 70", "killed by signal 9". Whether to start another one.
     */
    bool (*on_exit)(void *context, const char *group, uint32_t rank, const char *what);
    void *context;
};

/* Starts every rank. -ENOENT and others: the program cannot be started at all. */
int spawn_new(const struct spawn_config *config, struct spawn **ret, struct err *e);

/* SIGTERM to all; who is still there after grace_ns gets SIGKILL. on_stopped runs once all are
 * gone; then the object is gone too. */
void spawn_stop(struct spawn *s, int64_t grace_ns, void (*on_stopped)(void *context),
                void *context);

#endif
