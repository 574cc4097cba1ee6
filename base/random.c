/* random.c: see random.h. */
#include "base/random.h"

#include <errno.h>
#include <sys/random.h>

static void (*random_source)(void *context, void *dst, size_t size);
static void *source_context;

int random_bytes(void *dst, size_t size)
{
    if (random_source) {
        random_source(source_context, dst, size);
        return 0;
    }
    return getrandom(dst, size, 0) == (ssize_t)size ? 0 : -EIO;
}

void random_set_source(void (*source)(void *context, void *dst, size_t size), void *context)
{
    random_source = source;
    source_context = context;
}
