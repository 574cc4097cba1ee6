/* bench_cluster.h: a coordinator and its spawned ranks on fake devices, started for a benchmark in
 * a temporary folder and stopped behind it; and what such a process costs. */
#ifndef GLMD_CLI_BENCH_CLUSTER_H
#define GLMD_CLI_BENCH_CLUSTER_H

#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "cli/client.h"

struct cluster_config {
    const char *like;      /* model directory: its vocabulary and tokenizer */
    const char *synthetic; /* sizes of the model; NULL: small ones */
    const char *program;   /* NULL: glmd-coordinator beside this program */
    const char *device;    /* "fake:..." */
    uint32_t ranks, slots;
    const char *const *sets; /* NULL-terminated: further KEY=VALUE */
};

struct cluster {
    char *folder;  /* owned; removed at the end */
    char *address; /* owned; HOST:PORT */
    pid_t pid;     /* of the coordinator; 0 = none */
    int out_fd;    /* its standard output; -1 = none */
};

#define CLUSTER_INIT                                                                               \
    {                                                                                              \
        NULL, NULL, 0, -1                                                                          \
    }

/* Returns when the group is ready, within a minute. On failure the message ends with what the
 * coordinator logged last; cluster_stop is due in any case. */
int cluster_start(struct cluster *c, const struct cluster_config *config, struct err *e);
/* SIGTERM, and SIGKILL when it does not end; removes the folder. */
void cluster_stop(struct cluster *c);

struct cluster_numbers {
    uint64_t steps, plan_ns, result_ns, update_ns; /* since the start; LoopTime in cluster.proto */
    pid_t rank_pid;                                /* of the first rank; 0 = there is none */
};

/* What the coordinator says of itself. 0, or an exit code with the reason printed. */
int cluster_numbers(const struct client_target *t, struct cluster_numbers *ret);

/* ---- a process ---- */

int process_cpu_ns(pid_t pid, int64_t *ret);  /* user and system, all its threads; -errno */
int process_loop_ns(pid_t pid, int64_t *ret); /* of its first thread; -ENOENT: not known here */
int process_rss_bytes(pid_t pid, uint64_t *ret);

struct thread_times {    /* in nanoseconds, since the start */
    int64_t run, queued; /* queued: could run, and had no processor */
};

/* Of the threads of a process that have this name, added up; -ENOENT: there is none. */
int process_thread_times(pid_t pid, const char *name, struct thread_times *ret);

#endif
