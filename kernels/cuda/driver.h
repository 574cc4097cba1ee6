/* driver.h: the calls of the CUDA runtime that the backend makes, as a table. libglmd_cuda.so links
 * driver_cuda.c; tests link one whose device is the host's memory and whose failures they choose,
 * so that the way from a failing device to an ending worker is executed without a GPU.
 *
 * Errors are the runtime's numbers (cudaError_t), 0 = success. Launches of kernels are not here:
 * dev.h has them, and their errors come through last_error or the next wait.
 */
#ifndef GLMD_KERNELS_CUDA_DRIVER_H
#define GLMD_KERNELS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* cudaStream_t, cudaEvent_t, cudaGraphExec_t */
struct CUevent_st;
struct CUgraphExec_st;

struct cuda_properties {
    char name[128];
    char pci_bus[16]; /* "0000:1b:00.0" */
    int major, minor; /* compute capability */
    int n_multiprocessors;
    size_t memory_bytes;
    size_t l2_bytes;
    size_t shared_bytes; /* largest dynamic shared memory of a CTA */
};

/* Memory of `alloc` as other processes of the host can open it. */
struct cuda_shared_memory {
    char bytes[64];
};

struct cuda_driver {
    int (*device_count)(int *ret);
    int (*properties)(int device, struct cuda_properties *ret);
    int (*versions)(int *ret_driver, int *ret_runtime); /* 13000 = 13.0; driver 0 = there is none */
    int (*use)(int device);                             /* of the calling thread from here on */
    int (*memory)(size_t *ret_free, size_t *ret_total); /* of the device in use */

    int (*alloc)(void **ret, size_t bytes);
    int (*free)(void *p);
    int (*alloc_host)(void **ret, size_t bytes); /* page-locked */
    int (*free_host)(void *p);

    int (*stream_new)(struct CUstream_st **ret);
    int (*stream_free)(struct CUstream_st *s);
    int (*stream_wait)(struct CUstream_st *s); /* for everything that was enqueued */
    int (*event_new)(struct CUevent_st **ret);
    int (*event_free)(struct CUevent_st *e);
    int (*event_record)(struct CUevent_st *e, struct CUstream_st *s);
    int (*event_wait)(struct CUevent_st *e); /* the host waits */

    /* In the stream's order; between any two places. A page-locked `src` must stay as it is until
     * the copy has run. */
    int (*copy)(void *dst, const void *src, size_t bytes, struct CUstream_st *s);
    int (*clear)(void *dst, size_t bytes, struct CUstream_st *s);

    /* What is enqueued between begin and end is recorded and not run. */
    int (*capture_begin)(struct CUstream_st *s);
    int (*capture_end)(struct CUstream_st *s, struct CUgraphExec_st **ret);
    int (*graph_run)(struct CUgraphExec_st *g, struct CUstream_st *s);
    int (*graph_free)(struct CUgraphExec_st *g);

    int (*last_error)(void); /* and forgets it, unless it is sticky */
    const char *(*error_name)(int error);
    const char *(*error_text)(int error);
    int out_of_memory; /* the number of that error */

    /* Whether all that was enqueued has run. */
    int (*stream_ready)(struct CUstream_st *s, bool *ret);
    /* Kernels of the device in use may touch the memory of another device of this process. False:
     * these two cannot. */
    int (*reach)(int device, int other, bool *ret);
    int (*share)(void *p, struct cuda_shared_memory *ret);
    int (*share_open)(const struct cuda_shared_memory *m, void **ret); /* by another process */
    int (*share_close)(void *p);
    /* Page-locks the host's memory at `p`; *ret is where kernels find it. */
    int (*pin)(void *p, size_t bytes, void **ret);
    int (*unpin)(void *p);
    uint64_t (*process)(void); /* a number that no two processes have */
    int timed_out;             /* the number of that error */
    /* What is enqueued on `s` from here on waits for what was recorded; the host does not. */
    int (*stream_wait_event)(struct CUstream_st *s, struct CUevent_st *e);
};

const struct cuda_driver *cuda_driver_table(void);

#ifdef __cplusplus
}
#endif

#endif
