/* test_fake_choice.c: what the fake device chooses: sampling, penalties, log-probabilities, end
 * tokens, beams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "base/util.h"
#include "tests/unit/engine/fake_rig.h"

static void test_sampling(void **state)
{
    (void)state;
    struct fake_context x;
    struct rig r;
    rig_init(&r);
    fake_free(r.fake);
    fake_context_init(&x, &rig_config, r.tokens, r.positions, 10);
    uint64_t s = fake_context_state(&x);
    struct plan_sampling greedy = {.temperature = 1.0f, .top_k = 1}, p = greedy;
    int32_t best = fake_choose(&rig_config, s, &greedy, -1);
    p.seed = 7, p.output_index = 3, p.request = 8;
    assert_int_equal(fake_choose(&rig_config, s, &p, -1), best); /* greedy looks at none of these */
    p.top_k = 0;
    int32_t drawn = fake_choose(&rig_config, s, &p, -1);
    assert_int_equal(fake_choose(&rig_config, s, &p, -1), drawn);
    uint32_t changed = 0;
    for (int field = 0; field != 7; field++) {
        struct plan_sampling q = p;
        q.seed += field == 0;
        q.request += field == 1;
        q.choice += field == 2;
        q.output_index += field == 3;
        q.temperature += field == 4;
        q.top_p += field == 5 ? 0.5f : 0;
        q.min_p += field == 6 ? 0.5f : 0;
        changed += fake_choose(&rig_config, s, &q, -1) != drawn;
    }
    assert_true(changed >= 6); /* one in 800 may be the same by chance */

    int32_t banned[] = {best};
    p = greedy, p.banned = banned, p.n_banned = 1;
    assert_int_not_equal(fake_choose(&rig_config, s, &p, -1), best);
    struct plan_range all_but_one[] = {{0, 777}, {778, 1000}};
    p = greedy, p.forbidden = all_but_one, p.n_forbidden = 2;
    assert_int_equal(fake_choose(&rig_config, s, &p, -1), 777);
}

/* A history counts while there are penalties, whoever knew its last token. */
static void test_penalties(void **state)
{
    (void)state;
    const int32_t history[] = {200, 300, 400, 300}, other[] = {200, 300, 401, 300};
    struct plan_sampling p = {.temperature = 1.0f, .top_k = 1, .history = history, .n_history = 4};
    int32_t plain = fake_choose(&rig_config, 5, &p, -1);
    p.repetition_penalty = 1.0f; /* off */
    assert_int_equal(fake_choose(&rig_config, 5, &p, -1), plain);
    p.repetition_penalty = 1.5f;
    int32_t token = fake_choose(&rig_config, 5, &p, -1);
    assert_int_not_equal(token, plain);
    p.n_history = 3;
    assert_int_equal(fake_choose(&rig_config, 5, &p, 300), token);
    assert_int_not_equal(fake_choose(&rig_config, 5, &p, 301), token);
    p.n_history = 4;
    p.history = other;
    assert_int_not_equal(fake_choose(&rig_config, 5, &p, -1), token);
}

static void test_top_logprobs(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    r.item.n_tokens = 12;
    r.item.sampling.n_top_logprobs = 5;
    struct plan p = {.items = &r.item, .n_items = 1};
    const struct result_item *result = run_plan(&r, &p);
    assert_int_equal(result->n_top, 5);
    assert_int_equal(result->top[0].token, result->token);
    assert_true(result->top[0].logprob == result->logprob);
    for (uint32_t i = 1; i != 5; i++) {
        assert_true(result->top[i].logprob <= result->top[i - 1].logprob);
        for (uint32_t j = 0; j != i; j++)
            assert_int_not_equal(result->top[i].token, result->top[j].token);
    }
    fake_free(r.fake);
}

static void test_end_probability(void **state)
{
    (void)state;
    struct fake_config c = rig_config;
    struct plan_sampling greedy = {.temperature = 1.0f, .top_k = 1};
    static const double probabilities[] = {0.0, 0.05, 1.0};
    for (size_t k = 0; k != ARRAY_LEN(probabilities); k++) {
        c.params.end_probability = probabilities[k];
        uint32_t n = 20000, ends = 0;
        struct fake_context x;
        fake_context_init(&x, &c, NULL, NULL, 0);
        for (uint32_t i = 0; i != n; i++) {
            fake_context_add(&x, (int32_t)(i % 1000), (int32_t)i);
            ends += fake_choose(&c, fake_context_state(&x), &greedy, -1) == EOP;
        }
        double found = (double)ends / n;
        if (fabs(found - probabilities[k]) > 0.01)
            fail_msg("end tokens: expected %g of all, found %g", probabilities[k], found);
    }
    struct plan_range end = {EOP, EOP + 1};
    greedy.forbidden = &end, greedy.n_forbidden = 1;
    assert_int_not_equal(fake_choose(&c, 1, &greedy, -1), EOP);
}

static void test_beams(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    struct plan_item items[2] = {r.item, r.item};
    uint32_t blocks[2][2] = {{0, 1}, {2, 3}};
    for (uint32_t i = 0; i != 2; i++) {
        items[i].slot = i;
        items[i].n_tokens = 20 + i;
        items[i].output = PLAN_OUTPUT_BEAM;
        items[i].beam_score = -(float)i;
        items[i].blocks = blocks[i];
        items[i].n_blocks = 2;
    }
    struct plan_beam_group group = {.width = 6, .deterministic = true};
    struct plan p = {.step = 1, .items = items, .n_items = 2, .groups = &group, .n_groups = 1};
    const struct step_result *result;
    struct err e = ERR_INIT;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), 0);
    const struct result_candidate *c = result->groups[0].candidates;
    assert_int_equal(result->groups[0].n_candidates, 6);
    for (uint32_t i = 0; i != 6; i++) {
        if (i)
            assert_true(c[i].score <= c[i - 1].score);
        struct fake_context x;
        fake_context_init(&x, &rig_config, NULL, NULL, 0);
        for (uint32_t j = 0; j != items[c[i].item].n_tokens; j++)
            fake_context_add(&x, r.tokens[j], r.positions[j]);
        float score = items[c[i].item].beam_score +
                      fake_token_logprob(&rig_config, fake_context_state(&x), c[i].token);
        assert_true(c[i].score == score);
        for (uint32_t j = 0; j != i; j++)
            assert_false(c[i].item == c[j].item && c[i].token == c[j].token);
    }
    fake_free(r.fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling),     cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_top_logprobs), cmocka_unit_test(test_end_probability),
        cmocka_unit_test(test_beams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
