/* fake_engine.h: an engine whose model is a hash.
 *
 * It keeps the contents of every KV cell (token, position) and computes each output from what the
 * item's block table shows, so that a wrong table, a missing copy, a clash of slots or a token at a
 * wrong position changes the result. reference.h computes the same from the request alone.
 */
#ifndef GLMD_TESTS_COORDINATOR_FAKE_ENGINE_H
#define GLMD_TESTS_COORDINATOR_FAKE_ENGINE_H

#include "proto/plan.h"

struct fake_engine;

struct fake_engine *fake_engine_new(const struct plan_limits *limits);
void fake_engine_free(struct fake_engine *f);

/* Runs a plan; aborts with a message when the plan is one that a rank would refuse. The result is
 * valid until seven more are. */
const struct step_result *fake_engine_step(struct fake_engine *f, const struct plan *p);

/* ---- the model ---- */

/* Hash of a sequence's first n tokens and positions. */
uint64_t fake_hash(uint64_t hash, int32_t token, int32_t position);
enum { FAKE_HASH_SEED = 1469 };

/* The sampled token for a hash. */
int32_t fake_sample(uint64_t hash, const struct plan_sampling *s, uint32_t vocab);
/* The hash with what penalties look at, if there are any: history, then a sample that was out. */
uint64_t fake_penalize(uint64_t hash, const struct plan_sampling *s, int32_t previous);
float fake_logprob(uint64_t hash, int32_t token);
/* The candidates of one beam: `width` of them in ret, best first. */
void fake_candidates(uint64_t hash, float score, const struct plan_sampling *s, uint32_t vocab,
                     uint32_t width, uint32_t item, struct result_candidate *ret);
/* Best first; stable. */
void fake_sort_candidates(struct result_candidate *c, uint32_t n);

#endif
