/* comm_rig.h: what the tests of collectives and of messages between stages share. */
#ifndef GLMD_TESTS_ENGINE_COMM_RIG_H
#define GLMD_TESTS_ENGINE_COMM_RIG_H

#include <stdint.h>

#include "base/clock.h"

#define LONG_NS  (20 * NSEC_PER_SEC) /* nothing that works comes near it, even with sanitizers */
#define SHORT_NS (100 * NSEC_PER_MSEC)

enum transport { INPROC, SHM, TCP, N_TRANSPORTS };
extern const char *const transport_names[N_TRANSPORTS];
extern const uint8_t token[16];

/* A listening socket on the loopback interface, and its address. */
int listen_any(char address[32]);

#endif
