/* outputs_impl.h: what outputs.c and outputs_device.c share. */
#ifndef GLMD_WORKER_ENGINE_OUTPUTS_IMPL_H
#define GLMD_WORKER_ENGINE_OUTPUTS_IMPL_H

#include "worker/engine/outputs.h"

/* Some of the step's output rows: at most WORKSPACE_HEAD_ROWS. */
struct outputs_chunk {
    uint32_t rows[WORKSPACE_HEAD_ROWS]; /* of the batch */
    const struct batch_output *outputs[WORKSPACE_HEAD_ROWS];
    uint32_t n;
};

/* How far the results are filled, front to back. */
struct outputs_cursor {
    uint32_t n_scores;
    uint32_t n_score_tokens;
    uint32_t n_candidates;
    size_t n_logits;
    uint32_t group_rows_left; /* of the beam group in progress */
};

/* Where a score goes, and the best tokens beside it. */
struct outputs_score {
    float *score;
    int32_t *tokens;
    float *logprobs;
    uint32_t n_top;
};

/* A token that the history lacks; -1 = none. */
int32_t outputs_previous(const struct outputs *o, const struct plan_item *it);
struct result_logprob *outputs_top(const struct outputs *o, uint32_t item);
void outputs_put_choice(struct outputs *o, uint32_t item, int32_t token, float logprob,
                        uint32_t n_top);
/* For the item's next row that is scored. */
struct outputs_score outputs_next_score(struct outputs *o, const struct plan *p, uint32_t item,
                                        struct outputs_cursor *at);
void outputs_put_score(const struct outputs_score *to, float score,
                       const struct result_logprob *top);

/* ---- outputs_device.c ---- */

/* o->device for the stage that holds the head, where the device samples. 0 or -ENOMEM. */
int outputs_open_device(struct outputs *o);
void outputs_close_device(struct outputs *o);
/* Rows that choose or score a token. */
int outputs_take_on_device(struct outputs *o, const struct plan *p, const struct outputs_chunk *c,
                           struct comm *comm, struct outputs_cursor *at, struct err *e);

#endif
