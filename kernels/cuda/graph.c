/* graph.c: decode steps as CUDA graphs (contract: kernels.h, begin_decode).
 *
 * Launches of a decode step depend on three numbers: its rows and the tiles of keys of its longest
 * sequence, both padded to a few values (step.c), and what the caller enqueues behind the layers
 * (`kind`). The first step of a sort is enqueued as it is, which also loads its kernels and lets
 * NCCL connect; the second is recorded, and runs as a record like all that follow. What is not used
 * for longest makes room.
 *
 * A failure to record or to run a record ends recording for good, not the step: its operations,
 * none of which has run, are enqueued; when it is the device that is broken, they say so.
 */
#include "kernels/cuda/cuda.h"

#include <assert.h>
#include <stdio.h>

static struct cuda_graph *find(struct k_ctx *c, uint32_t kind)
{
    struct cuda_graphs *g = &c->graphs;
    for (uint32_t i = 0; i < g->n; i++) {
        struct cuda_graph *one = &g->all[i];
        if (one->rows == c->step.decode_rows && one->tiles == c->step.decode_tiles &&
            one->kind == kind)
            return one;
    }
    return NULL;
}

/* What was recorded is gone; it may be on its way through the device, which ends it first. */
static void drop(struct k_ctx *c, struct cuda_graph *g)
{
    if (g->exec)
        (void)c->driver->graph_free(g->exec);
    g->exec = NULL;
}

static void drop_all(struct k_ctx *c)
{
    for (uint32_t i = 0; i < c->graphs.n; i++)
        drop(c, &c->graphs.all[i]);
    c->graphs.n = 0;
    c->graphs.current = NULL;
}

/* From here on operations are enqueued as they are. */
static void give_up(struct k_ctx *c, int error, const char *what)
{
    struct cuda_graphs *g = &c->graphs;
    g->off = true;
    if (!g->error) /* else `why` says it */
        snprintf(g->why, sizeof g->why, "cuda:%d: %s (%s), %s", c->device,
                 c->driver->error_text(error), c->driver->error_name(error), what);
    g->error = 0;
    (void)c->driver->last_error(); /* it is told in `why`, and the device may be well */
    drop_all(c);
}

/* A place for a sort of step that comes for the first time. */
static void note_new(struct k_ctx *c, uint32_t kind, uint64_t now)
{
    struct cuda_graphs *g = &c->graphs;
    struct cuda_graph *place = &g->all[0];
    if (g->n < CUDA_MAX_GRAPHS) {
        place = &g->all[g->n++];
    } else {
        for (uint32_t i = 1; i < g->n; i++)
            place = g->all[i].used < place->used ? &g->all[i] : place;
        drop(c, place);
    }
    *place = (struct cuda_graph){
        .rows = c->step.decode_rows, .tiles = c->step.decode_tiles, .kind = kind, .used = now};
}

/* True: it runs. */
static bool run(struct k_ctx *c, struct cuda_graph *g)
{
    int e = c->driver->graph_run(g->exec, c->stream);
    if (e) {
        give_up(c, e, "running a recorded step");
        return false;
    }
    c->graphs.n_replays++;
    return true;
}

bool cuda_graph_begin(struct k_ctx *c, uint32_t kind)
{
    struct cuda_graphs *g = &c->graphs;
    assert(c->step.decode_rows && !g->recording);
    uint64_t now = g->n_replays + g->n_enqueued + 1;
    if (g->off || g->held || c->error) {
        g->n_enqueued++;
        return true;
    }
    struct cuda_graph *seen = find(c, kind);
    if (!seen) {
        note_new(c, kind, now);
        g->n_enqueued++;
        return true;
    }
    seen->used = now;
    if (seen->exec && run(c, seen))
        return false;
    if (g->off) { /* since just now */
        g->n_enqueued++;
        return true;
    }
    int e = c->driver->capture_begin(c->stream);
    if (e) {
        give_up(c, e, "beginning to record a step");
        g->n_enqueued++;
        return true;
    }
    g->recording = true;
    g->current = seen;
    return true;
}

bool cuda_graph_end(struct k_ctx *c)
{
    struct cuda_graphs *g = &c->graphs;
    if (!g->recording)
        return false;
    g->recording = false;
    struct CUgraphExec_st *exec = NULL;
    int e = c->driver->capture_end(c->stream, &exec);
    if (e || g->error) {
        if (exec)
            (void)c->driver->graph_free(exec);
        give_up(c, e, "recording a step");
        g->n_enqueued++;
        return true;
    }
    g->current->exec = exec;
    if (run(c, g->current))
        return false;
    g->n_enqueued++;
    return true;
}

void cuda_graph_stats(struct k_ctx *c, struct k_graph_stats *ret)
{
    const struct cuda_graphs *g = &c->graphs;
    *ret = (struct k_graph_stats){
        .n_replays = g->n_replays, .n_enqueued = g->n_enqueued, .off = g->off ? g->why : NULL};
    for (uint32_t i = 0; i < g->n; i++)
        ret->n_graphs += g->all[i].exec != NULL;
}

void cuda_graph_hold(struct k_ctx *c)
{
    struct cuda_graphs *g = &c->graphs;
    if (g->recording) {
        struct CUgraphExec_st *exec = NULL;
        g->recording = false;
        (void)c->driver->capture_end(c->stream, &exec);
        if (exec)
            (void)c->driver->graph_free(exec);
        (void)c->driver->last_error();
        g->error = 0;
    }
    drop_all(c);
    g->held = true;
}

void cuda_graph_release(struct k_ctx *c)
{
    c->graphs.held = false;
}
