/* plan_validate: one valid plan that uses everything, then one change at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "proto/plan.h"

static const struct plan_limits limits = {.n_slots = 8,
                                          .n_blocks = 100,
                                          .max_tokens = 64,
                                          .max_seq = 100,
                                          .vocab = 1000,
                                          .n_top_logprobs = 5,
                                          .n_layers = 10};

/* item 0: prefill with prefix and scores; item 1: decode of the previous sample; items 2, 3: beams
 */
struct sample {
    int32_t tokens[4][20];
    int32_t positions[4][20];
    int32_t targets[20];
    uint32_t blocks[4][7];
    struct plan_bias bias[2];
    struct plan_range forbidden[1];
    int32_t banned[1];
    struct plan_item items[4];
    struct plan_beam_group groups[1];
    struct plan_copy copies[2];
    struct plan plan;
};

static void sample_init(struct sample *s)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 20; k++) {
            s->tokens[i][k] = 100 * i + k;
            s->positions[i][k] = k;
        }
        for (uint32_t k = 0; k < 7; k++)
            s->blocks[i][k] = 10 * (uint32_t)i + k;
    }
    for (int k = 0; k < 20; k++)
        s->targets[k] = k % 2 ? -1 : 999;
    s->bias[0] = (struct plan_bias){0, -1.5f};
    s->bias[1] = (struct plan_bias){999, 2};
    s->forbidden[0] = (struct plan_range){0, 1000};
    s->banned[0] = 999;
    s->items[0] = (struct plan_item){.slot = 7,
                                     .n_tokens = 20,
                                     .prefix_len = 18,
                                     .n_blocks = 2,
                                     .output = PLAN_OUTPUT_SCORE,
                                     .targets = s->targets};
    s->items[1] = (struct plan_item){.slot = 0,
                                     .slot_gen = 9,
                                     .start = 31,
                                     .n_tokens = 1,
                                     .prefix_len = 31,
                                     .n_blocks = 2,
                                     .output = PLAN_OUTPUT_SAMPLE,
                                     .sampling = {.temperature = 0.9f,
                                                  .top_k = 40,
                                                  .top_p = 0.7f,
                                                  .seed = 5,
                                                  .n_top_logprobs = 5,
                                                  .bias = s->bias,
                                                  .n_bias = 2,
                                                  .forbidden = s->forbidden,
                                                  .n_forbidden = 1,
                                                  .banned = s->banned,
                                                  .n_banned = 1}};
    for (uint32_t i = 2; i < 4; i++)
        s->items[i] = (struct plan_item){.slot = i,
                                         .start = 16,
                                         .n_tokens = 1,
                                         .n_blocks = 7,
                                         .output = PLAN_OUTPUT_BEAM,
                                         .beam_score = -3,
                                         .sampling = {.temperature = 1}};
    for (int i = 0; i < 4; i++) {
        s->items[i].tokens = s->tokens[i];
        s->items[i].positions = s->positions[i];
        s->items[i].blocks = s->blocks[i];
    }
    s->tokens[1][0] = PLAN_TOKEN_PREVIOUS;
    s->blocks[3][0] = s->blocks[2][0]; /* shared, read only */
    s->groups[0] = (struct plan_beam_group){.width = 2, .deterministic = true};
    s->copies[0] = (struct plan_copy){60, 61};
    s->copies[1] = (struct plan_copy){60, 99};
    s->plan = (struct plan){.epoch = 1,
                            .step = 1,
                            .copies = s->copies,
                            .n_copies = 2,
                            .items = s->items,
                            .n_items = 4,
                            .groups = s->groups,
                            .n_groups = 1};
}

static void expect_ok(const struct sample *s)
{
    struct err e = ERR_INIT;
    if (plan_validate(&s->plan, &limits, &e))
        fail_msg("expected a valid plan, found: %s", e.message);
}

static void expect_bad(const struct sample *s, const char *part)
{
    struct err e = ERR_INIT;
    int r = plan_validate(&s->plan, &limits, &e);
    if (r != -EINVAL || !strstr(e.message, part))
        fail_msg("expected -EINVAL with \"%s\", found %d with \"%s\"", part, r, e.message);
}

static void accepts_everything_in_range(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    expect_ok(&s);
    s.items[1].sampling.top_p = 2; /* >= 1 = off */
    s.items[0].output = PLAN_OUTPUT_LOGITS;
    expect_ok(&s);
}

/* Nobody looks at what is kept. */
static void accepts_kept_parameters(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    struct plan_sampling *p = &s.items[1].sampling;
    *p = (struct plan_sampling){.kept = true, .banned = s.banned, .n_banned = 1};
    expect_ok(&s);
    s.banned[0] = 1000;
    expect_bad(&s, "item 1: banned[0]");
    s.banned[0] = 999;
    p->forbidden = s.forbidden;
    p->n_forbidden = 1;
    expect_bad(&s, "item 1: sampling: what is kept needs a sequence that goes on");
}

/* Items 1 and 3 continue: their tables, or their last blocks, may be with the ranks. */
static void accepts_kept_tables(void **state)
{
    (void)state;
    static uint32_t tables[8 * 7]; /* [n_slots, 7] */
    struct sample s;
    struct err e = ERR_INIT;
    sample_init(&s);
    for (uint32_t i = 1; i < 4; i += 2) {
        struct plan_item *it = &s.items[i];
        memcpy(tables + it->slot * 7, it->blocks, it->n_blocks * sizeof *tables);
        it->n_blocks_kept = it->n_blocks;
        it->n_blocks = 0;
        it->blocks = NULL;
    }
    expect_ok(&s);
    assert_int_equal(plan_check_writes(&s.plan, &limits, tables, &e), 0);
    uint32_t last = s.items[1].start / PLAN_KV_BLOCK_TOKENS;
    tables[s.items[1].slot * 7 + last] = s.blocks[0][0]; /* which item 0 writes */
    assert_int_equal(plan_check_writes(&s.plan, &limits, tables, &e), -EINVAL);
    assert_non_null(strstr(e.message, "block 0 is written twice"));
    expect_ok(&s); /* cannot know */
}

#define BAD(part, ...)                                                                             \
    do {                                                                                           \
        struct sample s;                                                                           \
        sample_init(&s);                                                                           \
        __VA_ARGS__;                                                                               \
        expect_bad(&s, part);                                                                      \
    } while (0)

static void refuses_bad_counts(void **state)
{
    (void)state;
    BAD("step", s.plan.step = 0);
    BAD("items: expected 1", s.plan.n_items = 0);
    BAD("items: expected 1 to 1024, found 1025", s.plan.n_items = PLAN_MAX_ITEMS + 1);
    BAD("copies: expected at most 100", s.plan.n_copies = 101);
    BAD("copies", s.plan.copies = NULL);
    BAD("beam groups", s.plan.n_groups = 5);
    BAD("beam groups", s.plan.groups = NULL);
}

static void refuses_bad_copies(void **state)
{
    (void)state;
    BAD("copy 0", s.copies[0].src = 100);
    BAD("copy 1", s.copies[1].dst = 100);
    BAD("onto itself", s.copies[0].dst = 60);
    BAD("copy 1: destination 61", s.copies[1].dst = 61);
    BAD("copy 1: source 61", s.copies[1].src = 61);
}

static void refuses_bad_places(void **state)
{
    (void)state;
    BAD("item 2: slot: expected below 8, found 8", s.items[2].slot = 8);
    BAD("slot 7 is in the plan twice", s.items[3].slot = 7);
    BAD("item 1: tokens and positions", s.items[1].n_tokens = 0);
    BAD("item 1: tokens and positions", s.items[1].tokens = NULL);
    BAD("item 1: tokens and positions", s.items[1].positions = NULL);
    BAD("item 0: tokens: expected at most 64", s.items[0].n_tokens = 65);
    BAD("item 1: start + tokens: expected at most 100, found 101", s.items[1].start = 100);
    BAD("found 4294967296", s.items[1].start = UINT32_MAX);
    BAD("item 0: prefix_len: expected at most 20", s.items[0].prefix_len = 21);
    BAD("item 1: prefix_len: expected at most 31", s.items[1].prefix_len = 32);
    BAD("item 0: blocks: expected 2 to 7 of them, kept and new, found 1", s.items[0].n_blocks = 1);
    BAD("item 0: blocks: expected 2 to 7 of them, kept and new, found 8", s.items[0].n_blocks = 8);
    BAD("found 268435458", s.items[0].n_blocks = 0x10000002);
    BAD("item 0: blocks", s.items[0].blocks = NULL);
    BAD("item 0: blocks[1]: expected below 100", s.blocks[0][1] = 100);
    BAD("block 0 is written twice", s.blocks[0][1] = 0);
    BAD("item 0: blocks: a sequence that starts keeps none, found 1", s.items[0].n_blocks_kept = 1);
    BAD("item 1: blocks: expected 2 to 7 of them, kept and new, found 4294967302", {
        s.items[1].n_blocks_kept = UINT32_MAX;
        s.items[1].n_blocks = 7;
    });
    BAD("item 3: blocks[1]: block 21 is written twice", s.blocks[3][1] = 21);
}

static void refuses_bad_tokens(void **state)
{
    (void)state;
    BAD("item 0: tokens[3]: expected an id below 1000, found 1000", s.tokens[0][3] = 1000);
    BAD("item 0: tokens[3]: expected an id below 1000, found -2", s.tokens[0][3] = -2);
    BAD("item 0: tokens[0]: the previous sample", s.tokens[0][0] = PLAN_TOKEN_PREVIOUS);
    BAD("item 0: tokens[1]: the previous sample", s.tokens[0][1] = PLAN_TOKEN_PREVIOUS);
    BAD("item 0: positions[19]: expected 0 to 99, found 100", s.positions[0][19] = 100);
    BAD("item 0: positions[19]", s.positions[0][19] = -1);
    BAD("item 0: targets[2]", s.targets[2] = 1000);
    BAD("item 0: targets[2]", s.targets[2] = -2);
    BAD("item 0: targets: expected 20", s.items[0].targets = NULL);
}

static void refuses_too_many_tokens_in_all(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    struct plan_limits few = limits;
    few.max_tokens = 22;
    struct err e = ERR_INIT;
    assert_int_equal(plan_validate(&s.plan, &few, &e), -EINVAL);
    assert_non_null(strstr(e.message, "expected at most 22 in a step, found 23"));
}

static void refuses_bad_outputs(void **state)
{
    (void)state;
    BAD("item 1: output: 5", s.items[1].output = (enum plan_output)5);
    BAD("item 1: output: -1", s.items[1].output = (enum plan_output) - 1);
    BAD("item 1: temperature", s.items[1].sampling.temperature = 0);
    BAD("item 1: temperature", s.items[1].sampling.temperature = -1);
    BAD("item 1: temperature", s.items[1].sampling.temperature = NAN);
    BAD("item 1: temperature", s.items[1].sampling.temperature = INFINITY);
    BAD("item 2: temperature", s.items[2].sampling.temperature = 0);
    BAD("item 1: top_p", s.items[1].sampling.top_p = -0.1f);
    BAD("item 1: top_p", s.items[1].sampling.top_p = NAN);
    BAD("item 1: n_top_logprobs: expected at most 5", s.items[1].sampling.n_top_logprobs = 6);
    BAD("item 1: bias: expected at most 1024", s.items[1].sampling.n_bias = 1025);
    BAD("item 1: bias", s.items[1].sampling.bias = NULL);
    BAD("item 1: bias[1].token", s.bias[1].token = 1000);
    BAD("item 1: bias[0].token", s.bias[0].token = -1);
    BAD("item 1: bias[0].bias", s.bias[0].bias = NAN);
    BAD("item 1: forbidden: expected at most 64", s.items[1].sampling.n_forbidden = 65);
    BAD("item 1: forbidden[0]", s.forbidden[0].end = 1001);
    BAD("item 1: forbidden[0]", s.forbidden[0].begin = -1);
    BAD("item 1: forbidden[0]", s.forbidden[0] = ((struct plan_range){5, 4}));
    BAD("item 1: banned: expected at most 4096", s.items[1].sampling.n_banned = 4097);
    BAD("item 1: banned[0]", s.banned[0] = 1000);
}

static void refuses_bad_penalties(void **state)
{
    (void)state;
    static const int32_t history[3] = {1, 2, 3}, unknown[1] = {1000};
    struct sample good;
    sample_init(&good);
    struct plan_sampling *p = &good.items[1].sampling;
    p->min_p = 1;
    p->repetition_penalty = 1.3f;
    p->presence_penalty = -2;
    p->frequency_penalty = 2;
    p->history = history;
    p->n_history = 3;
    p->n_history_prompt = 2;
    expect_ok(&good);
    BAD("item 1: min_p", s.items[1].sampling.min_p = 1.5f);
    BAD("item 1: min_p", s.items[1].sampling.min_p = NAN);
    BAD("item 1: repetition_penalty", s.items[1].sampling.repetition_penalty = -1);
    BAD("item 1: repetition_penalty", s.items[1].sampling.repetition_penalty = INFINITY);
    BAD("item 1: presence and frequency", s.items[1].sampling.presence_penalty = NAN);
    BAD("item 1: presence and frequency", s.items[1].sampling.frequency_penalty = INFINITY);
    BAD("item 1: history: expected at most 65536", s.items[1].sampling.n_history = 65537);
    BAD("item 1: history: expected at most 0 ids of the prompt",
        s.items[1].sampling.n_history_prompt = 1);
    BAD("item 1: history[0]", {
        s.items[1].sampling.history = unknown;
        s.items[1].sampling.n_history = 1;
    });
    p->n_history_kept = limits.max_seq - 3;
    p->n_history_prompt = limits.max_seq;
    expect_ok(&good);
    p->n_history_kept++;
    struct err e = ERR_INIT;
    assert_int_equal(plan_validate(&good.plan, &limits, &e), -EINVAL);
    assert_non_null(strstr(e.message, "expected at most 100 ids, kept and new, found 101"));
    p->n_history_kept = UINT32_MAX;
    assert_int_equal(plan_validate(&good.plan, &limits, &e), -EINVAL);
}

/* What comes back beside scores has a limit in each row and in all. */
static void refuses_too_much_beside_scores(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    s.items[0].sampling.n_top_logprobs = 5;
    expect_ok(&s);
    s.items[0].sampling.n_top_logprobs = 6;
    expect_bad(&s, "item 0: n_top_logprobs: expected at most 5, found 6");

    enum { N = 14000 };
    const struct plan_limits wide = {.n_slots = 1,
                                     .n_blocks = N,
                                     .max_tokens = N,
                                     .max_seq = N,
                                     .vocab = 1000,
                                     .n_top_logprobs = 20,
                                     .n_layers = 1};
    static int32_t tokens[N], positions[N], targets[N];
    static uint32_t blocks[N];
    for (uint32_t i = 0; i != N; i++)
        blocks[i] = i;
    struct plan_item item = {.n_tokens = N,
                             .tokens = tokens,
                             .positions = positions,
                             .targets = targets,
                             .blocks = blocks,
                             .n_blocks = N / PLAN_KV_BLOCK_TOKENS,
                             .output = PLAN_OUTPUT_SCORE,
                             .sampling = {.n_top_logprobs = 18}};
    const struct plan p = {.epoch = 1, .step = 1, .items = &item, .n_items = 1};
    struct err e = ERR_INIT;
    assert_int_equal(plan_validate(&p, &wide, &e), 0);
    item.sampling.n_top_logprobs = 19; /* 266000 */
    assert_int_equal(plan_validate(&p, &wide, &e), -EINVAL);
    assert_non_null(strstr(e.message, "at most 262144 tokens beside scores, found 266000"));
}

static void refuses_bad_slices(void **state)
{
    (void)state;
    struct sample good;
    sample_init(&good);
    struct plan_item prefill = good.items[0]; /* goes last */
    memmove(good.items, good.items + 1, 3 * sizeof good.items[0]);
    good.items[3] = prefill;
    good.items[3].sliced = true;
    good.plan.items = good.items;
    good.plan.layer_begin = 4;
    good.plan.layer_end = 10;
    expect_ok(&good);
    struct err e = ERR_INIT;
    good.plan.layer_end = 11;
    assert_int_equal(plan_validate(&good.plan, &limits, &e), -EINVAL);
    assert_non_null(strstr(e.message, "layers: expected a range within 0 to 10, found 4 to 11"));
    good.plan.layer_end = 4;
    assert_int_equal(plan_validate(&good.plan, &limits, &e), -EINVAL);
    good.plan.layer_begin = good.plan.layer_end = 0;
    assert_int_equal(plan_validate(&good.plan, &limits, &e), -EINVAL);
    assert_non_null(strstr(e.message, "layers 0 to 0 for sliced items"));
    BAD("layers 0 to 5 without sliced items", s.plan.layer_end = 5);
    BAD("item 1: stands behind sliced items", {
        s.items[0].sliced = s.items[3].sliced = true;
        s.items[3].start = 0;
        s.plan.layer_end = 1;
    });
    BAD("item 3: a sliced item starts at 0", {
        s.items[3].sliced = true;
        s.plan.layer_end = 1;
    });
}

static void refuses_bad_beams(void **state)
{
    (void)state;
    BAD("item 2: beam_group: expected below 1", s.items[2].beam_group = 1);
    BAD("item 2: beam_score", s.items[2].beam_score = NAN);
    BAD("beam group 0: width", s.groups[0].width = 0);
    BAD("beam group 0: width", s.groups[0].width = PLAN_MAX_BEAM_WIDTH + 1);
    BAD("1 of 1 beam groups have no item", {
        s.items[2].output = PLAN_OUTPUT_NONE;
        s.items[3].output = PLAN_OUTPUT_NONE;
    });
    BAD("items of beam group 0 are not neighbours", {
        struct plan_item swap = s.items[1];
        s.items[1] = s.items[2];
        s.items[2] = swap;
    });
}

static void hash_sees_plan_and_choices(void **state)
{
    (void)state;
    struct sample s;
    sample_init(&s);
    struct result_item items[4] = {{.token = -1}, {.token = 17}, {.token = -1}, {.token = -1}};
    struct result_candidate candidates[2] = {{2, 5, -1}, {3, 6, -2}};
    struct result_group groups[1] = {{candidates, 2}};
    uint64_t hash = plan_state_hash(1, &s.plan, items, groups);
    assert_int_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    assert_int_not_equal(hash, plan_state_hash(2, &s.plan, items, groups));
    items[1].token = 18;
    assert_int_not_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    items[1].token = 17;
    candidates[1].token = 7;
    assert_int_not_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    candidates[1].token = 6;
    s.items[1].slot_gen++;
    assert_int_not_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    s.items[1].slot_gen--;
    s.blocks[0][0]++;
    assert_int_not_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    s.blocks[0][0]--;
    assert_int_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    s.items[1].n_blocks_kept = 1;
    assert_int_not_equal(hash, plan_state_hash(1, &s.plan, items, groups));
    s.items[1].n_blocks_kept = 0;
    int32_t history[] = {4, 5};
    s.items[1].sampling.history = history;
    s.items[1].sampling.n_history = 2;
    uint64_t with_history = plan_state_hash(1, &s.plan, items, groups);
    assert_int_not_equal(hash, with_history);
    history[1] = 6;
    assert_int_not_equal(with_history, plan_state_hash(1, &s.plan, items, groups));
    history[1] = 5;
    s.items[1].sampling.n_history_kept = 1;
    assert_int_not_equal(with_history, plan_state_hash(1, &s.plan, items, groups));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_everything_in_range),
        cmocka_unit_test(accepts_kept_tables),
        cmocka_unit_test(accepts_kept_parameters),
        cmocka_unit_test(refuses_bad_counts),
        cmocka_unit_test(refuses_bad_copies),
        cmocka_unit_test(refuses_bad_places),
        cmocka_unit_test(refuses_bad_tokens),
        cmocka_unit_test(refuses_too_many_tokens_in_all),
        cmocka_unit_test(refuses_bad_outputs),
        cmocka_unit_test(refuses_bad_penalties),
        cmocka_unit_test(refuses_too_much_beside_scores),
        cmocka_unit_test(refuses_bad_slices),
        cmocka_unit_test(refuses_bad_beams),
        cmocka_unit_test(hash_sees_plan_and_choices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
