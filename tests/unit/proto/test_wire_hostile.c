/* Bytes that no honest sender makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/wire.h"
#include "proto/rpc/wire_scan.h"
#include "wire_random.h"

static void expect_bytes(const void *bytes, size_t size, int code, const char *part)
{
    struct wire_generate_request *g;
    struct err e = ERR_INIT;
    int r = wire_unpack_generate_request(bytes, size, &g, &e);
    if (r != code || !strstr(e.message, part))
        fail_msg("expected %d with \"%s\", found %d with \"%s\"", code, part, r, e.message);
    assert_int_equal(e.code, code);
    wire_free_generate_request(g);
}

#define EXPECT(text, code, part) expect_bytes(text, sizeof(text) - 1, code, part)

static void empty_message(void **state)
{
    (void)state;
    struct wire_generate_request *g;
    assert_int_equal(wire_unpack_generate_request(NULL, 0, &g, NULL), 0);
    assert_string_equal(g->model, "");
    assert_null(g->text);
    assert_null(g->sampling);
    wire_free_generate_request(g);
    wire_free_generate_request(NULL);
}

static void malformed(void **state)
{
    (void)state;
    EXPECT("\x0a", -EBADMSG, "cut off");
    EXPECT("\x0a\x05pq", -EBADMSG, "longer than its message");
    EXPECT("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", -EBADMSG, "longer than its message");
    EXPECT("\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", -EBADMSG, "more than 64 bits");
    EXPECT("\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", -EBADMSG, "more than 64 bits");
    EXPECT("\x28\x80", -EBADMSG, "cut off");
    EXPECT("\x00\x01", -EBADMSG, "field number");
    EXPECT("\x0b\x0c", -EBADMSG, "wire type");                           /* groups */
    EXPECT("\x0e", -EBADMSG, "wire type");                               /* not in use */
    EXPECT("\x08\x01", -EBADMSG, "expected wire type 2");                /* model as a number */
    EXPECT("\x2a\x01x", -EBADMSG, "expected wire type 0");               /* max_tokens as text */
    EXPECT("\x1a\x03\x0a\x02\x01", -EBADMSG, "longer than its message"); /* inner length */
    EXPECT("\x1a\x03\x0a\x01\x80", -EBADMSG, "ends inside a number");
    EXPECT("\x1a\x0d\x0a\x0b\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", -EBADMSG,
           "more than ten bytes");
}

static void text(void **state)
{
    (void)state;
    EXPECT("\x12\x02\xc3(", -EBADMSG, "text: expected UTF-8, found byte 0xc3 at offset 0");
    EXPECT("\x12\x03"
           "a\0b",
           -EBADMSG, "NUL");
}

static void given_twice(void **state)
{
    (void)state;
    EXPECT("\x12\x01\x61\x1a\x00", -EBADMSG, "given twice"); /* text and tokens */
    EXPECT("\x12\x01\x61\x12\x01\x62", -EBADMSG, "given twice");
    EXPECT("\x22\x00\x22\x00", -EBADMSG, "sampling: given twice");
    EXPECT("\x28\x01\x28\x02", 0, ""); /* a number: the last one counts */
}

static void unknown_enum(void **state)
{
    (void)state;
    EXPECT("\x22\x02\x08\x63", -EBADMSG, "99 is not a value of Strategy");
}

static uint8_t *repeat(const char *unit, size_t unit_size, size_t n)
{
    uint8_t *bytes = malloc(unit_size * n);
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++)
        memcpy(bytes + i * unit_size, unit, unit_size);
    return bytes;
}

static void unknown_fields(void **state)
{
    (void)state;
    /* field 15, number 1: 28 times its size in protobuf-c */
    uint8_t *bytes = repeat("\x78\x01", 2, 2 * 1024 * 1024);
    expect_bytes(bytes, 2 * WIRE_MAX_UNKNOWN, 0, "");
    expect_bytes(bytes, 2 * WIRE_MAX_UNKNOWN + 2, -E2BIG, "more than 64 unknown fields");
    expect_bytes(bytes, 4 * 1024 * 1024, -E2BIG, "more than 64 unknown fields");
    free(bytes);
}

static void many_fields(void **state)
{
    (void)state;
    uint8_t *bytes = repeat("\x28\x01", 2, WIRE_MAX_FIELDS + 1); /* max_tokens */
    expect_bytes(bytes, 2 * WIRE_MAX_FIELDS, 0, "");
    expect_bytes(bytes, 2 * WIRE_MAX_FIELDS + 2, -E2BIG, "more than 65536 fields");
    free(bytes);
}

static void empty_submessages(void **state)
{
    (void)state;
    const size_t n = 2 * 1024 * 1024;
    uint8_t *bytes = repeat("\x22\x00", 2, n); /* choice_tokens */
    struct wire_score_request *s;
    struct err e = ERR_INIT;
    int r = wire_unpack_score_request(bytes, 2 * n, &s, &e);
    if (r != -E2BIG || !strstr(e.message, "more than"))
        fail_msg("expected -E2BIG, found %d with \"%s\"", r, e.message);
    e = (struct err)ERR_INIT;
    assert_int_equal(wire_unpack_score_request(bytes, 2 * 10000, &s, &e), -E2BIG);
    assert_non_null(strstr(e.message, "unpacking needs more than"));
    assert_int_equal(wire_unpack_score_request(bytes, 2 * 1000, &s, &e), 0);
    assert_int_equal(s->n_choice_tokens, 1000);
    wire_free_score_request(s);
    memset(bytes, 0, 2 * n);
    for (size_t i = 0; i < n; i++)
        bytes[2 * i] = 0x2a; /* empty choices */
    assert_int_equal(wire_unpack_score_request(bytes, 2 * n, &s, &e), -E2BIG);
    free(bytes);
}

static void unpacked_list_is_accepted(void **state)
{
    (void)state;
    struct wire_generate_request *g;
    struct err e = ERR_INIT;
    static const uint8_t bytes[] = {0x1a, 0x07, 0x08, 0x05, 0x0a, 0x01, 0x06, 0x08, 0x07};
    assert_int_equal(wire_unpack_generate_request(bytes, sizeof bytes, &g, &e), 0);
    static const int32_t expected[] = {5, 6, 7};
    assert_int_equal(g->tokens->n_ids, 3);
    assert_memory_equal(g->tokens->ids, expected, sizeof expected);
    wire_free_generate_request(g);
}

static void lists_of_different_length(void **state)
{
    (void)state;
    /* Step with one item: two tokens, one position */
    static const uint8_t bytes[] = {0x12, 0x09, 0x22, 0x07, 0x2a, 0x02,
                                    0x02, 0x04, 0x32, 0x01, 0x00};
    struct wire_coordinator_message *m;
    struct err e = ERR_INIT;
    assert_int_equal(wire_unpack_coordinator_message(bytes, sizeof bytes, &m, &e), -EBADMSG);
    assert_non_null(strstr(e.message, "positions: expected 2 elements, found 1"));
    assert_null(m);
}

/* The scan predicts what protobuf-c allocates: with a limit of exactly that, unpacking succeeds. */
static void prediction_covers_every_message(void **state)
{
    (void)state;
    const struct wire_map *const *const files[] = {wire_inference_maps, wire_cluster_maps,
                                                   wire_worker_maps};
    for (size_t f = 0; f < 3; f++)
        for (const struct wire_map *const *m = files[f]; *m; m++)
            for (uint32_t i = 0; i < 200; i++) {
                struct wire_arena arena, strict;
                wire_arena_init(&arena, 0, 0);
                struct wire_random r = {.state = i, .arena = &arena, .full = i % 2};
                void *plain = wire_arena_array(&arena, 1, (*m)->size);
                random_fill(&r, *m, plain, i);
                struct buf bytes = {0};
                assert_int_equal(wire_map_pack(*m, plain, &bytes), 0);
                struct wire_scan_result scan;
                assert_int_equal(wire_scan_sized((*m)->descriptor, (uint8_t *)bytes.data,
                                                 bytes.size, &scan, NULL),
                                 0);
                wire_arena_init(&strict, scan.heap + 80 * scan.n_fields, 0);
                ProtobufCAllocator allocator = wire_arena_allocator(&strict);
                ProtobufCMessage *pb = protobuf_c_message_unpack((*m)->descriptor, &allocator,
                                                                 bytes.size, (uint8_t *)bytes.data);
                assert_non_null(pb);
                assert_in_range(strict.used, 0, scan.heap);
                wire_arena_deinit(&strict);
                wire_arena_deinit(&arena);
                buf_deinit(&bytes);
            }
}

/* Valid messages with random damage: an error or an object, never anything else. */
static void damaged_messages(void **state)
{
    (void)state;
    unsigned n_refused = 0, n_runs = 0;
    for (uint32_t i = 0; i < 3000; i++) {
        const struct wire_map *m = wire_worker_maps[i % 2];
        struct wire_arena arena;
        wire_arena_init(&arena, 0, 0);
        struct wire_random r = {.state = i, .arena = &arena, .full = i % 3 == 0};
        void *plain = wire_arena_array(&arena, 1, m->size);
        random_fill(&r, m, plain, i);
        struct buf bytes = {0};
        assert_int_equal(wire_map_pack(m, plain, &bytes), 0);
        for (int k = 0; bytes.size && k < 4; k++) {
            bytes.data[random_below(&r, (uint32_t)bytes.size)] ^= (char)(1 << random_below(&r, 8));
            void *copy;
            struct err e = ERR_INIT;
            int rc = wire_map_unpack(m, (uint8_t *)bytes.data, bytes.size, &copy, &e);
            assert_int_equal(rc != 0, copy == NULL);
            assert_int_equal(rc, e.code);
            wire_map_free(copy);
            n_refused += rc != 0;
            n_runs++;
        }
        buf_deinit(&bytes);
        wire_arena_deinit(&arena);
    }
    print_message("%u of %u refused\n", n_refused, n_runs);
    assert_in_range(n_refused, n_runs / 20, n_runs - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_message),
        cmocka_unit_test(malformed),
        cmocka_unit_test(text),
        cmocka_unit_test(given_twice),
        cmocka_unit_test(unknown_enum),
        cmocka_unit_test(unknown_fields),
        cmocka_unit_test(many_fields),
        cmocka_unit_test(empty_submessages),
        cmocka_unit_test(unpacked_list_is_accepted),
        cmocka_unit_test(lists_of_different_length),
        cmocka_unit_test(prediction_covers_every_message),
        cmocka_unit_test(damaged_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
