/* bench_daemon.h: what `glmd bench daemon` finds (bench_daemon.c measures) and how it is told
 * (bench_daemon_report.c). */
#ifndef GLMD_CLI_BENCH_DAEMON_H
#define GLMD_CLI_BENCH_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cli/bench.h"

enum { DAEMON_MAX_ROUNDS = 100 };

struct daemon_speed { /* of one measurement */
    double tokens_per_s;
    double context;     /* tokens in the cache, in the middle of it */
    double run, queued; /* shares of the time; those of the engine's thread */
};

struct daemon_round {
    struct daemon_speed daemon_many, engine_many, daemon_one, engine_one;
};

struct daemon_result {
    /* what was measured */
    const char *synthetic, *activations;
    bool a8;
    uint32_t n_threads, batch;
    /* what was found */
    const struct daemon_round *rounds; /* [n_rounds], DAEMON_MAX_ROUNDS at most */
    uint32_t n_rounds;
};

void daemon_report_print(const struct daemon_result *d, FILE *out);
json_t *daemon_report_json(const struct daemon_result *d);

#endif
