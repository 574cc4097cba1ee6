/* bench_rpc.h: what `glmd bench rpc` finds (bench_rpc.c measures) and how it is told
 * (bench_rpc_report.c). */
#ifndef GLMD_CLI_BENCH_RPC_H
#define GLMD_CLI_BENCH_RPC_H

#include <stdint.h>
#include <stdio.h>

#include "cli/bench.h"

struct rpc_window { /* of a phase; us: processor time */
    double seconds, cpu_share;
    double steps, messages, tokens;
    double cpu_us_per_step, loop_us_per_step, cpu_us_per_message, messages_per_step;
    double plan_us_per_step, result_us_per_step, update_us_per_message; /* the loop's own count */
};

struct rpc_trace_point {
    double at, /* seconds */ cpu_percent, rss_mb;
};

struct rpc_result {
    /* what was measured */
    uint32_t ranks, batch, best_of, streams;
    double step_us, decode_us; /* of the fake devices: a step, and each sequence in it */
    /* what was found */
    double idle_percent, idle_after_percent; /* of a core */
    struct rpc_window streamed, silent, open;
    uint64_t rss_start, rss_before, rss_open, rss_end, rss_closed; /* bytes */
    uint32_t max_open;                                             /* streams */
    double step_cost_us, message_cost_us;
    struct rpc_trace_point *trace; /* [n_trace] */
    size_t n_trace;
};

void rpc_report_print(const struct rpc_result *r, FILE *out);
json_t *rpc_report_json(const struct rpc_result *r); /* NULL: out of memory */
int rpc_report_plot(const struct rpc_result *r, const char *path, struct err *e);

#endif
