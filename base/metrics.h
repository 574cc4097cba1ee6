/* metrics.h: counters and histograms that are kept, and Prometheus' text format.
 *
 * A program's registry is one constant table of families: every name that it exposes, with its
 * type, labels and meaning. What is counted lies in plain integers where it happens, and belongs to
 * the thread that counts; a label whose values are known beforehand (a reason, a kind) is an index
 * of an array. So counting allocates nothing, looks nothing up and needs no lock, and the number of
 * series is bounded by what the program itself is bounded by. A scrape reads the numbers on the
 * same thread and writes them family by family:
 *
 *   metrics_begin(w, METRIC_X)  metrics_put(w, value, label values)  ...  metrics_end(w)
 *
 * Families come in the table's order, each once, with as many label values as it has labels.
 */
#ifndef GLMD_BASE_METRICS_H
#define GLMD_BASE_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum { METRICS_MAX_LABELS = 3, METRICS_MAX_BUCKETS = 24 };

enum metrics_type { METRICS_COUNTER, METRICS_GAUGE, METRICS_HISTOGRAM };

struct metrics_family {
    const char *name;
    enum metrics_type type;
    const char *help;
    const char *labels[METRICS_MAX_LABELS]; /* names; NULL behind the last one */
};

struct metrics_registry {
    const struct metrics_family *families; /* borrowed */
    size_t n;
};

/* -EINVAL: a family that Prometheus or its conventions would refuse; e says which and why. */
int metrics_registry_check(const struct metrics_registry *r, struct err *e);

/* ---- what is kept ---- */

struct metrics_buckets {
    const double *bounds; /* [n] upper ones, ascending; one more bucket has no bound */
    uint32_t n;
};

struct metrics_histogram {
    const struct metrics_buckets *buckets;
    uint64_t counts[METRICS_MAX_BUCKETS + 1]; /* of each bucket alone */
    double sum;
};

/* n values of the same size. */
static inline void metrics_observe(struct metrics_histogram *h, double value, uint64_t n)
{
    const struct metrics_buckets *b = h->buckets;
    uint32_t i = 0;
    while (i != b->n && value > b->bounds[i])
        i++;
    h->counts[i] += n;
    h->sum += value * (double)n;
}

uint64_t metrics_histogram_count(const struct metrics_histogram *h);

/* ---- the text ---- */

struct metrics_writer {
    const struct metrics_registry *registry;
    struct buf *out;
    size_t next;                         /* family that may begin */
    const struct metrics_family *family; /* that is being written; NULL = none */
    int code;                            /* the first failure: nothing is written after it */
};

void metrics_writer_init(struct metrics_writer *w, const struct metrics_registry *r,
                         struct buf *out);

/* The next family, by its place in the table; those in between have no series. */
void metrics_begin(struct metrics_writer *w, size_t family);
/* One series; label values in the order of their names, as many. Any bytes: they are escaped. */
void metrics_put(struct metrics_writer *w, double value, ...);
void metrics_put_count(struct metrics_writer *w, uint64_t value, ...);
void metrics_put_histogram(struct metrics_writer *w, const struct metrics_histogram *h, ...);
/* 0, or what went wrong on the way: -ENOMEM, -EFBIG. */
int metrics_end(const struct metrics_writer *w);

#endif
