/* util.h: small things that every room needs. */
#ifndef GLMD_BASE_UTIL_H
#define GLMD_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#ifndef MIN /* libuv brings <sys/param.h>, which has the same two */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#endif

static inline size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* *ret = a * b or a + b; false when the result does not fit. Sizes that come from outside go
 * through these. */
static inline bool mul_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

static inline bool add_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

/* calloc that checks the product; NULL when out of memory or out of range. n == 0 gives a valid
 * pointer. */
static inline void *alloc_array(size_t n, size_t size)
{
    return calloc(n ? n : 1, size ? size : 1);
}

/* A NUL-terminated copy of n bytes, which need not be terminated. NULL: out of memory. */
static inline char *text_dup(const void *bytes, size_t n)
{
    char *text = malloc(n + 1);
    if (!text)
        return NULL;
    memcpy(text, bytes, n);
    text[n] = '\0';
    return text;
}

#endif
