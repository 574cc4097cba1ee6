/* random.h: the one source of randomness of the daemons: seeds of requests, names and secrets of a
 * group, jitter. Tests and the simulator replace the source, as they do that of the clock. */
#ifndef GLMD_BASE_RANDOM_H
#define GLMD_BASE_RANDOM_H

#include <stddef.h>

/* Fills `dst` from the system's generator. -EIO: it has none to give. */
int random_bytes(void *dst, size_t size);

/* NULL restores the system's generator. Not thread-safe: for tests, before threads start. */
void random_set_source(void (*source)(void *context, void *dst, size_t size), void *context);

#endif
