/* results.c: see results.h. */
#include "worker/engine/results.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"

uint64_t results_bytes(const struct plan_limits *l)
{
    uint64_t per_slot = sizeof(struct result_item) + sizeof(struct result_group) +
                        l->n_top_logprobs * sizeof(struct result_logprob) +
                        PLAN_MAX_BEAM_WIDTH * sizeof(struct result_candidate);
    uint64_t per_token =
        sizeof(float) + (uint64_t)l->n_top_logprobs * (sizeof(int32_t) + sizeof(float));
    return l->n_slots * per_slot + l->max_tokens * per_token;
}

int results_init(struct results *r, const struct plan_limits *l)
{
    r->items = alloc_array(l->n_slots, sizeof *r->items);
    r->top = alloc_array((size_t)l->n_slots * l->n_top_logprobs, sizeof *r->top);
    r->scores = alloc_array(l->max_tokens, sizeof *r->scores);
    size_t n_best = (size_t)l->max_tokens * l->n_top_logprobs;
    r->score_tokens = alloc_array(n_best, sizeof *r->score_tokens);
    r->score_logprobs = alloc_array(n_best, sizeof *r->score_logprobs);
    r->groups = alloc_array(l->n_slots, sizeof *r->groups);
    r->candidates = alloc_array((size_t)l->n_slots * PLAN_MAX_BEAM_WIDTH, sizeof *r->candidates);
    bool ok = r->items && r->top && r->scores && r->score_tokens && r->score_logprobs &&
              r->groups && r->candidates;
    return ok ? 0 : -ENOMEM;
}

void results_deinit(struct results *r)
{
    free(r->items);
    free(r->top);
    free(r->scores);
    free(r->score_tokens);
    free(r->score_logprobs);
    free(r->groups);
    free(r->candidates);
    free(r->logits);
}
