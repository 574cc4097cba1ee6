/* weights.h: one rank's share of the model on a backend, and how it gets there. */
#ifndef GLMD_WORKER_ENGINE_WEIGHTS_H
#define GLMD_WORKER_ENGINE_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "model/model_dir.h"

/* H hidden, I inner, V vocabulary, P ranks. All owned. */
struct glm_layer {
    struct k_norm *input_norm;       /* [H] */
    struct k_linear *qkv;            /* [3H/P, H], by head: q, k, v; with bias */
    struct k_linear *dense;          /* [H, H/P]; a partial sum, bias added after the all-reduce */
    struct k_bias *dense_bias;       /* [H] */
    struct k_norm *post_norm;        /* [H] */
    struct k_linear *h_to_4h;        /* [2I/P, H]: this rank's part of either half; with bias */
    struct k_linear *four_h_to_h;    /* [H, I/P]; a partial sum */
    struct k_bias *four_h_to_h_bias; /* [H] */
};

/* How the loading went. */
struct weights_report {
    uint64_t bytes;      /* of files, for this rank */
    uint64_t read_bytes; /* from files: with checksums also what other ranks own */
    int64_t ns;
    uint32_t n_threads;
};

struct glm_weights {            /* zero-initialised = nothing loaded */
    struct k_linear *embedding; /* [V/P, H], rows from rank * V/P; also the output head, unless
                                   there is a head; NULL on stages that need it for neither */
    struct k_linear *head;    /* [V/P, H] in INT8, on the last stage of a model that asks for it */
    struct k_norm *exit_norm; /* [H] behind the last layer: the final norm, or the input norm of
                                 the next stage's first layer */
    struct glm_layer *layers; /* [n_layers] of the stage */
    uint32_t n_layers;
    uint64_t bytes; /* on the device */
    struct weights_report loaded;
};

struct weights_load {
    const struct model_dir *model;
    const struct k_ops *ops;
    struct k_ctx *ctx;
    uint32_t tp_size, tp_rank;
    uint32_t layer_begin, layer_end; /* of the stage */
    /* That read and pack; 0 = as many as feed the device well. More are added, which mostly wait
     * for the disk, as soon as a tensor is not in the page cache. */
    uint32_t n_threads;
    bool verify;
    int (*on_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes); /* may be NULL */
    void *progress_context;
};

/* What a stage with these layers has of the embedding: as it is in the file, to look tokens up on
 * the first stage and to be the head on the last, and an INT8 head where the scheme says so. */
struct weights_embedding {
    bool fp16, int8_head;
};
struct weights_embedding weights_embedding(const struct arch *a, const struct quant_scheme *s,
                                           uint32_t layer_begin, uint32_t layer_end);

/* Whether a stage with these layers needs tensor `idx` of the shard table: the embedding on the
 * first and the last stage, its layers, and the norm behind them. */
bool weights_stage_needs(const struct arch *a, uint32_t layer_begin, uint32_t layer_end,
                         size_t idx);

/* Reads this rank's rows and columns, in pieces and on several threads, straight to where the
 * device keeps them: no matrix is in host memory twice. on_progress is called on the calling
 * thread. On failure *ret is empty. -EBADMSG: a tensor is not what its checksum says, a file is
 * truncated or was changed meanwhile; -EINVAL: missing or of another shape; -EIO: a disk or the
 * device failed; -ECANCELED: on_progress asked to stop. */
int weights_load(const struct weights_load *load, struct glm_weights *ret, struct err *e);
void weights_free(const struct k_ops *ops, struct k_ctx *ctx, struct glm_weights *w);

#endif
