/* sampler_impl.h: what sampler.c and sampler_beam.c share. */
#ifndef GLMD_WORKER_ENGINE_SAMPLER_IMPL_H
#define GLMD_WORKER_ENGINE_SAMPLER_IMPL_H

#include <stdint.h>

#include "worker/engine/sampler.h"

enum { SAMPLER_BINS = 2048 };

struct sampler_held { /* one candidate of a beam group */
    double rank;      /* what it was chosen by: the score, or the score plus its noise */
    double score;     /* beam_score + log-probability */
    uint32_t item;
    int32_t token;
};

struct sampler {
    uint32_t vocab;
    float *raw;     /* owned, [vocab]: logits before the strategy */
    float *weights; /* owned, [vocab]: exp(logit - max), 0 = cut */
    uint32_t *seen; /* owned, [vocab]: zeros, but while penalties are applied */
    union {         /* of one digit of the keys */
        uint32_t count[SAMPLER_BINS];
        double mass[SAMPLER_BINS];
    } bins;
    struct plan_beam_group group;                  /* the beam group in progress */
    uint32_t n_beams;                              /* rows of it that were seen */
    uint32_t n_held;                               /* <= group.width */
    struct sampler_held held[PLAN_MAX_BEAM_WIDTH]; /* heap, the worst in front */
};

double sampler_log_sum_exp(const float *row, uint32_t n);
void sampler_add_bias(float *row, const struct plan_sampling *p);
void sampler_forbid(float *row, const struct plan_sampling *p);
void sampler_penalize(struct sampler *s, float *row, const struct plan_sampling *p,
                      int32_t previous);

#endif
