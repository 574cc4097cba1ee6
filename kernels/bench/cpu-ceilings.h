/* cpu-ceilings.h: what this machine can do at the moment: short measurements (some milliseconds
 * each) of memory and of the two arithmetic peaks, to be taken between those of the products. One
 * thread drives them, the pool's threads do the work.
 */
#ifndef GLMD_KERNELS_BENCH_CPU_CEILINGS_H
#define GLMD_KERNELS_BENCH_CPU_CEILINGS_H

#include "kernels/cpu/pool.h"

#include <stdbool.h>
#include <stdint.h>

struct probes;

/* Seconds. With one thread the process's processor time, so that what others do with the machine
 * counts only through the caches and memory; with more the wall's. */
double bench_now(uint32_t n_threads);

/* Arithmetic is that of an instruction set (cpu/cpuid.c) which this CPU has: "avx2" multiplies
 * bytes as AVX2 can. NULL = out of memory. The pool is borrowed. */
struct probes *probes_new(struct pool *pool, const char *isa);
void probes_free(struct probes *p);

double
probe_read(struct probes *p);       /* GB/s; one stream for each thread, never twice in the cache */
double probe_fma(struct probes *p); /* FP32, Gop/s, multiply and add count as 2; 0 = none known */
double probe_dot8(struct probes *p); /* 8-bit dots, Gop/s */

#endif
