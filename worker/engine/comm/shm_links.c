/* shm_links.c: links between stages that are processes of one host: the rings lie one behind the
 * other in a shared-memory segment, that of stage 0 first. */
#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "worker/engine/comm/links.h"
#include "worker/engine/comm/shm_segment.h"

struct shm_links {
    struct comm_links links;
    struct shm_segment segment; /* owned */
    size_t link_bytes;
};

/* Where the ring from `stage` to the next one begins; n_stages: the end of all. */
static size_t ring_at(int stage, int n_stages, size_t link_bytes)
{
    size_t at = 0;
    for (int s = 0; s != stage; s++)
        at += comm_ring_bytes(comm_links_capacity(s, n_stages, link_bytes));
    return at;
}

static int shm_fail(struct comm_links *l, int code)
{
    struct shm_links *s = (struct shm_links *)l;
    int n_stages = l->base.n_stages;
    int first = comm_barrier_fail(&s->segment.header->barrier, code);
    for (int stage = 0; stage != n_stages; stage++) {
        size_t at = ring_at(stage, n_stages, s->link_bytes);
        comm_ring_wake((struct comm_ring_shared *)(s->segment.payload + at));
    }
    return first;
}

static void shm_close(struct comm *c)
{
    struct shm_links *s = (struct shm_links *)c;
    shm_segment_leave(&s->segment);
    free(s);
}

static const struct comm_ops ops = {
    .name = "shm",
    .all_reduce = comm_links_all_reduce,
    .all_gather = comm_links_all_gather,
    .barrier = comm_links_barrier,
    .send = comm_links_send,
    .recv = comm_links_recv,
    .state = comm_links_barrier, /* which does not wait */
    .abort = comm_links_abort,
    .close = shm_close,
};

static void attach(struct shm_links *s, struct comm_ring *ring, int stage, int64_t spin_ns)
{
    int n_stages = s->links.base.n_stages;
    comm_ring_attach(ring, s->segment.payload + ring_at(stage, n_stages, s->link_bytes),
                     comm_links_capacity(stage, n_stages, s->link_bytes),
                     &s->segment.header->barrier.failed, spin_ns);
}

int comm_shm_links_new(const char *name, const uint8_t token[16], int stage, int n_stages,
                       size_t link_bytes, int64_t timeout_ns, struct comm **ret, struct err *e)
{
    int r = comm_links_check(stage, n_stages, link_bytes, e);
    if (r < 0)
        return r;
    struct shm_links *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    int64_t spin_ns = comm_spin_ns(n_stages, COMM_LINK_SPIN_NS);
    s->link_bytes = link_bytes;
    s->links = (struct comm_links){
        .base = {.ops = &ops, .size = 1, .stage = stage, .n_stages = n_stages},
        .timeout_ns = timeout_ns,
        .fail = shm_fail,
    };
    struct shm_segment_params p = {.name = name,
                                   .token = token,
                                   .rank = stage,
                                   .size = n_stages,
                                   .unit_bytes = link_bytes,
                                   .payload_bytes = ring_at(n_stages, n_stages, link_bytes),
                                   .spin_ns = spin_ns,
                                   .timeout_ns = timeout_ns};
    r = shm_segment_join(&p, &s->segment, e);
    if (r < 0) {
        free(s);
        return r;
    }
    attach(s, &s->links.out, stage, spin_ns);
    attach(s, &s->links.in, (stage + n_stages - 1) % n_stages, spin_ns);
    *ret = &s->links.base;
    return 0;
}
