/* comm_nccl.c: NCCL moves, sums.cu adds.
 *
 *   small   all-gather of the whole message, then every rank adds all of it
 *   large   every rank sends each peer that peer's slice, adds its own slice, and the slices are
 *           gathered: the bytes of a ring
 *
 * The communicator does not block: every call may come back unfinished, and what it does then is
 * looked at until it is done or somebody gives up.
 */
#include "kernels/cuda/comm_internal.h"
#include "kernels/cuda/nccl_log.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    SMALL_ELEMENTS =
        MEMORY_NCCL_SMALL, /* 512 KiB: below, one transfer's latency counts more than bytes */
    POLL_NS = 200000,
    MAGIC = 0xcafebeef, /* what NCCL's initializer of a configuration says */
};

/* ---- waiting for calls ---- */

static const char *words(struct nccl_group *g, int error, char *buffer, size_t size)
{
    const char *last = g->library->last_error ? g->library->last_error(g->comm) : NULL;
    snprintf(buffer, size, "NCCL: %s%s%s", g->library->error_text(error), last && *last ? ": " : "",
             last && *last ? last : "");
    return buffer;
}

/* What a call came back with, once it is known. 0, or -EIO, -ETIMEDOUT, the group's failure. */
static int settle(struct k_comm *m, int result, int64_t timeout_ns, char *why, size_t size)
{
    struct nccl_group *g = &m->nccl;
    int64_t deadline_ns = comm_now_ns() + timeout_ns;
    while (result == NCCL_IN_PROGRESS) {
        int ended = m->group.state(m->group.context);
        if (ended) {
            snprintf(why, size, "the group has ended");
            return ended;
        }
        int asked = g->library->async_error(g->comm, &result);
        if (asked != NCCL_OK)
            result = asked;
        if (result != NCCL_IN_PROGRESS)
            break;
        if (comm_now_ns() >= deadline_ns) {
            snprintf(why, size, "NCCL did not get ready within %.1f s", (double)timeout_ns / 1e9);
            return -ETIMEDOUT;
        }
        comm_pause(POLL_NS);
    }
    if (result == NCCL_OK)
        return 0;
    words(g, result, why, size);
    return -EIO;
}

int nccl_look(struct k_comm *m)
{
    int error = NCCL_OK;
    char why[256];
    if (!m->nccl.comm)
        return 0;
    int asked = m->nccl.library->async_error(m->nccl.comm, &error);
    if (asked != NCCL_OK)
        error = asked;
    if (error == NCCL_OK || error == NCCL_IN_PROGRESS)
        return 0;
    return comm_fail(m, -EIO, "%s", words(&m->nccl, error, why, sizeof why));
}

/* ---- joining ---- */

struct offer { /* rank 0's; the others send zeros */
    int32_t code;
    struct nccl_id id;
    char why[COMM_WHY_BYTES];
};

static int exchange_id(struct k_comm *m, struct nccl_id *ret, char *why, size_t size)
{
    struct offer mine = {0}, all[COMM_MAX_SIZE];
    if (m->group.rank == 0) {
        int error = m->nccl.library->unique_id(&mine.id);
        if (error) {
            mine.code = -EIO;
            words(&m->nccl, error, mine.why, sizeof mine.why);
        }
    }
    int r = m->group.all_gather(m->group.context, &mine, sizeof mine, all);
    if (r)
        return comm_fail(m, r, "the group ended while NCCL's id was passed on");
    *ret = all[0].id;
    if (!all[0].code)
        return 0;
    snprintf(why, size, "rank 0: %.*s", COMM_WHY_BYTES - 1, all[0].why);
    return -EIO;
}

static int join(struct k_comm *m, struct nccl_id id, char *why, size_t size)
{
    struct nccl_group *g = &m->nccl;
    struct nccl_config config = {
        .size = sizeof config, .magic = MAGIC, .version = NCCL_OLDEST, .blocking = 0};
    cuda_enter(m->c);
    int result = g->library->init(&g->comm, m->group.size, id, m->group.rank, &config);
    if (result != NCCL_OK && !g->comm) {
        words(g, result, why, size);
        return -EIO;
    }
    return settle(m, result, m->group.join_timeout_ns, why, size);
}

int nccl_join(struct k_comm *m, char *why, size_t size)
{
    struct nccl_group *g = &m->nccl;
    char mine[COMM_WHY_BYTES] = "";
    struct nccl_id id;
    g->library = nccl_find(mine, sizeof mine);
    nccl_log_restart();
    assert(g->library); /* the facts said so */
    g->version = m->facts[m->group.rank].nccl_version;
    g->scratch_elements = memory_nccl_elements((uint32_t)m->group.size, m->max_rows, m->cols);
    g->scratch = cuda_new(m->c, g->scratch_elements * sizeof *g->scratch);
    int r =
        comm_agree(m, g->scratch ? 0 : -ENOMEM, "out of memory: room for peers' parts", why, size);
    if (!r)
        r = exchange_id(m, &id, why, size);
    if (!r) {
        r = join(m, id, mine, sizeof mine);
        r = comm_agree(m, r, mine, why, size);
    }
    if (r)
        nccl_leave(m);
    return r;
}

void nccl_leave(struct k_comm *m)
{
    struct nccl_group *g = &m->nccl;
    if (g->comm) /* after everything: what it would wait for may never come */
        (void)g->library->abort(g->comm);
    g->comm = NULL;
    cuda_free(m->c, g->scratch);
    g->scratch = NULL;
}

/* ---- sums ---- */

/* Whether the call has been enqueued; else the comm has failed. */
static bool enqueued(struct k_comm *m, int result)
{
    char why[256] = "";
    int r = settle(m, result, m->group.timeout_ns, why, sizeof why);
    if (r)
        comm_fail(m, r, "%s", why);
    return r == 0;
}

static void mark(struct k_comm *m, enum sums_kind kind, bool ends)
{
    cuda_check(m->c, sums_mark(m->control, m->signals, kind, ends, m->c->stream),
               "the time of a transfer");
}

static void add(struct k_comm *m, uint16_t *x, const uint16_t *parts, size_t n, size_t stride,
                bool ends)
{
    const struct sums_parts p = {.x = x,
                                 .parts = parts,
                                 .n = n,
                                 .stride = stride,
                                 .rank = (uint32_t)m->group.rank,
                                 .size = (uint32_t)m->group.size,
                                 .ends = ends,
                                 .control = m->control,
                                 .signals = m->signals};
    cuda_check(m->c, sums_of_parts(&p, m->c->stream), "a sum over ranks");
}

static void sum_small(struct k_comm *m, uint16_t *x, size_t n)
{
    struct nccl_group *g = &m->nccl;
    mark(m, SUMS_SUM, false);
    if (enqueued(m, g->library->all_gather(x, g->scratch, n, NCCL_HALF, g->comm, m->c->stream)))
        add(m, x, g->scratch, n, n, true);
}

/* Every rank's slice has `slice` elements. */
static void sum_large(struct k_comm *m, uint16_t *x, size_t slice)
{
    struct nccl_group *g = &m->nccl;
    const struct nccl_library *l = g->library;
    int size = m->group.size, rank = m->group.rank;
    mark(m, SUMS_SUM, false);
    int result = l->group_start();
    for (int r = 0; r < size && result == NCCL_OK; r++) {
        if (r == rank)
            continue;
        result = l->send(x + (size_t)r * slice, slice, NCCL_HALF, r, g->comm, m->c->stream);
        if (result == NCCL_OK || result == NCCL_IN_PROGRESS)
            result =
                l->recv(g->scratch + (size_t)r * slice, slice, NCCL_HALF, r, g->comm, m->c->stream);
        result = result == NCCL_IN_PROGRESS ? NCCL_OK : result;
    }
    int ended = l->group_end();
    uint16_t *own = x + (size_t)rank * slice;
    if (!enqueued(m, result == NCCL_OK ? ended : result))
        return;
    add(m, own, g->scratch, slice, slice, false);
    if (enqueued(m, l->all_gather(own, x, slice, NCCL_HALF, g->comm, m->c->stream)))
        mark(m, SUMS_SUM, true);
}

/* NCCL moves bits: what they stand for does not matter. */
void nccl_gather(struct k_comm *m, const void *own, size_t bytes, void *all)
{
    struct nccl_group *g = &m->nccl;
    size_t n = bytes / sizeof(uint16_t);
    mark(m, SUMS_GATHER, false);
    if (enqueued(m, g->library->all_gather(own, all, n, NCCL_HALF, g->comm, m->c->stream)))
        mark(m, SUMS_GATHER, true);
}

void nccl_sum(struct k_comm *m, uint16_t *x, size_t n)
{
    size_t size = (size_t)m->group.size;
    size_t slice = n / (size * SUMS_PIECE) * SUMS_PIECE;
    size_t at = 0;
    if (n > SMALL_ELEMENTS) {
        sum_large(m, x, slice);
        at = slice * size; /* what slices do not cover is small */
    }
    if (at < n && !m->failed)
        sum_small(m, x + at, n - at);
}
