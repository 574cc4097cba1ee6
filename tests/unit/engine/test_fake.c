/* test_fake.c: the fake device: what its tokens depend on, and that mistakes with tables, copies,
 * contexts and positions show in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/fake.h"

enum { N_SLOTS = 8, N_BLOCKS = 64, MAX_SEQ = 256, TEXT_BEGIN = 100, TEXT_END = 900, EOP = 950 };

static const struct fake_config config = {
    .limits = {.n_slots = N_SLOTS,
               .n_blocks = N_BLOCKS,
               .max_tokens = 512,
               .max_seq = MAX_SEQ,
               .vocab = 1000,
               .n_top_logprobs = 5,
               .n_layers = 10},
    .text_begin = TEXT_BEGIN,
    .text_end = TEXT_END,
    .end_tokens = {EOP},
    .n_end_tokens = 1,
};

/* A fake and one sequence after the other in its slots. */
struct rig {
    struct fake *fake;
    uint64_t step;
    int32_t tokens[MAX_SEQ], positions[MAX_SEQ];
    uint32_t blocks[MAX_SEQ / PLAN_KV_BLOCK_TOKENS];
    struct plan_item item; /* of the next step */
};

static void rig_init(struct rig *r)
{
    *r = (struct rig){0};
    assert_int_equal(fake_new(&config, &r->fake), 0);
    for (uint32_t i = 0; i != MAX_SEQ; i++) {
        r->tokens[i] = (int32_t)(TEXT_BEGIN + i * 7 % (TEXT_END - TEXT_BEGIN));
        r->positions[i] = (int32_t)i;
    }
    for (uint32_t i = 0; i != ARRAY_LEN(r->blocks); i++)
        r->blocks[i] = i;
    r->item = (struct plan_item){.tokens = r->tokens,
                                 .positions = r->positions,
                                 .blocks = r->blocks,
                                 .n_blocks = ARRAY_LEN(r->blocks),
                                 .output = PLAN_OUTPUT_SAMPLE,
                                 .sampling = {.temperature = 1.0f, .top_k = 1}};
}

static const struct result_item *run_plan(struct rig *r, struct plan *p)
{
    const struct step_result *result;
    struct err e = ERR_INIT;
    p->step = ++r->step;
    if (fake_step(r->fake, p, &result, &e) < 0)
        fail_msg("step %u: %s", (unsigned)r->step, e.message);
    return result->items;
}

/* Runs r->item; the token it chose. */
static int32_t run_item(struct rig *r)
{
    struct plan p = {.items = &r->item, .n_items = 1};
    return run_plan(r, &p)->token;
}

/* Tokens [start, start + n) of the sequence, on its table. */
static int32_t run_tokens(struct rig *r, uint32_t start, uint32_t n)
{
    r->item.start = start;
    r->item.n_tokens = n;
    r->item.tokens = r->tokens + start;
    r->item.positions = r->positions + start;
    return run_item(r);
}

/* What the function without a cache says about the first n tokens. */
static int32_t expected(const struct rig *r, uint32_t n, uint32_t prefix_len)
{
    struct fake_context x;
    fake_context_init(&x, &config, r->tokens, r->positions, prefix_len);
    for (uint32_t i = prefix_len; i != n; i++)
        fake_context_add(&x, r->tokens[i], r->positions[i]);
    return fake_choose(&config, fake_context_state(&x), &r->item.sampling, -1);
}

static void test_parse(void **state)
{
    (void)state;
    struct fake_params p;
    struct err e = ERR_INIT;
    assert_int_equal(fake_parse("fake", &p, &e), 0);
    assert_int_equal(p.step_ns, 0);
    assert_int_equal(
        fake_parse("fake:step_us=2.5,prefill_us=3:decode_us=4,end=0.25,seed=9", &p, &e), 0);
    assert_int_equal(p.step_ns, 2500);
    assert_int_equal(p.prefill_token_ns, 3000);
    assert_int_equal(p.decode_seq_ns, 4000);
    assert_true(p.end_probability == 0.25);
    assert_int_equal(p.seed, 9);
    assert_false(fake_is_device("faker"));
    static const char *const wrong[] = {"fake:step_us", "fake:step_us=x", "fake:step_us=-1",
                                        "fake:end=1.5", "fake:colour=1",  "fake:seed=nan",
                                        "fake:,"};
    for (size_t i = 0; i != ARRAY_LEN(wrong); i++) {
        if (fake_parse(wrong[i], &p, &e) != -EINVAL)
            fail_msg("%s: expected to be refused", wrong[i]);
    }
    assert_int_equal(fake_parse("fake:colour=1", &p, &e), -EINVAL);
    assert_non_null(strstr(e.message, "colour"));
}

/* Prefill, decode by "my previous sample", chunks: always the function of the tokens. */
static void test_follows_the_function(void **state)
{
    (void)state;
    for (uint32_t prefix_len = 0; prefix_len <= 21; prefix_len += 21) {
        struct rig r;
        rig_init(&r);
        r.item.prefix_len = prefix_len;
        int32_t token = run_tokens(&r, 0, 23);
        assert_int_equal(token, expected(&r, 23, prefix_len));
        for (uint32_t n = 23; n != 70; n++) {
            r.tokens[n] = token;
            int32_t previous = PLAN_TOKEN_PREVIOUS;
            r.item.start = n;
            r.item.n_tokens = 1;
            r.item.tokens = &previous;
            r.item.positions = r.positions + n;
            token = run_item(&r);
            if (token != expected(&r, n + 1, prefix_len))
                fail_msg("prefix %u, %u tokens: expected %d, found %d", prefix_len, n + 1,
                         expected(&r, n + 1, prefix_len), token);
        }
        /* the same sequence in another slot and other blocks, in three pieces */
        r.item.slot = 3;
        for (uint32_t i = 0; i != 6; i++)
            r.blocks[i] = 40 - 2 * i;
        run_tokens(&r, 0, 25);
        run_tokens(&r, 25, 32);
        assert_int_equal(run_tokens(&r, 57, 13), token);
        fake_free(r.fake);
    }
}

/* An output row inside the context sees all of it. */
static void test_scores(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    int32_t targets[10];
    for (uint32_t i = 0; i != 10; i++)
        targets[i] = i % 3 ? -1 : (int32_t)(200 + i);
    r.item.output = PLAN_OUTPUT_SCORE;
    r.item.targets = targets;
    r.item.prefix_len = 5;
    r.item.n_tokens = 10;
    struct plan p = {.items = &r.item, .n_items = 1};
    const struct result_item *result = run_plan(&r, &p);
    assert_int_equal(result->n_scores, 4);
    struct fake_context x;
    fake_context_init(&x, &config, r.tokens, r.positions, 5);
    fake_context_add(&x, r.tokens[5], 5);
    fake_context_add(&x, r.tokens[6], 6);
    float score = fake_token_logprob(&config, fake_context_state(&x), 206);
    assert_true(result->scores[2] == score);
    float first = result->scores[0];
    r.tokens[4]++; /* behind row 0, but in its context */
    r.item.slot = 1;
    result = run_plan(&r, &p);
    if (result->scores[0] == first)
        fail_msg("row 0 does not see the end of its context: %f both times", (double)first);
    fake_free(r.fake);
}

/* Greedy tokens of 40 tokens on two slots, and then one step that a mistake makes wrong. */
struct mistake {
    const char *what;
    void (*make)(struct rig *r, struct plan_copy *copy, struct plan *p);
};

static void wrong_block(struct rig *r, struct plan_copy *copy, struct plan *p)
{
    (void)copy, (void)p;
    r->blocks[1] = 9; /* never written */
}

static void swapped_blocks(struct rig *r, struct plan_copy *copy, struct plan *p)
{
    (void)copy, (void)p;
    r->blocks[0] = 1;
    r->blocks[1] = 0;
}

static void overwritten_block(struct rig *r, struct plan_copy *copy, struct plan *p)
{
    *copy = (struct plan_copy){.src = 0, .dst = 1};
    p->copies = copy;
    p->n_copies = 1;
    (void)r;
}

static void wrong_position(struct rig *r, struct plan_copy *copy, struct plan *p)
{
    (void)copy, (void)p;
    r->positions[40]++;
}

static void test_mistakes_show(void **state)
{
    (void)state;
    static const struct mistake mistakes[] = {{"a block that was never written", wrong_block},
                                              {"swapped blocks", swapped_blocks},
                                              {"a block given to another", overwritten_block},
                                              {"a wrong position", wrong_position}};
    for (size_t i = 0; i != ARRAY_LEN(mistakes); i++) {
        struct rig r;
        rig_init(&r);
        r.item.prefix_len = 38;
        run_tokens(&r, 0, 40);
        int32_t right = expected(&r, 41, 38);
        struct plan_copy copy;
        struct plan p = {.items = &r.item, .n_items = 1};
        mistakes[i].make(&r, &copy, &p);
        r.item.start = 40;
        r.item.n_tokens = 1;
        r.item.tokens = r.tokens + 40;
        r.item.positions = r.positions + 40;
        int32_t found = run_plan(&r, &p)->token;
        if (found == right)
            fail_msg("%s does not show: token %d", mistakes[i].what, found);
        fake_free(r.fake);
    }
}

/* A fork runs on copied blocks; on the blocks of another context it does not, although the tokens
 * in those blocks are the same. */
static void test_contexts_are_not_prefixes(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    r.item.prefix_len = 30;
    run_tokens(&r, 0, 31);
    int32_t right = expected(&r, 32, 30);
    struct plan_copy copy = {.src = 1, .dst = 20};
    r.item.slot = 1;
    r.blocks[1] = 20;
    r.item.start = 31;
    r.item.n_tokens = 1;
    r.item.tokens = r.tokens + 31;
    r.item.positions = r.positions + 31;
    struct plan p = {.copies = &copy, .n_copies = 1, .items = &r.item, .n_items = 1};
    assert_int_equal(run_plan(&r, &p)->token, right);

    /* a longer context with the same beginning, and its first block under the shorter one's rest */
    r.item.slot = 2;
    r.item.prefix_len = 33;
    r.blocks[0] = 5, r.blocks[1] = 6, r.blocks[2] = 7;
    run_tokens(&r, 0, 34);
    r.item.slot = 3;
    r.item.prefix_len = 30;
    r.blocks[0] = 5, r.blocks[1] = 20;
    int32_t found = run_tokens(&r, 32, 1);
    if (found == expected(&r, 33, 30))
        fail_msg("block 5 belongs to a context of 33 tokens; token %d all the same", found);
    fake_free(r.fake);
}

/* ---- slices and stages ---- */

/* Layers of the item, beside a decode step of slot 7. Sliced items stand last. */
static const struct result_item *run_slice(struct rig *r, const struct plan_item *other,
                                           uint32_t begin, uint32_t end, struct plan_copy *copy)
{
    struct plan_item items[2] = {*other, r->item};
    items[1].sliced = true;
    struct plan p = {.items = items,
                     .n_items = 2,
                     .copies = copy,
                     .n_copies = copy != NULL,
                     .layer_begin = begin,
                     .layer_end = end};
    return run_plan(r, &p) + 1;
}

/* A prompt in three slices, with other sequences in between; `copy` comes with the last one. */
static int32_t run_sliced(struct rig *r, struct plan_copy *copy)
{
    static const uint32_t ends[] = {3, 4, 10};
    int32_t token = 200, position = 0;
    uint32_t block = 50, begin = 0;
    r->item.n_tokens = 40;
    r->item.prefix_len = 37;
    const struct result_item *result = NULL;
    for (uint32_t i = 0; i != ARRAY_LEN(ends); i++) {
        struct plan_item other = {.slot = 7,
                                  .start = i,
                                  .n_tokens = 1,
                                  .tokens = &token,
                                  .positions = &position,
                                  .blocks = &block,
                                  .n_blocks = 1,
                                  .output = PLAN_OUTPUT_SAMPLE,
                                  .sampling = r->item.sampling};
        position = (int32_t)i;
        result = run_slice(r, &other, begin, ends[i], ends[i] == 10 ? copy : NULL);
        if (ends[i] != 10)
            assert_int_equal(result->token, -1);
        begin = ends[i];
    }
    return result->token;
}

static void test_slices(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    int32_t right = expected(&r, 40, 37);
    assert_int_equal(run_sliced(&r, NULL), right);
    r.tokens[40] = right; /* and the blocks hold what a whole prompt would have left */
    assert_int_equal(run_tokens(&r, 40, 1), expected(&r, 41, 37));
    fake_free(r.fake);

    rig_init(&r); /* a block that changes between two slices */
    struct plan_copy copy = {.src = 50, .dst = 1};
    if (run_sliced(&r, &copy) == right)
        fail_msg("a block that was overwritten between slices does not show: token %d", right);
    fake_free(r.fake);

    rig_init(&r); /* read before the last slice */
    struct plan_item first = r.item;
    first.n_tokens = 40;
    first.prefix_len = 37;
    first.sliced = true;
    struct plan p = {.items = &first, .n_items = 1, .layer_begin = 0, .layer_end = 9};
    run_plan(&r, &p);
    r.item.slot = 1; /* a fork on the same blocks */
    r.tokens[40] = right;
    if (run_tokens(&r, 40, 1) == expected(&r, 41, 37))
        fail_msg("entries are complete before the last slice");
    fake_free(r.fake);
}

static void test_stages(void **state)
{
    (void)state;
    struct fake_config c = config;
    c.n_stages = 2;
    struct rig r[2];
    for (uint32_t stage = 0; stage != 2; stage++) {
        rig_init(&r[stage]);
        fake_free(r[stage].fake);
        c.stage = stage;
        assert_int_equal(fake_new(&c, &r[stage].fake), 0);
    }
    assert_int_equal(run_tokens(&r[0], 0, 20), -1);
    assert_int_equal(run_tokens(&r[1], 0, 20), expected(&r[1], 20, 0));
    int32_t previous = PLAN_TOKEN_PREVIOUS;
    r[1].item.start = 20;
    r[1].item.n_tokens = 1;
    r[1].item.tokens = &previous;
    struct plan p = {.step = 2, .items = &r[1].item, .n_items = 1};
    const struct step_result *result;
    struct err e = ERR_INIT;
    assert_int_equal(fake_step(r[1].fake, &p, &result, &e), -EINVAL);
    fake_free(r[0].fake);
    fake_free(r[1].fake);
}

static void test_sampling(void **state)
{
    (void)state;
    struct fake_context x;
    struct rig r;
    rig_init(&r);
    fake_free(r.fake);
    fake_context_init(&x, &config, r.tokens, r.positions, 10);
    uint64_t s = fake_context_state(&x);
    struct plan_sampling greedy = {.temperature = 1.0f, .top_k = 1}, p = greedy;
    int32_t best = fake_choose(&config, s, &greedy, -1);
    p.seed = 7, p.output_index = 3, p.request = 8;
    assert_int_equal(fake_choose(&config, s, &p, -1), best); /* greedy looks at none of these */
    p.top_k = 0;
    int32_t drawn = fake_choose(&config, s, &p, -1);
    assert_int_equal(fake_choose(&config, s, &p, -1), drawn);
    uint32_t changed = 0;
    for (int field = 0; field != 7; field++) {
        struct plan_sampling q = p;
        q.seed += field == 0;
        q.request += field == 1;
        q.choice += field == 2;
        q.output_index += field == 3;
        q.temperature += field == 4;
        q.top_p += field == 5 ? 0.5f : 0;
        q.min_p += field == 6 ? 0.5f : 0;
        changed += fake_choose(&config, s, &q, -1) != drawn;
    }
    assert_true(changed >= 6); /* one in 800 may be the same by chance */

    int32_t banned[] = {best};
    p = greedy, p.banned = banned, p.n_banned = 1;
    assert_int_not_equal(fake_choose(&config, s, &p, -1), best);
    struct plan_range all_but_one[] = {{0, 777}, {778, 1000}};
    p = greedy, p.forbidden = all_but_one, p.n_forbidden = 2;
    assert_int_equal(fake_choose(&config, s, &p, -1), 777);
}

/* A history counts while there are penalties, whoever knew its last token. */
static void test_penalties(void **state)
{
    (void)state;
    const int32_t history[] = {200, 300, 400, 300}, other[] = {200, 300, 401, 300};
    struct plan_sampling p = {.temperature = 1.0f, .top_k = 1, .history = history, .n_history = 4};
    int32_t plain = fake_choose(&config, 5, &p, -1);
    p.repetition_penalty = 1.0f; /* off */
    assert_int_equal(fake_choose(&config, 5, &p, -1), plain);
    p.repetition_penalty = 1.5f;
    int32_t token = fake_choose(&config, 5, &p, -1);
    assert_int_not_equal(token, plain);
    p.n_history = 3;
    assert_int_equal(fake_choose(&config, 5, &p, 300), token);
    assert_int_not_equal(fake_choose(&config, 5, &p, 301), token);
    p.n_history = 4;
    p.history = other;
    assert_int_not_equal(fake_choose(&config, 5, &p, -1), token);
}

/* Decodes with penalties; sends the whole history, or what the slot does not have yet. */
static void penalized_decodes(bool whole, int32_t tokens[20])
{
    struct rig r;
    rig_init(&r);
    r.item.sampling.presence_penalty = 1;
    r.item.sampling.n_history_prompt = 10;
    uint32_t n_kept = 0;
    for (uint32_t n = 10; n != 30; n++) {
        r.item.sampling.n_history_kept = whole ? 0 : n_kept;
        r.item.sampling.history = r.tokens + r.item.sampling.n_history_kept;
        r.item.sampling.n_history = n - r.item.sampling.n_history_kept;
        n_kept = n - n % 3; /* now and then less than there is */
        tokens[n - 10] = n == 10 ? run_tokens(&r, 0, 10) : run_tokens(&r, n - 1, 1);
        r.tokens[n] = tokens[n - 10];
    }
    fake_free(r.fake);
}

static void test_history_is_kept(void **state)
{
    (void)state;
    int32_t whole[20], kept[20];
    penalized_decodes(true, whole);
    penalized_decodes(false, kept);
    for (int i = 0; i != 20; i++) {
        if (whole[i] != kept[i])
            fail_msg("token %d: expected %d, found %d", i, whole[i], kept[i]);
    }
}

static void test_history_must_be_there(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    struct plan p = {.items = &r.item, .n_items = 1};
    const struct step_result *result;
    struct err e = ERR_INIT;
    r.item.sampling.history = r.tokens;
    r.item.sampling.n_history = 10;
    run_tokens(&r, 0, 10);
    r.item.start = 10;
    r.item.n_tokens = 1;
    r.item.tokens = r.tokens + 10;
    r.item.positions = r.positions + 10;
    r.item.sampling.n_history = 1;
    r.item.sampling.n_history_kept = 11;
    p.step = r.step + 1;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), -EINVAL);
    assert_non_null(strstr(e.message, "slot 0 has kept 10 ids, the plan goes on at 11"));
    r.item.slot_gen++; /* another sequence: nothing was kept of it */
    r.item.sampling.n_history_kept = 1;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), -EINVAL);
    assert_non_null(strstr(e.message, "slot 0 has kept 0 ids, the plan goes on at 1"));
    r.item.sampling.n_history_kept = 0;
    run_plan(&r, &p);
    fake_free(r.fake);
}

/* The next token of the sequence, behind what the slot has of its table. */
static int32_t run_behind(struct rig *r, uint32_t start, uint32_t n, uint32_t n_kept)
{
    r->item.n_blocks_kept = n_kept;
    r->item.blocks = r->blocks + n_kept;
    r->item.n_blocks = (start + n + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS - n_kept;
    return run_tokens(r, start, n);
}

/* A sequence over several blocks: each item with the whole table, or with what is new of it. */
static void test_table_is_kept(void **state)
{
    (void)state;
    for (int whole = 0; whole != 2; whole++) {
        struct rig r;
        rig_init(&r);
        uint32_t n_kept = 0;
        for (uint32_t n = 10; n != 70; n++) {
            int32_t token =
                n == 10 ? run_behind(&r, 0, 10, 0) : run_behind(&r, n - 1, 1, whole ? 0 : n_kept);
            n_kept = plan_blocks_total(&r.item);
            if (token != expected(&r, n, 0))
                fail_msg("%u tokens: expected %d, found %d", n, expected(&r, n, 0), token);
            r.tokens[n] = token;
        }
        assert_int_equal(n_kept, 5);
        fake_free(r.fake);
    }
}

static void expect_refused(struct rig *r, const struct plan_item *items, uint32_t n,
                           const char *part)
{
    struct plan p = {.items = items, .n_items = n, .step = r->step + 1};
    const struct step_result *result;
    struct err e = ERR_INIT;
    int code = fake_step(r->fake, &p, &result, &e);
    if (code != -EINVAL || !strstr(e.message, part))
        fail_msg("expected -EINVAL with \"%s\", found %d with \"%s\"", part, code, e.message);
}

/* Decodes of a sequence with parameters of its own, which come each time or once. */
static void tuned_decodes(bool again, int32_t tokens[20])
{
    static const struct plan_range range = {TEXT_BEGIN, TEXT_BEGIN + 5};
    const struct plan_sampling tuned = {.temperature = 0.7f,
                                        .top_p = 0.9f,
                                        .seed = 77,
                                        .choice = 3,
                                        .forbidden = &range,
                                        .n_forbidden = 1,
                                        .n_top_logprobs = 2};
    struct rig r;
    rig_init(&r);
    for (uint32_t n = 10; n != 30; n++) {
        r.item.sampling =
            again || n == 10 ? tuned : (struct plan_sampling){.kept = true, .temperature = NAN};
        r.item.sampling.output_index = n - 10;
        tokens[n - 10] = n == 10 ? run_tokens(&r, 0, 10) : run_tokens(&r, n - 1, 1);
        r.tokens[n] = tokens[n - 10];
    }
    struct plan p = {.items = &r.item, .n_items = 1};
    r.item.start++;
    assert_int_equal(run_plan(&r, &p)->n_top, 2);
    fake_free(r.fake);
}

static void test_sampling_is_kept(void **state)
{
    (void)state;
    int32_t again[20], kept[20];
    tuned_decodes(true, again);
    tuned_decodes(false, kept);
    for (int i = 0; i != 20; i++) {
        if (again[i] != kept[i])
            fail_msg("token %d: expected %d, found %d", i, again[i], kept[i]);
    }
}

static void test_table_must_be_there(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    run_behind(&r, 0, 33, 0);
    run_behind(&r, 33, 1, 3);
    struct plan_item two[2] = {r.item, r.item};
    struct plan_item *it = &two[0];
    it->start = 34;
    it->n_blocks_kept = 2;
    it->n_blocks = 1;
    it->blocks = r.blocks + 2;
    expect_refused(&r, two, 1,
                   "slot 0 has a table of 3 in generation 0, the plan goes on behind 2");
    it->n_blocks_kept = 4;
    it->n_blocks = 0;
    expect_refused(&r, two, 1,
                   "slot 0 has a table of 3 in generation 0, the plan goes on behind 4");
    it->n_blocks_kept = 3;
    it->slot_gen = 1; /* another sequence: nothing was kept of it */
    expect_refused(&r, two, 1,
                   "slot 0 has a table of 0 in generation 1, the plan goes on behind 3");
    it->slot_gen = 0;
    it->start = 31; /* nor does a table help that is too short */
    it->n_blocks_kept = 1;
    expect_refused(&r, two, 1, "blocks: expected 2 to");
    it->start = 34; /* what is written twice, once through a table that is kept */
    it->n_blocks_kept = 3;
    two[1].slot = 1;
    two[1].start = 34;
    two[1].n_blocks_kept = 0;
    two[1].n_blocks = 3;
    two[1].blocks = r.blocks;
    expect_refused(&r, two, 2, "item 1: blocks[2]: block 2 is written twice");
    r.item = *it;
    run_item(&r);
    fake_free(r.fake);
}

static void test_sampling_must_be_there(void **state)
{
    (void)state;
    static const struct plan_bias bias = {TEXT_BEGIN, 1};
    struct rig r;
    rig_init(&r);
    r.item.sampling.bias = &bias;
    r.item.sampling.n_bias = 1;
    run_tokens(&r, 0, 10);
    struct plan_item it = r.item;
    it.start = 10;
    it.n_tokens = 1;
    it.sampling = (struct plan_sampling){.kept = true};
    expect_refused(&r, &it, 1, "slot 0 has no parameters in generation 0 that could be kept");
    r.item.sampling.n_bias = 0;
    run_tokens(&r, 10, 1);
    it.start = 11;
    it.slot_gen = 1;
    expect_refused(&r, &it, 1, "slot 0 has no parameters in generation 1 that could be kept");
    it.slot_gen = 0;
    r.item = it;
    run_item(&r);
    fake_free(r.fake);
}

static void test_top_logprobs(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    r.item.n_tokens = 12;
    r.item.sampling.n_top_logprobs = 5;
    struct plan p = {.items = &r.item, .n_items = 1};
    const struct result_item *result = run_plan(&r, &p);
    assert_int_equal(result->n_top, 5);
    assert_int_equal(result->top[0].token, result->token);
    assert_true(result->top[0].logprob == result->logprob);
    for (uint32_t i = 1; i != 5; i++) {
        assert_true(result->top[i].logprob <= result->top[i - 1].logprob);
        for (uint32_t j = 0; j != i; j++)
            assert_int_not_equal(result->top[i].token, result->top[j].token);
    }
    fake_free(r.fake);
}

static void test_end_probability(void **state)
{
    (void)state;
    struct fake_config c = config;
    struct plan_sampling greedy = {.temperature = 1.0f, .top_k = 1};
    static const double probabilities[] = {0.0, 0.05, 1.0};
    for (size_t k = 0; k != ARRAY_LEN(probabilities); k++) {
        c.params.end_probability = probabilities[k];
        uint32_t n = 20000, ends = 0;
        struct fake_context x;
        fake_context_init(&x, &c, NULL, NULL, 0);
        for (uint32_t i = 0; i != n; i++) {
            fake_context_add(&x, (int32_t)(i % 1000), (int32_t)i);
            ends += fake_choose(&c, fake_context_state(&x), &greedy, -1) == EOP;
        }
        double found = (double)ends / n;
        if (fabs(found - probabilities[k]) > 0.01)
            fail_msg("end tokens: expected %g of all, found %g", probabilities[k], found);
    }
    struct plan_range end = {EOP, EOP + 1};
    greedy.forbidden = &end, greedy.n_forbidden = 1;
    assert_int_not_equal(fake_choose(&c, 1, &greedy, -1), EOP);
}

static void test_beams(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    struct plan_item items[2] = {r.item, r.item};
    uint32_t blocks[2][2] = {{0, 1}, {2, 3}};
    for (uint32_t i = 0; i != 2; i++) {
        items[i].slot = i;
        items[i].n_tokens = 20 + i;
        items[i].output = PLAN_OUTPUT_BEAM;
        items[i].beam_score = -(float)i;
        items[i].blocks = blocks[i];
        items[i].n_blocks = 2;
    }
    struct plan_beam_group group = {.width = 6, .deterministic = true};
    struct plan p = {.step = 1, .items = items, .n_items = 2, .groups = &group, .n_groups = 1};
    const struct step_result *result;
    struct err e = ERR_INIT;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), 0);
    const struct result_candidate *c = result->groups[0].candidates;
    assert_int_equal(result->groups[0].n_candidates, 6);
    for (uint32_t i = 0; i != 6; i++) {
        if (i)
            assert_true(c[i].score <= c[i - 1].score);
        struct fake_context x;
        fake_context_init(&x, &config, NULL, NULL, 0);
        for (uint32_t j = 0; j != items[c[i].item].n_tokens; j++)
            fake_context_add(&x, r.tokens[j], r.positions[j]);
        float score = items[c[i].item].beam_score +
                      fake_token_logprob(&config, fake_context_state(&x), c[i].token);
        assert_true(c[i].score == score);
        for (uint32_t j = 0; j != i; j++)
            assert_false(c[i].item == c[j].item && c[i].token == c[j].token);
    }
    fake_free(r.fake);
}

static void test_latency_and_refusals(void **state)
{
    (void)state;
    struct rig r;
    rig_init(&r);
    struct fake_params params = {.step_ns = 1000, .prefill_token_ns = 10, .decode_seq_ns = 3};
    struct plan_item items[3] = {{.n_tokens = 1}, {.n_tokens = 20}, {.n_tokens = 1}};
    struct plan p = {.items = items, .n_items = 3};
    assert_int_equal(fake_step_ns(&params, &p), 1000 + 20 * 10 + 2 * 3);
    params.n_layers = 10;
    items[1].sliced = true;
    p.layer_begin = 2, p.layer_end = 5;
    assert_int_equal(fake_step_ns(&params, &p), 1000 + 20 * 10 * 3 / 10 + 2 * 3);

    const struct step_result *result;
    struct err e = ERR_INIT;
    r.item.n_tokens = 4;
    p = (struct plan){.step = 7, .items = &r.item, .n_items = 1};
    assert_int_equal(fake_step(r.fake, &p, &result, &e), -EINVAL); /* step 1 comes first */
    p.step = 1;
    r.item.output = PLAN_OUTPUT_LOGITS;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), -EINVAL);
    r.item.output = PLAN_OUTPUT_SAMPLE;
    assert_int_equal(fake_step(r.fake, &p, &result, &e), 0);
    uint64_t hash = result->state_hash;
    fake_reset(r.fake);
    assert_int_equal(fake_step(r.fake, &p, &result, &e), 0);
    assert_true(result->state_hash == hash);
    fake_free(r.fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_follows_the_function),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_mistakes_show),
        cmocka_unit_test(test_contexts_are_not_prefixes),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_history_is_kept),
        cmocka_unit_test(test_table_is_kept),
        cmocka_unit_test(test_table_must_be_there),
        cmocka_unit_test(test_sampling_is_kept),
        cmocka_unit_test(test_sampling_must_be_there),
        cmocka_unit_test(test_history_must_be_there),
        cmocka_unit_test(test_top_logprobs),
        cmocka_unit_test(test_end_probability),
        cmocka_unit_test(test_beams),
        cmocka_unit_test(test_latency_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
