/* test_timeline.c: the ring of timelines, and the traceparent header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/timeline.h"

static struct request named(const char *id)
{
    struct request r = {.kind = REQUEST_FILL, .arrived_ns = 5, .n_prompt_tokens = 3};
    snprintf(r.client_id, sizeof r.client_id, "%s", id);
    return r;
}

static struct timeline *new_timeline(void)
{
    struct timeline *t = NULL;
    assert_int_equal(timeline_new(&t), 0);
    return t;
}

static void events_stand_in_their_order(void **state)
{
    (void)state;
    struct timeline *t = new_timeline();
    struct request r = named("a");
    uint64_t a = timeline_open(t, &r, "trace");
    timeline_add(t, a, WIRE_EVENT_QUEUED, NULL, 0, 4, 10);
    timeline_add(t, a, WIRE_EVENT_STARTED, "left", 7, 0, 20);
    timeline_add(t, a, WIRE_EVENT_PREFILL, "left", 7, 100, 30);
    timeline_add(t, a, WIRE_EVENT_PREFILL, "left", 7, 50, 40); /* the same, further on */
    timeline_add(t, a, WIRE_EVENT_PREFILL, "right", 8, 1, 50);
    snprintf(r.message, sizeof r.message, "late");
    r.status = RPC_DEADLINE_EXCEEDED;
    r.n_completion_tokens = 9;
    timeline_end(t, a, &r, METRICS_END_DEADLINE, 60);
    const struct timeline_entry *e = timeline_find(t, "a", 0);
    assert_non_null(e);
    assert_int_equal(e->n_events, 5);
    assert_int_equal(e->events[2].n, 150);
    assert_int_equal(e->events[2].at_ns, 30);
    assert_int_equal(e->events[2].until_ns, 40);
    assert_string_equal(timeline_group(t, &e->events[0]), "");
    assert_string_equal(timeline_group(t, &e->events[2]), "left");
    assert_string_equal(timeline_group(t, &e->events[3]), "right");
    assert_int_equal(e->events[4].kind, WIRE_EVENT_ENDED);
    assert_true(e->ended);
    assert_int_equal(e->end, METRICS_END_DEADLINE);
    assert_string_equal(e->message, "late");
    assert_string_equal(e->trace, "trace");
    assert_null(timeline_find(t, "b", 0));
    timeline_free(t);
}

static void refusals_are_remembered(void **state)
{
    (void)state;
    struct timeline *t = new_timeline();
    struct request r = named("full");
    r.arrived_ns = 0; /* refused before it had a time */
    timeline_refuse(t, &r, "", METRICS_REJECT_QUEUE_FULL, "the queue is full", 70);
    const struct timeline_entry *e = timeline_find(t, "full", 0);
    assert_true(e && e->ended && e->refused);
    assert_int_equal(e->reject, METRICS_REJECT_QUEUE_FULL);
    assert_int_equal(e->arrived_ns, 70);
    assert_string_equal(e->message, "the queue is full");
    assert_int_equal(e->n_events, 1);
    assert_int_equal(e->events[0].kind, WIRE_EVENT_REFUSED);
    timeline_free(t);
}

static void the_end_always_has_room(void **state)
{
    (void)state;
    struct timeline *t = new_timeline();
    struct request r = named("a");
    uint64_t a = timeline_open(t, &r, "");
    for (int i = 0; i != 100; i++)
        timeline_add(t, a, i % 2 ? WIRE_EVENT_PAUSED : WIRE_EVENT_GOES_ON, NULL, 0, 0, i);
    timeline_end(t, a, &r, METRICS_END_STOP, 100);
    const struct timeline_entry *e = timeline_find(t, "a", 0);
    assert_int_equal(e->n_events, TIMELINE_EVENTS);
    assert_int_equal(e->n_lost, 100 - (TIMELINE_EVENTS - 1));
    assert_int_equal(e->events[TIMELINE_EVENTS - 1].kind, WIRE_EVENT_ENDED);
    timeline_free(t);
}

static void the_oldest_makes_room(void **state)
{
    (void)state;
    struct timeline *t = new_timeline();
    struct request r = named("same"), other = named("other");
    uint64_t first = timeline_open(t, &r, "");
    uint64_t second = timeline_open(t, &r, "");
    assert_int_equal(timeline_find(t, "same", 0)->serial, second);
    assert_int_equal(timeline_find(t, "same", second)->serial, first);
    assert_null(timeline_find(t, "same", first));
    for (int i = 0; i != TIMELINE_ENTRIES - 1; i++)
        timeline_open(t, &other, "");
    timeline_add(t, first, WIRE_EVENT_PAUSED, NULL, 0, 0, 1); /* nobody's any more */
    assert_int_equal(timeline_find(t, "same", 0)->serial, second);
    assert_null(timeline_find(t, "same", second));
    uint64_t last = timeline_open(t, &other, "");
    assert_null(timeline_find(t, "same", 0));
    assert_int_equal(timeline_find(t, "other", 0)->serial, last);
    timeline_free(t);
}

static void more_groups_than_names(void **state)
{
    (void)state;
    struct timeline *t = new_timeline();
    struct request r = named("a");
    char name[16] = "";
    uint64_t a = 0;
    for (int i = 0; i != 2 * TIMELINE_GROUPS; i++) {
        snprintf(name, sizeof name, "g%d", i);
        a = timeline_open(t, &r, "");
        timeline_add(t, a, WIRE_EVENT_STARTED, name, 1, 0, i);
    }
    const struct timeline_entry *e = timeline_find(t, "a", 0);
    assert_string_equal(timeline_group(t, &e->events[0]), "");
    timeline_free(t);
}

static void only_well_formed_traceparents_count(void **state)
{
    (void)state;
    static const struct {
        const char *header, *trace;
    } cases[] = {
        {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
         "4bf92f3577b34da6a3ce929d0e0e4736"},
        {"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
         "4bf92f3577b34da6a3ce929d0e0e4736"},
        {NULL, ""},
        {"", ""},
        {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", ""},
        {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", ""},
        {"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", ""},
        {"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", ""},
        {"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""},
        {"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", ""},
        {"00-4bf92f3577b34da6a3ce929d0e0e4736x00f067aa0ba902b7-01", ""},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        char trace[TIMELINE_TRACE_BYTES];
        timeline_trace(cases[i].header, trace);
        if (strcmp(trace, cases[i].trace) != 0)
            fail_msg("%s: expected \"%s\", found \"%s\"", cases[i].header, cases[i].trace, trace);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_stand_in_their_order),
        cmocka_unit_test(refusals_are_remembered),
        cmocka_unit_test(the_end_always_has_room),
        cmocka_unit_test(the_oldest_makes_room),
        cmocka_unit_test(more_groups_than_names),
        cmocka_unit_test(only_well_formed_traceparents_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
