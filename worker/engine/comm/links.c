/* links.c: see links.h. A message is a header and its bytes. */
#include "worker/engine/comm/links.h"

#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

/* Both sides count, so that stages that have got out of step find out. */
struct message_header {
    uint64_t number;
    uint64_t bytes;
};

enum { MIN_CAPACITY = 4096 };
static const size_t max_link_bytes = (size_t)1 << 40;

static struct comm_links *links_of(struct comm *c)
{
    return (struct comm_links *)c;
}

size_t comm_links_capacity(int stage, int n_stages, size_t link_bytes)
{
    size_t wanted = link_bytes + sizeof(struct message_header);
    return stage + 1 == n_stages ? MIN_CAPACITY : MAX(round_up(wanted, 64), (size_t)MIN_CAPACITY);
}

int comm_links_check(int stage, int n_stages, size_t link_bytes, struct err *e)
{
    if (n_stages < 2 || n_stages > COMM_MAX_STAGES || stage < 0 || stage >= n_stages)
        return err_set(e, -EINVAL,
                       "stage %d of %d: expected a stage below their number, 2 to %d stages", stage,
                       n_stages, COMM_MAX_STAGES);
    if (link_bytes > max_link_bytes)
        return err_set(e, -EINVAL, "a link that holds %zu bytes is too large", link_bytes);
    return 0;
}

static void moved(struct comm_links *l)
{
    if (l->moved)
        l->moved(l);
}

static int put(struct comm_links *l, const void *data, size_t bytes, int64_t deadline_ns)
{
    const char *p = data;
    for (size_t done = 0; done != bytes;) {
        int r = comm_ring_wait_room(&l->out, deadline_ns);
        if (r < 0)
            return l->fail(l, r);
        char *room = NULL;
        size_t n = comm_ring_room(&l->out, &room); /* once: the reader may be making more */
        n = MIN(n, bytes - done);
        if (n)
            memcpy(room, p + done, n);
        comm_ring_wrote(&l->out, n);
        moved(l);
        done += n;
    }
    return 0;
}

static int take(struct comm_links *l, void *data, size_t bytes, int64_t deadline_ns)
{
    char *p = data;
    for (size_t done = 0; done != bytes;) {
        int r = comm_ring_wait_data(&l->in, deadline_ns);
        if (r < 0)
            return l->fail(l, r);
        const char *filled = NULL;
        size_t n = comm_ring_filled(&l->in, &filled);
        n = MIN(n, bytes - done);
        if (n)
            memcpy(p + done, filled, n);
        comm_ring_took(&l->in, n);
        moved(l);
        done += n;
    }
    return 0;
}

int comm_links_send(struct comm *c, const void *data, size_t bytes)
{
    struct comm_links *l = links_of(c);
    int64_t deadline_ns = clock_now_ns() + l->timeout_ns;
    struct message_header h = {l->n_sent++, bytes};
    int r = put(l, &h, sizeof h, deadline_ns);
    return r < 0 ? r : put(l, data, bytes, deadline_ns);
}

int comm_links_recv(struct comm *c, void *data, size_t bytes)
{
    struct comm_links *l = links_of(c);
    int64_t deadline_ns = clock_now_ns() + l->timeout_ns;
    struct message_header h = {0};
    int r = take(l, &h, sizeof h, deadline_ns);
    if (r < 0)
        return r;
    if (h.number != l->n_received++ || h.bytes != bytes)
        return l->fail(l, -EIO);
    return take(l, data, bytes, deadline_ns);
}

/* ---- a stage of one rank ---- */

int comm_links_barrier(struct comm *c)
{
    return atomic_load(links_of(c)->out.failed);
}

int comm_links_all_reduce(struct comm *c, float *data, size_t n)
{
    (void)data;
    (void)n;
    return comm_links_barrier(c);
}

int comm_links_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    if (src != dst)
        memcpy(dst, src, bytes);
    return comm_links_barrier(c);
}

void comm_links_abort(struct comm *c)
{
    struct comm_links *l = links_of(c);
    l->fail(l, -ECANCELED);
}
