/* mem.c: small areas come from malloc, where sanitizers watch them; large ones are mapped, so that
 * they start as zero pages and are placed near the thread that writes them first. */
#include "mem.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, MAP_FROM_BYTES = 1 << 20 };

/* In front of every area, ALIGN bytes long. */
struct header {
    size_t mapped_bytes; /* 0 = malloc */
};

static void *map(size_t total)
{
    struct header *h =
        mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (h == MAP_FAILED)
        return NULL;
    madvise(h, total, MADV_HUGEPAGE); /* a wish: refused where huge pages are off */
    h->mapped_bytes = total;
    return (uint8_t *)h + ALIGN;
}

void *mem_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    size_t total = (bytes + ALIGN - 1) / ALIGN * ALIGN + ALIGN;
    if (total >= MAP_FROM_BYTES)
        return map(total);
    void *area;
    if (posix_memalign(&area, ALIGN, total))
        return NULL;
    memset(area, 0, total);
    return (uint8_t *)area + ALIGN;
}

void mem_free(void *p)
{
    if (!p)
        return;
    struct header *h = (struct header *)((uint8_t *)p - ALIGN);
    if (h->mapped_bytes)
        munmap(h, h->mapped_bytes);
    else
        free(h);
}

int mem_reserve(void **p, size_t *capacity, size_t bytes)
{
    if (bytes <= *capacity)
        return 0;
    void *area = mem_alloc(bytes);
    if (!area)
        return -ENOMEM;
    mem_free(*p);
    *p = area;
    *capacity = bytes;
    return 0;
}
