/* batch.c: see batch.h. */
#include "worker/engine/batch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

uint64_t batch_bytes(const struct plan_limits *limits)
{
    uint64_t per_slot = sizeof(struct batch_slot) + sizeof(struct k_seq);
    uint64_t per_token = 2 * sizeof(int32_t) + sizeof(struct batch_output);
    return limits->n_slots * per_slot + limits->max_tokens * per_token;
}

int batch_init(struct batch *b, const struct plan_limits *limits)
{
    b->limits = *limits;
    b->slots = alloc_array(limits->n_slots, sizeof *b->slots);
    b->ids = alloc_array(limits->max_tokens, sizeof *b->ids);
    b->positions = alloc_array(limits->max_tokens, sizeof *b->positions);
    b->seqs = alloc_array(limits->n_slots, sizeof *b->seqs);
    b->outputs = alloc_array(limits->max_tokens, sizeof *b->outputs);
    b->bytes = batch_bytes(limits);
    if (!b->slots || !b->ids || !b->positions || !b->seqs || !b->outputs)
        return -ENOMEM;
    return 0;
}

void batch_deinit(struct batch *b)
{
    free(b->slots);
    free(b->ids);
    free(b->positions);
    free(b->seqs);
    free(b->outputs);
    *b = (struct batch){0};
}

void batch_reset(struct batch *b)
{
    memset(b->slots, 0, b->limits.n_slots * sizeof *b->slots);
    b->epoch = 0;
    b->step = 0;
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

static int check_previous(const struct batch_slot *s, const struct plan_item *it, uint32_t idx,
                          struct err *e)
{
    for (uint32_t i = 0; i != it->n_tokens; i++) {
        if (it->tokens[i] != PLAN_TOKEN_PREVIOUS)
            continue;
        if (i > 0 || !continues(s, it) || it->start != s->length || s->sample < 0)
            return err_set(e, -EINVAL,
                           "item %u: token %u stands for the previous sample of slot %u, which has "
                           "none to continue at %u",
                           idx, i, it->slot, it->start);
    }
    return 0;
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

int batch_check(const struct batch *b, const struct plan *p, struct err *e)
{
    if (p->layer_end)
        return err_set(e, -EINVAL,
                       "plan: this engine runs all layers in a step, found layers %u to %u",
                       p->layer_begin, p->layer_end);
    int r = plan_validate(p, &b->limits, e);
    if (r == 0)
        r = check_step(b, p, e);
    for (uint32_t i = 0; i != p->n_items && r == 0; i++) {
        const struct plan_item *it = &p->items[i];
        const struct batch_slot *s = &b->slots[it->slot];
        r = check_slot(s, it, i, e);
        if (r == 0)
            r = check_previous(s, it, i, e);
    }
    return r;
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

void batch_build(struct batch *b, const struct plan *p)
{
    b->n_rows = b->n_seqs = b->n_outputs = 0;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        uint32_t row0 = b->n_rows;
        assert(row0 + it->n_tokens <= b->limits.max_tokens);
        for (uint32_t j = 0; j != it->n_tokens; j++) {
            int32_t id = it->tokens[j];
            b->ids[row0 + j] = id == PLAN_TOKEN_PREVIOUS ? b->slots[it->slot].sample : id;
            b->positions[row0 + j] = it->positions[j];
        }
        b->seqs[b->n_seqs++] = (struct k_seq){.row0 = row0,
                                              .n_rows = it->n_tokens,
                                              .start = it->start,
                                              .prefix_len = it->prefix_len,
                                              .blocks = it->blocks};
        add_outputs(b, it, i, row0);
        b->n_rows += it->n_tokens;
    }
}

void batch_commit(struct batch *b, const struct plan *p, const struct result_item *results)
{
    b->epoch = p->epoch;
    b->step = p->step;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        b->slots[it->slot] = (struct batch_slot){.used = true,
                                                 .gen = it->slot_gen,
                                                 .length = it->start + it->n_tokens,
                                                 .prefix_len = it->prefix_len,
                                                 .sample = results[i].token};
    }
}
