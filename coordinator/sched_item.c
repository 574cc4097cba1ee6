/* sched_item.c: one item of a step plan from a sequence; see sched_plan.c for which ones. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* Whether the token that a sequence samples in a step that is out can be run before it is known.
 * The last one that the length allows needs no successor. With several stages other sequences fill
 * the time. */
static bool can_run_ahead(const struct sched_group *g, const struct request *r, const struct seq *q)
{
    return g->n_stages == 1 && q->n_samples_out == 1 &&
           r->outputs[q->output].tokens.n + 1 < request_max_new(r);
}

uint32_t seq_pending(const struct sched_group *g, const struct request *r, const struct seq *q)
{
    if (!q->live)
        return 0;
    if (q->n_samples_out)
        return can_run_ahead(g, r, q);
    uint32_t n = request_n_tokens(r, q);
    assert(n >= q->n_cached);
    return n - q->n_cached;
}

/* ---- ids that items point to ---- */

/* Appends ids to one of the pools that items point into; a pool may move, so that items get their
 * pointers when the plan is complete. */
static bool add_ids(int32_t **pool, uint32_t *n_pool, uint32_t *capacity, const int32_t *ids,
                    size_t n)
{
    if (n > UINT32_MAX / 4 - *n_pool)
        return false;
    if (*n_pool + n > *capacity) {
        uint32_t wanted = MAX(2 * *capacity, *n_pool + (uint32_t)n);
        int32_t *p = realloc(*pool, wanted * sizeof *p);
        if (!p)
            return false;
        *pool = p;
        *capacity = wanted;
    }
    if (n)
        memcpy(*pool + *n_pool, ids, n * sizeof *ids);
    *n_pool += (uint32_t)n;
    return true;
}

static bool add_banned(struct sched_group *g, const int32_t *ids, uint32_t n)
{
    return add_ids(&g->banned, &g->n_banned, &g->capacity_banned, ids, n);
}

/* What the penalties of a sequence look at, without what the ranks have. A sample that is still out
 * is theirs to add. */
static bool add_history(struct sched_group *g, const struct request *r, struct seq *q,
                        uint32_t item, struct plan_sampling *ret)
{
    const struct request_params *p = &r->params;
    g->history_at[item] = g->n_history;
    if ((p->repetition_penalty == 0 || p->repetition_penalty == 1) && p->presence_penalty == 0 &&
        p->frequency_penalty == 0)
        return true;
    const int32_t *output = r->outputs[q->output].tokens.ids;
    size_t n_output = r->outputs[q->output].tokens.n;
    if (p->beam)
        output = beam_search_tokens(r->search, q->output, &n_output);
    const struct token_list *prompt = &r->prompt.ids;
    size_t n_total = prompt->n + n_output, n_kept = q->n_history;
    assert(n_kept <= n_total);
    size_t from_prompt = MIN(n_kept, prompt->n), from_output = n_kept - from_prompt;
    ret->n_history_prompt = (uint32_t)prompt->n;
    ret->n_history_kept = (uint32_t)n_kept;
    ret->n_history = (uint32_t)(n_total - n_kept);
    q->n_history = (uint32_t)n_total;
    return add_ids(&g->history, &g->n_history, &g->capacity_history, prompt->ids + from_prompt,
                   prompt->n - from_prompt) &&
           (from_output == n_output || add_ids(&g->history, &g->n_history, &g->capacity_history,
                                               output + from_output, n_output - from_output));
}

static bool add_beam_bans(struct sched_group *g, const struct request *r, uint32_t beam,
                          uint32_t *ret_n)
{
    int32_t ids[PLAN_MAX_BANNED];
    size_t n = beam_search_bans(r->search, beam, ids, PLAN_MAX_BANNED);
    *ret_n = (uint32_t)MIN(n, (size_t)PLAN_MAX_BANNED);
    return add_banned(g, ids, *ret_n);
}

/* End tokens and stop ids that must not be chosen as output n_done. */
static bool add_end_bans(const struct sched *s, struct sched_group *g, const struct request *r,
                         uint32_t n_done, uint32_t *ret_n)
{
    const struct request_params *p = &r->params;
    uint32_t first = g->n_banned;
    bool early = n_done < p->min_tokens, ok = true;
    for (uint32_t i = 0; ok && (early || p->ignore_end) && i != s->n_end_tokens; i++) {
        if (early || !request_is_stop_id(r, s->end_tokens[i]))
            ok = add_banned(g, &s->end_tokens[i], 1);
    }
    if (ok && early)
        ok = add_banned(g, p->stop_ids, p->n_stop_ids);
    *ret_n = g->n_banned - first;
    return ok;
}

/* What stays the same in all items of a sequence. */
static struct plan_sampling parameters(const struct request *r, const struct seq *q)
{
    const struct request_params *p = &r->params;
    return (struct plan_sampling){
        .temperature = p->temperature,
        .top_k = p->top_k,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
        .seed = p->seed,
        /* Not the request's number: the same seed must give the same text again. */
        .request = r->round,
        .choice = q->output,
        .n_top_logprobs = p->n_top_logprobs,
        .bias = p->bias,
        .n_bias = p->n_bias,
        .forbidden = p->forbidden,
        .n_forbidden = p->n_forbidden,
    };
}

static bool set_sampling(const struct sched *s, struct sched_group *g, const struct request *r,
                         struct seq *q, uint32_t item, struct plan_sampling *ret)
{
    const struct request_params *p = &r->params;
    uint32_t n_done =
        p->beam ? r->beam_step : (uint32_t)r->outputs[q->output].tokens.n + q->n_samples_out;
    if (q->sampling_told)
        *ret = (struct plan_sampling){.kept = true};
    else
        *ret = parameters(r, q);
    q->sampling_told = p->n_bias == 0;
    ret->output_index = n_done;
    g->banned_at[item] = g->n_banned;
    if (!add_history(g, r, q, item, ret))
        return false;
    if (p->beam)
        return add_beam_bans(g, r, q->output, &ret->n_banned);
    return add_end_bans(s, g, r, n_done, &ret->n_banned);
}

/* Score: row i predicts token i + 1, so that the rows from sop on have the choice as targets. */
static uint32_t set_targets(struct sched_group *g, const struct request *r, const struct seq *q,
                            struct plan_item *it)
{
    const struct output *o = &r->outputs[q->output];
    int32_t *targets = g->targets + (it->tokens - g->tokens);
    uint32_t n_context = (uint32_t)r->prompt.ids.n - 1;
    uint32_t n = 0;
    for (uint32_t i = 0; i != it->n_tokens; i++) {
        uint32_t index = it->start + i;
        targets[i] = -1;
        if (index >= n_context && index - n_context < o->n_target) {
            targets[i] = o->target[index - n_context];
            n++;
        }
    }
    it->targets = targets;
    return n;
}

/* ---- the item ---- */

static void flush_copies(struct sched_group *g, struct request *r)
{
    assert(g->n_copies + r->n_copies <= g->capacity_copies);
    memcpy(g->copies + g->n_copies, r->copies, r->n_copies * sizeof *r->copies);
    g->n_copies += r->n_copies;
    r->n_copies = 0;
}

/* What the next n of the pending tokens are for. */
static enum step_role role_of(const struct request *r, bool all)
{
    if (r->phase == REQUEST_CONTEXT)
        return all ? STEP_CONTEXT : STEP_PART;
    if (r->kind == REQUEST_SCORE)
        return STEP_SCORE;
    if (!all)
        return STEP_PART;
    return r->params.beam ? STEP_BEAM : STEP_SAMPLE;
}

/* What the ranks do not have of the sequence's table. Before its last slice they keep none. */
static void set_table(struct seq *q, struct plan_item *it, bool unfinished)
{
    uint32_t n_total = blocks_for_tokens(it->start + it->n_tokens);
    assert(q->n_blocks_told <= n_total);
    it->n_blocks_kept = q->n_blocks_told;
    it->n_blocks = n_total - q->n_blocks_told;
    it->blocks = q->table.ids + q->n_blocks_told;
    q->n_blocks_told = unfinished ? 0 : n_total;
}

static bool add_item(struct sched *s, struct sched_group *g, struct step_record *rec,
                     struct request *r, uint32_t seq, uint32_t n, enum step_role role)
{
    static const enum plan_output outputs[] = {
        [STEP_SLICE] = PLAN_OUTPUT_NONE,   [STEP_PART] = PLAN_OUTPUT_NONE,
        [STEP_CONTEXT] = PLAN_OUTPUT_NONE, [STEP_SAMPLE] = PLAN_OUTPUT_SAMPLE,
        [STEP_BEAM] = PLAN_OUTPUT_BEAM,    [STEP_SCORE] = PLAN_OUTPUT_SCORE,
    };
    struct seq *q = &r->seqs[seq];
    uint32_t idx = rec->n_items, pending = seq_pending(g, r, q);
    assert(n && n <= pending && q->slot != REQUEST_SLOT_NONE && idx < g->limits.n_slots);
    assert(g->n_tokens + n <= g->limits.max_tokens);
    flush_copies(g, r);
    struct plan_item *it = &g->items[idx];
    *it = (struct plan_item){
        .slot = (uint32_t)q->slot,
        .slot_gen = q->slot_gen,
        .start = q->n_cached,
        .n_tokens = n,
        .prefix_len = r->prompt.prefix_len,
        .tokens = g->tokens + g->n_tokens,
        .positions = g->positions + g->n_tokens,
        .output = outputs[role],
    };
    for (uint32_t i = 0; i != n; i++) {
        g->tokens[g->n_tokens + i] =
            q->n_samples_out ? PLAN_TOKEN_PREVIOUS : request_token(r, q, q->n_cached + i);
        g->positions[g->n_tokens + i] = prompt_position(&r->prompt, q->n_cached + i);
    }
    struct step_item *si = &rec->items[idx];
    *si = (struct step_item){
        .request = r, .seq = seq, .slot = it->slot, .slot_gen = it->slot_gen, .role = role};
    if (role == STEP_SCORE) {
        si->n_targets = set_targets(g, r, q, it);
        si->n_top = it->sampling.n_top_logprobs = r->params.n_top_logprobs;
    } else if (role >= STEP_SAMPLE && !set_sampling(s, g, r, q, idx, &it->sampling)) {
        return false;
    }
    block_table_extend(&g->blocks, &r->lease, &q->table, q->n_cached + n);
    set_table(q, it, role == STEP_SLICE);
    if (q->n_cached == 0 || n > 1 || role < STEP_SAMPLE)
        sched_tell(s, r, SCHED_PREFILL, role == STEP_SLICE ? 0 : n);
    q->n_cached += role == STEP_SLICE ? 0 : n;
    q->n_samples_out += role == STEP_SAMPLE;
    rec->n_items++;
    g->n_tokens += n;
    return true;
}

bool plan_add_item(struct sched *s, struct sched_group *g, struct step_record *rec,
                   struct request *r, uint32_t seq, uint32_t n)
{
    bool all = n == seq_pending(g, r, &r->seqs[seq]);
    return add_item(s, g, rec, r, seq, n, role_of(r, all));
}

bool plan_add_slice(struct sched *s, struct sched_group *g, struct step_record *rec,
                    uint32_t layer_end)
{
    struct request *r = g->sliced;
    uint32_t idx = rec->n_items;
    bool last = layer_end == g->limits.n_layers;
    bool all = g->n_sliced == seq_pending(g, r, &r->seqs[g->sliced_seq]);
    if (!add_item(s, g, rec, r, g->sliced_seq, g->n_sliced, last ? role_of(r, all) : STEP_SLICE))
        return false;
    g->items[idx].sliced = true;
    return true;
}
