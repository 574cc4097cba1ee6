/* nccl.h: the calls of NCCL that the backend makes, as a table: libnccl.so.2 is opened when sums
 * first ask for it (nccl_library.c), so that neither building nor serving without it needs it.
 * Tests link a library of their own whose failures they choose.
 *
 * The declarations are those of NCCL's interface from 2.14 on (non-blocking communicators); where
 * its header is at hand, nccl_library.c compares.
 */
#ifndef GLMD_KERNELS_CUDA_NCCL_H
#define GLMD_KERNELS_CUDA_NCCL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
struct ncclComm;

enum { NCCL_OK = 0, NCCL_IN_PROGRESS = 7 };
enum { NCCL_HALF = 6 };
enum { NCCL_ID_BYTES = 128, NCCL_OLDEST = 21400 };

struct nccl_id {
    char bytes[NCCL_ID_BYTES];
};

/* What a caller of 2.14 knows of a communicator's configuration; the library fills in the rest. */
struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

struct nccl_library {
    int (*version)(int *ret); /* 22809 = 2.28.9 */
    int (*unique_id)(struct nccl_id *ret);
    int (*init)(struct ncclComm **ret, int size, struct nccl_id id, int rank,
                struct nccl_config *config);
    int (*async_error)(struct ncclComm *c, int *ret);
    int (*abort)(struct ncclComm *c);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*all_gather)(const void *src, void *dst, size_t n, int type, struct ncclComm *c,
                      struct CUstream_st *s);
    int (*send)(const void *src, size_t n, int type, int to, struct ncclComm *c,
                struct CUstream_st *s);
    int (*recv)(void *dst, size_t n, int type, int from, struct ncclComm *c, struct CUstream_st *s);
    const char *(*error_text)(int error);
    const char *(*last_error)(struct ncclComm *c); /* or NULL: too old */
};

/* NULL: it is not there, and why. */
const struct nccl_library *nccl_find(char *message, size_t size);

#ifdef __cplusplus
}
#endif

#endif
