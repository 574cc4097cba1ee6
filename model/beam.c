/* beam.c: see beam.h. One walk over the candidates per step, two banks of live beams that take
 * turns, and the finished list. The bans are recomputed from the tokens: a beam's record of n-grams
 * is a function of its output, so nothing needs copying when beams split. */
#include "model/beam.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct live_beam {
    int32_t *tokens; /* [capacity]; output only */
    float score;
};

struct beam_search {
    /* owned */
    struct live_beam bank[2][BEAM_MAX];
    struct beam_hypothesis finished[BEAM_MAX + 1]; /* best first; one more while inserting */
    int32_t *prompt_tail; /* last n_tail ids of the prompt, as far as n-grams reach; or NULL */
    /* state */
    struct beam_params params; /* end_tokens and prompt: not used after _new */
    int32_t end_tokens[BEAM_MAX_END_TOKENS];
    size_t n_tail;
    size_t prompt_len;
    size_t length; /* generated tokens, the same for all live beams */
    size_t capacity;
    size_t n_finished;
    uint32_t n_live;
    uint8_t current; /* the bank of the live beams */
    bool stopped;    /* by the rule */
    bool ended;      /* beam_search_finish was called */
};

/* ---- life cycle ---- */

static int check_params(const struct beam_params *p)
{
    bool ok = p->n_beams >= 1 && p->n_beams <= BEAM_MAX && isfinite(p->length_penalty) &&
              p->n_end_tokens <= BEAM_MAX_END_TOKENS;
    return ok ? 0 : -EINVAL;
}

int beam_search_new(const struct beam_params *p, size_t prompt_len, struct beam_search **ret)
{
    int r = check_params(p);
    if (r < 0)
        return r;
    struct beam_search *b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->params = *p;
    b->prompt_len = prompt_len;
    b->n_live = 1;
    for (uint32_t i = 0; i < p->n_end_tokens; i++)
        b->end_tokens[i] = p->end_tokens[i];
    if (p->prompt && p->no_repeat_ngram > 1) {
        b->n_tail = MIN((size_t)p->no_repeat_ngram - 1, prompt_len);
        b->prompt_tail = alloc_array(b->n_tail, sizeof *b->prompt_tail);
        if (!b->prompt_tail) {
            beam_search_free(b);
            return -ENOMEM;
        }
        if (b->n_tail)
            memcpy(b->prompt_tail, p->prompt + prompt_len - b->n_tail,
                   b->n_tail * sizeof *b->prompt_tail);
    }
    *ret = b;
    return 0;
}

void beam_search_free(struct beam_search *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < BEAM_MAX; i++) {
        free(b->bank[0][i].tokens);
        free(b->bank[1][i].tokens);
    }
    for (size_t i = 0; i < b->n_finished; i++)
        free(b->finished[i].tokens);
    free(b->prompt_tail);
    free(b);
}

/* ---- live beams ---- */

uint32_t beam_search_width(const struct beam_search *b)
{
    return (MAX(1u, b->params.n_end_tokens) + 1) * b->params.n_beams;
}

uint32_t beam_search_n_live(const struct beam_search *b)
{
    return b->n_live;
}

static const struct live_beam *live(const struct beam_search *b, uint32_t beam)
{
    assert(beam < b->n_live);
    return &b->bank[b->current][beam];
}

float beam_search_score(const struct beam_search *b, uint32_t beam)
{
    return live(b, beam)->score;
}

const int32_t *beam_search_tokens(const struct beam_search *b, uint32_t beam, size_t *ret_n)
{
    *ret_n = b->length;
    return live(b, beam)->tokens;
}

int32_t beam_search_last_token(const struct beam_search *b, uint32_t beam)
{
    const struct live_beam *l = live(b, beam);
    return b->length ? l->tokens[b->length - 1] : -1;
}

static bool is_end(const struct beam_search *b, int32_t token)
{
    for (uint32_t i = 0; i < b->params.n_end_tokens; i++) {
        if (b->end_tokens[i] == token)
            return true;
    }
    return false;
}

/* ---- bans ---- */

/* Token `index` of the beam's output; negative indices reach back into the prompt. -1: unknown. */
static int32_t token_at(const struct beam_search *b, const struct live_beam *l, ptrdiff_t index)
{
    if (index >= 0)
        return l->tokens[index];
    index += (ptrdiff_t)b->n_tail;
    return index >= 0 ? b->prompt_tail[index] : -1;
}

/* Whether the n - 1 tokens in front of output token `index` are the last n - 1 of the beam. Unknown
 * tokens match nothing. */
static bool same_prefix(const struct beam_search *b, const struct live_beam *l, ptrdiff_t index)
{
    for (ptrdiff_t back = 1; back < (ptrdiff_t)b->params.no_repeat_ngram; back++) {
        int32_t now = token_at(b, l, (ptrdiff_t)b->length - back);
        if (now == -1 || now != token_at(b, l, index - back))
            return false;
    }
    return true;
}

struct id_list {
    int32_t *ids;
    size_t n, max;
};

/* Each id once, as far as there is room; `n` counts on. */
static void add_id(struct id_list *l, int32_t id)
{
    for (size_t i = 0; i < MIN(l->n, l->max); i++) {
        if (l->ids[i] == id)
            return;
    }
    if (l->n < l->max)
        l->ids[l->n] = id;
    l->n++;
}

size_t beam_search_bans(const struct beam_search *b, uint32_t beam, int32_t *ret_ids, size_t max)
{
    const struct live_beam *l = live(b, beam);
    struct id_list bans = {ret_ids, 0, max};
    if (b->length < b->params.min_new_tokens) {
        for (uint32_t i = 0; i < b->params.n_end_tokens; i++)
            add_id(&bans, b->end_tokens[i]);
    }
    if (b->params.no_repeat_ngram < 2 || b->prompt_len + b->length <= b->params.no_repeat_ngram)
        return bans.n;
    for (size_t i = 0; i < b->length; i++) {
        if (same_prefix(b, l, (ptrdiff_t)i))
            add_id(&bans, l->tokens[i]);
    }
    return bans.n;
}

/* ---- the finished list ---- */

/* score / ((5 + length) / 6) ^ length_penalty: the length term of OpenNMT. */
static double penalize(const struct beam_search *b, float score, size_t length)
{
    return (double)score / pow((5.0 + (double)length) / 6.0, b->params.length_penalty);
}

/* Behind all strictly greater keys, in front of equal ones; the list keeps the B best. `last` >= 0
 * is appended to the beam's tokens. */
static int add_finished(struct beam_search *b, const struct live_beam *l, int32_t last, float score)
{
    size_t n = b->length + (last >= 0);
    struct beam_hypothesis h = {
        .n = n,
        .score = score,
        .key = penalize(b, score, b->prompt_len + n),
    };
    size_t at = b->n_finished;
    while (at > 0 && !(h.key < b->finished[at - 1].key))
        at--;
    if (at == b->params.n_beams)
        return 0; /* worse than all of a full list */
    h.tokens = alloc_array(n, sizeof *h.tokens);
    if (!h.tokens)
        return -ENOMEM;
    if (b->length)
        memcpy(h.tokens, l->tokens, b->length * sizeof *h.tokens);
    if (last >= 0)
        h.tokens[b->length] = last;
    memmove(&b->finished[at + 1], &b->finished[at], (b->n_finished - at) * sizeof h);
    b->finished[at] = h;
    if (b->n_finished == b->params.n_beams)
        free(b->finished[b->n_finished].tokens);
    else
        b->n_finished++;
    return 0;
}

size_t beam_search_n_results(const struct beam_search *b)
{
    return b->n_finished;
}

const struct beam_hypothesis *beam_search_result(const struct beam_search *b, size_t i)
{
    assert(i < b->n_finished);
    return &b->finished[i];
}

/* ---- the step ---- */

static int check_candidates(const struct beam_search *b, const struct beam_candidate *c, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (c[i].beam >= b->n_live || c[i].token < 0 || isnan(c[i].score) ||
            (i && c[i].score > c[i - 1].score))
            return -EINVAL;
    }
    return 0;
}

/* Room for one more token in every beam of both banks. */
static int reserve(struct beam_search *b)
{
    if (b->length < b->capacity)
        return 0;
    size_t capacity = MAX(b->capacity * 2, (size_t)64);
    for (size_t i = 0; i < 2 * (size_t)b->params.n_beams; i++) {
        struct live_beam *l = &b->bank[i & 1][i >> 1];
        int32_t *tokens = reallocarray(l->tokens, capacity, sizeof *tokens);
        if (!tokens)
            return -ENOMEM;
        l->tokens = tokens;
    }
    b->capacity = capacity;
    return 0;
}

static void add_live(struct beam_search *b, struct live_beam *to, const struct beam_candidate *c)
{
    if (b->length)
        memcpy(to->tokens, live(b, c->beam)->tokens, b->length * sizeof *to->tokens);
    to->tokens[b->length] = c->token;
    to->score = c->score;
}

int beam_search_advance(struct beam_search *b, const struct beam_candidate *candidates, size_t n,
                        uint32_t *ret_parent, bool *ret_done)
{
    assert(!b->stopped && !b->ended);
    int r = check_candidates(b, candidates, n);
    if (r == 0)
        r = reserve(b);
    if (r < 0)
        return r;
    struct live_beam *next = b->bank[!b->current];
    uint32_t n_next = 0;
    for (size_t i = 0; i < n; i++) {
        const struct beam_candidate *c = &candidates[i];
        if (is_end(b, c->token)) {
            r = add_finished(b, live(b, c->beam), c->token, c->score);
            if (r < 0)
                return r;
        } else if (n_next < b->params.n_beams) {
            add_live(b, &next[n_next], c);
            ret_parent[n_next++] = c->beam;
        } else {
            break;
        }
    }
    b->length++;
    b->current = !b->current;
    b->n_live = n_next;
    /* Candidates come best first, so the first live beam has the best score. b->length counts the
     * token of this step: prompt_len + length is the published n + 1. */
    b->stopped = n_next == 0 || (b->n_finished == b->params.n_beams &&
                                 b->finished[b->n_finished - 1].key >=
                                     penalize(b, next[0].score, b->prompt_len + b->length));
    *ret_done = b->stopped;
    return 0;
}

int beam_search_finish(struct beam_search *b)
{
    if (b->ended)
        return 0;
    b->ended = true;
    if (b->stopped || b->length == 0 || (!b->params.consider_end && b->n_finished))
        return 0;
    for (uint32_t i = 0; i < b->n_live; i++) {
        int r = add_finished(b, live(b, i), -1, live(b, i)->score);
        if (r < 0)
            return r;
    }
    return 0;
}
