/* test_cuda_graphs.c: decode steps that are recorded and run again (CUDA graphs), on the emulated
 * GPU: the logits of every step have the bits of steps that are enqueued, with batches of all sizes
 * that come and go, growing sequences, blocks that are copied in between, whatever sums over ranks;
 * what fails while recording costs a record and not the step; a step in steady state waits for the
 * device once and copies once. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"

enum {
    N_SLOTS = 9,
    LONGEST = 60, /* tokens of the last prompt: a second tile of keys comes by and by */
    N_BLOCKS = N_SLOTS * GOLDEN_BLOCKS_PER_SEQ,
    N_SPARE = 4, /* blocks that copies go to */
};

/* How many of the slots decode in each step. 9 rows are padded to 16, 6 to 8, 3 to 4: four kinds of
 * steps, the first of which is enqueued, the second recorded. */
struct script {
    uint32_t n_steps, n_kinds, sizes[10];
};
static const struct script mixed = {10, 4, {9, 3, 9, 1, 3, 6, 1, 4, 5, 9}};
static const struct script alone = {6, 1, {1, 1, 1, 1, 1, 1}};

struct history {
    uint32_t length[N_SLOTS];
    uint32_t tables[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];
    int32_t ids[N_SLOTS][GOLDEN_MAX_SEQ], positions[GOLDEN_MAX_SEQ];
};

static void history_init(struct history *h)
{
    for (uint32_t i = 0; i != GOLDEN_MAX_SEQ; i++)
        h->positions[i] = (int32_t)i;
    for (uint32_t s = 0; s != N_SLOTS; s++) {
        h->length[s] = s == N_SLOTS - 1 ? (uint32_t)LONGEST : 5 + 2 * s;
        golden_blocks(s * GOLDEN_BLOCKS_PER_SEQ, h->tables[s]);
        for (uint32_t i = 0; i != GOLDEN_MAX_SEQ; i++)
            h->ids[s][i] = (int32_t)(3 + (s * 71 + i * 37) % 480);
    }
}

static struct plan_item item_of(const struct history *h, uint32_t slot, uint32_t start, uint32_t n,
                                enum plan_output output)
{
    return (struct plan_item){.slot = slot,
                              .slot_gen = slot + 1,
                              .start = start,
                              .n_tokens = n,
                              .prefix_len = 4 + slot % 3,
                              .tokens = h->ids[slot] + start,
                              .positions = h->positions + start,
                              .blocks = h->tables[slot],
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = output};
}

/* Every third step the first slot goes on in a copy of its last block. */
static uint32_t copy_on_write(struct history *h, uint32_t step, struct plan_copy *ret)
{
    if (step % 3 || step / 3 >= N_SPARE)
        return 0;
    uint32_t *block = &h->tables[0][h->length[0] / PLAN_KV_BLOCK_TOKENS];
    *ret = (struct plan_copy){*block, N_BLOCKS + step / 3};
    *block = ret->dst;
    return 1;
}

/* Prompts, then the steps; ret [all rows of decodes, vocab]. The slots of a step are those from
 * `step` on, around. */
static float *decode(struct golden_engine *g, const struct script *script, size_t *ret_n)
{
    const uint32_t *sizes = script->sizes;
    struct history h;
    struct plan_item items[N_SLOTS];
    history_init(&h);
    for (uint32_t s = 0; s != N_SLOTS; s++)
        items[s] = item_of(&h, s, 0, h.length[s], PLAN_OUTPUT_NONE);
    golden_step(g, items, N_SLOTS, NULL, 0, NULL, 0);
    size_t n = 0;
    for (uint32_t i = 0; i != script->n_steps; i++)
        n += sizes[i] * g->arch->vocab;
    float *logits = alloc_array(n, sizeof *logits), *at = logits;
    assert_non_null(logits);
    for (uint32_t i = 0; i != script->n_steps; i++) {
        struct plan_copy copy;
        uint32_t n_copies = copy_on_write(&h, i, &copy);
        for (uint32_t j = 0; j != sizes[i]; j++) {
            uint32_t s = (i + j) % N_SLOTS;
            items[j] = item_of(&h, s, h.length[s]++, 1, PLAN_OUTPUT_LOGITS);
        }
        const struct step_result *r = golden_step(g, items, sizes[i], NULL, 0, &copy, n_copies);
        for (uint32_t j = 0; j != sizes[i]; j++, at += g->arch->vocab)
            memcpy(at, r->items[j].logits, g->arch->vocab * sizeof *at);
    }
    *ret_n = n;
    return logits;
}

static void open_engine(struct golden_engine *g, const struct golden_options *o, bool no_graphs)
{
    struct golden_options options = *o;
    options.mode = K_MODE_FP16;
    options.device = "cuda";
    options.n_slots = N_SLOTS;
    options.n_blocks = N_BLOCKS + N_SPARE;
    options.no_graphs = no_graphs;
    golden_open(g, &options);
}

static struct k_graph_stats stats_of(const struct golden_engine *g, uint32_t rank)
{
    struct k_graph_stats s;
    engine_graphs(local_group_engine(g->group, rank), &s);
    return s;
}

static void assert_same_logits(const float *got, const float *want, size_t n, const char *what)
{
    for (size_t i = 0; i != n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("%s: logit %zu: %.9g, expected %.9g", what, i, (double)got[i],
                     (double)want[i]);
}

static void assert_nothing_left(void)
{
    const struct emulated_driver *d = emulated_driver_state();
    assert_int_equal(d->allocated, 0);
    assert_int_equal(d->host_allocated, 0);
    assert_int_equal(d->n_graphs, 0);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        struct golden_options o;
        bool no_peers;
    } cases[] = {
        {"one rank", {.model = "int4-tp1", .tp = 1}, false},
        {"INT8 cache", {.model = "fp16-tp1", .tp = 1, .kv_type = K_KV_I8}, false},
        {"peers", {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_PEER}, false},
        {"page-locked", {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_PEER}, true},
        {"nccl", {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_NCCL}, false},
        {"stages and ranks", {.model = "int4-tp2", .tp = 2, .pp = 2}, false},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct golden_engine g;
        size_t n;
        emulated_driver_state()->no_peers = cases[i].no_peers;
        open_engine(&g, &cases[i].o, true);
        float *want = decode(&g, &mixed, &n);
        struct k_graph_stats s = stats_of(&g, 0);
        assert_int_equal(s.n_replays + s.n_graphs, 0);
        assert_int_equal(s.n_enqueued, mixed.n_steps);
        assert_string_equal(s.off, "as configured");
        golden_close(&g);

        open_engine(&g, &cases[i].o, false);
        uint32_t n_runs = i == 0 ? 2 : 1;
        for (uint32_t run = 0; run != n_runs; run++) {
            float *got = decode(&g, &mixed, &n);
            assert_same_logits(got, want, n, cases[i].what);
            free(got);
            local_group_reset(g.group);
            g.epoch++;
            g.step = 0;
        }
        for (uint32_t r = 0; r != cases[i].o.tp * MAX(cases[i].o.pp, 1u); r++) {
            s = stats_of(&g, r);
            assert_null(s.off);
            if (s.n_graphs != mixed.n_kinds || s.n_enqueued != mixed.n_kinds ||
                s.n_replays != n_runs * mixed.n_steps - mixed.n_kinds)
                fail_msg("%s, rank %u: %u records, %llu steps run from them, %llu enqueued",
                         cases[i].what, r, s.n_graphs, (unsigned long long)s.n_replays,
                         (unsigned long long)s.n_enqueued);
        }
        golden_close(&g);
        free(want);
        assert_nothing_left();
        emulated_driver_reset();
    }
}

/* A call fails that records or runs a record: the step is enqueued, and all that follow. */
static void test_recording_fails(void **state)
{
    (void)state;
    static const struct {
        const char *call, *words;
        int after;
    } cases[] = {
        {"capture_begin", "(cudaErrorMemoryAllocation), beginning to record a step", 0},
        {"capture_end", "(cudaErrorMemoryAllocation), recording a step", 0},
        {"launch", "(cudaErrorMemoryAllocation), first seen at ", 0},
        {"launch", "(cudaErrorMemoryAllocation), first seen at ", 9},
        {"graph_run", "(cudaErrorMemoryAllocation), running a recorded step", 0},
        {"graph_run", "(cudaErrorMemoryAllocation), running a recorded step", 3},
    };
    struct golden_options o = {.model = "int4-tp1", .tp = 1};
    struct golden_engine g;
    size_t n;
    open_engine(&g, &o, true);
    float *want = decode(&g, &alone, &n);
    golden_close(&g);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct emulated_driver *d = emulated_driver_state();
        open_engine(&g, &o, false);
        d->fail = cases[i].call;
        d->fail_after = cases[i].after;
        d->error = EMULATED_OUT_OF_MEMORY;
        float *got = decode(&g, &alone, &n);
        assert_same_logits(got, want, n, cases[i].call);
        free(got);
        struct k_graph_stats s = stats_of(&g, 0);
        if (!s.off || !strstr(s.off, cases[i].words))
            fail_msg("%s: off \"%s\", expected \"%s\"", cases[i].call, s.off ? s.off : "(no)",
                     cases[i].words);
        assert_int_equal(s.n_graphs, 0);
        assert_int_equal(s.n_replays + s.n_enqueued, alone.n_steps);
        golden_close(&g);
        assert_nothing_left();
        emulated_driver_reset();
    }
    free(want);
}

/* One of two ranks cannot record: both go on, and their sums meet. */
static void test_one_rank_cannot_record(void **state)
{
    (void)state;
    static const enum k_comm_choice ways[] = {K_COMM_PEER, K_COMM_NCCL};
    for (size_t i = 0; i != ARRAY_LEN(ways); i++) {
        struct golden_options o = {.model = "int4-tp2", .tp = 2, .collectives = ways[i]};
        struct golden_engine g;
        size_t n;
        open_engine(&g, &o, true);
        float *want = decode(&g, &alone, &n);
        golden_close(&g);
        open_engine(&g, &o, false);
        emulated_driver_state()->fail = "capture_end";
        emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
        float *got = decode(&g, &alone, &n);
        assert_same_logits(got, want, n, k_comm_choice_name(ways[i]));
        const char *off[2] = {stats_of(&g, 0).off, stats_of(&g, 1).off};
        assert_true((off[0] == NULL) != (off[1] == NULL));
        golden_close(&g);
        free(want);
        free(got);
        assert_nothing_left();
        emulated_driver_reset();
    }
}

/* The device breaks while a step is recorded or run from a record: the step fails, with the place.
 */
static void test_device_breaks(void **state)
{
    (void)state;
    static const char *const calls[] = {"capture_begin", "launch", "capture_end", "graph_run"};
    for (size_t i = 0; i != ARRAY_LEN(calls); i++) {
        struct golden_engine g;
        struct history h;
        struct plan_item item;
        open_engine(&g, &(struct golden_options){.model = "int4-tp1", .tp = 1}, false);
        history_init(&h);
        item = item_of(&h, 0, 0, h.length[0], PLAN_OUTPUT_NONE);
        golden_step(&g, &item, 1, NULL, 0, NULL, 0);
        item = item_of(&h, 0, h.length[0]++, 1, PLAN_OUTPUT_LOGITS);
        golden_step(&g, &item, 1, NULL, 0, NULL, 0);
        emulated_driver_state()->fail = calls[i];
        emulated_driver_state()->error = EMULATED_ILLEGAL_ADDRESS;
        emulated_driver_state()->sticky = 1;
        item = item_of(&h, 0, h.length[0]++, 1, PLAN_OUTPUT_LOGITS);
        struct plan plan = {.epoch = g.epoch, .step = g.step + 1, .items = &item, .n_items = 1};
        const struct step_result *result;
        struct err e = ERR_INIT;
        int r = local_group_step(g.group, &plan, &result, &e);
        if (r != -EIO || !strstr(e.message, "an illegal memory access was encountered "
                                            "(cudaErrorIllegalAddress), first seen at "))
            fail_msg("%s: %d \"%s\"", calls[i], r, e.message);
        golden_close(&g);
        emulated_driver_reset();
        assert_nothing_left();
    }
}

/* In steady state a step makes the same few calls: one copy of its arrays, one graph, and the wait
 * for what it reads; nothing is allocated. */
static void test_steady_state(void **state)
{
    (void)state;
    struct golden_engine g;
    struct history h;
    open_engine(&g, &(struct golden_options){.model = "int4-tp1", .tp = 1}, false);
    history_init(&h);
    struct plan_item item = item_of(&h, 0, 0, h.length[0], PLAN_OUTPUT_NONE);
    golden_step(&g, &item, 1, NULL, 0, NULL, 0);
    struct emulated_driver before = {0}, *d = emulated_driver_state();
    for (uint32_t i = 0; i != 6; i++) {
        item = item_of(&h, 0, h.length[0]++, 1, PLAN_OUTPUT_LOGITS);
        golden_step(&g, &item, 1, NULL, 0, NULL, 0);
        if (i >= 3) {
            assert_int_equal(d->n_allocs, before.n_allocs);
            assert_int_equal(d->n_graph_runs, before.n_graph_runs + 1);
            assert_int_equal(d->n_event_waits, before.n_event_waits);
            /* the logits, and that nothing is left when it ends */
            assert_int_equal(d->n_waits, before.n_waits + 2);
            assert_int_equal(d->n_copies, before.n_copies + 2);
        }
        before = *d;
    }
    golden_close(&g);
    assert_nothing_left();
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_recording_fails),
        cmocka_unit_test(test_one_rank_cannot_record),
        cmocka_unit_test(test_device_breaks),
        cmocka_unit_test(test_steady_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
