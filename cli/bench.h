/* bench.h: what the benchmarks share: their frame, samples and their percentiles, SVG plots, output
 * files, the ceiling of memory. The benchmarks themselves: bench_engine.c, bench_loading.c,
 * bench_stages.c, bench_serve.c, bench_rpc.c, bench_daemon.c, bench_model.c; `glmd bench NAME` runs
 * one. */
#ifndef GLMD_CLI_BENCH_H
#define GLMD_CLI_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"

/* argv[0] is the benchmark's name; exit codes of cli.h. */
int bench_daemon(int argc, char **argv);
int bench_engine(int argc, char **argv);
int bench_loading(int argc, char **argv);
int bench_model(int argc, char **argv);
int bench_stages(int argc, char **argv);
int bench_serve(int argc, char **argv);
int bench_rpc(int argc, char **argv);

/* ---- the frame of a benchmark ---- */

struct bench_verb {
    const char *name; /* for messages */
    size_t bytes;     /* of the state that the functions share; it begins as zeros */
    /* -1: go on; otherwise an exit code */
    int (*parse)(void *state, int argc, char **argv);
    int (*run)(void *state, struct err *e);
    void (*tear_down)(void *state); /* however far the others came */
};

/* Options, run, end: an exit code of cli.h. */
int bench_main(const struct bench_verb *v, int argc, char **argv);

/* ---- samples ---- */

struct bench_samples { /* zero-initialised = empty */
    double *values;    /* owned */
    size_t n, capacity;
};

int bench_samples_add(struct bench_samples *s, double value); /* -ENOMEM */
void bench_samples_deinit(struct bench_samples *s);
void bench_samples_sort(struct bench_samples *s); /* ascending */

struct bench_summary { /* all 0 when n is 0 */
    size_t n;
    double mean, std, min, median, p90, p95, p99, max;
};

/* Sorts the samples. std: of the population. */
struct bench_summary bench_summarize(struct bench_samples *s);

/* p in [0, 100]; between two ranks linearly, as NumPy's default; ascending values, n >= 1. */
double bench_percentile(const double *sorted, size_t n, double p);

/* {"mean", "std", "min", "median", "p90", "p95", "p99", "max"}, times `factor`. */
json_t *bench_summary_json(const struct bench_summary *s, double factor);

/* ---- plots ---- */

struct plot_series {
    const char *name;
    const double *x, *y; /* borrowed, [n]; points that are not finite are left out */
    size_t n;
};

struct plot {
    const char *title, *x_label, *y_label;
    bool x_log;    /* points at x <= 0 are left out */
    bool points;   /* a mark at each point beside the line */
    double y_mark; /* a dashed horizontal line, 0 = none */
    const char *y_mark_name;
    const struct plot_series *series;
    size_t n_series;
};

/* Panels side by side, two a row, as one SVG document. Axes begin at 0 (but a logarithmic one).
 * -ENOMEM. */
int plot_svg(const struct plot *panels, size_t n, struct buf *ret);

/* The same into a file; "-" = standard output. */
int bench_write_plot(const char *path, const struct plot *panels, size_t n, struct err *e);

/* The empirical distribution of sorted samples as a series of at most `max` points: x = value, y =
 * share of the samples up to it. Returns the number of points. */
size_t plot_distribution(const struct bench_samples *sorted, double *ret_x, double *ret_y,
                         size_t max);

/* ---- output ---- */

/* Writes a file whole; "-" = standard output. */
int bench_write(const char *path, const void *data, size_t size, struct err *e);
/* Where a report for people goes: not among JSON that goes to standard output. json: NULL = none.
 */
FILE *bench_report_file(const char *json);
/* Takes the value over. */
int bench_write_json(const char *path, json_t *value, struct err *e);

/* A list of whole numbers, "1,2,4", ascending order not asked for. -EINVAL. */
int bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *ret, size_t capacity,
                     size_t *ret_n);

/* ---- the machine ---- */

/* Bytes per second that n_threads threads (0: cpus_usable) read from memory, the best of a few
 * rounds over memory that no cache holds. 0 = out of memory. */
double bench_read_ceiling(uint32_t n_threads);

#endif
