/* inproc_links.c: links between stages that are threads of one process: one ring each, in memory
 * that the last comm to close frees. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/comm/barrier.h"
#include "worker/engine/comm/links.h"

struct column {
    _Atomic int32_t failed;
    _Atomic uint32_t n_open; /* comms that are not closed yet */
    int n_stages;
    struct comm_ring_shared *rings[COMM_MAX_STAGES]; /* owned; [s] leads from stage s to the next */
};

struct inproc_links {
    struct comm_links links;
    struct column *column; /* shared by all stages, freed by the last */
};

static int inproc_fail(struct comm_links *l, int code)
{
    struct column *c = ((struct inproc_links *)l)->column;
    int32_t none = 0;
    atomic_compare_exchange_strong(&c->failed, &none, code);
    for (int stage = 0; stage != c->n_stages; stage++)
        comm_ring_wake(c->rings[stage]);
    return atomic_load(&c->failed);
}

static void free_column(struct column *c)
{
    for (int stage = 0; stage != c->n_stages; stage++)
        free(c->rings[stage]);
    free(c);
}

static void inproc_close(struct comm *c)
{
    struct column *column = ((struct inproc_links *)c)->column;
    if (atomic_fetch_sub(&column->n_open, 1) == 1)
        free_column(column);
    free(c);
}

static const struct comm_ops ops = {
    .name = "inproc",
    .all_reduce = comm_links_all_reduce,
    .all_gather = comm_links_all_gather,
    .barrier = comm_links_barrier,
    .send = comm_links_send,
    .recv = comm_links_recv,
    .state = comm_links_barrier, /* which does not wait */
    .abort = comm_links_abort,
    .close = inproc_close,
};

static struct column *new_column(int n_stages, size_t link_bytes)
{
    struct column *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->n_stages = n_stages;
    for (int stage = 0; stage != n_stages; stage++) {
        size_t bytes = comm_ring_bytes(comm_links_capacity(stage, n_stages, link_bytes));
        c->rings[stage] = aligned_alloc(64, bytes);
        if (!c->rings[stage]) {
            free_column(c);
            return NULL;
        }
        memset(c->rings[stage], 0, sizeof *c->rings[stage]);
    }
    return c;
}

int comm_inproc_links_new(int n_stages, size_t link_bytes, int64_t timeout_ns, struct comm **ret)
{
    int r = comm_links_check(0, n_stages, link_bytes, NULL);
    if (r < 0)
        return r;
    struct column *column = new_column(n_stages, link_bytes);
    if (!column)
        return -ENOMEM;
    atomic_store(&column->n_open, (uint32_t)n_stages);
    for (int stage = 0; stage != n_stages; stage++) {
        struct inproc_links *l = calloc(1, sizeof *l);
        if (!l) {
            while (stage--)
                free(ret[stage]);
            free_column(column);
            return -ENOMEM;
        }
        int before = (stage + n_stages - 1) % n_stages;
        int64_t spin_ns = comm_spin_ns(n_stages, COMM_LINK_SPIN_NS);
        l->links = (struct comm_links){
            .base = {.ops = &ops, .size = 1, .stage = stage, .n_stages = n_stages},
            .timeout_ns = timeout_ns,
            .fail = inproc_fail,
        };
        l->column = column;
        comm_ring_attach(&l->links.out, column->rings[stage],
                         comm_links_capacity(stage, n_stages, link_bytes), &column->failed,
                         spin_ns);
        comm_ring_attach(&l->links.in, column->rings[before],
                         comm_links_capacity(before, n_stages, link_bytes), &column->failed,
                         spin_ns);
        ret[stage] = &l->links.base;
    }
    return 0;
}
