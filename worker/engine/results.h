/* results.h: where the results of a step stand, allocated once. */
#ifndef GLMD_WORKER_ENGINE_RESULTS_H
#define GLMD_WORKER_ENGINE_RESULTS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/plan.h"

struct results { /* of the last step, owned; sizes follow from the limits */
    struct step_result step;
    struct result_item *items;           /* [n_slots] */
    struct result_logprob *top;          /* [n_slots, n_top_logprobs] */
    float *scores;                       /* [max_tokens] */
    int32_t *score_tokens;               /* [max_tokens, n_top_logprobs] */
    float *score_logprobs;               /* likewise */
    struct result_group *groups;         /* [n_slots] */
    struct result_candidate *candidates; /* [n_slots, PLAN_MAX_BEAM_WIDTH] */
    float *logits;                       /* [logits_cap], grown by PLAN_OUTPUT_LOGITS */
    size_t logits_cap;
};

/* -ENOMEM. deinit undoes any prefix of it. */
int results_init(struct results *r, const struct plan_limits *limits);
void results_deinit(struct results *r);

/* What results_init allocates. */
uint64_t results_bytes(const struct plan_limits *limits);

#endif
