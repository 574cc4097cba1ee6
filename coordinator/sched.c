/* sched.c: requests on their way through the scheduler: submit, start, rounds, pause, end. See
 * sched.h. */
#include "coordinator/sched.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

void list_push(struct request_list *l, struct request *r)
{
    r->prev = l->last;
    r->next = NULL;
    if (l->last)
        l->last->next = r;
    else
        l->first = r;
    l->last = r;
    l->n++;
}

void list_remove(struct request_list *l, struct request *r)
{
    assert(l->n > 0);
    if (r->prev)
        r->prev->next = r->next;
    else
        l->first = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        l->last = r->prev;
    r->prev = r->next = NULL;
    l->n--;
}

void sched_touch(struct sched *s, struct request *r)
{
    if (r->touched)
        return;
    r->touched = true;
    r->next_touched = NULL;
    if (s->last_touched)
        s->last_touched->next_touched = r;
    else
        s->first_touched = r;
    s->last_touched = r;
}

struct request *sched_next_touched(struct sched *s)
{
    struct request *r = s->first_touched;
    if (!r)
        return NULL;
    s->first_touched = r->next_touched;
    if (!s->first_touched)
        s->last_touched = NULL;
    r->next_touched = NULL;
    r->touched = false;
    return r;
}

int sched_new(const struct sched_config *config, struct sched **ret)
{
    struct sched *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->config = *config;
    const struct arch_tokens *t = &config->arch->tokens;
    if (t->eop >= 0)
        s->end_tokens[s->n_end_tokens++] = t->eop;
    if (t->eos >= 0)
        s->end_tokens[s->n_end_tokens++] = t->eos;
    s->next_request_id = 1;
    *ret = s;
    return 0;
}

void sched_free(struct sched *s)
{
    if (!s)
        return;
    assert(sched_n_requests(s) == 0);
    for (uint32_t i = 0; i != s->n_groups; i++)
        sched_group_free(s->groups[i]);
    free(s);
}

/* Tokens of the prompt, and of the choices that are scored behind it. */
static uint32_t queue_tokens(const struct request *r)
{
    size_t n = r->prompt.ids.n;
    for (uint32_t i = 0; i != r->n_choices_scored; i++)
        n += r->choices[i].n;
    return (uint32_t)MIN(n, (size_t)UINT32_MAX);
}

int sched_check(const struct sched *s, struct request *r, struct err *e)
{
    assert(r->state == REQUEST_NEW && r->prompt.ids.n > 0);
    context_prepare(s, r);
    return sched_check_fits(s, r, e);
}

static void enqueue(struct sched *s, struct request *r)
{
    r->id = s->next_request_id++;
    r->n_prompt_tokens = (uint32_t)r->prompt.ids.n;
    r->state = REQUEST_QUEUED;
    if (r->deadline_ns && (s->deadline_ns == 0 || r->deadline_ns < s->deadline_ns))
        s->deadline_ns = r->deadline_ns;
    queue_push(s, r);
}

int sched_submit(struct sched *s, struct request *r, struct err *e)
{
    int code = sched_check(s, r, e);
    r->n_queue_tokens = queue_tokens(r);
    if (code == 0)
        code = queue_check(s, r, e);
    if (code == 0)
        enqueue(s, r);
    return code;
}

int sched_go_on(struct sched *s, struct request *r, struct err *e)
{
    int code = sched_check(s, r, e);
    r->n_queue_tokens = queue_tokens(r);
    if (code == 0)
        enqueue(s, r);
    return code;
}

/* ---- the end ---- */

void seq_stop(struct sched_group *g, struct request *r, struct seq *q)
{
    seq_drop_slot(g, q);
    block_table_release(&g->blocks, &r->lease, &q->table);
    block_table_release(&g->blocks, &r->lease, &q->next);
    q->n_cached = q->n_samples_out = 0;
    q->live = false;
}

/* Steps that are out must not find a request that runs no more. */
static void forget_in_flight(struct sched_group *g, const struct request *r)
{
    for (uint32_t i = 0; i != g->n_in_flight; i++) {
        struct step_record *rec = &g->records[(g->first_record + i) % g->max_in_flight];
        for (uint32_t j = 0; j != rec->n_items; j++) {
            if (rec->items[j].request == r)
                rec->items[j].request = NULL;
        }
        for (uint32_t j = 0; j != rec->n_groups; j++) {
            if (rec->groups[j].request == r)
                rec->groups[j].request = NULL;
        }
    }
}

/* Everything that a running request holds of its group. */
static void stop_running(struct sched_group *g, struct request *r)
{
    for (uint32_t i = 0; i != r->n_seqs; i++) {
        seq_stop(g, r, &r->seqs[i]);
        block_table_deinit(&r->seqs[i].table);
        block_table_deinit(&r->seqs[i].next);
    }
    free(r->seqs);
    r->seqs = NULL;
    r->n_seqs = 0;
    block_table_release(&g->blocks, &r->lease, &r->context);
    block_table_deinit(&r->context);
    blocks_end_lease(&g->blocks, &r->lease);
    assert(g->n_reserved_slots >= r->n_slots_reserved);
    g->n_reserved_slots -= r->n_slots_reserved;
    r->n_slots_reserved = 0;
    r->n_copies = 0;
    prefill_drop_slice(g, r);
    forget_in_flight(g, r);
    list_remove(&g->running, r);
}

void sched_end(struct sched *s, struct request *r, enum rpc_status status, const char *message)
{
    if (r->state == REQUEST_DONE)
        return;
    if (r->state == REQUEST_RUNNING)
        stop_running(group_of(s, r), r);
    else if (r->state == REQUEST_QUEUED)
        queue_remove(s, r);
    if (r->state != REQUEST_NEW)
        queue_forget(s, r);
    s->admit_again = true;
    r->state = REQUEST_DONE;
    r->status = status;
    snprintf(r->message, sizeof r->message, "%s", message);
    sched_touch(s, r);
}

void sched_requeue(struct sched *s, struct request *r)
{
    assert(r->state == REQUEST_RUNNING);
    stop_running(group_of(s, r), r);
    for (uint32_t i = 0; r->kind == REQUEST_SCORE && i != r->n_outputs; i++) {
        if (r->outputs[i].finish == FINISH_NONE)
            r->outputs[i].n_scored = 0;
    }
    r->state = REQUEST_QUEUED;
    queue_push_front(s, r);
}

void sched_pause(struct sched *s, struct request *r, bool paused)
{
    (void)s;
    r->paused = paused;
}

/* ---- deadlines ---- */

static bool any_attached(const struct sched *s)
{
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (sched_attached(s, i))
            return true;
    }
    return false;
}

static void expire_list(struct sched *s, const struct request_list *l, int64_t now_ns,
                        enum rpc_status status, const char *message, int64_t *earliest)
{
    for (struct request *r = l->first, *next; r; r = next) {
        next = r->next;
        if (r->deadline_ns == 0)
            continue;
        if (r->deadline_ns <= now_ns)
            sched_end(s, r, status, message);
        else if (*earliest == 0 || r->deadline_ns < *earliest)
            *earliest = r->deadline_ns;
    }
}

int64_t sched_expire(struct sched *s, int64_t now_ns)
{
    int64_t earliest = 0;
    bool attached = any_attached(s);
    enum rpc_status status = attached ? RPC_DEADLINE_EXCEEDED : RPC_UNAVAILABLE;
    const char *message = attached ? "the deadline passed while the request waited in the queue"
                                   : "no group of workers was ready before the deadline";
    for (uint32_t i = 0; queue_list(s, i); i++)
        expire_list(s, queue_list(s, i), now_ns, status, message, &earliest);
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (s->groups[i])
            expire_list(s, &s->groups[i]->running, now_ns, RPC_DEADLINE_EXCEEDED,
                        "the deadline passed while the request ran", &earliest);
    }
    s->deadline_ns = earliest;
    return earliest;
}

/* ---- rounds ---- */

static int allocate_seqs(struct request *r, uint32_t n)
{
    r->seqs = alloc_array(n, sizeof *r->seqs);
    if (!r->seqs)
        return -ENOMEM;
    r->n_seqs = n;
    uint32_t max_tokens = request_max_tokens(r);
    bool context = r->kind == REQUEST_SCORE || r->n_hit;
    int code = context ? block_table_init(&r->context, max_tokens) : 0;
    for (uint32_t i = 0; i != n; i++) {
        r->seqs[i] = (struct seq){.slot = REQUEST_SLOT_NONE};
        if (code == 0)
            code = block_table_init(&r->seqs[i].table, max_tokens);
        if (code == 0 && r->params.beam)
            code = block_table_init(&r->seqs[i].next, max_tokens);
    }
    return code;
}

static int begin_search(struct sched *s, struct request *r)
{
    int32_t ends[BEAM_MAX_END_TOKENS];
    uint32_t n_ends = 0;
    for (uint32_t i = 0; i != s->n_end_tokens; i++)
        ends[n_ends++] = s->end_tokens[i];
    for (uint32_t i = 0; i != r->params.n_stop_ids && n_ends != BEAM_MAX_END_TOKENS; i++) {
        if (!is_end_token(s, r->params.stop_ids[i]))
            ends[n_ends++] = r->params.stop_ids[i];
    }
    struct beam_params p = {
        .n_beams = r->params.n_beams,
        .length_penalty = r->params.length_penalty,
        .no_repeat_ngram = r->params.no_repeat_ngram,
        .min_new_tokens = r->params.ignore_end ? UINT32_MAX : r->params.min_tokens,
        .consider_end = r->params.consider_end,
        .end_tokens = ends,
        .n_end_tokens = n_ends,
        .prompt = r->prompt.ids.ids,
    };
    beam_search_free(r->search);
    r->search = NULL;
    r->beam_step = 0;
    return beam_search_new(&p, r->prompt.ids.n, &r->search);
}

/* The n-th output that has not ended. */
static uint32_t unfinished_output(const struct request *r, uint32_t n)
{
    for (uint32_t i = 0;; i++) {
        assert(i < r->n_outputs);
        if (r->outputs[i].finish == FINISH_NONE && n-- == 0)
            return i;
    }
}

void seq_begin(struct sched_group *g, struct request *r, uint32_t seq, uint32_t n_cached)
{
    struct seq *q = &r->seqs[seq];
    q->output = r->params.beam ? seq : unfinished_output(r, seq);
    q->live = true;
    q->n_cached = n_cached;
    seq_take_slot(g, q);
}

/* Sequences that the round has now, once the context is there. */
static uint32_t n_live_seqs(const struct request *r)
{
    if (r->params.beam)
        return beam_search_n_live(r->search);
    uint32_t n = 0;
    for (uint32_t i = 0; i != r->n_outputs; i++)
        n += r->outputs[i].finish == FINISH_NONE;
    return n;
}

/* A sequence goes on behind what r->context has of the prompt. */
static void fork_context(struct sched_group *g, struct request *r, uint32_t seq)
{
    seq_begin(g, r, seq, r->n_hit);
    if (block_table_fork(&g->blocks, &r->lease, &r->seqs[seq].table, &r->context, r->n_hit,
                         &r->copies[r->n_copies]))
        r->n_copies++;
}

/* As below, when the cache has the first n_hit tokens: all of the context that is to be shared, or
 * the sequence that computes it goes on behind them. */
static void begin_from_cache(struct sched_group *g, struct request *r, uint32_t n_live)
{
    context_take(g, r);
    bool complete = r->n_hit == r->n_context;
    if (complete)
        r->phase = REQUEST_RUN;
    uint32_t n_start = r->n_context && !complete ? 1 : n_live;
    if (r->kind != REQUEST_SCORE || !complete) {
        for (uint32_t i = 0; i != n_start; i++)
            fork_context(g, r, i);
    }
    if (r->n_hit % PLAN_KV_BLOCK_TOKENS == 0 && (r->kind != REQUEST_SCORE || !complete))
        block_table_release(&g->blocks, &r->lease, &r->context);
    r->n_hit = 0; /* of this round only */
}

/* Puts the round's sequences to the beginning of their caches; outputs are what they are. Several
 * sequences share a context: without the last token of the prompt, which gives choices their first
 * token, but with it for beams, which have gone on from there. One sequence starts: the context, or
 * the only one; without a context to share, every choice is one of its own from the start. */
static void begin_seqs(struct sched_group *g, struct request *r)
{
    uint32_t n_live = n_live_seqs(r);
    bool shares = r->kind == REQUEST_SCORE || n_live > 1;
    r->n_context = shares ? (uint32_t)r->prompt.ids.n - !r->params.beam : 0;
    r->phase = r->n_context ? REQUEST_CONTEXT : REQUEST_RUN;
    r->next_choice = 0;
    r->context_cached = false;
    uint32_t n_start = r->n_context ? 1 : n_live;
    if (r->n_hit) {
        begin_from_cache(g, r, n_live);
        return;
    }
    for (uint32_t i = 0; i != n_start; i++)
        seq_begin(g, r, i, 0);
}

static void round_begin(struct sched *s, struct request *r)
{
    int code = request_begin_round(r);
    if (code == 0 && r->params.beam)
        code = begin_search(s, r);
    if (code < 0)
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
    else
        begin_seqs(group_of(s, r), r);
}

void sched_start(struct sched *s, uint32_t group, struct request *r, int64_t now_ns)
{
    struct sched_group *g = s->groups[group];
    bool resumes = r->n_outputs != 0;
    list_push(&g->running, r);
    r->group = group;
    r->state = REQUEST_RUNNING;
    if (!resumes)
        r->started_ns = now_ns;
    sched_tell(s, r, SCHED_STARTED, r->n_hit);
    if (allocate_seqs(r, r->n_slots_reserved) < 0)
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
    else if (resumes)
        begin_seqs(g, r);
    else
        round_begin(s, r);
}

/* A Fill whose next blank has no room left gets an empty answer without a step, as published. */
static void skip_full_rounds(struct sched *s, struct request *r, int *code)
{
    while (*code == 1 && request_max_new(r) == 0) {
        *code = request_begin_round(r);
        if (*code < 0)
            return;
        r->outputs[0].finish = FINISH_LENGTH;
        r->n_outputs = 1;
        *code = request_next_round(r, s->config.arch);
    }
}

void round_end(struct sched *s, struct request *r, int64_t now_ns)
{
    struct sched_group *g = group_of(s, r);
    r->last_token_ns = now_ns;
    if (context_waits(r))
        context_give(g, r, &r->seqs[0]);
    for (uint32_t i = 0; i != r->n_seqs; i++)
        seq_stop(g, r, &r->seqs[i]);
    block_table_release(&g->blocks, &r->lease, &r->context);
    r->n_copies = 0;
    sched_touch(s, r);
    int code = 0;
    if (r->kind == REQUEST_FILL) {
        code = request_next_round(r, s->config.arch);
        skip_full_rounds(s, r, &code);
    }
    if (code == 1) {
        context_prepare(s, r);
        queue_charge(s, r, (uint32_t)r->prompt.ids.n, 0);
        round_begin(s, r);
    } else if (code == 0)
        sched_end(s, r, RPC_OK, "");
    else
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
}

/* ---- numbers ---- */

uint32_t sched_n_requests(const struct sched *s)
{
    uint32_t n = s->n_waiting;
    for (uint32_t i = 0; i != s->n_groups; i++)
        n += s->groups[i] ? s->groups[i]->running.n : 0;
    return n;
}

void sched_group_stats(const struct sched *s, uint32_t group, struct sched_group_stats *ret)
{
    *ret = (struct sched_group_stats){0};
    const struct sched_group *g = group < s->n_groups ? s->groups[group] : NULL;
    if (!g)
        return;
    *ret = (struct sched_group_stats){
        .attached = g->attached,
        .n_running = g->running.n,
        .n_steps = g->n_steps,
        .n_prefill_tokens = g->n_prefill_tokens,
        .n_decode_tokens = g->n_decode_tokens,
        .n_discarded = g->n_discarded,
        .n_hits = g->n_hits,
        .n_hit_tokens = g->n_hit_tokens,
        .n_lookup_tokens = g->n_lookup_tokens,
    };
    if (!g->attached)
        return;
    ret->n_slots = g->limits.n_slots;
    ret->n_slots_used = g->limits.n_slots - g->n_free_slots;
    ret->n_blocks = g->limits.n_blocks;
    ret->n_blocks_used = blocks_used(&g->blocks);
    ret->n_blocks_cached = g->blocks.n_idle;
}

void sched_add_group_stats(const struct sched *s, uint32_t group, struct sched_stats *sum)
{
    struct sched_group_stats g;
    sched_group_stats(s, group, &g);
    sum->n_attached += g.attached;
    sum->n_running += g.n_running;
    sum->n_slots += g.n_slots;
    sum->n_slots_used += g.n_slots_used;
    sum->n_blocks += g.n_blocks;
    sum->n_blocks_used += g.n_blocks_used;
    sum->n_blocks_cached += g.n_blocks_cached;
    sum->n_steps += g.n_steps;
    sum->n_prefill_tokens += g.n_prefill_tokens;
    sum->n_decode_tokens += g.n_decode_tokens;
    sum->n_discarded += g.n_discarded;
    sum->n_hits += g.n_hits;
    sum->n_hit_tokens += g.n_hit_tokens;
    sum->n_lookup_tokens += g.n_lookup_tokens;
}

void sched_stats(const struct sched *s, struct sched_stats *ret)
{
    *ret = s->totals;
    ret->n_waiting = s->n_waiting;
    ret->n_waiting_tokens = s->n_waiting_tokens;
    for (uint32_t i = 0; i != s->n_groups; i++)
        sched_add_group_stats(s, i, ret);
}
