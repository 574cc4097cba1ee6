/* test_fake.c: the fake device: what its tokens depend on, and that mistakes with tables, copies,
 * contexts and positions show in them; slices, stages, latency. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/util.h"
#include "tests/unit/engine/fake_rig.h"

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
    fake_context_init(&x, &rig_config, r.tokens, r.positions, 5);
    fake_context_add(&x, r.tokens[5], 5);
    fake_context_add(&x, r.tokens[6], 6);
    float score = fake_token_logprob(&rig_config, fake_context_state(&x), 206);
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
    struct fake_config c = rig_config;
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
        cmocka_unit_test(test_latency_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
