/* batch.c: see batch.h. */
#include "worker/engine/batch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/util.h"

static size_t max_sliced_blocks(const struct plan_limits *limits)
{
    return limits->max_tokens / PLAN_KV_BLOCK_TOKENS + limits->n_slots;
}

uint64_t batch_bytes(const struct plan_limits *limits)
{
    uint64_t per_slot = sizeof(struct batch_slot) + sizeof(struct k_seq) +
                        sizeof(struct batch_sliced) + limits->max_seq * sizeof(int32_t) +
                        plan_max_blocks(limits) * sizeof(uint32_t) + sizeof(struct plan_sampling) +
                        PLAN_MAX_RANGES * sizeof(struct plan_range);
    uint64_t per_token = 2 * sizeof(int32_t) + sizeof(struct batch_output);
    return limits->n_slots * per_slot + limits->max_tokens * per_token +
           max_sliced_blocks(limits) * sizeof(uint32_t);
}

int batch_init(struct batch *b, const struct plan_limits *limits)
{
    b->limits = *limits;
    b->slots = alloc_array(limits->n_slots, sizeof *b->slots);
    b->histories = alloc_array((size_t)limits->n_slots * limits->max_seq, sizeof *b->histories);
    b->tables = alloc_array((size_t)limits->n_slots * plan_max_blocks(limits), sizeof *b->tables);
    b->samplings = alloc_array(limits->n_slots, sizeof *b->samplings);
    b->forbidden = alloc_array((size_t)limits->n_slots * PLAN_MAX_RANGES, sizeof *b->forbidden);
    b->ids = alloc_array(limits->max_tokens, sizeof *b->ids);
    b->positions = alloc_array(limits->max_tokens, sizeof *b->positions);
    b->seqs = alloc_array(limits->n_slots, sizeof *b->seqs);
    b->outputs = alloc_array(limits->max_tokens, sizeof *b->outputs);
    b->slices.items = alloc_array(limits->n_slots, sizeof *b->slices.items);
    b->slices.blocks = alloc_array(max_sliced_blocks(limits), sizeof *b->slices.blocks);
    b->bytes = batch_bytes(limits);
    if (!b->slots || !b->histories || !b->tables || !b->samplings || !b->forbidden || !b->ids ||
        !b->positions || !b->seqs || !b->outputs || !b->slices.items || !b->slices.blocks)
        return -ENOMEM;
    return 0;
}

void batch_deinit(struct batch *b)
{
    free(b->slots);
    free(b->histories);
    free(b->tables);
    free(b->samplings);
    free(b->forbidden);
    free(b->ids);
    free(b->positions);
    free(b->seqs);
    free(b->outputs);
    free(b->slices.items);
    free(b->slices.blocks);
    *b = (struct batch){0};
}

void batch_reset(struct batch *b)
{
    memset(b->slots, 0, b->limits.n_slots * sizeof *b->slots);
    b->epoch = 0;
    b->step = 0;
    b->slices.layer_end = 0;
}

/* ---- checks ---- */

/* Whether the item goes on where the slot is. */
static bool continues(const struct batch_slot *s, const struct plan_item *it)
{
    return s->used && it->start > 0 && it->slot_gen == s->gen;
}

static int check_slot(const struct batch_slot *s, const struct plan_item *it, uint32_t idx,
                      struct err *e)
{
    if (continues(s, it)) {
        if (it->output != PLAN_OUTPUT_BEAM && it->start != s->length)
            return err_set(e, -EINVAL, "item %u: slot %u holds %u tokens, the plan starts at %u",
                           idx, it->slot, s->length, it->start);
        if (it->prefix_len != s->prefix_len)
            return err_set(e, -EINVAL, "item %u: slot %u has a prefix of %u, the plan says %u", idx,
                           it->slot, s->prefix_len, it->prefix_len);
        return 0;
    }
    if (s->used && it->slot_gen <= s->gen)
        return err_set(e, -EINVAL,
                       "item %u: slot %u is at generation %u; a new sequence needs a greater one, "
                       "the plan says %u (start %u)",
                       idx, it->slot, s->gen, it->slot_gen, it->start);
    return 0;
}

static int check_previous(const struct batch *b, const struct plan_item *it, uint32_t idx,
                          struct err *e)
{
    const struct batch_slot *s = &b->slots[it->slot];
    for (uint32_t i = 0; i != it->n_tokens; i++) {
        if (it->tokens[i] != PLAN_TOKEN_PREVIOUS)
            continue;
        if (b->no_previous)
            return err_set(
                e, -EINVAL,
                "item %u: token %u stands for the previous sample of slot %u, which only "
                "the last stage of this group knows: expected an id",
                idx, i, it->slot);
        if (i > 0 || !continues(s, it) || it->start != s->length || s->sample < 0)
            return err_set(e, -EINVAL,
                           "item %u: token %u stands for the previous sample of slot %u, which has "
                           "none to continue at %u",
                           idx, i, it->slot, it->start);
    }
    return 0;
}

static int check_history(const struct batch_slot *s, const struct plan_item *it, uint32_t idx,
                         struct err *e)
{
    uint32_t n_has = continues(s, it) ? s->n_history : 0;
    if (!plan_item_chooses(it) || it->sampling.n_history_kept <= n_has)
        return 0;
    return err_set(e, -EINVAL, "item %u: history: slot %u has kept %u ids, the plan goes on at %u",
                   idx, it->slot, n_has, it->sampling.n_history_kept);
}

static int check_kept(const struct batch_slot *s, const struct plan_item *it, uint32_t idx,
                      struct err *e)
{
    if (!plan_item_chooses(it) || !it->sampling.kept || (continues(s, it) && s->has_sampling))
        return 0;
    return err_set(e, -EINVAL,
                   "item %u: sampling: slot %u has no parameters in generation %u that could be "
                   "kept",
                   idx, it->slot, it->slot_gen);
}

static int check_table(const struct batch_slot *s, const struct plan_item *it, uint32_t idx,
                       struct err *e)
{
    uint32_t n_has = continues(s, it) ? s->n_blocks : 0;
    if (it->n_blocks_kept == 0 || it->n_blocks_kept == n_has)
        return 0;
    return err_set(e, -EINVAL,
                   "item %u: blocks: slot %u has a table of %u in generation %u, the plan goes on "
                   "behind %u",
                   idx, it->slot, n_has, it->slot_gen, it->n_blocks_kept);
}

static int check_step(const struct batch *b, const struct plan *p, struct err *e)
{
    if (p->step != b->step + 1)
        return err_set(e, -EINVAL, "the plan is step %llu, expected step %llu",
                       (unsigned long long)p->step, (unsigned long long)b->step + 1);
    if (b->step && p->epoch != b->epoch)
        return err_set(e, -EINVAL, "the plan is of epoch %llu, the engine of epoch %llu",
                       (unsigned long long)p->epoch, (unsigned long long)b->epoch);
    return 0;
}

/* ---- slices ---- */

static uint32_t first_sliced(const struct plan *p)
{
    uint32_t i = 0;
    while (i != p->n_items && !p->items[i].sliced)
        i++;
    return i;
}

static uint32_t n_blocks_of(uint32_t n_tokens)
{
    return (n_tokens + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
}

static uint64_t content_of(const struct plan_item *it)
{
    uint64_t tokens = XXH3_64bits(it->tokens, it->n_tokens * sizeof *it->tokens);
    return XXH3_64bits_withSeed(it->positions, it->n_tokens * sizeof *it->positions, tokens);
}

/* Whether the item is the one that the slice before has left. */
static int check_same(const struct batch_sliced *s, const uint32_t *blocks,
                      const struct plan_item *it, uint32_t idx, struct err *e)
{
    const struct {
        const char *name;
        uint32_t expected, found;
    } fields[] = {
        {"slot", s->slot, it->slot},
        {"generation", s->gen, it->slot_gen},
        {"tokens", s->n_tokens, it->n_tokens},
        {"prefix", s->prefix_len, it->prefix_len},
    };
    for (size_t i = 0; i != ARRAY_LEN(fields); i++)
        if (fields[i].expected != fields[i].found)
            return err_set(e, -EINVAL, "item %u: %s: expected %u as in the slice before, found %u",
                           idx, fields[i].name, fields[i].expected, fields[i].found);
    for (uint32_t i = 0; i != n_blocks_of(it->n_tokens); i++)
        if (blocks[s->block_at + i] != it->blocks[i])
            return err_set(e, -EINVAL,
                           "item %u: block %u: expected %u as in the slice before, found %u", idx,
                           i, blocks[s->block_at + i], it->blocks[i]);
    uint64_t content = content_of(it);
    if (content != s->content)
        return err_set(e, -EINVAL,
                       "item %u: tokens and positions: expected those of the slice before (hash "
                       "%016llx), found others (%016llx)",
                       idx, (unsigned long long)s->content, (unsigned long long)content);
    return 0;
}

static int check_slices(const struct batch *b, const struct plan *p, struct err *e)
{
    const struct batch_slices *s = &b->slices;
    uint32_t first = first_sliced(p);
    if (first == p->n_items)
        return 0;
    if (first > 0) {
        const struct plan_item *last_whole = &p->items[first - 1];
        if (last_whole->output == PLAN_OUTPUT_BEAM && p->items[first].output == PLAN_OUTPUT_BEAM &&
            last_whole->beam_group == p->items[first].beam_group)
            return err_set(e, -EINVAL,
                           "item %u: beam group %u: expected all or none of its items to be sliced",
                           first, last_whole->beam_group);
    }
    if (p->layer_begin == 0)
        return 0;
    if (p->layer_begin != s->layer_end)
        return err_set(e, -EINVAL,
                       "plan: layers: the sliced items have run %u, the plan goes on at %u",
                       s->layer_end, p->layer_begin);
    if (p->n_items - first != s->n_items)
        return err_set(e, -EINVAL, "plan: expected the %u sliced items under way, found %u",
                       s->n_items, p->n_items - first);
    int r = 0;
    for (uint32_t i = 0; i != s->n_items && r == 0; i++)
        r = check_same(&s->items[i], s->blocks, &p->items[first + i], first + i, e);
    return r;
}

static void remember_slices(struct batch_slices *s, const struct plan *p)
{
    uint32_t first = first_sliced(p);
    uint32_t n_blocks = 0;
    s->n_items = p->n_items - first;
    for (uint32_t i = 0; i != s->n_items; i++) {
        const struct plan_item *it = &p->items[first + i];
        s->items[i] = (struct batch_sliced){.slot = it->slot,
                                            .gen = it->slot_gen,
                                            .n_tokens = it->n_tokens,
                                            .prefix_len = it->prefix_len,
                                            .content = content_of(it),
                                            .block_at = n_blocks};
        for (uint32_t j = 0; j != n_blocks_of(it->n_tokens); j++)
            s->blocks[n_blocks++] = it->blocks[j];
    }
}

int batch_check(const struct batch *b, const struct plan *p, struct err *e)
{
    int r = plan_validate(p, &b->limits, e);
    if (r == 0)
        r = check_step(b, p, e);
    if (r == 0)
        r = check_slices(b, p, e);
    for (uint32_t i = 0; i != p->n_items && r == 0; i++) {
        const struct plan_item *it = &p->items[i];
        const struct batch_slot *s = &b->slots[it->slot];
        r = check_slot(s, it, i, e);
        if (r == 0)
            r = check_previous(b, it, i, e);
        if (r == 0)
            r = check_history(s, it, i, e);
        if (r == 0)
            r = check_kept(s, it, i, e);
        if (r == 0)
            r = check_table(s, it, i, e);
    }
    return r == 0 ? plan_check_writes(p, &b->limits, b->tables, e) : r;
}

/* ---- building ---- */

static void add_outputs(struct batch *b, const struct plan_item *it, uint32_t idx, uint32_t row0)
{
    for (uint32_t i = 0; i != it->n_tokens; i++) {
        bool last = i + 1 == it->n_tokens;
        bool wanted = false;
        switch (it->output) {
        case PLAN_OUTPUT_NONE:
            break;
        case PLAN_OUTPUT_SAMPLE:
        case PLAN_OUTPUT_BEAM:
            wanted = last;
            break;
        case PLAN_OUTPUT_SCORE:
            wanted = it->targets[i] >= 0;
            break;
        case PLAN_OUTPUT_LOGITS:
            wanted = true;
            break;
        }
        if (wanted)
            b->outputs[b->n_outputs++] = (struct batch_output){row0 + i, idx, i};
    }
}

/* Whether layers of the item are left to later slices. */
static bool unfinished(const struct batch *b, const struct plan *p, const struct plan_item *it)
{
    return it->sliced && p->layer_end < b->limits.n_layers;
}

static int32_t *history_of(const struct batch *b, const struct plan_item *it)
{
    return b->histories + (size_t)it->slot * b->limits.max_seq;
}

static void extend_history(struct batch *b, const struct plan_item *it)
{
    const struct plan_sampling *s = &it->sampling;
    if (plan_item_chooses(it) && s->n_history)
        memcpy(history_of(b, it) + s->n_history_kept, s->history,
               s->n_history * sizeof *s->history);
}

static void extend_sampling(struct batch *b, const struct plan_item *it)
{
    const struct plan_sampling *s = &it->sampling;
    if (!plan_item_chooses(it) || s->kept)
        return;
    struct plan_range *forbidden = b->forbidden + (size_t)it->slot * PLAN_MAX_RANGES;
    if (s->n_forbidden)
        memcpy(forbidden, s->forbidden, s->n_forbidden * sizeof *forbidden);
    b->samplings[it->slot] = *s;
    b->samplings[it->slot].forbidden = forbidden;
}

/* The slot's table with what the item brings. */
static const uint32_t *extend_table(struct batch *b, const struct plan_item *it)
{
    uint32_t *table = b->tables + (size_t)it->slot * plan_max_blocks(&b->limits);
    if (it->n_blocks)
        memcpy(table + it->n_blocks_kept, it->blocks, it->n_blocks * sizeof *table);
    return table;
}

struct plan_sampling batch_sampling(const struct batch *b, const struct plan_item *it)
{
    struct plan_sampling s = b->samplings[it->slot];
    s.output_index = it->sampling.output_index;
    s.banned = it->sampling.banned;
    s.n_banned = it->sampling.n_banned;
    s.history = history_of(b, it);
    s.n_history = plan_history_total(&it->sampling);
    s.n_history_prompt = it->sampling.n_history_prompt;
    s.n_history_kept = 0;
    return s;
}

void batch_build(struct batch *b, const struct plan *p)
{
    b->n_rows = b->n_seqs = b->n_outputs = 0;
    b->n_whole_rows = b->n_whole_seqs = 0;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        uint32_t row0 = b->n_rows;
        assert(row0 + it->n_tokens <= b->limits.max_tokens);
        for (uint32_t j = 0; j != it->n_tokens; j++) {
            int32_t id = it->tokens[j];
            b->ids[row0 + j] = id == PLAN_TOKEN_PREVIOUS ? b->slots[it->slot].sample : id;
            b->positions[row0 + j] = it->positions[j];
        }
        /* What is unfinished has no life of its slot yet, and brings all of its table. */
        bool begun = !unfinished(b, p, it);
        b->seqs[b->n_seqs++] = (struct k_seq){.row0 = row0,
                                              .n_rows = it->n_tokens,
                                              .start = it->start,
                                              .prefix_len = it->prefix_len,
                                              .blocks = begun ? extend_table(b, it) : it->blocks};
        if (begun) {
            add_outputs(b, it, i, row0);
            extend_history(b, it);
            extend_sampling(b, it);
        }
        b->n_rows += it->n_tokens;
        if (!it->sliced) {
            b->n_whole_rows = b->n_rows;
            b->n_whole_seqs = b->n_seqs;
        }
    }
}

void batch_commit(struct batch *b, const struct plan *p, const struct result_item *results)
{
    b->epoch = p->epoch;
    b->step = p->step;
    if (p->layer_begin == 0 && p->layer_end != 0 && p->layer_end < b->limits.n_layers)
        remember_slices(&b->slices, p);
    if (p->layer_end != 0)
        b->slices.layer_end = p->layer_end < b->limits.n_layers ? p->layer_end : 0;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        if (unfinished(b, p, it))
            continue;
        struct batch_slot *s = &b->slots[it->slot];
        uint32_t n_history = continues(s, it) ? s->n_history : 0;
        bool has_sampling = continues(s, it) && s->has_sampling;
        if (plan_item_chooses(it)) {
            n_history = plan_history_total(&it->sampling);
            has_sampling = it->sampling.kept || it->sampling.n_bias == 0;
        }
        *s = (struct batch_slot){.used = true,
                                 .gen = it->slot_gen,
                                 .length = it->start + it->n_tokens,
                                 .prefix_len = it->prefix_len,
                                 .sample = results[i].token,
                                 .n_history = n_history,
                                 .n_blocks = plan_blocks_total(it),
                                 .has_sampling = has_sampling};
    }
}
