/* mem.h: memory of the CPU backend: 64-byte aligned, zeroed; large areas ask for huge pages. */
#ifndef GLMD_KERNELS_CPU_MEM_H
#define GLMD_KERNELS_CPU_MEM_H

#include <stddef.h>

/* NULL = out of memory. Pages of large areas are first touched by whoever writes them. */
void *mem_alloc(size_t bytes);
void mem_free(void *p);

/* Makes *p at least `bytes` long; the old contents are lost. 0 or -ENOMEM (then *p is as before).
 */
int mem_reserve(void **p, size_t *capacity, size_t bytes);

#endif
