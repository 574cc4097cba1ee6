/* bench.c: see bench.h. */
#include "bench.h"

#include "cuda.h"
#include "library.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { SCALE_BITS = 0x1400 }; /* 2^-10: sums of 32768 products stay finite */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int bench_time(struct k_ctx *c, void (*f)(void *arg), void *arg, uint32_t samples,
                      double *ret_seconds)
{
    const struct cuda_driver *d = c->driver;
    cuda_enter(c);
    f(arg); /* what is set up on the first call */
    cuda_check(c, d->stream_wait(c->stream), "a measurement");
    /* a driver that cannot record (the emulated one) runs f every time */
    struct CUgraphExec_st *graph = NULL;
    bool record = d->capture_begin(c->stream) == 0;
    if (record) {
        f(arg);
        cuda_check(c, d->capture_end(c->stream, &graph), "recording a measurement");
        if (!c->error)
            cuda_check(c, d->graph_run(graph, c->stream), "a measurement");
        cuda_check(c, d->stream_wait(c->stream), "a measurement");
    }
    for (uint32_t i = 0; i < samples && !c->error; i++) {
        double start = now();
        if (record)
            cuda_check(c, d->graph_run(graph, c->stream), "a measurement");
        else
            f(arg);
        cuda_check(c, d->stream_wait(c->stream), "a measurement");
        ret_seconds[i] = now() - start;
    }
    if (graph)
        (void)d->graph_free(graph);
    qsort(ret_seconds, samples, sizeof *ret_seconds, compare);
    return c->error ? -EIO : 0;
}

static void copy(struct k_ctx *c, void *dst, const void *src, size_t bytes)
{
    cuda_check(c, bench_copy(dst, src, bytes, (uint32_t)c->n_multiprocessors, c->stream), "copy");
}

static void read_all(struct k_ctx *c, const void *src, size_t bytes, uint32_t *word)
{
    cuda_check(c, bench_read(src, bytes, word, (uint32_t)c->n_multiprocessors, c->stream), "read");
}

static void noise(struct k_ctx *c, void *dst, size_t bytes, uint32_t seed, bool halves)
{
    cuda_check(c, bench_noise(dst, bytes, seed, halves, c->stream), "noise");
}

static struct k_linear *matrix(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                               uint32_t group_cols, uint32_t seed)
{
    uint32_t n_groups = type == K_WEIGHT_F16 || !group_cols ? 1 : packed_div_up(cols, group_cols);
    struct k_linear *l = linear_blank(c->products, type, rows, cols, n_groups, group_cols);
    if (!l)
        return NULL;
    const struct packed_shape *s = &l->shape;
    char *memory = l->memory;
    noise(c, memory, s->scale_at, seed, type == K_WEIGHT_F16);
    if (s->bias_at > s->scale_at)
        cuda_check(
            c,
            bench_fill(memory + s->scale_at, (s->bias_at - s->scale_at) / 2, SCALE_BITS, c->stream),
            "scales");
    cuda_check(c, bench_fill(memory + s->bias_at, (s->bytes - s->bias_at) / 2, 0, c->stream),
               "bias");
    return l;
}

static struct linear_plan plan(struct k_ctx *c, const struct k_linear *l, uint32_t n_rows)
{
    return linear_plan_for(&c->products->device, &l->shape, n_rows);
}

static struct linear_library *library_new(struct k_ctx *c)
{
    cuda_enter(c);
    return linear_library_new(&c->products->device);
}

/* -ENOTSUP would be a time of nothing. */
static void dense(struct k_ctx *c, struct linear_library *l, const void *w, uint32_t rows,
                  uint32_t cols, const void *x, uint32_t n, void *y)
{
    cuda_check(c, linear_library_multiply(l, w, rows, cols, x, n, NULL, y, rows), "cuBLASLt");
}

static void expanded(struct k_ctx *c, struct linear_library *l, const struct k_linear *w,
                     const void *x, uint32_t n, void *y)
{
    cuda_check(c, linear_library_product(l, w, x, n, y), "expanding and cuBLASLt");
}

__attribute__((visibility("default"))) const struct cuda_bench glmd_cuda_bench = {
    .time = bench_time,
    .copy = copy,
    .read = read_all,
    .noise = noise,
    .matrix = matrix,
    .plan = plan,
    .library_new = library_new,
    .library_free = linear_library_free,
    .dense = dense,
    .expanded = expanded,
};
