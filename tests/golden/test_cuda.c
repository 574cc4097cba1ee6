/* test_cuda.c: the whole engine on the CUDA backend, executed on the emulated GPU: against the CPU
 * backend, tensor parallel, in stages, in slices, with INT8 keys and values; and what must be equal
 * bit for bit: slices against whole prompts, stages against one, a run against the next. */
#include "tests/golden/script.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/footprint.h"
#ifndef ON_A_GPU
#include "tests/support/emulated_blas.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"
#endif

/* Emulated: a GPU for every rank. With ON_A_GPU the program has the real backend: all ranks share
 * the device that GLMD_GPU names. */
static const char *device = "cuda";

struct run {
    struct golden_options o;
    bool sliced;
};

static float *on_gpu(struct run r, size_t *ret_n)
{
    r.o.device = device;
    return script_run(&r.o, r.sliced, ret_n);
}

static void same_bits(const float *a, const float *b, size_t n, const char *what)
{
    const unsigned char *bytes_a = (const unsigned char *)a, *bytes_b = (const unsigned char *)b;
    for (size_t i = 0; i != n; i++)
        if (memcmp(bytes_a + i * sizeof *a, bytes_b + i * sizeof *b, sizeof *a) != 0)
            fail_msg("%s: logit %zu: %.9g and %.9g", what, i, (double)a[i], (double)b[i]);
}

/* Root of the mean square of the differences, as a share of that of the values. */
static double distance(const float *got, const float *want, size_t n)
{
    double differences = 0, values = 0;
    for (size_t i = 0; i != n; i++) {
        double d = (double)got[i] - (double)want[i];
        differences += d * d;
        values += (double)want[i] * (double)want[i];
    }
    return sqrt(differences / values);
}

/* Logits of half-precision activations against single precision on the CPU. With INT8 keys and
 * values, small differences in front of the rounding become steps of a 127th behind it. */
static void test_against_cpu(void **state)
{
    (void)state;
    static const struct {
        struct run r;
        double most;
    } cases[] = {
        {{{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16}, false}, 8e-3},
        {{{.model = "fp16-tp1", .tp = 1, .mode = K_MODE_FP16}, false}, 8e-3},
        {{{.model = "int8-tp2", .tp = 2, .mode = K_MODE_FP16}, false}, 8e-3},
        {{{.model = "int4-tp1", .tp = 2, .mode = K_MODE_FP16, .kv_type = K_KV_I8}, true}, 4e-2},
        {{{.model = "int4-tp4", .tp = 4, .mode = K_MODE_FP16, .pp = 2}, false}, 8e-3},
#ifndef ON_A_GPU /* cuBLASLt may not be there */
        {{{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16, .library_rows = 2}, false}, 8e-3},
#endif
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        size_t n;
        struct golden_options o = cases[i].r.o;
        o.mode = K_MODE_FP32; /* keys and values in INT8 on both, where they are */
        float *want = script_run(&o, false, &n);
        float *got = on_gpu(cases[i].r, &n);
        double found = distance(got, want, n);
        print_message("%s, %ux%u: relative distance to the CPU in fp32: %.2g\n", o.model, o.tp,
                      MAX(o.pp, 1u), found);
        if (!(found <= cases[i].most))
            fail_msg("case %zu: relative distance %.3g, expected at most %.3g", i, found,
                     cases[i].most);
#ifndef ON_A_GPU
        assert_int_equal(emulated_blas_state()->n_products > 0, o.library_rows > 0);
#endif
        free(want);
        free(got);
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        struct run a, b;
    } cases[] = {
        {"again",
         {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16}, false},
         {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16}, false}},
        {"slices",
         {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16, .kv_type = K_KV_I8}, false},
         {{.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16, .kv_type = K_KV_I8}, true}},
        {"stages",
         {{.model = "int4-tp1", .tp = 2, .mode = K_MODE_FP16}, false},
         {{.model = "int4-tp1", .tp = 2, .mode = K_MODE_FP16, .pp = 3}, true}},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        size_t n;
        float *a = on_gpu(cases[i].a, &n), *b = on_gpu(cases[i].b, &n);
        same_bits(a, b, n, cases[i].what);
        free(a);
        free(b);
    }
}

#ifdef ON_A_GPU

/* Ranks that share the GPU add up over its memory: the bits of sums through the host. */
static void test_peers(void **state)
{
    (void)state;
    static const struct golden_options cases[] = {
        {.model = "int4-tp2", .tp = 2, .mode = K_MODE_FP16},
        {.model = "int4-tp4", .tp = 4, .mode = K_MODE_FP16},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        size_t n;
        struct run r = {cases[i], false};
        r.o.collectives = K_COMM_HOST;
        float *want = on_gpu(r, &n);
        r.o.collectives = K_COMM_PEER;
        float *got = on_gpu(r, &n);
        same_bits(got, want, n, "peers' memory");
        free(want);
        free(got);
    }
}

#else

/* Whatever sums over ranks, the logits have the bits of sums through the host; and it is what was
 * asked for that sums. */
static void test_collectives(void **state)
{
    (void)state;
    static const struct {
        struct golden_options o;
        bool no_peers;
        const char *words;
    } cases[] = {
        {{.model = "int4-tp2", .tp = 2, .collectives = K_COMM_AUTO}, false, "peers' memory up to"},
        {{.model = "int4-tp2", .tp = 2, .collectives = K_COMM_AUTO}, true, "page-locked host"},
        {{.model = "int4-tp4", .tp = 4, .collectives = K_COMM_PEER}, false, "for all sums"},
        {{.model = "int4-tp4", .tp = 4, .collectives = K_COMM_NCCL}, false, "NCCL 2.28.9"},
        {{.model = "int4-tp4", .tp = 2, .pp = 2, .collectives = K_COMM_NCCL}, false, "NCCL 2"},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        size_t n;
        struct run r = {cases[i].o, false};
        r.o.mode = K_MODE_FP16;
        r.o.collectives = K_COMM_HOST;
        float *want = on_gpu(r, &n);
        r.o.collectives = cases[i].o.collectives;
        emulated_driver_state()->no_peers = cases[i].no_peers;
        float *got = on_gpu(r, &n);
        same_bits(got, want, n, cases[i].words);
        free(want);
        free(got);

        struct golden_engine g;
        r.o.device = "cuda";
        r.o.n_slots = 1;
        golden_open(&g, &r.o);
        struct err e = ERR_INIT;
        uint64_t hash = 0;
        if (local_group_known_answer(g.group, &hash, &e))
            fail_msg("%s", e.message);
        for (uint32_t rank = 0; rank != r.o.tp * MAX(r.o.pp, 1u); rank++) {
            const char *found = engine_collectives(local_group_engine(g.group, rank));
            if (!strstr(found, cases[i].words))
                fail_msg("rank %u: \"%s\", expected \"%s\"", rank, found, cases[i].words);
            struct k_comm_times t;
            engine_collective_times(local_group_engine(g.group, rank), &t);
            assert_true(t.n_sums > 0 && t.sum_ns > 0); /* of the known answer */
        }
        golden_close(&g);
        emulated_driver_reset();
    }
}

/* A greedy prompt in slot 0. */
static struct plan_item prompt_of_four(uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ])
{
    static const int32_t ids[4] = {5, 6, 7, 8}, positions[4] = {0, 1, 2, 3};
    golden_blocks(0, blocks);
    return (struct plan_item){.slot_gen = 1,
                              .n_tokens = 4,
                              .prefix_len = 3,
                              .tokens = ids,
                              .positions = positions,
                              .blocks = blocks,
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = PLAN_OUTPUT_SAMPLE,
                              .sampling = {.temperature = 1.0f, .top_k = 1}};
}

/* A rank's sum fails: the step fails on all of them, as a peer's failure and not as a device's. */
static void test_sums_fail(void **state)
{
    (void)state;
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "int4-tp2",
                                             .tp = 2,
                                             .mode = K_MODE_FP16,
                                             .device = "cuda",
                                             .collectives = K_COMM_NCCL,
                                             .n_slots = 1});
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    struct plan_item item = prompt_of_four(blocks);
    golden_step(&g, &item, 1, NULL, 0, NULL, 0);
    emulated_nccl_state()->async_error = 6;
    struct plan plan = {.epoch = g.epoch, .step = g.step + 1, .items = &item, .n_items = 1};
    item.slot_gen = 2;
    const struct step_result *result;
    struct err e = ERR_INIT;
    int r = local_group_step(g.group, &plan, &result, &e);
    if ((r != -ECONNRESET && r != -ECANCELED) || !strstr(e.message, "sums over 2 ranks: "))
        fail_msg("%d: %s", r, e.message);
    golden_close(&g);
    emulated_nccl_reset();
    assert_int_equal(emulated_nccl_state()->n_comms, 0);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* The device fails in a step: the epoch is over, the message says where, and nothing is lost. */
static void test_device_fails(void **state)
{
    (void)state;
    struct golden_engine g;
    golden_open(
        &g,
        &(struct golden_options){
            .model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16, .device = "cuda:0", .n_slots = 1});
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    struct plan_item item = prompt_of_four(blocks);
    golden_step(&g, &item, 1, NULL, 0, NULL, 0);
    struct emulated_driver *d = emulated_driver_state();
    d->fail = "copy";
    d->error = EMULATED_ILLEGAL_ADDRESS;
    d->sticky = 1;
    struct plan plan = {.epoch = g.epoch, .step = g.step + 1, .items = &item, .n_items = 1};
    item.slot_gen = 2;
    const struct step_result *result;
    for (int again = 0; again != 2; again++) {
        struct err e = ERR_INIT;
        assert_int_equal(local_group_step(g.group, &plan, &result, &e), -EIO);
        const char *words = again ? "an earlier step of this epoch failed"
                                  : "cuda:0: an illegal memory access was encountered "
                                    "(cudaErrorIllegalAddress), first seen at";
        if (!strstr(e.message, words))
            fail_msg("%s", e.message);
    }
    golden_close(&g);
    emulated_driver_reset();
    assert_int_equal(d->allocated, 0);
    assert_int_equal(d->host_allocated, 0);
}

/* What is planned is what the engine says it takes, and what it really takes of the device. */
static void test_memory(void **state)
{
    (void)state;
    static const struct golden_options cases[] = {
        {.model = "int4-tp1", .tp = 1, .kv_type = K_KV_I8, .n_slots = 3},
        {.model = "int4-tp2", .tp = 2, .n_slots = 2},
        {.model = "int8-tp2", .tp = 2, .n_slots = 40, .max_step_tokens = 64},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct golden_options o = cases[i];
        struct golden_engine g;
        o.mode = K_MODE_FP16;
        o.device = "cuda";
        golden_open(&g, &o);
        const struct footprint_rank rank = {.arch = g.arch,
                                            .scheme = model_dir_scheme(g.dir),
                                            .sizes = k_sizes("cuda"),
                                            .mode = o.mode,
                                            .kv_type = o.kv_type,
                                            .tp_size = o.tp,
                                            .layer_end = g.arch->n_layers};
        struct plan_limits limits, found;
        struct footprint f;
        struct err e = ERR_INIT;
        footprint_limits(g.arch, o.n_slots, o.max_step_tokens, &limits);
        assert_int_equal(footprint_of(&rank, &limits, &f, &e), 0);
        engine_limits(local_group_engine(g.group, 0), &found);
        uint64_t kv = f.kv_block * found.n_blocks, on_device = 0;
        for (uint32_t r = 0; r != o.tp; r++) {
            struct engine_memory m;
            engine_memory(local_group_engine(g.group, r), &m);
            if (m.weights != f.weights || m.kv != kv || m.scratch != f.scratch + f.scratch_host)
                fail_msg("case %zu, rank %u: weights %llu, cache %llu, scratch %llu; planned %llu, "
                         "%llu, %llu",
                         i, r, (unsigned long long)m.weights, (unsigned long long)m.kv,
                         (unsigned long long)m.scratch, (unsigned long long)f.weights,
                         (unsigned long long)kv, (unsigned long long)(f.scratch + f.scratch_host));
            on_device += f.weights + kv + f.scratch;
        }
        uint64_t taken = emulated_driver_state()->allocated;
        if (taken > on_device || on_device - taken > on_device / 10)
            fail_msg("case %zu: %llu bytes are taken of the devices, planned %llu", i,
                     (unsigned long long)taken, (unsigned long long)on_device);
        golden_close(&g);
    }
}

static void test_open_refusals(void **state)
{
    (void)state;
    struct golden_engine g; /* for its directory */
    golden_open(&g, &(struct golden_options){.model = "int4-tp1", .tp = 1, .n_slots = 1});
    const struct {
        const char *device, *words;
        enum k_mode mode;
        uint64_t memory_bytes;
        int code;
    } cases[] = {
        {"cuda:99", "this host has 8 CUDA devices", K_MODE_FP16, 1 << 30, -ENODEV},
        {"cuda:0", "fp16 activations only", K_MODE_FP32, 1 << 30, -EINVAL},
        {"cuda:0", "out of memory", K_MODE_FP16, 1 << 20, -ENOMEM},
        {"cuda:0", "out of memory", K_MODE_FP16, 9 << 20, -ENOMEM},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        emulated_driver_state()->memory_bytes = cases[i].memory_bytes;
        struct engine_config config = {.model = g.dir,
                                       .tp_size = 1,
                                       .device = cases[i].device,
                                       .mode = cases[i].mode,
                                       .n_slots = 4};
        struct engine *engine = NULL;
        struct err e = ERR_INIT;
        int r = engine_open(&config, &engine, &e);
        if (r != cases[i].code || !strstr(e.message, cases[i].words))
            fail_msg("case %zu: %d \"%s\", expected %d \"%s\"", i, r, e.message, cases[i].code,
                     cases[i].words);
        assert_int_equal(emulated_driver_state()->allocated, 0);
    }
    golden_close(&g);
    emulated_driver_reset();
}

#endif

int main(void)
{
#ifdef ON_A_GPU
    device = golden_gpu();
    if (!device)
        return 77;
#else
    if (!emulated_driver_works())
        return 77;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_cpu),
        cmocka_unit_test(test_same_bits),
#ifdef ON_A_GPU
        cmocka_unit_test(test_peers),
#else
        cmocka_unit_test(test_collectives),   cmocka_unit_test(test_sums_fail),
        cmocka_unit_test(test_device_fails),  cmocka_unit_test(test_memory),
        cmocka_unit_test(test_open_refusals),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
