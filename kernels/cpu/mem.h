/* mem.h: memory of the CPU backend: 64-byte aligned, zeroed. Large areas lie one behind the other,
 * in huge pages where the system allows them. Any thread. */
#ifndef GLMD_KERNELS_CPU_MEM_H
#define GLMD_KERNELS_CPU_MEM_H

#include <stdbool.h>
#include <stddef.h>

/* NULL = out of memory. Pages of large areas are first touched by whoever writes them. */
void *mem_alloc(size_t bytes);
void mem_free(void *p);
/* Has the pages of bytes [from, to) of an area made now, by this thread and hence near it. Their
 * contents stay. Areas of a huge page that ranges share belong to the one behind, so that threads
 * with neighbouring ranges do not make the same page. */
void mem_touch(void *p, size_t from, size_t to);

/* Whether some memory of this machine is nearer to some of its processors than to others. */
bool mem_has_nodes(void);

/* Makes *p at least `bytes` long; the old contents are lost. 0 or -ENOMEM (then *p is as before).
 */
int mem_reserve(void **p, size_t *capacity, size_t bytes);

#endif
