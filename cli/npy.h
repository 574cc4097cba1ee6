/* npy.h: NumPy array files (format 1.0 and 2.0), read as untrusted input. Little-endian, C order,
 * uint8, bool and float32: what the reference data of the project uses. */
#ifndef GLMD_CLI_NPY_H
#define GLMD_CLI_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum npy_type { NPY_U8, NPY_F32 }; /* bool reads as NPY_U8 */

enum { NPY_MAX_DIMS = 4, NPY_MAX_HEADER = 4096 };

struct npy { /* zero-initialised = empty; npy_deinit frees */
    enum npy_type type;
    uint32_t n_dims;
    uint64_t shape[NPY_MAX_DIMS];
    size_t n;   /* elements */
    void *data; /* owned, [n] */
};

/* The whole file in memory -> array (data copied). -EBADMSG with the reason. */
int npy_parse(const void *bytes, size_t size, struct npy *ret, struct err *e);

/* Reads a file of at most `max_bytes`, which must hold `type` in `n_dims` dimensions. */
int npy_load(const char *path, enum npy_type type, uint32_t n_dims, size_t max_bytes,
             struct npy *ret, struct err *e);

void npy_deinit(struct npy *a);

#endif
