/* file.c: see file.h. */
#include "model/file.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

int file_open(const char *path, int *ret_fd, uint64_t *ret_bytes, struct err *e)
{
    /* O_NONBLOCK: opening a FIFO must not wait; it has no effect on regular files */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(e, -errno, "%s: cannot open: %s", path, err_name(-errno));
    struct stat st;
    int r = 0;
    if (fstat(fd, &st) < 0)
        r = err_set(e, -errno, "%s: cannot stat: %s", path, err_name(-errno));
    else if (!S_ISREG(st.st_mode))
        r = err_set(e, -EINVAL, "%s: expected a regular file", path);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    *ret_bytes = (uint64_t)st.st_size;
    return 0;
}

static int truncated(const char *path, uint64_t at, size_t n, struct err *e)
{
    return err_set(e, -EBADMSG,
                   "%s: ends at byte %llu, %zu more were expected: the file is truncated", path,
                   (unsigned long long)at, n);
}

int file_read_at(int fd, void *dst, size_t n, uint64_t offset, const char *path, struct err *e)
{
    char *p = dst;
    while (n) {
        if (offset > INT64_MAX)
            return err_set(e, -EBADMSG, "%s: offset beyond any file", path);
        ssize_t got = pread(fd, p, MIN(n, (size_t)1 << 30), (off_t)offset);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return err_set(e, -errno, "%s: cannot read at byte %llu: %s", path,
                           (unsigned long long)offset, err_name(-errno));
        }
        if (got == 0)
            return truncated(path, offset, n, e);
        p += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

int file_read_direct(int fd, void *buffer, size_t n, uint64_t offset, const char *path,
                     void **ret_data, struct err *e)
{
    assert((uintptr_t)buffer % FILE_DIRECT_ALIGN == 0);
    if (offset > INT64_MAX - n - FILE_DIRECT_ALIGN)
        return err_set(e, -EBADMSG, "%s: offset beyond any file", path);
    const uint64_t begin = offset / FILE_DIRECT_ALIGN * FILE_DIRECT_ALIGN;
    const size_t skip = (size_t)(offset - begin), want = skip + n;
    const size_t whole = round_up(want, FILE_DIRECT_ALIGN);
    size_t have = 0;
    while (have < want) {
        ssize_t got = pread(fd, (char *)buffer + have, MIN(whole - have, (size_t)1 << 30),
                            (off_t)(begin + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(e, -errno, "%s: cannot read at byte %llu: %s", path,
                           (unsigned long long)begin + have, err_name(-errno));
        have += (size_t)got;
        /* anything but whole blocks is the end of the file */
        if (have < want && (got == 0 || have % FILE_DIRECT_ALIGN))
            return truncated(path, begin + have, want - have, e);
    }
    *ret_data = (char *)buffer + skip;
    return 0;
}

bool file_is_cached(int fd, uint64_t offset, uint64_t n)
{
    enum { PAGE = 4096 }; /* at most: what mincore counts are pages of this size or larger */
    const uint64_t begin = offset / (64 << 10) * (64 << 10);
    const size_t length = (size_t)(offset - begin + n);
    unsigned char *pages = malloc(length / PAGE + 1);
    void *map = pages ? mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)begin) : MAP_FAILED;
    bool cached = true;
    if (map != MAP_FAILED) { /* looked at, and never read: reading could fault */
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = (length + page - 1) / page;
        size_t n_cached = 0;
        if (page >= PAGE && mincore(map, length, pages) == 0) {
            for (size_t i = 0; i < n_pages; i++)
                n_cached += pages[i] & 1;
            cached = 2 * n_cached >= n_pages;
        }
        munmap(map, length);
    }
    free(pages);
    return cached;
}

/* Blocks of whole rows; the wanted part of each is copied out. The tail of the last row is not
 * read: it may lie beyond the end of the file. */
static int read_through(int fd, const struct file_rows *rows, char *dst, const char *path,
                        struct err *e)
{
    enum { BLOCK = 8 << 20 };
    size_t pitch = (size_t)rows->src_pitch, part = rows->row_bytes;
    size_t per_block = (size_t)MIN(MAX((uint64_t)BLOCK / pitch, UINT64_C(1)), rows->n_rows);
    char *block = malloc((per_block - 1) * pitch + part);
    if (!block)
        return err_set(e, -ENOMEM, "%s: out of memory for a read buffer", path);
    int r = 0;
    for (uint64_t row = 0; row < rows->n_rows && r == 0; row += per_block) {
        size_t n = (size_t)MIN((uint64_t)per_block, rows->n_rows - row);
        r = file_read_at(fd, block, (n - 1) * pitch + part, rows->offset + row * pitch, path, e);
        for (size_t i = 0; i < n && r == 0; i++)
            memcpy(dst + (row + i) * rows->dst_pitch, block + i * pitch, part);
    }
    free(block);
    return r;
}

int file_read_rows(int fd, const struct file_rows *rows, void *dst, const char *path, struct err *e)
{
    /* What lies between two parts is read and dropped up to here: disks and the page cache deliver
     * it with the neighbours anyway. */
    enum { MAX_GAP = 128 << 10 };
    assert(rows->dst_pitch >= rows->row_bytes);
    if (rows->n_rows == 0 || rows->row_bytes == 0)
        return 0;
    if (rows->src_pitch == rows->row_bytes && rows->dst_pitch == rows->row_bytes)
        return file_read_at(fd, dst, rows->row_bytes * (size_t)rows->n_rows, rows->offset, path, e);
    if (rows->src_pitch >= rows->row_bytes && rows->src_pitch - rows->row_bytes <= MAX_GAP)
        return read_through(fd, rows, dst, path, e);
    int r = 0;
    for (uint64_t i = 0; i < rows->n_rows && r == 0; i++)
        r = file_read_at(fd, (char *)dst + i * rows->dst_pitch, rows->row_bytes,
                         rows->offset + i * rows->src_pitch, path, e);
    return r;
}

int file_write(int fd, const void *src, size_t n, const char *path, struct err *e)
{
    const char *p = src;
    while (n) {
        ssize_t put = write(fd, p, MIN(n, (size_t)1 << 30));
        if (put < 0) {
            if (errno == EINTR)
                continue;
            int code = -errno;
            const char *hint = code == -ENOSPC || code == -EDQUOT
                                   ? "; make room and run the same command again: finished files "
                                     "are kept"
                                   : "";
            return err_set(e, code, "%s: cannot write: %s%s", path, err_name(code), hint);
        }
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

int file_read_all(const char *path, size_t max_bytes, struct buf *ret_text, struct err *e)
{
    int fd = -1;
    uint64_t size = 0;
    int r = file_open(path, &fd, &size, e);
    if (r < 0)
        return r;
    if (size > max_bytes)
        r = err_set(e, -EFBIG, "%s: expected at most %zu bytes, found %llu", path, max_bytes,
                    (unsigned long long)size);
    else if (buf_reserve(ret_text, (size_t)size) < 0)
        r = err_set(e, -ENOMEM, "%s: out of memory for %llu bytes", path, (unsigned long long)size);
    else
        r = file_read_at(fd, ret_text->data + ret_text->size, (size_t)size, 0, path, e);
    close(fd);
    if (r < 0)
        return r;
    ret_text->size += (size_t)size;
    ret_text->data[ret_text->size] = '\0';
    return 0;
}

static int sync_folder_of(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, MAX((size_t)(slash - path), (size_t)1)) : strdup(".");
    if (!dir)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;
    if (fd < 0)
        r = err_set(e, -errno, "%s: cannot open: %s", dir, err_name(-errno));
    else if (fsync(fd) < 0 && errno != EINVAL) /* EINVAL: this file system cannot sync folders */
        r = err_set(e, -errno, "%s: cannot sync: %s", dir, err_name(-errno));
    if (fd >= 0)
        close(fd);
    free(dir);
    return r;
}

int file_publish(int fd, const char *from, const char *to, struct err *e)
{
    int r = 0;
    if (fsync(fd) < 0)
        r = err_set(e, -errno, "%s: cannot sync: %s", from, err_name(-errno));
    if (close(fd) < 0 && r == 0)
        r = err_set(e, -errno, "%s: cannot close: %s", from, err_name(-errno));
    if (r == 0 && rename(from, to) < 0)
        r = err_set(e, -errno, "%s: cannot rename to %s: %s", from, to, err_name(-errno));
    return r < 0 ? r : sync_folder_of(to, e);
}

int file_replace(const char *path, const void *data, size_t n, struct err *e)
{
    char *part;
    if (asprintf(&part, "%s.part", path) < 0)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int r;
    if (fd < 0) {
        r = err_set(e, -errno, "%s: cannot create: %s", part, err_name(-errno));
    } else {
        r = file_write(fd, data, n, part, e);
        if (r == 0)
            r = file_publish(fd, part, path, e);
        else
            close(fd);
        if (r < 0)
            unlink(part);
    }
    free(part);
    return r;
}

char *file_join(const char *dir, const char *name)
{
    char *path;
    size_t n = strlen(dir);
    if (asprintf(&path, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name) < 0)
        return NULL;
    return path;
}
