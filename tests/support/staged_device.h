/* staged_device.h: a device with memory of its own, for tests without one: the CPU backend behind
 * addresses that the host cannot touch.
 *
 * What alloc returns lies in a region that is neither readable nor writable: whoever uses it
 * without upload and download ends with a segmentation fault. host_view gives NULL. The arrays of a
 * step must have been announced by begin_step and are read from the copy that it took; afterwards
 * the caller may not change what it announced until the next one (the copy is compared). A program
 * linked with -Wl,--wrap=k_backend gets this device as "cpu" while staged_device_use(true).
 */
#ifndef GLMD_TESTS_SUPPORT_STAGED_DEVICE_H
#define GLMD_TESTS_SUPPORT_STAGED_DEVICE_H

#include "kernels/kernels.h"

#include <stdbool.h>
#include <stdint.h>

/* Whether k_backend("cpu") gives the staged device; true at the start. Engines keep what they were
 * opened with. */
void staged_device_use(bool staged);

/* What the device says of its memory. 0, 0 at the start: it does not say. */
void staged_device_set_memory(uint64_t free_bytes, uint64_t total);

/* Activations that went to the device and back since the start: a test that wants to see staging
 * checks that they grow. */
uint64_t staged_device_uploads(void);
uint64_t staged_device_downloads(void);

#endif
