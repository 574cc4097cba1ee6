/* shard.h: which part of each tensor a tensor-parallel rank owns, as a table, and which layers a
 * pipeline stage owns.
 *
 * The same table serves the converter (merging published shards), `glmd inspect` (sizes per rank)
 * and the loader (slicing). Source: SwissArmyTransformer's column/row parallel linears; see the
 * sizes for P = 8 in docs/model.md.
 */
#ifndef GLMD_MODEL_SHARD_H
#define GLMD_MODEL_SHARD_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/arch.h"

enum { SHARD_MAX_STAGES = 1024 }; /* the most layers an architecture may have (arch_check) */

enum shard_split {
    SHARD_COPY,      /* every rank holds all of it */
    SHARD_ROWS,      /* contiguous rows: embedding, QKV (whole heads) */
    SHARD_ROWS_HALF, /* each half by rows: rank r holds [slice of half 0; slice of half 1] */
    SHARD_COLS,      /* contiguous columns (input dimension): dense, 4h_to_h */
};

enum shard_role { SHARD_ROLE_LINEAR, SHARD_ROLE_BIAS, SHARD_ROLE_NORM, SHARD_ROLE_EMBEDDING };

/* One canonical tensor of an architecture. */
struct shard_tensor {
    char name[96];
    enum shard_role role;
    enum shard_split split;
    uint64_t rows, cols; /* full logical shape; 1-D tensors: rows = n, cols = 1 */
};

/* The number of canonical tensors, and the i-th one in file order (embedding, layers, final norm).
 */
size_t shard_n_tensors(const struct arch *a);
void shard_tensor_at(const struct arch *a, size_t i, struct shard_tensor *ret_tensor);

/* By name; -ENOENT when the architecture has no such tensor. */
int shard_find(const struct arch *a, const char *name, struct shard_tensor *ret_tensor);

/* The pieces of the full tensor that rank `rank` of `tp` holds, in the order in which it holds
 * them: one piece, or two for SHARD_ROWS_HALF. Units: logical rows and columns. */
struct shard_piece {
    uint64_t row0, n_rows;
    uint64_t col0, n_cols;
};
size_t shard_pieces(const struct shard_tensor *t, uint32_t tp, uint32_t rank,
                    struct shard_piece ret_pieces[2]);

/* The layers [begin, end) of pipeline stage `stage` of `n_stages`; every stage has at least one.
 * `weights` [n_stages] says what each stage can carry, in any unit (its memory, its speed); NULL:
 * all the same. The split keeps the largest layers / weight of any stage as small as it can be.
 * What does not divide evenly goes to the stages in the middle, then to the first, last to the last
 * one, which also computes the logits: 70 layers on 4 stages are 17, 18, 18, 17. -EINVAL: no
 * stages, more stages than layers, or a weight of 0. */
int shard_stage_layers(uint32_t n_layers, uint32_t n_stages, const uint32_t *weights,
                       uint32_t stage, uint32_t *ret_begin, uint32_t *ret_end);

#endif
