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
 * The segment is trusted as far as the token goes: what is read from it are floats and barrier
 * counters, no sizes or offsets. It is created with mode 0600 and unlinked once all have joined, so
 * that it disappears with its last process, however that ends.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/comm/barrier.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/reduce.h"
#include "worker/engine/comm/token.h"

#define SHM_MAGIC UINT32_C(0x676c6d73) /* written last: the header is complete */

enum { SHM_NAME_BYTES = 128, RETRY_NS = 2000000 };

struct shm_header {
    _Atomic uint32_t magic;
    int32_t size;
    uint64_t slot_bytes;
    uint8_t token[COMM_TOKEN_BYTES];
    struct comm_barrier barrier;
    _Atomic uint32_t joined[COMM_MAX_RANKS];
};

struct comm_shm {
    struct comm base;
    struct shm_header *header; /* owned mapping of segment_bytes */
    size_t segment_bytes;
    size_t slot_bytes;
    uint32_t parity;
    uint32_t spins;
    int64_t timeout_ns;
};

static struct comm_shm *shm_of(struct comm *c)
{
    return (struct comm_shm *)c;
}

/* Slot of a rank in the current parity; rank == size is the result. */
static char *slot(const struct comm_shm *s, int rank)
{
    size_t header_bytes = round_up(sizeof *s->header, 4096);
    size_t idx = (size_t)s->parity * ((size_t)s->base.size + 1) + (size_t)rank;
    return (char *)s->header + header_bytes + idx * s->slot_bytes;
}

static int wait_all(struct comm_shm *s)
{
    return comm_barrier_wait(&s->header->barrier, s->base.size, s->spins, s->timeout_ns);
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

static void shm_abort(struct comm *c)
{
    comm_barrier_fail(&shm_of(c)->header->barrier, -ECANCELED);
}

static void shm_close(struct comm *c)
{
    struct comm_shm *s = shm_of(c);
    munmap(s->header, s->segment_bytes);
    free(s);
}

static const struct comm_ops ops = {
    .name = "shm",
    .all_reduce = shm_all_reduce,
    .all_gather = shm_all_gather,
    .barrier = shm_barrier,
    .abort = shm_abort,
    .close = shm_close,
};

/* Maps `fd` if it has the expected size; -EAGAIN when it is still being made. */
static int map_segment(struct comm_shm *s, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_uid != geteuid())
        return -EPERM;
    if (st.st_size != (off_t)s->segment_bytes)
        return -EAGAIN;
    void *p = mmap(NULL, s->segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    s->header = p;
    return 0;
}

/* Rank 0. A segment of that name is the leftover of a group that died while joining. */
static int create_segment(struct comm_shm *s, const char *name, const uint8_t *token, struct err *e)
{
    if (shm_unlink(name) < 0 && errno != ENOENT)
        return err_set(e, -errno, "cannot remove the stale shared-memory segment %s: %s", name,
                       err_name(-errno));
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(e, -errno, "cannot create the shared-memory segment %s: %s", name,
                       err_name(-errno));
    /* Takes the memory now: a full /dev/shm is an error here and not a SIGBUS later. */
    int r = -posix_fallocate(fd, 0, (off_t)s->segment_bytes);
    if (r == 0)
        r = map_segment(s, fd);
    close(fd);
    if (r < 0) {
        shm_unlink(name);
        return err_set(e, r, "cannot get %zu bytes of shared memory for %s: %s; enlarge /dev/shm",
                       s->segment_bytes, name, err_name(r));
    }
    struct shm_header *h = s->header;
    assert(h);
    h->size = s->base.size;
    h->slot_bytes = s->slot_bytes;
    memcpy(h->token, token, COMM_TOKEN_BYTES);
    atomic_store_explicit(&h->magic, SHM_MAGIC, memory_order_release);
    return 0;
}

/* One attempt of another rank to find the segment. -EAGAIN: not there yet; -EACCES: there is one
 * with another token, which may be about to be replaced. */
static int try_open_segment(struct comm_shm *s, const char *name, const uint8_t *token)
{
    int fd = shm_open(name, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return errno == ENOENT ? -EAGAIN : -errno;
    int r = map_segment(s, fd);
    close(fd);
    if (r < 0)
        return r;
    struct shm_header *h = s->header;
    assert(h);
    if (atomic_load_explicit(&h->magic, memory_order_acquire) != SHM_MAGIC)
        r = -EAGAIN;
    else if (!comm_token_equal(token, h->token))
        r = -EACCES;
    else if (h->size != s->base.size || h->slot_bytes != s->slot_bytes)
        r = -EPROTO;
    if (r < 0) {
        munmap(s->header, s->segment_bytes);
        s->header = NULL;
    }
    return r;
}

static int open_segment(struct comm_shm *s, const char *name, const uint8_t *token, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + s->timeout_ns;
    for (;;) {
        int r = try_open_segment(s, name, token);
        if (r == 0)
            return 0;
        bool again = r == -EAGAIN || r == -EACCES;
        if (!again)
            return err_set(e, r, "shared-memory segment %s: %s", name,
                           r == -EPROTO ? "made for another number of ranks or message size"
                                        : err_name(r));
        if (clock_now_ns() >= deadline_ns) {
            if (r == -EACCES)
                return err_set(e, r, "shared-memory segment %s has another group's token", name);
            return err_set(e, -ETIMEDOUT, "rank 0 did not create the shared-memory segment %s",
                           name);
        }
        nanosleep(&(struct timespec){0, RETRY_NS}, NULL);
    }
}

static int join(struct comm_shm *s, const char *name, struct err *e)
{
    if (atomic_exchange(&s->header->joined[s->base.rank], 1))
        return err_set(e, -EEXIST, "rank %d has joined %s already: two processes have this rank",
                       s->base.rank, name);
    int r = wait_all(s);
    if (r < 0) {
        int n_joined = 0;
        for (int rank = 0; rank != s->base.size; rank++)
            n_joined += atomic_load(&s->header->joined[rank]) != 0;
        return err_set(e, r, "%d of %d ranks have joined %s: %s", n_joined, s->base.size, name,
                       err_name(r));
    }
    return 0;
}

static int segment_size(struct comm_shm *s, size_t max_bytes)
{
    size_t n_slots = 2 * ((size_t)s->base.size + 1);
    size_t total;
    if (max_bytes > SIZE_MAX / 2)
        return -EINVAL;
    s->slot_bytes = round_up(max_bytes ? max_bytes : 1, 4096);
    if (!mul_size(n_slots, s->slot_bytes, &total) ||
        !add_size(total, round_up(sizeof *s->header, 4096), &total) || total > INT64_MAX)
        return -EINVAL;
    s->segment_bytes = total;
    return 0;
}

int comm_shm_new(const char *name, const uint8_t token[16], int rank, int size, size_t max_bytes,
                 int64_t timeout_ns, struct comm **ret, struct err *e)
{
    if (size < 1 || size > COMM_MAX_RANKS || rank < 0 || rank >= size)
        return err_set(e, -EINVAL,
                       "rank %d of %d: expected a rank below the size, at most %d ranks", rank,
                       size, COMM_MAX_RANKS);
    char path[SHM_NAME_BYTES];
    int length = snprintf(path, sizeof path, "/%s", name);
    if (length < 2 || (size_t)length >= sizeof path || strchr(name, '/'))
        return err_set(e, -EINVAL, "shared-memory name \"%s\": expected 1..%d characters without /",
                       name, SHM_NAME_BYTES - 2);
    struct comm_shm *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->base = (struct comm){.ops = &ops, .rank = rank, .size = size, .n_stages = 1};
    s->spins = comm_barrier_spins(size);
    s->timeout_ns = timeout_ns;
    int r = segment_size(s, max_bytes);
    if (r < 0)
        err_set(e, r, "message size %zu is too large", max_bytes);
    else
        r = rank == 0 ? create_segment(s, path, token, e) : open_segment(s, path, token, e);
    if (r == 0) {
        r = join(s, path, e);
        if (rank == 0)
            shm_unlink(path); /* all have it open, or the group has failed */
    }
    if (r < 0) {
        if (s->header)
            munmap(s->header, s->segment_bytes);
        free(s);
        return r;
    }
    *ret = &s->base;
    return 0;
}
