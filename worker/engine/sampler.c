/* sampler.c: see sampler.h. The order of the steps is the published one (BaseStrategy and
 * BeamSearchStrategy of SwissArmyTransformer); docs/model.md. Beam groups: sampler_beam.c.
 *
 * Nothing is sorted: the k-th value and the edge of the nucleus are found by radix selection over
 * the bits of the floats, digit by digit from the top, counting tokens or adding up their weights.
 * A row of 150528 costs one to three milliseconds.
 */
#include "worker/engine/sampler.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/detmath.h"
#include "worker/engine/philox.h"
#include "worker/engine/sampler_impl.h"

enum { LANES = 8, EXP_BLOCK = 256 };

int sampler_new(uint32_t vocab, struct sampler **ret)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->vocab = vocab;
    s->raw = alloc_array(vocab, sizeof *s->raw);
    s->weights = alloc_array(vocab, sizeof *s->weights);
    s->seen = alloc_array(vocab, sizeof *s->seen);
    if (!s->raw || !s->weights || !s->seen) {
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
    free(s->raw);
    free(s->weights);
    free(s->seen);
    free(s);
}

uint64_t sampler_bytes(uint32_t vocab)
{
    return sizeof(struct sampler) + 2 * (uint64_t)vocab * sizeof(float) +
           (uint64_t)vocab * sizeof(uint32_t);
}

/* ---- the arithmetic of a row ---- */

static float maximum(const float *row, uint32_t n)
{
    float lane[LANES];
    for (uint32_t j = 0; j != LANES; j++)
        lane[j] = row[0];
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (uint32_t j = 0; j != LANES; j++)
            lane[j] = row[i + j] > lane[j] ? row[i + j] : lane[j];
    }
    for (uint32_t j = 0; i + j < n; j++)
        lane[j] = row[i + j] > lane[j] ? row[i + j] : lane[j];
    float max = lane[0];
    for (uint32_t j = 1; j != LANES; j++)
        max = lane[j] > max ? lane[j] : max;
    return max;
}

/* The lowest id with the largest logit; 0 for a row without order (NaN). */
static int32_t first_maximum(const float *row, uint32_t n)
{
    float max = maximum(row, n);
    for (uint32_t i = 0; i != n; i++) {
        if (row[i] == max)
            return (int32_t)i;
    }
    return 0;
}

/* ret[i] = exp(row[i] - max) */
static void exp_all(const float *restrict row, uint32_t n, float max, float *restrict ret)
{
    for (uint32_t i = 0; i != n; i++)
        ret[i] = det_expf(row[i] - max);
}

double sampler_log_sum_exp(const float *row, uint32_t n)
{
    float max = maximum(row, n);
    /* Fixed lanes: the same sum whatever the compiler vectorises. */
    double lane[LANES] = {0};
    float e[EXP_BLOCK];
    for (uint32_t at = 0; at < n; at += EXP_BLOCK) {
        uint32_t count = MIN(n - at, (uint32_t)EXP_BLOCK);
        exp_all(row + at, count, max, e);
        for (uint32_t i = count; i != EXP_BLOCK; i++)
            e[i] = 0.0f;
        for (uint32_t i = 0; i != EXP_BLOCK; i += LANES) {
            for (uint32_t j = 0; j != LANES; j++)
                lane[j] += (double)e[i + j];
        }
    }
    double sum = 0.0;
    for (uint32_t j = 0; j != LANES; j++)
        sum += lane[j];
    return (double)max + det_log(sum);
}

void sampler_add_bias(float *row, const struct plan_sampling *p)
{
    for (uint32_t i = 0; i != p->n_bias; i++)
        row[p->bias[i].token] += p->bias[i].bias;
}

void sampler_forbid(float *row, const struct plan_sampling *p)
{
    for (uint32_t i = 0; i != p->n_forbidden; i++) {
        for (int32_t id = p->forbidden[i].begin; id < p->forbidden[i].end; id++)
            row[id] = SAMPLER_FORBIDDEN;
    }
    for (uint32_t i = 0; i != p->n_banned; i++)
        row[p->banned[i]] = SAMPLER_FORBIDDEN;
}

/* ---- penalties ---- */

/* s->seen[token]: times in the output, and a bit for being in the history at all. */
static const uint32_t in_history = UINT32_C(1) << 31;

/* One token of the history; only the first time it comes. */
static void penalize_token(struct sampler *s, float *row, const struct plan_sampling *p,
                           int32_t token)
{
    uint32_t seen = s->seen[token];
    if (!seen)
        return;
    s->seen[token] = 0;
    uint32_t n_output = seen & ~in_history;
    float logit = row[token];
    if (p->repetition_penalty > 0.0f && p->repetition_penalty != 1.0f)
        logit = logit > 0.0f ? logit / p->repetition_penalty : logit * p->repetition_penalty;
    if (n_output) {
        logit -= p->frequency_penalty * (float)n_output;
        logit -= p->presence_penalty;
    }
    row[token] = logit;
}

/* Costs the length of the history, not the vocabulary's. */
void sampler_penalize(struct sampler *s, float *row, const struct plan_sampling *p,
                      int32_t previous)
{
    if ((p->repetition_penalty == 0.0f || p->repetition_penalty == 1.0f) &&
        p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f)
        return;
    assert(p->n_history_prompt <= p->n_history);
    for (uint32_t i = 0; i != p->n_history; i++) {
        uint32_t *seen = &s->seen[p->history[i]];
        *seen = (*seen | in_history) + (i >= p->n_history_prompt);
    }
    if (previous >= 0)
        s->seen[previous] = (s->seen[previous] | in_history) + 1;
    for (uint32_t i = 0; i != p->n_history; i++)
        penalize_token(s, row, p, p->history[i]);
    if (previous >= 0)
        penalize_token(s, row, p, previous);
}

/* ---- order ---- */

/* Unsigned integers in the order of the floats; both zeros are one value. */
static inline uint32_t sort_key(float value)
{
    float positive_zero = value + 0.0f;
    uint32_t bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* The digits of a key, from the top. */
static const struct {
    uint32_t shift, n_bins;
} digits[] = {{21, 1 << 11}, {10, 1 << 11}, {0, 1 << 10}};
static_assert(SAMPLER_BINS == 1 << 11, "room for every digit");

/* The k-th largest key of the row, 1 <= k <= n. */
static uint32_t select_key(struct sampler *s, const float *row, uint32_t k)
{
    assert(k >= 1 && k <= s->vocab);
    uint32_t *count = s->bins.count;
    uint32_t prefix = 0; /* the bits decided so far */
    uint32_t decided = 0;
    for (size_t d = 0; d != ARRAY_LEN(digits); d++) {
        memset(count, 0, sizeof s->bins.count);
        for (uint32_t i = 0; i != s->vocab; i++) {
            uint32_t key = sort_key(row[i]);
            if ((key & decided) == prefix)
                count[key >> digits[d].shift & (digits[d].n_bins - 1)]++;
        }
        uint32_t bin = digits[d].n_bins - 1;
        while (bin && count[bin] < k)
            k -= count[bin--];
        prefix |= bin << digits[d].shift;
        decided |= (digits[d].n_bins - 1) << digits[d].shift;
    }
    return prefix;
}

/* ---- cuts ---- */

/* Tokens that stay: key above `key`, or equal to it with an id of at most `last_id`. */
struct cut {
    uint32_t key;
    int32_t last_id;
};

static const struct cut keep_all = {0, INT32_MAX};

static inline bool stays(struct cut c, uint32_t key, uint32_t id)
{
    return key > c.key || (key == c.key && (int32_t)id <= c.last_id);
}

/* s->weights[i] = exp(row[i] - maximum) for what stays, 0 for the rest; returns the sum in id
 * order. */
static double weigh(struct sampler *s, const float *row, struct cut c)
{
    exp_all(row, s->vocab, maximum(row, s->vocab), s->weights);
    double sum = 0.0;
    for (uint32_t i = 0; i != s->vocab; i++) {
        if (c.key != keep_all.key && !stays(c, sort_key(row[i]), i))
            s->weights[i] = 0.0f;
        sum += (double)s->weights[i];
    }
    return sum;
}

/* Best first, the first token with which the cumulative weight exceeds top_p of the sum is the last
 * that stays. s->weights holds the weights under `c`. */
static struct cut nucleus(struct sampler *s, const float *row, struct cut c, double sum,
                          float top_p)
{
    double limit = (double)top_p * sum;
    double *mass = s->bins.mass;
    double cumulative = 0.0; /* of the keys above the prefix */
    uint32_t prefix = 0;
    uint32_t decided = 0;
    for (size_t d = 0; d != ARRAY_LEN(digits); d++) {
        memset(mass, 0, sizeof s->bins.mass);
        for (uint32_t i = 0; i != s->vocab; i++) {
            uint32_t key = sort_key(row[i]);
            if ((key & decided) == prefix)
                mass[key >> digits[d].shift & (digits[d].n_bins - 1)] += (double)s->weights[i];
        }
        uint32_t bin = digits[d].n_bins;
        while (bin && cumulative + mass[bin - 1] <= limit)
            cumulative += mass[--bin];
        if (!bin--)
            return c; /* rounding kept the sum below the limit: everything stays */
        prefix |= bin << digits[d].shift;
        decided |= (digits[d].n_bins - 1) << digits[d].shift;
    }
    struct cut edge = {prefix, -1};
    for (uint32_t i = 0; i != s->vocab && cumulative <= limit; i++) {
        if (sort_key(row[i]) == prefix) { /* equal values: the lower id comes first */
            cumulative += (double)s->weights[i];
            edge.last_id = (int32_t)i;
        }
    }
    return edge;
}

/* What is less than min_p times as likely as the best token goes: the best weight is 1. Returns the
 * sum of what stays, in id order. */
static double cut_unlikely(struct sampler *s, float min_p)
{
    double sum = 0.0;
    for (uint32_t i = 0; i != s->vocab; i++) {
        if (s->weights[i] < min_p)
            s->weights[i] = 0.0f;
        sum += (double)s->weights[i];
    }
    return sum;
}

/* Penalties, temperature, forbidden ids, top-k, top-p, min-p: leaves the weights of what remains in
 * s->weights and returns their sum. */
static double apply_strategy(struct sampler *s, float *row, const struct plan_sampling *p,
                             int32_t previous)
{
    assert(p->temperature > 0.0f);
    sampler_penalize(s, row, p, previous);
    if (p->temperature != 1.0f) {
        for (uint32_t i = 0; i != s->vocab; i++)
            row[i] /= p->temperature;
    }
    sampler_forbid(row, p);
    struct cut c = keep_all;
    if (p->top_k && p->top_k < s->vocab)
        c = (struct cut){select_key(s, row, p->top_k), INT32_MAX};
    double sum = weigh(s, row, c);
    if (p->top_p > 0.0f && p->top_p < 1.0f)
        sum = weigh(s, row, nucleus(s, row, c, sum, p->top_p));
    if (p->min_p > 0.0f)
        sum = cut_unlikely(s, p->min_p);
    return sum;
}

/* ---- one token ---- */

static int32_t draw(const struct sampler *s, double sum, const struct plan_sampling *p)
{
    struct philox counter = {
        {(uint32_t)p->request, (uint32_t)(p->request >> 32), p->choice, p->output_index}};
    double target = philox_uniform(philox4x32(p->seed, counter)) * sum;
    double cumulative = 0.0;
    int32_t last = 0;
    for (uint32_t i = 0; i != s->vocab; i++) {
        if (!(s->weights[i] > 0.0f))
            continue;
        last = (int32_t)i;
        cumulative += (double)s->weights[i];
        if (cumulative > target)
            break;
    }
    return last;
}

static void best_logprobs(const float *row, uint32_t vocab, double lse, uint32_t n,
                          struct result_logprob *ret)
{
    assert(n <= vocab);
    uint32_t n_held = 0;
    for (uint32_t i = 0; i != vocab; i++) {
        if (n_held == n && !(row[i] > row[ret[n - 1].token]))
            continue;
        uint32_t at = n_held < n ? n_held++ : n - 1;
        for (; at && row[i] > row[ret[at - 1].token]; at--)
            ret[at] = ret[at - 1];
        ret[at].token = (int32_t)i;
    }
    for (uint32_t i = 0; i != n; i++)
        ret[i].logprob = (float)((double)row[ret[i].token] - lse);
}

int32_t sampler_choose(struct sampler *s, float *row, const struct plan_sampling *p,
                       int32_t previous, float *ret_logprob, struct result_logprob *ret_top)
{
    sampler_add_bias(row, p);
    double lse = sampler_log_sum_exp(row, s->vocab);
    if (p->n_top_logprobs)
        best_logprobs(row, s->vocab, lse, p->n_top_logprobs, ret_top);
    memcpy(s->raw, row, s->vocab * sizeof *row);
    int32_t token;
    if (p->top_k == 1) {
        sampler_penalize(s, row, p, previous);
        sampler_forbid(row, p);
        token = first_maximum(row, s->vocab);
    } else {
        double sum = apply_strategy(s, row, p, previous);
        token = draw(s, sum, p);
    }
    *ret_logprob = (float)((double)s->raw[token] - lse);
    return token;
}

void sampler_distribution(struct sampler *s, float *row, const struct plan_sampling *p,
                          int32_t previous, float *ret_probs)
{
    sampler_add_bias(row, p);
    double sum = apply_strategy(s, row, p, previous);
    for (uint32_t i = 0; i != s->vocab; i++)
        ret_probs[i] = (float)((double)s->weights[i] / sum);
}

float sampler_logprob(const struct sampler *s, const float *row, int32_t token, uint32_t n_top,
                      struct result_logprob *ret_top)
{
    assert(token >= 0 && (uint32_t)token < s->vocab);
    double lse = sampler_log_sum_exp(row, s->vocab);
    if (n_top)
        best_logprobs(row, s->vocab, lse, n_top, ret_top);
    return (float)((double)row[token] - lse);
}
