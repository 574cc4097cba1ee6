/* sampler.c: see sampler.h. The order of the steps is the published one (BaseStrategy and
 * BeamSearchStrategy of SwissArmyTransformer); docs/model.md. Beam groups: sampler_beam.c.
 *
 * No full sort of the vocabulary unless a nucleus really needs it: the k-th value comes from a
 * radix selection over the bits of the floats, and top-p sorts the best 512 first, then eight times
 * as many until the nucleus is complete.
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

enum { NUCLEUS_FIRST = 512, NUCLEUS_GROWTH = 8, LANES = 8 };

int sampler_new(uint32_t vocab, struct sampler **ret)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->vocab = vocab;
    s->raw = alloc_array(vocab, sizeof *s->raw);
    s->weights = alloc_array(vocab, sizeof *s->weights);
    s->order = alloc_array(vocab, sizeof *s->order);
    s->order_tmp = alloc_array(vocab, sizeof *s->order_tmp);
    if (!s->raw || !s->weights || !s->order || !s->order_tmp) {
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
    free(s->order);
    free(s->order_tmp);
    free(s);
}

uint64_t sampler_bytes(uint32_t vocab)
{
    return sizeof(struct sampler) +
           (uint64_t)vocab * (2 * sizeof(float) + 2 * sizeof(struct sampler_key));
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

double sampler_log_sum_exp(const float *row, uint32_t n)
{
    float max = maximum(row, n);
    /* Fixed lanes: the same sum whatever the compiler vectorises. */
    double lane[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (uint32_t j = 0; j != LANES; j++)
            lane[j] += (double)det_expf(row[i + j] - max);
    }
    for (uint32_t j = 0; i + j < n; j++)
        lane[j] += (double)det_expf(row[i + j] - max);
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

/* ---- order ---- */

/* Unsigned integers in the order of the floats; both zeros are one value. */
static inline uint32_t sort_key(float value)
{
    float positive_zero = value + 0.0f;
    uint32_t bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* The k-th largest key of the row, 1 <= k <= n: three passes over 11, 11 and 10 bits. */
static uint32_t select_key(struct sampler *s, const float *row, uint32_t k)
{
    static const struct {
        uint32_t shift, bits;
    } digits[] = {{21, 11}, {10, 11}, {0, 10}};
    assert(k >= 1 && k <= s->vocab);
    uint32_t prefix = 0; /* the bits decided so far */
    uint32_t decided = 0;
    for (size_t d = 0; d != ARRAY_LEN(digits); d++) {
        uint32_t n_bins = 1u << digits[d].bits;
        memset(s->histogram, 0, n_bins * sizeof *s->histogram);
        for (uint32_t i = 0; i != s->vocab; i++) {
            uint32_t key = sort_key(row[i]);
            if ((key & decided) == prefix)
                s->histogram[key >> digits[d].shift & (n_bins - 1)]++;
        }
        uint32_t bin = n_bins - 1;
        while (bin && s->histogram[bin] < k)
            k -= s->histogram[bin--];
        prefix |= bin << digits[d].shift;
        decided |= (n_bins - 1) << digits[d].shift;
    }
    return prefix;
}

/* Sorts s->order[0..n) by descending key; equal keys keep their order. Four passes of 8 bits, so
 * that the result is in s->order again. */
static void sort_order(struct sampler *s, uint32_t n)
{
    struct sampler_key *from = s->order;
    struct sampler_key *to = s->order_tmp;
    for (uint32_t shift = 0; shift != 32; shift += 8) {
        uint32_t at[256] = {0};
        for (uint32_t i = 0; i != n; i++)
            at[255 - (from[i].key >> shift & 255)]++;
        uint32_t begin = 0;
        for (uint32_t b = 0; b != 256; b++) {
            uint32_t count = at[b];
            at[b] = begin;
            begin += count;
        }
        for (uint32_t i = 0; i != n; i++)
            to[at[255 - (from[i].key >> shift & 255)]++] = from[i];
        struct sampler_key *swap = from;
        from = to;
        to = swap;
    }
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
    float max = maximum(row, s->vocab);
    for (uint32_t i = 0; i != s->vocab; i++)
        s->weights[i] = det_expf(row[i] - max);
    if (c.key != keep_all.key) {
        for (uint32_t i = 0; i != s->vocab; i++) {
            if (!stays(c, sort_key(row[i]), i))
                s->weights[i] = 0.0f;
        }
    }
    double sum = 0.0;
    for (uint32_t i = 0; i != s->vocab; i++)
        sum += (double)s->weights[i];
    return sum;
}

/* Best first, the first token with which the cumulative weight exceeds top_p of the sum is the last
 * that stays. s->weights holds the weights under `c`. */
static struct cut nucleus(struct sampler *s, const float *row, struct cut c, double sum,
                          float top_p)
{
    double limit = (double)top_p * sum;
    for (uint32_t want = NUCLEUS_FIRST;; want *= NUCLEUS_GROWTH) {
        bool all = want >= s->vocab;
        uint32_t least = all ? c.key : MAX(c.key, select_key(s, row, want));
        uint32_t n = 0;
        for (uint32_t i = 0; i != s->vocab; i++) {
            uint32_t key = sort_key(row[i]);
            if (key >= least && stays(c, key, i))
                s->order[n++] = (struct sampler_key){key, i};
        }
        sort_order(s, n);
        double cumulative = 0.0;
        for (uint32_t i = 0; i != n; i++) {
            cumulative += (double)s->weights[s->order[i].id];
            if (cumulative > limit)
                return (struct cut){s->order[i].key, (int32_t)s->order[i].id};
        }
        if (least == c.key)
            return c; /* that was everything: rounding kept the sum below the limit */
    }
}

/* Temperature, forbidden ids, top-k, top-p: leaves the weights of what remains in s->weights and
 * returns their sum. */
static double apply_strategy(struct sampler *s, float *row, const struct plan_sampling *p)
{
    assert(p->temperature > 0.0f);
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
                       float *ret_logprob, struct result_logprob *ret_top)
{
    sampler_add_bias(row, p);
    double lse = sampler_log_sum_exp(row, s->vocab);
    if (p->n_top_logprobs)
        best_logprobs(row, s->vocab, lse, p->n_top_logprobs, ret_top);
    memcpy(s->raw, row, s->vocab * sizeof *row);
    int32_t token;
    if (p->top_k == 1) {
        sampler_forbid(row, p);
        token = first_maximum(row, s->vocab);
    } else {
        double sum = apply_strategy(s, row, p);
        token = draw(s, sum, p);
    }
    *ret_logprob = (float)((double)s->raw[token] - lse);
    return token;
}

void sampler_distribution(struct sampler *s, float *row, const struct plan_sampling *p,
                          float *ret_probs)
{
    sampler_add_bias(row, p);
    double sum = apply_strategy(s, row, p);
    for (uint32_t i = 0; i != s->vocab; i++)
        ret_probs[i] = (float)((double)s->weights[i] / sum);
}

float sampler_logprob(const struct sampler *s, const float *row, int32_t token)
{
    assert(token >= 0 && (uint32_t)token < s->vocab);
    return (float)((double)row[token] - sampler_log_sum_exp(row, s->vocab));
}
