/* test_sampler_beam.c: the candidates of beam groups: the best, draws without replacement,
 * penalties. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "kernels/sampling.h"
#include "tests/support/random.h"
#include "tests/unit/engine/sampler_reference.h"
#include "worker/engine/sampler.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beam_best),
        cmocka_unit_test(test_beam_draws),
        cmocka_unit_test(test_beam_penalties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
