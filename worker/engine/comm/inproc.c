/* inproc.c: ranks as threads of one process.
 *
 * Every rank publishes the address of its buffer; after a barrier, rank r sums its n/size slice of
 * all buffers in rank order and writes the sum back to all of them; a second barrier ends the call.
 * Nothing is copied on the way. A rank that returns from a failed barrier may free its buffer while
 * a peer still reads it, so a failing call first waits until nobody is inside a slice.
 */
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/comm/barrier.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/reduce.h"

struct inproc_group {
    struct comm_barrier barrier;
    _Atomic uint32_t n_open; /* comms that are not closed yet */
    _Atomic uint32_t n_busy; /* ranks between the two barriers: they touch their peers' buffers */
    int size;
    int64_t spin_ns;
    int64_t timeout_ns;
    void *buffers[COMM_MAX_RANKS]; /* written by its rank before the first barrier of a call */
};

struct comm_inproc {
    struct comm base;
    struct inproc_group *group; /* shared by all ranks, freed by the last */
};

static struct inproc_group *group_of(struct comm *c)
{
    return ((struct comm_inproc *)c)->group;
}

static int wait_all(struct inproc_group *g)
{
    return comm_barrier_wait(&g->barrier, g->size, g->spin_ns, g->timeout_ns);
}

/* Publishes this rank's buffer and waits for the peers'. After 0 the caller works on all buffers
 * and then calls leave(). */
static int enter(struct comm *c, void *buffer)
{
    struct inproc_group *g = group_of(c);
    g->buffers[c->rank] = buffer;
    /* Counted before the barrier: whoever sees it pass knows that all are inside. */
    atomic_fetch_add(&g->n_busy, 1);
    int r = wait_all(g);
    if (r < 0)
        atomic_fetch_sub(&g->n_busy, 1);
    return r;
}

static int leave(struct comm *c, int entered)
{
    struct inproc_group *g = group_of(c);
    int r = entered;
    if (r == 0) {
        atomic_fetch_sub(&g->n_busy, 1);
        r = wait_all(g);
    }
    if (r < 0) {
        /* A peer may be at work on this rank's buffer. It is computing, not waiting, so this ends.
         */
        while (atomic_load(&g->n_busy))
            sched_yield();
    }
    return r;
}

static int inproc_all_reduce(struct comm *c, float *data, size_t n)
{
    struct inproc_group *g = group_of(c);
    int r = enter(c, data);
    if (r == 0)
        reduce_slice((float *const *)g->buffers, g->size, reduce_begin(n, g->size, c->rank),
                     reduce_begin(n, g->size, c->rank + 1));
    return leave(c, r);
}

static int inproc_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct inproc_group *g = group_of(c);
    int r = enter(c, (void *)(uintptr_t)src); /* peers only read it */
    if (r == 0) {
        for (int rank = 0; rank != g->size; rank++) {
            char *part = (char *)dst + (size_t)rank * bytes;
            if (g->buffers[rank] != part)
                memcpy(part, g->buffers[rank], bytes);
        }
    }
    return leave(c, r);
}

static int inproc_barrier(struct comm *c)
{
    return wait_all(group_of(c));
}

static int inproc_state(struct comm *c)
{
    return atomic_load(&group_of(c)->barrier.failed);
}

static void inproc_abort(struct comm *c)
{
    comm_barrier_fail(&group_of(c)->barrier, -ECANCELED);
}

static void inproc_close(struct comm *c)
{
    struct inproc_group *g = group_of(c);
    if (atomic_fetch_sub(&g->n_open, 1) == 1)
        free(g);
    free(c);
}

static const struct comm_ops ops = {
    .name = "inproc",
    .all_reduce = inproc_all_reduce,
    .all_gather = inproc_all_gather,
    .barrier = inproc_barrier,
    .state = inproc_state,
    .abort = inproc_abort,
    .close = inproc_close,
};

int comm_inproc_new(int size, int64_t timeout_ns, struct comm **ret)
{
    assert(size >= 1 && timeout_ns > 0);
    if (size > COMM_MAX_RANKS)
        return -EINVAL;
    struct inproc_group *g = aligned_alloc(64, round_up(sizeof *g, 64));
    if (!g)
        return -ENOMEM;
    memset(g, 0, sizeof *g);
    g->size = size;
    g->spin_ns = comm_spin_ns(size, COMM_SPIN_NS);
    g->timeout_ns = timeout_ns;
    atomic_store(&g->n_open, (uint32_t)size);
    for (int rank = 0; rank != size; rank++) {
        struct comm_inproc *c = calloc(1, sizeof *c);
        if (!c) {
            while (rank--)
                free(ret[rank]);
            free(g);
            return -ENOMEM;
        }
        c->base = (struct comm){
            .ops = &ops, .rank = rank, .size = size, .n_stages = 1, .timeout_ns = timeout_ns};
        c->group = g;
        ret[rank] = &c->base;
    }
    return 0;
}
