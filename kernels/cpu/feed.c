/* feed.c: see kernels/feed.h. Host memory is the device's: a piece is packed by the thread that
 * brings it, before it is overwritten, from a buffer that stays in that processor's cache. */
#include "kernels/feed.h"

#include <assert.h>
#include <stdlib.h>

#include "cpu.h"
#include "mem.h"

struct k_feed {
    uint32_t n_threads;
    void **buffers; /* [n_threads], owned */
};

static uint32_t feed_threads(struct k_ctx *c)
{
    return pool_threads(c->pool);
}

static void feed_free(struct k_feed *f)
{
    if (!f)
        return;
    for (uint32_t i = 0; f->buffers && i < f->n_threads; i++)
        free(f->buffers[i]);
    free(f->buffers);
    free(f);
}

static struct k_feed *feed_new(struct k_ctx *c, uint32_t n_threads, size_t buffer_bytes)
{
    (void)c;
    struct k_feed *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->n_threads = n_threads;
    f->buffers = calloc(n_threads, sizeof *f->buffers);
    for (uint32_t i = 0; f->buffers && i < n_threads; i++) {
        f->buffers[i] = aligned_alloc(K_FEED_ALIGN, (buffer_bytes + K_FEED_ALIGN - 1) /
                                                        K_FEED_ALIGN * K_FEED_ALIGN);
        if (!f->buffers[i])
            break;
        if (i + 1 == n_threads)
            return f;
    }
    feed_free(f);
    return NULL;
}

static void *feed_buffer(struct k_feed *f, uint32_t thread)
{
    assert(thread < f->n_threads);
    return f->buffers[thread];
}

static void feed_rows(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                      uint32_t n_rows, const void *data)
{
    (void)f;
    (void)thread;
    cpu_pack_rows(l, first_row, n_rows, data);
}

static void feed_scales(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                        uint32_t n_rows, const uint16_t *data)
{
    (void)f;
    (void)thread;
    cpu_pack_scales(l, first_row, n_rows, data);
}

const struct k_feed_ops cpu_feed_ops = {
    .piece_rows = PACK_LANES,
    .piece_bytes = 256 << 10,
    .n_threads = feed_threads,
    .linear_begin = cpu_linear_begin,
    .feed_new = feed_new,
    .buffer = feed_buffer,
    .rows = feed_rows,
    .scales = feed_scales,
    .feed_free = feed_free,
};
