/* test_fake_kept.c: what a slot keeps between steps (history, table, parameters): the same tokens
 * as with all of it in every plan, and a plan that goes on behind something else is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/util.h"
#include "tests/unit/engine/fake_rig.h"

static void expect_tokens(const int32_t wanted[20], const int32_t found[20])
{
    for (int i = 0; i != 20; i++) {
        if (wanted[i] != found[i])
            fail_msg("token %d: expected %d, found %d", i, wanted[i], found[i]);
    }
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
    expect_tokens(whole, kept);
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
    expect_tokens(again, kept);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_history_is_kept),     cmocka_unit_test(test_history_must_be_there),
        cmocka_unit_test(test_table_is_kept),       cmocka_unit_test(test_sampling_is_kept),
        cmocka_unit_test(test_table_must_be_there), cmocka_unit_test(test_sampling_must_be_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
