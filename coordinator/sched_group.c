/* sched_group.c: groups of ranks that come and go: their limits, slots and plan memory. See
 * sched.h. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

static void release_epoch(struct sched_group *g)
{
    if (g->blocks.refs)
        cache_deinit(&g->cache);
    blocks_deinit(&g->blocks);
    for (uint32_t i = 0; g->records && i != g->max_in_flight; i++) {
        free(g->records[i].items);
        free(g->records[i].groups);
    }
    free(g->records);
    free(g->slot_gens);
    free(g->free_slots);
    free(g->items);
    free(g->beam_groups);
    free(g->copies);
    free(g->tokens);
    free(g->positions);
    free(g->targets);
    free(g->banned_at);
    free(g->history_at);
    g->records = NULL;
    g->slot_gens = g->free_slots = NULL;
    g->items = NULL;
    g->beam_groups = NULL;
    g->copies = NULL;
    g->tokens = g->positions = g->targets = NULL;
    g->banned_at = g->history_at = NULL;
    g->n_in_flight = g->first_record = 0;
    g->n_free_slots = g->n_reserved_slots = 0;
    g->attached = false;
}

void sched_group_free(struct sched_group *g)
{
    if (!g)
        return;
    release_epoch(g);
    free(g->banned);
    free(g->history);
    free(g);
}

static bool allocate_records(struct sched_group *g)
{
    g->records = alloc_array(g->max_in_flight, sizeof *g->records);
    bool ok = g->records != NULL;
    for (uint32_t i = 0; ok && i != g->max_in_flight; i++) {
        g->records[i].items = alloc_array(g->limits.n_slots, sizeof *g->records[i].items);
        g->records[i].groups = alloc_array(g->limits.n_slots, sizeof *g->records[i].groups);
        ok = g->records[i].items && g->records[i].groups;
    }
    return ok;
}

static int allocate_epoch(struct sched_group *g)
{
    const struct plan_limits *l = &g->limits;
    g->capacity_copies = l->n_slots + BEAM_MAX;
    g->slot_gens = alloc_array(l->n_slots, sizeof *g->slot_gens);
    g->free_slots = alloc_array(l->n_slots, sizeof *g->free_slots);
    g->items = alloc_array(l->n_slots, sizeof *g->items);
    g->beam_groups = alloc_array(l->n_slots, sizeof *g->beam_groups);
    g->copies = alloc_array(g->capacity_copies, sizeof *g->copies);
    g->tokens = alloc_array(l->max_tokens, sizeof *g->tokens);
    g->positions = alloc_array(l->max_tokens, sizeof *g->positions);
    g->targets = alloc_array(l->max_tokens, sizeof *g->targets);
    g->banned_at = alloc_array(l->n_slots, sizeof *g->banned_at);
    g->history_at = alloc_array(l->n_slots, sizeof *g->history_at);
    bool ok = g->slot_gens && g->free_slots && g->items && g->beam_groups && g->copies &&
              g->tokens && g->positions && g->targets && g->banned_at && g->history_at;
    if (!ok || !allocate_records(g) || blocks_init(&g->blocks, l->n_blocks) < 0)
        return -ENOMEM;
    cache_init(&g->cache, &g->blocks);
    for (uint32_t i = 0; i != l->n_slots; i++)
        g->free_slots[i] = l->n_slots - 1 - i;
    g->n_free_slots = l->n_slots;
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

/* The largest piece of a request that must run in one step: a prefix, which a Fill has again, with
 * the answers so far, for every blank. Without one (a causal model) any prompt may be cut. */
static uint32_t largest_piece(const struct request *r)
{
    if (r->prompt.prefix_len == 0)
        return 1;
    return r->kind == REQUEST_FILL ? request_max_tokens(r) : (uint32_t)r->prompt.ids.n;
}

int sched_group_check_fits(const struct sched_group *g, const struct request *r, struct err *e)
{
    const struct plan_limits *l = &g->limits;
    uint32_t n_slots = request_slots(r, l->n_slots), n_total = request_max_tokens(r);
    if (n_slots > l->n_slots)
        return err_set(e, -E2BIG,
                       "%u choices or beams at once were asked for; this server runs at most %u "
                       "sequences (worker.slots)",
                       n_slots, l->n_slots);
    if (n_total > l->max_seq)
        return err_set(e, -E2BIG,
                       "expected at most %u tokens, prompt and output together, found %u",
                       l->max_seq, n_total);
    if (largest_piece(r) > l->max_tokens)
        return err_set(e, -E2BIG,
                       "the request can need a step of %u tokens; this server takes at most %u "
                       "(worker.max_step_tokens)",
                       largest_piece(r), l->max_tokens);
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

int sched_check_fits(const struct sched *s, const struct request *r, struct err *e)
{
    const struct sched_group *largest = NULL;
    for (uint32_t i = 0; i != s->n_groups; i++) {
        const struct sched_group *g = s->groups[i];
        if (!g || !g->known)
            continue;
        if (sched_group_check_fits(g, r, NULL) == 0)
            return 0;
        if (!largest || g->limits.n_blocks > largest->limits.n_blocks)
            largest = g;
    }
    return largest ? sched_group_check_fits(largest, r, e) : 0;
}

/* Requests that wait for a group end when none of those that came can run them. */
static void end_what_never_fits(struct sched *s)
{
    for (uint32_t i = 0; queue_list(s, i); i++) {
        for (struct request *r = queue_list(s, i)->first, *next; r; r = next) {
            next = r->next;
            struct err why = ERR_INIT;
            if (sched_check_fits(s, r, &why) < 0)
                sched_end(s, r, RPC_INVALID_ARGUMENT, why.message);
        }
    }
}

int sched_attach(struct sched *s, uint32_t group, const struct plan_limits *limits,
                 uint32_t n_stages, uint64_t epoch, struct err *e)
{
    assert(group < SCHED_MAX_GROUPS && n_stages > 0 && n_stages <= SCHED_MAX_STAGES);
    assert(!sched_attached(s, group));
    int code = check_limits(s, limits, e);
    if (code < 0)
        return code;
    struct sched_group *g = s->groups[group];
    if (!g)
        g = s->groups[group] = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, -ENOMEM, "out of memory for a group");
    s->n_groups = MAX(s->n_groups, group + 1);
    g->limits = *limits;
    g->known = true;
    g->n_stages = n_stages;
    g->max_in_flight = n_stages + 1;
    if (allocate_epoch(g) < 0) {
        release_epoch(g);
        return err_set(e, -ENOMEM, "out of memory for the block tables");
    }
    g->attached = true;
    g->draining = false;
    g->epoch = epoch;
    g->step = 0;
    g->last_exclusive = false;
    g->sliced = NULL;
    g->step_ns = g->work_ns = g->tokens_per_ns = 0; /* another epoch may be on other devices */
    g->last_commit_ns = 0;
    s->admit_again = true;
    end_what_never_fits(s);
    return 0;
}

/* Whether a step of the request is out. */
static bool is_in_flight(const struct sched_group *g, const struct request *r)
{
    for (uint32_t i = 0; i != g->n_in_flight; i++) {
        const struct step_record *rec = &g->records[(g->first_record + i) % g->max_in_flight];
        for (uint32_t j = 0; j != rec->n_items; j++) {
            if (rec->items[j].request == r)
                return true;
        }
    }
    return false;
}

/* A query of death must not take one group after the other with it. */
static void end_lost(struct sched *s, struct request *r, const char *why)
{
    char message[sizeof r->message];
    snprintf(message, sizeof message,
             "the group of workers was lost %u times while the request ran: %.180s", r->n_losses,
             why);
    sched_end(s, r, RPC_INTERNAL, message);
}

void sched_detach(struct sched *s, uint32_t group, const char *why)
{
    if (!sched_attached(s, group))
        return;
    struct sched_group *g = s->groups[group];
    g->attached = false;
    while (g->running.first) {
        struct request *r = g->running.first;
        r->n_losses += is_in_flight(g, r);
        if (r->n_losses < SCHED_MAX_LOSSES) {
            sched_tell(s, r, SCHED_LOST, (uint32_t)r->n_completion_tokens);
            sched_requeue(s, r);
            s->totals.n_resumed++;
        } else {
            end_lost(s, r, why);
        }
    }
    assert(blocks_used(&g->blocks) == 0 && g->blocks.n_reserved == 0);
    assert(g->n_free_slots == g->limits.n_slots && g->n_reserved_slots == 0);
    release_epoch(g);
}

void sched_drain(struct sched *s, uint32_t group, bool draining)
{
    if (sched_attached(s, group))
        s->groups[group]->draining = draining;
    s->admit_again = s->admit_again || !draining;
}

void sched_forget(struct sched *s, uint32_t group)
{
    assert(!sched_attached(s, group));
    if (group >= s->n_groups)
        return;
    sched_add_group_stats(s, group, &s->totals);
    sched_group_free(s->groups[group]);
    s->groups[group] = NULL;
}

bool sched_attached(const struct sched *s, uint32_t group)
{
    return group < s->n_groups && s->groups[group] && s->groups[group]->attached;
}

uint32_t sched_n_in_flight(const struct sched *s, uint32_t group)
{
    return sched_attached(s, group) ? s->groups[group]->n_in_flight : 0;
}

void seq_take_slot(struct sched_group *g, struct seq *q)
{
    assert(q->slot == REQUEST_SLOT_NONE);
    assert(g->n_free_slots > 0); /* reserved at admission */
    uint32_t slot = g->free_slots[--g->n_free_slots];
    q->slot = slot;
    q->slot_gen = ++g->slot_gens[slot];
    q->n_history = q->n_blocks_told = 0;
    q->sampling_told = false;
}

void seq_drop_slot(struct sched_group *g, struct seq *q)
{
    if (q->slot == REQUEST_SLOT_NONE)
        return;
    assert(g->n_free_slots < g->limits.n_slots);
    g->free_slots[g->n_free_slots++] = (uint32_t)q->slot;
    q->slot = REQUEST_SLOT_NONE;
}
