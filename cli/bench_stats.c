/* bench_stats.c: samples and percentiles (bench.h). */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/util.h"
#include "cli/bench.h"

int bench_samples_add(struct bench_samples *s, double value)
{
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 64;
        double *values = realloc(s->values, capacity * sizeof *values);
        if (!values)
            return -ENOMEM;
        s->values = values;
        s->capacity = capacity;
    }
    s->values[s->n++] = value;
    return 0;
}

void bench_samples_deinit(struct bench_samples *s)
{
    free(s->values);
    *s = (struct bench_samples){0};
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_samples_sort(struct bench_samples *s)
{
    if (s->n)
        qsort(s->values, s->n, sizeof *s->values, compare);
}

double bench_percentile(const double *sorted, size_t n, double p)
{
    assert(n >= 1 && p >= 0 && p <= 100);
    double rank = p / 100.0 * (double)(n - 1);
    size_t below = (size_t)rank;
    if (below + 1 >= n)
        return sorted[n - 1];
    return sorted[below] + (sorted[below + 1] - sorted[below]) * (rank - (double)below);
}

struct bench_summary bench_summarize(struct bench_samples *s)
{
    struct bench_summary r = {.n = s->n};
    if (s->n == 0)
        return r;
    bench_samples_sort(s);
    double sum = 0, squares = 0;
    for (size_t i = 0; i != s->n; i++)
        sum += s->values[i];
    r.mean = sum / (double)s->n;
    for (size_t i = 0; i != s->n; i++)
        squares += (s->values[i] - r.mean) * (s->values[i] - r.mean);
    r.std = sqrt(squares / (double)s->n);
    r.min = s->values[0];
    r.median = bench_percentile(s->values, s->n, 50);
    r.p90 = bench_percentile(s->values, s->n, 90);
    r.p95 = bench_percentile(s->values, s->n, 95);
    r.p99 = bench_percentile(s->values, s->n, 99);
    r.max = s->values[s->n - 1];
    return r;
}

json_t *bench_summary_json(const struct bench_summary *s, double factor)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)s->n, "mean",
                     s->mean * factor, "std", s->std * factor, "min", s->min * factor, "median",
                     s->median * factor, "p90", s->p90 * factor, "p95", s->p95 * factor, "p99",
                     s->p99 * factor, "max", s->max * factor);
}

size_t plot_distribution(const struct bench_samples *sorted, double *ret_x, double *ret_y,
                         size_t max)
{
    size_t n = MIN(sorted->n, max);
    for (size_t i = 0; i != n; i++) {
        /* evenly spread over the ranks, the first and the last among them */
        size_t at = n > 1 ? i * (sorted->n - 1) / (n - 1) : 0;
        ret_x[i] = sorted->values[at];
        ret_y[i] = (double)(at + 1) / (double)sorted->n;
    }
    return n;
}
