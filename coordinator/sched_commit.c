/* sched_commit.c: takes the result of a step: tokens to outputs, beams to their parents, scores to
 * choices. See sched.h. A result comes from another process: it is checked against the plan before
 * anything is touched. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* ---- does the result answer the plan? ---- */

static int check_item(const struct sched_group *g, const struct step_item *si,
                      const struct result_item *it, uint32_t i, struct err *e)
{
    if (it->slot != si->slot || it->slot_gen != si->slot_gen)
        return err_set(e, -EBADMSG, "item %u: expected slot %u generation %u, found %u and %u", i,
                       si->slot, si->slot_gen, it->slot, it->slot_gen);
    if (si->role == STEP_SAMPLE && (it->token < 0 || (uint32_t)it->token >= g->limits.vocab))
        return err_set(e, -EBADMSG, "item %u: expected a token below %u, found %d", i,
                       g->limits.vocab, it->token);
    if (it->n_top > g->limits.n_top_logprobs)
        return err_set(e, -EBADMSG, "item %u: expected at most %u log-probabilities, found %u", i,
                       g->limits.n_top_logprobs, it->n_top);
    for (uint32_t k = 0; k != it->n_top; k++) {
        if (it->top[k].token < 0 || (uint32_t)it->top[k].token >= g->limits.vocab)
            return err_set(e, -EBADMSG, "item %u: log-probability of token %d", i,
                           it->top[k].token);
    }
    uint32_t n_scores = si->n_targets;
    if (it->n_scores != n_scores)
        return err_set(e, -EBADMSG, "item %u: expected %u scores, found %u", i, n_scores,
                       it->n_scores);
    if (it->n_score_tokens != 0 && it->n_score_tokens != n_scores * si->n_top)
        return err_set(e, -EBADMSG, "item %u: expected %u tokens beside its scores, found %u", i,
                       n_scores * si->n_top, it->n_score_tokens);
    for (uint32_t k = 0; k != it->n_score_tokens; k++) {
        if (it->score_tokens[k] < 0 || (uint32_t)it->score_tokens[k] >= g->limits.vocab)
            return err_set(e, -EBADMSG, "item %u: token %d beside its scores", i,
                           it->score_tokens[k]);
    }
    return 0;
}

static int check_beams(const struct sched_group *g, const struct step_group *sg,
                       const struct result_group *rg, uint32_t i, struct err *e)
{
    if (rg->n_candidates == 0 || rg->n_candidates > sg->width)
        return err_set(e, -EBADMSG, "beam group %u: expected 1 to %u candidates, found %u", i,
                       sg->width, rg->n_candidates);
    for (uint32_t k = 0; k != rg->n_candidates; k++) {
        const struct result_candidate *c = &rg->candidates[k];
        if (c->item < sg->first_item || c->item - sg->first_item >= sg->n_items || c->token < 0 ||
            (uint32_t)c->token >= g->limits.vocab || isnan(c->score))
            return err_set(e, -EBADMSG, "beam group %u: candidate %u is not one of its beams", i,
                           k);
        if (k && c->score > rg->candidates[k - 1].score)
            return err_set(e, -EBADMSG, "beam group %u: candidate %u is out of order", i, k);
    }
    return 0;
}

static int check_result(const struct sched_group *g, const struct step_record *rec,
                        const struct step_result *result, struct err *e)
{
    if (result->epoch != g->epoch || result->step != rec->step)
        return err_set(e, -EBADMSG, "expected epoch %llu step %llu, found %llu and %llu",
                       (unsigned long long)g->epoch, (unsigned long long)rec->step,
                       (unsigned long long)result->epoch, (unsigned long long)result->step);
    if (result->n_items != rec->n_items || result->n_groups != rec->n_groups)
        return err_set(e, -EBADMSG, "expected %u items and %u beam groups, found %u and %u",
                       rec->n_items, rec->n_groups, result->n_items, result->n_groups);
    int r = 0;
    for (uint32_t i = 0; i != rec->n_items && r == 0; i++)
        r = check_item(g, &rec->items[i], &result->items[i], i, e);
    for (uint32_t i = 0; i != rec->n_groups && r == 0; i++)
        r = check_beams(g, &rec->groups[i], &result->groups[i], i, e);
    return r;
}

/* ---- sampling ---- */

static bool all_finished(const struct request *r)
{
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        if (r->outputs[i].finish == FINISH_NONE)
            return false;
    }
    return true;
}

static void count_token(struct sched *s, struct request *r, uint32_t n_seqs, int64_t now_ns)
{
    queue_charge(s, r, 0, n_seqs);
    if (r->n_completion_tokens++ == 0)
        r->first_token_ns = now_ns;
    r->last_token_ns = now_ns;
}

/* A choice that has ended needs its slot no more; Fill keeps one for the next blank. */
static void end_choice(struct sched_group *g, struct request *r, struct seq *q)
{
    seq_stop(g, r, q);
    if (r->kind == REQUEST_FILL)
        return;
    assert(r->n_slots_reserved > 0);
    r->n_slots_reserved--;
    g->n_reserved_slots--;
}

static void commit_sample(struct sched *s, struct request *r, struct seq *q,
                          const struct result_item *it, int64_t now_ns)
{
    struct output *o = &r->outputs[q->output];
    bool end = is_end_token(s, it->token) && !r->params.ignore_end;
    assert(q->n_samples_out > 0 && o->finish == FINISH_NONE);
    q->n_samples_out--;
    count_token(s, r, 1, now_ns);
    end = end || request_is_stop_id(r, it->token);
    bool logprobs = r->params.logprobs || r->params.n_top_logprobs;
    if ((end ? output_end : output_append)(o, it->token, it, logprobs) < 0) {
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
        return;
    }
    if (!end && o->tokens.n >= request_max_new(r))
        o->finish = FINISH_LENGTH;
    o->logprob_sum += (double)it->logprob;
    o->n_sampled++;
    if (r->watch && r->watch(r->watch_context, r, q->output) < 0) {
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
        return;
    }
    sched_touch(s, r);
    if (o->finish == FINISH_NONE)
        return;
    average(&s->mean_output, o->n_sampled);
    s->admit_again = true; /* its slot is free */
    end_choice(group_of(s, r), r, q);
    if (all_finished(r))
        round_end(s, r, now_ns);
}

/* The shared context is in the cache: every sequence gets a table of its own. */
static void commit_context(struct sched_group *g, struct request *r)
{
    struct seq *first = &r->seqs[0];
    r->phase = REQUEST_RUN;
    if (r->kind == REQUEST_SCORE) {
        block_table_swap(&r->context, &first->table);
        seq_stop(g, r, first);
        return;
    }
    uint32_t n_live = r->params.beam ? beam_search_n_live(r->search) : r->n_seqs;
    for (uint32_t i = 1; i != n_live; i++) {
        seq_begin(g, r, i, r->n_context);
        if (block_table_fork(&g->blocks, &r->lease, &r->seqs[i].table, &first->table, r->n_context,
                             &r->copies[r->n_copies]))
            r->n_copies++;
    }
}

/* The best tokens beside the scores of one part of a choice. */
static int keep_best(struct output *o, const struct result_item *it, uint32_t n_top)
{
    size_t n = (size_t)o->n_target * n_top, at = (size_t)o->n_scored * n_top;
    if (it->n_score_tokens == 0)
        return 0;
    if (!o->best_tokens)
        o->best_tokens = alloc_array(n, sizeof *o->best_tokens);
    if (!o->best_logprobs)
        o->best_logprobs = alloc_array(n, sizeof *o->best_logprobs);
    if (!o->best_tokens || !o->best_logprobs)
        return -ENOMEM;
    memcpy(o->best_tokens + at, it->score_tokens, it->n_score_tokens * sizeof *o->best_tokens);
    memcpy(o->best_logprobs + at, it->score_logprobs,
           it->n_score_tokens * sizeof *o->best_logprobs);
    return 0;
}

static void commit_score(struct sched *s, struct request *r, struct seq *q,
                         const struct result_item *it, int64_t now_ns)
{
    struct output *o = &r->outputs[q->output];
    assert(it->n_scores <= o->n_target - o->n_scored);
    if (keep_best(o, it, r->params.n_top_logprobs) < 0) {
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
        return;
    }
    memcpy(o->token_scores + o->n_scored, it->scores, it->n_scores * sizeof *it->scores);
    o->n_scored += it->n_scores;
    if (o->n_scored != o->n_target)
        return; /* more parts follow */
    o->score = 0;
    for (uint32_t i = 0; i != o->n_target; i++)
        o->score += (double)o->token_scores[i];
    o->finish = FINISH_STOP;
    r->n_completion_tokens += o->n_target;
    if (r->first_token_ns == 0)
        r->first_token_ns = now_ns;
    seq_stop(group_of(s, r), r, q);
    if (all_finished(r))
        round_end(s, r, now_ns);
}

/* ---- beams ---- */

/* Copies the finished hypotheses to the outputs: best first, without end tokens. */
static int collect_beams(const struct sched *s, struct request *r)
{
    size_t n = beam_search_n_results(r->search);
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        struct output *o = &r->outputs[i];
        o->finish = FINISH_LENGTH;
        if (i >= n)
            continue;
        const struct beam_hypothesis *h = beam_search_result(r->search, i);
        size_t n_tokens = h->n;
        int32_t last = n_tokens ? h->tokens[n_tokens - 1] : -1;
        if (is_end_token(s, last) || request_is_stop_id(r, last)) {
            o->end_token = h->tokens[--n_tokens];
            o->finish = FINISH_STOP;
        }
        o->score = h->key;
        if (token_list_extend(&o->tokens, h->tokens, n_tokens) < 0)
            return -ENOMEM;
    }
    r->n_outputs = (uint32_t)MAX(MIN(n, (size_t)r->n_outputs), (size_t)1);
    return 0;
}

/* New live beam i goes on where beam parent[i] was: the first child of a beam takes its table,
 * further ones fork it. Beams without children are released first, so that their blocks serve the
 * forks and the lease of the admission is always enough. */
static void reorder_beams(struct sched_group *g, struct request *r, const uint32_t *parent,
                          uint32_t n_old, uint32_t n_new)
{
    uint32_t len = r->seqs[0].n_cached;
    bool has_child[BEAM_MAX] = {false};
    int heir[BEAM_MAX];
    for (uint32_t i = 0; i != n_new; i++)
        has_child[parent[i]] = true;
    for (uint32_t p = 0; p != n_old; p++) {
        heir[p] = -1;
        if (!has_child[p])
            block_table_release(&g->blocks, &r->lease, &r->seqs[p].table);
    }
    for (uint32_t i = 0; i != n_new; i++) {
        struct seq *q = &r->seqs[i];
        uint32_t p = parent[i];
        if (heir[p] < 0) {
            block_table_swap(&q->next, &r->seqs[p].table);
            heir[p] = (int)i;
        } else if (block_table_fork(&g->blocks, &r->lease, &q->next, &r->seqs[heir[p]].next, len,
                                    &r->copies[r->n_copies])) {
            r->n_copies++;
        }
    }
    for (uint32_t i = 0; i != MAX(n_old, n_new); i++) {
        struct seq *q = &r->seqs[i];
        block_table_swap(&q->table, &q->next);
        if (i >= n_new) {
            seq_stop(g, r, q);
            continue;
        }
        q->n_cached = len;
        q->n_blocks_told = 0; /* another one's table, or one with a last block of its own */
        q->output = i;
        q->live = true;
        /* Another beam's sequence in the same slot is a new sequence. */
        if (i >= n_old || parent[i] != i) {
            seq_drop_slot(g, q);
            seq_take_slot(g, q);
        }
    }
}

static void commit_beams(struct sched *s, const struct step_group *sg,
                         const struct result_group *rg, int64_t now_ns)
{
    struct request *r = sg->request;
    struct beam_candidate candidates[PLAN_MAX_BEAM_WIDTH];
    for (uint32_t i = 0; i != rg->n_candidates; i++) {
        candidates[i] = (struct beam_candidate){
            .beam = rg->candidates[i].item - sg->first_item,
            .token = rg->candidates[i].token,
            .score = rg->candidates[i].score,
        };
    }
    uint32_t parent[BEAM_MAX];
    bool done = false;
    uint32_t n_old = beam_search_n_live(r->search);
    int code = beam_search_advance(r->search, candidates, rg->n_candidates, parent, &done);
    r->beam_step++;
    count_token(s, r, n_old, now_ns);
    done = done || r->beam_step >= request_max_new(r);
    if (code == 0 && done)
        code = beam_search_finish(r->search);
    if (code == 0 && done)
        code = collect_beams(s, r);
    if (code < 0)
        sched_end(s, r, code == -ENOMEM ? RPC_RESOURCE_EXHAUSTED : RPC_INTERNAL,
                  code == -ENOMEM ? "the coordinator is out of memory"
                                  : "the beam search refused the candidates");
    else if (done)
        round_end(s, r, now_ns);
    else
        reorder_beams(group_of(s, r), r, parent, n_old, beam_search_n_live(r->search));
}

/* ---- all of it ---- */

static void commit_item(struct sched *s, struct sched_group *g, const struct step_item *si,
                        const struct result_item *it, int64_t now_ns)
{
    struct request *r = si->request; /* sched_end clears those of a request that ends here */
    struct seq *q = r ? &r->seqs[si->seq] : NULL;
    /* The sequence has ended since: this is what it would have said next, if anything. */
    if (!q || q->slot != (int64_t)si->slot || q->slot_gen != si->slot_gen) {
        g->n_discarded++;
        return;
    }
    if (si->role >= STEP_CONTEXT && !context_waits(r))
        context_give(g, r, q);
    if (r->kind != REQUEST_SCORE && r->n_copies == 0) /* forked, and the copies have run */
        block_table_release(&g->blocks, &r->lease, &r->context);
    switch (si->role) {
    case STEP_CONTEXT:
        commit_context(g, r);
        break;
    case STEP_SAMPLE:
        commit_sample(s, r, q, it, now_ns);
        break;
    case STEP_SCORE:
        commit_score(s, r, q, it, now_ns);
        break;
    case STEP_BEAM: /* with its group */
    case STEP_PART:
    case STEP_SLICE:
        break;
    }
}

int sched_commit(struct sched *s, uint32_t group, const struct step_result *result, int64_t now_ns,
                 struct err *e)
{
    if (sched_n_in_flight(s, group) == 0)
        return err_set(e, -EBADMSG, "a step result came, but no step is out");
    struct sched_group *g = s->groups[group];
    struct step_record *rec = &g->records[g->first_record];
    int code = check_result(g, rec, result, e);
    if (code < 0)
        return code;
    prefill_measure(g, rec, now_ns);
    for (uint32_t i = 0; i != rec->n_items; i++)
        commit_item(s, g, &rec->items[i], &result->items[i], now_ns);
    for (uint32_t i = 0; i != rec->n_groups; i++) {
        if (rec->groups[i].request)
            commit_beams(s, &rec->groups[i], &result->groups[i], now_ns);
    }
    rec->n_items = rec->n_groups = 0;
    g->first_record = (g->first_record + 1) % g->max_in_flight;
    g->n_in_flight--;
    return 0;
}
