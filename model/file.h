/* file.h: whole-or-nothing file access: reads that are complete or fail, files that appear under
 * their name only when they are finished. Messages name the path. */
#ifndef GLMD_MODEL_FILE_H
#define GLMD_MODEL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

/* Opens for reading; only regular files (a FIFO or device would hang or lie about its size). */
int file_open(const char *path, int *ret_fd, uint64_t *ret_bytes, struct err *e);

/* Exactly n bytes at offset. -EIO and other errors of pread; -EBADMSG when the file ends before
 * (`path` is for the message). */
int file_read_at(int fd, void *dst, size_t n, uint64_t offset, const char *path, struct err *e);

/* The same past the page cache, from a file that was opened with O_DIRECT: into `buffer`, which is
 * aligned to FILE_DIRECT_ALIGN and has n + 2 * FILE_DIRECT_ALIGN bytes; *ret_data: where in it they
 * begin. -EINVAL: this file system cannot. */
enum { FILE_DIRECT_ALIGN = 4096 };
int file_read_direct(int fd, void *buffer, size_t n, uint64_t offset, const char *path,
                     void **ret_data, struct err *e);

/* Whether most of n bytes at offset are in the page cache, as far as the kernel tells; true where
 * it does not. */
bool file_is_cached(int fd, uint64_t offset, uint64_t n);

/* n_rows rows of row_bytes bytes that start src_pitch bytes apart in the file, the first one at
 * offset, to dst, dst_pitch bytes apart. Where little lies between the rows, large blocks are read
 * and what is not wanted is dropped; otherwise one read per row. */
struct file_rows {
    uint64_t offset;
    uint64_t src_pitch;
    size_t row_bytes;
    uint64_t n_rows;
    size_t dst_pitch;
};
int file_read_rows(int fd, const struct file_rows *rows, void *dst, const char *path,
                   struct err *e);

/* Exactly n bytes at the file position. */
int file_write(int fd, const void *src, size_t n, const char *path, struct err *e);

/* The whole of a file of at most max_bytes, appended to ret_text. -EFBIG beyond. */
int file_read_all(const char *path, size_t max_bytes, struct buf *ret_text, struct err *e);

/* Writes <path>.part, syncs and renames it. */
int file_replace(const char *path, const void *data, size_t n, struct err *e);

/* fsync, close (always) and rename from -> to, then sync the folder so that the name lasts. */
int file_publish(int fd, const char *from, const char *to, struct err *e);

/* dir/name, malloc'd; NULL when out of memory. */
char *file_join(const char *dir, const char *name);

#endif
