/* test_stages.c: what slices and pipeline stages ask of plans and configurations, several steps
 * under way at once, the known answer over stages, and stages that fail. That their results are
 * right is shown by the other suites, which run on them. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

enum { N_SLOTS = 6 };

static const int32_t prompt[] = {92, 304, 102, 71, 206, 506, 513, 516, 33,
                                 71, 99,  205, 7,  18,  64,  5,   11,  300};
static const int32_t positions[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13,
                                    14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27};
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

/* Greedy over the prompt in `slot`, a new life. */
static struct plan_item begin(struct golden_engine *g, uint32_t slot)
{
    return golden_prompt(g, slot, prompt, positions, N_PROMPT, tables[slot]);
}

static struct plan_item begin_sliced(struct golden_engine *g, uint32_t slot)
{
    struct plan_item item = begin(g, slot);
    item.sliced = true;
    return item;
}

static int32_t run_slice(struct golden_engine *g, struct plan_item *items, uint32_t n,
                         uint32_t layer_begin, uint32_t layer_end)
{
    struct plan plan = {
        .items = items, .n_items = n, .layer_begin = layer_begin, .layer_end = layer_end};
    return golden_run(g, &plan)->items[0].token;
}

static void refuse_slice(struct golden_engine *g, struct plan_item *items, uint32_t n,
                         uint32_t layer_begin, uint32_t layer_end, const char *words)
{
    struct plan plan = {
        .items = items, .n_items = n, .layer_begin = layer_begin, .layer_end = layer_end};
    golden_run_refused(g, &plan, words);
}

/* ---- slices ---- */

static void test_refused_slices(void **state)
{
    (void)state;
    static const struct golden_options shapes[] = {
        {.tp = 1}, {.tp = 1, .pp = 2}, {.tp = 2, .pp = 3}};
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        open_shape(&g, "fp16-tp1", shapes[shape]);
        struct plan_item whole = begin(&g, 5);
        int32_t expected = run_slice(&g, &whole, 1, 0, 0);
        struct plan_item items[2] = {begin_sliced(&g, 0), begin_sliced(&g, 1)};
        refuse_slice(&g, items, 2, 1, 3, "have run 0, the plan goes on at 1"); /* none under way */
        assert_int_equal(run_slice(&g, items, 2, 0, 1), -1);
        refuse_slice(&g, items, 2, 2, 3, "have run 1, the plan goes on at 2");
        refuse_slice(&g, items, 1, 1, 3, "expected the 2 sliced items under way, found 1");

        struct plan_item other[2] = {items[1], items[0]};
        refuse_slice(&g, other, 2, 1, 3,
                     "item 0: slot: expected 0 as in the slice before, found 1");
        memcpy(other, items, sizeof other);
        other[1].slot_gen++;
        refuse_slice(&g, other, 2, 1, 3, "item 1: generation: expected");
        memcpy(other, items, sizeof other);
        other[1].n_tokens--;
        other[1].prefix_len--;
        refuse_slice(&g, other, 2, 1, 3,
                     "item 1: tokens: expected 18 as in the slice before, found 17");
        memcpy(other, items, sizeof other);
        other[0].prefix_len--;
        refuse_slice(&g, other, 2, 1, 3,
                     "item 0: prefix: expected 17 as in the slice before, found 16");
        memcpy(other, items, sizeof other);
        uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
        memcpy(blocks, tables[1], sizeof blocks);
        blocks[1] = tables[2][1];
        other[1].blocks = blocks;
        refuse_slice(&g, other, 2, 1, 3, "item 1: block 1: expected");
        blocks[1] = tables[1][1];
        blocks[2] = tables[2][2]; /* behind the tokens: not the slices' business */
        int32_t tokens[N_PROMPT];
        memcpy(tokens, prompt, sizeof tokens);
        tokens[3]++;
        other[1].tokens = tokens;
        refuse_slice(&g, other, 2, 1, 3, "item 1: tokens and positions");
        other[1].tokens = prompt;
        other[1].positions = positions + 1;
        refuse_slice(&g, other, 2, 1, 3, "item 1: tokens and positions");
        other[1].positions = positions;

        /* Nothing of it has done harm. */
        assert_int_equal(run_slice(&g, other, 2, 1, 3), expected);
        refuse_slice(&g, items, 2, 1, 3, "have run 0"); /* over */
        refuse_slice(&g, items, 2, 0, 3, "generation"); /* the slots have begun their lives */
        golden_close(&g);
    }
}

/* A set that is dropped leaves no trace; its slots and blocks serve others. */
static void test_abandoned_slices(void **state)
{
    (void)state;
    static const struct golden_options shapes[] = {{.tp = 1}, {.tp = 2, .pp = 2}};
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        open_shape(&g, "fp16-tp1", shapes[shape]);
        struct plan_item whole = begin(&g, 5);
        int32_t expected = run_slice(&g, &whole, 1, 0, 0);
        struct plan_item dropped[3] = {begin_sliced(&g, 0), begin_sliced(&g, 1),
                                       begin_sliced(&g, 2)};
        run_slice(&g, dropped, 3, 0, 2);
        struct plan_item again = begin_sliced(&g, 1);
        run_slice(&g, &again, 1, 0, 1);
        refuse_slice(&g, dropped, 3, 2, 3, "have run 1");
        whole = begin(&g, 0); /* a whole item in a slot of the dropped set */
        struct plan_item both[2] = {whole, again};
        assert_int_equal(run_slice(&g, both, 2, 1, 3), expected);

        /* The slot of a waiting item goes to another sequence: it cannot go on. */
        again = begin_sliced(&g, 2);
        run_slice(&g, &again, 1, 0, 1);
        whole = begin(&g, 2);
        assert_int_equal(run_slice(&g, &whole, 1, 0, 0), expected);
        refuse_slice(&g, &again, 1, 1, 3, "generation");

        /* A new epoch forgets the set. */
        again = begin_sliced(&g, 3);
        run_slice(&g, &again, 1, 0, 1);
        local_group_reset(g.group);
        g.step = 0;
        refuse_slice(&g, &again, 1, 1, 3, "have run 0");
        golden_close(&g);
    }
}

/* Beams of one group run together or not at all. */
static void test_group_is_sliced_as_one(void **state)
{
    (void)state;
    struct golden_engine g;
    open_shape(&g, "fp16-tp1", (struct golden_options){.tp = 1});
    struct plan_beam_group groups[2] = {{.width = 4, .deterministic = true},
                                        {.width = 4, .deterministic = true}};
    struct plan_item items[2] = {begin(&g, 0), begin_sliced(&g, 1)};
    items[0].output = items[1].output = PLAN_OUTPUT_BEAM;
    struct plan plan = {
        .items = items, .n_items = 2, .groups = groups, .n_groups = 1, .layer_end = 1};
    golden_run_refused(&g, &plan, "all or none");
    items[1].beam_group = 1;
    plan.n_groups = 2;
    const struct step_result *r = golden_run(&g, &plan);
    assert_int_equal(r->groups[0].n_candidates, 4);
    assert_int_equal(r->groups[1].n_candidates, 0);
    struct result_candidate expected = r->groups[0].candidates[0];
    plan = (struct plan){.items = items + 1, .n_items = 1, .groups = groups, .n_groups = 1};
    items[1].beam_group = 0;
    plan.layer_begin = 1;
    plan.layer_end = 3;
    r = golden_run(&g, &plan);
    assert_int_equal(r->groups[0].n_candidates, 4);
    assert_int_equal(r->groups[0].candidates[0].token, expected.token);
    assert_true(r->groups[0].candidates[0].score == expected.score);
    golden_close(&g);
}

/* ---- stages ---- */

static void test_previous_needs_one_stage(void **state)
{
    (void)state;
    struct golden_engine g;
    open_shape(&g, "fp16-tp1", (struct golden_options){.tp = 1, .pp = 2});
    struct plan_item item = begin(&g, 0);
    run_slice(&g, &item, 1, 0, 0);
    static const int32_t previous = PLAN_TOKEN_PREVIOUS;
    item.start = N_PROMPT;
    item.n_tokens = 1;
    item.tokens = &previous;
    item.positions = positions + N_PROMPT;
    golden_step_refused(&g, &item, 1, "only the last stage");
    golden_close(&g);
}

static void test_known_answer(void **state)
{
    (void)state;
    static const struct golden_options shapes[] = {
        {.tp = 1}, {.tp = 1, .pp = 2}, {.tp = 2, .pp = 2}, {.tp = 1, .pp = 3}, {.tp = 2, .pp = 3}};
    uint64_t expected = 0;
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        struct err e = ERR_INIT;
        open_shape(&g, "int4-tp1", shapes[shape]);
        for (int i = 0; i != 2; i++) {
            uint64_t hash = 0;
            if (local_group_known_answer(g.group, &hash, &e) < 0)
                fail_msg("%s", e.message);
            if (shape == 0 && i == 0)
                expected = hash;
            assert_true(hash == expected && hash != 0);
        }
        struct plan_item item = begin(&g, 0); /* the engine is as new */
        run_slice(&g, &item, 1, 0, 0);
        golden_close(&g);
    }
}

/* ---- steps under way ---- */

enum { N_FLIGHT = 4, N_TOKENS = 6 };

/* A sequence of its own per micro-batch: tokens and log-probabilities. */
struct stream {
    struct plan_item item;
    struct plan plan;
    int32_t token, position;
    int32_t tokens[N_TOKENS];
    float logprobs[N_TOKENS];
    float top[N_TOKENS][3];
    uint32_t n;
};

static void start_stream(struct golden_engine *g, struct stream *s, uint32_t idx)
{
    *s = (struct stream){.item = begin(g, idx)};
    s->item.n_tokens = N_PROMPT - idx;
    s->item.prefix_len = N_PROMPT - idx - 1;
    s->item.sampling.n_top_logprobs = 3;
}

static void set_plan(struct golden_engine *g, struct stream *s)
{
    s->plan = (struct plan){.epoch = g->epoch, .step = ++g->step, .items = &s->item, .n_items = 1};
}

static void take(struct stream *s, const struct step_result *r)
{
    assert_int_equal(r->step, s->plan.step);
    s->tokens[s->n] = r->items[0].token;
    s->logprobs[s->n] = r->items[0].logprob;
    assert_int_equal(r->items[0].n_top, 3);
    for (uint32_t i = 0; i != 3; i++)
        s->top[s->n][i] = r->items[0].top[i].logprob;
    s->token = s->tokens[s->n++];
    s->item.start += s->item.n_tokens;
    s->item.n_tokens = 1;
    s->position = (int32_t)s->item.start;
    s->item.tokens = &s->token;
    s->item.positions = &s->position;
    s->item.sampling.output_index++;
}

/* Up to N_FLIGHT steps of different sequences at once give what one at a time gives. */
static void test_steps_under_way(void **state)
{
    (void)state;
    static const struct golden_options shapes[] = {
        {.tp = 1}, {.tp = 1, .pp = 2}, {.tp = 2, .pp = 2}, {.tp = 1, .pp = 3}};
    static struct stream alone[N_FLIGHT];
    static struct stream streams[N_FLIGHT];
    struct err e = ERR_INIT;
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        open_shape(&g, "int4-tp2", shapes[shape]);
        for (uint32_t i = 0; i != N_FLIGHT; i++) {
            start_stream(&g, &alone[i], i);
            while (alone[i].n != N_TOKENS) {
                const struct step_result *r = NULL;
                set_plan(&g, &alone[i]);
                assert_int_equal(local_group_step(g.group, &alone[i].plan, &r, &e), 0);
                take(&alone[i], r);
            }
        }
        for (uint32_t i = 0; i != N_FLIGHT; i++) {
            start_stream(&g, &streams[i], i);
            set_plan(&g, &streams[i]);
            assert_int_equal(local_group_submit(g.group, &streams[i].plan), 0);
        }
        for (uint32_t i = 0; i != N_FLIGHT * N_TOKENS; i++) {
            struct stream *s = &streams[i % N_FLIGHT];
            const struct step_result *r = NULL;
            if (local_group_wait(g.group, &r, &e) < 0)
                fail_msg("%s", e.message);
            take(s, r);
            if (s->n == N_TOKENS)
                continue;
            set_plan(&g, s);
            assert_int_equal(local_group_submit(g.group, &s->plan), 0);
        }
        for (uint32_t i = 0; i != N_FLIGHT; i++) {
            assert_memory_equal(streams[i].tokens, alone[i].tokens, sizeof alone[i].tokens);
            assert_memory_equal(streams[i].logprobs, alone[i].logprobs, sizeof alone[i].logprobs);
            assert_memory_equal(streams[i].top, alone[i].top, sizeof alone[i].top);
        }
        golden_close(&g);
    }
}

static void test_too_many_steps(void **state)
{
    (void)state;
    struct golden_engine g;
    open_shape(&g, "fp16-tp1", (struct golden_options){.tp = 1, .pp = 2});
    struct plan_item item = begin(&g, 0);
    item.output = PLAN_OUTPUT_NONE;
    struct plan plans[LOCAL_GROUP_MAX_STEPS + 1];
    static const int32_t tokens[LOCAL_GROUP_MAX_STEPS + 1];
    struct plan_item items[LOCAL_GROUP_MAX_STEPS + 1];
    for (uint32_t i = 0; i != LOCAL_GROUP_MAX_STEPS; i++) {
        items[i] = item;
        plans[i] = (struct plan){.epoch = 1, .step = i + 1, .items = &items[i], .n_items = 1};
        assert_int_equal(local_group_submit(g.group, &plans[i]), 0);
        item.start += item.n_tokens;
        item.n_tokens = 1;
        item.tokens = tokens;
        item.positions = positions + item.start;
    }
    assert_int_equal(local_group_submit(g.group, &plans[0]), -EAGAIN);
    const struct step_result *r = NULL;
    struct err e = ERR_INIT;
    for (uint32_t i = 0; i != LOCAL_GROUP_MAX_STEPS; i++)
        assert_int_equal(local_group_wait(g.group, &r, &e), 0);
    /* Contradicts the engine: refused by every stage. */
    plans[0].step = LOCAL_GROUP_MAX_STEPS + 2;
    assert_int_equal(local_group_submit(g.group, &plans[0]), 0);
    assert_int_equal(local_group_wait(g.group, &r, &e), -EINVAL);
    assert_int_equal(local_group_submit(g.group, &plans[0]), 0); /* closing does not wait for it */
    golden_close(&g);
}

/* ---- opening ---- */

static void open_dir(const char *name, struct model_dir **ret)
{
    char path[512];
    struct err e = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s", getenv("GLMD_GOLDEN_MODELS"), name);
    if (model_dir_open(path, ret, &e) < 0)
        fail_msg("%s", e.message);
}

static int on_progress(void *context, uint64_t done, uint64_t total)
{
    uint64_t *seen = context;
    seen[0] = done;
    seen[1] = total;
    return 0;
}

static void test_open(void **state)
{
    (void)state;
    static const uint32_t two_one[] = {2, 1}, one_two[] = {1, 2}, ones[] = {1, 1, 1};
    static const struct {
        uint32_t pp, stage;
        const uint32_t *layers;
        uint32_t begin, end;
    } cases[] = {
        {0, 0, NULL, 0, 3},    {1, 0, NULL, 0, 3},    {2, 0, NULL, 0, 2}, {2, 1, NULL, 2, 3},
        {2, 0, two_one, 0, 2}, {2, 1, one_two, 1, 3}, {3, 1, ones, 1, 2}, {3, 2, NULL, 2, 3},
    };
    struct model_dir *dir;
    open_dir("int4-tp1", &dir);
    uint64_t whole[2] = {0};
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        uint64_t seen[2] = {0};
        struct engine_config c = {.model = dir,
                                  .tp_size = 2,
                                  .tp_rank = 1,
                                  .pp_size = cases[i].pp,
                                  .stage = cases[i].stage,
                                  .stage_layers = cases[i].layers,
                                  .device = "cpu",
                                  .n_threads = 1,
                                  .n_slots = 1,
                                  .verify = true,
                                  .on_progress = on_progress,
                                  .progress_context = seen};
        struct engine *g;
        struct err e = ERR_INIT;
        if (engine_open(&c, &g, &e) < 0)
            fail_msg("case %zu: %s", i, e.message);
        uint32_t begin = 9;
        uint32_t end = 9;
        engine_layers(g, &begin, &end);
        assert_int_equal(begin, cases[i].begin);
        assert_int_equal(end, cases[i].end);
        assert_int_equal(seen[0], seen[1]); /* reads what it said it would */
        struct engine_memory m;
        struct plan_limits l;
        engine_memory(g, &m);
        engine_limits(g, &l);
        assert_int_equal(l.n_layers, 3);
        uint64_t link_bytes = (uint64_t)l.max_tokens * model_dir_arch(dir)->hidden * sizeof(float);
        assert_int_equal(engine_link_bytes(g), cases[i].pp > 1 ? link_bytes : 0);
        if (i == 0) {
            whole[0] = m.kv;
            whole[1] = m.weights;
        }
        assert_int_equal(m.kv, whole[0] * (end - begin) / 3);
        assert_true(cases[i].pp > 1 ? m.weights < whole[1] : m.weights == whole[1]);
        engine_close(g);
    }
    model_dir_close(dir);
}

static void test_open_refusals(void **state)
{
    (void)state;
    static const uint32_t short_one[] = {1, 1}, long_one[] = {2, 2}, none[] = {3, 0};
    static const struct {
        struct engine_config config;
        const char *words;
    } cases[] = {
        {{.pp_size = 2, .stage = 2}, "stage 2 of 2"},
        {{.stage = 1}, "stage 1 of 0"},
        {{.pp_size = 4}, "3 layers cannot be shared out to 4 stages"},
        {{.pp_size = COMM_MAX_STAGES + 1}, "at most 64 stages"},
        {{.pp_size = 2, .stage_layers = short_one}, "expected 3 layers in all, found 2"},
        {{.pp_size = 2, .stage_layers = long_one}, "expected 3 layers in all, found 4"},
        {{.pp_size = 2, .stage_layers = none}, "stage 1: expected at least one layer"},
    };
    struct model_dir *dir;
    open_dir("fp16-tp1", &dir);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct engine_config c = cases[i].config;
        struct engine *g;
        struct err e = ERR_INIT;
        c.model = dir;
        c.tp_size = 1;
        c.device = "cpu";
        c.n_threads = 1;
        c.n_slots = 1;
        assert_int_equal(engine_open(&c, &g, &e), -EINVAL);
        if (!strstr(e.message, cases[i].words))
            fail_msg("case %zu: expected \"%s\" in \"%s\"", i, cases[i].words, e.message);
    }
    model_dir_close(dir);
}

/* ---- failures ---- */

/* The neighbour never comes: the step fails at the deadline, the epoch is over. */
static void test_missing_stage(void **state)
{
    (void)state;
    struct model_dir *dir;
    open_dir("fp16-tp1", &dir);
    struct engine_config config = {.model = dir,
                                   .tp_size = 1,
                                   .pp_size = 2,
                                   .stage = 1,
                                   .device = "cpu",
                                   .n_threads = 1,
                                   .n_slots = 1};
    struct engine *g;
    struct err e = ERR_INIT;
    assert_int_equal(engine_open(&config, &g, &e), 0);
    struct comm *links[2];
    assert_int_equal(comm_inproc_links_new(2, engine_link_bytes(g), 50 * NSEC_PER_MSEC, links), 0);
    assert_int_equal(engine_set_comm(g, links[0], &e), -EINVAL); /* another stage's */
    assert_non_null(strstr(e.message, "stage 0 of 2"));
    assert_int_equal(engine_set_comm(g, links[1], &e), 0);
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
    assert_non_null(strstr(e.message, "the stage before"));
    assert_int_equal(engine_step(g, &plan, &r, &e), -ETIMEDOUT);
    struct comm *again[2];
    assert_int_equal(comm_inproc_links_new(2, engine_link_bytes(g), NSEC_PER_SEC, again), 0);
    assert_int_equal(engine_set_comm(g, again[1], &e), 0);
    again[0]->ops->abort(again[0]);
    assert_int_equal(engine_step(g, &plan, &r, &e), -ECANCELED);
    engine_close(g);
    for (int i = 0; i != 2; i++) {
        comm_close(links[i]);
        comm_close(again[i]);
    }
    model_dir_close(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_slices),
        cmocka_unit_test(test_abandoned_slices),
        cmocka_unit_test(test_group_is_sliced_as_one),
        cmocka_unit_test(test_previous_needs_one_stage),
        cmocka_unit_test(test_known_answer),
        cmocka_unit_test(test_steps_under_way),
        cmocka_unit_test(test_too_many_steps),
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_open_refusals),
        cmocka_unit_test(test_missing_stage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
