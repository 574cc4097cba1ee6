/* test_sampling_arithmetic.c: the generator, the portable exp and log, weights and keys: what host
 * and device share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/util.h"
#include "kernels/sampling.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_exp_and_log),
        cmocka_unit_test(test_weights_and_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
