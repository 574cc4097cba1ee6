/* test_scores.c: the scoring entries of the reference data: losses of language-model windows, and
 * log-probabilities of multiple choices, which share their context's KV blocks. */
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

static const double tolerance = 1e-3; /* of a sum of up to 32 log-probabilities */

static double sum_scores(const struct result_item *item)
{
    double sum = 0.0;
    for (uint32_t i = 0; i != item->n_scores; i++)
        sum += (double)item->scores[i];
    return sum;
}

/* ---- language modelling ---- */

struct window {
    int32_t ids[GOLDEN_MAX_SEQ], positions[GOLDEN_MAX_SEQ], targets[GOLDEN_MAX_SEQ];
    uint32_t n;
    uint32_t prefix_len;
};

/* Window i of a stream: [prompt] [gMASK] sop text; prompt and mask see each other. */
static void make_window(const struct arch *a, const int32_t *stream, uint32_t n_stream, uint32_t i,
                        uint32_t size, uint32_t stride, bool unidirectional, struct window *w)
{
    uint32_t begin = i * stride;
    uint32_t end = MIN(begin + size - 1, n_stream);
    uint32_t n_prompt = i && !unidirectional ? size - 1 - stride : 0;
    w->n = 0;
    for (uint32_t j = 0; j != n_prompt; j++)
        w->ids[w->n++] = stream[begin + j];
    w->ids[w->n++] = a->tokens.gmask;
    w->prefix_len = n_prompt ? w->n : 0;
    w->ids[w->n++] = a->tokens.sop;
    for (uint32_t j = begin + n_prompt; j + 1 < end; j++)
        w->ids[w->n++] = stream[j];
    for (uint32_t row = 0; row != w->n; row++) {
        w->positions[row] = (int32_t)row;
        /* the row of sop predicts the first token of the text */
        w->targets[row] = row >= n_prompt + 1 ? stream[begin + row - 1] : -1;
    }
}

static void check_stream(struct golden_engine *g, const json_t *entry)
{
    int32_t stream[GOLDEN_MAX_SEQ];
    uint32_t n = golden_ids(json_object_get(entry, "stream"), stream, GOLDEN_MAX_SEQ);
    uint32_t size = (uint32_t)golden_int(entry, "max_seq_length", 0);
    uint32_t stride = (uint32_t)golden_int(entry, "generation_length", 0);
    bool uni = json_is_true(json_object_get(entry, "unidirectional"));
    const json_t *losses = json_object_get(entry, "window_losses");
    uint32_t n_windows = (MAX(n, size - 1) - (size - 1) + stride - 1) / stride + 1;
    assert_int_equal(json_array_size(losses), n_windows);
    for (uint32_t i = 0; i != n_windows; i++) {
        struct window w;
        uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
        make_window(g->arch, stream, n, i, size, stride, uni, &w);
        golden_blocks(0, blocks);
        struct plan_item item = {.slot_gen = ++g->next_gen,
                                 .n_tokens = w.n,
                                 .prefix_len = w.prefix_len,
                                 .tokens = w.ids,
                                 .positions = w.positions,
                                 .targets = w.targets,
                                 .blocks = blocks,
                                 .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                                 .output = PLAN_OUTPUT_SCORE};
        const struct step_result *r = golden_step(g, &item, 1, NULL, 0, NULL, 0);
        double loss = -sum_scores(&r->items[0]);
        double expected = json_number_value(json_array_get(losses, i));
        if (fabs(loss - expected) > tolerance)
            fail_msg("%s window %u: loss %.6f, expected %.6f",
                     uni ? "unidirectional" : "bidirectional", i, loss, expected);
    }
}

/* ---- multiple choice ---- */

enum { MAX_CHOICES = 8 };

/* The context runs once; every choice is a slot of its own that starts behind it: whole blocks of
 * the context are shared, the last one, which the choice goes on writing, is copied. */
static void check_choices(struct golden_engine *g, const json_t *entry)
{
    const char *name = golden_text(entry, "name");
    int32_t ids[GOLDEN_MAX_SEQ];
    int32_t positions[GOLDEN_MAX_SEQ];
    uint32_t n_all = golden_ids(json_object_get(entry, "tokens"), ids, GOLDEN_MAX_SEQ);
    assert_int_equal(golden_ids(json_object_get(entry, "position_ids"), positions, GOLDEN_MAX_SEQ),
                     n_all);
    uint32_t n_context = 0;
    while (n_context != n_all && ids[n_context] != g->arch->tokens.sop)
        n_context++;
    uint32_t context_blocks[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, context_blocks);
    struct plan_item context = {.slot_gen = ++g->next_gen,
                                .n_tokens = n_context,
                                .prefix_len = n_context,
                                .tokens = ids,
                                .positions = positions,
                                .blocks = context_blocks,
                                .n_blocks = GOLDEN_BLOCKS_PER_SEQ};
    golden_step(g, &context, 1, NULL, 0, NULL, 0);

    const json_t *choices = json_object_get(entry, "choices");
    uint32_t n_choices = (uint32_t)json_array_size(choices);
    bool single = json_is_true(json_object_get(entry, "single_token"));
    assert_true(n_choices >= 2 && n_choices <= MAX_CHOICES);
    struct plan_item items[MAX_CHOICES];
    struct plan_copy copies[MAX_CHOICES];
    int32_t targets[MAX_CHOICES][16];
    uint32_t blocks[MAX_CHOICES][GOLDEN_BLOCKS_PER_SEQ];
    uint32_t row = n_context; /* of the choice's block in the reference's sequence */
    for (uint32_t i = 0; i != n_choices; i++) {
        uint32_t n = golden_ids(json_array_get(choices, i), targets[i], 16);
        golden_blocks((i + 1) * GOLDEN_BLOCKS_PER_SEQ, blocks[i]);
        uint32_t n_shared = n_context / PLAN_KV_BLOCK_TOKENS;
        memcpy(blocks[i], context_blocks, n_shared * sizeof blocks[i][0]);
        copies[i] = (struct plan_copy){context_blocks[n_shared], blocks[i][n_shared]};
        items[i] = (struct plan_item){.slot = i + 1,
                                      .slot_gen = ++g->next_gen,
                                      .start = n_context,
                                      .n_tokens = n,
                                      .prefix_len = n_context,
                                      .tokens = ids + row,
                                      .positions = positions + row,
                                      .targets = targets[i],
                                      .blocks = blocks[i],
                                      .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                                      .output = PLAN_OUTPUT_SCORE};
        if (!single)
            row += n;
    }
    const struct step_result *r = golden_step(g, items, n_choices, NULL, 0, copies, n_choices);
    uint32_t best = 0;
    for (uint32_t i = 0; i != n_choices; i++) {
        assert_int_equal(r->items[i].n_scores, items[i].n_tokens);
        double found = sum_scores(&r->items[i]);
        double expected = json_number_value(json_array_get(json_object_get(entry, "log_probs"), i));
        if (fabs(found - expected) > tolerance)
            fail_msg("%s choice %u: log-probability %.6f, expected %.6f", name, i, found, expected);
        if (found > sum_scores(&r->items[best]))
            best = i;
    }
    assert_int_equal(best, golden_int(entry, "argmax", -1));
}

static void test_scores(void **state)
{
    (void)state;
    json_t *manifest = golden_manifest();
    static const struct golden_options shapes[] = {
        {.tp = 1},
        {.tp = 2},
        {.tp = 4},
        {.tp = 1, .pp = 2},
        {.tp = 2, .pp = 2, .slice_layers = 2},
        {.tp = 1, .pp = 3, .slice_layers = 1},
        {.tp = 1, .slice_layers = 2},
    };
    for (size_t shape = 0; shape != ARRAY_LEN(shapes); shape++) {
        struct golden_engine g;
        struct golden_options o = shapes[shape];
        o.model = "fp16-tp1";
        o.n_slots = MAX_CHOICES + 1;
        golden_open(&g, &o);
        uint32_t n_streams = 0;
        uint32_t n_choices = 0;
        size_t i;
        json_t *entry;
        json_array_foreach(json_object_get(manifest, "scores"), i, entry)
        {
            if (strcmp(golden_text(entry, "task"), "language_model") == 0) {
                check_stream(&g, entry);
                n_streams++;
            } else {
                check_choices(&g, entry);
                n_choices++;
            }
        }
        assert_int_equal(n_streams, 2);
        assert_int_equal(n_choices, 4);
        golden_close(&g);
    }
    json_decref(manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scores)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
