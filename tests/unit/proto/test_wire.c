/* Every message of the .proto files: tables fit descriptors, round trips, and the bytes that
 * Google's implementation makes from the same .proto files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/plan.h"
#include "proto/rpc/wire.h"
#include "proto/rpc/wire_scan.h"
#include "wire_random.h"

static const struct wire_map *const *const all_maps[] = {
    wire_inference_maps, wire_cluster_maps, wire_worker_maps, wire_kserve_maps, wire_details_maps};
enum { N_FILES = sizeof all_maps / sizeof all_maps[0] };

static void tables_fit_descriptors(void **state)
{
    (void)state;
    int n = 0;
    for (int f = 0; f < N_FILES; f++)
        for (const struct wire_map *const *m = all_maps[f]; *m; m++, n++) {
            struct err e = ERR_INIT;
            if (wire_map_check(*m, &e))
                fail_msg("%s", e.message);
        }
    assert_int_equal(n, 42);
}

/* A message that contains itself would let the sender choose how deep protobuf-c recurses. */
static void expect_no_recursion(const ProtobufCMessageDescriptor *d, unsigned depth)
{
    if (depth > WIRE_MAX_DEPTH)
        fail_msg("%s: nested deeper than %d: does a message refer to itself?", d->name,
                 WIRE_MAX_DEPTH);
    for (unsigned i = 0; i < d->n_fields; i++)
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            expect_no_recursion(d->fields[i].descriptor, depth + 1);
}

static void no_message_contains_itself(void **state)
{
    (void)state;
    for (int f = 0; f < N_FILES; f++)
        for (const struct wire_map *const *m = all_maps[f]; *m; m++)
            expect_no_recursion((*m)->descriptor, 1);
}

/* protobuf-c reads the bytes and writes the same ones. */
static void expect_protobuf_c_agrees(const struct wire_map *m, const struct buf *packed)
{
    const uint8_t *data = (const uint8_t *)packed->data;
    ProtobufCMessage *pb = protobuf_c_message_unpack(m->descriptor, NULL, packed->size, data);
    assert_non_null(pb);
    size_t size = protobuf_c_message_get_packed_size(pb);
    uint8_t *again = malloc(size + 1);
    assert_non_null(again);
    assert_int_equal(protobuf_c_message_pack(pb, again), size);
    if (size != packed->size || memcmp(again, data, size) != 0)
        fail_msg("%s: expected protobuf-c's %zu bytes, found %zu others", m->descriptor->short_name,
                 size, packed->size);
    free(again);
    protobuf_c_message_free_unpacked(pb, NULL);
}

static void round_trip(const struct wire_map *m, const void *plain)
{
    struct buf first = {0}, second = {0};
    void *copy;
    struct err e = ERR_INIT;
    assert_int_equal(wire_map_pack(m, plain, &first), 0);
    expect_protobuf_c_agrees(m, &first);
    if (wire_map_unpack(m, (const uint8_t *)first.data, first.size, &copy, &e))
        fail_msg("%s of %zu bytes: %s", m->descriptor->short_name, first.size, e.message);
    const char *differ = plain_differ(m, plain, copy);
    if (differ)
        fail_msg("%s: %s differs after a round trip", m->descriptor->short_name, differ);
    assert_int_equal(wire_map_pack(m, copy, &second), 0);
    assert_int_equal(first.size, second.size);
    assert_memory_equal(first.data ? first.data : "", second.data ? second.data : "", first.size);
    wire_map_free(copy);
    buf_deinit(&first);
    buf_deinit(&second);
}

static void random_round_trip(const struct wire_map *m, uint64_t seed, bool full, uint32_t pick)
{
    struct wire_arena arena;
    wire_arena_init(&arena, 0, 0);
    struct wire_random r = {.state = seed, .arena = &arena, .full = full};
    void *plain = wire_arena_array(&arena, 1, m->size);
    random_fill(&r, m, plain, pick);
    round_trip(m, plain);
    wire_arena_deinit(&arena);
}

static void every_message_with_every_field(void **state)
{
    (void)state;
    for (int f = 0; f < N_FILES; f++)
        for (const struct wire_map *const *m = all_maps[f]; *m; m++)
            for (uint32_t pick = 0; pick < oneof_members(*m); pick++)
                random_round_trip(*m, 1000 + pick, true, pick);
}

static void random_messages(void **state)
{
    (void)state;
    for (int f = 0; f < N_FILES; f++)
        for (const struct wire_map *const *m = all_maps[f]; *m; m++)
            for (uint32_t i = 0; i < 400; i++)
                random_round_trip(*m, i, false, i);
}

static void largest_step_of_smallest_items(void **state)
{
    (void)state;
    static struct plan_item items[PLAN_MAX_ITEMS];
    static const int32_t token[] = {PLAN_TOKEN_PREVIOUS}, position[] = {1};
    static const uint32_t block[] = {0};
    for (uint32_t i = 0; i < PLAN_MAX_ITEMS; i++)
        items[i] = (struct plan_item){.slot = i,
                                      .n_tokens = 1,
                                      .tokens = token,
                                      .positions = position,
                                      .blocks = block,
                                      .n_blocks = 1,
                                      .output = PLAN_OUTPUT_SAMPLE,
                                      .sampling = {.temperature = 1}};
    struct plan plan = {.epoch = 1, .step = 1, .items = items, .n_items = PLAN_MAX_ITEMS};
    const struct wire_coordinator_message message = {.step = &plan};
    round_trip(wire_worker_maps[1], &message);

    struct buf bytes = {0};
    assert_int_equal(wire_pack_coordinator_message(&message, &bytes), 0);
    struct wire_scan_result scan;
    assert_int_equal(wire_scan_sized(wire_worker_maps[1]->descriptor, (uint8_t *)bytes.data,
                                     bytes.size, &scan, NULL),
                     0);
    print_message("%zu bytes on the wire, %zu of heap, %zu beyond the factor\n", bytes.size,
                  scan.heap, scan.heap - WIRE_HEAP_FACTOR * bytes.size);
    buf_deinit(&bytes);
}

static void prompt_of_many_tokens(void **state)
{
    (void)state;
    static int32_t ids[PLAN_MAX_TOKENS];
    for (int i = 0; i < PLAN_MAX_TOKENS; i++)
        ids[i] = i * 2;
    const struct wire_token_ids tokens = {ids, PLAN_MAX_TOKENS};
    const struct wire_generate_request request = {.model = "m", .tokens = &tokens};
    struct buf bytes = {0};
    assert_int_equal(wire_pack_generate_request(&request, &bytes), 0);
    struct wire_generate_request *copy;
    struct err e = ERR_INIT;
    assert_int_equal(wire_unpack_generate_request((uint8_t *)bytes.data, bytes.size, &copy, &e), 0);
    assert_null(copy->text);
    assert_string_equal(copy->request_id, "");
    assert_int_equal(copy->tokens->n_ids, PLAN_MAX_TOKENS);
    assert_memory_equal(copy->tokens->ids, ids, sizeof ids);
    wire_free_generate_request(copy);
    buf_deinit(&bytes);
}

/* Bytes of Python's protobuf 3.21 for the values below, from proto/glmd/v1/inference.proto. */
static const uint8_t generate_bytes[] = {
    0x0a, 0x01, 0x6d, 0x12, 0x03, 0x61, 0xc3, 0xa9, 0x22, 0x24, 0x08, 0x02, 0x15, 0x00,
    0x00, 0x00, 0x00, 0x18, 0x05, 0x28, 0x00, 0x32, 0x07, 0x08, 0x07, 0x15, 0x00, 0x00,
    0xc0, 0xbf, 0x3a, 0x08, 0x0a, 0x06, 0x08, 0x01, 0x10, 0xa0, 0x9c, 0x01, 0x42, 0x04,
    0x08, 0x04, 0x28, 0x00, 0x28, 0xac, 0x02, 0x30, 0x02, 0x38, 0x01, 0x4a, 0x01, 0x72};

static void agrees_with_python_on_requests(void **state)
{
    (void)state;
    struct wire_generate_request *g;
    struct err e = ERR_INIT;
    assert_int_equal(wire_unpack_generate_request(generate_bytes, sizeof generate_bytes, &g, &e),
                     0);
    assert_string_equal(g->model, "m");
    assert_string_equal(g->text, "a\xc3\xa9");
    assert_null(g->tokens);
    assert_int_equal(g->max_tokens, 300);
    assert_int_equal(g->n, 2);
    assert_true(g->unidirectional);
    assert_false(g->return_token_ids);
    assert_string_equal(g->request_id, "r");
    const struct wire_sampling_parameters *s = g->sampling;
    assert_int_equal(s->strategy, WIRE_STRATEGY_BEAM);
    assert_true(s->has_temperature && s->temperature == 0);
    assert_true(s->has_seed && s->seed == 0);
    assert_false(s->has_top_p);
    assert_int_equal(s->top_k, 5);
    assert_int_equal(s->n_logit_bias, 1);
    assert_true(s->logit_bias[0].token == 7 && s->logit_bias[0].bias == -1.5f);
    assert_int_equal(s->invalid_ids->n_ranges, 1);
    assert_int_equal(s->invalid_ids->ranges[0].end, 20000);
    assert_int_equal(s->beam->num_beams, 4);
    assert_true(s->beam->has_consider_end && !s->beam->consider_end);
    assert_false(s->beam->has_length_penalty);
    struct buf bytes = {0};
    assert_int_equal(wire_pack_generate_request(g, &bytes), 0);
    assert_int_equal(bytes.size, sizeof generate_bytes);
    assert_memory_equal(bytes.data, generate_bytes, sizeof generate_bytes);
    buf_deinit(&bytes);
    wire_free_generate_request(g);
}

static const uint8_t step_bytes[] = {
    0x12, 0x3f, 0x08, 0x03, 0x10, 0x09, 0x1a, 0x04, 0x08, 0x01, 0x10, 0x02, 0x22,
    0x33, 0x08, 0x01, 0x10, 0x02, 0x18, 0x11, 0x20, 0x05, 0x2a, 0x01, 0x01, 0x32,
    0x02, 0xac, 0x02, 0x3a, 0x03, 0x07, 0xe8, 0x07, 0x40, 0x01, 0x62, 0x1b, 0x0d,
    0x00, 0x00, 0x00, 0x3f, 0x1d, 0x00, 0x00, 0x40, 0x3f, 0x20, 0x80, 0x80, 0x80,
    0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x5a, 0x04, 0x01, 0xf0, 0x93, 0x09};

static void agrees_with_python_on_steps(void **state)
{
    (void)state;
    struct wire_coordinator_message *m;
    struct err e = ERR_INIT;
    assert_int_equal(wire_unpack_coordinator_message(step_bytes, sizeof step_bytes, &m, &e), 0);
    const struct plan *p = m->step;
    assert_non_null(p);
    assert_null(m->grant);
    assert_int_equal(p->epoch, 3);
    assert_int_equal(p->step, 9);
    assert_int_equal(p->n_copies, 1);
    assert_int_equal(p->copies[0].dst, 2);
    assert_int_equal(p->n_items, 1);
    const struct plan_item *it = &p->items[0];
    assert_int_equal(it->slot, 1);
    assert_int_equal(it->slot_gen, 2);
    assert_int_equal(it->start, 17);
    assert_int_equal(it->prefix_len, 5);
    assert_int_equal(it->n_tokens, 1);
    assert_int_equal(it->tokens[0], PLAN_TOKEN_PREVIOUS);
    assert_int_equal(it->positions[0], 300);
    assert_int_equal(it->n_blocks, 2);
    assert_int_equal(it->blocks[1], 1000);
    assert_int_equal(it->output, PLAN_OUTPUT_SAMPLE);
    assert_null(it->targets);
    assert_true(it->sampling.temperature == 0.5f && it->sampling.top_p == 0.75f);
    assert_int_equal(it->sampling.seed, UINT64_C(1) << 63);
    assert_int_equal(it->sampling.n_banned, 2);
    assert_int_equal(it->sampling.banned[1], 150000);
    struct buf bytes = {0};
    assert_int_equal(wire_pack_coordinator_message(m, &bytes), 0);
    assert_int_equal(bytes.size, sizeof step_bytes);
    assert_memory_equal(bytes.data, step_bytes, sizeof step_bytes);
    buf_deinit(&bytes);
    wire_free_coordinator_message(m);
}

static void refuses_to_pack_contradictions(void **state)
{
    (void)state;
    const struct wire_token_ids tokens = {NULL, 0};
    struct buf out = {0};
    const struct wire_generate_request both = {.text = "a", .tokens = &tokens};
    assert_int_equal(wire_pack_generate_request(&both, &out), -EINVAL);
    const struct plan_item item = {.output = PLAN_OUTPUT_LOGITS};
    const struct plan plan = {.items = &item, .n_items = 1};
    const struct wire_coordinator_message logits = {.step = &plan};
    assert_int_equal(wire_pack_coordinator_message(&logits, &out), -EINVAL);
    out.limit = 4;
    const struct wire_generate_request large = {.text = "longer than the limit"};
    assert_int_equal(wire_pack_generate_request(&large, &out), -EFBIG);
    buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_fit_descriptors),
        cmocka_unit_test(no_message_contains_itself),
        cmocka_unit_test(every_message_with_every_field),
        cmocka_unit_test(random_messages),
        cmocka_unit_test(largest_step_of_smallest_items),
        cmocka_unit_test(prompt_of_many_tokens),
        cmocka_unit_test(agrees_with_python_on_requests),
        cmocka_unit_test(agrees_with_python_on_steps),
        cmocka_unit_test(refuses_to_pack_contradictions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
