/* convert_quant.h: the buffers and threads with which convert.c quantizes one tensor, a chunk of
 * rows at a time. */
#ifndef GLMD_MODEL_CONVERT_QUANT_H
#define GLMD_MODEL_CONVERT_QUANT_H

#include "model/quant.h"

struct convert_quant {
    /* owned */
    uint16_t *weights; /* [chunk rows, cols] FP16 */
    uint8_t *values;   /* [chunk rows, row_bytes] */
    uint16_t *scales;  /* [rows, n_groups] of the whole tensor */
    /* state */
    struct quant_scheme scheme;
    uint64_t cols;
    uint32_t n_groups;
    uint64_t row_bytes;
    size_t scale_bytes; /* of all scales */
    unsigned n_threads;
    uint64_t n_broken; /* infinite and NaN weights so far */
};

/* Buffers for a tensor in chunks of at most chunk_rows rows; -ENOMEM. */
int convert_quant_init(struct convert_quant *q, const struct quant_scheme *s,
                       const struct shard_tensor *t, uint64_t chunk_rows, unsigned n_threads);
void convert_quant_deinit(struct convert_quant *q);

/* weights -> values and scales, for rows [row0, row0 + n_rows) of the tensor, which are the first
 * rows of the chunk. */
void convert_quantize(struct convert_quant *q, uint64_t row0, uint64_t n_rows);

/* Infinite and NaN values among n binary16 values. */
uint64_t convert_count_broken(const uint16_t *values, size_t n);

#endif
