/* clock.c: see clock.h. */
#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static int64_t (*clock_source)(void *context);
static void *clock_context;

int64_t clock_now_ns(void)
{
    if (clock_source)
        return clock_source(clock_context);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

int64_t clock_thread_ns(void)
{
    if (clock_source)
        return clock_source(clock_context);
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

void clock_set_source(int64_t (*source)(void *context), void *context)
{
    clock_source = source;
    clock_context = context;
}
