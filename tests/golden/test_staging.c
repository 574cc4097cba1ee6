/* test_staging.c: an engine whose device has memory of its own gives the bits of one whose memory
 * is the host's: tensor parallel, stages, slices, INT8 keys and values, beams, copies of blocks. */
#include "tests/golden/script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/support/staged_device.h"

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
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct golden_options o = cases[i].o;
        size_t n = 0;
        staged_device_use(false);
        uint64_t uploads = staged_device_uploads(), downloads = staged_device_downloads();
        float *expected = script_run(&o, cases[i].sliced, &n);
        assert_int_equal(staged_device_downloads(), downloads); /* they are other devices */
        staged_device_use(true);
        float *found = script_run(&o, cases[i].sliced, &n);
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
