/* fake.c: see fake.h. The way of a step is the engine's: batch_check -> copies -> batch_build ->
 * entries and states -> results -> batch_commit -> state hash. */
#include "worker/engine/fake.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/batch.h"

enum {
    DRAWS = 64, /* before the ids are tried in order */
    WANTED_ONE_IN = 4,
    MILLION = 1000000,
};

struct fake {
    /* owned */
    uint64_t *entries;                   /* [n_blocks, 16] */
    uint64_t *states;                    /* [max_tokens] of the rows of the step */
    struct result_item *items;           /* [n_slots] */
    struct result_logprob *top;          /* [n_slots, n_top_logprobs] */
    int32_t *score_tokens;               /* [max_tokens, n_top_logprobs] */
    float *score_logprobs;               /* likewise */
    float *scores;                       /* [max_tokens] */
    struct result_group *groups;         /* [n_slots] */
    struct result_candidate *candidates; /* [n_slots, PLAN_MAX_BEAM_WIDTH] */
    struct batch batch;
    /* state */
    struct fake_config config;
    uint64_t state_hash;
    struct step_result result;
};

/* ---- the function ---- */

#define FACTOR_1 UINT64_C(0x9e3779b97f4a7c15)
#define FACTOR_2 UINT64_C(0xd6e8feb86659fd93)

enum salt { SALT_PREFIX = 1, SALT_SEQUENCE, SALT_CHOICE, SALT_SAMPLING, SALT_LOGPROB, SALT_BEAM };

/* a and b are not interchangeable. */
static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t h = ((a ^ a >> 32) * FACTOR_1) ^ b;
    h = (h ^ h >> 32) * FACTOR_2;
    return h ^ h >> 29;
}

/* One more entry behind a sequence: five cycles on the way from one state to the next, because a
 * decode step goes over every column of every sequence. */
static uint64_t fold(uint64_t state, uint64_t entry)
{
    state = (state ^ entry) * FACTOR_1;
    return state ^ state >> 32;
}

static uint64_t raw_entry(int32_t token, int32_t position)
{
    return mix((uint64_t)(uint32_t)token << 32 | (uint32_t)position, FACTOR_2);
}

static uint64_t prefix_seed(const struct fake_config *c, uint32_t prefix_len)
{
    return mix(mix(c->params.seed, SALT_PREFIX), prefix_len);
}

static uint64_t sequence_seed(const struct fake_config *c)
{
    return mix(c->params.seed, SALT_SEQUENCE);
}

void fake_context_init(struct fake_context *x, const struct fake_config *c, const int32_t *tokens,
                       const int32_t *positions, uint32_t n_prefix)
{
    uint64_t context = prefix_seed(c, n_prefix);
    for (uint32_t i = 0; i != n_prefix; i++)
        context = fold(context, raw_entry(tokens[i], positions[i]));
    *x = (struct fake_context){.state = sequence_seed(c)};
    for (uint32_t i = 0; i != n_prefix; i++) {
        x->last = mix(raw_entry(tokens[i], positions[i]), context);
        x->state = fold(x->state, x->last);
    }
}

void fake_context_add(struct fake_context *x, int32_t token, int32_t position)
{
    x->state = fold(x->state, mix(raw_entry(token, position), x->state));
    x->last = 0;
}

uint64_t fake_context_state(const struct fake_context *x)
{
    return x->last ? mix(x->state, x->last) : x->state;
}

/* ---- choosing ---- */

/* What greedy choice without bias and restrictions starts from. */
static uint64_t plain_hash(uint64_t state)
{
    return mix(state, SALT_CHOICE);
}

static uint64_t mix_float(uint64_t h, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return mix(h, bits);
}

/* Penalties look at the history, so that a wrong one shows. */
static uint64_t penalty_hash(uint64_t h, const struct plan_sampling *s, int32_t previous)
{
    bool repetition = s->repetition_penalty != 0 && s->repetition_penalty != 1;
    if (!repetition && s->presence_penalty == 0 && s->frequency_penalty == 0)
        return h;
    h = mix_float(mix_float(h, s->repetition_penalty), s->presence_penalty);
    h = mix(mix_float(h, s->frequency_penalty), s->n_history_prompt);
    for (uint32_t i = 0; i != s->n_history; i++)
        h = fold(h, (uint64_t)(uint32_t)s->history[i]);
    return previous < 0 ? h : fold(h, (uint64_t)(uint32_t)previous);
}

static uint64_t sampling_hash(uint64_t state, const struct plan_sampling *s, int32_t previous)
{
    uint64_t h = penalty_hash(plain_hash(state), s, previous);
    for (uint32_t i = 0; i != s->n_bias; i++)
        h = mix_float(mix(h, (uint64_t)(uint32_t)s->bias[i].token), s->bias[i].bias);
    if (s->top_k == 1)
        return h;
    h = mix(mix(h, SALT_SAMPLING), s->seed);
    h = mix(mix(h, s->request), (uint64_t)s->choice << 32 | s->output_index);
    h = mix_float(mix(h, s->top_k), s->temperature);
    return mix_float(mix_float(h, s->top_p), s->min_p);
}

static bool is_allowed(int32_t token, const struct plan_sampling *s)
{
    for (uint32_t i = 0; i != s->n_forbidden; i++)
        if (token >= s->forbidden[i].begin && token < s->forbidden[i].end)
            return false;
    for (uint32_t i = 0; i != s->n_banned; i++)
        if (token == s->banned[i])
            return false;
    return true;
}

static int32_t text_token(const struct fake_config *c, uint64_t h)
{
    uint32_t n = (uint32_t)(c->text_end - c->text_begin);
    return c->text_begin + (int32_t)((h >> 20) % n);
}

/* An end token with its probability, else a text token. */
static int32_t draw(const struct fake_config *c, uint64_t h)
{
    if (c->n_end_tokens && (double)(h % MILLION) < c->params.end_probability * MILLION)
        return c->end_tokens[(h >> 40) % c->n_end_tokens];
    return text_token(c, h);
}

static int32_t likeliest(const struct fake_config *c, uint64_t state)
{
    return draw(c, mix(plain_hash(state), 0));
}

int32_t fake_choose(const struct fake_config *c, uint64_t state, const struct plan_sampling *s,
                    int32_t previous)
{
    uint64_t h = sampling_hash(state, s, previous);
    if (s->n_bias && s->bias[0].bias > 0.0f && h % WANTED_ONE_IN == 0 &&
        is_allowed(s->bias[0].token, s))
        return s->bias[0].token;
    int32_t token = 0;
    for (uint32_t i = 0; i != DRAWS; i++) {
        token = draw(c, mix(h, i));
        if (is_allowed(token, s))
            return token;
    }
    for (uint32_t i = 0; i != c->limits.vocab; i++) { /* few are left */
        int32_t next = (int32_t)(((uint32_t)token + i) % c->limits.vocab);
        if (is_allowed(next, s))
            return next;
    }
    return token; /* all forbidden: all equal, as published */
}

float fake_token_logprob(const struct fake_config *c, uint64_t state, int32_t token)
{
    if (token == likeliest(c, state))
        return -0.25f;
    uint64_t h = mix(mix(state, SALT_LOGPROB), (uint64_t)(uint32_t)token);
    return -1.0f - (float)(h % 4096) / 256.0f;
}

static bool better(struct result_logprob a, struct result_logprob b)
{
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
}

uint32_t fake_top(const struct fake_config *c, uint64_t state, uint32_t n,
                  struct result_logprob *ret)
{
    uint32_t n_text = (uint32_t)(c->text_end - c->text_begin);
    int32_t first = likeliest(c, state);
    int32_t next = text_token(c, mix(state, SALT_LOGPROB));
    uint32_t n_ret = 0;
    for (uint32_t i = 0; n_ret != n && i <= n_text; i++) {
        int32_t token = first;
        if (i) {
            token = next;
            next = next + 1 == c->text_end ? c->text_begin : next + 1;
        }
        if (i && token == first)
            continue;
        struct result_logprob candidate = {token, fake_token_logprob(c, state, token)};
        uint32_t at = n_ret++;
        for (; at && better(candidate, ret[at - 1]); at--)
            ret[at] = ret[at - 1];
        ret[at] = candidate;
    }
    return n_ret;
}

/* ---- beams ---- */

/* Keeps the group's W best (item, token), best first; ties: lower item, then lower token. */
struct beams {
    const struct plan_beam_group *group;
    struct result_candidate *held; /* [W] */
    uint32_t n_held;
};

static bool ranks_before(const struct result_candidate *a, const struct result_candidate *b)
{
    if (a->score != b->score)
        return a->score > b->score;
    return a->item != b->item ? a->item < b->item : a->token < b->token;
}

static void hold(struct beams *b, struct result_candidate candidate)
{
    if (b->n_held == b->group->width) {
        if (!ranks_before(&candidate, &b->held[b->n_held - 1]))
            return;
        b->n_held--;
    }
    uint32_t at = b->n_held++;
    for (; at && ranks_before(&candidate, &b->held[at - 1]); at--)
        b->held[at] = b->held[at - 1];
    b->held[at] = candidate;
}

uint32_t fake_offers(const struct fake_config *c, uint64_t state, const struct plan_beam_group *g,
                     const struct plan_sampling *s, struct result_logprob *ret)
{
    uint64_t h = mix(plain_hash(state), SALT_BEAM);
    if (!g->deterministic)
        h = mix(mix(mix(h, g->seed), g->request), g->output_index);
    uint32_t n_text = (uint32_t)(c->text_end - c->text_begin), n = 0;
    if (h % MILLION < (uint64_t)(c->params.end_probability * MILLION) && c->n_end_tokens) {
        int32_t token = c->end_tokens[(h >> 40) % c->n_end_tokens];
        if (is_allowed(token, s))
            ret[n++] = (struct result_logprob){token, fake_token_logprob(c, state, token)};
    }
    int32_t token = text_token(c, h);
    for (uint32_t i = 0; i != n_text && n != g->width; i++) {
        if (is_allowed(token, s))
            ret[n++] = (struct result_logprob){token, fake_token_logprob(c, state, token)};
        token = token + 1 == c->text_end ? c->text_begin : token + 1;
    }
    return n;
}

static void offer_row(struct beams *b, const struct fake_config *c, uint64_t state, uint32_t item,
                      float beam_score, const struct plan_sampling *s)
{
    struct result_logprob offers[PLAN_MAX_BEAM_WIDTH];
    uint32_t n = fake_offers(c, state, b->group, s, offers);
    for (uint32_t i = 0; i != n; i++)
        hold(b, (struct result_candidate){item, offers[i].token, beam_score + offers[i].logprob});
}

/* ---- the cache ---- */

static uint64_t *entry_at(const struct fake *f, const uint32_t *blocks, uint32_t column)
{
    size_t block = blocks[column / PLAN_KV_BLOCK_TOKENS];
    return &f->entries[block * PLAN_KV_BLOCK_TOKENS + column % PLAN_KV_BLOCK_TOKENS];
}

/* The state of the columns [0, n), as they stand in the blocks. */
static uint64_t read_back(const struct fake *f, const uint32_t *blocks, uint32_t n)
{
    uint64_t state = sequence_seed(&f->config);
    for (uint32_t i = 0; i < n; i += PLAN_KV_BLOCK_TOKENS) {
        const uint64_t *entries = entry_at(f, blocks, i);
        uint32_t m = MIN(n - i, (uint32_t)PLAN_KV_BLOCK_TOKENS);
        for (uint32_t j = 0; j != m; j++)
            state = fold(state, entries[j]);
    }
    return state;
}

/* The whole context at once: every entry depends on all of it. */
static void run_prefix(struct fake *f, const struct k_seq *q)
{
    const int32_t *ids = f->batch.ids + q->row0, *positions = f->batch.positions + q->row0;
    uint64_t context = prefix_seed(&f->config, q->prefix_len);
    for (uint32_t i = 0; i != q->prefix_len; i++)
        context = fold(context, raw_entry(ids[i], positions[i]));
    for (uint32_t i = 0; i != q->prefix_len; i++)
        *entry_at(f, q->blocks, i) = mix(raw_entry(ids[i], positions[i]), context);
    uint64_t state = read_back(f, q->blocks, q->prefix_len);
    for (uint32_t i = 0; i != q->prefix_len; i++)
        f->states[q->row0 + i] = mix(state, *entry_at(f, q->blocks, i));
}

static void run_rows(struct fake *f, const struct k_seq *q)
{
    const int32_t *ids = f->batch.ids + q->row0, *positions = f->batch.positions + q->row0;
    uint32_t i = 0;
    if (q->start == 0 && q->prefix_len) {
        run_prefix(f, q);
        i = q->prefix_len;
    }
    uint64_t state = read_back(f, q->blocks, q->start + i);
    for (; i != q->n_rows; i++) {
        uint64_t entry = mix(raw_entry(ids[i], positions[i]), state);
        *entry_at(f, q->blocks, q->start + i) = entry;
        state = fold(state, entry);
        f->states[q->row0 + i] = state;
    }
}

/* What an entry lacks for each layer that it has not run. */
#define LAYER_STEP FACTOR_2

static void add_to_entries(struct fake *f, const struct k_seq *q, uint64_t x)
{
    for (uint32_t i = 0; i != q->n_rows; i++)
        *entry_at(f, q->blocks, i) += x;
}

/* The states of a whole item from what its blocks hold: as run_rows leaves them. */
static void read_states(struct fake *f, const struct k_seq *q)
{
    uint64_t state = read_back(f, q->blocks, q->prefix_len);
    for (uint32_t i = 0; i != q->prefix_len; i++)
        f->states[q->row0 + i] = mix(state, *entry_at(f, q->blocks, i));
    for (uint32_t i = q->prefix_len; i != q->n_rows; i++) {
        state = fold(state, *entry_at(f, q->blocks, i));
        f->states[q->row0 + i] = state;
    }
}

/* Layers of an item that begins its sequence. The first slice writes the entries, the others work
 * on what they find. */
static void run_slice(struct fake *f, const struct plan *p, const struct k_seq *q)
{
    uint32_t n_layers = f->config.limits.n_layers;
    if (p->layer_begin == 0) {
        run_rows(f, q);
        add_to_entries(f, q, (n_layers - p->layer_end) * LAYER_STEP);
        return;
    }
    add_to_entries(f, q, 0 - (p->layer_end - p->layer_begin) * LAYER_STEP);
    if (p->layer_end == n_layers)
        read_states(f, q);
}

static void copy_blocks(struct fake *f, const struct plan *p)
{
    for (uint32_t i = 0; i != p->n_copies; i++)
        memcpy(f->entries + (size_t)p->copies[i].dst * PLAN_KV_BLOCK_TOKENS,
               f->entries + (size_t)p->copies[i].src * PLAN_KV_BLOCK_TOKENS,
               PLAN_KV_BLOCK_TOKENS * sizeof *f->entries);
}

/* ---- a step ---- */

static void begin_results(struct fake *f, const struct plan *p)
{
    for (uint32_t i = 0; i != p->n_items; i++)
        f->items[i] = (struct result_item){
            .slot = p->items[i].slot, .slot_gen = p->items[i].slot_gen, .token = -1};
    memset(f->groups, 0, p->n_groups * sizeof *f->groups);
    f->result = (struct step_result){.epoch = p->epoch,
                                     .step = p->step,
                                     .items = f->items,
                                     .n_items = p->n_items,
                                     .groups = f->groups,
                                     .n_groups = p->n_groups};
}

static void take_sample(struct fake *f, const struct plan_item *it, uint64_t state, uint32_t item)
{
    struct result_item *result = &f->items[item];
    struct result_logprob *top = f->top + (size_t)item * f->config.limits.n_top_logprobs;
    bool ahead = it->tokens[0] == PLAN_TOKEN_PREVIOUS;
    int32_t previous = ahead ? f->batch.slots[it->slot].sample : -1;
    const struct plan_sampling sampling = batch_sampling(&f->batch, it);
    result->token = fake_choose(&f->config, state, &sampling, previous);
    result->logprob = fake_token_logprob(&f->config, state, result->token);
    result->top = top;
    result->n_top = fake_top(&f->config, state, sampling.n_top_logprobs, top);
}

/* Where the scores of the step go; filled front to back. */
struct cursor {
    uint32_t n_scores, n_score_tokens;
};

static void take_score(struct fake *f, const struct plan_item *it, uint64_t state,
                       const struct batch_output *o, struct cursor *at)
{
    struct result_item *result = &f->items[o->item];
    if (!result->n_scores++) {
        result->scores = f->scores + at->n_scores;
        result->score_tokens = f->score_tokens + at->n_score_tokens;
        result->score_logprobs = f->score_logprobs + at->n_score_tokens;
    }
    f->scores[at->n_scores++] = fake_token_logprob(&f->config, state, it->targets[o->item_row]);
    struct result_logprob top[PLAN_MAX_TOP_LOGPROBS] = {{0}};
    uint32_t n_top = it->sampling.n_top_logprobs;
    fake_top(&f->config, state, n_top, top); /* zeros where there are fewer texts than that */
    for (uint32_t i = 0; i != n_top; i++) {
        f->score_tokens[at->n_score_tokens] = top[i].token;
        f->score_logprobs[at->n_score_tokens++] = top[i].logprob;
    }
    result->n_score_tokens += n_top;
}

static void produce_outputs(struct fake *f, const struct plan *p)
{
    const struct batch *b = &f->batch;
    struct beams beams = {.held = f->candidates};
    struct cursor at = {0};
    for (uint32_t i = 0; i != b->n_outputs; i++) {
        const struct batch_output *o = &b->outputs[i];
        const struct plan_item *it = &p->items[o->item];
        uint64_t state = f->states[o->row];
        if (it->output == PLAN_OUTPUT_SAMPLE) {
            take_sample(f, it, state, o->item);
        } else if (it->output == PLAN_OUTPUT_SCORE) {
            take_score(f, it, state, o, &at);
        } else {
            assert(it->output == PLAN_OUTPUT_BEAM);
            const struct plan_beam_group *group = &p->groups[it->beam_group];
            if (beams.group != group) /* items of a group are neighbours */
                beams = (struct beams){.group = group, .held = beams.held + beams.n_held};
            const struct plan_sampling sampling = batch_sampling(b, it);
            offer_row(&beams, &f->config, state, o->item, it->beam_score, &sampling);
            f->groups[it->beam_group] = (struct result_group){beams.held, beams.n_held};
        }
    }
}

static int check_outputs(const struct plan *p, struct err *e)
{
    for (uint32_t i = 0; i != p->n_items; i++)
        if (p->items[i].output == PLAN_OUTPUT_LOGITS)
            return err_set(e, -EINVAL, "item %u: the fake device has no logits", i);
    return 0;
}

int fake_step(struct fake *f, const struct plan *plan, const struct step_result **ret,
              struct err *e)
{
    int r = batch_check(&f->batch, plan, e);
    if (r == 0)
        r = check_outputs(plan, e);
    if (r < 0)
        return r;
    copy_blocks(f, plan);
    batch_build(&f->batch, plan);
    begin_results(f, plan);
    for (uint32_t i = 0; i != f->batch.n_seqs; i++) { /* one per item */
        if (plan->items[i].sliced)
            run_slice(f, plan, &f->batch.seqs[i]);
        else
            run_rows(f, &f->batch.seqs[i]);
    }
    if (f->config.stage + 1 >= f->config.n_stages)
        produce_outputs(f, plan);
    batch_commit(&f->batch, plan, f->items);
    f->state_hash = plan_state_hash(f->state_hash, plan, f->items, f->groups);
    f->result.state_hash = f->state_hash;
    f->result.compute_ns = fake_step_ns(&f->config.params, plan);
    *ret = &f->result;
    return 0;
}

void fake_reset(struct fake *f)
{
    batch_reset(&f->batch);
    f->state_hash = 0;
}

/* ---- life ---- */

int fake_new(const struct fake_config *config, struct fake **ret)
{
    const struct plan_limits *l = &config->limits;
    assert(l->n_slots && l->n_blocks && config->text_begin >= 0 &&
           config->text_begin < config->text_end && (uint32_t)config->text_end <= l->vocab);
    struct fake *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->config = *config;
    f->batch.no_previous = config->n_stages > 1;
    f->entries = alloc_array(l->n_blocks, PLAN_KV_BLOCK_TOKENS * sizeof *f->entries);
    f->states = alloc_array(l->max_tokens, sizeof *f->states);
    f->items = alloc_array(l->n_slots, sizeof *f->items);
    f->top = alloc_array((size_t)l->n_slots * l->n_top_logprobs, sizeof *f->top);
    f->scores = alloc_array(l->max_tokens, sizeof *f->scores);
    size_t n_best = (size_t)l->max_tokens * l->n_top_logprobs;
    f->score_tokens = alloc_array(n_best, sizeof *f->score_tokens);
    f->score_logprobs = alloc_array(n_best, sizeof *f->score_logprobs);
    f->groups = alloc_array(l->n_slots, sizeof *f->groups);
    f->candidates = alloc_array((size_t)l->n_slots * PLAN_MAX_BEAM_WIDTH, sizeof *f->candidates);
    if (batch_init(&f->batch, l) < 0 || !f->entries || !f->states || !f->items || !f->top ||
        !f->scores || !f->score_tokens || !f->score_logprobs || !f->groups || !f->candidates) {
        fake_free(f);
        return -ENOMEM;
    }
    *ret = f;
    return 0;
}

void fake_free(struct fake *f)
{
    if (!f)
        return;
    free(f->entries);
    free(f->states);
    free(f->items);
    free(f->top);
    free(f->scores);
    free(f->score_tokens);
    free(f->score_logprobs);
    free(f->groups);
    free(f->candidates);
    batch_deinit(&f->batch);
    free(f);
}

uint64_t fake_bytes(const struct fake *f)
{
    return (uint64_t)f->config.limits.n_blocks * PLAN_KV_BLOCK_TOKENS * sizeof *f->entries;
}
