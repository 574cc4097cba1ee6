/* checksum.h: XXH3-128, as the manifest has it: over tensors, files and the whole model. Detects
 * damage, not forgery. */
#ifndef GLMD_MODEL_CHECKSUM_H
#define GLMD_MODEL_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct checksum {
    uint8_t bytes[16]; /* big endian, the canonical form */
};
enum { CHECKSUM_HEX_BYTES = 33 };

void checksum_hex(const struct checksum *c, char ret_hex[CHECKSUM_HEX_BYTES]);
/* Exactly 32 lower-case hex digits; -EINVAL. */
int checksum_parse(const char *hex, struct checksum *ret);
bool checksum_equal(const struct checksum *a, const struct checksum *b);

/* A running sum. NULL when out of memory. */
struct checksum_state; /* opaque */
struct checksum_state *checksum_new(void);
void checksum_free(struct checksum_state *s);
void checksum_reset(struct checksum_state *s);
void checksum_update(struct checksum_state *s, const void *data, size_t n);
void checksum_final(const struct checksum_state *s, struct checksum *ret);

/* Of n bytes of an open file, read in large blocks. */
int checksum_range(int fd, uint64_t offset, uint64_t n, const char *path, struct checksum *ret,
                   struct err *e);
/* Of a whole file; gives its size as well. */
int checksum_file(const char *path, struct checksum *ret, uint64_t *ret_bytes, struct err *e);

#endif
