/* fake_engine.c: see fake_engine.h. */
#include "fake_engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_RESULTS = 8 }; /* steps out at once, and one */

struct cell {
    int32_t token, position;
    bool written;
    uint64_t prefix; /* of a cell in a prefix: hash of all of it, which all of its rows depend on */
};

struct slot {
    bool used;
    uint32_t gen, length, prefix_len;
    int32_t sample;   /* of the last step; -1 = it did not sample */
    int32_t *history; /* [max_seq] what penalties look at */
    uint32_t n_history;
    uint32_t *table; /* [plan_max_blocks] */
    uint32_t n_blocks;
    bool has_sampling;
    struct plan_sampling sampling; /* its lists are the request's */
};

struct results {
    struct result_item *items;
    struct result_group *groups;
    struct result_candidate *candidates;
    struct result_logprob *top;
    float *scores;
    int32_t *score_tokens; /* [max_tokens, PLAN_MAX_TOP_LOGPROBS] */
    float *score_logprobs;
    struct step_result result;
};

struct fake_engine {
    struct plan_limits limits;
    struct cell *cells; /* [n_blocks, 16] */
    struct slot *slots;
    int32_t *histories;
    uint32_t *tables;
    uint64_t epoch, step;
    struct {
        uint32_t slot, gen, n_tokens;
        uint32_t next_layer; /* 0 = none is under way */
    } sliced;
    struct results results[N_RESULTS];
    struct results *now;
};

static void require(bool ok, const char *what, const struct plan *p, uint32_t item)
{
    if (ok)
        return;
    fprintf(stderr, "fake engine: step %llu item %u: %s\n", (unsigned long long)p->step, item,
            what);
    abort();
}

static void forget_slots(struct fake_engine *f)
{
    for (uint32_t i = 0; i != f->limits.n_slots; i++)
        f->slots[i] = (struct slot){.history = f->histories + (size_t)i * f->limits.max_seq,
                                    .table = f->tables + (size_t)i * plan_max_blocks(&f->limits)};
}

struct fake_engine *fake_engine_new(const struct plan_limits *limits)
{
    struct fake_engine *f = calloc(1, sizeof *f);
    f->limits = *limits;
    f->cells = calloc((size_t)limits->n_blocks * PLAN_KV_BLOCK_TOKENS, sizeof *f->cells);
    f->slots = calloc(limits->n_slots, sizeof *f->slots);
    f->histories = calloc((size_t)limits->n_slots * limits->max_seq, sizeof *f->histories);
    f->tables = calloc((size_t)limits->n_slots * plan_max_blocks(limits), sizeof *f->tables);
    forget_slots(f);
    for (size_t i = 0; i != N_RESULTS; i++) {
        struct results *r = &f->results[i];
        r->items = calloc(limits->n_slots, sizeof *r->items);
        r->groups = calloc(limits->n_slots, sizeof *r->groups);
        r->candidates =
            calloc((size_t)limits->n_slots * 2 * PLAN_MAX_BEAM_WIDTH, sizeof *r->candidates);
        r->top = calloc((size_t)limits->n_slots * PLAN_MAX_TOP_LOGPROBS, sizeof *r->top);
        r->scores = calloc(limits->max_tokens, sizeof *r->scores);
        size_t n_best = (size_t)limits->max_tokens * PLAN_MAX_TOP_LOGPROBS;
        r->score_tokens = calloc(n_best, sizeof *r->score_tokens);
        r->score_logprobs = calloc(n_best, sizeof *r->score_logprobs);
    }
    return f;
}

void fake_engine_free(struct fake_engine *f)
{
    free(f->cells);
    free(f->slots);
    free(f->histories);
    free(f->tables);
    for (size_t i = 0; i != N_RESULTS; i++) {
        free(f->results[i].items);
        free(f->results[i].groups);
        free(f->results[i].candidates);
        free(f->results[i].top);
        free(f->results[i].scores);
        free(f->results[i].score_tokens);
        free(f->results[i].score_logprobs);
    }
    free(f);
}

uint64_t fake_hash(uint64_t hash, int32_t token, int32_t position)
{
    hash ^= (uint64_t)(uint32_t)token << 32 | (uint32_t)position;
    hash *= 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    return fake_hash(h, (int32_t)(v >> 32), (int32_t)v);
}

static bool allowed(int32_t token, const struct plan_sampling *s)
{
    for (uint32_t i = 0; i != s->n_banned; i++) {
        if (s->banned[i] == token)
            return false;
    }
    for (uint32_t i = 0; i != s->n_forbidden; i++) {
        if (token >= s->forbidden[i].begin && token < s->forbidden[i].end)
            return false;
    }
    return true;
}

static int32_t pick(uint64_t h, const struct plan_sampling *s, uint32_t vocab)
{
    /* The first bias stands for a wanted token: one draw in four is that one. */
    if (s->n_bias && h % 4 == 0 && allowed(s->bias[0].token, s))
        return s->bias[0].token;
    uint32_t token = (uint32_t)(h >> 16) % vocab;
    while (!allowed((int32_t)token, s))
        token = (token + 1) % vocab;
    return (int32_t)token;
}

int32_t fake_sample(uint64_t hash, const struct plan_sampling *s, uint32_t vocab)
{
    uint64_t h = mix(hash, s->seed);
    h = mix(h, s->request << 40 ^ (uint64_t)s->choice << 20 ^ s->output_index);
    if (s->top_k == 1)
        h = hash;
    return pick(h, s, vocab);
}

uint64_t fake_penalize(uint64_t hash, const struct plan_sampling *s, int32_t previous)
{
    if ((s->repetition_penalty == 0 || s->repetition_penalty == 1) && s->presence_penalty == 0 &&
        s->frequency_penalty == 0)
        return hash;
    hash = mix(hash, s->n_history_prompt);
    assert(s->history || !s->n_history);
    for (uint32_t i = 0; i != s->n_history; i++)
        hash = mix(hash, (uint64_t)s->history[i]);
    return previous >= 0 ? mix(hash, (uint64_t)previous) : hash;
}

float fake_logprob(uint64_t hash, int32_t token)
{
    return -(float)(mix(hash, (uint64_t)token) % 4096) / 256;
}

void fake_candidates(uint64_t hash, float score, const struct plan_sampling *s, uint32_t vocab,
                     uint32_t width, uint32_t item, struct result_candidate *ret)
{
    for (uint32_t i = 0; i != width; i++) {
        hash = mix(hash, i);
        int32_t token = pick(hash, s, vocab);
        for (uint32_t j = 0; j != i; j++) { /* distinct */
            if (ret[j].token == token) {
                token = pick(hash = mix(hash, j), s, vocab);
                j = (uint32_t)-1;
            }
        }
        ret[i] = (struct result_candidate){
            .item = item, .token = token, .score = score - (float)(hash >> 40) / 0x1p22f};
    }
    fake_sort_candidates(ret, width);
}

void fake_sort_candidates(struct result_candidate *c, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        struct result_candidate v = c[i];
        uint32_t j = i;
        for (; j && c[j - 1].score < v.score; j--)
            c[j] = c[j - 1];
        c[j] = v;
    }
}

/* What the worker's engine checks about a slot (worker/engine/batch.c). */
static void check_slot(struct fake_engine *f, const struct plan *p, uint32_t i)
{
    const struct plan_item *it = &p->items[i];
    struct slot *s = &f->slots[it->slot];
    bool continues = s->used && it->start > 0 && it->slot_gen == s->gen;
    if (it->tokens[0] == PLAN_TOKEN_PREVIOUS)
        require(continues && it->start == s->length && s->sample >= 0, "no previous sample", p, i);
    if (continues) {
        require(it->output == PLAN_OUTPUT_BEAM || it->start == s->length, "wrong start", p, i);
        require(it->prefix_len == s->prefix_len, "prefix changed", p, i);
    } else {
        require(!s->used || it->slot_gen > s->gen, "old generation", p, i);
        require(it->start == 0 || it->start >= it->prefix_len, "starts inside its prefix", p, i);
    }
    uint32_t n_history = continues ? s->n_history : 0;
    uint32_t n_blocks = continues ? s->n_blocks : 0;
    require(it->n_blocks_kept == 0 || it->n_blocks_kept == n_blocks, "keeps another table", p, i);
    s->used = true;
    s->gen = it->slot_gen;
    s->length = it->start + it->n_tokens;
    s->prefix_len = it->prefix_len;
    s->n_history = n_history;
    s->n_blocks = plan_blocks_total(it);
    s->has_sampling = continues && s->has_sampling;
    if (plan_item_chooses(it)) {
        const struct plan_sampling *sampling = &it->sampling;
        require(!sampling->kept || s->has_sampling, "keeps other parameters", p, i);
        if (!sampling->kept)
            s->sampling = *sampling;
        s->has_sampling = sampling->kept || sampling->n_bias == 0;
        require(sampling->n_history_kept <= n_history, "keeps more than there is", p, i);
        for (uint32_t k = 0; k != sampling->n_history; k++)
            s->history[sampling->n_history_kept + k] = sampling->history[k];
        s->n_history = plan_history_total(sampling);
    }
}

/* Before anything else looks at it: the item with its whole table. A slice brings all of it, each
 * time, and does not begin the slot's life. */
static void keep_table(struct fake_engine *f, const struct plan_item *it)
{
    if (it->n_blocks)
        memcpy(f->slots[it->slot].table + it->n_blocks_kept, it->blocks,
               it->n_blocks * sizeof *it->blocks);
}

/* The next layers of the sliced item, which are the last ones when this says true. */
static bool check_slice(struct fake_engine *f, const struct plan *p, uint32_t i)
{
    const struct plan_item *it = &p->items[i];
    require(i + 1 == p->n_items, "one item is sliced at a time", p, i);
    if (p->layer_begin == 0) {
        struct slot *s = &f->slots[it->slot];
        require(!s->used || it->slot_gen > s->gen, "old generation", p, i);
        f->sliced.slot = it->slot;
        f->sliced.gen = it->slot_gen;
        f->sliced.n_tokens = it->n_tokens;
    } else {
        require(f->sliced.next_layer == p->layer_begin, "wrong layers", p, i);
        require(f->sliced.slot == it->slot && f->sliced.gen == it->slot_gen &&
                    f->sliced.n_tokens == it->n_tokens,
                "another sliced item", p, i);
    }
    bool last = p->layer_end == f->limits.n_layers;
    f->sliced.next_layer = last ? 0 : p->layer_end;
    require(last || it->output == PLAN_OUTPUT_NONE, "an output before the last layer", p, i);
    return last;
}

static struct cell *cell_at(struct fake_engine *f, const struct plan_item *it, uint32_t index)
{
    uint32_t block = f->slots[it->slot].table[index / PLAN_KV_BLOCK_TOKENS];
    return &f->cells[(size_t)block * PLAN_KV_BLOCK_TOKENS + index % PLAN_KV_BLOCK_TOKENS];
}

static uint64_t hash_row(struct fake_engine *f, const struct plan *p, uint32_t i, uint32_t row)
{
    const struct plan_item *it = &p->items[i];
    uint64_t hash = FAKE_HASH_SEED, prefix = 0;
    for (uint32_t k = 0; k <= it->start + row; k++) {
        const struct cell *c = cell_at(f, it, k);
        require(c->written, "reads a cell that nobody wrote", p, i);
        hash = fake_hash(hash, c->token, c->position);
        if (k + 1 == it->prefix_len)
            prefix = hash;
    }
    for (uint32_t k = 0; k <= it->start + row; k++)
        require(cell_at(f, it, k)->prefix == (k < it->prefix_len ? prefix : 0),
                "reads a cell of another prefix", p, i);
    return hash;
}

/* The k-th best token of a row is its target plus k. */
static void score_item(struct fake_engine *f, const struct plan *p, uint32_t i,
                       struct result_item *r, float *scores)
{
    const struct plan_item *it = &p->items[i];
    size_t first = (size_t)(scores - f->now->scores) * PLAN_MAX_TOP_LOGPROBS;
    int32_t *tokens = f->now->score_tokens + first;
    float *logprobs = f->now->score_logprobs + first;
    r->scores = scores;
    r->score_tokens = tokens;
    r->score_logprobs = logprobs;
    for (uint32_t k = 0; k != it->n_tokens; k++) {
        if (it->targets[k] < 0)
            continue;
        scores[r->n_scores++] = fake_logprob(hash_row(f, p, i, k), it->targets[k]);
        for (uint32_t j = 0; j != it->sampling.n_top_logprobs; j++) {
            tokens[r->n_score_tokens] = (it->targets[k] + (int32_t)j) % (int32_t)f->limits.vocab;
            logprobs[r->n_score_tokens++] = -(float)j;
        }
    }
}

/* With what the slot keeps. */
static struct plan_sampling sampling_of(const struct fake_engine *f, const struct plan_item *it)
{
    const struct slot *slot = &f->slots[it->slot];
    struct plan_sampling s = slot->sampling;
    s.output_index = it->sampling.output_index;
    s.banned = it->sampling.banned;
    s.n_banned = it->sampling.n_banned;
    s.n_history_prompt = it->sampling.n_history_prompt;
    s.history = slot->history;
    s.n_history = slot->n_history;
    return s;
}

static void run_item(struct fake_engine *f, const struct plan *p, uint32_t i, float **scores)
{
    const struct plan_item *it = &p->items[i];
    struct result_item *r = &f->now->items[i];
    struct slot *slot = &f->slots[it->slot];
    int32_t previous = it->tokens[0] == PLAN_TOKEN_PREVIOUS ? slot->sample : -1;
    *r = (struct result_item){.slot = it->slot, .slot_gen = it->slot_gen, .token = -1};
    if (it->output == PLAN_OUTPUT_SAMPLE) {
        uint64_t hash = hash_row(f, p, i, it->n_tokens - 1);
        struct plan_sampling whole = sampling_of(f, it);
        hash = fake_penalize(hash, &whole, previous);
        r->token = fake_sample(hash, &whole, f->limits.vocab);
        r->logprob = fake_logprob(hash, r->token);
        struct result_logprob *top = &f->now->top[(size_t)i * PLAN_MAX_TOP_LOGPROBS];
        for (uint32_t k = 0; k != whole.n_top_logprobs; k++)
            top[k] = (struct result_logprob){(int32_t)k, -(float)k};
        r->top = top;
        r->n_top = whole.n_top_logprobs;
    } else if (it->output == PLAN_OUTPUT_SCORE) {
        score_item(f, p, i, r, *scores);
        *scores += r->n_scores;
    }
    slot->sample = r->token;
}

static struct result_candidate *run_group(struct fake_engine *f, const struct plan *p, uint32_t g,
                                          struct result_candidate *out)
{
    uint32_t n = 0, width = p->groups[g].width;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        if (it->output != PLAN_OUTPUT_BEAM || it->beam_group != g)
            continue;
        uint64_t hash = hash_row(f, p, i, it->n_tokens - 1);
        struct plan_sampling whole = sampling_of(f, it);
        fake_candidates(hash, it->beam_score, &whole, f->limits.vocab, width, i, out + n);
        n += width;
        fake_sort_candidates(out, n);
        n = n < width ? n : width;
    }
    f->now->groups[g] = (struct result_group){out, n};
    return out + n;
}

const struct step_result *fake_engine_step(struct fake_engine *f, const struct plan *p)
{
    struct err e = ERR_INIT;
    if (plan_validate(p, &f->limits, &e) < 0)
        require(false, e.message, p, 0);
    if (p->epoch != f->epoch) {
        forget_slots(f);
        f->epoch = p->epoch;
        f->step = 0;
        f->sliced.next_layer = 0;
    }
    require(p->step == f->step + 1, "step out of order", p, 0);
    f->step = p->step;
    for (uint32_t i = 0; i != p->n_copies; i++)
        memcpy(&f->cells[(size_t)p->copies[i].dst * PLAN_KV_BLOCK_TOKENS],
               &f->cells[(size_t)p->copies[i].src * PLAN_KV_BLOCK_TOKENS],
               PLAN_KV_BLOCK_TOKENS * sizeof *f->cells);
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        bool runs = !it->sliced || check_slice(f, p, i);
        if (runs)
            check_slot(f, p, i);
        keep_table(f, it);
        /* Slices write their cells in every layer: the first one's must be there at the end. */
        for (uint32_t k = 0; k != it->n_tokens && (!it->sliced || p->layer_begin == 0); k++) {
            int32_t token =
                it->tokens[k] == PLAN_TOKEN_PREVIOUS ? f->slots[it->slot].sample : it->tokens[k];
            *cell_at(f, it, it->start + k) = (struct cell){token, it->positions[k], true, 0};
        }
        uint64_t prefix = FAKE_HASH_SEED;
        for (uint32_t k = 0; it->start == 0 && k != it->prefix_len; k++)
            prefix = fake_hash(prefix, it->tokens[k], it->positions[k]);
        for (uint32_t k = 0; it->start == 0 && k != it->prefix_len; k++)
            cell_at(f, it, k)->prefix = prefix;
    }
    f->now = &f->results[p->step % N_RESULTS];
    float *scores = f->now->scores;
    for (uint32_t i = 0; i != p->n_items; i++)
        run_item(f, p, i, &scores);
    struct result_candidate *candidates = f->now->candidates;
    for (uint32_t g = 0; g != p->n_groups; g++)
        candidates = run_group(f, p, g, candidates);
    f->now->result = (struct step_result){
        .epoch = p->epoch,
        .step = p->step,
        .items = f->now->items,
        .n_items = p->n_items,
        .groups = f->now->groups,
        .n_groups = p->n_groups,
        .state_hash = plan_state_hash(0, p, f->now->items, f->now->groups),
    };
    return &f->now->result;
}
