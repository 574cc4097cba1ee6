/* test_metrics.c: what is counted of requests and steps, the table of names, and what it costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/metrics.h"

#define MS NSEC_PER_MSEC

static double sum(const struct coordinator_metrics *m, enum metrics_kept k)
{
    return m->kept[k].sum;
}

static uint64_t count(const struct coordinator_metrics *m, enum metrics_kept k)
{
    return metrics_histogram_count(&m->kept[k]);
}

#define assert_near(found, expected)                                                               \
    do {                                                                                           \
        double found_ = (found), expected_ = (expected);                                           \
        if (found_ < expected_ - 1e-9 || found_ > expected_ + 1e-9)                                \
            fail_msg("expected %.9f, found %.9f", expected_, found_);                              \
    } while (0)

static void a_stream_is_measured_from_its_arrival(void **state)
{
    (void)state;
    struct coordinator_metrics m;
    metrics_init(&m);
    struct call_metrics c = {.arrived_ns = 1000 * MS};
    struct request r = {.kind = REQUEST_GENERATE, .n_prompt_tokens = 7};
    metrics_news(&m, &c, &r); /* waits still */
    assert_int_equal(count(&m, KEPT_QUEUE), 0);
    r.started_ns = 1030 * MS;
    r.first_token_ns = r.last_token_ns = 1100 * MS;
    r.n_completion_tokens = 1;
    metrics_news(&m, &c, &r);
    metrics_news(&m, &c, &r); /* nothing new */
    assert_near(sum(&m, KEPT_QUEUE), 0.030);
    assert_near(sum(&m, KEPT_TTFT), 0.100);
    assert_int_equal(count(&m, KEPT_ITL), 0);
    r.last_token_ns = 1120 * MS; /* two choices have a token more */
    r.n_completion_tokens = 3;
    metrics_news(&m, &c, &r);
    assert_int_equal(count(&m, KEPT_ITL), 2);
    assert_near(sum(&m, KEPT_ITL), 0.040);
    r.last_token_ns = 1150 * MS;
    r.n_completion_tokens = 5;
    struct output outputs[2] = {{.finish = FINISH_LENGTH}, {.finish = FINISH_STOP}};
    r.outputs = outputs;
    r.n_outputs = 2;
    assert_int_equal(metrics_ended(&m, &c, &r, METRICS_END_UNKNOWN, 1160 * MS), METRICS_END_LENGTH);
    assert_int_equal(m.finished[METRICS_END_LENGTH], 1);
    assert_int_equal(m.prompt_tokens, 7);
    assert_int_equal(m.generation_tokens, 5);
    assert_near(sum(&m, KEPT_PREFILL), 0.070);
    assert_near(sum(&m, KEPT_DECODE), 0.050);
    assert_near(sum(&m, KEPT_INFERENCE), 0.120);
    assert_near(sum(&m, KEPT_E2E), 0.160);
    assert_near(sum(&m, KEPT_TIME_PER_TOKEN), 0.025); /* of a choice, as those between tokens */
    assert_near(sum(&m, KEPT_GENERATION_TOKENS), 5);
}

static void ends_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        enum request_kind kind;
        enum rpc_status status;
        enum metrics_end from, expected;
    } cases[] = {
        {REQUEST_GENERATE, RPC_OK, METRICS_END_UNKNOWN, METRICS_END_STOP},
        {REQUEST_SCORE, RPC_OK, METRICS_END_UNKNOWN, METRICS_END_SCORED},
        {REQUEST_FILL, RPC_CANCELLED, METRICS_END_UNKNOWN, METRICS_END_CANCELLED},
        {REQUEST_FILL, RPC_CANCELLED, METRICS_END_ABORTED, METRICS_END_ABORTED},
        {REQUEST_GENERATE, RPC_DEADLINE_EXCEEDED, METRICS_END_UNKNOWN, METRICS_END_DEADLINE},
        {REQUEST_GENERATE, RPC_UNAVAILABLE, METRICS_END_UNKNOWN, METRICS_END_UNAVAILABLE},
        {REQUEST_GENERATE, RPC_INTERNAL, METRICS_END_UNKNOWN, METRICS_END_ERROR},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct coordinator_metrics m;
        metrics_init(&m);
        struct call_metrics c = {.arrived_ns = 1};
        const struct request r = {.kind = cases[i].kind, .status = cases[i].status};
        enum metrics_end found = metrics_ended(&m, &c, &r, cases[i].from, 2);
        if (found != cases[i].expected)
            fail_msg("case %zu: expected %s, found %s", i, metrics_end_name(cases[i].expected),
                     metrics_end_name(found));
        assert_int_equal(m.finished[found], 1);
        assert_int_equal(count(&m, KEPT_TTFT), 0);
    }
    assert_int_equal(metrics_reject_of(-ENOBUFS), METRICS_REJECT_QUEUE_FULL);
    assert_int_equal(metrics_reject_of(-E2BIG), METRICS_REJECT_TOO_LONG);
    assert_int_equal(metrics_reject_of(-ENOMEM), METRICS_REJECT_ERROR);
    assert_string_equal(metrics_reject_name(METRICS_REJECT_ERROR), "error");
    assert_string_equal(metrics_end_name(METRICS_END_ERROR), "error");
}

static void a_cancellation_lasts_until_its_steps_are_done(void **state)
{
    (void)state;
    struct coordinator_metrics m;
    metrics_init(&m);
    metrics_cancel(&m, 0, 0, 0); /* nothing of it was out */
    assert_int_equal(count(&m, KEPT_CANCEL_TO_FREE), 1);
    metrics_cancel(&m, 0, 2, 10 * MS);
    metrics_cancel(&m, 1, 1, 10 * MS);
    metrics_cancel(&m, 1, 5, 10 * MS);
    metrics_step_done(&m, 0, 20 * MS);
    assert_int_equal(count(&m, KEPT_CANCEL_TO_FREE), 1);
    metrics_step_done(&m, 0, 30 * MS);
    assert_int_equal(count(&m, KEPT_CANCEL_TO_FREE), 2);
    assert_near(sum(&m, KEPT_CANCEL_TO_FREE), 0.020);
    metrics_group_down(&m, 1, 15 * MS);
    assert_int_equal(count(&m, KEPT_CANCEL_TO_FREE), 4);
    assert_near(sum(&m, KEPT_CANCEL_TO_FREE), 0.030);
    assert_int_equal(m.n_cancels, 0);
    for (int i = 0; i != 2 * METRICS_MAX_CANCELS; i++)
        metrics_cancel(&m, 2, 1, 0); /* more than are measured at once */
    assert_int_equal(m.n_cancels, METRICS_MAX_CANCELS);
}

static void the_table_is_valid_and_names_are_ours_or_known(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    if (metrics_registry_check(&coordinator_registry, &e) < 0)
        fail_msg("%s", e.message);
    for (size_t i = 0; i != coordinator_registry.n; i++) {
        const char *name = coordinator_registry.families[i].name;
        bool known = strncmp(name, "glmd_", 5) == 0 || strncmp(name, "process_", 8) == 0;
        bool vllm = strncmp(name, "vllm:", 5) == 0;
        if (vllm != (i >= METRIC_VLLM_RUNNING) || !(known || vllm))
            fail_msg("%s stands in the wrong place", name);
    }
}

/* What a stream's next token and a step cost here; printed, not checked: machines differ. */
static void the_cost_of_counting(void **state)
{
    (void)state;
    enum { TOKENS = 1000000 };
    struct coordinator_metrics m;
    metrics_init(&m);
    struct call_metrics c = {.arrived_ns = 1, .started_ns = 1, .first_ns = 1, .n_tokens = 1};
    struct request r = {.kind = REQUEST_GENERATE, .n_completion_tokens = 1, .started_ns = 1};
    int64_t begin = clock_now_ns();
    for (int i = 0; i != TOKENS; i++) {
        r.n_completion_tokens++;
        r.last_token_ns += 20 * MS + i % 64 * MS;
        metrics_news(&m, &c, &r);
    }
    int64_t token_ns = clock_now_ns() - begin;
    begin = clock_now_ns();
    for (int i = 0; i != TOKENS; i++) {
        metrics_step(&m, (uint32_t)i % 64);
        metrics_step_done(&m, 0, i);
    }
    int64_t step_ns = clock_now_ns() - begin;
    assert_int_equal(count(&m, KEPT_ITL), TOKENS);
    printf("counting: %.1f ns a token, %.1f ns a step\n", (double)token_ns / TOKENS,
           (double)step_ns / TOKENS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_is_measured_from_its_arrival),
        cmocka_unit_test(ends_are_told_apart),
        cmocka_unit_test(a_cancellation_lasts_until_its_steps_are_done),
        cmocka_unit_test(the_table_is_valid_and_names_are_ours_or_known),
        cmocka_unit_test(the_cost_of_counting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
