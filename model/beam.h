/* beam.h: the bookkeeping of beam search as published (BeamSearchStrategy of SwissArmyTransformer).
 *
 * Pure: candidates in, beams and bans out. The ranks compute the candidates (log-softmax, added
 * scores, the W best of all beams); whoever drives a generation keeps a struct beam_search and
 * turns its decisions into the next step plan.
 */
#ifndef GLMD_MODEL_BEAM_H
#define GLMD_MODEL_BEAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { BEAM_MAX = 64, BEAM_MAX_END_TOKENS = 8 };

struct beam_params {
    uint32_t n_beams; /* B, 1..BEAM_MAX */
    double length_penalty;
    uint32_t no_repeat_ngram;  /* 0 = off; 1 has no effect, as published */
    uint32_t min_new_tokens;   /* end tokens are banned before */
    bool consider_end;         /* live beams compete at the end */
    const int32_t *end_tokens; /* copied; at most BEAM_MAX_END_TOKENS */
    uint32_t n_end_tokens;
    /* The prompt's ids, prompt_len of them, for n-grams that reach back into it (the n - 1 tokens
     * in front of an early output token are prompt tokens); copied as far as needed. NULL: such
     * n-grams are not recorded. */
    const int32_t *prompt;
};

struct beam_candidate {
    uint32_t beam; /* index among the live beams of the last step */
    int32_t token;
    float score; /* sum of log-probabilities, this token included */
};

struct beam_hypothesis {
    int32_t *tokens; /* generated tokens, the end token included if there is one */
    size_t n;
    float score;
    double key; /* score / ((5 + length) / 6) ^ length_penalty; length includes the prompt */
};

struct beam_search; /* opaque */

/* -EINVAL when a parameter is out of its range; -ENOMEM. */
int beam_search_new(const struct beam_params *p, size_t prompt_len, struct beam_search **ret);
void beam_search_free(struct beam_search *b);

/* W = (max(1, number of end tokens) + 1) * B candidates wanted from the next step. */
uint32_t beam_search_width(const struct beam_search *b);

/* Live beams: 1 before the first step, then up to B. */
uint32_t beam_search_n_live(const struct beam_search *b);
float beam_search_score(const struct beam_search *b, uint32_t beam);
int32_t beam_search_last_token(const struct beam_search *b, uint32_t beam);
const int32_t *beam_search_tokens(const struct beam_search *b, uint32_t beam, size_t *ret_n);

/* Token ids banned for this beam in the next step (n-gram bans, end tokens before the minimum):
 * writes up to `max` ids and returns how many there are. */
size_t beam_search_bans(const struct beam_search *b, uint32_t beam, int32_t *ret_ids, size_t max);

/* Takes the step's candidates, best first, and moves on. ret_parent[i] = the old live beam that new
 * live beam i continues (room for BEAM_MAX). ret_done: the search has stopped. -EINVAL, and nothing
 * has changed, when a candidate names no live beam, has a score that is no number, or is out of
 * order; -ENOMEM. Must not be called after the search has stopped. */
int beam_search_advance(struct beam_search *b, const struct beam_candidate *candidates, size_t n,
                        uint32_t *ret_parent, bool *ret_done);

/* The end of the generation (maximum length, or ret_done): with consider_end, live beams join the
 * finished list, unless the search stopped by itself. Without it they do so only when nothing has
 * finished, so that there always is a result. */
int beam_search_finish(struct beam_search *b);

/* Finished hypotheses, best first, at most B. */
size_t beam_search_n_results(const struct beam_search *b);
const struct beam_hypothesis *beam_search_result(const struct beam_search *b, size_t i);

#endif
