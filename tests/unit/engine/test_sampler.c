/* test_sampler.c: the published distributions, a plain implementation's, penalties, draws. */
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
#include "tests/unit/engine/sampler_reference.h"
#include "worker/engine/sampler.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_distributions),
        cmocka_unit_test(test_random_distributions),
        cmocka_unit_test(test_random_penalties),
        cmocka_unit_test(test_greedy_with_penalties),
        cmocka_unit_test(test_score_with_top),
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_draw_depends_on_the_counter),
        cmocka_unit_test(test_rows_without_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
