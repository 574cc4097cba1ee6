/* request.c: see request.h. What a request is; the scheduler decides when it moves. */
#include "coordinator/request.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct request *request_new(enum request_kind kind)
{
    struct request *r = calloc(1, sizeof *r);
    if (r)
        r->kind = kind;
    return r;
}

/* As long as tokens.n says how many there are. */
static void free_logprobs(struct output *o)
{
    for (size_t i = 0; o->logprobs && i != o->tokens.n + o->has_end_logprob; i++)
        free(o->logprobs[i].top);
    free(o->logprobs);
    o->logprobs = NULL;
    o->logprobs_capacity = 0;
    o->has_end_logprob = false;
}

void output_deinit(struct output *o)
{
    free_logprobs(o);
    free(o->token_scores);
    free(o->best_tokens);
    free(o->best_logprobs);
    token_list_deinit(&o->tokens);
    *o = (struct output){.end_token = -1, .stop = -1};
}

static void free_outputs(struct request *r)
{
    for (uint32_t i = 0; i != r->n_outputs; i++)
        output_deinit(&r->outputs[i]);
    free(r->outputs);
    r->outputs = NULL;
    r->n_outputs = 0;
}

static void fill_round_deinit(struct fill_round *f)
{
    token_list_deinit(&f->input);
    for (uint32_t i = 0; f->outputs && i != f->n_outputs; i++)
        token_list_deinit(&f->outputs[i]);
    free(f->outputs);
    free(f->end_tokens);
    free(f->stops);
    free(f->finishes);
    free(f->scores);
    *f = (struct fill_round){0};
}

void request_free(struct request *r)
{
    if (!r)
        return;
    assert(r->state == REQUEST_NEW || r->state == REQUEST_DONE);
    free_outputs(r);
    for (uint32_t i = 0; i != r->n_rounds; i++)
        fill_round_deinit(&r->rounds[i]);
    free(r->rounds);
    for (uint32_t i = 0; r->choices && i != r->n_choices_scored; i++)
        token_list_deinit(&r->choices[i]);
    free(r->choices);
    prompt_deinit(&r->prompt);
    token_list_deinit(&r->ids);
    beam_search_free(r->search);
    free(r->params.bias);
    free(r->params.forbidden);
    free(r->params.stop_ids);
    stop_set_free(r->params.stops);
    free(r);
}

uint32_t request_slots(const struct request *r, uint32_t n_slots_total)
{
    if (r->kind == REQUEST_SCORE)
        return MIN(MIN(r->n_choices_scored, MAX(n_slots_total / 2, 1u)), (uint32_t)BEAM_MAX);
    if (r->params.beam)
        return r->params.n_beams;
    uint32_t n = r->n_outputs ? 0 : r->params.n_choices;
    for (uint32_t i = 0; i != r->n_outputs; i++)
        n += r->outputs[i].finish == FINISH_NONE;
    return n;
}

static uint32_t longest_target(const struct request *r)
{
    size_t longest = 0;
    for (uint32_t i = 0; i != r->n_choices_scored; i++)
        longest = MAX(longest, r->choices[i].n);
    return (uint32_t)longest;
}

uint32_t request_max_tokens(const struct request *r)
{
    uint32_t n_prompt = (uint32_t)r->prompt.ids.n;
    switch (r->kind) {
    case REQUEST_GENERATE:
        return n_prompt + r->params.max_new;
    case REQUEST_FILL:
        return r->params.max_length;
    case REQUEST_SCORE:
        return n_prompt - 1 + longest_target(r); /* context, sop, all but the last target */
    }
    abort();
}

uint64_t request_cost(const struct request *r)
{
    const struct request_params *p = &r->params;
    uint64_t n_prompt = r->prompt.ids.n, n = 0;
    switch (r->kind) {
    case REQUEST_GENERATE:
        return n_prompt + (uint64_t)(p->beam ? p->n_beams : p->n_choices) * p->max_new;
    case REQUEST_FILL:
        return (uint64_t)(p->beam ? p->n_beams : 1) * p->max_length;
    case REQUEST_SCORE:
        for (uint32_t i = 0; i != r->n_choices_scored; i++)
            n += r->choices[i].n;
        return n_prompt + n;
    }
    abort();
}

/* The shortest prompt of any round: every round takes one mask of the first text away and puts its
 * answer, perhaps nothing, in its place. */
static uint32_t shortest_prompt(const struct request *r)
{
    uint32_t n = (uint32_t)r->prompt.ids.n;
    if (r->kind != REQUEST_FILL)
        return n;
    int32_t mask = r->prompt.ids.ids[r->prompt.mask_index];
    uint32_t n_masks = 0;
    for (size_t i = 0; i != r->prompt.ids.n; i++)
        n_masks += r->prompt.ids.ids[i] == mask;
    return n - n_masks;
}

uint64_t request_blocks(const struct request *r, uint32_t n_slots)
{
    uint32_t total = blocks_for_tokens(request_max_tokens(r));
    uint32_t shared = shortest_prompt(r);
    if (!r->params.beam)
        shared -= shared > 0; /* the last prompt token runs in every sequence of its own */
    shared /= PLAN_KV_BLOCK_TOKENS;
    if (r->kind == REQUEST_SCORE) {
        uint32_t n_context = (uint32_t)r->prompt.ids.n - 1;
        return blocks_for_tokens(n_context) + (uint64_t)n_slots * (total - shared);
    }
    if (n_slots == 1)
        return total;
    return shared + (uint64_t)n_slots * (total - MIN(total, shared));
}

int32_t request_token(const struct request *r, const struct seq *s, uint32_t index)
{
    if (index < r->prompt.ids.n)
        return r->prompt.ids.ids[index];
    index -= (uint32_t)r->prompt.ids.n;
    if (r->kind == REQUEST_SCORE)
        return r->outputs[s->output].target[index];
    if (r->params.beam) {
        size_t n;
        const int32_t *tokens = beam_search_tokens(r->search, s->output, &n);
        assert(index < n);
        return tokens[index];
    }
    assert(index < r->outputs[s->output].tokens.n);
    return r->outputs[s->output].tokens.ids[index];
}

uint32_t request_n_tokens(const struct request *r, const struct seq *s)
{
    uint32_t n = (uint32_t)r->prompt.ids.n;
    if (r->phase == REQUEST_CONTEXT)
        return r->n_context;
    if (r->kind == REQUEST_SCORE)
        return n + r->outputs[s->output].n_target - 1;
    if (!r->params.beam)
        return n + (uint32_t)r->outputs[s->output].tokens.n;
    return n + r->beam_step;
}

const char *request_id_behind_prefix(const char *id)
{
    static const char *const prefixes[] = {REQUEST_ID_COMPLETION, REQUEST_ID_CHAT, REQUEST_ID_FILL};
    for (size_t i = 0; i != ARRAY_LEN(prefixes); i++) {
        size_t n = strlen(prefixes[i]);
        if (strncmp(id, prefixes[i], n) == 0 && id[n])
            return id + n;
    }
    return NULL;
}

uint32_t request_max_new(const struct request *r)
{
    if (r->kind != REQUEST_FILL)
        return r->params.max_new;
    uint32_t n = (uint32_t)r->prompt.ids.n;
    return r->params.max_length > n ? r->params.max_length - n : 0;
}

static int append_logprob(struct output *o, const struct result_item *item)
{
    if (o->tokens.n == o->logprobs_capacity) {
        size_t capacity = MAX(2 * o->logprobs_capacity, (size_t)16);
        struct output_logprob *p = realloc(o->logprobs, capacity * sizeof *p);
        if (!p)
            return -ENOMEM;
        o->logprobs = p;
        o->logprobs_capacity = capacity;
    }
    struct output_logprob lp = {.logprob = item->logprob, .n_top = item->n_top};
    if (item->n_top) {
        lp.top = malloc(item->n_top * sizeof *lp.top);
        if (!lp.top)
            return -ENOMEM;
        memcpy(lp.top, item->top, item->n_top * sizeof *lp.top);
    }
    o->logprobs[o->tokens.n] = lp;
    return 0;
}

int output_append(struct output *o, int32_t token, const struct result_item *item, bool logprobs)
{
    if (logprobs) {
        int r = append_logprob(o, item);
        if (r < 0)
            return r;
    }
    int r = token_list_append(&o->tokens, token);
    if (r < 0 && logprobs)
        free(o->logprobs[o->tokens.n].top);
    return r;
}

int output_end(struct output *o, int32_t token, const struct result_item *item, bool logprobs)
{
    int r = logprobs ? append_logprob(o, item) : 0;
    o->has_end_logprob = logprobs && r == 0;
    o->end_token = token;
    o->finish = FINISH_STOP;
    return r;
}

void output_stop(struct output *o, size_t n_keep, uint32_t stop)
{
    assert(n_keep <= o->tokens.n);
    if (o->has_end_logprob)
        free(o->logprobs[o->tokens.n].top);
    o->has_end_logprob = false;
    for (; o->tokens.n > n_keep; o->tokens.n--) {
        if (o->logprobs)
            free(o->logprobs[o->tokens.n - 1].top);
    }
    o->end_token = -1;
    o->stop = (int32_t)stop;
    o->finish = FINISH_STOP;
}

bool request_is_stop_id(const struct request *r, int32_t token)
{
    for (uint32_t i = 0; i != r->params.n_stop_ids; i++) {
        if (r->params.stop_ids[i] == token)
            return true;
    }
    return false;
}

int request_begin_round(struct request *r)
{
    free_outputs(r);
    uint32_t n = r->kind == REQUEST_SCORE ? r->n_choices_scored
                 : r->params.beam         ? r->params.n_beams
                                          : r->params.n_choices;
    r->outputs = alloc_array(n, sizeof *r->outputs);
    if (!r->outputs)
        return -ENOMEM;
    r->n_outputs = n;
    for (uint32_t i = 0; i != n; i++) {
        struct output *o = &r->outputs[i];
        o->end_token = o->stop = -1;
        if (r->kind != REQUEST_SCORE)
            continue;
        o->target = r->choices[i].ids;
        o->n_target = (uint32_t)r->choices[i].n;
        o->token_scores = alloc_array(o->n_target, sizeof *o->token_scores);
        if (!o->token_scores)
            return -ENOMEM;
    }
    return 0;
}

/* Moves prompt and outputs of the finished round into r->rounds. */
static int store_round(struct request *r)
{
    struct fill_round *rounds = realloc(r->rounds, (r->n_rounds + 1) * sizeof *rounds);
    if (!rounds)
        return -ENOMEM;
    r->rounds = rounds;
    struct fill_round *f = &rounds[r->n_rounds];
    *f = (struct fill_round){
        .outputs = alloc_array(r->n_outputs, sizeof *f->outputs),
        .end_tokens = alloc_array(r->n_outputs, sizeof *f->end_tokens),
        .stops = alloc_array(r->n_outputs, sizeof *f->stops),
        .finishes = alloc_array(r->n_outputs, sizeof *f->finishes),
        .scores = alloc_array(r->n_outputs, sizeof *f->scores),
        .n_outputs = r->n_outputs,
        .mask_index = r->prompt.mask_index,
    };
    if (!f->outputs || !f->end_tokens || !f->stops || !f->finishes || !f->scores) {
        fill_round_deinit(f);
        return -ENOMEM;
    }
    f->input = r->prompt.ids;
    r->prompt.ids = (struct token_list){0};
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        struct output *o = &r->outputs[i];
        f->outputs[i] = o->tokens;
        f->end_tokens[i] = o->end_token;
        f->stops[i] = o->stop;
        f->finishes[i] = o->finish;
        f->scores[i] = o->score;
        free_logprobs(o); /* tokens.n goes away: output_deinit would miss them */
        o->tokens = (struct token_list){0};
    }
    r->n_rounds++;
    return 0;
}

int request_next_round(struct request *r, const struct arch *a)
{
    assert(r->kind == REQUEST_FILL && r->n_outputs > 0);
    int32_t mask_index = r->prompt.mask_index;
    int code = store_round(r);
    if (code < 0)
        return code;
    const struct fill_round *f = &r->rounds[r->n_rounds - 1];
    struct token_list filled = {0};
    code = prompt_apply(&r->ids, mask_index, f->outputs[0].ids, f->outputs[0].n, &filled);
    if (code < 0)
        return code;
    token_list_deinit(&r->ids);
    r->ids = filled;
    prompt_deinit(&r->prompt);
    r->prompt = (struct prompt){0};
    r->round++;
    if (r->n_rounds >= r->params.max_rounds)
        return 0;
    struct err e = ERR_INIT;
    code = prompt_next(a, &r->ids, r->mask, &r->prompt, &e);
    if (code == -ENOENT)
        return 0;
    return code < 0 ? code : 1;
}
