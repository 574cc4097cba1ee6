/* pickle.h: reads the `data.pkl` of a torch checkpoint into a table of tensors, without executing
 * anything.
 *
 * A pickle is a program for a stack machine that can call any function of Python. This machine
 * knows the opcodes that torch.save writes for {"module": {name: tensor}}, and five names:
 *
 *   torch.<Type>Storage                  the element type of a storage
 *   torch._utils._rebuild_tensor_v2      becomes a table entry
 *   torch._utils._rebuild_parameter      passes its tensor on
 *   collections.OrderedDict              an empty dictionary
 *
 * Everything else is refused by name. Stack, memo, number of values and size are bounded; nothing
 * recurses.
 */
#ifndef GLMD_MODEL_PICKLE_H
#define GLMD_MODEL_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    PICKLE_MAX_BYTES = 16 << 20,
    PICKLE_MAX_VALUES = 1 << 20,
    PICKLE_MAX_STACK = 1 << 16,
    PICKLE_MAX_MEMO = 1 << 20,
    PICKLE_MAX_DIMS = 4,
    PICKLE_MAX_NAME_BYTES = 256,
    PICKLE_MAX_KEY_BYTES = 64,
};

enum pickle_dtype {
    PICKLE_F16,
    PICKLE_BF16,
    PICKLE_F32,
    PICKLE_F64,
    PICKLE_I8,
    PICKLE_U8,
    PICKLE_I16,
    PICKLE_I32,
    PICKLE_I64,
    PICKLE_BOOL,
};
size_t pickle_dtype_bytes(enum pickle_dtype d);
const char *pickle_dtype_name(enum pickle_dtype d); /* "float16" */

/* One entry of "module". The range offset + sum((shape - 1) * stride) lies inside the storage. */
struct pickle_tensor {
    char *name; /* owned */
    enum pickle_dtype dtype;
    char key[PICKLE_MAX_KEY_BYTES + 1]; /* the storage's bytes are entry data/<key> */
    uint64_t storage_n;                 /* elements of the storage */
    uint64_t offset;                    /* of the first element, in elements */
    uint32_t n_dims;
    uint64_t shape[PICKLE_MAX_DIMS];
    uint64_t stride[PICKLE_MAX_DIMS]; /* in elements */
};

struct pickle_table {
    struct pickle_tensor *tensors; /* sorted by name */
    size_t n;
    size_t n_other; /* entries of "module" that are not tensors: ignored */
};

/* `where` starts the messages. -EBADMSG: damaged or not this kind of pickle; -ENOTSUP: it wants
 * something that is not allowed (named); -EFBIG: a bound was exceeded. */
int pickle_read(const uint8_t *data, size_t size, const char *where, struct pickle_table *ret,
                struct err *e);
void pickle_table_deinit(struct pickle_table *t);
const struct pickle_tensor *pickle_find(const struct pickle_table *t, const char *name);

#endif
