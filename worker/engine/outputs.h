/* outputs.h: from the last hidden states of a step to its results: head, sampling, scores, beams.
 *
 * Rows that choose or score a token are sampled where their logits lie when the device can
 * (k_ops.sample): nothing but tokens and log-probabilities comes to the host. With several ranks
 * whose devices sum over ranks, each samples from its part of the vocabulary, and sums, maxima and
 * the best tokens are exchanged, on the devices. Rows that are too wide for that (the edge of top-k
 * or top-p is not among the best tokens of the ranks), and all of them where sums go through the
 * host, have their logits gathered; every rank samples its share of these rows, and the results are
 * exchanged. So all ranks have the same ones. The rows of beam groups, and logits that were asked
 * for, are the host's in any case. The same bits on every way.
 */
#ifndef GLMD_WORKER_ENGINE_OUTPUTS_H
#define GLMD_WORKER_ENGINE_OUTPUTS_H

#include "base/err.h"
#include "kernels/sample.h"
#include "proto/plan.h"
#include "worker/engine/batch.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/glm.h"
#include "worker/engine/results.h"
#include "worker/engine/sampler.h"

/* Threads that sample rows on the host at most: each takes 28 bytes of memory per token id. */
enum { OUTPUTS_SAMPLERS = 8 };

struct outputs {
    /* owned */
    struct results results;
    struct k_sampler *device; /* NULL: the host samples */
    /* For each thread that samples on the host; one alone where a device does, then NULL. */
    struct sampler *samplers[OUTPUTS_SAMPLERS];
    float *rows[OUTPUTS_SAMPLERS]; /* [vocab] logits that come from several ranks, one row */
    uint64_t sample_ns;            /* so far: choosing tokens on the host */
    /* so far: rows that the devices of several ranks chose together; that went through whole logits
     * after all */
    uint64_t n_shared_rows, n_wide_rows;
    /* state */
    const struct plan *plan; /* of the step, between outputs_tail and outputs_produce */
    bool in_step;            /* its rows are sampled by what was enqueued with its layers */
    /* borrowed */
    struct glm *model;
    const struct batch *batch;
    const struct plan_limits *limits;
};

/* -ENOMEM. deinit undoes any prefix of it, and is fine with zeros. */
int outputs_init(struct outputs *o, struct glm *model, const struct batch *batch,
                 const struct plan_limits *limits);
void outputs_deinit(struct outputs *o);

/* What outputs_init allocates on the host, with a device that samples or without, and on such a
 * device for a stage that holds the head. */
uint64_t outputs_bytes(const struct plan_limits *limits, bool on_device);
uint64_t outputs_device_bytes(const char *backend, uint32_t tp_size,
                              const struct plan_limits *limits);

/* PLAN_OUTPUT_LOGITS is for tools and tests: its memory is found when it is first asked for. */
int outputs_reserve(struct outputs *o, const struct plan *p, struct err *e);

/* The last stage, before glm_forward: head and sampling of a decode step all of whose rows choose a
 * token on the device, up to WORKSPACE_HEAD_ROWS of them, as a part of it. */
struct glm_tail outputs_tail(struct outputs *o, const struct plan *p);

/* The last stage, after glm_forward: fills the results of the plan's items and groups. */
int outputs_produce(struct outputs *o, const struct plan *p, struct comm *comm, struct err *e);

/* A row's sampling as the device takes it. */
struct k_sample_row outputs_sample_row(const struct plan_sampling *p, int32_t previous);

#endif
