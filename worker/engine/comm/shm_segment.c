/* shm_segment.c: see shm_segment.h. */
#include "worker/engine/comm/shm_segment.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

#define SHM_MAGIC UINT32_C(0x676c6d73)

enum { SHM_NAME_BYTES = 128, RETRY_NS = 2000000, PAGE = 4096 };

struct joining {
    const struct shm_segment_params *p;
    char path[SHM_NAME_BYTES];
    struct shm_segment segment;
};

/* Maps `fd` if it has the expected size; -EAGAIN when it is still being made. */
static int map_segment(struct joining *j, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_uid != geteuid())
        return -EPERM;
    if (st.st_size != (off_t)j->segment.bytes)
        return -EAGAIN;
    void *p = mmap(NULL, j->segment.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    j->segment.header = p;
    return 0;
}

/* Rank 0. A segment of that name is the leftover of a group that died while joining. */
static int create_segment(struct joining *j, struct err *e)
{
    if (shm_unlink(j->path) < 0 && errno != ENOENT)
        return err_set(e, -errno, "cannot remove the stale shared-memory segment %s: %s", j->path,
                       err_name(-errno));
    int fd = shm_open(j->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(e, -errno, "cannot create the shared-memory segment %s: %s", j->path,
                       err_name(-errno));
    /* Takes the memory now: a full /dev/shm is an error here and not a SIGBUS later. */
    int r = -posix_fallocate(fd, 0, (off_t)j->segment.bytes);
    if (r == 0)
        r = map_segment(j, fd);
    close(fd);
    if (r < 0) {
        shm_unlink(j->path);
        return err_set(e, r, "cannot get %zu bytes of shared memory for %s: %s; enlarge /dev/shm",
                       j->segment.bytes, j->path, err_name(r));
    }
    struct shm_header *h = j->segment.header;
    assert(h);
    h->size = j->p->size;
    h->unit_bytes = j->p->unit_bytes;
    memcpy(h->token, j->p->token, COMM_TOKEN_BYTES);
    atomic_store_explicit(&h->magic, SHM_MAGIC, memory_order_release);
    return 0;
}

/* One attempt of another rank to find the segment. -EAGAIN: not there yet; -EACCES: there is one
 * with another token, which may be about to be replaced. */
static int try_open_segment(struct joining *j)
{
    int fd = shm_open(j->path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return errno == ENOENT ? -EAGAIN : -errno;
    int r = map_segment(j, fd);
    close(fd);
    if (r < 0)
        return r;
    struct shm_header *h = j->segment.header;
    assert(h);
    if (atomic_load_explicit(&h->magic, memory_order_acquire) != SHM_MAGIC)
        r = -EAGAIN;
    else if (!comm_token_equal(j->p->token, h->token))
        r = -EACCES;
    else if (h->size != j->p->size || h->unit_bytes != j->p->unit_bytes)
        r = -EPROTO;
    if (r < 0) {
        munmap(j->segment.header, j->segment.bytes);
        j->segment.header = NULL;
    }
    return r;
}

static int open_segment(struct joining *j, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + j->p->timeout_ns;
    for (;;) {
        int r = try_open_segment(j);
        if (r == 0)
            return 0;
        bool again = r == -EAGAIN || r == -EACCES;
        if (!again)
            return err_set(e, r, "shared-memory segment %s: %s", j->path,
                           r == -EPROTO ? "made for another number of ranks or message size"
                                        : err_name(r));
        if (clock_now_ns() >= deadline_ns) {
            if (r == -EACCES)
                return err_set(e, r, "shared-memory segment %s has another group's token", j->path);
            return err_set(e, -ETIMEDOUT, "rank 0 did not create the shared-memory segment %s",
                           j->path);
        }
        nanosleep(&(struct timespec){0, RETRY_NS}, NULL);
    }
}

static int join(struct joining *j, struct err *e)
{
    if (atomic_exchange(&j->segment.header->joined[j->p->rank], 1))
        return err_set(e, -EEXIST, "rank %d has joined %s already: two processes have this rank",
                       j->p->rank, j->path);
    int r =
        comm_barrier_wait(&j->segment.header->barrier, j->p->size, j->p->spin_ns, j->p->timeout_ns);
    if (r < 0) {
        int n_joined = 0;
        for (int rank = 0; rank != j->p->size; rank++)
            n_joined += atomic_load(&j->segment.header->joined[rank]) != 0;
        return err_set(e, r, "%d of %d ranks have joined %s: %s", n_joined, j->p->size, j->path,
                       err_name(r));
    }
    return 0;
}

int shm_segment_join(const struct shm_segment_params *p, struct shm_segment *ret, struct err *e)
{
    struct joining j = {.p = p};
    int length = snprintf(j.path, sizeof j.path, "/%s", p->name);
    if (length < 2 || (size_t)length >= sizeof j.path || strchr(p->name, '/'))
        return err_set(e, -EINVAL, "shared-memory name \"%s\": expected 1..%d characters without /",
                       p->name, SHM_NAME_BYTES - 2);
    size_t header_bytes = round_up(sizeof(struct shm_header), PAGE);
    if (!add_size(p->payload_bytes, header_bytes, &j.segment.bytes) || j.segment.bytes > INT64_MAX)
        return err_set(e, -EINVAL, "%zu bytes of shared memory are too many", p->payload_bytes);
    int r = p->rank == 0 ? create_segment(&j, e) : open_segment(&j, e);
    if (r == 0) {
        r = join(&j, e);
        if (p->rank == 0)
            shm_unlink(j.path); /* all have it open, or the group has failed */
    }
    if (r < 0) {
        shm_segment_leave(&j.segment);
        return r;
    }
    j.segment.payload = (char *)j.segment.header + header_bytes;
    *ret = j.segment;
    return 0;
}

void shm_segment_leave(struct shm_segment *s)
{
    if (s->header)
        munmap(s->header, s->bytes);
    *s = (struct shm_segment){0};
}
