/* sched_plan.c: builds the next step plan from the running requests; see sched.h for the policy. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* ---- what a request could run ---- */

/* Whether the token that a sequence samples in a step that is out can be run before it is known.
 * The last one that the length allows needs no successor. */
static bool can_run_ahead(const struct request *r, const struct seq *q)
{
    return q->n_samples_out == 1 && r->outputs[q->output].tokens.n + 1 < request_max_new(r);
}

/* Tokens of the next item of a sequence; 0 = nothing now. */
static uint32_t pending_tokens(const struct request *r, const struct seq *q)
{
    if (!q->live)
        return 0;
    if (q->n_samples_out)
        return can_run_ahead(r, q);
    uint32_t n = request_n_tokens(r, q);
    assert(n >= q->n_cached);
    return n - q->n_cached;
}

/* A prefill is a context, a prompt, a Score choice; a decode is one token of each sequence. */
static bool is_prefill(const struct request *r)
{
    if (r->kind == REQUEST_SCORE || r->phase == REQUEST_CONTEXT)
        return true;
    const struct seq *q = &r->seqs[0];
    return q->live && q->n_cached == 0;
}

static uint32_t decode_tokens(const struct sched *s)
{
    uint32_t n = 0;
    for (const struct request *r = s->running.first; r; r = r->next) {
        if (r->paused || is_prefill(r))
            continue;
        for (uint32_t i = 0; i != r->n_seqs; i++)
            n += pending_tokens(r, &r->seqs[i]) != 0;
    }
    return n;
}

/* Tokens of the next prefill of a request; 0 = none now. */
static uint32_t prefill_tokens(const struct request *r)
{
    if (!is_prefill(r))
        return 0;
    if (r->kind != REQUEST_SCORE || r->phase == REQUEST_CONTEXT) {
        uint32_t n = 0; /* several choices of a one-token prompt start at once */
        for (uint32_t i = 0; i != r->n_seqs; i++)
            n += pending_tokens(r, &r->seqs[i]);
        return n;
    }
    if (r->next_choice == r->n_choices_scored)
        return 0;
    for (uint32_t i = 0; i != r->n_seqs; i++) {
        if (!r->seqs[i].live)
            return r->outputs[r->next_choice].n_target; /* sop and all but the last */
    }
    return 0;
}

static uint32_t first_prefill_tokens(const struct sched *s)
{
    for (const struct request *r = s->running.first; r; r = r->next) {
        uint32_t n = r->paused ? 0 : prefill_tokens(r);
        if (n)
            return n;
    }
    return 0;
}

/* ---- items ---- */

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

static bool add_banned(struct sched *s, const int32_t *ids, uint32_t n)
{
    return add_ids(&s->banned, &s->n_banned, &s->capacity_banned, ids, n);
}

/* What the penalties of a sequence look at. A sample that is still out is the rank's to add. */
static bool add_history(struct sched *s, const struct request *r, const struct seq *q,
                        uint32_t item, struct plan_sampling *ret)
{
    const struct request_params *p = &r->params;
    s->history_at[item] = s->n_history;
    if ((p->repetition_penalty == 0 || p->repetition_penalty == 1) && p->presence_penalty == 0 &&
        p->frequency_penalty == 0)
        return true;
    const int32_t *output = r->outputs[q->output].tokens.ids;
    size_t n_output = r->outputs[q->output].tokens.n;
    if (p->beam)
        output = beam_search_tokens(r->search, q->output, &n_output);
    const struct token_list *prompt = &r->prompt.ids;
    ret->n_history_prompt = (uint32_t)prompt->n;
    ret->n_history = (uint32_t)(prompt->n + n_output);
    return add_ids(&s->history, &s->n_history, &s->capacity_history, prompt->ids, prompt->n) &&
           add_ids(&s->history, &s->n_history, &s->capacity_history, output, n_output);
}

static bool add_beam_bans(struct sched *s, const struct request *r, uint32_t beam, uint32_t *ret_n)
{
    int32_t ids[PLAN_MAX_BANNED];
    size_t n = beam_search_bans(r->search, beam, ids, PLAN_MAX_BANNED);
    *ret_n = (uint32_t)MIN(n, (size_t)PLAN_MAX_BANNED);
    return add_banned(s, ids, *ret_n);
}

/* End tokens and stop ids that must not be chosen as output n_done. */
static bool add_end_bans(struct sched *s, const struct request *r, uint32_t n_done, uint32_t *ret_n)
{
    const struct request_params *p = &r->params;
    uint32_t first = s->n_banned;
    bool early = n_done < p->min_tokens, ok = true;
    for (uint32_t i = 0; ok && (early || p->ignore_end) && i != s->n_end_tokens; i++) {
        if (early || !request_is_stop_id(r, s->end_tokens[i]))
            ok = add_banned(s, &s->end_tokens[i], 1);
    }
    if (ok && early)
        ok = add_banned(s, p->stop_ids, p->n_stop_ids);
    *ret_n = s->n_banned - first;
    return ok;
}

static bool set_sampling(struct sched *s, const struct request *r, const struct seq *q,
                         uint32_t item, struct plan_sampling *ret)
{
    const struct request_params *p = &r->params;
    uint32_t n_done =
        p->beam ? r->beam_step : (uint32_t)r->outputs[q->output].tokens.n + q->n_samples_out;
    *ret = (struct plan_sampling){
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
        .output_index = n_done,
        .n_top_logprobs = p->n_top_logprobs,
        .bias = p->bias,
        .n_bias = p->n_bias,
        .forbidden = p->forbidden,
        .n_forbidden = p->n_forbidden,
    };
    s->banned_at[item] = s->n_banned;
    if (!add_history(s, r, q, item, ret))
        return false;
    if (p->beam)
        return add_beam_bans(s, r, q->output, &ret->n_banned);
    return add_end_bans(s, r, n_done, &ret->n_banned);
}

/* Score: row i predicts token i + 1, so that the rows from sop on have the choice as targets. */
static uint32_t set_targets(struct sched *s, const struct request *r, const struct seq *q,
                            struct plan_item *it)
{
    const struct output *o = &r->outputs[q->output];
    int32_t *targets = s->targets + (it->tokens - s->tokens);
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

static void flush_copies(struct sched *s, struct request *r)
{
    assert(s->n_copies + r->n_copies <= s->capacity_copies);
    memcpy(s->copies + s->n_copies, r->copies, r->n_copies * sizeof *r->copies);
    s->n_copies += r->n_copies;
    r->n_copies = 0;
}

/* One item: the tokens of the sequence that are not in the cache. The budget was checked. */
static bool add_item(struct sched *s, struct step_record *rec, struct request *r, uint32_t seq)
{
    struct seq *q = &r->seqs[seq];
    uint32_t n = pending_tokens(r, q), idx = rec->n_items;
    assert(n && q->slot != REQUEST_SLOT_NONE && idx < s->limits.n_slots);
    assert(s->n_tokens + n <= s->limits.max_tokens);
    struct plan_item *it = &s->items[idx];
    *it = (struct plan_item){
        .slot = (uint32_t)q->slot,
        .slot_gen = q->slot_gen,
        .start = q->n_cached,
        .n_tokens = n,
        .prefix_len = r->prompt.prefix_len,
        .tokens = s->tokens + s->n_tokens,
        .positions = s->positions + s->n_tokens,
        .output = PLAN_OUTPUT_NONE,
    };
    for (uint32_t i = 0; i != n; i++) {
        s->tokens[s->n_tokens + i] =
            q->n_samples_out ? PLAN_TOKEN_PREVIOUS : request_token(r, q, q->n_cached + i);
        s->positions[s->n_tokens + i] = prompt_position(&r->prompt, q->n_cached + i);
    }
    struct step_item *si = &rec->items[idx];
    *si = (struct step_item){.request = r, .seq = seq, .slot = it->slot, .slot_gen = it->slot_gen};
    si->n_tokens = n;
    if (r->phase == REQUEST_RUN && r->kind == REQUEST_SCORE) {
        it->output = PLAN_OUTPUT_SCORE;
        si->n_targets = set_targets(s, r, q, it);
        si->n_top = it->sampling.n_top_logprobs = r->params.n_top_logprobs;
    } else if (r->phase == REQUEST_RUN) {
        it->output = r->params.beam ? PLAN_OUTPUT_BEAM : PLAN_OUTPUT_SAMPLE;
        if (!set_sampling(s, r, q, idx, &it->sampling))
            return false;
    }
    si->output = it->output;
    block_table_extend(&s->blocks, &r->lease, &q->table, q->n_cached + n);
    it->blocks = q->table.ids;
    it->n_blocks = blocks_for_tokens(q->n_cached + n);
    q->n_cached += n;
    q->n_samples_out += it->output == PLAN_OUTPUT_SAMPLE;
    rec->n_items++;
    s->n_tokens += n;
    return true;
}

/* All live beams of a search, as one group. */
static bool add_beams(struct sched *s, struct step_record *rec, struct request *r)
{
    uint32_t g = rec->n_groups, n_live = beam_search_n_live(r->search);
    s->groups[g] = (struct plan_beam_group){
        .width = beam_search_width(r->search),
        .deterministic = !r->params.beam_sampled,
        .seed = r->params.seed,
        .request = r->round,
        .output_index = r->beam_step,
    };
    rec->groups[g] = (struct step_group){
        .request = r, .first_item = rec->n_items, .n_items = n_live, .width = s->groups[g].width};
    rec->n_groups++;
    for (uint32_t i = 0; i != n_live; i++) {
        uint32_t idx = rec->n_items;
        if (!add_item(s, rec, r, i))
            return false;
        s->items[idx].beam_group = g;
        s->items[idx].beam_score = beam_search_score(r->search, i);
    }
    return true;
}

/* Takes back what a failed request had put into the plan; its blocks go with the request. */
static void drop_items(struct sched *s, struct step_record *rec, struct request *r,
                       uint32_t n_items, uint32_t n_groups, uint32_t n_tokens, uint32_t n_copies)
{
    rec->n_items = n_items;
    rec->n_groups = n_groups;
    s->n_tokens = n_tokens;
    s->n_copies = n_copies;
    sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
}

/* Everything a request has pending, when `fits` tokens are left for it. */
static void add_request(struct sched *s, struct step_record *rec, struct request *r)
{
    uint32_t n_items = rec->n_items, n_groups = rec->n_groups;
    uint32_t n_tokens = s->n_tokens, n_copies = s->n_copies;
    flush_copies(s, r);
    bool ok = true;
    if (r->params.beam) {
        ok = add_beams(s, rec, r);
    } else {
        for (uint32_t i = 0; ok && i != r->n_seqs; i++) {
            if (pending_tokens(r, &r->seqs[i]))
                ok = add_item(s, rec, r, i);
        }
    }
    if (!ok)
        drop_items(s, rec, r, n_items, n_groups, n_tokens, n_copies);
}

/* Score: idle sequences take the next choices, as far as the step has room. */
static void add_choices(struct sched *s, struct step_record *rec, struct request *r)
{
    for (uint32_t i = 0; i != r->n_seqs && r->next_choice != r->n_choices_scored; i++) {
        struct seq *q = &r->seqs[i];
        if (q->live)
            continue;
        uint32_t n = r->outputs[r->next_choice].n_target;
        if (n > s->limits.max_tokens - s->n_tokens)
            return;
        q->output = r->next_choice++;
        q->live = true;
        seq_take_slot(s, q);
        if (block_table_fork(&s->blocks, &r->lease, &q->table, &r->context, r->n_context,
                             &r->copies[r->n_copies]))
            r->n_copies++;
        q->n_cached = r->n_context;
        flush_copies(s, r);
        bool ok = add_item(s, rec, r, i); /* no sampling: nothing to run out of */
        assert(ok);
    }
}

static void add_decodes(struct sched *s, struct step_record *rec)
{
    for (struct request *r = s->running.first, *next; r; r = next) {
        next = r->next;
        if (r->paused || is_prefill(r))
            continue;
        bool pending = false;
        for (uint32_t i = 0; i != r->n_seqs; i++)
            pending = pending || pending_tokens(r, &r->seqs[i]);
        if (pending)
            add_request(s, rec, r);
    }
}

static void add_prefills(struct sched *s, struct step_record *rec)
{
    for (struct request *r = s->running.first, *next; r; r = next) {
        next = r->next;
        uint32_t n = r->paused ? 0 : prefill_tokens(r);
        if (n == 0)
            continue;
        if (n > s->limits.max_tokens - s->n_tokens)
            return; /* in order of arrival: nobody overtakes */
        if (r->kind == REQUEST_SCORE && r->phase == REQUEST_RUN)
            add_choices(s, rec, r);
        else
            add_request(s, rec, r);
    }
}

static void complete_plan(struct sched *s, struct step_record *rec)
{
    uint32_t n_prefill = 0;
    for (uint32_t i = 0; i != rec->n_items; i++) {
        struct plan_item *it = &s->items[i];
        if (it->sampling.n_banned)
            it->sampling.banned = s->banned + s->banned_at[i];
        if (it->sampling.n_history)
            it->sampling.history = s->history + s->history_at[i];
        if (it->start == 0 || it->output == PLAN_OUTPUT_SCORE)
            n_prefill += it->n_tokens;
    }
    rec->step = ++s->step;
    rec->n_tokens = s->n_tokens;
    s->n_prefill_tokens += n_prefill;
    s->n_decode_tokens += s->n_tokens - n_prefill;
    s->n_steps++;
    s->n_in_flight++;
    s->plan = (struct plan){
        .epoch = s->epoch,
        .step = rec->step,
        .copies = s->copies,
        .n_copies = s->n_copies,
        .items = s->items,
        .n_items = rec->n_items,
        .groups = s->groups,
        .n_groups = rec->n_groups,
    };
    struct err e = ERR_INIT;
    int r = plan_validate(&s->plan, &s->limits, &e);
    assert(r == 0); /* what this file builds, ranks accept */
    (void)r;
}

bool sched_plan(struct sched *s, int64_t now_ns, const struct plan **ret_plan)
{
    if (!s->attached || s->n_in_flight == SCHED_MAX_IN_FLIGHT)
        return false;
    sched_expire(s, now_ns);
    sched_admit(s, now_ns);
    struct step_record *rec = &s->records[(s->first_record + s->n_in_flight) % SCHED_MAX_IN_FLIGHT];
    rec->n_items = rec->n_groups = 0;
    s->n_tokens = s->n_copies = s->n_banned = s->n_history = 0;
    bool exclusive =
        !s->last_exclusive && first_prefill_tokens(s) > s->limits.max_tokens - decode_tokens(s);
    if (!exclusive)
        add_decodes(s, rec);
    add_prefills(s, rec);
    s->last_exclusive = exclusive && rec->n_items;
    if (rec->n_items == 0)
        return false;
    complete_plan(s, rec);
    *ret_plan = &s->plan;
    return true;
}
