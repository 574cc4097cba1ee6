/* grid.c: the comm of a rank that has a stage and a column: sums go to the one, messages to the
 * other. A failure of either ends both, so that it reaches every rank of the group. */
#include <errno.h>
#include <stdlib.h>

#include "worker/engine/comm/comm.h"

struct comm_grid {
    struct comm base;
    struct comm *stage, *links; /* owned */
};

static struct comm_grid *grid_of(struct comm *c)
{
    return (struct comm_grid *)c;
}

static int checked(int r, struct comm *other)
{
    if (r < 0)
        other->ops->abort(other);
    return r;
}

static int grid_all_reduce(struct comm *c, float *data, size_t n)
{
    struct comm_grid *g = grid_of(c);
    return checked(g->stage->ops->all_reduce(g->stage, data, n), g->links);
}

static int grid_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct comm_grid *g = grid_of(c);
    return checked(g->stage->ops->all_gather(g->stage, src, bytes, dst), g->links);
}

static int grid_barrier(struct comm *c)
{
    struct comm_grid *g = grid_of(c);
    int r = checked(g->links->ops->barrier(g->links), g->stage);
    return r < 0 ? r : checked(g->stage->ops->barrier(g->stage), g->links);
}

static int grid_send(struct comm *c, const void *data, size_t bytes)
{
    struct comm_grid *g = grid_of(c);
    return checked(g->links->ops->send(g->links, data, bytes), g->stage);
}

static int grid_recv(struct comm *c, void *data, size_t bytes)
{
    struct comm_grid *g = grid_of(c);
    return checked(g->links->ops->recv(g->links, data, bytes), g->stage);
}

static int grid_state(struct comm *c)
{
    struct comm_grid *g = grid_of(c);
    int r = checked(g->links->ops->state(g->links), g->stage);
    return r < 0 ? r : checked(g->stage->ops->state(g->stage), g->links);
}

static void grid_abort(struct comm *c)
{
    struct comm_grid *g = grid_of(c);
    g->stage->ops->abort(g->stage);
    g->links->ops->abort(g->links);
}

static void grid_close(struct comm *c)
{
    struct comm_grid *g = grid_of(c);
    comm_close(g->stage);
    comm_close(g->links);
    free(g);
}

static const struct comm_ops ops = {
    .name = "grid",
    .all_reduce = grid_all_reduce,
    .all_gather = grid_all_gather,
    .barrier = grid_barrier,
    .send = grid_send,
    .recv = grid_recv,
    .state = grid_state,
    .abort = grid_abort,
    .close = grid_close,
};

int comm_grid_new(struct comm *stage_comm, struct comm *links, struct comm **ret)
{
    struct comm_grid *g = calloc(1, sizeof *g);
    if (!g) {
        comm_close(stage_comm);
        comm_close(links);
        return -ENOMEM;
    }
    g->base = (struct comm){.ops = &ops,
                            .rank = stage_comm->rank,
                            .size = stage_comm->size,
                            .stage = links->stage,
                            .n_stages = links->n_stages,
                            .timeout_ns = stage_comm->timeout_ns};
    g->stage = stage_comm;
    g->links = links;
    *ret = &g->base;
    return 0;
}
