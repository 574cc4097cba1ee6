/* test_outputs.c: what a step's rows become: samples, scores, logits and beams agree with each
 * other, draws can be repeated, and how many threads a rank has changes nothing. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <string.h>

#include "base/cpus.h"
#include "base/util.h"

enum { N_SLOTS = 24, N_PROMPT = 8 };

static const int32_t previous = PLAN_TOKEN_PREVIOUS;
static const int32_t prompt[N_PROMPT] = {92, 304, 102, 71, 206, 506, 513, 516};
static const int32_t positions[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                    12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23};

static uint32_t tables[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];

static void open_engine(struct golden_engine *g, struct golden_options o)
{
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

/* Sample, score and logits of the same rows agree with each other. */
static void test_outputs_agree(void **state)
{
    (void)state;
    struct golden_engine g;
    open_engine(&g, (struct golden_options){.model = "fp16-tp1", .tp = 4});
    uint32_t vocab = g.arch->vocab;
    int32_t targets[N_PROMPT] = {-1, 7, -1, 8, 9, -1, -1, 639};
    struct plan_item items[3] = {begin(&g, 0), begin(&g, 1), begin(&g, 2)};
    items[0].output = PLAN_OUTPUT_LOGITS;
    items[1].output = PLAN_OUTPUT_SCORE;
    items[1].targets = targets;
    items[2].sampling.n_top_logprobs = PLAN_MAX_TOP_LOGPROBS;
    const struct step_result *r = golden_step(&g, items, 3, NULL, 0, NULL, 0);
    const float *logits = r->items[0].logits;
    uint32_t n = 0;
    for (uint32_t i = 0; i != N_PROMPT; i++) {
        if (targets[i] < 0)
            continue;
        double expected = golden_logprob(logits + (size_t)i * vocab, vocab, targets[i]);
        assert_float_equal(r->items[1].scores[n], expected, 1e-5);
        n++;
    }
    assert_int_equal(r->items[1].n_scores, n);
    const float *last = logits + (size_t)(N_PROMPT - 1) * vocab;
    const struct result_item *s = &r->items[2];
    assert_int_equal(s->n_top, PLAN_MAX_TOP_LOGPROBS);
    assert_int_equal(s->token, s->top[0].token);
    assert_true(s->logprob == s->top[0].logprob);
    for (uint32_t i = 0; i != s->n_top; i++) {
        assert_float_equal(s->top[i].logprob, golden_logprob(last, vocab, s->top[i].token), 1e-5);
        if (i)
            assert_true(s->top[i].logprob <= s->top[i - 1].logprob);
    }
    assert_int_equal(r->items[0].token, -1);
    assert_int_equal(r->items[1].token, -1);
    golden_close(&g);
}

/* The first token after the prompt: its distribution is broad, so that draws differ. */
static uint64_t draws(uint32_t tp, enum k_mode mode, uint64_t seed, int32_t ret_tokens[20])
{
    struct golden_engine g;
    open_engine(&g, (struct golden_options){.model = "int4-tp1", .tp = tp, .mode = mode});
    struct plan_item item = begin(&g, 0);
    item.sampling = (struct plan_sampling){
        .temperature = 2.0f, .top_k = 200, .top_p = 0.95f, .seed = seed, .request = 3};
    const struct step_result *r = NULL;
    for (uint32_t i = 0; i != 20; i++) {
        item.sampling.output_index = i;
        r = golden_step(&g, &item, 1, NULL, 0, NULL, 0);
        ret_tokens[i] = r->items[0].token;
        item.start += item.n_tokens;
        item.n_tokens = 1;
        item.tokens = &previous;
        item.positions = positions + item.start;
        if (item.start >= ARRAY_LEN(positions)) {
            item = begin(&g, 0);
            item.sampling = (struct plan_sampling){
                .temperature = 2.0f, .top_k = 200, .top_p = 0.95f, .seed = seed, .request = 3};
        }
    }
    uint64_t hash = r->state_hash;
    golden_close(&g);
    return hash;
}

/* A replay draws the same tokens; another seed, others. Ranks agree (local_group checks it). */
static void test_sampling_is_reproducible(void **state)
{
    (void)state;
    int32_t a[20];
    int32_t b[20];
    int32_t c[20];
    uint64_t hash_a = draws(2, K_MODE_FP32, 11, a);
    uint64_t hash_b = draws(2, K_MODE_FP32, 11, b);
    uint64_t hash_c = draws(2, K_MODE_FP32, 12, c);
    assert_memory_equal(a, b, sizeof a);
    assert_true(hash_a == hash_b);
    assert_true(memcmp(a, c, sizeof a) != 0);
    assert_true(hash_a != hash_c);
}

/* ---- threads ---- */

static const int32_t some[N_PROMPT] = {3, -1, 4, -1, 5, 6, -1, 7};
static const int32_t all[N_PROMPT] = {1, 2, 3, 4, 5, 6, 7, 8};

/* Rows of every kind, more than go through the head at once; beam groups of three and of one. */
static uint32_t mixed_items(struct golden_engine *g, struct plan_item *items)
{
    for (uint32_t i = 0; i != N_SLOTS; i++) {
        struct plan_item *it = &items[i];
        *it = begin(g, i);
        it->sampling = (struct plan_sampling){.temperature = 0.5f + (float)i / 8.0f,
                                              .top_k = i % 3 ? 100 : 0,
                                              .top_p = i % 2 ? 0.9f : 0.0f,
                                              .min_p = i % 5 ? 0.0f : 0.01f,
                                              .n_top_logprobs = i % 4 * 5,
                                              .seed = 5,
                                              .request = i};
        if (i == 2 || i == 9)
            it->output = PLAN_OUTPUT_LOGITS;
        if (i % 6 == 0) {
            it->output = PLAN_OUTPUT_SCORE;
            it->targets = i % 12 ? all : some;
        }
        if ((i >= 14 && i < 17) || i == 23) {
            it->output = PLAN_OUTPUT_BEAM;
            it->beam_group = i == 23;
            it->beam_score = -(float)i;
        }
    }
    return N_SLOTS;
}

/* Everything that a step gave, one thing behind the other. */
struct gathered {
    uint8_t bytes[1 << 17];
    size_t n;
};

static void gather(struct gathered *to, const void *from, size_t n)
{
    assert_true(n <= sizeof to->bytes - to->n);
    if (n)
        memcpy(to->bytes + to->n, from, n);
    to->n += n;
}

static void run_mixed(struct golden_options o, uint32_t threads, struct gathered *ret)
{
    struct golden_engine g;
    o.threads = threads;
    o.max_step_tokens = N_SLOTS * N_PROMPT;
    open_engine(&g, o);
    struct plan_item items[N_SLOTS];
    const struct plan_beam_group groups[2] = {{.width = 6}, {.width = 3}};
    uint32_t n = mixed_items(&g, items);
    const struct step_result *r = golden_step(&g, items, n, groups, 2, NULL, 0);
    ret->n = 0;
    for (uint32_t i = 0; i != n; i++) {
        const struct result_item *it = &r->items[i];
        gather(ret, &it->token, sizeof it->token);
        gather(ret, &it->logprob, it->token >= 0 ? sizeof it->logprob : 0);
        gather(ret, it->top, it->n_top * sizeof *it->top);
        gather(ret, it->scores, it->n_scores * sizeof *it->scores);
        gather(ret, it->score_tokens, it->n_score_tokens * sizeof *it->score_tokens);
        gather(ret, it->score_logprobs, it->n_score_tokens * sizeof *it->score_logprobs);
        if (it->logits)
            gather(ret, it->logits, (size_t)N_PROMPT * g.arch->vocab * sizeof *it->logits);
    }
    for (uint32_t i = 0; i != 2; i++) {
        assert_int_equal(r->groups[i].n_candidates, groups[i].width);
        gather(ret, r->groups[i].candidates, groups[i].width * sizeof *r->groups[i].candidates);
    }
    golden_close(&g);
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    if (cpus_usable() < 2) {
        print_message("skipped: a rank has as many threads as processors, and there is one\n");
        skip();
    }
    static struct gathered one, many;
    for (uint32_t tp = 1; tp <= 2; tp++) {
        const struct golden_options o = {.model = "int4-tp1", .tp = tp, .mode = K_MODE_FP16};
        run_mixed(o, 1, &one);
        for (uint32_t round = 0; round != 12; round++) {
            run_mixed(o, 2, &many);
            assert_int_equal(many.n, one.n);
            assert_memory_equal(many.bytes, one.bytes, one.n);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs_agree),
        cmocka_unit_test(test_sampling_is_reproducible),
        cmocka_unit_test(test_threads_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
