/* glm.h: the model as a function: token rows in, logits out.
 *
 * One forward pass for everything: prefill and decode, any number of sequences, any degree of
 * tensor parallelism, any stage, any backend. It knows no plans, slots or sampling.
 *
 * Rows and layers. The first n_whole_rows rows of a step run all layers. The sliced rows behind
 * them run with them in layers [slice_begin, slice_end) and keep out of all others:
 *
 *                layer 0      slice_begin      slice_end      n_layers
 *   whole rows     |-------------|----------------|---------------|-> head
 *   sliced rows        stash ----|----------------|-> stash, or head at the end
 *
 * Their hidden state waits in the stash of the stage that runs their next layer. Between stages go
 * the rows that run the layers on either side of the border, as FP32: bits are those of one stage.
 */
#ifndef GLMD_WORKER_ENGINE_GLM_H
#define GLMD_WORKER_ENGINE_GLM_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "model/arch.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/device.h"
#include "worker/engine/weights.h"
#include "worker/engine/workspace.h"

struct glm {                 /* one rank of the model on a device; owned by the engine */
    const struct arch *arch; /* borrowed */
    const struct k_ops *ops;
    struct k_ctx *ctx;
    uint32_t tp_size, tp_rank;
    uint32_t layer_begin, layer_end; /* of this stage */
    struct glm_weights weights;
    struct workspace ws;
    struct k_rope *rope;
    struct k_kv *kv;
    struct comm_device sums; /* over ranks, where the device does them itself */
    float *logits;           /* borrowed from ws: of the last glm_head, [P, n, V/P] */
    float *capture;          /* borrowed; NULL = off. [n_layers, rows, H] */
    uint32_t capture_rows;
    bool recording;        /* what is enqueued may be kept by the device and run again */
    uint64_t link_wait_ns; /* spent in messages from and to other stages; only grows */
    uint64_t sum_ns;       /* in sums over ranks through the host; likewise */
};

/* What the last stage does with the rows of a decode step behind its layers, as part of what the
 * device may have recorded (k_ops.graph_begin): n_rows of them, with the padding, in ws.a. */
struct glm_tail {
    void *context;
    /* Before the step's operations: the kind of those that `enqueue` enqueues, 0 = none. */
    uint32_t (*prepare)(void *context, uint32_t n_rows);
    void (*enqueue)(void *context, uint32_t n_rows, uint32_t kind);
};

/* The tokens of one step, [n_rows] each; seqs says which rows belong together. */
struct glm_batch {
    const int32_t *ids;
    const int32_t *positions;
    uint32_t n_rows;
    const struct k_seq *seqs;
    uint32_t n_seqs;
    uint32_t n_whole_rows, n_whole_seqs; /* the others are sliced */
    uint32_t slice_begin, slice_end;     /* layers; 0, 0 without sliced rows */
    const struct glm_tail *tail;         /* of a step that can be recorded; NULL: there is none */
};

/* Rotary tables as the original computes them. */
struct k_rope *glm_rope_new(const struct arch *a, const struct k_ops *ops, struct k_ctx *ctx);

/* Enqueues the stage's layers; on the last stage the normalised last hidden states are in ws.a
 * when they have run. Every rank of `comm` calls it with the same batch. Errors: the device's or
 * the comm's; those of what is only enqueued are found by glm_head or glm_wait. */
int glm_forward(struct glm *m, const struct glm_batch *batch, struct comm *comm, struct err *e);

/* Until all that is enqueued has run. */
int glm_wait(struct glm *m, struct comm *comm, struct err *e);

/* What the head multiplies with, [V/P, H]. */
static inline const struct k_linear *glm_head_matrix(const struct glm *m)
{
    return m->weights.head ? m->weights.head : m->weights.embedding;
}

/* The last stage: logits of `n` <= WORKSPACE_HEAD_ROWS rows of the last forward pass, on the host
 * of every rank of the stage. */
int glm_head(struct glm *m, const uint32_t *rows, uint32_t n, struct comm *comm, struct err *e);

/* Row i of the last glm_head, [vocab]: where it lies, or put together in `scratch` [vocab] from the
 * parts of several ranks. The caller may change it. */
float *glm_head_row(const struct glm *m, uint32_t i, uint32_t n, float *scratch);

#endif
