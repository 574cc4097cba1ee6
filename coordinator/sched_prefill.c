/* sched_prefill.c: how much of the prompts goes into a step, so that streams do not stall; see
 * sched.h. Costs are counted in tokens times layers: what a prompt's token costs a layer is
 * measured, what a step of decodes alone takes, too. */
#include <assert.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

#define WEIGHT 0.25 /* of the newest step in the averages */

uint32_t prefill_indivisible(const struct sched_group *g, const struct request *r,
                             const struct seq *q)
{
    if (seq_pending(g, r, q) == 0)
        return 0;
    return q->n_cached == 0 ? MAX(r->prompt.prefix_len, 1u) : 1;
}

/* Whether somebody reads the next tokens of the request: it must not wait long for its next step.
 */
static bool is_stream(const struct request *r)
{
    if (r->paused || r->phase != REQUEST_RUN || r->kind == REQUEST_SCORE)
        return false;
    for (uint32_t i = 0; i != r->n_seqs; i++) {
        if (r->seqs[i].live && r->seqs[i].n_cached > 0)
            return true;
    }
    return false;
}

void prefill_begin(const struct sched *s, struct sched_group *g)
{
    uint32_t n_waiting = 0;
    g->unlimited = true;
    for (const struct request *r = g->running.first; r; r = r->next) {
        if (is_stream(r))
            g->unlimited = false;
        else
            n_waiting +=
                !r->paused && r->kind != REQUEST_SCORE; /* scores are nobody's first token */
    }
    double budget_ns =
        (double)s->config.prefill_budget_ns * MIN(MAX(n_waiting, 1u), SCHED_MAX_BUDGETS);
    /* Nothing measured yet: at most the work of a decode step with all slots. */
    g->work_left = g->work_ns > 0 ? (uint64_t)(budget_ns / g->work_ns)
                                  : (uint64_t)g->limits.n_slots * g->limits.n_layers;
    g->work_used = g->prefill_full = false;
}

void prefill_pay(struct sched_group *g, uint32_t n_tokens, uint32_t n_layers)
{
    uint64_t work = (uint64_t)n_tokens * n_layers;
    g->work_left -= MIN(work, g->work_left);
    g->work_used = true;
}

static uint32_t affordable(const struct sched_group *g)
{
    uint64_t n = g->work_left / g->limits.n_layers;
    return g->unlimited || n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

bool prefill_fits(const struct sched_group *g, uint64_t n)
{
    return n <= g->limits.max_tokens - g->n_tokens && n <= affordable(g);
}

bool prefill_goes_on(const struct sched_group *g)
{
    return !g->prefill_full && g->n_tokens < g->limits.max_tokens &&
           (!g->work_used || affordable(g) > 0);
}

/* From the first layer, in the steps from this one on. */
static void begin_slices(struct sched_group *g, struct request *r, uint32_t seq, uint32_t n)
{
    g->sliced = r;
    g->sliced_seq = seq;
    g->n_sliced = n;
    g->next_layer = 0;
}

/* Tokens of a pending prefill that go into this step: of n that have room, `min` of them
 * indivisible. */
static uint32_t tokens_now(const struct sched *s, struct sched_group *g, struct request *r,
                           uint32_t seq, uint32_t n, uint32_t min)
{
    uint32_t afford = affordable(g);
    if (n <= afford)
        return n;
    if (afford >= min)
        return afford;
    if (g->work_used) /* the next step's budget is whole again */
        return 0;
    if (min == 1 || !s->config.slices)
        return n - min == 1 ? n : min; /* not another step for the last token */
    begin_slices(g, r, seq, n);
    return 0;
}

/* How many more scores of r, with the best tokens beside them, the step's result has room for. */
static uint32_t scores_left(const struct sched_group *g, const struct step_record *rec,
                            const struct request *r)
{
    uint32_t n_top = r->params.n_top_logprobs;
    if (r->kind != REQUEST_SCORE || n_top == 0)
        return UINT32_MAX;
    uint32_t used = 0;
    for (uint32_t i = 0; i != rec->n_items; i++) {
        if (rec->items[i].role == STEP_SCORE)
            used += g->items[i].n_tokens * rec->items[i].n_top;
    }
    return (PLAN_MAX_SCORE_TOKENS - used) / n_top;
}

bool prefill_add(struct sched *s, struct sched_group *g, struct step_record *rec, struct request *r,
                 uint32_t seq)
{
    const struct seq *q = &r->seqs[seq];
    uint32_t pending = seq_pending(g, r, q), room = g->limits.max_tokens - g->n_tokens;
    if (pending == 0 || is_sliced(g, r, seq))
        return true;
    uint32_t n = pending, min = prefill_indivisible(g, r, q);
    if (r->params.beam && r->phase == REQUEST_RUN)
        n--; /* the last token runs in a step that has all beams */
    if (n == 0)
        return true;
    uint32_t wanted = n;
    n = MIN(MIN(n, room), scores_left(g, rec, r));
    n = n < min ? 0 : tokens_now(s, g, r, seq, n, min);
    g->prefill_full = n != wanted;
    if (n == 0)
        return true;
    prefill_pay(g, n, g->limits.n_layers);
    return plan_add_item(s, g, rec, r, seq, n);
}

bool prefill_add_slice(struct sched *s, struct sched_group *g, struct step_record *rec)
{
    if (g->n_sliced > g->limits.max_tokens - g->n_tokens)
        return true; /* in a step of its own, then */
    uint32_t n_left = g->limits.n_layers - g->next_layer, n_layers = n_left;
    if (!g->unlimited)
        n_layers = (uint32_t)MIN(MAX(g->work_left / g->n_sliced, UINT64_C(1)), (uint64_t)n_left);
    uint32_t layer_begin = g->next_layer, layer_end = layer_begin + n_layers;
    if (!plan_add_slice(s, g, rec, layer_end))
        return false;
    prefill_pay(g, g->n_sliced, n_layers);
    g->plan.layer_begin = layer_begin;
    g->plan.layer_end = g->next_layer = layer_end;
    if (layer_end == g->limits.n_layers)
        g->sliced = NULL;
    return true;
}

void prefill_drop_slice(struct sched_group *g, const struct request *r)
{
    if (g->sliced == r)
        g->sliced = NULL;
}

void average(double *mean, double value)
{
    *mean = *mean > 0 ? *mean + WEIGHT * (value - *mean) : value;
}

void prefill_measure(struct sched_group *g, const struct step_record *rec, int64_t now_ns)
{
    /* Behind another step it began when that one was over. */
    int64_t began = MAX(rec->planned_ns, g->last_commit_ns);
    double taken = (double)(now_ns - began);
    g->last_commit_ns = now_ns;
    if (taken <= 0)
        return;
    average(&g->tokens_per_ns, (rec->n_decode + (double)rec->n_work / g->limits.n_layers) / taken);
    if (rec->n_work == 0) {
        average(&g->step_ns, taken);
        return;
    }
    double decodes = rec->n_decode ? g->step_ns : 0;
    if (rec->n_decode && decodes == 0) { /* as if all tokens cost the same */
        double n = (double)rec->n_decode * g->limits.n_layers;
        decodes = taken * n / (n + (double)rec->n_work);
    }
    if (taken > decodes)
        average(&g->work_ns, (taken - decodes) / (double)rec->n_work);
}
