/* mem.c: small areas come from malloc, where sanitizers watch them; large ones are cut from mapped
 * chunks, so that they start as zero pages and are placed near the thread that writes them first.
 * What follows each other in a chunk shares its huge pages: of a matrix of some MiB with a mapping
 * of its own a third or more would lie in small ones. Any thread. */
#include "mem.h"
#include "watch.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, MAP_FROM_BYTES = 1 << 20, PAGE = 4096, HUGE_PAGE = 2 << 20 };
enum { CHUNK_BYTES = 256 << 20 }; /* of addresses; pages are made when they are written */

/* Bytes behind an area, for what reads or writes past its end to be noticed. */
#ifdef WATCH_AREAS
enum { BEHIND = 256 };
#else
enum { BEHIND = 0 };
#endif

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

/* Lies in its first page, which is that of a huge one. Areas behind it begin with pages, too. */
struct chunk {
    size_t bytes, used;
    size_t n_areas; /* that have not been freed; the last one takes the chunk with it */
};

/* In front of every area, ALIGN bytes long. */
struct header {
    size_t mapped_bytes; /* 0 = malloc */
    struct chunk *chunk;
};
static_assert(sizeof(struct header) <= ALIGN, "room in front of an area");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the chunks */
static struct chunk *newest;                             /* that areas are cut from, or NULL */

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* area_bytes: whole pages. */
static struct chunk *chunk_new(size_t area_bytes)
{
    const size_t bytes = page_bytes() + area_bytes;
    uint8_t *p =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    const size_t front = -(uintptr_t)p % HUGE_PAGE;
    if (front)
        munmap(p, front);
    struct chunk *c = (struct chunk *)(p + front);
    munmap(p + front + bytes, HUGE_PAGE - front);
    madvise(c, bytes, MADV_HUGEPAGE); /* a wish: refused where huge pages are off */
    *c = (struct chunk){.bytes = bytes, .used = page_bytes()};
    return c;
}

/* A chunk with room for `total` bytes. Of its own, where there are no addresses for one to share.
 */
static struct chunk *chunk_for(size_t total)
{
    if (newest && newest->bytes - newest->used >= total)
        return newest;
    struct chunk *c = total <= CHUNK_BYTES ? chunk_new(CHUNK_BYTES) : NULL;
    if (c)
        newest = c;
    return c ? c : chunk_new(total);
}

static void *map(size_t total)
{
    total = (total + page_bytes() - 1) / page_bytes() * page_bytes();
    struct header *h = NULL;
    pthread_mutex_lock(&lock);
    struct chunk *c = chunk_for(total);
    if (c) {
        h = (struct header *)((uint8_t *)c + c->used);
        c->used += total;
        c->n_areas++;
    }
    pthread_mutex_unlock(&lock);
    if (h)
        *h = (struct header){.mapped_bytes = total, .chunk = c};
    return h;
}

/* Its pages go; its addresses go with the chunk's. */
static void unmap(struct header *h)
{
    struct chunk *c = h->chunk;
    madvise(h, h->mapped_bytes, MADV_DONTNEED);
    pthread_mutex_lock(&lock);
    const bool last = --c->n_areas == 0;
    if (last && newest == c)
        newest = NULL;
    pthread_mutex_unlock(&lock);
    if (last)
        munmap(c, c->bytes);
}

static void *take(size_t total)
{
    void *all;
    if (posix_memalign(&all, ALIGN, total))
        return NULL;
    return memset(all, 0, total);
}

/* As the header in front of an area says, which nobody else looks at. */
__attribute__((no_sanitize_address)) static size_t mapped_bytes(const void *area)
{
    return ((const struct header *)((const uint8_t *)area - ALIGN))->mapped_bytes;
}

void *mem_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    size_t total = (bytes + ALIGN - 1) / ALIGN * ALIGN + ALIGN + BEHIND;
    void *all = total >= MAP_FROM_BYTES ? map(total) : take(total);
    if (!all)
        return NULL;
    uint8_t *area = (uint8_t *)all + ALIGN;
    watch_forbid(all, ALIGN);
    watch_forbid(area + bytes, total - ALIGN - bytes);
    return area;
}

void mem_free(void *p)
{
    if (!p)
        return;
    uint8_t *all = (uint8_t *)p - ALIGN;
    size_t mapped = mapped_bytes(p);
    if (!mapped) {
        free(all);
        return;
    }
    watch_allow(all, mapped); /* something else may come to be there */
    unmap((struct header *)all);
}

/* A fault for every page, where the kernel does not make many at once. */
__attribute__((no_sanitize_address)) static void touch_pages(uint8_t *first, const uint8_t *end)
{
    for (volatile uint8_t *at = first; at < end; at += PAGE)
        *at = *at;
}

void mem_touch(void *p, size_t from, size_t to)
{
    const size_t mapped = mapped_bytes(p);
    if (!mapped)
        return; /* malloc's, which mem_alloc has cleared */
    const uintptr_t begin = (uintptr_t)p - ALIGN, end = begin + mapped;
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
