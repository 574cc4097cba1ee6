/* test_sampler.c: the generator, the portable exp and log, the published distributions, draws, beam
 * candidates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/npy.h"
#include "kernels/sampling.h"
#include "worker/engine/sampler.h"

/* Random123's known answers (kat_vectors, philox4x32 10). */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        struct philox counter, expected;
    } cases[] = {
        {0, {{0, 0, 0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {UINT64_MAX,
         {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {UINT64_C(0x299f31d0a4093822),
         {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct philox p = philox4x32(cases[i].seed, cases[i].counter);
        for (size_t j = 0; j != 4; j++)
            assert_int_equal(p.word[j], cases[i].expected.word[j]);
    }
    assert_true(philox_uniform((struct philox){{0xffffffff, 0xffffffff, 0, 0}}) < 1.0);
    assert_true(philox_uniform((struct philox){{0, 0, 0, 0}}) == 0.0);
}

static void test_exp_and_log(void **state)
{
    (void)state;
    double worst = 0.0;
    for (int i = 0; i <= 870000; i++) {
        float x = -(float)i / 10000.0f;
        double expected = exp((double)x);
        double error = fabs((double)det_expf(x) - expected) / expected;
        worst = error > worst ? error : worst;
    }
    if (worst > 2e-7)
        fail_msg("det_expf: relative error %g, expected at most 2e-7", worst);
    assert_true(det_expf(0.0f) == 1.0f);
    assert_true(det_expf(-88.0f) == 0.0f);
    assert_true(det_expf(-65504.0f) == 0.0f);
    worst = 0.0;
    double x = 1e-10;
    for (int i = 0; i != 3400; i++, x *= 1.0137) {
        double expected = log(x);
        double error = fabs(det_log(x) - expected) / fmax(fabs(expected), 1e-3);
        worst = error > worst ? error : worst;
    }
    if (worst > 1e-12)
        fail_msg("det_log: relative error %g, expected at most 1e-12", worst);
}

/* Weights are rounded once, to the nearest multiple of 2^-40; keys are in the order of the values.
 */
static void test_weights_and_keys(void **state)
{
    (void)state;
    uint64_t bits = 1;
    for (int i = 0; i != 200000; i++) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        /* All exponents below 1, and half-way cases: few bits of the mantissa. */
        uint32_t mantissa = (uint32_t)(bits >> 41) & (i % 2 ? 0x7fffff : 0x700000);
        uint32_t word = ((uint32_t)(bits >> 16) % 127) << 23 | mantissa;
        float w;
        memcpy(&w, &word, sizeof w);
        uint64_t expected = (uint64_t)nearbyint(ldexp((double)w, 40));
        if (sampling_fixed(w) != expected)
            fail_msg("weight of %a: %llu, expected %llu", (double)w,
                     (unsigned long long)sampling_fixed(w), (unsigned long long)expected);
    }
    assert_true(sampling_fixed(1.0f) == UINT64_C(1) << 40);
    assert_true(sampling_fixed(0.0f) == 0);
    static const float ascending[] = {-INFINITY, -3e38f, -65504, -1, -1e-30f, -1e-42f, 0,
                                      1e-42f,    1e-30f, 1,      2,  65504,   3e38f,   INFINITY};
    for (size_t i = 0; i != ARRAY_LEN(ascending); i++) {
        uint32_t key = sampling_key(ascending[i]);
        assert_true(sampling_key_value(key) == ascending[i]);
        assert_true(key > sampling_key(NAN) && key > sampling_key(-NAN));
        if (i)
            assert_true(key > sampling_key(ascending[i - 1]));
    }
    assert_int_equal(sampling_key(-0.0f), sampling_key(0.0f));
    assert_true(sampling_key_value(sampling_key(NAN)) == -INFINITY);
}

/* ---- the published distributions ---- */

static char *golden_path(char path[512], const char *name)
{
    const char *root = getenv("GLMD_SOURCE_DIR");
    if (!root)
        skip();
    snprintf(path, 512, "%s/tests/golden/glm130b/%s", root, name);
    return path;
}

static void load_golden(const char *name, uint32_t n_dims, struct npy *ret)
{
    char path[512];
    struct err e = ERR_INIT;
    if (npy_load(golden_path(path, name), NPY_F32, n_dims, 1 << 24, ret, &e) < 0)
        fail_msg("%s", e.message);
}

static void test_golden_distributions(void **state)
{
    (void)state;
    char path[512];
    json_error_t je;
    json_t *manifest = json_load_file(golden_path(path, "manifest.json"), 0, &je);
    if (!manifest)
        fail_msg("%s: %s", path, je.text);
    struct npy logits = {0};
    struct npy probs = {0};
    load_golden("logits/sampling_logits.npy", 1, &logits);
    load_golden("logits/sampling_probs.npy", 2, &probs);
    uint32_t vocab = (uint32_t)logits.shape[0];
    struct sampler *s;
    assert_int_equal(sampler_new(vocab, &s), 0);
    float *row = alloc_array(vocab, sizeof *row);
    float *found = alloc_array(vocab, sizeof *found);
    size_t n_cases = 0;
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(manifest, "sampling"), i, c)
    {
        size_t r = (size_t)json_integer_value(json_object_get(c, "row"));
        struct plan_sampling p = {
            .temperature = (float)json_number_value(json_object_get(c, "temperature")),
            .top_k = (uint32_t)json_integer_value(json_object_get(c, "top_k")),
            .top_p = (float)json_number_value(json_object_get(c, "top_p")),
        };
        assert_true(r < probs.shape[0]);
        memcpy(row, logits.data, vocab * sizeof *row);
        sampler_distribution(s, row, &p, -1, found);
        const float *expected = (float *)probs.data + r * vocab;
        int64_t n_nonzero = 0;
        for (uint32_t t = 0; t != vocab; t++) {
            n_nonzero += found[t] > 0.0f;
            if (fabsf(found[t] - expected[t]) > 1e-6f)
                fail_msg("row %zu token %u: probability %.9g, expected %.9g", r, t,
                         (double)found[t], (double)expected[t]);
        }
        assert_int_equal(n_nonzero, json_integer_value(json_object_get(c, "nonzero")));
        n_cases++;
    }
    assert_true(n_cases >= 8);
    free(row);
    free(found);
    sampler_free(s);
    npy_deinit(&logits);
    npy_deinit(&probs);
    json_decref(manifest);
}

/* ---- against a plain implementation ---- */

static uint64_t random_state = 88172645463325252u;
static uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

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

/* One logit with its penalties, token by token. */
static float plain_penalty(float logit, const struct plan_sampling *p, int32_t id)
{
    uint32_t in_prompt = occurrences(p, 0, p->n_history_prompt, id);
    uint32_t in_output = occurrences(p, p->n_history_prompt, p->n_history, id);
    float r = p->repetition_penalty;
    if (in_prompt + in_output && r != 0.0f)
        logit = logit > 0.0f ? logit / r : logit * r;
    logit = logit - p->frequency_penalty * (float)in_output;
    return in_output ? logit - p->presence_penalty : logit;
}

/* Sorts everything and does what the description says, in double. */
static void plain_distribution(const float *logits, uint32_t vocab, const struct plan_sampling *p,
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

/* Coarse logits, so that there are ties everywhere. */
static void random_row(float *row, uint32_t vocab, int coarse)
{
    for (uint32_t i = 0; i != vocab; i++) {
        float x = (float)(random_u32() % 20001) / 1000.0f - 10.0f;
        row[i] = coarse ? roundf(x) : x;
    }
}

static void test_random_distributions(void **state)
{
    (void)state;
    enum { VOCAB = 5003 };
    static const uint32_t top_ks[] = {0, 2, 7, 600, 5002, 5003, 9000};
    static const float top_ps[] = {0.0f, 0.01f, 0.5f, 0.9f, 0.999f, 1.0f};
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    float *row = alloc_array(VOCAB, sizeof *row);
    float *found = alloc_array(VOCAB, sizeof *found);
    double *expected = alloc_array(VOCAB, sizeof *expected);
    int32_t banned[] = {5, 17, 4000};
    for (uint32_t i = 0; i != 200; i++) {
        struct plan_sampling p = {.temperature = i % 5 ? 0.25f * (float)(i % 9 + 1) : 1.0f,
                                  .top_k = top_ks[i % ARRAY_LEN(top_ks)],
                                  .top_p = top_ps[i / 2 % ARRAY_LEN(top_ps)],
                                  .banned = banned,
                                  .n_banned = i % 3 ? 0 : ARRAY_LEN(banned)};
        random_row(row, VOCAB, i % 2 && p.top_p == 0.0f);
        plain_distribution(row, VOCAB, &p, expected);
        sampler_distribution(s, row, &p, -1, found);
        for (uint32_t t = 0; t != VOCAB; t++) {
            if (fabs((double)found[t] - expected[t]) > 2e-6)
                fail_msg("case %u (k %u, p %g, t %g) token %u: %.9g, expected %.9g", i, p.top_k,
                         (double)p.top_p, (double)p.temperature, t, (double)found[t], expected[t]);
        }
    }
    free(row);
    free(found);
    free(expected);
    sampler_free(s);
}

/* ---- penalties and min-p ---- */

enum { PENALTY_VOCAB = 701, MAX_HISTORY = 300 };

static float random_of(const float *values, uint32_t n)
{
    return values[random_u32() % n];
}

/* Any mix of options; few distinct ids, so that most of the history repeats. */
static struct plan_sampling random_sampling(int32_t history[MAX_HISTORY])
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

static void test_random_penalties(void **state)
{
    (void)state;
    struct sampler *s;
    assert_int_equal(sampler_new(PENALTY_VOCAB, &s), 0);
    float logits[PENALTY_VOCAB], row[PENALTY_VOCAB], found[PENALTY_VOCAB], again[PENALTY_VOCAB];
    double expected[PENALTY_VOCAB];
    int32_t history[MAX_HISTORY] = {0};
    for (uint32_t i = 0; i != 500; i++) {
        struct plan_sampling p = random_sampling(history);
        random_row(logits, PENALTY_VOCAB, 0);
        plain_distribution(logits, PENALTY_VOCAB, &p, expected);
        memcpy(row, logits, sizeof row);
        sampler_distribution(s, row, &p, -1, found);
        for (uint32_t t = 0; t != PENALTY_VOCAB; t++) {
            if (fabs((double)found[t] - expected[t]) > 2e-6)
                fail_msg("case %u (r %g, pres %g, freq %g, min_p %g, k %u, p %g, t %g) token %u: "
                         "%.9g, expected %.9g",
                         i, (double)p.repetition_penalty, (double)p.presence_penalty,
                         (double)p.frequency_penalty, (double)p.min_p, p.top_k, (double)p.top_p,
                         (double)p.temperature, t, (double)found[t], expected[t]);
        }
        /* The last token of the output may come as the rank's own: the same bits. */
        if (p.n_history == p.n_history_prompt)
            continue;
        p.n_history--;
        memcpy(row, logits, sizeof row);
        sampler_distribution(s, row, &p, history[p.n_history], again);
        assert_memory_equal(again, found, sizeof found);
    }
    sampler_free(s);
}

/* The largest penalized logit of what is allowed; log-probabilities as without penalties. */
static void test_greedy_with_penalties(void **state)
{
    (void)state;
    struct sampler *s;
    assert_int_equal(sampler_new(PENALTY_VOCAB, &s), 0);
    float logits[PENALTY_VOCAB], row[PENALTY_VOCAB];
    int32_t history[MAX_HISTORY] = {0};
    uint32_t n_other = 0;
    for (uint32_t i = 0; i != 300; i++) {
        struct plan_sampling p = random_sampling(history);
        p.top_k = 1;
        p.n_top_logprobs = 1;
        random_row(logits, PENALTY_VOCAB, 0);
        int32_t best = -1, plain_best = 0;
        float best_logit = 0;
        double sum = 0.0;
        for (int32_t t = 0; t != PENALTY_VOCAB; t++) {
            float logit = plain_penalty(logits[t], &p, t);
            if (best < 0 || logit > best_logit) {
                best = t;
                best_logit = logit;
            }
            plain_best = logits[t] > logits[plain_best] ? t : plain_best;
            sum += exp((double)logits[t]);
        }
        float logprob;
        struct result_logprob top;
        memcpy(row, logits, sizeof row);
        int32_t token = sampler_choose(s, row, &p, -1, &logprob, &top);
        assert_int_equal(token, best);
        assert_float_equal(logprob, (double)logits[token] - log(sum), 1e-5);
        assert_int_equal(top.token, plain_best);
        n_other += best != plain_best;
        /* and the same through a draw that has nothing else to choose */
        p.top_k = 0;
        p.min_p = 1;
        memcpy(row, logits, sizeof row);
        token = sampler_choose(s, row, &p, -1, &logprob, &top);
        assert_true(plain_penalty(logits[token], &p, token) == best_logit);
    }
    assert_in_range(n_other, 20, 280);
    sampler_free(s);
}

/* Beams rank the penalized distribution. */
static void test_beam_penalties(void **state)
{
    (void)state;
    struct sampler *s;
    assert_int_equal(sampler_new(6, &s), 0);
    static const float logits[6] = {1, 4, 3, 0, 2, -1};
    static const int32_t history[] = {1, 2, 2};
    struct plan_sampling p = {.temperature = 1,
                              .repetition_penalty = 2,
                              .frequency_penalty = 0.5f,
                              .history = history,
                              .n_history = 3,
                              .n_history_prompt = 1};
    float row[6], penalized[6];
    double sum = 0;
    for (int32_t t = 0; t != 6; t++) {
        penalized[t] = plain_penalty(logits[t], &p, t);
        sum += exp((double)penalized[t]);
    }
    assert_float_equal(penalized[1], 2, 0);
    assert_float_equal(penalized[2], 0.5, 0);
    struct plan_beam_group group = {.width = 6, .deterministic = true};
    struct result_candidate found[6];
    memcpy(row, logits, sizeof row);
    sampler_beam_begin(s, &group);
    sampler_beam_row(s, row, 0, -1.5f, &p);
    assert_int_equal(sampler_beam_finish(s, found), 6);
    static const int32_t order[] = {1, 4, 0, 2, 3, 5};
    for (int i = 0; i != 6; i++) {
        assert_int_equal(found[i].token, order[i]);
        assert_float_equal(found[i].score, -1.5 + (double)penalized[order[i]] - log(sum), 1e-5);
    }
    sampler_free(s);
}

/* The best tokens beside a target, as a sample's. */
static void test_score_with_top(void **state)
{
    (void)state;
    struct sampler *s;
    assert_int_equal(sampler_new(PENALTY_VOCAB, &s), 0);
    float logits[PENALTY_VOCAB], row[PENALTY_VOCAB], logprob;
    random_row(logits, PENALTY_VOCAB, 1);
    struct plan_sampling p = {.temperature = 1, .top_k = 1, .n_top_logprobs = 7};
    struct result_logprob expected[7], found[7];
    memcpy(row, logits, sizeof row);
    int32_t token = sampler_choose(s, row, &p, -1, &logprob, expected);
    assert_true(sampler_logprob(s, logits, token, 7, found) == logprob);
    assert_memory_equal(found, expected, sizeof found);
    assert_true(sampler_logprob(s, logits, token, 0, NULL) == logprob);
    sampler_free(s);
}

/* ---- draws ---- */

static void test_choose(void **state)
{
    (void)state;
    enum { VOCAB = 11, N = 20000 };
    static const float logits[VOCAB] = {0, 1, 3, -2, 3, 0.5f, 0, 0, -4, 2, 1};
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    float row[VOCAB];
    float probs[VOCAB];
    float logprob;
    struct result_logprob top[3];

    /* Greedy: the first of equal maxima; log-probability from all logits. */
    struct plan_sampling greedy = {.temperature = 0.7f, .top_k = 1, .n_top_logprobs = 3};
    memcpy(row, logits, sizeof row);
    assert_int_equal(sampler_choose(s, row, &greedy, -1, &logprob, top), 2);
    double sum = 0.0;
    for (size_t i = 0; i != VOCAB; i++)
        sum += exp((double)logits[i]);
    assert_float_equal(logprob, 3.0 - log(sum), 1e-6);
    assert_int_equal(top[0].token, 2);
    assert_int_equal(top[1].token, 4);
    assert_int_equal(top[2].token, 9);
    assert_float_equal(top[2].logprob, 2.0 - log(sum), 1e-6);

    /* A bias counts in the log-probability, a forbidden range does not. */
    struct plan_bias bias = {4, 0.5f};
    struct plan_range range = {1, 3};
    greedy.bias = &bias;
    greedy.n_bias = 1;
    greedy.forbidden = &range;
    greedy.n_forbidden = 1;
    memcpy(row, logits, sizeof row);
    assert_int_equal(sampler_choose(s, row, &greedy, -1, &logprob, top), 4);
    assert_float_equal(logprob, 3.5 - log(sum - exp(3.0) + exp(3.5)), 1e-6);

    /* Draws follow the distribution and depend on every word of the counter and on the seed. */
    struct plan_sampling p = {.temperature = 1.5f, .seed = 1234, .request = 77};
    memcpy(row, logits, sizeof row);
    sampler_distribution(s, row, &p, -1, probs);
    uint32_t counts[VOCAB] = {0};
    for (uint32_t i = 0; i != N; i++) {
        p.output_index = i;
        memcpy(row, logits, sizeof row);
        counts[sampler_choose(s, row, &p, -1, &logprob, top)]++;
    }
    double chi2 = 0.0;
    for (size_t i = 0; i != VOCAB; i++) {
        double expected = (double)probs[i] * N;
        chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    if (chi2 > 29.6) /* 0.1 % of 10 degrees of freedom; the draws are fixed */
        fail_msg("chi square %g, expected at most 29.6", chi2);
    sampler_free(s);
}

static void test_draw_depends_on_the_counter(void **state)
{
    (void)state;
    enum { VOCAB = 4096 };
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    float *row = alloc_array(VOCAB, sizeof *row);
    struct plan_sampling base = {
        .temperature = 1.0f, .seed = 5, .request = 6, .choice = 7, .output_index = 8};
    int32_t tokens[7];
    for (size_t i = 0; i != ARRAY_LEN(tokens); i++) {
        struct plan_sampling p = base;
        p.seed += i == 1;
        p.seed += i == 2 ? UINT64_C(1) << 32 : 0;
        p.request += i == 3 ? UINT64_C(1) << 32 : 0;
        p.request += i == 4;
        p.choice += i == 5;
        p.output_index += i == 6;
        float logprob;
        memset(row, 0, VOCAB * sizeof *row);
        tokens[i] = sampler_choose(s, row, &p, -1, &logprob, NULL);
        memset(row, 0, VOCAB * sizeof *row);
        assert_int_equal(sampler_choose(s, row, &p, -1, &logprob, NULL), tokens[i]);
        for (size_t j = 0; j != i; j++)
            assert_int_not_equal(tokens[i], tokens[j]);
    }
    free(row);
    sampler_free(s);
}

/* NaN and infinity from a broken model: the first maximum comes out, NaNs below everything and in
 * one pattern. */
static void test_rows_without_order(void **state)
{
    (void)state;
    enum { VOCAB = 700 };
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    float row[VOCAB];
    for (uint32_t i = 0; i != 24; i++) {
        for (uint32_t t = 0; t != VOCAB; t++)
            row[t] = i % 4 == 0   ? NAN
                     : i % 4 == 1 ? (t % 3 ? NAN : 1.0f)
                     : i % 4 == 2 ? INFINITY
                                  : -INFINITY;
        struct plan_sampling p = {.temperature = 1.0f,
                                  .top_k = i % 3,
                                  .top_p = i / 4 % 2 ? 0.5f : 0.0f,
                                  .n_top_logprobs = 5};
        float logprob;
        struct result_logprob top[5];
        int32_t token = sampler_choose(s, row, &p, -1, &logprob, top);
        if (i % 4 == 1) { /* some have an order */
            assert_true(token % 3 == 0 && token < VOCAB && isfinite(logprob));
        } else {
            static const uint32_t nan_bits = 0x7fc00000;
            assert_int_equal(token, 0);
            assert_memory_equal(&logprob, &nan_bits, sizeof nan_bits);
        }
        for (size_t j = 0; j != 5; j++)
            assert_int_equal(top[j].token, i % 4 == 1 ? 3 * j : j);
    }
    sampler_free(s);
}

/* ---- beams ---- */

struct beam_entry {
    double score;
    uint32_t item;
    int32_t token;
};

static int by_score(const void *a, const void *b)
{
    const struct beam_entry *x = a;
    const struct beam_entry *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->item != y->item)
        return x->item < y->item ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static void test_beam_best(void **state)
{
    (void)state;
    enum { VOCAB = 640, BEAMS = 4, WIDTH = 12 };
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    static struct beam_entry all[BEAMS * VOCAB];
    for (int round = 0; round != 20; round++) {
        struct plan_beam_group group = {.width = WIDTH, .deterministic = true};
        sampler_beam_begin(s, &group);
        int32_t banned[] = {3, 600};
        struct plan_sampling p = {.temperature = 1.0f, .banned = banned, .n_banned = 2};
        for (uint32_t beam = 0; beam != BEAMS; beam++) {
            float row[VOCAB];
            random_row(row, VOCAB, round % 2);
            float score = round % 4 == 1 ? 0.0f : -(float)(random_u32() % 100) / 40.0f;
            float masked[VOCAB];
            memcpy(masked, row, sizeof row);
            masked[3] = masked[600] = SAMPLING_FORBIDDEN;
            double max = -INFINITY;
            for (int t = 0; t != VOCAB; t++)
                max = fmax(max, (double)masked[t]);
            double sum = 0.0;
            for (int t = 0; t != VOCAB; t++)
                sum += exp((double)masked[t] - max);
            for (int t = 0; t != VOCAB; t++)
                all[beam * VOCAB + (uint32_t)t] = (struct beam_entry){
                    (double)score + (double)masked[t] - max - log(sum), 100 + beam, t};
            sampler_beam_row(s, row, 100 + beam, score, &p);
        }
        qsort(all, BEAMS * VOCAB, sizeof all[0], by_score);
        struct result_candidate found[WIDTH];
        assert_int_equal(sampler_beam_finish(s, found), WIDTH);
        for (int i = 0; i != WIDTH; i++) {
            if (fabs((double)found[i].score - all[i].score) > 1e-5)
                fail_msg("round %d candidate %d: score %g, expected %g", round, i,
                         (double)found[i].score, all[i].score);
            /* Coarse rows have ties within a beam: the lower token comes first. */
            if (i + 1 < WIDTH && found[i].item == found[i + 1].item &&
                found[i].score == found[i + 1].score)
                assert_true(found[i].token < found[i + 1].token);
            if (round % 2 == 0) {
                assert_int_equal(found[i].item, all[i].item);
                assert_int_equal(found[i].token, all[i].token);
            }
        }
    }
    /* More candidates wanted than there are. */
    struct sampler *tiny;
    assert_int_equal(sampler_new(5, &tiny), 0);
    float row[5] = {1, 5, 3, 5, 2};
    struct plan_beam_group group = {.width = 12, .deterministic = true};
    struct plan_sampling p = {.temperature = 1.0f};
    struct result_candidate found[12];
    sampler_beam_begin(tiny, &group);
    sampler_beam_row(tiny, row, 0, 0.0f, &p);
    assert_int_equal(sampler_beam_finish(tiny, found), 5);
    static const int32_t order[] = {1, 3, 2, 4, 0};
    for (int i = 0; i != 5; i++)
        assert_int_equal(found[i].token, order[i]);
    sampler_free(tiny);
    sampler_free(s);
}

/* W draws without replacement: the first draw of each pair follows the distribution over all
 * beams, no candidate comes twice, and the order is by score. */
static void test_beam_draws(void **state)
{
    (void)state;
    enum { VOCAB = 6, BEAMS = 2, N = 20000 };
    static const float logits[BEAMS][VOCAB] = {{0, 1, 2, 0, -1, 0.5f}, {1, 1, 0, 0, 2, -3}};
    static const float scores[BEAMS] = {-0.3f, -1.1f};
    struct sampler *s;
    assert_int_equal(sampler_new(VOCAB, &s), 0);
    double probs[BEAMS * VOCAB];
    double total = 0.0;
    for (int b = 0; b != BEAMS; b++) {
        double sum = 0.0;
        for (int t = 0; t != VOCAB; t++)
            sum += exp((double)logits[b][t]);
        for (int t = 0; t != VOCAB; t++) {
            probs[b * VOCAB + t] = exp((double)scores[b]) * exp((double)logits[b][t]) / sum;
            total += probs[b * VOCAB + t];
        }
    }
    /* Inclusion probability of two draws without replacement. */
    double inclusion[BEAMS * VOCAB];
    for (int i = 0; i != BEAMS * VOCAB; i++) {
        inclusion[i] = probs[i] / total;
        for (int j = 0; j != BEAMS * VOCAB; j++) {
            if (j != i)
                inclusion[i] += probs[j] / total * probs[i] / (total - probs[j]);
        }
    }
    uint32_t counts[BEAMS * VOCAB] = {0};
    for (uint32_t n = 0; n != N; n++) {
        struct plan_beam_group group = {.width = 2, .seed = 9, .request = 3, .output_index = n};
        struct plan_sampling p = {.temperature = 1.0f};
        struct result_candidate found[2];
        struct result_candidate again[2];
        for (int repeat = 0; repeat != 2; repeat++) {
            sampler_beam_begin(s, &group);
            for (uint32_t b = 0; b != BEAMS; b++) {
                float row[VOCAB];
                memcpy(row, logits[b], sizeof row);
                /* Where the group stands in the plan must not matter. */
                sampler_beam_row(s, row, b + (repeat ? 500 : 0), scores[b], &p);
            }
            assert_int_equal(sampler_beam_finish(s, repeat ? again : found), 2);
        }
        for (int i = 0; i != 2; i++) {
            assert_int_equal(again[i].item, found[i].item + 500);
            assert_int_equal(again[i].token, found[i].token);
            counts[found[i].item * VOCAB + (uint32_t)found[i].token]++;
        }
        assert_true(found[0].score >= found[1].score);
        assert_true(found[0].item != found[1].item || found[0].token != found[1].token);
    }
    for (int i = 0; i != BEAMS * VOCAB; i++) {
        double expected = inclusion[i] * N;
        double deviation = fabs(counts[i] - expected) / sqrt(expected);
        if (deviation > 4.0)
            fail_msg("candidate %d: drawn %u times, expected %g", i, counts[i], expected);
    }
    sampler_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_exp_and_log),
        cmocka_unit_test(test_weights_and_keys),
        cmocka_unit_test(test_golden_distributions),
        cmocka_unit_test(test_random_distributions),
        cmocka_unit_test(test_random_penalties),
        cmocka_unit_test(test_greedy_with_penalties),
        cmocka_unit_test(test_beam_penalties),
        cmocka_unit_test(test_score_with_top),
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_draw_depends_on_the_counter),
        cmocka_unit_test(test_rows_without_order),
        cmocka_unit_test(test_beam_best),
        cmocka_unit_test(test_beam_draws),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
