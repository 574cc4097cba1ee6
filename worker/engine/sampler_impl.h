/* sampler_impl.h: what sampler.c, sampler_row.c and sampler_beam.c share. */
#ifndef GLMD_WORKER_ENGINE_SAMPLER_IMPL_H
#define GLMD_WORKER_ENGINE_SAMPLER_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/sampling.h"
#include "worker/engine/sampler.h"

struct sampler_held { /* one candidate of a beam group */
    double rank;      /* what it was chosen by: the score, or the score plus its noise */
    double score;     /* beam_score + log-probability */
    uint32_t item;
    int32_t token;
};

struct sampler {
    uint32_t vocab;
    /* The row under its strategy; after a cut, what is left of it, in the order of the ids. */
    float *values;     /* owned, [vocab] */
    uint32_t *ids;     /* owned, [vocab]; meaningless while nothing was cut: value i is that of i */
    uint64_t *weights; /* owned, [vocab] */
    uint32_t n_left;
    bool cut;                     /* whether `ids` counts */
    uint32_t *seen;               /* owned, [vocab]: zeros, but while penalties are applied */
    uint64_t bins[SAMPLING_BINS]; /* of one digit of the keys */
    struct plan_beam_group group; /* the beam group in progress */
    uint32_t n_beams;             /* rows of it that were seen */
    uint32_t n_held;              /* <= group.width */
    struct sampler_held held[PLAN_MAX_BEAM_WIDTH]; /* heap, the worst in front */
};

/* ---- sampler_row.c: loops over a row ---- */

/* The largest value; minus infinity for a row of NaNs. */
float sampler_maximum(const float *row, uint32_t n);
/* The lowest index of `max`; 0 where it is not there. */
uint32_t sampler_first(const float *row, uint32_t n, float max);
/* The sum of the weights, which go to ret_weights [n] as well unless that is NULL. */
uint64_t sampler_weigh(const float *row, uint32_t n, float max, uint64_t *ret_weights);
/* bins[digit of the key] += 1, or the weight where there are weights, for keys in [low, high]. */
void sampler_count(const float *row, const uint64_t *weights, uint32_t n, uint32_t low,
                   uint32_t high, int digit, uint64_t *bins);
/* Indices of keys >= low, ascending; how many. */
uint32_t sampler_above(const float *row, uint32_t n, uint32_t low, uint32_t *ret_indices);
/* The first index with which the cumulative weight exceeds target; the last one with a weight where
 * none does, 0 without any. */
uint32_t sampler_find(const uint64_t *weights, uint32_t n, uint64_t target);

/* ---- sampler.c ---- */

void sampler_add_bias(float *row, const struct plan_sampling *p);
/* s->values = the row with penalties, divided by `temperature`, then forbidden ids; all of it is
 * left. Returns whether anything differs from the row. */
bool sampler_prepare(struct sampler *s, const float *row, const struct plan_sampling *p,
                     int32_t previous, float temperature);

#endif
