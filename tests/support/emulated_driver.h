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
    EMULATED_NO_PEERS = 217,
    EMULATED_ILLEGAL_ADDRESS = 700,
    EMULATED_TIMED_OUT = 702,
    EMULATED_CAPTURING = 900,
};

struct emulated_driver {
    int n_devices;
    int count_error;     /* of device_count: EMULATED_NO_DEVICE, EMULATED_OLD_DRIVER */
    int driver_version;  /* 0 = none */
    int major, minor;    /* compute capability */
    size_t memory_bytes; /* of a device; what is taken counts */
    /* The call of that name ("launch": of a kernel that is recorded) fails with `error` when it
     * comes for the `fail_after`-th time from now (0 = the next one); from then on, if `sticky`,
     * everything does. NULL = none fails. */
    const char *fail;
    int fail_after, error, sticky;
    bool no_peers;           /* devices do not reach each other's memory */
    bool one_gpu;            /* all devices are the same one */
    bool separate_processes; /* whoever asks is told another number of its process */
    bool (*pending)(void);   /* NULL, or whether the streams hold something that has not run */
    /* counted */
    int64_t n_shared, n_pinned; /* shared memory that is open, page-locked ranges */
    int64_t n_freed_open;       /* memory that was freed while another process had it open */
    int64_t n_graphs;           /* that are not freed */
    uint64_t n_graph_runs;
    uint64_t n_processes;
    uint64_t allocated, host_allocated; /* bytes that are not freed */
    uint64_t n_allocs, n_copies, n_waits, n_event_waits;
    int device; /* in use */
};

/* The state, to read and to change; one for the process. */
struct emulated_driver *emulated_driver_state(void);
/* Kernels launched so far, other than by running graphs. */
uint64_t emulated_driver_launches(void);
/* False where kernels cannot be emulated (ThreadSanitizer), which is printed: a test skips then. */
bool emulated_driver_works(void);
/* Eight devices of 1 GiB, of the emulated architecture; nothing fails. */
void emulated_driver_reset(void);

/* How long a kernel that waits for other ranks' waits for them to be launched; 10 s at the start.
 */
void emulated_driver_set_patience_ms(int64_t ms);
/* Another order of CTAs and warps; 0, as at the start: in order. */
void emulated_driver_set_order(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
