/* sched.c: the queue, admission, slots and the life of a request; see sched.h. Plans are built in
 * sched_plan.c and answered in sched_commit.c. */
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

static void release_epoch(struct sched *s)
{
    blocks_deinit(&s->blocks);
    free(s->slot_gens);
    free(s->free_slots);
    for (size_t i = 0; i != SCHED_MAX_IN_FLIGHT; i++) {
        free(s->records[i].items);
        free(s->records[i].groups);
        s->records[i] = (struct step_record){0};
    }
    free(s->items);
    free(s->groups);
    free(s->copies);
    free(s->tokens);
    free(s->positions);
    free(s->targets);
    free(s->banned_at);
    free(s->history_at);
    s->slot_gens = s->free_slots = NULL;
    s->items = NULL;
    s->groups = NULL;
    s->copies = NULL;
    s->tokens = s->positions = s->targets = NULL;
    s->banned_at = s->history_at = NULL;
    s->n_in_flight = s->first_record = 0;
    s->n_free_slots = s->n_reserved_slots = 0;
    s->attached = false;
}

void sched_free(struct sched *s)
{
    if (!s)
        return;
    assert(s->waiting.n == 0 && s->running.n == 0);
    release_epoch(s);
    free(s->banned);
    free(s->history);
    free(s);
}

static int allocate_epoch(struct sched *s)
{
    const struct plan_limits *l = &s->limits;
    s->capacity_copies = l->n_slots + BEAM_MAX;
    s->slot_gens = alloc_array(l->n_slots, sizeof *s->slot_gens);
    s->free_slots = alloc_array(l->n_slots, sizeof *s->free_slots);
    s->items = alloc_array(l->n_slots, sizeof *s->items);
    s->groups = alloc_array(l->n_slots, sizeof *s->groups);
    s->copies = alloc_array(s->capacity_copies, sizeof *s->copies);
    s->tokens = alloc_array(l->max_tokens, sizeof *s->tokens);
    s->positions = alloc_array(l->max_tokens, sizeof *s->positions);
    s->targets = alloc_array(l->max_tokens, sizeof *s->targets);
    s->banned_at = alloc_array(l->n_slots, sizeof *s->banned_at);
    s->history_at = alloc_array(l->n_slots, sizeof *s->history_at);
    bool ok = s->slot_gens && s->free_slots && s->items && s->groups && s->copies && s->tokens &&
              s->positions && s->targets && s->banned_at && s->history_at;
    for (size_t i = 0; i != SCHED_MAX_IN_FLIGHT; i++) {
        s->records[i].items = alloc_array(l->n_slots, sizeof *s->records[i].items);
        s->records[i].groups = alloc_array(l->n_slots, sizeof *s->records[i].groups);
        ok = ok && s->records[i].items && s->records[i].groups;
    }
    if (!ok || blocks_init(&s->blocks, l->n_blocks) < 0)
        return -ENOMEM;
    for (uint32_t i = 0; i != l->n_slots; i++)
        s->free_slots[i] = l->n_slots - 1 - i;
    s->n_free_slots = l->n_slots;
    return 0;
}

static int check_limits(const struct sched *s, const struct plan_limits *l, struct err *e)
{
    const struct arch *a = s->config.arch;
    if (l->vocab != a->vocab || l->max_seq == 0 || l->max_seq > a->max_seq ||
        l->n_layers != a->n_layers)
        return err_set(e, -EINVAL,
                       "expected a vocabulary of %u, sequences of at most %u and %u layers, the "
                       "group reports %u, %u and %u",
                       a->vocab, a->max_seq, a->n_layers, l->vocab, l->max_seq, l->n_layers);
    if (l->n_slots == 0 || l->n_slots > PLAN_MAX_ITEMS || l->max_tokens < l->n_slots ||
        l->max_tokens > PLAN_MAX_TOKENS)
        return err_set(e, -EINVAL,
                       "expected 1 to %d slots and at least as many tokens in a step (up to %d), "
                       "the group reports %u and %u",
                       PLAN_MAX_ITEMS, PLAN_MAX_TOKENS, l->n_slots, l->max_tokens);
    if (l->n_blocks == 0 || l->n_blocks > 1u << 28)
        return err_set(e, -EINVAL, "expected 1 to %u KV blocks, the group reports %u", 1u << 28,
                       l->n_blocks);
    return 0;
}

/* Why a request can never run with the group's limits: -E2BIG, or 0. */
static int check_fits(const struct sched *s, const struct request *r, struct err *e)
{
    const struct plan_limits *l = &s->limits;
    uint32_t n_slots = request_slots(r, l->n_slots);
    uint32_t n_prompt = (uint32_t)r->prompt.ids.n, n_total = request_max_tokens(r);
    if (n_slots > l->n_slots)
        return err_set(e, -E2BIG,
                       "%u choices or beams at once were asked for; this server runs at most %u "
                       "sequences (worker.slots)",
                       n_slots, l->n_slots);
    if (n_total > l->max_seq)
        return err_set(e, -E2BIG,
                       "expected at most %u tokens, prompt and output together, found %u",
                       l->max_seq, n_total);
    /* A Fill runs its text again for every blank, the answers so far included. */
    uint32_t n_step = r->kind == REQUEST_FILL ? n_total : n_prompt;
    for (uint32_t i = 0; i != r->n_choices_scored; i++)
        n_step = MAX(n_step, (uint32_t)r->choices[i].n);
    if (n_step > l->max_tokens)
        return err_set(e, -E2BIG,
                       "the request can need a step of %u tokens; this server takes at most %u "
                       "(worker.max_step_tokens)",
                       n_step, l->max_tokens);
    uint64_t n_blocks = request_blocks(r, n_slots);
    if (n_blocks > l->n_blocks)
        return err_set(e, -E2BIG,
                       "the request can need %llu KV blocks of %d tokens; this server has %u "
                       "(worker.kv_bytes): ask for fewer tokens, choices or beams",
                       (unsigned long long)n_blocks, PLAN_KV_BLOCK_TOKENS, l->n_blocks);
    if (r->params.n_top_logprobs > l->n_top_logprobs)
        return err_set(e, -E2BIG, "expected at most %u top_logprobs, found %u", l->n_top_logprobs,
                       r->params.n_top_logprobs);
    return 0;
}

int sched_attach(struct sched *s, const struct plan_limits *limits, uint64_t epoch, struct err *e)
{
    assert(!s->attached && s->running.n == 0);
    int code = check_limits(s, limits, e);
    if (code < 0)
        return code;
    s->limits = *limits;
    if (allocate_epoch(s) < 0) {
        release_epoch(s);
        return err_set(e, -ENOMEM, "out of memory for the block tables");
    }
    s->attached = true;
    s->epoch = epoch;
    s->step = 0;
    s->last_exclusive = false;
    for (struct request *r = s->waiting.first, *next; r; r = next) {
        next = r->next;
        struct err why = ERR_INIT;
        if (check_fits(s, r, &why) < 0)
            sched_end(s, r, RPC_INVALID_ARGUMENT, why.message);
    }
    return 0;
}

void sched_detach(struct sched *s, const char *why)
{
    if (!s->attached)
        return;
    while (s->running.first)
        sched_end(s, s->running.first, RPC_UNAVAILABLE, why);
    assert(blocks_used(&s->blocks) == 0 && s->blocks.n_reserved == 0);
    assert(s->n_free_slots == s->limits.n_slots && s->n_reserved_slots == 0);
    release_epoch(s);
}

bool sched_attached(const struct sched *s)
{
    return s->attached;
}

int sched_submit(struct sched *s, struct request *r, struct err *e)
{
    assert(r->state == REQUEST_NEW && r->prompt.ids.n > 0);
    if (s->waiting.n >= s->config.max_queue)
        return err_set(e, -ENOBUFS, "the queue is full (%u requests wait): try again later",
                       s->waiting.n);
    if (s->attached) {
        int code = check_fits(s, r, e);
        if (code < 0)
            return code;
    }
    r->id = s->next_request_id++;
    r->n_prompt_tokens = (uint32_t)r->prompt.ids.n;
    r->state = REQUEST_QUEUED;
    list_push(&s->waiting, r);
    return 0;
}

void seq_take_slot(struct sched *s, struct seq *q)
{
    assert(q->slot == REQUEST_SLOT_NONE);
    assert(s->n_free_slots > 0); /* reserved at admission */
    uint32_t slot = s->free_slots[--s->n_free_slots];
    q->slot = slot;
    q->slot_gen = ++s->slot_gens[slot];
}

void seq_drop_slot(struct sched *s, struct seq *q)
{
    if (q->slot == REQUEST_SLOT_NONE)
        return;
    assert(s->n_free_slots < s->limits.n_slots);
    s->free_slots[s->n_free_slots++] = (uint32_t)q->slot;
    q->slot = REQUEST_SLOT_NONE;
}

void seq_stop(struct sched *s, struct request *r, struct seq *q)
{
    seq_drop_slot(s, q);
    block_table_release(&s->blocks, &r->lease, &q->table);
    block_table_release(&s->blocks, &r->lease, &q->next);
    q->n_cached = q->n_samples_out = 0;
    q->live = false;
}

/* Steps that are out must not find a request that has ended. */
static void forget_in_flight(struct sched *s, const struct request *r)
{
    for (size_t i = 0; i != SCHED_MAX_IN_FLIGHT; i++) {
        struct step_record *rec = &s->records[i];
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

static void stop_running(struct sched *s, struct request *r)
{
    for (uint32_t i = 0; i != r->n_seqs; i++) {
        seq_stop(s, r, &r->seqs[i]);
        block_table_deinit(&r->seqs[i].table);
        block_table_deinit(&r->seqs[i].next);
    }
    free(r->seqs);
    r->seqs = NULL;
    r->n_seqs = 0;
    block_table_release(&s->blocks, &r->lease, &r->context);
    block_table_deinit(&r->context);
    blocks_end_lease(&s->blocks, &r->lease);
    assert(s->n_reserved_slots >= r->n_slots_reserved);
    s->n_reserved_slots -= r->n_slots_reserved;
    r->n_slots_reserved = 0;
    r->n_copies = 0;
    forget_in_flight(s, r);
}

void sched_end(struct sched *s, struct request *r, enum rpc_status status, const char *message)
{
    if (r->state == REQUEST_DONE)
        return;
    if (r->state == REQUEST_RUNNING) {
        stop_running(s, r);
        list_remove(&s->running, r);
    } else if (r->state == REQUEST_QUEUED) {
        list_remove(&s->waiting, r);
    }
    r->state = REQUEST_DONE;
    r->status = status;
    snprintf(r->message, sizeof r->message, "%s", message);
    sched_touch(s, r);
}

void sched_pause(struct sched *s, struct request *r, bool paused)
{
    (void)s;
    r->paused = paused;
}

int64_t sched_expire(struct sched *s, int64_t now_ns)
{
    int64_t earliest = 0;
    struct request_list *const lists[] = {&s->waiting, &s->running};
    for (size_t i = 0; i != ARRAY_LEN(lists); i++) {
        for (struct request *r = lists[i]->first, *next; r; r = next) {
            next = r->next;
            if (r->deadline_ns == 0)
                continue;
            if (r->deadline_ns <= now_ns && i == 0 && !s->attached)
                sched_end(s, r, RPC_UNAVAILABLE,
                          "no group of workers was ready before the deadline");
            else if (r->deadline_ns <= now_ns)
                sched_end(s, r, RPC_DEADLINE_EXCEEDED,
                          i == 0 ? "the deadline passed while the request waited in the queue"
                                 : "the deadline passed while the request ran");
            else if (earliest == 0 || r->deadline_ns < earliest)
                earliest = r->deadline_ns;
        }
    }
    return earliest;
}

static int allocate_seqs(struct request *r, uint32_t n)
{
    r->seqs = alloc_array(n, sizeof *r->seqs);
    if (!r->seqs)
        return -ENOMEM;
    r->n_seqs = n;
    uint32_t max_tokens = request_max_tokens(r);
    int code = r->kind == REQUEST_SCORE ? block_table_init(&r->context, max_tokens) : 0;
    for (uint32_t i = 0; i != n; i++) {
        r->seqs[i] = (struct seq){.slot = REQUEST_SLOT_NONE};
        if (code == 0)
            code = block_table_init(&r->seqs[i].table, max_tokens);
        if (code == 0 && r->params.beam)
            code = block_table_init(&r->seqs[i].next, max_tokens);
    }
    return code;
}

/* Starts the first waiting request if everything it can need is there. */
static bool admit_one(struct sched *s, int64_t now_ns)
{
    struct request *r = s->waiting.first;
    if (!r)
        return false;
    uint32_t n_slots = request_slots(r, s->limits.n_slots);
    if (n_slots > s->limits.n_slots - s->n_reserved_slots)
        return false;
    uint64_t n_blocks = request_blocks(r, n_slots);
    if (n_blocks > UINT32_MAX || !blocks_reserve(&s->blocks, &r->lease, (uint32_t)n_blocks))
        return false;
    s->n_reserved_slots += n_slots;
    r->n_slots_reserved = n_slots;
    list_remove(&s->waiting, r);
    list_push(&s->running, r);
    r->state = REQUEST_RUNNING;
    r->started_ns = now_ns;
    if (allocate_seqs(r, n_slots) < 0)
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
    else
        round_begin(s, r);
    return true;
}

void sched_admit(struct sched *s, int64_t now_ns)
{
    while (admit_one(s, now_ns))
        ;
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

void round_begin(struct sched *s, struct request *r)
{
    int code = request_begin_round(r);
    if (code == 0 && r->params.beam)
        code = begin_search(s, r);
    if (code < 0) {
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
        return;
    }
    bool shares = r->kind == REQUEST_SCORE || (r->n_seqs > 1 && !r->params.beam);
    r->n_context = shares ? (uint32_t)r->prompt.ids.n - 1 : 0;
    r->phase = r->n_context ? REQUEST_CONTEXT : REQUEST_RUN;
    r->next_choice = 0;
    /* One sequence starts: the context, the only choice, or the first beam. Without a context to
     * share, every choice is a sequence of its own from the start. */
    uint32_t n_start = r->n_context || r->params.beam ? 1 : r->n_seqs;
    for (uint32_t i = 0; i != n_start; i++) {
        r->seqs[i].output = i;
        r->seqs[i].live = true;
        seq_take_slot(s, &r->seqs[i]);
    }
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
    r->last_token_ns = now_ns;
    for (uint32_t i = 0; i != r->n_seqs; i++)
        seq_stop(s, r, &r->seqs[i]);
    block_table_release(&s->blocks, &r->lease, &r->context);
    r->n_copies = 0;
    sched_touch(s, r);
    int code = 0;
    if (r->kind == REQUEST_FILL) {
        code = request_next_round(r, s->config.arch);
        skip_full_rounds(s, r, &code);
    }
    if (code == 1)
        round_begin(s, r);
    else if (code == 0)
        sched_end(s, r, RPC_OK, "");
    else
        sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
}

uint32_t sched_n_in_flight(const struct sched *s)
{
    return s->n_in_flight;
}

uint32_t sched_n_requests(const struct sched *s)
{
    return s->waiting.n + s->running.n;
}

void sched_stats(const struct sched *s, struct sched_stats *ret)
{
    *ret = (struct sched_stats){
        .n_waiting = s->waiting.n,
        .n_running = s->running.n,
        .n_steps = s->n_steps,
        .n_prefill_tokens = s->n_prefill_tokens,
        .n_decode_tokens = s->n_decode_tokens,
        .n_discarded = s->n_discarded,
    };
    if (!s->attached)
        return;
    ret->n_slots = s->limits.n_slots;
    ret->n_slots_used = s->limits.n_slots - s->n_free_slots;
    ret->n_blocks = s->limits.n_blocks;
    ret->n_blocks_used = blocks_used(&s->blocks);
}

/* Adds one table to the counts of references. */
static void count_table(uint32_t *refs, const struct block_table *t)
{
    for (uint32_t i = 0; i != t->n; i++)
        refs[t->ids[i]]++;
}

static bool slots_consistent(const struct sched *s, const uint8_t *slot_used)
{
    uint32_t n_used = 0;
    for (uint32_t i = 0; i != s->limits.n_slots; i++)
        n_used += slot_used[i];
    for (uint32_t i = 0; i != s->n_free_slots; i++) {
        if (slot_used[s->free_slots[i]])
            return false;
    }
    return n_used + s->n_free_slots == s->limits.n_slots && n_used <= s->n_reserved_slots;
}

bool sched_consistent(const struct sched *s)
{
    if (!s->attached)
        return s->running.n == 0;
    uint32_t *refs = alloc_array(s->limits.n_blocks, sizeof *refs);
    uint8_t *slot_used = alloc_array(s->limits.n_slots, sizeof *slot_used);
    bool ok = refs && slot_used && blocks_consistent(&s->blocks);
    uint64_t n_reserved = 0;
    uint32_t n_reserved_slots = 0;
    for (const struct request *r = s->running.first; ok && r; r = r->next) {
        n_reserved += r->lease.left;
        n_reserved_slots += r->n_slots_reserved;
        count_table(refs, &r->context);
        for (uint32_t i = 0; i != r->n_seqs; i++) {
            const struct seq *q = &r->seqs[i];
            count_table(refs, &q->table);
            count_table(refs, &q->next);
            if (q->slot == REQUEST_SLOT_NONE)
                continue;
            ok = ok && !slot_used[q->slot];
            slot_used[q->slot] = 1;
        }
    }
    ok = ok && n_reserved == s->blocks.n_reserved && n_reserved_slots == s->n_reserved_slots &&
         memcmp(refs, s->blocks.refs, s->limits.n_blocks * sizeof *refs) == 0 &&
         slots_consistent(s, slot_used);
    free(refs);
    free(slot_used);
    return ok;
}
