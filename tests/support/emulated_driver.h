/* emulated_driver.h: the table of kernels/cuda/driver.h over the host's memory: what a test links
 * instead of the CUDA runtime, beside the emulated kernels. Everything runs in the caller's thread,
 * at once; a test says how many devices there are, how much memory, and which call fails.
 */
#ifndef GLMD_TESTS_SUPPORT_EMULATED_DRIVER_H
#define GLMD_TESTS_SUPPORT_EMULATED_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The runtime's numbers. */
enum {
    EMULATED_OUT_OF_MEMORY = 2,
    EMULATED_OLD_DRIVER = 35,
    EMULATED_NO_DEVICE = 100,
    EMULATED_NO_IMAGE = 209,
    EMULATED_ILLEGAL_ADDRESS = 700,
};

struct emulated_driver {
    int n_devices;
    int count_error;     /* of device_count: EMULATED_NO_DEVICE, EMULATED_OLD_DRIVER */
    int driver_version;  /* 0 = none */
    int major, minor;    /* compute capability */
    size_t memory_bytes; /* of a device; what is taken counts */
    /* The call of that name fails with `error` when it comes for the `fail_after`-th time from now
     * (0 = the next one); from then on, if `sticky`, everything does. NULL = none fails. */
    const char *fail;
    int fail_after, error, sticky;
    /* counted */
    uint64_t allocated, host_allocated; /* bytes that are not freed */
    uint64_t n_allocs, n_copies, n_waits;
    int device; /* in use */
};

/* The state, to read and to change; one for the process. */
struct emulated_driver *emulated_driver_state(void);
/* False where kernels cannot be emulated (ThreadSanitizer): a test skips then. */
bool emulated_driver_works(void);
/* Eight devices of 1 GiB, of the emulated architecture; nothing fails. */
void emulated_driver_reset(void);

#ifdef __cplusplus
}
#endif

#endif
