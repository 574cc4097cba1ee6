/* epoch.c: see epoch.h. The file holds one decimal number; it is replaced, never rewritten. */
#include "coordinator/epoch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

static const char name[] = "epoch", temporary[] = "epoch.new";

/* mkdir -p, mode 0750. */
static int make_dirs(const char *dir, struct err *e)
{
    char path[1100];
    if ((size_t)snprintf(path, sizeof path, "%s", dir) >= sizeof path)
        return err_set(e, -ENAMETOOLONG, "state directory: the path is too long");
    for (char *p = path + 1;; p++) {
        char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(path, 0750) < 0 && errno != EEXIST)
            return err_set(e, -errno, "state directory %s: cannot create %s: %s", dir, path,
                           err_name(-errno));
        *p = c;
        if (c == '\0')
            return 0;
    }
}

static int read_last(struct epoch_store *s, const char *dir, struct err *e)
{
    int fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0; /* the first start */
    if (fd < 0)
        return err_set(e, -errno, "%s/%s: cannot open: %s", dir, name, err_name(-errno));
    char text[32];
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n < 0)
        return err_set(e, -errno, "%s/%s: cannot read: %s", dir, name, err_name(-errno));
    text[n] = '\0';
    char *end = text;
    errno = 0;
    if (text[0] >= '0' && text[0] <= '9')
        s->last = strtoull(text, &end, 10);
    if (end == text || errno || strcmp(end, "\n") != 0 || s->last == UINT64_MAX)
        return err_set(e, -EBADMSG,
                       "%s/%s: expected one number and a line break: put a number there that is "
                       "greater than every epoch in the workers' logs",
                       dir, name);
    return 0;
}

int epoch_open(const char *dir, struct epoch_store *s, struct err *e)
{
    *s = (struct epoch_store){.dir_fd = -1};
    int r = make_dirs(dir, e);
    if (r < 0)
        return r;
    s->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0)
        return err_set(e, -errno, "state directory %s: cannot open: %s", dir, err_name(-errno));
    if (flock(s->dir_fd, LOCK_EX | LOCK_NB) < 0)
        r = err_set(e, -EBUSY,
                    "state directory %s: another coordinator uses it: give each its own "
                    "coordinator.state_dir",
                    dir);
    if (r == 0)
        r = read_last(s, dir, e);
    s->reserved = s->last;
    if (r < 0)
        epoch_close(s);
    return r;
}

void epoch_close(struct epoch_store *s)
{
    if (s->dir_fd >= 0)
        close(s->dir_fd);
    s->dir_fd = -1;
}

static int write_file(struct epoch_store *s, uint64_t epoch)
{
    int fd = openat(s->dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0)
        return -errno;
    char text[32];
    int n = snprintf(text, sizeof text, "%llu\n", (unsigned long long)epoch);
    int r = 0;
    if (write(fd, text, (size_t)n) != n)
        r = errno ? -errno : -EIO;
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && renameat(s->dir_fd, temporary, s->dir_fd, name) < 0)
        r = -errno;
    if (r == 0 && fsync(s->dir_fd) < 0)
        r = -errno;
    return r;
}

int epoch_next(struct epoch_store *s, uint64_t above, uint64_t *ret_epoch, struct err *e)
{
    uint64_t base = MAX(s->last, above);
    if (base >= UINT64_MAX - EPOCH_RESERVE)
        return err_set(e, -EOVERFLOW, "the epoch has reached its end");
    if (base >= s->reserved) {
        int r = write_file(s, base + EPOCH_RESERVE);
        if (r < 0)
            return err_set(e, r, "cannot store epoch %llu in the state directory: %s",
                           (unsigned long long)base + EPOCH_RESERVE, err_name(r));
        s->reserved = base + EPOCH_RESERVE;
    }
    s->last = *ret_epoch = base + 1;
    return 0;
}
