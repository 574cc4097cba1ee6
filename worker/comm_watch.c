/* comm_watch.c: see comm_watch.h. */
#include "worker/comm_watch.h"

#include <stdlib.h>

struct comm_watch {
    struct comm base;
    struct comm *inner;        /* owned */
    _Atomic uint64_t *counter; /* borrowed */
};

static struct comm_watch *watch_of(struct comm *c)
{
    return (struct comm_watch *)c;
}

static int count(struct comm_watch *w, int r)
{
    atomic_fetch_add_explicit(w->counter, 1, memory_order_relaxed);
    return r;
}

static int watch_all_reduce(struct comm *c, float *data, size_t n)
{
    struct comm_watch *w = watch_of(c);
    return count(w, w->inner->ops->all_reduce(w->inner, data, n));
}

static int watch_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct comm_watch *w = watch_of(c);
    return count(w, w->inner->ops->all_gather(w->inner, src, bytes, dst));
}

static int watch_barrier(struct comm *c)
{
    struct comm_watch *w = watch_of(c);
    return count(w, w->inner->ops->barrier(w->inner));
}

static int watch_send(struct comm *c, const void *data, size_t bytes)
{
    struct comm_watch *w = watch_of(c);
    return count(w, w->inner->ops->send(w->inner, data, bytes));
}

static int watch_recv(struct comm *c, void *data, size_t bytes)
{
    struct comm_watch *w = watch_of(c);
    return count(w, w->inner->ops->recv(w->inner, data, bytes));
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
    .abort = watch_abort,
    .close = watch_close,
};

int comm_watch_new(struct comm *inner, _Atomic uint64_t *counter, struct comm **ret)
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
    *ret = &w->base;
    return 0;
}
