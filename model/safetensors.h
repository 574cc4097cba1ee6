/* safetensors.h: the safetensors file format, read as hostile input and written.
 *
 *   8 bytes   n, little endian: length of the header
 *   n bytes   JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"}
 *   rest      the tensors' bytes, little endian, row-major, back to back, offsets from here
 *
 * The reader accepts what the format's own definition accepts: ranges in bounds, without overlap
 * and without holes, each exactly dtype * shape bytes. Nothing here is shared between threads.
 */
#ifndef GLMD_MODEL_SAFETENSORS_H
#define GLMD_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum st_dtype { ST_F16, ST_F32, ST_BF16, ST_I8, ST_U8 };

enum {
    ST_MAX_DIMS = 4,
    ST_MAX_NAME_BYTES = 256,
    ST_MAX_TENSORS = 1 << 17,
    ST_MAX_HEADER_BYTES = 16 << 20,
};

/* One tensor of one file of a model directory. */
struct st_tensor {
    char *name; /* [A-Za-z0-9._-]{1,256}; owned by the list it is in */
    enum st_dtype dtype;
    uint32_t n_dims; /* 1..ST_MAX_DIMS */
    uint64_t shape[ST_MAX_DIMS];
    uint32_t file_idx; /* which file of the directory; 0 where there is only one */
    uint64_t offset;   /* of the first byte, from the start of the file */
    uint64_t bytes;    /* = product of shape * size of dtype */
};

size_t st_dtype_bytes(enum st_dtype dtype);
const char *st_dtype_name(enum st_dtype dtype); /* "F16" */

/* Rows and columns as model_slice counts them: a 1-D tensor is one row; more than two dimensions
 * fold into the rows. */
uint64_t st_rows(const struct st_tensor *t);
uint64_t st_cols(const struct st_tensor *t);

/* Whether a name is 1..256 characters of [A-Za-z0-9._-]: tensors, files, iteration folders. */
bool st_name_ok(const char *name);

/* Tensors of one file, in order of their offsets. Zero-initialised = empty. */
struct st_list {
    struct st_tensor *tensors;
    size_t n;
};
void st_list_deinit(struct st_list *l);

/* Parses the JSON header of a file of `file_bytes` bytes. -EBADMSG with the reason. */
int st_parse_header(const char *json, size_t json_bytes, uint64_t file_bytes,
                    struct st_list *ret_list, struct err *e);

/* Reads and parses the header of an open file. */
int st_read_header(int fd, struct st_list *ret_list, struct err *e);

/* Lays the tensors out back to back in list order: sets offset and bytes of each, and gives the
 * file's first bytes (length and header, padded with blanks to a multiple of 64). Only name, dtype
 * and shape are read. -ENOMEM, -EFBIG. */
int st_format_header(struct st_list *l, struct buf *ret_head, uint64_t *ret_file_bytes);

#endif
