/* pool.h: the threads of one CPU context. */
#ifndef GLMD_KERNELS_CPU_POOL_H
#define GLMD_KERNELS_CPU_POOL_H

#include <stdint.h>

#include "kernels/kernels.h"

struct pool;

typedef void (*pool_fn)(void *arg, uint32_t thread, uint32_t n_threads);

/* n_threads: the caller included; 0 or more than allowed = the CPUs that this thread may run on.
 * The caller's thread stays where the kernel puts it: others may descend from it. 0 or a negative
 * errno value. */
int pool_new(uint32_t n_threads, enum k_pin pin, struct pool **ret);
void pool_free(struct pool *p);

uint32_t pool_threads(const struct pool *p);
/* How long pool_run has waited for other threads behind the caller's own share, in all. */
uint64_t pool_wait_ns(const struct pool *p);

/* Calls fn(arg, i, n) once for every i < n = pool_threads(p), the caller being thread 0, and
 * returns when all have returned. One thread at a time may call it. */
void pool_run(struct pool *p, pool_fn fn, void *arg);

/* Items [first, end) of a section; up to `more` go those that the thread will probably have next.
 */
typedef void (*pool_items_fn)(void *arg, uint64_t first, uint64_t end, uint64_t more);

/* Calls fn for ranges that make up [0, n) together, n < 2^32, and returns when all have returned.
 * A thread begins with its pool_share and takes it piece by piece in ascending order: a quarter of
 * what it has left at a time, in multiples of `piece` items. When it has none, it takes half of
 * what the thread with the most has left: processors are not equally fast, and are not always
 * there. */
void pool_run_items(struct pool *p, uint64_t n, uint32_t piece, pool_items_fn fn, void *arg);

/* The share [*first, *end) of `thread` when `n` items are cut into n_threads contiguous ranges. */
static inline void pool_share(uint64_t n, uint32_t thread, uint32_t n_threads, uint64_t *first,
                              uint64_t *end)
{
    *first = n * thread / n_threads;
    *end = n * (thread + 1) / n_threads;
}

#endif
