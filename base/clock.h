/* clock.h: the one source of time. Deadlines and intervals are monotonic nanoseconds; wall-clock
 * time appears only in logs. A test replaces the source (`clock_set_source`) to run on virtual
 * time. */
#ifndef GLMD_BASE_CLOCK_H
#define GLMD_BASE_CLOCK_H

#include <stdint.h>

#define NSEC_PER_SEC  INT64_C(1000000000)
#define NSEC_PER_MSEC INT64_C(1000000)
#define NSEC_PER_USEC INT64_C(1000)

/* Nanoseconds since an arbitrary start; never goes back. */
int64_t clock_now_ns(void);

/* Processor time of the calling thread; what stands still there (clock_set_source) stands still
 * here. */
int64_t clock_thread_ns(void);

/* NULL restores CLOCK_MONOTONIC. Not thread-safe: for tests, before threads start. */
void clock_set_source(int64_t (*source)(void *context), void *context);

#endif
