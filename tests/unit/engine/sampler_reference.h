/* sampler_reference.h: the sampler once more, plainly, and random rows and options for both. */
#ifndef GLMD_TESTS_ENGINE_SAMPLER_REFERENCE_H
#define GLMD_TESTS_ENGINE_SAMPLER_REFERENCE_H

#include <stdint.h>

#include "proto/plan.h"

enum { PENALTY_VOCAB = 701, MAX_HISTORY = 300 };

/* Coarse logits, so that there are ties everywhere. */
void random_row(float *row, uint32_t vocab, int coarse);
/* Any mix of options; few distinct ids, so that most of the history repeats. */
struct plan_sampling random_sampling(int32_t history[MAX_HISTORY]);

/* One logit with its penalties, token by token. */
float plain_penalty(float logit, const struct plan_sampling *p, int32_t id);
/* Sorts everything and does what the description says, in double. */
void plain_distribution(const float *logits, uint32_t vocab, const struct plan_sampling *p,
                        double *ret);

#endif
