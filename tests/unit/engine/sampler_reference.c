/* sampler_reference.c: see sampler_reference.h. */
#include "tests/unit/engine/sampler_reference.h"

#include <math.h>
#include <stdlib.h>

#include "base/util.h"
#include "kernels/sampling.h"
#include "tests/support/random.h"

struct entry {
    float logit;
    uint32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Times that a token stands in history[begin .. end). */
static uint32_t occurrences(const struct plan_sampling *p, uint32_t begin, uint32_t end, int32_t id)
{
    uint32_t n = 0;
    for (uint32_t i = begin; i != end; i++)
        n += p->history[i] == id;
    return n;
}

float plain_penalty(float logit, const struct plan_sampling *p, int32_t id)
{
    uint32_t in_prompt = occurrences(p, 0, p->n_history_prompt, id);
    uint32_t in_output = occurrences(p, p->n_history_prompt, p->n_history, id);
    float r = p->repetition_penalty;
    if (in_prompt + in_output && r != 0.0f)
        logit = logit > 0.0f ? logit / r : logit * r;
    logit = logit - p->frequency_penalty * (float)in_output;
    return in_output ? logit - p->presence_penalty : logit;
}

void plain_distribution(const float *logits, uint32_t vocab, const struct plan_sampling *p,
                        double *ret)
{
    struct entry *order = alloc_array(vocab, sizeof *order);
    for (uint32_t i = 0; i != vocab; i++)
        order[i] = (struct entry){plain_penalty(logits[i], p, (int32_t)i) / p->temperature, i};
    for (uint32_t i = 0; i != p->n_banned; i++)
        order[p->banned[i]].logit = SAMPLING_FORBIDDEN;
    qsort(order, vocab, sizeof *order, by_logit);
    uint32_t n = vocab;
    if (p->top_k && p->top_k < vocab) {
        n = p->top_k;
        while (n < vocab && order[n].logit == order[p->top_k - 1].logit)
            n++;
    }
    double sum = 0.0;
    for (uint32_t i = 0; i != n; i++)
        sum += exp((double)(order[i].logit - order[0].logit));
    if (p->top_p > 0.0f && p->top_p < 1.0f) {
        double cumulative = 0.0;
        for (uint32_t i = 0; i != n; i++) {
            cumulative += exp((double)(order[i].logit - order[0].logit)) / sum;
            if (cumulative > (double)p->top_p) {
                n = i + 1;
                break;
            }
        }
        sum = 0.0;
        for (uint32_t i = 0; i != n; i++)
            sum += exp((double)(order[i].logit - order[0].logit));
    }
    if (p->min_p > 0.0f) {
        while (exp((double)(order[n - 1].logit - order[0].logit)) < (double)p->min_p)
            n--;
        sum = 0.0;
        for (uint32_t i = 0; i != n; i++)
            sum += exp((double)(order[i].logit - order[0].logit));
    }
    for (uint32_t i = 0; i != vocab; i++)
        ret[i] = 0.0;
    for (uint32_t i = 0; i != n; i++)
        ret[order[i].id] = exp((double)(order[i].logit - order[0].logit)) / sum;
    free(order);
}

void random_row(float *row, uint32_t vocab, int coarse)
{
    for (uint32_t i = 0; i != vocab; i++) {
        float x = (float)(random_u32() % 20001) / 1000.0f - 10.0f;
        row[i] = coarse ? roundf(x) : x;
    }
}

static float random_of(const float *values, uint32_t n)
{
    return values[random_u32() % n];
}

struct plan_sampling random_sampling(int32_t history[MAX_HISTORY])
{
    static const float repetition[] = {0, 1, 1.2f, 3, 0.5f};
    static const float presence[] = {0, 0, 0.6f, 2, -2, -0.3f};
    static const float min_p[] = {0, 0, 0.02f, 0.3f, 1};
    static const float top_p[] = {0, 0, 0.8f, 0.97f, 1};
    static const float temperature[] = {1, 1, 0.6f, 1.7f};
    struct plan_sampling p = {
        .temperature = random_of(temperature, ARRAY_LEN(temperature)),
        .top_k = random_u32() % 3 ? 0 : 2 + random_u32() % 100,
        .top_p = random_of(top_p, ARRAY_LEN(top_p)),
        .min_p = random_of(min_p, ARRAY_LEN(min_p)),
        .repetition_penalty = random_of(repetition, ARRAY_LEN(repetition)),
        .presence_penalty = random_of(presence, ARRAY_LEN(presence)),
        .frequency_penalty = random_of(presence, ARRAY_LEN(presence)),
        .seed = random_u32(),
        .history = history,
        .n_history = random_u32() % MAX_HISTORY,
    };
    p.n_history_prompt = random_u32() % (p.n_history + 1);
    uint32_t n_ids = 1 + random_u32() % PENALTY_VOCAB;
    for (uint32_t i = 0; i != p.n_history; i++)
        history[i] = (int32_t)(random_u32() % n_ids);
    return p;
}
