/* test_base.c: errors, buffers, checked arithmetic, clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/util.h"

static void err_keeps_code_and_text(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_int_equal(err_set(&e, -EINVAL, "expected %d, found %d", 3, 4), -EINVAL);
    assert_int_equal(e.code, -EINVAL);
    assert_string_equal(e.message, "expected 3, found 4");
    assert_int_equal(err_prefix(&e, "file %s", "a"), -EINVAL);
    assert_string_equal(e.message, "file a: expected 3, found 4");
    assert_int_equal(err_set(NULL, -EIO, "nobody listens"), -EIO);
}

static void err_cuts_what_does_not_fit(void **state)
{
    (void)state;
    char text[2 * ERR_MESSAGE_BYTES];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    struct err e = ERR_INIT;
    err_set(&e, -EINVAL, "%s", text);
    assert_int_equal(strlen(e.message), ERR_MESSAGE_BYTES - 1);
    err_prefix(&e, "%s", text);
    assert_int_equal(strlen(e.message), ERR_MESSAGE_BYTES - 1);
}

static void buf_grows_and_consumes(void **state)
{
    (void)state;
    struct buf b = {0};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(buf_printf(&b, "%d,", i % 10), 0);
    assert_int_equal(b.size, 2000);
    assert_int_equal(b.data[b.size], '\0');
    buf_consume(&b, 1998);
    assert_string_equal(b.data, "9,");
    assert_int_equal(buf_append(&b, NULL, 0), 0);
    buf_clear(&b);
    assert_string_equal(b.data, "");
    buf_deinit(&b);
    assert_null(b.data);
}

static void buf_respects_its_limit(void **state)
{
    (void)state;
    struct buf b = {.limit = 10};
    assert_int_equal(buf_append_str(&b, "0123456789"), 0);
    assert_int_equal(buf_append_str(&b, "x"), -EFBIG);
    assert_string_equal(b.data, "0123456789");
    assert_int_equal(buf_reserve(&b, SIZE_MAX), -ENOMEM);
    buf_deinit(&b);
}

static void arithmetic_reports_overflow(void **state)
{
    (void)state;
    size_t r;
    assert_true(mul_size(3, 5, &r));
    assert_int_equal(r, 15);
    assert_false(mul_size(SIZE_MAX / 2, 3, &r));
    assert_false(add_size(SIZE_MAX, 1, &r));
    assert_int_equal(round_up(17, 16), 32);
    assert_int_equal(round_up(32, 16), 32);
}

static int64_t fixed_time(void *context)
{
    return *(int64_t *)context;
}

static void clock_can_be_replaced(void **state)
{
    (void)state;
    int64_t now = 42;
    clock_set_source(fixed_time, &now);
    assert_int_equal(clock_now_ns(), 42);
    clock_set_source(NULL, NULL);
    int64_t a = clock_now_ns(), b = clock_now_ns();
    assert_true(b >= a && a > 0);
}

static void log_levels_parse(void **state)
{
    (void)state;
    enum log_level level = LOG_LEVEL_ERROR;
    assert_int_equal(log_level_parse("debug", &level), 0);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
    assert_int_equal(log_level_parse("loud", &level), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_keeps_code_and_text),
        cmocka_unit_test(err_cuts_what_does_not_fit),
        cmocka_unit_test(buf_grows_and_consumes),
        cmocka_unit_test(buf_respects_its_limit),
        cmocka_unit_test(arithmetic_reports_overflow),
        cmocka_unit_test(clock_can_be_replaced),
        cmocka_unit_test(log_levels_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
