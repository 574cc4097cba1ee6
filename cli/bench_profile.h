/* bench_profile.h: where the steps of a row of `glmd bench engine` went: the parts that the CPU
 * backend counts, sums over ranks, sampling, and what is left. */
#ifndef GLMD_CLI_BENCH_PROFILE_H
#define GLMD_CLI_BENCH_PROFILE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "cli/bench.h"
#include "kernels/kernels.h"
#include "worker/engine/local_group.h"

enum {
    PROFILE_SUMS = K_N_PARTS, /* over ranks */
    PROFILE_SAMPLING,
    PROFILE_REST, /* none of the others: between operations and between threads of ranks */
    PROFILE_N_PARTS
};

struct bench_profile {
    bool counted;                  /* false: the device does not tell */
    double share[PROFILE_N_PARTS]; /* of the steps' time, together 1; the mean over ranks */
    double waiting;                /* a share, inside the others: for other threads of the pool */
    double outside;                /* neither products, head, nor the packing of their inputs */
    double sections;               /* handed to the pool in a step */
};

/* What the group's engines have counted until now. */
struct bench_counts {
    bool counted;
    double ns[PROFILE_N_PARTS], wait_ns,
        sections; /* the mean over ranks; nothing in PROFILE_REST */
};

void bench_counts_read(struct local_group *g, uint32_t n_ranks, struct bench_counts *ret);
/* Of n_steps steps between two readings, which took `ns` in all. */
void bench_profile_make(const struct bench_counts *begin, const struct bench_counts *end, double ns,
                        uint64_t n_steps, struct bench_profile *ret);

/* Table: header, then a line for each row. */
void bench_profile_print_header(FILE *out);
void bench_profile_print(FILE *out, const char *phase, uint32_t n, const struct bench_profile *p);
/* {"products": 0.7, ...}, NULL where nothing was counted. */
json_t *bench_profile_json(const struct bench_profile *p);

/* Series of a plot: percent over the rows' sizes, the small parts taken together. */
enum { PROFILE_N_SERIES = 5, PROFILE_MAX_ROWS = 32 };
struct bench_profile_series {
    double percent[PROFILE_N_SERIES][PROFILE_MAX_ROWS];
    struct plot_series series[PROFILE_N_SERIES];
};
/* profiles: one of every n rows, `stride` bytes apart; x [n] is borrowed by the series. */
void bench_profile_plot(const struct bench_profile *profiles, size_t stride, const double *x,
                        size_t n, struct bench_profile_series *ret);

#endif
