/* test_half.c: FP16 conversions against their definition, over every half and many floats. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/half.h"

/* The definition, slowly: sign * mantissa * 2^exponent. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static int is_finite_half(uint16_t h)
{
    return (h & 0x7c00) != 0x7c00;
}

static void every_half_converts_exactly_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        if (!is_finite_half((uint16_t)h))
            continue;
        float f = half_to_float((uint16_t)h);
        if ((double)f != half_value((uint16_t)h))
            fail_msg("half %04x: %a, expected %a", h, (double)f, half_value((uint16_t)h));
        if (half_from_float(f) != h)
            fail_msg("half %04x came back as %04x", h, half_from_float(f));
    }
}

/* Between two neighbouring halves the nearer one wins, and on the middle the even one. */
static void rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        double low = half_value((uint16_t)h), high = half_value((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2); /* exact: 12 significant bits */
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        if (half_from_float(middle) != even)
            fail_msg("middle above %04x: %04x, expected %04x", h, half_from_float(middle), even);
        if (half_from_float(nextafterf(middle, 0)) != h)
            fail_msg("just below the middle above %04x", h);
        if (half_from_float(nextafterf(middle, INFINITY)) != h + 1)
            fail_msg("just above the middle above %04x", h);
        if (half_from_float(-middle) != (even | 0x8000))
            fail_msg("negative middle above %04x", h);
    }
}

static void extremes(void **state)
{
    (void)state;
    assert_int_equal(half_from_float(65519.0f), 0x7bff);
    assert_int_equal(half_from_float(65520.0f), 0x7c00);
    assert_int_equal(half_from_float(INFINITY), 0x7c00);
    assert_int_equal(half_from_float(-INFINITY), 0xfc00);
    assert_int_equal(half_from_float(NAN) & 0x7c00, 0x7c00);
    assert_true((half_from_float(NAN) & 0x3ff) != 0);
    assert_int_equal(half_from_float(0x1p-25f), 0);
    assert_int_equal(half_from_float(0x1.000002p-25f), 1);
    assert_true(isinf(half_to_float(0x7c00)));
    assert_true(isnan(half_to_float(0x7e01)));
    assert_true(signbit(half_to_float(0x8000)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_converts_exactly_and_back),
        cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
