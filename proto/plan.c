/* plan.c: is this step plan one that an engine may run? And the hash that ranks compare. Pure
 * functions without allocations. Leaves out what only the engine knows: generations, lengths and
 * earlier samples of its slots.
 */
#include "proto/plan.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include <xxhash.h>

#include "base/util.h"

/* A set of ids below 65536 on the stack. Larger ranges are walked in windows of this size. */
enum { SET_BITS = 65536 };

struct set {
    uint64_t words[SET_BITS / 64];
};

/* Ready for ids below n, or for all when there are more. */
static void set_clear(struct set *s, uint64_t n)
{
    memset(s->words, 0, (size_t)(MIN(n, (uint64_t)SET_BITS) + 63) / 64 * sizeof s->words[0]);
}

static bool set_test(const struct set *s, uint32_t bit)
{
    return s->words[bit / 64] >> bit % 64 & 1;
}

/* true when it was in the set already */
static bool set_add(struct set *s, uint32_t bit)
{
    bool was = set_test(s, bit);
    s->words[bit / 64] |= UINT64_C(1) << bit % 64;
    return was;
}

static bool in_window(uint32_t id, uint64_t window)
{
    return id >= window && id - window < SET_BITS;
}

static int check_counts(const struct plan *p, const struct plan_limits *l, struct err *e)
{
    if (!p->step)
        return err_set(e, -EINVAL, "plan: step: expected 1 or more, found 0");
    if (p->n_items < 1 || p->n_items > PLAN_MAX_ITEMS || !p->items)
        return err_set(e, -EINVAL, "plan: items: expected 1 to %d, found %u", PLAN_MAX_ITEMS,
                       p->n_items);
    if (p->n_copies > l->n_blocks || (p->n_copies && !p->copies))
        return err_set(e, -EINVAL, "plan: copies: expected at most %u (KV blocks), found %u",
                       l->n_blocks, p->n_copies);
    if (p->n_groups > p->n_items || (p->n_groups && !p->groups))
        return err_set(e, -EINVAL, "plan: beam groups: expected at most %u (items), found %u",
                       p->n_items, p->n_groups);
    return 0;
}

/* Copies run in order; a source must not be what an earlier copy wrote. */
static int check_copies(const struct plan *p, const struct plan_limits *l, struct err *e)
{
    for (uint32_t i = 0; i < p->n_copies; i++) {
        const struct plan_copy *c = &p->copies[i];
        if (c->src >= l->n_blocks || c->dst >= l->n_blocks)
            return err_set(e, -EINVAL, "copy %u: expected blocks below %u, found %u -> %u", i,
                           l->n_blocks, c->src, c->dst);
        if (c->src == c->dst)
            return err_set(e, -EINVAL, "copy %u: block %u onto itself", i, c->src);
    }
    for (uint64_t window = 0; p->n_copies && window < l->n_blocks; window += SET_BITS) {
        struct set written;
        set_clear(&written, l->n_blocks - window);
        for (uint32_t i = 0; i < p->n_copies; i++) {
            const struct plan_copy *c = &p->copies[i];
            if (in_window(c->src, window) && set_test(&written, (uint32_t)(c->src - window)))
                return err_set(e, -EINVAL, "copy %u: source %u was written by an earlier copy", i,
                               c->src);
            if (in_window(c->dst, window) && set_add(&written, (uint32_t)(c->dst - window)))
                return err_set(e, -EINVAL, "copy %u: destination %u was written by an earlier copy",
                               i, c->dst);
        }
    }
    return 0;
}

static int check_tokens(const struct plan_item *it, uint32_t i, const struct plan_limits *l,
                        struct err *e)
{
    for (uint32_t k = 0; k < it->n_tokens; k++) {
        int32_t token = it->tokens[k];
        if (token == PLAN_TOKEN_PREVIOUS) {
            if (k || !it->start)
                return err_set(e, -EINVAL,
                               "item %u: tokens[%u]: the previous sample can only be the first "
                               "token of a slot that has run before",
                               i, k);
        } else if (token < 0 || (uint32_t)token >= l->vocab) {
            return err_set(e, -EINVAL, "item %u: tokens[%u]: expected an id below %u, found %d", i,
                           k, l->vocab, token);
        }
        int32_t position = it->positions[k];
        if (position < 0 || (uint32_t)position >= l->max_seq)
            return err_set(e, -EINVAL, "item %u: positions[%u]: expected 0 to %u, found %d", i, k,
                           l->max_seq - 1, position);
        if (it->output == PLAN_OUTPUT_SCORE && it->targets[k] != -1 &&
            (it->targets[k] < 0 || (uint32_t)it->targets[k] >= l->vocab))
            return err_set(e, -EINVAL,
                           "item %u: targets[%u]: expected -1 or an id below %u, found %d", i, k,
                           l->vocab, it->targets[k]);
    }
    return 0;
}

/* Without a branch for each: block tables are the longest part of a plan. n > 0. */
static uint32_t largest(const uint32_t *values, uint32_t n)
{
    uint32_t found = values[0];
    for (uint32_t i = 1; i < n; i++)
        found = MAX(found, values[i]);
    return found;
}

/* Slot, range, prefix. */
static int check_place(const struct plan_item *it, uint32_t i, const struct plan_limits *l,
                       struct err *e)
{
    if (it->slot >= l->n_slots)
        return err_set(e, -EINVAL, "item %u: slot: expected below %u, found %u", i, l->n_slots,
                       it->slot);
    if (!it->n_tokens || !it->tokens || !it->positions)
        return err_set(e, -EINVAL, "item %u: tokens and positions: expected at least one of each",
                       i);
    if (it->n_tokens > l->max_tokens)
        return err_set(e, -EINVAL, "item %u: tokens: expected at most %u, found %u", i,
                       l->max_tokens, it->n_tokens);
    uint64_t end = (uint64_t)it->start + it->n_tokens;
    if (end > l->max_seq)
        return err_set(e, -EINVAL, "item %u: start + tokens: expected at most %u, found %llu", i,
                       l->max_seq, (unsigned long long)end);
    uint32_t prefix_max = it->start ? it->start : it->n_tokens;
    if (it->prefix_len > prefix_max)
        return err_set(e, -EINVAL,
                       "item %u: prefix_len: expected at most %u (a prefix runs as one item from "
                       "start 0), found %u",
                       i, prefix_max, it->prefix_len);
    return 0;
}

static int check_table(const struct plan_item *it, uint32_t i, const struct plan_limits *l,
                       struct err *e)
{
    uint64_t end = (uint64_t)it->start + it->n_tokens;
    uint64_t n_total = (uint64_t)it->n_blocks_kept + it->n_blocks;
    uint64_t n_min = (end + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
    if (n_total < n_min || n_total > plan_max_blocks(l) || (it->n_blocks && !it->blocks))
        return err_set(e, -EINVAL,
                       "item %u: blocks: expected %llu to %u of them, kept and new, found %llu", i,
                       (unsigned long long)n_min, plan_max_blocks(l), (unsigned long long)n_total);
    if (it->n_blocks_kept && !it->start)
        return err_set(e, -EINVAL, "item %u: blocks: a sequence that starts keeps none, found %u",
                       i, it->n_blocks_kept);
    if (it->n_blocks == 0 || largest(it->blocks, it->n_blocks) < l->n_blocks)
        return 0;
    for (uint32_t k = 0; k < it->n_blocks; k++)
        if (it->blocks[k] >= l->n_blocks)
            return err_set(e, -EINVAL, "item %u: blocks[%u]: expected below %u, found %u", i, k,
                           l->n_blocks, it->blocks[k]);
    return 0;
}

static int check_sampling_lists(const struct plan_sampling *s, uint32_t i,
                                const struct plan_limits *l, struct err *e)
{
    for (uint32_t k = 0; k < s->n_bias; k++) {
        if (s->bias[k].token < 0 || (uint32_t)s->bias[k].token >= l->vocab)
            return err_set(e, -EINVAL, "item %u: bias[%u].token: expected below %u, found %d", i, k,
                           l->vocab, s->bias[k].token);
        if (!isfinite(s->bias[k].bias))
            return err_set(e, -EINVAL, "item %u: bias[%u].bias: expected a finite number", i, k);
    }
    for (uint32_t k = 0; k < s->n_forbidden; k++) {
        const struct plan_range *r = &s->forbidden[k];
        if (r->begin < 0 || r->end < r->begin || (uint32_t)r->end > l->vocab)
            return err_set(e, -EINVAL,
                           "item %u: forbidden[%u]: expected 0 <= begin <= end <= %u, found "
                           "[%d, %d)",
                           i, k, l->vocab, r->begin, r->end);
    }
    for (uint32_t k = 0; k < s->n_banned; k++)
        if (s->banned[k] < 0 || (uint32_t)s->banned[k] >= l->vocab)
            return err_set(e, -EINVAL, "item %u: banned[%u]: expected an id below %u, found %d", i,
                           k, l->vocab, s->banned[k]);
    for (uint32_t k = 0; k < s->n_history; k++)
        if (s->history[k] < 0 || (uint32_t)s->history[k] >= l->vocab)
            return err_set(e, -EINVAL, "item %u: history[%u]: expected an id below %u, found %d", i,
                           k, l->vocab, s->history[k]);
    return 0;
}

static int check_history(const struct plan_sampling *s, uint32_t i, const struct plan_limits *l,
                         struct err *e)
{
    uint64_t total = (uint64_t)s->n_history_kept + s->n_history;
    if (total > l->max_seq)
        return err_set(e, -EINVAL,
                       "item %u: history: expected at most %u ids, kept and new, found %llu", i,
                       l->max_seq, (unsigned long long)total);
    if (s->n_history_prompt > total)
        return err_set(e, -EINVAL,
                       "item %u: history: expected at most %llu ids of the prompt, found %u", i,
                       (unsigned long long)total, s->n_history_prompt);
    return 0;
}

static int check_parameters(const struct plan_sampling *s, uint32_t i, const struct plan_limits *l,
                            struct err *e)
{
    if (!isfinite(s->temperature) || !(s->temperature > 0))
        return err_set(e, -EINVAL,
                       "item %u: temperature: expected a finite number above 0, found %g", i,
                       (double)s->temperature);
    if (!isfinite(s->top_p) || !(s->top_p >= 0))
        return err_set(e, -EINVAL, "item %u: top_p: expected a finite number from 0, found %g", i,
                       (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return err_set(e, -EINVAL, "item %u: min_p: expected 0 to 1, found %g", i,
                       (double)s->min_p);
    if (!isfinite(s->repetition_penalty) || !(s->repetition_penalty >= 0))
        return err_set(e, -EINVAL,
                       "item %u: repetition_penalty: expected a finite number from 0, found %g", i,
                       (double)s->repetition_penalty);
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return err_set(e, -EINVAL,
                       "item %u: presence and frequency penalty: expected finite numbers, found %g "
                       "and %g",
                       i, (double)s->presence_penalty, (double)s->frequency_penalty);
    uint32_t top_max = MIN(l->n_top_logprobs, (uint32_t)PLAN_MAX_TOP_LOGPROBS);
    if (s->n_top_logprobs > top_max)
        return err_set(e, -EINVAL, "item %u: n_top_logprobs: expected at most %u, found %u", i,
                       top_max, s->n_top_logprobs);
    return 0;
}

static int check_sampling(const struct plan_item *it, uint32_t i, const struct plan_limits *l,
                          struct err *e)
{
    const struct plan_sampling *s = &it->sampling;
    if (s->kept && (!it->start || s->n_bias || s->n_forbidden))
        return err_set(
            e, -EINVAL,
            "item %u: sampling: what is kept needs a sequence that goes on, without bias "
            "and forbidden ids, found start %u, %u and %u",
            i, it->start, s->n_bias, s->n_forbidden);
    int r = s->kept ? 0 : check_parameters(s, i, l, e);
    if (r)
        return r;
    const struct {
        const char *name;
        const void *list;
        uint32_t n, max;
    } lists[] = {{"bias", s->bias, s->n_bias, PLAN_MAX_BIAS},
                 {"forbidden", s->forbidden, s->n_forbidden, PLAN_MAX_RANGES},
                 {"banned", s->banned, s->n_banned, PLAN_MAX_BANNED},
                 {"history", s->history, s->n_history, PLAN_MAX_HISTORY}};
    for (size_t k = 0; k < ARRAY_LEN(lists); k++)
        if (lists[k].n > lists[k].max || (lists[k].n && !lists[k].list))
            return err_set(e, -EINVAL, "item %u: %s: expected at most %u, found %u", i,
                           lists[k].name, lists[k].max, lists[k].n);
    r = check_history(s, i, l, e);
    return r ? r : check_sampling_lists(s, i, l, e);
}

static int check_output(const struct plan *p, const struct plan_item *it, uint32_t i,
                        const struct plan_limits *l, struct err *e)
{
    switch (it->output) {
    case PLAN_OUTPUT_NONE:
    case PLAN_OUTPUT_LOGITS:
        return 0;
    case PLAN_OUTPUT_SCORE:
        if (it->sampling.n_top_logprobs > l->n_top_logprobs)
            return err_set(e, -EINVAL, "item %u: n_top_logprobs: expected at most %u, found %u", i,
                           l->n_top_logprobs, it->sampling.n_top_logprobs);
        if (!it->targets)
            return err_set(e, -EINVAL, "item %u: targets: expected %u, found none", i,
                           it->n_tokens);
        return 0;
    case PLAN_OUTPUT_BEAM:
        if (it->beam_group >= p->n_groups)
            return err_set(e, -EINVAL, "item %u: beam_group: expected below %u, found %u", i,
                           p->n_groups, it->beam_group);
        if (!isfinite(it->beam_score))
            return err_set(e, -EINVAL, "item %u: beam_score: expected a finite number", i);
        return check_sampling(it, i, l, e);
    case PLAN_OUTPUT_SAMPLE:
        return check_sampling(it, i, l, e);
    }
    return err_set(e, -EINVAL, "item %u: output: %d is none", i, (int)it->output);
}

static int check_items(const struct plan *p, const struct plan_limits *l, struct err *e)
{
    uint32_t max_tokens = MIN(l->max_tokens, (uint32_t)PLAN_MAX_TOKENS);
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        int r = check_place(it, i, l, e);
        if (!r)
            r = check_table(it, i, l, e);
        if (!r)
            r = check_output(p, it, i, l, e);
        if (!r)
            r = check_tokens(it, i, l, e);
        if (r)
            return r;
        n_tokens += it->n_tokens;
    }
    if (n_tokens > max_tokens)
        return err_set(e, -EINVAL, "plan: tokens: expected at most %u in a step, found %llu",
                       max_tokens, (unsigned long long)n_tokens);
    return 0;
}

/* Every slot once. */
static int check_slots(const struct plan *p, const struct plan_limits *l, struct err *e)
{
    for (uint64_t window = 0; window < l->n_slots; window += SET_BITS) {
        struct set seen;
        set_clear(&seen, l->n_slots - window);
        for (uint32_t i = 0; i < p->n_items; i++)
            if (in_window(p->items[i].slot, window) &&
                set_add(&seen, (uint32_t)(p->items[i].slot - window)))
                return err_set(e, -EINVAL, "item %u: slot %u is in the plan twice", i,
                               p->items[i].slot);
    }
    return 0;
}

int plan_check_writes(const struct plan *p, const struct plan_limits *l, const uint32_t *tables,
                      struct err *e)
{
    for (uint64_t window = 0; window < l->n_blocks; window += SET_BITS) {
        struct set written;
        set_clear(&written, l->n_blocks - window);
        for (uint32_t i = 0; i < p->n_items; i++) {
            const struct plan_item *it = &p->items[i];
            const uint32_t *table = tables ? tables + (size_t)it->slot * plan_max_blocks(l) : NULL;
            uint32_t n_kept = it->n_blocks_kept;
            uint32_t first = it->start / PLAN_KV_BLOCK_TOKENS;
            uint32_t last = (it->start + it->n_tokens - 1) / PLAN_KV_BLOCK_TOKENS;
            for (uint32_t k = table ? first : MAX(first, n_kept); k <= last; k++) {
                uint32_t block = k < n_kept ? table[k] : it->blocks[k - n_kept];
                if (in_window(block, window) && set_add(&written, (uint32_t)(block - window)))
                    return err_set(e, -EINVAL, "item %u: blocks[%u]: block %u is written twice", i,
                                   k, block);
            }
        }
    }
    return 0;
}

static int check_groups(const struct plan *p, struct err *e)
{
    for (uint32_t g = 0; g < p->n_groups; g++)
        if (p->groups[g].width < 1 || p->groups[g].width > PLAN_MAX_BEAM_WIDTH)
            return err_set(e, -EINVAL, "beam group %u: width: expected 1 to %d, found %u", g,
                           PLAN_MAX_BEAM_WIDTH, p->groups[g].width);
    struct set seen; /* n_groups <= n_items <= PLAN_MAX_ITEMS */
    set_clear(&seen, p->n_groups);
    uint32_t n_seen = 0;
    int64_t current = -1;
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        int64_t group = it->output == PLAN_OUTPUT_BEAM ? (int64_t)it->beam_group : -1;
        if (group >= 0 && group != current) {
            if (set_add(&seen, (uint32_t)group))
                return err_set(e, -EINVAL, "item %u: items of beam group %u are not neighbours", i,
                               it->beam_group);
            n_seen++;
        }
        current = group;
    }
    if (n_seen != p->n_groups)
        return err_set(e, -EINVAL, "plan: %u of %u beam groups have no item", p->n_groups - n_seen,
                       p->n_groups);
    return 0;
}

/* Sliced items stand last, start at 0 and have layers to run; and there are none without. */
static int check_slice(const struct plan *p, const struct plan_limits *l, struct err *e)
{
    bool any = p->items[p->n_items - 1].sliced;
    bool layers = p->layer_begin || p->layer_end;
    if (any != layers)
        return err_set(e, -EINVAL, "plan: layers %u to %u %s sliced items", p->layer_begin,
                       p->layer_end, any ? "for" : "without");
    if (layers && (p->layer_begin >= p->layer_end || p->layer_end > l->n_layers))
        return err_set(e, -EINVAL, "plan: layers: expected a range within 0 to %u, found %u to %u",
                       l->n_layers, p->layer_begin, p->layer_end);
    bool seen = false;
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        if (seen && !it->sliced)
            return err_set(e, -EINVAL, "item %u: stands behind sliced items", i);
        seen = it->sliced;
        if (seen && (it->start || it->output == PLAN_OUTPUT_LOGITS))
            return err_set(e, -EINVAL, "item %u: a sliced item starts at 0 and keeps no logits", i);
    }
    return 0;
}

/* What comes back must fit a message. */
static int check_score_tokens(const struct plan *p, struct err *e)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < p->n_items; i++) {
        if (p->items[i].output == PLAN_OUTPUT_SCORE)
            n += (uint64_t)p->items[i].n_tokens * p->items[i].sampling.n_top_logprobs;
    }
    if (n > PLAN_MAX_SCORE_TOKENS)
        return err_set(e, -EINVAL, "expected at most %d tokens beside scores, found %llu",
                       PLAN_MAX_SCORE_TOKENS, (unsigned long long)n);
    return 0;
}

int plan_validate(const struct plan *p, const struct plan_limits *limits, struct err *e)
{
    static_assert((int)PLAN_MAX_ITEMS <= (int)SET_BITS, "a set holds every group");
    int r = check_counts(p, limits, e);
    if (!r)
        r = check_copies(p, limits, e);
    if (!r)
        r = check_items(p, limits, e);
    if (!r)
        r = check_slots(p, limits, e);
    if (!r)
        r = plan_check_writes(p, limits, NULL, e);
    if (!r)
        r = check_groups(p, e);
    if (!r)
        r = check_slice(p, limits, e);
    if (!r)
        r = check_score_tokens(p, e);
    return r;
}

static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
    return size ? XXH3_64bits_withSeed(data, size, hash) : hash;
}

/* What is kept, here and of block tables, was mixed in when it came. */
static uint64_t mix_history(uint64_t hash, const struct plan_sampling *s)
{
    const uint32_t head[] = {s->n_history_kept, s->n_history, s->n_history_prompt};
    hash = mix(hash, head, sizeof head);
    return mix(hash, s->history, s->n_history * sizeof s->history[0]);
}

uint64_t plan_state_hash(uint64_t seed, const struct plan *p, const struct result_item *items,
                         const struct result_group *groups)
{
    uint64_t hash = seed;
    const uint64_t head[] = {p->epoch,    p->step,        p->n_items,  p->n_groups,
                             p->n_copies, p->layer_begin, p->layer_end};
    hash = mix(hash, head, sizeof head);
    hash = mix(hash, p->copies, p->n_copies * sizeof p->copies[0]);
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        const uint32_t item[] = {it->slot,       it->slot_gen,         it->start,
                                 it->n_tokens,   it->n_blocks,         it->n_blocks_kept,
                                 it->prefix_len, (uint32_t)it->output, (uint32_t)items[i].token};
        hash = mix(hash, item, sizeof item);
        hash = mix(hash, it->tokens, it->n_tokens * sizeof it->tokens[0]);
        hash = mix(hash, it->blocks, it->n_blocks * sizeof it->blocks[0]);
        if (plan_item_chooses(it) && plan_history_total(&it->sampling))
            hash = mix_history(hash, &it->sampling);
    }
    for (uint32_t g = 0; g < p->n_groups; g++)
        for (uint32_t i = 0; i < groups[g].n_candidates; i++) {
            const struct result_candidate *c = &groups[g].candidates[i];
            const uint32_t candidate[] = {c->item, (uint32_t)c->token};
            hash = mix(hash, candidate, sizeof candidate);
        }
    return hash;
}
