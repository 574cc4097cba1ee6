/* mem.c: small areas come from malloc, where sanitizers watch them; large ones are mapped, so that
 * they start as zero pages and are placed near the thread that writes them first. */
#include "mem.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, MAP_FROM_BYTES = 1 << 20, PAGE = 4096, HUGE_PAGE = 2 << 20 };

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

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

/* A fault for every page, where the kernel does not make many at once. */
static void touch_pages(uint8_t *first, const uint8_t *end)
{
    for (volatile uint8_t *at = first; at < end; at += PAGE)
        *at = *at;
}

void mem_touch(void *p, size_t from, size_t to)
{
    struct header *h = (struct header *)((uint8_t *)p - ALIGN);
    if (!h->mapped_bytes)
        return; /* malloc's, which mem_alloc has cleared */
    const uintptr_t begin = (uintptr_t)h, end = begin + h->mapped_bytes;
    uintptr_t first = ((uintptr_t)p + from) / HUGE_PAGE * HUGE_PAGE;
    uintptr_t last = ((uintptr_t)p + to) / HUGE_PAGE * HUGE_PAGE;
    first = first < begin ? begin : first;
    last = last + HUGE_PAGE > end ? end : last;
    if (first < last && madvise((void *)first, last - first, MADV_POPULATE_WRITE) != 0)
        touch_pages((uint8_t *)first, (const uint8_t *)last);
}

bool mem_has_nodes(void)
{
    return access("/sys/devices/system/node/node1", F_OK) == 0;
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
