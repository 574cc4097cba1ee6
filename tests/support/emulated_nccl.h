/* emulated_nccl.h: the table of kernels/cuda/nccl.h for ranks that are threads of this process:
 * what a test links instead of NCCL, beside emulated_driver.h. Data really moves; a test says what
 * fails.
 */
#ifndef GLMD_TESTS_SUPPORT_EMULATED_NCCL_H
#define GLMD_TESTS_SUPPORT_EMULATED_NCCL_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulated_nccl {
    const char *missing; /* why the library is not there; NULL: it is */
    int version;
    int id_error;             /* of the next unique id */
    int init_error, bad_rank; /* of the next communicator, on that rank */
    bool init_hangs;          /* nobody's communicator gets ready */
    bool calls_hang;          /* what is enqueued never runs, until it is aborted */
    int async_error;          /* what communicators report from now on */
    /* counted */
    int n_comms, n_aborted, n_gathers, n_groups;
};

/* The state, to read and to change; one for the process. */
struct emulated_nccl *emulated_nccl_state(void);
/* Version 2.28.9; nothing fails. */
void emulated_nccl_reset(void);

#ifdef __cplusplus
}
#endif

#endif
