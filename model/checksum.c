/* checksum.c: see checksum.h. A state belongs to one thread at a time. */
#include "model/checksum.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/util.h"
#include "model/file.h"

void checksum_hex(const struct checksum *c, char ret_hex[CHECKSUM_HEX_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof c->bytes; i++) {
        ret_hex[2 * i] = digits[c->bytes[i] >> 4];
        ret_hex[2 * i + 1] = digits[c->bytes[i] & 15];
    }
    ret_hex[CHECKSUM_HEX_BYTES - 1] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int checksum_parse(const char *hex, struct checksum *ret)
{
    if (strnlen(hex, CHECKSUM_HEX_BYTES) != CHECKSUM_HEX_BYTES - 1)
        return -EINVAL;
    for (size_t i = 0; i < sizeof ret->bytes; i++) {
        int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        ret->bytes[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

bool checksum_equal(const struct checksum *a, const struct checksum *b)
{
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

struct checksum_state *checksum_new(void)
{
    XXH3_state_t *s = XXH3_createState();
    if (s)
        XXH3_128bits_reset(s);
    return (struct checksum_state *)s;
}

void checksum_free(struct checksum_state *s)
{
    XXH3_freeState((XXH3_state_t *)s);
}

void checksum_reset(struct checksum_state *s)
{
    XXH3_128bits_reset((XXH3_state_t *)s);
}

void checksum_update(struct checksum_state *s, const void *data, size_t n)
{
    XXH3_128bits_update((XXH3_state_t *)s, data, n);
}

void checksum_final(const struct checksum_state *s, struct checksum *ret)
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest((const XXH3_state_t *)s));
    static_assert(sizeof canonical.digest == sizeof ret->bytes, "XXH3-128 has 16 bytes");
    memcpy(ret->bytes, canonical.digest, sizeof ret->bytes);
}

int checksum_range(int fd, uint64_t offset, uint64_t n, const char *path, struct checksum *ret,
                   struct err *e)
{
    enum { BLOCK = 4 << 20 };
    struct checksum_state *s = checksum_new();
    void *block = malloc(BLOCK);
    int r = s && block ? 0 : err_set(e, -ENOMEM, "%s: out of memory", path);
    while (n && r == 0) {
        size_t part = (size_t)MIN(n, (uint64_t)BLOCK);
        r = file_read_at(fd, block, part, offset, path, e);
        if (r == 0)
            checksum_update(s, block, part);
        offset += part;
        n -= part;
    }
    if (r == 0)
        checksum_final(s, ret);
    free(block);
    checksum_free(s);
    return r;
}

int checksum_file(const char *path, struct checksum *ret, uint64_t *ret_bytes, struct err *e)
{
    int fd = -1;
    int r = file_open(path, &fd, ret_bytes, e);
    if (r < 0)
        return r;
    r = checksum_range(fd, 0, *ret_bytes, path, ret, e);
    close(fd);
    return r;
}
