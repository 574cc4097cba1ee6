/* reduce.h: the arithmetic that all host collectives share: who sums what, in which order. */
#ifndef GLMD_WORKER_ENGINE_COMM_REDUCE_H
#define GLMD_WORKER_ENGINE_COMM_REDUCE_H

#include <stddef.h>

/* First element of rank `rank`'s slice of n; rank == size gives n. Slices differ by at most one. */
static inline size_t reduce_begin(size_t n, int size, int rank)
{
    size_t share = n / (size_t)size;
    size_t rest = n % (size_t)size;
    return (size_t)rank * share + ((size_t)rank < rest ? (size_t)rank : rest);
}

/* For i in [begin, end): buffers[0..size-1][i] = sum over ranks in rank order, the same bits in all
 * of them. Works through a small block so that the sum stays in the cache. */
static inline void reduce_slice(float *const *buffers, int size, size_t begin, size_t end)
{
    enum { BLOCK = 1024 };
    float sum[BLOCK];
    for (size_t at = begin; at < end; at += BLOCK) {
        size_t n = end - at < BLOCK ? end - at : BLOCK;
        for (size_t i = 0; i != n; i++)
            sum[i] = buffers[0][at + i];
        for (int rank = 1; rank < size; rank++) {
            const float *part = buffers[rank] + at;
            for (size_t i = 0; i != n; i++)
                sum[i] += part[i];
        }
        for (int rank = 0; rank < size; rank++) {
            float *part = buffers[rank] + at;
            for (size_t i = 0; i != n; i++)
                part[i] = sum[i];
        }
    }
}

#endif
