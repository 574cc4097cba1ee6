/* buf.h: a growable byte buffer with a limit. */
#ifndef GLMD_BASE_BUF_H
#define GLMD_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>

/* Zero-initialised = empty, no limit. `data` always holds a NUL byte behind `size`, so that text
 * can be read in place. Owned by whoever embeds it; free with buf_deinit. */
struct buf {
    char *data;
    size_t size;
    size_t capacity;
    size_t limit; /* largest size allowed; 0 = none */
};

void buf_deinit(struct buf *b);
void buf_clear(struct buf *b); /* size = 0, memory kept */

/* Room for `extra` more bytes behind size; -ENOMEM, or -EFBIG when the limit is exceeded. */
int buf_reserve(struct buf *b, size_t extra);
int buf_append(struct buf *b, const void *data, size_t size);
int buf_append_str(struct buf *b, const char *text);
int buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Removes the first n bytes. */
void buf_consume(struct buf *b, size_t n);

#endif
