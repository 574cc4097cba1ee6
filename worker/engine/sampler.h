/* sampler.h: how a row of logits becomes a token, a log-probability or beam candidates.
 *
 * Pure functions of the row, the plan's parameters and a counter-based generator, computed alike on
 * every rank and every platform, on CPUs and GPUs (kernels/sampling.h): no libm, no state between
 * steps. Rows are [vocab] FP32 and get their bias in place. vocab is at most SAMPLING_MAX_VOCAB.
 * One thread per sampler; nothing is allocated after sampler_new.
 */
#ifndef GLMD_WORKER_ENGINE_SAMPLER_H
#define GLMD_WORKER_ENGINE_SAMPLER_H

#include <stdint.h>

#include "proto/plan.h"

struct sampler; /* opaque: scratch for one row and one beam group */

int sampler_new(uint32_t vocab, struct sampler **ret);
void sampler_free(struct sampler *s);
uint64_t sampler_bytes(uint32_t vocab);

/* Chooses one token as plan_sampling says. `previous` is a token of the output that the history
 * lacks (PLAN_TOKEN_PREVIOUS), -1 = none. *ret_logprob and ret_top[n_top_logprobs] (best first;
 * ties: lower id) are log-softmax of logits + bias: before penalties, temperature, forbidden ids
 * and cuts. top_k = 1 is the first maximum of what is allowed. Returns the token. */
int32_t sampler_choose(struct sampler *s, float *row, const struct plan_sampling *p,
                       int32_t previous, float *ret_logprob, struct result_logprob *ret_top);

/* The distribution just before the draw, ret_probs [vocab]; `row` is overwritten. */
void sampler_distribution(struct sampler *s, float *row, const struct plan_sampling *p,
                          int32_t previous, float *ret_probs);

/* log softmax(row)[token], and those of the n_top best tokens as in sampler_choose. */
float sampler_logprob(const struct sampler *s, const float *row, int32_t token, uint32_t n_top,
                      struct result_logprob *ret_top);

/* Beam groups: begin, one call per row in the order of the plan's items, finish.
 * The score of (item, token) is beam_score + log softmax(row + bias, penalties applied, forbidden
 * and banned ids at -65504)[token]. Deterministic: the W best; ties: lower item, then lower token.
 * Otherwise W draws without replacement from the softmax of all the group's scores. */
void sampler_beam_begin(struct sampler *s, const struct plan_beam_group *group);
void sampler_beam_row(struct sampler *s, float *row, uint32_t item, float beam_score,
                      const struct plan_sampling *p);
/* Best score first; returns how many (W, or fewer when the rows have fewer tokens). */
uint32_t sampler_beam_finish(struct sampler *s, struct result_candidate *ret_candidates);

#endif
