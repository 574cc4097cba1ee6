/* mailbox.c: see mailbox.h. */
#include "kernels/cuda/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define POLL_NS INT64_C(5000000)

static bool is_open_elsewhere(const struct cuda_mailbox *b)
{
    if (b->lock < 0)
        return false;
    if (flock(b->lock, LOCK_EX | LOCK_NB) < 0)
        return true;
    (void)flock(b->lock, LOCK_UN);
    return false;
}

void mailbox_unlink(struct cuda_mailbox *b)
{
    if (*b->name)
        (void)shm_unlink(b->name);
    *b->name = '\0';
}

static void drop_lock(struct cuda_mailbox *b)
{
    mailbox_unlink(b);
    if (b->lock >= 0)
        close(b->lock);
    b->lock = -1;
}

static int make_lock(struct cuda_mailbox *b)
{
    uint64_t random[2]; /* nobody guesses the name: who has it is of the group */
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return -EIO;
    snprintf(b->name, sizeof b->name, "/glmd-box-%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
    b->lock = shm_open(b->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (b->lock >= 0)
        return 0;
    int r = -errno;
    *b->name = '\0';
    return r;
}

static void free_one(struct k_ctx *c, struct cuda_mailbox *b)
{
    drop_lock(b);
    cuda_free(c, b->memory);
    *b = (struct cuda_mailbox){.lock = -1};
}

int mailbox_get(struct k_ctx *c, size_t bytes, bool shared, struct cuda_mailbox **ret)
{
    struct cuda_mailbox *kept = NULL, *empty = NULL;
    for (int i = 0; i < CUDA_MAX_MAILBOXES; i++) {
        struct cuda_mailbox *b = &c->mailboxes[i];
        if (b->memory && is_open_elsewhere(b))
            continue;
        if (b->memory && (b->bytes != bytes || kept))
            free_one(c, b);
        if (b->memory)
            kept = b;
        else if (!empty)
            empty = b;
    }
    if (!kept && !empty)
        return -EBUSY;
    struct cuda_mailbox *b = kept ? kept : empty;
    if (!kept)
        *b = (struct cuda_mailbox){.memory = cuda_new(c, bytes), .bytes = bytes, .lock = -1};
    if (!b->memory)
        return -ENOMEM;
    drop_lock(b); /* of another epoch */
    *ret = b;
    return shared ? make_lock(b) : 0;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void mailbox_free_all(struct k_ctx *c)
{
    int64_t deadline_ns = now_ns() + c->mailbox_wait_ns;
    for (int i = 0; i < CUDA_MAX_MAILBOXES; i++) {
        struct cuda_mailbox *b = &c->mailboxes[i];
        if (!b->memory)
            continue;
        while (is_open_elsewhere(b) && now_ns() < deadline_ns)
            nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
        if (!is_open_elsewhere(b))
            free_one(c, b);
        drop_lock(b);
    }
}

int mailbox_hold(const char *name, int *ret)
{
    int fd = shm_open(name, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    struct stat st;
    int r = fstat(fd, &st) < 0 ? -errno : st.st_uid != geteuid() ? -EPERM : 0;
    if (!r && flock(fd, LOCK_SH | LOCK_NB) < 0)
        r = -errno;
    if (r)
        close(fd);
    else
        *ret = fd;
    return r;
}
