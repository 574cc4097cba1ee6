/* script.c: see script.h. */
#include "tests/golden/script.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum {
    N_PROMPT = SCRIPT_PROMPT,
    N_DECODE = SCRIPT_DECODES,
    N_SLOTS = SCRIPT_SLOTS,
    N_ROWS = N_PROMPT + N_DECODE,
};

static int32_t tokens[N_SLOTS][N_ROWS];
static int32_t positions[N_ROWS];
static uint32_t tables[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];

static void make_input(void)
{
    for (uint32_t i = 0; i != N_SLOTS; i++)
        for (uint32_t j = 0; j != N_ROWS; j++)
            tokens[i][j] = (int32_t)(7 + (i * 131 + j * 29) % 500);
    for (uint32_t j = 0; j != N_ROWS; j++)
        positions[j] = (int32_t)j;
    for (uint32_t i = 0; i != N_SLOTS; i++)
        golden_blocks(i * GOLDEN_BLOCKS_PER_SEQ, tables[i]);
}

static struct plan_item item_of(uint32_t slot, uint32_t start, uint32_t n)
{
    return (struct plan_item){.slot = slot,
                              .slot_gen = slot + 1,
                              .start = start,
                              .n_tokens = n,
                              .prefix_len = N_PROMPT - 1,
                              .tokens = tokens[slot] + start,
                              .positions = positions + start,
                              .blocks = tables[slot],
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = PLAN_OUTPUT_LOGITS};
}

/* Appends an item's logits. */
static float *keep(float *at, const struct golden_engine *g, const struct result_item *r,
                   uint32_t n_rows)
{
    size_t n = (size_t)n_rows * g->arch->vocab;
    memcpy(at, r->logits, n * sizeof *at);
    return at + n;
}

float *script_run(const struct golden_options *o, bool sliced, size_t *ret_n)
{
    struct golden_options options = *o;
    struct golden_engine g;
    options.n_slots = N_SLOTS;
    options.n_blocks = N_SLOTS * GOLDEN_BLOCKS_PER_SEQ + 1;
    golden_open(&g, &options);
    make_input();
    size_t rows = SCRIPT_LOGIT_ROWS;
    float *logits = alloc_array(rows * g.arch->vocab, sizeof *logits), *at = logits;
    assert_non_null(logits);
    *ret_n = rows * g.arch->vocab;
    struct plan_item first = item_of(0, 0, N_PROMPT);
    struct plan plan = {.items = &first, .n_items = 1};
    at = keep(at, &g, &golden_run(&g, &plan)->items[0], N_PROMPT);
    struct plan_item both[2] = {item_of(1, 0, N_PROMPT), item_of(2, 0, N_PROMPT)};
    both[0].sliced = both[1].sliced = sliced;
    both[0].output = both[1].output = PLAN_OUTPUT_NONE;
    for (uint32_t layer = 0; layer != (sliced ? g.arch->n_layers : 1); layer++) {
        plan = (struct plan){.items = both, .n_items = 2};
        if (sliced) {
            plan.layer_begin = layer;
            plan.layer_end = layer + 1;
        }
        golden_run(&g, &plan);
    }
    uint32_t last = N_SLOTS * GOLDEN_BLOCKS_PER_SEQ; /* a block that nobody has */
    struct plan_copy copy = {tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS], last};
    uint32_t before = copy.src;
    for (uint32_t step = 0; step != N_DECODE; step++) {
        struct plan_item items[N_SLOTS];
        for (uint32_t i = 0; i != N_SLOTS; i++)
            items[i] = item_of(i, N_PROMPT + step, 1);
        tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS] = last;
        plan = (struct plan){
            .items = items, .n_items = N_SLOTS, .copies = &copy, .n_copies = step == 0 ? 1 : 0};
        const struct step_result *r = golden_run(&g, &plan);
        for (uint32_t i = 0; i != N_SLOTS; i++)
            at = keep(at, &g, &r->items[i], 1);
    }
    tables[0][N_PROMPT / PLAN_KV_BLOCK_TOKENS] = before;
    assert_true(at == logits + *ret_n);
    golden_close(&g);
    return logits;
}
