/* The messages of every step are packed and read by hand (wire_step.h): as the tables do it, for
 * every message, damaged ones included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "proto/rpc/wire_step.h"
#include "wire_random.h"

enum { STEP_DONE = 3, STEP = 1 }; /* members of the two messages' oneofs, from 0 */

static const struct wire_map *results_map(void)
{
    return wire_worker_maps[0];
}

static const struct wire_map *steps_map(void)
{
    return wire_worker_maps[1];
}

/* A random message with this member. */
struct sample {
    struct wire_arena arena;
    struct wire_random random;
    void *plain;
};

static void open_sample(struct sample *s, const struct wire_map *m, uint32_t member, uint64_t seed)
{
    wire_arena_init(&s->arena, 0, 0);
    s->random = (struct wire_random){.state = seed, .arena = &s->arena, .full = seed % 3 == 0};
    s->plain = wire_arena_array(&s->arena, 1, m->size);
    random_fill(&s->random, m, s->plain, member);
}

static void close_sample(struct sample *s)
{
    wire_arena_deinit(&s->arena);
}

static void steps_have_the_same_bytes(void **state)
{
    (void)state;
    size_t largest = 0;
    for (uint64_t i = 0; i != 2000; i++) {
        struct sample s;
        open_sample(&s, steps_map(), STEP, i);
        const struct wire_coordinator_message *m = s.plain;
        assert_non_null(m->step);
        struct buf found = {0}, expected = {0};
        assert_int_equal(buf_append(&found, "in front", 8), 0);
        assert_int_equal(wire_pack_coordinator_message(m, &found), 0);
        assert_int_equal(wire_map_pack(steps_map(), m, &expected), 0);
        if (found.size - 8 != expected.size ||
            memcmp(found.data + 8, expected.data, expected.size) != 0)
            fail_msg("message %u: expected %zu bytes, found %zu others", (unsigned)i, expected.size,
                     found.size - 8);
        assert_int_equal(found.data[found.size], 0);
        largest = MAX(largest, expected.size);
        buf_deinit(&found);
        buf_deinit(&expected);
        close_sample(&s);
    }
    print_message("up to %zu bytes\n", largest);
}

/* Every length prefix that a list can have. */
static void long_lists_have_the_same_bytes(void **state)
{
    (void)state;
    static int32_t ids[70000];
    for (size_t i = 0; i != ARRAY_LEN(ids); i++)
        ids[i] = i % 5 ? (int32_t)(i % 300) : -(int32_t)i;
    static const uint32_t sizes[] = {1,   61,  62,   63,    64,    126,  127,
                                     128, 129, 8000, 16383, 16384, 66000};
    for (size_t i = 0; i != ARRAY_LEN(sizes); i++) {
        uint32_t n = sizes[i];
        const struct plan_item items[] = {
            {.n_tokens = n, .tokens = ids, .positions = ids, .targets = ids},
            {.n_blocks = n,
             .n_blocks_kept = n,
             .blocks = (const uint32_t *)ids,
             .sampling = {.temperature = -0.0f, .kept = true}},
            {.sampling = {.n_history = n, .history = ids, .n_banned = n, .banned = ids}},
            {.slot = n}};
        const struct plan plan = {.step = n, .items = items, .n_items = ARRAY_LEN(items)};
        const struct wire_coordinator_message m = {.step = &plan};
        struct buf found = {0}, expected = {0};
        assert_int_equal(wire_pack_coordinator_message(&m, &found), 0);
        assert_int_equal(wire_map_pack(steps_map(), &m, &expected), 0);
        assert_int_equal(found.size, expected.size);
        assert_memory_equal(found.data, expected.data, expected.size);
        buf_deinit(&found);
        buf_deinit(&expected);
    }
}

static void a_limit_is_kept(void **state)
{
    (void)state;
    static const int32_t ids[100];
    const struct plan_item item = {.n_tokens = 100, .tokens = ids, .positions = ids};
    const struct plan plan = {.step = 1, .items = &item, .n_items = 1};
    const struct wire_coordinator_message m = {.step = &plan};
    struct buf out = {0};
    assert_int_equal(wire_pack_coordinator_message(&m, &out), 0);
    size_t size = out.size;
    for (size_t limit = size - 2; limit != size + 2; limit++) {
        struct buf limited = {.limit = limit};
        assert_int_equal(wire_pack_coordinator_message(&m, &limited), limit < size ? -EFBIG : 0);
        assert_int_equal(limited.size, limit < size ? 0 : size);
        buf_deinit(&limited);
    }
    buf_deinit(&out);
}

/* Whoever reads it by hand and whoever reads it by the table: the same message. *ret_taken: by
 * hand. */
static void expect_same(const uint8_t *data, size_t size, bool *ret_taken)
{
    struct wire_worker_message *fast = NULL;
    void *slow = NULL;
    struct err e = ERR_INIT;
    uint8_t *exact = malloc(size ? size : 1); /* a sanitizer sees reads behind the end */
    assert_non_null(exact);
    memcpy(exact, data, size);
    *ret_taken = wire_step_unpack(exact, size, &fast);
    int r = wire_map_unpack(results_map(), exact, size, &slow, &e);
    if (*ret_taken && r < 0 && r != -E2BIG)
        fail_msg("read by hand, and the table says %s", e.message);
    const char *differ = *ret_taken && r == 0 ? plain_differ(results_map(), fast, slow) : NULL;
    if (differ)
        fail_msg("%s differs", differ);
    wire_free_worker_message(fast);
    wire_map_free(slow);
    free(exact);
}

static void drop_beams(struct step_result *result)
{
    result->groups = NULL;
    result->n_groups = 0;
}

static void results_are_read_by_hand(void **state)
{
    (void)state;
    for (uint64_t i = 0; i != 2000; i++) {
        struct sample s;
        open_sample(&s, results_map(), STEP_DONE, i);
        struct wire_worker_message *m = s.plain;
        struct step_result *result = (struct step_result *)m->step_done;
        bool beams = i % 8 == 0 && result->n_groups;
        if (!beams)
            drop_beams(result);
        struct buf bytes = {0};
        bool taken;
        assert_int_equal(wire_pack_worker_message(m, &bytes), 0);
        expect_same((const uint8_t *)bytes.data, bytes.size, &taken);
        if (taken == beams)
            fail_msg("message %u %s", (unsigned)i, taken ? "has beams" : "was left to the table");
        if (taken) {
            struct wire_worker_message *copy;
            struct err e = ERR_INIT;
            assert_int_equal(
                wire_unpack_worker_message((uint8_t *)bytes.data, bytes.size, &copy, &e), 0);
            assert_null(plain_differ(results_map(), m, copy));
            wire_free_worker_message(copy);
        }
        buf_deinit(&bytes);
        close_sample(&s);
    }
}

static void the_rest_is_left_to_the_table(void **state)
{
    (void)state;
    static const struct {
        const char *what, *bytes;
        size_t size;
    } rest[] = {
        {"nothing", "", 0},
        {"another body", "\x0a\x00", 2},
        {"two bodies", "\x22\x00\x22\x00", 4},
        {"cut", "\x22\x02\x08", 3},
        {"a field of a later version", "\x22\x02\x38\x01", 4},
        {"field 0", "\x22\x02\x00\x01", 4},
        {"a tag in two bytes", "\x22\x03\x88\x00\x01", 5},
        {"a number of ten bytes", "\x22\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 13},
        {"a slot of 33 bits", "\x22\x08\x1a\x06\x08\x80\x80\x80\x80\x10", 10},
        {"items twice", "\x22\x06\x1a\x00\x10\x01\x1a\x00", 8},
        {"an empty list", "\x22\x04\x1a\x02\x32\x00", 6},
        {"the second of three log-probabilities is cut", "\x22\x08\x1a\x06\x2a\x00\x2a\x05\x2a\x00",
         10},
        {"half a float", "\x22\x06\x1a\x04\x32\x02\x00\x00", 8},
        {"log-probabilities of nothing", "\x22\x08\x1a\x06\x42\x04\x00\x00\x00\x00", 10},
    };
    for (size_t i = 0; i != ARRAY_LEN(rest); i++) {
        struct wire_worker_message *m = NULL;
        if (wire_step_unpack((const uint8_t *)rest[i].bytes, rest[i].size, &m))
            fail_msg("%s was taken", rest[i].what);
        assert_null(m);
    }
    struct buf many = {0}; /* more items than a step has */
    assert_int_equal(buf_append(&many, "\x22\x82\x10", 3), 0);
    for (int i = 0; i != PLAN_MAX_ITEMS + 1; i++)
        assert_int_equal(buf_append(&many, "\x1a", 2), 0);
    struct wire_worker_message *m = NULL;
    assert_false(wire_step_unpack((uint8_t *)many.data, many.size, &m));
    buf_deinit(&many);
}

static void damaged_results_are_read_alike(void **state)
{
    (void)state;
    unsigned n_taken = 0, n_runs = 0;
    for (uint64_t i = 0; i != 4000; i++) {
        struct sample s;
        open_sample(&s, results_map(), STEP_DONE, i);
        struct wire_worker_message *m = s.plain;
        drop_beams((struct step_result *)m->step_done);
        struct buf bytes = {0};
        assert_int_equal(wire_pack_worker_message(m, &bytes), 0);
        for (int k = 0; bytes.size && k != 4; k++) {
            uint32_t at = random_below(&s.random, (uint32_t)bytes.size);
            bool taken;
            bytes.data[at] ^= (char)(1 << random_below(&s.random, 8));
            expect_same((const uint8_t *)bytes.data, bytes.size, &taken);
            n_taken += taken;
            n_runs++;
            expect_same((const uint8_t *)bytes.data, at, &taken);
        }
        buf_deinit(&bytes);
        close_sample(&s);
    }
    print_message("%u of %u taken\n", n_taken, n_runs);
    assert_in_range(n_taken, n_runs / 20, n_runs - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_have_the_same_bytes),
        cmocka_unit_test(long_lists_have_the_same_bytes),
        cmocka_unit_test(a_limit_is_kept),
        cmocka_unit_test(results_are_read_by_hand),
        cmocka_unit_test(the_rest_is_left_to_the_table),
        cmocka_unit_test(damaged_results_are_read_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
