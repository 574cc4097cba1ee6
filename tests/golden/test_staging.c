/* test_staging.c: an engine whose device has memory of its own gives the bits of one whose memory
 * is the host's: tensor parallel, stages, slices, INT8 keys and values, beams, copies of blocks. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/support/staged_device.h"

enum { N_PROMPT = 37, N_DECODE = 6, N_SLOTS = 3, N_ROWS = N_PROMPT + N_DECODE };

static int32_t tokens[N_SLOTS][N_ROWS];
static int32_t positions[N_ROWS];
static uint32_t tables[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];

static void make_input(void)
{
    for (uint32_t i = 0; i != N_SLOTS; i++)
        for (uint32_t j = 0; j != N_ROWS; j++)
            tokens[i][j] = (int32_t)(7 + (i * 131 + j * 29) % 500);
    for (uint32_t j = 0; j != N_ROWS; j++)
        positions[j] = (int32_t)j;
    for (uint32_t i = 0; i != N_SLOTS; i++)
        golden_blocks(i * GOLDEN_BLOCKS_PER_SEQ, tables[i]);
}

static struct plan_item item_of(uint32_t slot, uint32_t start, uint32_t n)
{
    return (struct plan_item){.slot = slot,
                              .slot_gen = slot + 1,
                              .start = start,
                              .n_tokens = n,
                              .prefix_len = N_PROMPT - 1,
                              .tokens = tokens[slot] + start,
                              .positions = positions + start,
                              .blocks = tables[slot],
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = PLAN_OUTPUT_LOGITS};
}

/* Appends an item's logits. */
static float *keep(float *at, const struct golden_engine *g, const struct result_item *r,
                   uint32_t n_rows)
{
    size_t n = (size_t)n_rows * g->arch->vocab;
    memcpy(at, r->logits, n * sizeof *at);
    return at + n;
}

/* Prompts of all slots, whole or in slices of one layer beside a decode; then decodes. The first
 * one writes into copies of its blocks. Returns the logits of the first prompt and of all
 * decodes. */
static float *run(const struct golden_options *o, bool sliced, size_t *ret_n)
{
    struct golden_engine g;
    golden_open(&g, o);
    size_t rows = N_PROMPT + (size_t)N_SLOTS * N_DECODE;
    float *logits = alloc_array(rows * g.arch->vocab, sizeof *logits), *at = logits;
    assert_non_null(logits);
    *ret_n = rows * g.arch->vocab;
    struct plan_item first = item_of(0, 0, N_PROMPT);
    struct plan plan = {.items = &first, .n_items = 1};
    at = keep(at, &g, &golden_run(&g, &plan)->items[0], N_PROMPT);
    struct plan_item both[2] = {item_of(1, 0, N_PROMPT), item_of(2, 0, N_PROMPT)};
    both[0].sliced = both[1].sliced = sliced;
    both[0].output = both[1].output = PLAN_OUTPUT_NONE;
    for (uint32_t layer = 0; layer != (sliced ? g.arch->n_layers : 1); layer++) {
        plan = (struct plan){.items = both, .n_items = 2};
        if (sliced) {
            plan.layer_begin = layer;
            plan.layer_end = layer + 1;
        }
        golden_run(&g, &plan);
    }
    uint32_t last = N_SLOTS * GOLDEN_BLOCKS_PER_SEQ; /* a block that nobody has */
    struct plan_copy copy = {tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS], last};
    uint32_t before = copy.src;
    for (uint32_t step = 0; step != N_DECODE; step++) {
        struct plan_item items[N_SLOTS];
        for (uint32_t i = 0; i != N_SLOTS; i++)
            items[i] = item_of(i, N_PROMPT + step, 1);
        tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS] = last;
        plan = (struct plan){
            .items = items, .n_items = N_SLOTS, .copies = &copy, .n_copies = step == 0 ? 1 : 0};
        const struct step_result *r = golden_run(&g, &plan);
        for (uint32_t i = 0; i != N_SLOTS; i++)
            at = keep(at, &g, &r->items[i], 1);
    }
    tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS] = before;
    assert_true(at == logits + *ret_n);
    golden_close(&g);
    return logits;
}

static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        struct golden_options o;
        bool sliced;
    } cases[] = {
        {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16}, false},
        {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP32}, true},
        {{.model = "int4-tp1", .tp = 2, .mode = K_MODE_FP16, .kv_type = K_KV_I8}, true},
        {{.model = "fp16-tp1", .tp = 2, .mode = K_MODE_FP32}, false},
        {{.model = "fp16-tp1", .tp = 1, .mode = K_MODE_FP16, .pp = 2}, true},
        {{.model = "fp16-tp1", .tp = 2, .mode = K_MODE_FP16, .kv_type = K_KV_I8, .pp = 2}, true},
    };
    make_input();
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct golden_options o = cases[i].o;
        o.n_slots = N_SLOTS;
        o.n_blocks = N_SLOTS * GOLDEN_BLOCKS_PER_SEQ + 1;
        size_t n = 0;
        staged_device_use(false);
        uint64_t uploads = staged_device_uploads(), downloads = staged_device_downloads();
        float *expected = run(&o, cases[i].sliced, &n);
        assert_int_equal(staged_device_downloads(), downloads); /* they are other devices */
        staged_device_use(true);
        float *found = run(&o, cases[i].sliced, &n);
        assert_true(staged_device_downloads() > downloads);
        if (o.tp > 1 || o.pp > 1)
            assert_true(staged_device_uploads() > uploads);
        for (size_t j = 0; j != n; j++)
            if (memcmp(&expected[j], &found[j], sizeof *found) != 0)
                fail_msg("case %zu, logit %zu: %.9g on the host, %.9g staged", i, j,
                         (double)expected[j], (double)found[j]);
        free(expected);
        free(found);
    }
}

/* The cache takes what a percentage of the device's memory leaves, and never more than the slots
 * can use. */
static void test_memory_percent(void **state)
{
    (void)state;
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "int4-tp1", .tp = 1, .n_slots = 1});
    struct engine_memory memory;
    engine_memory(local_group_engine(g.group, 0), &memory);
    const uint64_t block_bytes = memory.kv / GOLDEN_BLOCKS_PER_SEQ;
    const struct {
        uint64_t free_blocks;
        uint32_t percent;
        uint64_t kv_bytes;
        uint32_t blocks; /* 0 = refused */
    } cases[] = {
        {.free_blocks = 50, .percent = 90, .blocks = 40}, /* of 100: 50 are taken, 10 stay free */
        {.free_blocks = 100, .percent = 100, .blocks = 4 * GOLDEN_BLOCKS_PER_SEQ},
        {.free_blocks = 50, .percent = 0, .blocks = 4 * GOLDEN_BLOCKS_PER_SEQ},
        {.free_blocks = 50, .percent = 90, .kv_bytes = 7 * block_bytes, .blocks = 7},
        {.free_blocks = 50, .percent = 50}, /* nothing is left */
        {.free_blocks = 5, .percent = 90},
        {.free_blocks = 0, .percent = 0, .blocks = 4 * GOLDEN_BLOCKS_PER_SEQ},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        staged_device_set_memory(cases[i].free_blocks * block_bytes, 100 * block_bytes);
        struct engine_config config = {.model = g.dir,
                                       .tp_size = 1,
                                       .device = "cpu",
                                       .n_threads = 1,
                                       .n_slots = 4,
                                       .kv_bytes = cases[i].kv_bytes,
                                       .memory_percent = cases[i].percent};
        struct engine *engine = NULL;
        struct err e = ERR_INIT;
        int r = engine_open(&config, &engine, &e);
        if ((r == 0) != (cases[i].blocks != 0))
            fail_msg("case %zu: %d (%s)", i, r, e.message);
        if (r < 0) {
            assert_int_equal(r, -EINVAL);
            assert_non_null(strstr(e.message, "give it more memory"));
            continue;
        }
        struct plan_limits limits;
        engine_limits(engine, &limits);
        assert_int_equal(limits.n_blocks, cases[i].blocks);
        engine_close(engine);
    }
    staged_device_set_memory(0, 0);
    golden_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_memory_percent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
