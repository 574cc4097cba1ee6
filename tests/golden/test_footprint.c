/* What footprint.h computes against engines that were really opened: every golden model that a
 * degree divides, and the demo model. */
#include "tests/golden/golden.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/shard.h"
#include "worker/engine/engine.h"
#include "worker/engine/footprint.h"

static void equal(const char *model, const struct engine_config *c, const char *what,
                  uint64_t computed, uint64_t found)
{
    if (computed != found)
        fail_msg("%s, rank %u of %u, stage %u of %u, mode %d, %u slots: %s: computed %llu, the "
                 "engine has %llu",
                 model, c->tp_rank, c->tp_size, c->stage, c->pp_size, (int)c->mode, c->n_slots,
                 what, (unsigned long long)computed, (unsigned long long)found);
}

static void compare(const char *model, const struct engine_config *c)
{
    const struct arch *a = model_dir_arch(c->model);
    struct footprint_rank rank = {.arch = a,
                                  .scheme = model_dir_scheme(c->model),
                                  .sizes = k_sizes("cpu"),
                                  .mode = c->mode,
                                  .kv_type = c->kv_type,
                                  .tp_size = c->tp_size,
                                  .layer_end = a->n_layers};
    if (c->pp_size)
        assert_int_equal(shard_stage_layers(a->n_layers, c->pp_size, NULL, c->stage,
                                            &rank.layer_begin, &rank.layer_end),
                         0);
    struct plan_limits computed, found;
    struct footprint f;
    struct err e = ERR_INIT;
    footprint_limits(a, c->n_slots, c->max_step_tokens, &computed);
    if (footprint_of(&rank, &computed, &f, &e) < 0)
        fail_msg("%s, %u ranks: %s", model, c->tp_size, e.message);

    struct engine *g;
    if (engine_open(c, &g, &e) < 0)
        fail_msg("%s, %u ranks: %s", model, c->tp_size, e.message);
    struct engine_memory m;
    engine_memory(g, &m);
    engine_limits(g, &found);
    engine_close(g);
    equal(model, c, "tokens per step", computed.max_tokens, found.max_tokens);
    equal(model, c, "weights", f.weights, m.weights);
    equal(model, c, "KV cache", f.kv_block * found.n_blocks, m.kv);
    equal(model, c, "scratch", f.scratch + f.scratch_host, m.scratch);
}

static void compare_all(const char *model, const struct model_dir *dir, uint32_t max_tp)
{
    static const struct {
        enum k_mode mode;
        uint32_t n_slots, max_step_tokens;
        enum k_kv_type kv_type;
    } cases[] = {{K_MODE_FP32, 1, 0, K_KV_AUTO},
                 {K_MODE_FP16, 3, 64, K_KV_AUTO},
                 {K_MODE_A8, 40, 1, K_KV_I8}};
    for (uint32_t pp = 1; pp <= 3; pp++) {
        for (uint32_t stage = 0; stage != pp; stage++)
            compare(model, &(struct engine_config){.model = dir,
                                                   .tp_size = 2,
                                                   .pp_size = pp,
                                                   .stage = stage,
                                                   .device = "cpu",
                                                   .n_threads = 1,
                                                   .n_slots = 2,
                                                   .n_kv_blocks = 7});
    }
    for (uint32_t tp = 1; tp <= max_tp; tp *= 2) {
        for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
            for (uint32_t rank = 0; rank < tp; rank += MAX(tp - 1, 1u))
                compare(model, &(struct engine_config){.model = dir,
                                                       .tp_size = tp,
                                                       .tp_rank = rank,
                                                       .device = "cpu",
                                                       .n_threads = 1,
                                                       .mode = cases[i].mode,
                                                       .kv_type = cases[i].kv_type,
                                                       .n_slots = cases[i].n_slots,
                                                       .max_step_tokens = cases[i].max_step_tokens,
                                                       .n_kv_blocks = 7});
        }
    }
}

static void open_dir(const char *path, struct model_dir **ret)
{
    struct err e = ERR_INIT;
    if (model_dir_open(path, ret, &e) < 0)
        fail_msg("%s: %s", path, e.message);
}

static void test_golden_models(void **state)
{
    (void)state;
    static const char *const models[] = {"fp16-tp1", "int4-tp1", "int4-tp1-head8",
                                         "int4-tp2", "int4-tp4", "int8-tp2"};
    for (size_t i = 0; i != ARRAY_LEN(models); i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", getenv("GLMD_GOLDEN_MODELS"), models[i]);
        struct model_dir *dir;
        open_dir(path, &dir);
        compare_all(models[i], dir, 4);
        model_dir_close(dir);
    }
}

static void test_demo_model(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/deploy/demo/model", getenv("GLMD_SOURCE_DIR"));
    struct model_dir *dir;
    open_dir(path, &dir);
    compare_all("demo", dir, 4);
    model_dir_close(dir);
}

/* What is planned for GPUs has the scales of the CPU's INT8 cache, and no FP32 cache. */
static void test_cuda_cache(void **state)
{
    (void)state;
    const struct quant_scheme scheme = {.weights = QUANT_INT4};
    struct footprint_rank rank = {.arch = &arch_glm_130b,
                                  .scheme = &scheme,
                                  .sizes = k_sizes("cuda:0"),
                                  .mode = K_MODE_FP16,
                                  .kv_type = K_KV_F32,
                                  .tp_size = 8,
                                  .layer_end = arch_glm_130b.n_layers};
    struct plan_limits limits;
    struct footprint f;
    struct err e = ERR_INIT;
    footprint_limits(rank.arch, 1, 0, &limits);
    assert_int_equal(footprint_of(&rank, &limits, &f, &e), -EINVAL);
    assert_string_equal(e.message, "backend cuda has no KV cache in fp32");
    rank.kv_type = K_KV_F16;
    assert_int_equal(footprint_of(&rank, &limits, &f, &e), 0);
    rank.sizes = k_sizes("cpu");
    rank.kv_type = K_KV_I8;
    assert_int_equal(f.kv_block, 16 * 70 * 12 * 2 * 256);
    assert_int_equal(footprint_of(&rank, &limits, &f, &e), 0);
    assert_int_equal(f.kv_block, 16 * (70 * 12 + 1) * 2 * (128 + 2)); /* an odd number of heads */
    rank.sizes = k_sizes("cuda");
    assert_int_equal(footprint_of(&rank, &limits, &f, &e), 0);
    assert_int_equal(f.kv_block, 16 * 70 * 12 * 2 * (128 + 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_models),
        cmocka_unit_test(test_demo_model),
        cmocka_unit_test(test_cuda_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
