/* sampler.c: see sampler.h. The order of the steps is the published one (BaseStrategy and
 * BeamSearchStrategy of SwissArmyTransformer); docs/model.md. Arithmetic: kernels/sampling.h, which
 * the GPU's kernels share. Loops over rows: sampler_row.c. Beam groups: sampler_beam.c.
 *
 * Nothing is sorted: the k-th value and the edge of the nucleus are found by radix selection over
 * the bits of the floats, digit by digit from the top, counting tokens or adding up their weights.
 * What a cut leaves is gathered, so that what follows costs the tokens that are left.
 */
#include "worker/engine/sampler.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/sampler_impl.h"

int sampler_new(uint32_t vocab, struct sampler **ret)
{
    assert(vocab && vocab <= SAMPLING_MAX_VOCAB);
    struct sampler *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->vocab = vocab;
    s->values = alloc_array(vocab, sizeof *s->values);
    s->ids = alloc_array(vocab, sizeof *s->ids);
    s->weights = alloc_array(vocab, sizeof *s->weights);
    s->seen = alloc_array(vocab, sizeof *s->seen);
    if (!s->values || !s->ids || !s->weights || !s->seen) {
        sampler_free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void sampler_free(struct sampler *s)
{
    if (!s)
        return;
    free(s->values);
    free(s->ids);
    free(s->weights);
    free(s->seen);
    free(s);
}

uint64_t sampler_bytes(uint32_t vocab)
{
    return sizeof(struct sampler) +
           (uint64_t)vocab * (sizeof(float) + 2 * sizeof(uint32_t) + sizeof(uint64_t));
}

/* ---- the row under its strategy ---- */

void sampler_add_bias(float *row, const struct plan_sampling *p)
{
    for (uint32_t i = 0; i != p->n_bias; i++)
        row[p->bias[i].token] += p->bias[i].bias;
}

static bool penalizes(const struct plan_sampling *p, int32_t previous)
{
    bool off = (p->repetition_penalty == 0.0f || p->repetition_penalty == 1.0f) &&
               p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f;
    return !off && (p->n_history || previous >= 0);
}

/* s->seen[token]: times in the output, and a bit for being in the history at all. */
static const uint32_t in_history = UINT32_C(1) << 31;

/* One token of the history; only the first time it comes. */
static void penalize_token(struct sampler *s, const float *row, const struct plan_sampling *p,
                           int32_t token, float temperature)
{
    uint32_t seen = s->seen[token];
    if (!seen)
        return;
    s->seen[token] = 0;
    s->values[token] = sampling_penalize(row[token], p->repetition_penalty, p->frequency_penalty,
                                         p->presence_penalty, seen & ~in_history) /
                       temperature;
}

/* Costs the length of the history, not the vocabulary's. */
static void penalize(struct sampler *s, const float *row, const struct plan_sampling *p,
                     int32_t previous, float temperature)
{
    assert(p->n_history_prompt <= p->n_history);
    for (uint32_t i = 0; i != p->n_history; i++) {
        uint32_t *seen = &s->seen[p->history[i]];
        *seen = (*seen | in_history) + (i >= p->n_history_prompt);
    }
    if (previous >= 0)
        s->seen[previous] = (s->seen[previous] | in_history) + 1;
    for (uint32_t i = 0; i != p->n_history; i++)
        penalize_token(s, row, p, p->history[i], temperature);
    if (previous >= 0)
        penalize_token(s, row, p, previous, temperature);
}

static void forbid(float *values, const struct plan_sampling *p)
{
    for (uint32_t i = 0; i != p->n_forbidden; i++) {
        for (int32_t id = p->forbidden[i].begin; id < p->forbidden[i].end; id++)
            values[id] = SAMPLING_FORBIDDEN;
    }
    for (uint32_t i = 0; i != p->n_banned; i++)
        values[p->banned[i]] = SAMPLING_FORBIDDEN;
}

bool sampler_prepare(struct sampler *s, const float *row, const struct plan_sampling *p,
                     int32_t previous, float temperature)
{
    const uint32_t n = s->vocab;
    float *restrict values = s->values;
    s->n_left = n;
    s->cut = false;
    if (temperature == 1.0f) {
        memcpy(values, row, n * sizeof *values);
    } else {
        for (uint32_t i = 0; i != n; i++)
            values[i] = row[i] / temperature;
    }
    bool penalized = penalizes(p, previous);
    if (penalized)
        penalize(s, row, p, previous, temperature);
    forbid(values, p);
    return temperature != 1.0f || penalized || p->n_forbidden || p->n_banned;
}

/* ---- selection by the digits of the keys ---- */

/* Where the cumulative count (or weight) of the best keys exceeds a limit: in this key. */
struct edge {
    uint32_t key;
    uint64_t above; /* the count (or weight) of the better keys */
};

/* The digit where `above` and the bins from the top exceed `limit`, added to the edge; false: it is
 * in none of bins [least, n). */
static bool descend(const uint64_t *bins, int digit, uint32_t least, uint64_t limit, struct edge *e)
{
    uint64_t above = e->above;
    for (uint32_t bin = sampling_bins(digit); bin-- > least;) {
        if (above + bins[bin] > limit) {
            e->key |= bin << sampling_shift(digit);
            e->above = above;
            return true;
        }
        above += bins[bin];
    }
    return false;
}

/* Values further than this below the largest one are looked at only when those above do not reach
 * the limit: few tokens of a row count. */
static const float usual_distance = 8.0f;

/* The key with which the best of what is left exceed `limit`: counts without weights. false: not
 * even all of them do. */
static bool select_key(struct sampler *s, const uint64_t *weights, float max, uint64_t limit,
                       struct edge *ret)
{
    *ret = (struct edge){0};
    uint32_t least = sampling_key(max - usual_distance) >> sampling_shift(0);
    bool found = false;
    for (;;) {
        memset(s->bins, 0, sizeof s->bins);
        sampler_count(s->values, weights, s->n_left, least << sampling_shift(0), UINT32_MAX, 0,
                      s->bins);
        found = descend(s->bins, 0, least, limit, ret);
        if (found || !least)
            break;
        least = 0;
    }
    for (int digit = 1; digit != SAMPLING_DIGITS && found; digit++) {
        memset(s->bins, 0, sizeof s->bins);
        sampler_count(s->values, weights, s->n_left, ret->key, ret->key | ~sampling_decided(digit),
                      digit, s->bins);
        found = descend(s->bins, digit, 0, limit, ret);
    }
    return found;
}

/* ---- cuts ---- */

/* Keeps the keys above `key`, and the first n_equal of those equal to it. */
static void keep(struct sampler *s, uint32_t key, uint64_t n_equal, bool weighed)
{
    uint32_t n = s->cut ? s->n_left : sampler_above(s->values, s->n_left, key, s->ids);
    uint32_t n_left = 0;
    for (uint32_t i = 0; i != n; i++) {
        uint32_t at = s->cut ? i : s->ids[i];
        uint32_t found = sampling_key(s->values[at]);
        if (found < key || (found == key && !n_equal))
            continue;
        n_equal -= found == key;
        s->values[n_left] = s->values[at];
        if (weighed)
            s->weights[n_left] = s->weights[at];
        s->ids[n_left++] = s->ids[i];
    }
    s->n_left = n_left;
    s->cut = true;
}

/* The k best; equal values of the last one stay. */
static void keep_best(struct sampler *s, float max, uint32_t k)
{
    struct edge e;
    bool found = select_key(s, NULL, max, k - 1, &e);
    assert(found); /* k is below the number of tokens */
    keep(s, e.key, UINT64_MAX, false);
}

/* Best first, the first token with which the cumulative weight exceeds top_p of the sum is the last
 * that stays; equal values: the lower id comes first. */
static void keep_nucleus(struct sampler *s, float max, uint64_t sum, float top_p)
{
    struct edge e;
    uint64_t limit = sampling_limit(top_p, sum);
    if (!select_key(s, s->weights, max, limit, &e))
        return; /* a row without weights */
    uint64_t weight = sampling_weight(sampling_key_value(e.key), max);
    assert(weight); /* it took the sum above the limit */
    keep(s, e.key, (limit - e.above) / weight + 1, true);
}

static uint64_t sum_of(const uint64_t *weights, uint32_t n)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i != n; i++)
        sum += weights[i];
    return sum;
}

/* What is less than min_p times as likely as the best token goes: the best weight is 1. */
static void cut_unlikely(struct sampler *s, float min_p)
{
    int64_t least = (int64_t)sampling_fixed(min_p);
    for (uint32_t i = 0; i != s->n_left; i++)
        s->weights[i] = (int64_t)s->weights[i] < least ? 0 : s->weights[i];
}

/* A row's weights, when they are known already. */
struct weighed {
    float max;
    uint64_t sum;
};

/* Top-k, top-p, min-p on s->values: leaves the weights of what remains and returns their sum.
 * `known`: s->weights holds those of all values; else NULL. */
static uint64_t cut_row(struct sampler *s, const struct plan_sampling *p,
                        const struct weighed *known)
{
    float max = known ? known->max : sampler_maximum(s->values, s->vocab);
    bool by_rank = p->top_k && p->top_k < s->vocab;
    bool by_mass = p->top_p > 0.0f && p->top_p < 1.0f;
    if (by_rank)
        keep_best(s, max, p->top_k);
    uint64_t sum =
        known && !by_rank ? known->sum : sampler_weigh(s->values, s->n_left, max, s->weights);
    if (by_mass)
        keep_nucleus(s, max, sum, p->top_p);
    if (p->min_p > 0.0f)
        cut_unlikely(s, p->min_p);
    return by_mass || p->min_p > 0.0f ? sum_of(s->weights, s->n_left) : sum;
}

/* ---- one token ---- */

static int32_t draw(const struct sampler *s, uint64_t sum, const struct plan_sampling *p)
{
    if (!sum) { /* a row without order: the first maximum */
        float max = sampler_maximum(s->values, s->n_left);
        uint32_t first = sampler_first(s->values, s->n_left, max);
        return (int32_t)(s->cut ? s->ids[first] : first);
    }
    struct philox counter = {
        {(uint32_t)p->request, (uint32_t)(p->request >> 32), p->choice, p->output_index}};
    uint64_t target = sampling_target(philox4x32(p->seed, counter), sum);
    uint32_t at = sampler_find(s->weights, s->n_left, target);
    return (int32_t)(s->cut ? s->ids[at] : at);
}

/* Best first; equal values: the lower id. */
static void best_logprobs(const float *row, uint32_t vocab, double log_sum, uint32_t n,
                          struct result_logprob *ret)
{
    assert(n <= vocab && n <= PLAN_MAX_TOP_LOGPROBS);
    uint32_t keys[PLAN_MAX_TOP_LOGPROBS];
    uint32_t n_held = 0;
    for (uint32_t i = 0; i != vocab; i++) {
        uint32_t key = sampling_key(row[i]);
        if (n_held == n && key <= keys[n - 1])
            continue;
        uint32_t at = n_held < n ? n_held++ : n - 1;
        for (; at && key > keys[at - 1]; at--) {
            ret[at] = ret[at - 1];
            keys[at] = keys[at - 1];
        }
        ret[at].token = (int32_t)i;
        keys[at] = key;
    }
    for (uint32_t i = 0; i != n; i++)
        ret[i].logprob = sampling_logprob(row[ret[i].token], log_sum);
}

/* From a row whose weights are known (in s->weights), as far as nothing changes them. */
static int32_t choose(struct sampler *s, const float *row, const struct plan_sampling *p,
                      int32_t previous, struct weighed known)
{
    if (p->top_k == 1) {
        bool changed = penalizes(p, previous) || p->n_forbidden || p->n_banned;
        if (!changed)
            return (int32_t)sampler_first(row, s->vocab, known.max);
        sampler_prepare(s, row, p, previous, 1.0f);
        return (int32_t)sampler_first(s->values, s->vocab, sampler_maximum(s->values, s->vocab));
    }
    assert(p->temperature > 0.0f);
    bool changed = sampler_prepare(s, row, p, previous, p->temperature);
    uint64_t sum = cut_row(s, p, changed ? NULL : &known);
    return draw(s, sum, p);
}

int32_t sampler_choose(struct sampler *s, float *row, const struct plan_sampling *p,
                       int32_t previous, float *ret_logprob, struct result_logprob *ret_top)
{
    sampler_add_bias(row, p);
    struct weighed w = {.max = sampler_maximum(row, s->vocab)};
    w.sum = sampler_weigh(row, s->vocab, w.max, s->weights);
    double log_sum = sampling_log_sum(w.max, w.sum);
    if (p->n_top_logprobs)
        best_logprobs(row, s->vocab, log_sum, p->n_top_logprobs, ret_top);
    int32_t token = choose(s, row, p, previous, w);
    *ret_logprob = sampling_logprob(row[token], log_sum);
    return token;
}

void sampler_distribution(struct sampler *s, float *row, const struct plan_sampling *p,
                          int32_t previous, float *ret_probs)
{
    sampler_add_bias(row, p);
    assert(p->temperature > 0.0f);
    sampler_prepare(s, row, p, previous, p->temperature);
    uint64_t sum = cut_row(s, p, NULL);
    memset(ret_probs, 0, s->vocab * sizeof *ret_probs);
    for (uint32_t i = 0; i != s->n_left; i++)
        ret_probs[s->cut ? s->ids[i] : i] = (float)((double)s->weights[i] / (double)sum);
}

float sampler_logprob(const struct sampler *s, const float *row, int32_t token, uint32_t n_top,
                      struct result_logprob *ret_top)
{
    assert(token >= 0 && (uint32_t)token < s->vocab);
    float max = sampler_maximum(row, s->vocab);
    double log_sum = sampling_log_sum(max, sampler_weigh(row, s->vocab, max, NULL));
    if (n_top)
        best_logprobs(row, s->vocab, log_sum, n_top, ret_top);
    return sampling_logprob(row[token], log_sum);
}
