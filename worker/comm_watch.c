/* comm_watch.c: see comm_watch.h. */
#include "worker/comm_watch.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"

struct comm_watch {
    struct comm base;
    struct comm *inner;             /* owned */
    _Atomic uint64_t *counter;      /* borrowed */
    struct comm_watch_times *times; /* likewise */
};

static struct comm_watch *watch_of(struct comm *c)
{
    return (struct comm_watch *)c;
}

/* One writer: no read-modify-write is needed. */
static void add(_Atomic uint64_t *sum, uint64_t n)
{
    uint64_t value = atomic_load_explicit(sum, memory_order_relaxed);
    atomic_store_explicit(sum, value + n, memory_order_relaxed);
}

/* A call that began then came back. */
static int count(struct comm_watch *w, enum comm_watch_kind kind, int64_t began_ns, int r)
{
    add(&w->times->n[kind], 1);
    add(&w->times->ns[kind], (uint64_t)(clock_now_ns() - began_ns));
    atomic_fetch_add_explicit(w->counter, 1, memory_order_relaxed);
    return r;
}

static int watch_all_reduce(struct comm *c, float *data, size_t n)
{
    struct comm_watch *w = watch_of(c);
    int64_t began = clock_now_ns();
    return count(w, COMM_WATCH_REDUCE, began, w->inner->ops->all_reduce(w->inner, data, n));
}

static int watch_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct comm_watch *w = watch_of(c);
    int64_t began = clock_now_ns();
    return count(w, COMM_WATCH_GATHER, began, w->inner->ops->all_gather(w->inner, src, bytes, dst));
}

static int watch_barrier(struct comm *c)
{
    struct comm_watch *w = watch_of(c);
    int64_t began = clock_now_ns();
    return count(w, COMM_WATCH_GATHER, began, w->inner->ops->barrier(w->inner));
}

static int watch_send(struct comm *c, const void *data, size_t bytes)
{
    struct comm_watch *w = watch_of(c);
    int64_t began = clock_now_ns();
    return count(w, COMM_WATCH_LINK, began, w->inner->ops->send(w->inner, data, bytes));
}

static int watch_recv(struct comm *c, void *data, size_t bytes)
{
    struct comm_watch *w = watch_of(c);
    int64_t began = clock_now_ns();
    return count(w, COMM_WATCH_LINK, began, w->inner->ops->recv(w->inner, data, bytes));
}

static int watch_state(struct comm *c)
{
    struct comm_watch *w = watch_of(c);
    return w->inner->ops->state(w->inner);
}

static void watch_abort(struct comm *c)
{
    struct comm_watch *w = watch_of(c);
    w->inner->ops->abort(w->inner);
}

static void watch_close(struct comm *c)
{
    struct comm_watch *w = watch_of(c);
    comm_close(w->inner);
    free(w);
}

static const struct comm_ops watch_ops = {
    .name = "watch",
    .all_reduce = watch_all_reduce,
    .all_gather = watch_all_gather,
    .barrier = watch_barrier,
    .send = watch_send,
    .recv = watch_recv,
    .state = watch_state,
    .abort = watch_abort,
    .close = watch_close,
};

int comm_watch_new(struct comm *inner, _Atomic uint64_t *counter, struct comm_watch_times *times,
                   struct comm **ret)
{
    struct comm_watch *w = calloc(1, sizeof *w);
    if (!w) {
        comm_close(inner);
        return -ENOMEM;
    }
    w->base = *inner; /* the same place */
    w->base.ops = &watch_ops;
    w->inner = inner;
    w->counter = counter;
    w->times = times;
    *ret = &w->base;
    return 0;
}
