/* feed.c: see kernels/feed.h. Each thread has two page-locked buffers and as much device memory: it
 * fills one while the other one is on its way.
 *
 *   host      fill A     | fill B       | wait for A, fill it | ...
 *   copying              | A -> staging | B -> staging        |
 *   packing              |              | A -> panels         | B -> panels
 *
 * Two streams of the feed's own carry that, so that copies and packing overlap; an event per buffer
 * says what is done with it. Threads enqueue under a lock. What fails is kept in the feed and told
 * to the context, which belongs to another thread, when the feed is freed.
 */
#include "kernels/feed.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/linear.h"

enum {
    BUFFERS = 2, /* of a thread */
    THREADS = 8, /* keep a few disks busy; more page-locked memory than theirs buys nothing */
    PIECE_BYTES = 8 << 20,
};

struct buffer {
    void *host, *device;
    struct CUevent_st *done; /* with what was handed over last */
    bool used;
};

struct k_feed {
    struct k_ctx *ctx; /* borrowed: driver, device and products */
    uint32_t n_threads;
    /* owned */
    struct CUstream_st *copying, *packing;
    struct buffer *buffers; /* [n_threads][BUFFERS] */
    uint32_t *next;         /* [n_threads] of the thread's buffers; its own */
    pthread_mutex_t lock;   /* guards the streams' order and all below */
    int error;              /* the first one; 0 = none */
    const char *error_at;
};

/* Under the lock. */
static void check(struct k_feed *f, int error, const char *what)
{
    if (!error || f->error)
        return;
    f->error = error;
    f->error_at = what;
}

static uint32_t feed_threads(struct k_ctx *c)
{
    (void)c;
    return THREADS;
}

static void feed_free(struct k_feed *f)
{
    if (!f)
        return;
    const struct cuda_driver *d = f->ctx->driver;
    cuda_enter(f->ctx);
    if (f->copying)
        check(f, d->stream_wait(f->copying), "copying weights");
    if (f->packing)
        check(f, d->stream_wait(f->packing), "packing weights");
    cuda_check(f->ctx, f->error, f->error_at);
    for (uint32_t i = 0; f->buffers && i < f->n_threads * BUFFERS; i++) {
        struct buffer *b = &f->buffers[i];
        if (b->done)
            (void)d->event_free(b->done);
        if (b->host)
            (void)d->free_host(b->host);
        cuda_free(f->ctx, b->device);
    }
    if (f->copying)
        (void)d->stream_free(f->copying);
    if (f->packing)
        (void)d->stream_free(f->packing);
    pthread_mutex_destroy(&f->lock);
    free(f->buffers);
    free(f->next);
    free(f);
}

/* A cudaError_t; memory that is short is not the device's failure. */
static int make_buffers(struct k_feed *f, size_t bytes)
{
    const struct cuda_driver *d = f->ctx->driver;
    int e = d->use(f->ctx->device);
    if (!e)
        e = d->stream_new(&f->copying);
    if (!e)
        e = d->stream_new(&f->packing);
    for (uint32_t i = 0; !e && i < f->n_threads * BUFFERS; i++) {
        struct buffer *b = &f->buffers[i];
        e = d->alloc_host(&b->host, bytes);
        if (!e)
            e = d->alloc(&b->device, bytes);
        if (!e)
            e = d->event_new(&b->done);
    }
    if (e)
        (void)d->last_error();
    return e == d->out_of_memory ? -ENOMEM : e;
}

static struct k_feed *feed_new(struct k_ctx *c, uint32_t n_threads, size_t buffer_bytes)
{
    struct k_feed *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->ctx = c;
    f->n_threads = n_threads;
    pthread_mutex_init(&f->lock, NULL);
    f->buffers = calloc((size_t)n_threads * BUFFERS, sizeof *f->buffers);
    f->next = calloc(n_threads, sizeof *f->next);
    int e = f->buffers && f->next ? make_buffers(f, buffer_bytes) : -ENOMEM;
    if (!e)
        return f;
    if (e > 0)
        cuda_check(c, e, "making buffers for weights");
    feed_free(f);
    return NULL;
}

static struct buffer *next_buffer(struct k_feed *f, uint32_t thread)
{
    assert(thread < f->n_threads);
    return &f->buffers[thread * BUFFERS + f->next[thread]];
}

static void *feed_buffer(struct k_feed *f, uint32_t thread)
{
    struct buffer *b = next_buffer(f, thread);
    int e = f->ctx->driver->use(f->ctx->device);
    if (!e && b->used)
        e = f->ctx->driver->event_wait(b->done);
    b->used = false;
    pthread_mutex_lock(&f->lock);
    check(f, e, "waiting for weights to be packed");
    bool well = !f->error;
    pthread_mutex_unlock(&f->lock);
    return well ? b->host : NULL;
}

/* Sends `bytes` of the thread's buffer to its staging memory; packing goes on behind that. Under
 * the lock. */
static bool send_piece(struct k_feed *f, const struct buffer *b, const void *data, size_t bytes)
{
    const struct cuda_driver *d = f->ctx->driver;
    check(f, d->use(f->ctx->device), "choosing the device");
    if (!f->error)
        check(f, d->copy(b->device, data, bytes, f->copying), "copying weights");
    if (!f->error)
        check(f, d->event_record(b->done, f->copying), "copying weights");
    if (!f->error)
        check(f, d->stream_wait_event(f->packing, b->done), "copying weights");
    return !f->error;
}

static void finish_piece(struct k_feed *f, uint32_t thread, struct buffer *b, int error)
{
    check(f, error, "packing weights");
    if (!f->error)
        check(f, f->ctx->driver->event_record(b->done, f->packing), "packing weights");
    b->used = !f->error;
    f->next[thread] = (f->next[thread] + 1) % BUFFERS;
}

static void feed_rows(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                      uint32_t n_rows, const void *data)
{
    struct buffer *b = next_buffer(f, thread);
    size_t bytes = (size_t)n_rows * l->shape.cols * l->shape.bits / 8;
    int e = 0;
    pthread_mutex_lock(&f->lock);
    if (send_piece(f, b, data, bytes))
        e = linear_pack_rows(l, b->device, first_row, n_rows, f->packing);
    finish_piece(f, thread, b, e);
    pthread_mutex_unlock(&f->lock);
}

static void feed_scales(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                        uint32_t n_rows, const uint16_t *data)
{
    struct buffer *b = next_buffer(f, thread);
    size_t bytes = (size_t)n_rows * l->shape.n_groups * sizeof *data;
    int e = 0;
    pthread_mutex_lock(&f->lock);
    if (send_piece(f, b, data, bytes))
        e = linear_pack_scales(l, (const uint16_t *)b->device, first_row, n_rows, f->packing);
    finish_piece(f, thread, b, e);
    pthread_mutex_unlock(&f->lock);
}

/* The matrix is blank, and its bias there, when this returns: the feed's streams may write to it.
 */
static struct k_linear *feed_linear_begin(struct k_ctx *c, const struct k_linear_src *shape)
{
    cuda_enter(c);
    struct k_linear *l = linear_begin(c->products, shape);
    cuda_check(c, c->products->error, "beginning a matrix");
    cuda_wait(c, "beginning a matrix");
    return l;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* `bytes` by way of both buffers in turn, which hold whatever they hold. */
static void copy_through(struct k_feed *f, uint64_t bytes)
{
    const struct cuda_driver *d = f->ctx->driver;
    size_t n;
    for (uint64_t at = 0; at < bytes && !f->error; at += n) {
        const struct buffer *b = &f->buffers[at / PIECE_BYTES % BUFFERS];
        n = bytes - at < PIECE_BYTES ? (size_t)(bytes - at) : PIECE_BYTES;
        check(f, d->copy(b->device, b->host, n, f->copying), "measuring the bus");
    }
    if (!f->error)
        check(f, d->stream_wait(f->copying), "measuring the bus");
}

static int feed_copy_time(struct k_ctx *c, uint64_t bytes, int64_t *ret_ns)
{
    cuda_enter(c);
    struct k_feed *f = feed_new(c, 1, PIECE_BYTES);
    if (!f)
        return c->error ? -EIO : -ENOMEM;
    copy_through(f, (uint64_t)BUFFERS * PIECE_BYTES); /* the first copies set the bus going */
    int64_t began_ns = now_ns();
    copy_through(f, bytes);
    *ret_ns = now_ns() - began_ns;
    feed_free(f);
    return c->error ? -EIO : 0;
}

const struct k_feed_ops cuda_feed_ops = {
    .piece_rows = PACKED_ROWS,
    .piece_bytes = PIECE_BYTES,
    .direct = true,
    .n_threads = feed_threads,
    .linear_begin = feed_linear_begin,
    .feed_new = feed_new,
    .buffer = feed_buffer,
    .rows = feed_rows,
    .scales = feed_scales,
    .feed_free = feed_free,
    .copy_time = feed_copy_time,
};
