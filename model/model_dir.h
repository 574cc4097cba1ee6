/* model_dir.h: a model directory as `glmd convert` writes it, opened for reading.
 *
 *   config.json                    architecture (arch.h) + "quantization_config"
 *   generation_config.json         defaults of a generation, the dialogue of chats (dialogue.h)
 *   tokenizer.model                SentencePiece model, + tokenizer_config.json (variant)
 *   model.safetensors.index.json   tensor name -> file
 *   model-0000x-of-0000y.safetensors
 *   manifest.json                  checksums per file and per tensor (XXH3-128), source, converter
 *                                  version, digest of the whole model, known-answer token hash
 *
 * Tensors are named as in the published checkpoint
 * ("transformer.layers.0.mlp.dense_4h_to_h.weight") and stored whole, independent of tensor
 * parallelism. A quantized linear is `<name>.weight` (U8, two INT4 values a byte, or I8) plus
 * `<name>.weight_scale` (F16 [rows, groups]); quant.h documents both layouts. Everything else is
 * F16.
 *
 * Reading uses pread: no mapping that could fault when a file shrinks. A struct model_dir may be
 * used by several threads at once after model_dir_open.
 */
#ifndef GLMD_MODEL_MODEL_DIR_H
#define GLMD_MODEL_MODEL_DIR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/arch.h"
#include "model/quant.h"
#include "model/safetensors.h"

struct model_dir; /* opaque */
struct manifest;  /* manifest.h */

struct model_digest {
    char hex[33]; /* XXH3-128 over the tensors' names and checksums in name order, lower-case hex */
};

/* Checks everything that can be checked without reading the tensors' bytes: architecture, scheme,
 * that every tensor is there exactly once with the right type and shape, ranges against file
 * lengths, sizes against the manifest. -ENOENT: no manifest (unfinished conversion, or no model);
 * -EBADMSG, -EINVAL: with the file and the reason. */
int model_dir_open(const char *path, struct model_dir **ret_dir, struct err *e);
void model_dir_close(struct model_dir *d); /* NULL is fine */

/* A model without files: every tensor that is read is made up (synthetic.h). It has no known answer
 * and no digest, and nothing to verify. */
int model_dir_synthetic(const struct arch *a, const struct quant_scheme *scheme, uint64_t seed,
                        struct model_dir **ret_dir, struct err *e);

const char *model_dir_path(const struct model_dir *d);
const struct arch *model_dir_arch(const struct model_dir *d);
const struct quant_scheme *model_dir_scheme(const struct model_dir *d);
const struct model_digest *model_dir_digest(const struct model_dir *d);

/* Token hash of the known-answer step; -ENOENT when the manifest has none yet. */
int model_dir_known_answer(const struct model_dir *d, uint64_t *ret_hash);

/* Writes it into the manifest of the directory at `path`, atomically. An open struct model_dir
 * keeps what it read. */
int model_manifest_set_known_answer(const char *path, uint64_t hash, struct err *e);

/* The whole manifest: checksums, source, converter. */
const struct manifest *model_dir_manifest(const struct model_dir *d);

/* NULL when there is no such tensor. The entry lives as long as the directory. */
const struct st_tensor *model_dir_find(const struct model_dir *d, const char *name);
/* In file order: embedding, layers, final norm; scales follow their weight. */
size_t model_dir_n_tensors(const struct model_dir *d);
const struct st_tensor *model_dir_tensor_at(const struct model_dir *d, size_t i);

/* A rectangle of a 2-D tensor (1-D tensors count as one row of `cols` elements): rows
 * [row0, row0 + n_rows), columns [col0, col0 + n_cols), in stored elements of `t->dtype` (so an
 * INT4 tensor's columns are bytes). Rows land densely, one behind the other, at `dst`. */
struct model_slice {
    uint64_t row0, n_rows;
    uint64_t col0, n_cols;
};
/* Columns are read in large sequential blocks where what lies between them is small. -EBADMSG: the
 * file has become shorter since it was opened. */
int model_dir_read(const struct model_dir *d, const struct st_tensor *t,
                   const struct model_slice *slice, void *dst, struct err *e);

/* Bytes [first, first + n) of a stored tensor, as they lie. Errors as above. */
int model_dir_read_bytes(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                         size_t n, void *dst, struct err *e);
/* The same past the page cache where the file system allows it: into `buffer`, which is aligned and
 * has room as file_read_direct asks (file.h); *ret_data: where in it they begin. */
int model_dir_read_direct(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                          size_t n, void *buffer, void **ret_data, struct err *e);
/* Whether most of a tensor is in the page cache, or in no file at all. */
bool model_dir_is_cached(const struct model_dir *d, const struct st_tensor *t);
/* These bytes will be read soon. */
void model_dir_read_ahead(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                          uint64_t n);
bool model_dir_is_synthetic(const struct model_dir *d);

/* -EBADMSG when a file has changed since it was opened: what was read may be half of each. */
int model_dir_check_unchanged(const struct model_dir *d, struct err *e);

/* The name of a tensor's file, "model-00001-of-00034.safetensors". */
const char *model_dir_file_name(const struct model_dir *d, const struct st_tensor *t);

/* Compares a checksum over a whole tensor with the manifest; -EBADMSG names tensor and file. */
struct checksum;
int model_dir_check_sum(const struct model_dir *d, const struct st_tensor *t,
                        const struct checksum *found, struct err *e);
/* Re-reads the whole tensor and compares with the manifest; -EBADMSG names the tensor and file. */
int model_dir_verify_tensor(const struct model_dir *d, const struct st_tensor *t, struct err *e);

#endif
