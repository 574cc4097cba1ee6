/* test_engine.c: what an engine promises beyond the numbers: which plans it refuses (and that a
 * refused plan changes nothing), slots, forks, copies, the state hash, opening. */
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

enum { N_SLOTS = 4 };

static const int32_t previous = PLAN_TOKEN_PREVIOUS;
static const int32_t prompt[] = {92, 304, 102, 71, 206, 506, 513, 516};
static const int32_t positions[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                    12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23};
enum { N_PROMPT = ARRAY_LEN(prompt) };

static uint32_t tables[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];

static void open_shape(struct golden_engine *g, const char *model, struct golden_options o)
{
    o.model = model;
    o.n_slots = N_SLOTS;
    golden_open(g, &o);
    for (uint32_t i = 0; i != N_SLOTS; i++)
        golden_blocks(i * GOLDEN_BLOCKS_PER_SEQ, tables[i]);
}

static void open_engine(struct golden_engine *g, const char *model, uint32_t tp)
{
    open_shape(g, model, (struct golden_options){.tp = tp});
}

/* Greedy over the prompt in `slot`, a new life. */
static struct plan_item begin(struct golden_engine *g, uint32_t slot)
{
    return golden_prompt(g, slot, prompt, positions, N_PROMPT, tables[slot]);
}

/* The step after `item`, on its own sample. */
static struct plan_item next(struct plan_item item)
{
    item.start += item.n_tokens;
    item.n_tokens = 1;
    item.tokens = &previous;
    item.positions = positions + item.start;
    return item;
}

static const struct step_result *step(struct golden_engine *g, const struct plan_item *item)
{
    return golden_step(g, item, 1, NULL, 0, NULL, 0);
}

/* ---- refusals ---- */

static void test_refused_plans(void **state)
{
    (void)state;
    for (uint32_t tp = 1; tp <= 2; tp++) {
        struct golden_engine g;
        open_engine(&g, "fp16-tp1", tp);
        struct plan_item first = begin(&g, 0);
        struct plan_item item;

        item = next(first);
        golden_step_refused(&g, &item, 1, "previous"); /* nothing has run in the slot */
        step(&g, &first);

        item = first; /* the same generation again */
        golden_step_refused(&g, &item, 1, "generation");
        item.slot_gen--;
        golden_step_refused(&g, &item, 1, "generation");

        item = next(first);
        item.start++;
        item.positions++;
        golden_step_refused(&g, &item, 1, "holds 8 tokens");
        item = next(first);
        item.prefix_len--;
        golden_step_refused(&g, &item, 1, "prefix");
        item = next(first);
        item.slot_gen++; /* a fork has no previous sample */
        golden_step_refused(&g, &item, 1, "previous");
        item = next(first);
        item.slot = 1;
        golden_step_refused(&g, &item, 1, "previous");

        /* plan_validate's own */
        item = next(first);
        item.slot = N_SLOTS;
        golden_step_refused(&g, &item, 1, "slot");
        int32_t outside = (int32_t)g.arch->vocab;
        item = next(first);
        item.tokens = &outside;
        golden_step_refused(&g, &item, 1, "token");

        /* after a step that did not sample */
        item = next(first);
        item.tokens = prompt;
        item.output = PLAN_OUTPUT_NONE;
        step(&g, &item);
        item = next(item);
        item.output = PLAN_OUTPUT_SAMPLE;
        golden_step_refused(&g, &item, 1, "previous");

        /* step and epoch numbers */
        g.step++;
        golden_step_refused(&g, &item, 1, "step");
        g.step--;
        g.epoch++;
        item.tokens = prompt;
        golden_step_refused(&g, &item, 1, "epoch");
        g.epoch--;
        step(&g, &item);
        golden_close(&g);
    }
}

/* With refusals in between, tokens and state hash are those of a run without them. */
static void test_refusal_changes_nothing(void **state)
{
    (void)state;
    uint64_t hashes[2];
    int32_t tokens[2][6];
    for (int refuse = 0; refuse != 2; refuse++) {
        struct golden_engine g;
        open_engine(&g, "int4-tp1", 2);
        struct plan_item item = begin(&g, 0);
        const struct step_result *r = NULL;
        for (int i = 0; i != 6; i++) {
            if (refuse) {
                struct plan_item two[2] = {item, begin(&g, 1)};
                g.next_gen--;
                two[1].n_blocks = 0;
                golden_step_refused(&g, two, 2, "blocks");
            }
            r = step(&g, &item);
            tokens[refuse][i] = r->items[0].token;
            item = next(item);
        }
        hashes[refuse] = r->state_hash;
        golden_close(&g);
    }
    for (int i = 0; i != 6; i++)
        assert_int_equal(tokens[0][i], tokens[1][i]);
    assert_true(hashes[0] == hashes[1]);
}

/* ---- slots ---- */

/* A fork on shared and copied blocks continues as the original does; the original is unharmed. */
static void test_fork_and_copy(void **state)
{
    (void)state;
    struct golden_engine g;
    open_engine(&g, "fp16-tp2", 2);
    struct plan_item a = begin(&g, 0);
    int32_t token = step(&g, &a)->items[0].token;
    a = next(a);
    struct plan_item b = a;
    b.slot = 1;
    b.slot_gen = ++g.next_gen;
    b.tokens = &token;
    b.blocks = tables[1];
    struct plan_copy copy = {tables[0][0], tables[1][0]};
    struct plan_item both[2] = {a, b};
    for (int i = 0; i != 10; i++) {
        const struct step_result *r = golden_step(&g, both, 2, NULL, 0, &copy, i == 0);
        assert_int_equal(r->items[0].token, r->items[1].token);
        assert_true(r->items[0].logprob == r->items[1].logprob);
        both[0] = next(both[0]);
        both[1] = next(both[1]);
    }
    /* The two go apart, each in its own blocks. */
    int32_t other = 5;
    both[1].tokens = &other;
    int32_t first = golden_step(&g, both, 2, NULL, 0, NULL, 0)->items[0].token;
    struct plan_item alone = begin(&g, 2);
    int32_t last = -1;
    for (int i = 0; i != 12; i++) {
        last = step(&g, &alone)->items[0].token;
        alone = next(alone);
    }
    assert_int_equal(last, first);
    golden_close(&g);
}

/* A prompt that is written in the same step in which another slot reads it. */
static void test_context_shared_within_a_step(void **state)
{
    (void)state;
    struct golden_engine g;
    open_engine(&g, "fp16-tp1", 1);
    int32_t ids[24];
    for (int i = 0; i != 24; i++)
        ids[i] = 40 + 3 * i;
    struct plan_item whole = {.slot_gen = ++g.next_gen,
                              .n_tokens = 20,
                              .prefix_len = 16,
                              .tokens = ids,
                              .positions = positions,
                              .blocks = tables[0],
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = PLAN_OUTPUT_LOGITS};
    size_t row = g.arch->vocab;
    float *expected = alloc_array(4 * row, sizeof *expected);
    memcpy(expected, step(&g, &whole)->items[0].logits + 16 * row, 4 * row * sizeof *expected);
    struct plan_item items[2] = {whole, whole};
    items[0].slot = 1;
    items[0].slot_gen = ++g.next_gen;
    items[0].n_tokens = 16;
    items[0].blocks = tables[1];
    items[0].output = PLAN_OUTPUT_NONE;
    uint32_t shared[2] = {tables[1][0], tables[2][0]};
    items[1].slot = 2;
    items[1].slot_gen = ++g.next_gen;
    items[1].start = 16;
    items[1].n_tokens = 4;
    items[1].tokens += 16;
    items[1].positions += 16;
    items[1].blocks = shared;
    items[1].n_blocks = 2;
    const struct step_result *r = golden_step(&g, items, 2, NULL, 0, NULL, 0);
    assert_null(r->items[0].logits);
    assert_memory_equal(r->items[1].logits, expected, 4 * row * sizeof *expected);
    free(expected);
    golden_close(&g);
}

/* ---- memory ---- */

/* The linker sends every allocation of this program through here (--wrap). */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

static _Atomic uint32_t n_allocations;

void *__wrap_malloc(size_t size)
{
    n_allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    n_allocations++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    n_allocations++;
    return __real_realloc(p, size);
}

/* From the first one on, a step allocates nothing: prefill, decode, scores, beams, slices, stages.
 */
static void test_steps_do_not_allocate(void **state)
{
    (void)state;
    static const struct golden_options shapes[] = {
        {.tp = 1}, {.tp = 2, .slice_layers = 1}, {.tp = 1, .pp = 3, .slice_layers = 2}};
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        open_shape(&g, "int4-tp1", shapes[shape]);
        int32_t targets[N_PROMPT] = {1, 2, 3, 4, 5, 6, 7, 8};
        struct plan_beam_group group = {.width = 12};
        n_allocations = 0;
        struct plan_item items[3] = {begin(&g, 0), begin(&g, 1), begin(&g, 2)};
        items[0].sampling = (struct plan_sampling){
            .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .n_top_logprobs = 20};
        items[1].output = PLAN_OUTPUT_SCORE;
        items[1].targets = targets;
        items[2].output = PLAN_OUTPUT_BEAM;
        golden_step(&g, items, 3, &group, 1, NULL, 0);
        for (int i = 0; i != 8; i++) {
            items[0] = next(items[0]);
            items[2] = next(items[2]);
            items[2].tokens = prompt;
            if (g.n_stages > 1)
                items[0].tokens = prompt;
            struct plan_item two[2] = {items[0], items[2]};
            golden_step(&g, two, 2, &group, 1, NULL, 0);
        }
        assert_int_equal(n_allocations, 0);
        golden_close(&g);
    }
}

static void test_known_answer(void **state)
{
    (void)state;
    uint64_t expected = 0;
    for (uint32_t tp = 1; tp <= 4; tp *= 2) {
        struct golden_engine g;
        struct err e = ERR_INIT;
        uint64_t hash;
        uint64_t again;
        open_engine(&g, "int4-tp1", tp);
        assert_int_equal(local_group_known_answer(g.group, &hash, &e), 0);
        assert_int_equal(local_group_known_answer(g.group, &again, &e), 0);
        assert_true(hash == again && hash != 0);
        if (tp == 1)
            expected = hash;
        assert_true(hash == expected);        /* tokens, not bits: the same at every degree */
        struct plan_item item = begin(&g, 0); /* the engine is as new */
        step(&g, &item);
        golden_close(&g);
    }
    struct golden_engine g;
    struct err e = ERR_INIT;
    uint64_t other;
    open_engine(&g, "fp16-tp1", 1);
    assert_int_equal(local_group_known_answer(g.group, &other, &e), 0);
    assert_true(other != expected); /* other weights */
    golden_close(&g);
}

/* ---- opening ---- */

struct progress {
    uint64_t done, total;
    uint32_t n_calls;
    uint32_t cancel_at; /* 0 = never */
};

static int on_progress(void *context, uint64_t done, uint64_t total)
{
    struct progress *p = context;
    assert_true(done >= p->done && done <= total);
    *p = (struct progress){done, total, p->n_calls + 1, p->cancel_at};
    return p->n_calls == p->cancel_at;
}

static void open_model(const char *name, struct model_dir **ret)
{
    char path[512];
    struct err e = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s", getenv("GLMD_GOLDEN_MODELS"), name);
    if (model_dir_open(path, ret, &e) < 0)
        fail_msg("%s", e.message);
}

static void test_open_progress(void **state)
{
    (void)state;
    static const char *const models[] = {"fp16-tp1", "int4-tp1", "int4-tp2", "int4-tp4",
                                         "int8-tp2"};
    static const struct {
        uint32_t size, rank;
    } degrees[] = {{1, 0}, {2, 0}, {2, 1}, {4, 3}};
    for (size_t i = 0; i != ARRAY_LEN(models) * 4; i++) {
        struct model_dir *dir;
        open_model(models[i / 4], &dir);
        struct progress p = {0};
        struct engine_config config = {.model = dir,
                                       .tp_size = degrees[i % 4].size,
                                       .tp_rank = degrees[i % 4].rank,
                                       .device = "cpu",
                                       .n_threads = 1,
                                       .n_slots = 1,
                                       .verify = true,
                                       .on_progress = on_progress,
                                       .progress_context = &p};
        struct engine *g;
        struct err e = ERR_INIT;
        if (engine_open(&config, &g, &e) < 0)
            fail_msg("%s: %s", models[i / 4], e.message);
        if (p.done != p.total)
            fail_msg("%s, rank %u of %u: progress ends at %llu of %llu", models[i / 4],
                     config.tp_rank, config.tp_size, (unsigned long long)p.done,
                     (unsigned long long)p.total);
        engine_close(g);
        p = (struct progress){.cancel_at = 3};
        assert_int_equal(engine_open(&config, &g, &e), -ECANCELED);
        assert_int_equal(p.n_calls, 3);
        model_dir_close(dir);
    }
}

static void test_memory(void **state)
{
    (void)state;
    struct model_dir *dir;
    open_model("int4-tp2", &dir);
    struct engine_config config = {
        .model = dir, .tp_size = 2, .tp_rank = 1, .device = "cpu", .n_threads = 1, .n_slots = 2};
    struct engine *g;
    struct err e = ERR_INIT;
    assert_int_equal(engine_open(&config, &g, &e), 0);
    struct engine_memory m;
    struct plan_limits l;
    engine_memory(g, &m);
    engine_limits(g, &l);
    assert_true(m.weights > 0 && m.kv > 0 && m.scratch > 0);
    assert_int_equal(l.n_blocks, 2 * GOLDEN_BLOCKS_PER_SEQ);
    assert_int_equal(l.max_tokens, GOLDEN_MAX_SEQ);
    assert_non_null(strstr(engine_describe(g), "cpu"));
    engine_close(g);

    /* Sums over ranks that this device has no way to do are refused, never done otherwise. */
    config.collectives = K_COMM_NCCL;
    assert_int_equal(engine_open(&config, &g, &e), -EINVAL);
    assert_non_null(strstr(e.message, "worker.collectives: nccl is for GPUs, this device is cpu"));
    config.collectives = K_COMM_HOST;

    /* A cache by bytes: half of it has half the blocks. */
    config.kv_bytes = (size_t)m.kv / 2;
    assert_int_equal(engine_open(&config, &g, &e), 0);
    engine_limits(g, &l);
    assert_int_equal(l.n_blocks, GOLDEN_BLOCKS_PER_SEQ);
    assert_non_null(strstr(engine_describe(g), "KV cache in fp32"));
    engine_close(g);

    /* In INT8 the same bytes hold more, and all of them are accounted for: heads of 16 take 2 * 16
     * * (16 + 2) bytes a block instead of 2 * 16 * 64. */
    config.kv_type = K_KV_I8;
    assert_int_equal(engine_open(&config, &g, &e), 0);
    engine_limits(g, &l);
    struct engine_memory m8;
    engine_memory(g, &m8);
    assert_int_equal(l.n_blocks, GOLDEN_BLOCKS_PER_SEQ * 64 / 18);
    assert_true(m8.kv <= config.kv_bytes && config.kv_bytes - m8.kv < m8.kv / l.n_blocks);
    assert_non_null(strstr(engine_describe(g), "KV cache in int8"));
    engine_close(g);
    model_dir_close(dir);
}

static void test_open_refusals(void **state)
{
    (void)state;
    struct model_dir *dir;
    struct engine *g;
    open_model("int4-tp1", &dir);
    static const struct {
        struct engine_config config;
        int code;
    } cases[] = {
        {{.tp_size = 3, .device = "cpu", .n_slots = 1}, -EINVAL}, /* 4 heads */
        {{.tp_size = 2, .tp_rank = 2, .device = "cpu", .n_slots = 1}, -EINVAL},
        {{.tp_size = 1, .device = "cpu"}, -EINVAL}, /* no slots */
        {{.tp_size = 1, .device = "abacus", .n_slots = 1}, -ENODEV},
        {{.tp_size = 1, .device = "cpu", .n_slots = 1, .kv_bytes = 1}, -EINVAL},
        {{.tp_size = 1, .device = "cpu", .n_slots = 1, .max_step_tokens = 1 << 20}, -EINVAL},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct engine_config c = cases[i].config;
        struct err e = ERR_INIT;
        c.model = dir;
        c.n_threads = 1;
        int r = engine_open(&c, &g, &e);
        if (r != cases[i].code)
            fail_msg("case %zu: %d (%s), expected %d", i, r, e.message, cases[i].code);
        assert_true(e.message[0]);
    }
    model_dir_close(dir);
}

/* ---- failures of the group ---- */

/* A rank alone: its peer never comes. The step fails at the deadline, the epoch is over, and a new
 * comm starts a new one. */
static void test_missing_peer(void **state)
{
    (void)state;
    struct model_dir *dir;
    open_model("fp16-tp1", &dir);
    struct engine_config config = {
        .model = dir, .tp_size = 2, .device = "cpu", .n_threads = 1, .n_slots = 1};
    struct engine *g;
    struct err e = ERR_INIT;
    assert_int_equal(engine_open(&config, &g, &e), 0);
    struct comm *comms[2];
    assert_int_equal(comm_inproc_new(2, 50000000, comms), 0);
    assert_int_equal(engine_set_comm(g, comms[1], &e), -EINVAL); /* another rank's */
    assert_int_equal(engine_set_comm(g, comms[0], &e), 0);
    uint32_t table[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, table);
    struct plan_item item = {.n_tokens = 2,
                             .tokens = prompt,
                             .positions = positions,
                             .blocks = table,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ};
    struct plan plan = {.epoch = 1, .step = 1, .items = &item, .n_items = 1};
    const struct step_result *r;
    assert_int_equal(engine_step(g, &plan, &r, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.message, "ranks"));
    assert_int_equal(engine_step(g, &plan, &r, &e), -ETIMEDOUT);
    struct comm *again[2];
    assert_int_equal(comm_inproc_new(2, 50000000, again), 0);
    assert_int_equal(engine_set_comm(g, again[0], &e), 0);
    again[1]->ops->abort(again[1]);
    assert_int_equal(engine_step(g, &plan, &r, &e), -ECANCELED);
    engine_close(g);
    for (int i = 0; i != 2; i++) {
        comm_close(comms[i]);
        comm_close(again[i]);
    }
    model_dir_close(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_plans),
        cmocka_unit_test(test_refusal_changes_nothing),
        cmocka_unit_test(test_fork_and_copy),
        cmocka_unit_test(test_context_shared_within_a_step),
        cmocka_unit_test(test_steps_do_not_allocate),
        cmocka_unit_test(test_known_answer),
        cmocka_unit_test(test_open_progress),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_open_refusals),
        cmocka_unit_test(test_missing_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
