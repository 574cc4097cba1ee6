/* shm.c: ranks as processes of one host, over a shared-memory segment.
 *
 *   +--------+---------------- parity 0 ----------------+--------- parity 1 ---------+
 *   | header | slot of rank 0 | ... | slot n-1 | result | slot 0 | ... | slot n-1 | result |
 *   +--------+------------------------------------------+----------------------------+
 *
 * A message goes in pieces of at most one slot. Sum: every rank copies its piece into its slot;
 * barrier; rank r sums its n/size slice of all slots, in rank order, into the result; barrier;
 * everyone copies the result out. Pieces alternate between the two parities, so that a rank still
 * copying out of one is never overtaken by a peer filling the next: to reach the same parity again
 * the peer has to pass a barrier that the slow rank has not reached.
 *
 * What is read from the segment are floats and barrier counters, no sizes or offsets.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/reduce.h"
#include "worker/engine/comm/shm_segment.h"

struct comm_shm {
    struct comm base;
    struct shm_segment segment; /* owned */
    size_t slot_bytes;
    uint32_t parity;
    int64_t spin_ns;
    int64_t timeout_ns;
};

static struct comm_shm *shm_of(struct comm *c)
{
    return (struct comm_shm *)c;
}

/* Slot of a rank in the current parity; rank == size is the result. */
static char *slot(const struct comm_shm *s, int rank)
{
    size_t idx = (size_t)s->parity * ((size_t)s->base.size + 1) + (size_t)rank;
    return s->segment.payload + idx * s->slot_bytes;
}

static int wait_all(struct comm_shm *s)
{
    return comm_barrier_wait(&s->segment.header->barrier, s->base.size, s->spin_ns, s->timeout_ns);
}

static int reduce_piece(struct comm_shm *s, float *data, size_t n)
{
    int size = s->base.size;
    memcpy(slot(s, s->base.rank), data, n * sizeof *data);
    int r = wait_all(s);
    if (r < 0)
        return r;
    size_t begin = reduce_begin(n, size, s->base.rank);
    size_t end = reduce_begin(n, size, s->base.rank + 1);
    float *result = (float *)slot(s, size);
    for (size_t i = begin; i != end; i++)
        result[i] = ((const float *)slot(s, 0))[i];
    for (int rank = 1; rank < size; rank++) {
        const float *part = (const float *)slot(s, rank);
        for (size_t i = begin; i != end; i++)
            result[i] += part[i];
    }
    r = wait_all(s);
    if (r < 0)
        return r;
    memcpy(data, result, n * sizeof *data);
    s->parity ^= 1;
    return 0;
}

static int shm_all_reduce(struct comm *c, float *data, size_t n)
{
    struct comm_shm *s = shm_of(c);
    size_t piece = s->slot_bytes / sizeof *data;
    for (size_t at = 0; at < n; at += piece) {
        int r = reduce_piece(s, data + at, MIN(piece, n - at));
        if (r < 0)
            return r;
    }
    return 0;
}

static int shm_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct comm_shm *s = shm_of(c);
    for (size_t at = 0; at < bytes; at += s->slot_bytes) {
        size_t n = MIN(s->slot_bytes, bytes - at);
        memcpy(slot(s, c->rank), (const char *)src + at, n);
        int r = wait_all(s);
        if (r < 0)
            return r;
        for (int rank = 0; rank != c->size; rank++) {
            char *part = (char *)dst + (size_t)rank * bytes + at;
            if (part != (const char *)src + at)
                memcpy(part, slot(s, rank), n);
        }
        s->parity ^= 1;
    }
    return 0;
}

static int shm_barrier(struct comm *c)
{
    return wait_all(shm_of(c));
}

static int shm_state(struct comm *c)
{
    return atomic_load(&shm_of(c)->segment.header->barrier.failed);
}

static void shm_abort(struct comm *c)
{
    comm_barrier_fail(&shm_of(c)->segment.header->barrier, -ECANCELED);
}

static void shm_close(struct comm *c)
{
    struct comm_shm *s = shm_of(c);
    shm_segment_leave(&s->segment);
    free(s);
}

static const struct comm_ops ops = {
    .name = "shm",
    .all_reduce = shm_all_reduce,
    .all_gather = shm_all_gather,
    .barrier = shm_barrier,
    .state = shm_state,
    .abort = shm_abort,
    .close = shm_close,
};

int comm_shm_new(const char *name, const uint8_t token[16], int rank, int size, size_t max_bytes,
                 int64_t timeout_ns, struct comm **ret, struct err *e)
{
    if (size < 1 || size > COMM_MAX_RANKS || rank < 0 || rank >= size)
        return err_set(e, -EINVAL,
                       "rank %d of %d: expected a rank below the size, at most %d ranks", rank,
                       size, COMM_MAX_RANKS);
    size_t slot_bytes = max_bytes <= SIZE_MAX / 2 ? round_up(max_bytes ? max_bytes : 1, 4096) : 0;
    size_t payload_bytes;
    if (!slot_bytes || !mul_size(2 * ((size_t)size + 1), slot_bytes, &payload_bytes))
        return err_set(e, -EINVAL, "message size %zu is too large", max_bytes);
    struct comm_shm *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->base = (struct comm){
        .ops = &ops, .rank = rank, .size = size, .n_stages = 1, .timeout_ns = timeout_ns};
    s->slot_bytes = slot_bytes;
    s->spin_ns = comm_spin_ns(size, COMM_SPIN_NS);
    s->timeout_ns = timeout_ns;
    struct shm_segment_params p = {.name = name,
                                   .token = token,
                                   .rank = rank,
                                   .size = size,
                                   .unit_bytes = slot_bytes,
                                   .payload_bytes = payload_bytes,
                                   .spin_ns = s->spin_ns,
                                   .timeout_ns = timeout_ns};
    int r = shm_segment_join(&p, &s->segment, e);
    if (r < 0) {
        free(s);
        return r;
    }
    *ret = &s->base;
    return 0;
}
