/* source_sat.h: a checkpoint as published (SwissArmyTransformer): DIR/latest names an iteration
 * folder with one mp_rank_XX_model_states.pt per tensor-parallel rank, FP16 or already quantized.
 * Presents the merged tensors, of which any range of rows can be read; nothing larger than that is
 * ever in memory. One thread.
 */
#ifndef GLMD_MODEL_SOURCE_SAT_H
#define GLMD_MODEL_SOURCE_SAT_H

#include "model/arch.h"
#include "model/quant.h"
#include "model/shard.h"

enum { SAT_MAX_SHARDS = QUANT_MAX_SHARDS };

struct sat_source; /* opaque */

/* What the files tell by themselves. */
struct sat_info {
    char iteration[257];
    uint32_t n_shards;
    struct quant_scheme scheme; /* row for one shard, shard N for more */
    uint32_t n_layers, hidden, inner, vocab;
    uint64_t file_bytes; /* of all shards */
    /* Identifies the checkpoint: XXH3-128 over iteration, file sizes and tensor tables, as hex. */
    char fingerprint[33];
};

/* Opens all shards and reads their tables of tensors. Errors name file and remedy: missing ranks,
 * shards of different degrees, tensors that are missing or of the wrong type. */
int sat_open(const char *path, struct sat_source **ret, struct err *e);
void sat_close(struct sat_source *s); /* NULL is fine */

const char *sat_path(const struct sat_source *s);
const struct sat_info *sat_info(const struct sat_source *s);

/* Every tensor of the architecture is in every shard, with the shard's part of its shape; scales
 * too when the source is quantized. */
int sat_check(const struct sat_source *s, const struct arch *a, struct err *e);

/* Tensors that the architecture does not have: how many (rotary tables, which are computed, not
 * counted) and the name of one of them. */
size_t sat_n_unknown(const struct sat_source *s, const struct arch *a, const char **ret_example);

/* The stored form of a merged tensor, for sat_read: columns in stored elements (INT4: bytes). */
struct sat_tensor {
    struct shard_tensor t;
    size_t element_bytes;
};
void sat_weight(const struct sat_source *s, const struct shard_tensor *t, struct sat_tensor *ret);
/* The scales [rows, groups] of a quantized weight. */
void sat_scale(const struct sat_source *s, const struct shard_tensor *t, struct sat_tensor *ret);

/* Rows [row0, row0 + n_rows) of the merged tensor, dense. When the rows of a tensor are read in
 * order from first to last, the ZIP checksums of its storages are checked along the way. */
int sat_read(struct sat_source *s, const struct sat_tensor *t, uint64_t row0, uint64_t n_rows,
             void *dst, struct err *e);

/* A tensor that every shard holds whole must be the same everywhere: -EBADMSG names two shards that
 * differ. */
int sat_check_copies(struct sat_source *s, const struct sat_tensor *t, struct err *e);

#endif
