/* dev_clock.h: the time on a device, for intervals: beside dev.h, for the few kernels that ask. */
#ifndef GLMD_KERNELS_CUDA_DEV_CLOCK_H
#define GLMD_KERNELS_CUDA_DEV_CLOCK_H

#include "kernels/cuda/dev.h"

#ifndef __CUDACC__
#include <ctime>
#endif

enum { DEV_TICK_NS = 1024 }; /* about as often as devices move the clock on */

/* Differences are good for 73 minutes. The clock is the device's, the same on all SMs. */
DEV_FN uint32_t dev_ticks()
{
#ifdef __CUDACC__
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const uint64_t ns = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
#endif
    return (uint32_t)(ns / DEV_TICK_NS);
}

#endif
