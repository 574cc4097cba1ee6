/* kept_result.c: see kept_result.h. One block of memory for all arrays, filled front to back in a
 * first pass that only counts and a second one that copies. */
#include "worker/engine/kept_result.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct arena {
    char *memory; /* NULL: only count */
    size_t used;
};

static const void *keep(struct arena *a, const void *data, size_t n, size_t size)
{
    size_t bytes = n * size;
    if (!data || !bytes)
        return NULL;
    char *p = a->memory ? a->memory + a->used : NULL;
    a->used += round_up(bytes, 16);
    return p ? memcpy(p, data, bytes) : NULL;
}

static struct step_result copy(struct arena *a, const struct step_result *from,
                               const struct plan *plan, size_t vocab)
{
    struct step_result to = *from;
    struct result_item *items =
        (struct result_item *)keep(a, from->items, from->n_items, sizeof *items);
    struct result_group *groups =
        (struct result_group *)keep(a, from->groups, from->n_groups, sizeof *groups);
    for (uint32_t i = 0; i != from->n_items; i++) {
        struct result_item item = from->items[i];
        item.top = keep(a, item.top, item.n_top, sizeof *item.top);
        item.scores = keep(a, item.scores, item.n_scores, sizeof *item.scores);
        item.score_tokens =
            keep(a, item.score_tokens, item.n_score_tokens, sizeof *item.score_tokens);
        item.score_logprobs =
            keep(a, item.score_logprobs, item.n_score_tokens, sizeof *item.score_logprobs);
        item.logits = keep(a, item.logits, plan->items[i].n_tokens * vocab, sizeof *item.logits);
        if (items)
            items[i] = item;
    }
    for (uint32_t i = 0; i != from->n_groups; i++) {
        struct result_group group = from->groups[i];
        group.candidates = keep(a, group.candidates, group.n_candidates, sizeof *group.candidates);
        if (groups)
            groups[i] = group;
    }
    to.items = items;
    to.groups = groups;
    return to;
}

int kept_result_set(struct kept_result *k, const struct step_result *from, const struct plan *plan,
                    size_t vocab)
{
    struct arena count = {0};
    copy(&count, from, plan, vocab);
    if (count.used > k->capacity) {
        void *memory = malloc(count.used);
        if (!memory)
            return -ENOMEM;
        free(k->memory);
        k->memory = memory;
        k->capacity = count.used;
    }
    struct arena a = {.memory = k->memory};
    k->step = copy(&a, from, plan, vocab);
    return 0;
}

void kept_result_deinit(struct kept_result *k)
{
    free(k->memory);
    *k = (struct kept_result){0};
}
