/* test_metrics.c: the registry's rules, histograms, and the text that Prometheus reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/metrics.h"
#include "base/process.h"
#include "base/util.h"

enum { HITS, TEMPERATURE, WAIT };

static const struct metrics_family families[] = {
    [HITS] = {"hits_total", METRICS_COUNTER, "What was hit.", {"who", "how"}},
    [TEMPERATURE] = {"temperature", METRICS_GAUGE, "How hot it is.", {0}},
    [WAIT] = {"wait_seconds", METRICS_HISTOGRAM, "How long one waits.", {"who"}},
};
static const struct metrics_registry registry = {families, ARRAY_LEN(families)};

static void the_text_is_what_prometheus_reads(void **state)
{
    (void)state;
    static const double bounds[] = {0.1, 1, 2.5};
    static const struct metrics_buckets buckets = {bounds, 3};
    struct metrics_histogram h = {.buckets = &buckets};
    metrics_observe(&h, 0.1, 1); /* a bound belongs to its bucket */
    metrics_observe(&h, 0.2, 3);
    metrics_observe(&h, 7, 1);
    assert_int_equal(metrics_histogram_count(&h), 5);
    struct buf out = {0};
    struct metrics_writer w;
    metrics_writer_init(&w, &registry, &out);
    metrics_begin(&w, HITS);
    metrics_put_count(&w, UINT64_MAX, "a\"b\\c\nd", "");
    metrics_begin(&w, TEMPERATURE);
    metrics_put(&w, -0.1);
    metrics_put(&w, NAN);
    metrics_begin(&w, WAIT);
    metrics_put_histogram(&w, &h, "me");
    assert_int_equal(metrics_end(&w), 0);
    assert_string_equal(out.data,
                        "# HELP hits_total What was hit.\n"
                        "# TYPE hits_total counter\n"
                        "hits_total{who=\"a\\\"b\\\\c\\nd\",how=\"\"} 18446744073709551615\n"
                        "# HELP temperature How hot it is.\n"
                        "# TYPE temperature gauge\n"
                        "temperature -0.1\n"
                        "temperature NaN\n"
                        "# HELP wait_seconds How long one waits.\n"
                        "# TYPE wait_seconds histogram\n"
                        "wait_seconds_bucket{who=\"me\",le=\"0.1\"} 1\n"
                        "wait_seconds_bucket{who=\"me\",le=\"1\"} 4\n"
                        "wait_seconds_bucket{who=\"me\",le=\"2.5\"} 4\n"
                        "wait_seconds_bucket{who=\"me\",le=\"+Inf\"} 5\n"
                        "wait_seconds_sum{who=\"me\"} 7.7\n"
                        "wait_seconds_count{who=\"me\"} 5\n");
    buf_deinit(&out);
}

static void long_and_broken_label_values_stay_harmless(void **state)
{
    (void)state;
    char value[1000];
    memset(value, '"', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    value[3] = (char)0xff;
    struct buf out = {0};
    struct metrics_writer w;
    metrics_writer_init(&w, &registry, &out);
    metrics_begin(&w, HITS);
    metrics_put_count(&w, 1, value, value);
    assert_int_equal(metrics_end(&w), 0);
    assert_non_null(strstr(out.data, "who=\"\\\"\\\"\\\"?\\\""));
    assert_string_equal(out.data + out.size - 4, "} 1\n");
    buf_deinit(&out);
}

static void a_full_buffer_is_told(void **state)
{
    (void)state;
    struct buf out = {.limit = 80};
    struct metrics_writer w;
    metrics_writer_init(&w, &registry, &out);
    metrics_begin(&w, TEMPERATURE);
    metrics_put(&w, 1);
    metrics_put(&w, 2);
    assert_int_equal(metrics_end(&w), -EFBIG);
    buf_deinit(&out);
}

static void a_registry_follows_the_conventions(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_int_equal(metrics_registry_check(&registry, &e), 0);
    static const struct {
        struct metrics_family family;
        const char *why;
    } bad[] = {
        {{"1x", METRICS_GAUGE, "h", {0}}, "not a metric's name"},
        {{"a b", METRICS_GAUGE, "h", {0}}, "not a metric's name"},
        {{"x", METRICS_GAUGE, "", {0}}, "says what it is"},
        {{"x", METRICS_COUNTER, "h", {0}}, "end in _total"},
        {{"x_total", METRICS_GAUGE, "h", {0}}, "end in _total"},
        {{"x_sum", METRICS_HISTOGRAM, "h", {0}}, "belongs to histograms"},
        {{"x", METRICS_GAUGE, "h", {"le"}}, "not a label's name"},
        {{"x", METRICS_GAUGE, "h", {"a:b"}}, "not a label's name"},
    };
    for (size_t i = 0; i != ARRAY_LEN(bad); i++) {
        const struct metrics_registry one = {&bad[i].family, 1};
        e = (struct err)ERR_INIT;
        assert_int_equal(metrics_registry_check(&one, &e), -EINVAL);
        if (!strstr(e.message, bad[i].why))
            fail_msg("expected \"%s\" in \"%s\"", bad[i].why, e.message);
    }
    const struct metrics_family twice[] = {families[0], families[0]};
    const struct metrics_registry two = {twice, 2};
    assert_int_equal(metrics_registry_check(&two, &e), -EINVAL);
}

static void the_process_sees_itself(void **state)
{
    (void)state;
    struct process_usage u;
    process_usage(&u);
    assert_true(u.resident_bytes > 4096 && u.virtual_bytes >= u.resident_bytes);
    assert_in_range(u.n_threads, 1, 4); /* a sanitizer has one of its own */
    assert_in_range(process_open_fds(), 1, process_max_fds());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_is_what_prometheus_reads),
        cmocka_unit_test(long_and_broken_label_values_stay_harmless),
        cmocka_unit_test(a_full_buffer_is_told),
        cmocka_unit_test(a_registry_follows_the_conventions),
        cmocka_unit_test(the_process_sees_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
