/* test_invariance.c: a sequence's logits do not depend on who shares its batch, on how it is cut
 * into steps, on where its blocks lie, on whether a token came through prefill or decode, on
 * whether its prompt ran in slices of layers, or on the stages. Bit-equal. Random compositions; the
 * seed is printed and can be set with GLMD_TEST_SEED. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/support/random.h"

enum {
    N_SEQUENCES = 12,
    N_SLOTS = 6,
    MAX_LENGTH = 60,
    BLOCKS = (MAX_LENGTH + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS,
    STEP_TOKENS = 160,
};

struct sequence {
    int32_t ids[MAX_LENGTH], positions[MAX_LENGTH];
    uint32_t length, prefix_len;
    float *expected;             /* [length, V] run alone, in one step */
    float scores[MAX_LENGTH];    /* of the targets, likewise */
    int32_t targets[MAX_LENGTH]; /* ids, or -1 */
};

struct slot {
    const struct sequence *sequence; /* NULL = idle */
    uint32_t gen;
    uint32_t done;
    bool sliced; /* in the set under way */
    uint32_t blocks[BLOCKS];
};

/* The sliced items under way, in their order. */
struct slices {
    struct plan_item items[N_SLOTS];
    uint32_t n_items;
    uint32_t n_tokens;
    uint32_t layer_end; /* 0 = none */
};

static void make_sequence(struct golden_engine *g, struct sequence *s)
{
    uint32_t vocab = g->arch->vocab;
    s->length = 1 + random_below(MAX_LENGTH);
    s->prefix_len = random_below(3) ? random_below(s->length + 1) : 0;
    for (uint32_t i = 0; i != s->length; i++) {
        s->ids[i] = (int32_t)random_below(vocab);
        s->positions[i] = (int32_t)(random_below(4) ? i : random_below(GOLDEN_MAX_SEQ));
    }
    size_t bytes = (size_t)s->length * vocab * sizeof *s->expected;
    s->expected = alloc_array(1, bytes);
    memcpy(s->expected, golden_logits(g, s->ids, s->positions, s->length, s->prefix_len), bytes);
    for (uint32_t i = 0; i != s->length; i++)
        s->targets[i] = random_below(4) ? (int32_t)random_below(vocab) : -1;
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, blocks);
    struct plan_item item = {.slot_gen = ++g->next_gen,
                             .n_tokens = s->length,
                             .prefix_len = s->prefix_len,
                             .tokens = s->ids,
                             .positions = s->positions,
                             .blocks = blocks,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                             .output = PLAN_OUTPUT_SCORE,
                             .targets = s->targets};
    const struct result_item *r = golden_step(g, &item, 1, NULL, 0, NULL, 0)->items;
    uint32_t n = 0;
    for (uint32_t i = 0; i != s->length; i++)
        s->scores[i] = s->targets[i] >= 0 ? r->scores[n++] : 0.0f;
    assert_int_equal(r->n_scores, n);
}

/* Gives every slot blocks at random places. */
static void deal_blocks(struct slot *slots)
{
    uint32_t deck[N_SLOTS * BLOCKS];
    for (uint32_t i = 0; i != ARRAY_LEN(deck); i++)
        deck[i] = i;
    for (uint32_t i = ARRAY_LEN(deck) - 1; i; i--) {
        uint32_t j = random_below(i + 1);
        uint32_t swap = deck[i];
        deck[i] = deck[j];
        deck[j] = swap;
    }
    for (uint32_t i = 0; i != N_SLOTS; i++)
        memcpy(slots[i].blocks, deck + (size_t)i * BLOCKS, sizeof slots[i].blocks);
}

static struct plan_item next_item(struct golden_engine *g, struct slot *s, uint32_t slot_idx,
                                  const struct sequence *sequences)
{
    if (!s->sequence) {
        s->sequence = &sequences[random_below(N_SEQUENCES)];
        s->gen = ++g->next_gen;
        s->done = 0;
    }
    const struct sequence *q = s->sequence;
    uint32_t least = s->done ? 1 : MAX(q->prefix_len, 1u);
    uint32_t left = q->length - s->done;
    /* mostly decode, sometimes a chunk, sometimes everything */
    uint32_t n = least;
    if (left > least && random_below(3) == 0)
        n = random_below(2) ? left : least + random_below(left - least + 1);
    return (struct plan_item){.slot = slot_idx,
                              .slot_gen = s->gen,
                              .start = s->done,
                              .n_tokens = n,
                              .prefix_len = q->prefix_len,
                              .tokens = q->ids + s->done,
                              .positions = q->positions + s->done,
                              .blocks = s->blocks,
                              .n_blocks = BLOCKS,
                              .output = PLAN_OUTPUT_LOGITS};
}

/* ---- slices ---- */

static void drop_slices(struct slices *set, struct slot *slots)
{
    for (uint32_t i = 0; i != set->n_items; i++) {
        struct slot *s = &slots[set->items[i].slot];
        s->sequence = NULL;
        s->sliced = false;
    }
    *set = (struct slices){0};
}

/* A new set of one to three idle slots, as many as there are and fit. */
static void begin_slices(struct golden_engine *g, struct slices *set, struct slot *slots,
                         const struct sequence *sequences)
{
    static const enum plan_output outputs[] = {PLAN_OUTPUT_NONE, PLAN_OUTPUT_SCORE,
                                               PLAN_OUTPUT_SAMPLE};
    uint32_t wanted = 1 + random_below(3);
    for (uint32_t i = 0; i != N_SLOTS && set->n_items != wanted; i++) {
        struct slot *s = &slots[i];
        if (s->sequence)
            continue;
        const struct sequence *q = &sequences[random_below(N_SEQUENCES)];
        uint32_t least = MAX(q->prefix_len, 1u);
        uint32_t n = random_below(2) ? q->length : least + random_below(q->length - least + 1);
        if (set->n_tokens + n > STEP_TOKENS)
            continue;
        s->sequence = q;
        s->gen = ++g->next_gen;
        s->done = 0;
        s->sliced = true;
        set->items[set->n_items++] =
            (struct plan_item){.slot = i,
                               .slot_gen = s->gen,
                               .n_tokens = n,
                               .prefix_len = q->prefix_len,
                               .tokens = q->ids,
                               .positions = q->positions,
                               .blocks = s->blocks,
                               .n_blocks = BLOCKS,
                               .sliced = true,
                               .output = outputs[random_below(ARRAY_LEN(outputs))],
                               .targets = q->targets,
                               .sampling = {.temperature = 1.0f, .top_k = 1}};
        set->n_tokens += n;
    }
}

/* What the last slice says is what the sequence alone says. */
static void check_sliced(const struct golden_engine *g, const struct plan_item *it,
                         const struct result_item *r, const struct sequence *q, const char *what)
{
    uint32_t vocab = g->arch->vocab;
    if (it->output == PLAN_OUTPUT_SAMPLE) {
        const float *row = q->expected + (size_t)(it->n_tokens - 1) * vocab;
        uint32_t best = 0;
        for (uint32_t i = 1; i != vocab; i++)
            best = row[i] > row[best] ? i : best;
        if (r->token != (int32_t)best)
            fail_msg("%s: sliced item in slot %u: token %d, expected %u", what, it->slot, r->token,
                     best);
        return;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; it->output == PLAN_OUTPUT_SCORE && i != it->n_tokens; i++) {
        if (q->targets[i] < 0)
            continue;
        if (n == r->n_scores || r->scores[n] != q->scores[i])
            fail_msg("%s: sliced item in slot %u: score of row %u differs", what, it->slot, i);
        n++;
    }
    assert_int_equal(r->n_scores, n);
}

/* ---- steps ---- */

/* Adds the items that run all layers and share the step's tokens with the sliced ones. */
static uint32_t add_whole_items(struct golden_engine *g, struct slot *slots,
                                const struct sequence *sequences, uint32_t n_tokens,
                                struct plan_item *items)
{
    uint32_t n = 0;
    uint32_t first = random_below(N_SLOTS);
    bool alone = n_tokens == 0;
    for (uint32_t i = 0; i != N_SLOTS; i++) {
        uint32_t idx = (first + i) % N_SLOTS;
        if (slots[idx].sliced || ((n || !alone) && random_below(3) == 0))
            continue;
        items[n] = next_item(g, &slots[idx], idx, sequences);
        if (n_tokens + items[n].n_tokens > STEP_TOKENS)
            continue;
        n_tokens += items[n++].n_tokens;
    }
    return n;
}

static void check_whole(const struct golden_engine *g, const struct plan_item *it,
                        const struct result_item *r, struct slot *s, const char *what)
{
    uint32_t vocab = g->arch->vocab;
    const float *expected = s->sequence->expected + (size_t)s->done * vocab;
    for (uint32_t row = 0; row != it->n_tokens; row++) {
        if (memcmp(r->logits + (size_t)row * vocab, expected + (size_t)row * vocab,
                   vocab * sizeof *expected) != 0)
            fail_msg("%s: slot %u: row %u of %u differs from the sequence run alone", what,
                     it->slot, s->done + row, s->sequence->length);
    }
    s->done += it->n_tokens;
    if (s->done == s->sequence->length)
        s->sequence = NULL;
}

static void finish_slices(const struct golden_engine *g, struct slices *set, struct slot *slots,
                          const struct result_item *results, const char *what)
{
    for (uint32_t i = 0; i != set->n_items; i++) {
        const struct plan_item *it = &set->items[i];
        struct slot *s = &slots[it->slot];
        check_sliced(g, it, &results[i], s->sequence, what);
        s->sliced = false;
        s->done = it->n_tokens;
        if (s->done == s->sequence->length)
            s->sequence = NULL;
    }
    *set = (struct slices){0};
}

/* A step of whole items, of a slice, or of both. Returns whether a slice was among them. */
static bool random_step(struct golden_engine *g, struct slot *slots, struct slices *set,
                        const struct sequence *sequences, const char *what, uint32_t step)
{
    struct plan_item items[N_SLOTS];
    char where[160];
    snprintf(where, sizeof where, "%s: step %u", what, step);
    struct plan plan = {.items = items};
    if (set->layer_end && random_below(12) == 0)
        drop_slices(set, slots); /* the engine learns of it when the next set begins */
    if (!set->layer_end && random_below(2))
        begin_slices(g, set, slots, sequences);
    bool slice = set->n_items && random_below(4) > 0;
    if (set->n_items && !set->layer_end)
        slice = true;
    if (slice) {
        plan.layer_begin = set->layer_end;
        plan.layer_end = plan.layer_begin + 1 + random_below(g->arch->n_layers - plan.layer_begin);
    }
    uint32_t n = add_whole_items(g, slots, sequences, slice ? set->n_tokens : 0, items);
    plan.n_items = n;
    for (uint32_t i = 0; slice && i != set->n_items; i++)
        items[plan.n_items++] = set->items[i];
    if (!plan.n_items) /* all slots wait for their next slice */
        return false;
    const struct step_result *r = golden_run(g, &plan);
    for (uint32_t i = 0; i != n; i++)
        check_whole(g, &items[i], &r->items[i], &slots[items[i].slot], where);
    if (!slice)
        return false;
    set->layer_end = plan.layer_end;
    if (set->layer_end == g->arch->n_layers) {
        finish_slices(g, set, slots, r->items + n, where);
        return true;
    }
    for (uint32_t i = 0; i != set->n_items; i++)
        assert_true(r->items[n + i].token == -1 && r->items[n + i].n_scores == 0);
    return true;
}

static void check_invariance(const struct golden_options *o, uint32_t n_steps)
{
    char what[128];
    char shape[64];
    snprintf(what, sizeof what, "%s, %s, mode %d, %s, KV cache in %s", o->model,
             golden_shape(o, shape), (int)o->mode, o->isa ? o->isa : "best",
             k_kv_type_name(o->kv_type));
    struct golden_engine g;
    golden_open(&g, o);
    struct sequence sequences[N_SEQUENCES];
    for (uint32_t i = 0; i != N_SEQUENCES; i++)
        make_sequence(&g, &sequences[i]);
    struct slot slots[N_SLOTS] = {0};
    deal_blocks(slots);
    struct slices set = {0};
    uint32_t n_slices = 0;
    for (uint32_t step = 0; step != n_steps; step++)
        n_slices += random_step(&g, slots, &set, sequences, what, step);
    assert_true(n_slices > n_steps / 8);
    for (uint32_t i = 0; i != N_SEQUENCES; i++)
        free(sequences[i].expected);
    golden_close(&g);
}

static void test_invariance(void **state)
{
    (void)state;
    static const struct golden_options cases[] = {
        {.model = "fp16-tp1", .tp = 1, .mode = K_MODE_FP32},
        {.model = "fp16-tp1", .tp = 2, .mode = K_MODE_FP16},
        {.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP16},
        {.model = "int4-tp2", .tp = 2, .mode = K_MODE_FP32},
        {.model = "int4-tp4", .tp = 4, .mode = K_MODE_A8},
        {.model = "int4-tp1", .tp = 1, .mode = K_MODE_A8, .isa = "c"},
        {.model = "int8-tp2", .tp = 1, .mode = K_MODE_A8},
        {.model = "int8-tp2", .tp = 2, .mode = K_MODE_FP16, .isa = "c"},
        {.model = "int4-tp1", .tp = 1, .mode = K_MODE_FP32, .isa = "c"},
        {.model = "int4-tp1", .tp = 2, .mode = K_MODE_FP16, .kv_type = K_KV_I8},
        {.model = "fp16-tp1", .tp = 1, .mode = K_MODE_FP32, .kv_type = K_KV_I8},
        {.model = "int4-tp1", .tp = 1, .mode = K_MODE_A8, .isa = "c", .kv_type = K_KV_I8},
        {.model = "int8-tp2", .tp = 1, .mode = K_MODE_FP32, .kv_type = K_KV_F16},
        {.model = "fp16-tp1", .tp = 1, .pp = 2, .mode = K_MODE_FP32},
        {.model = "int4-tp2", .tp = 2, .pp = 2, .mode = K_MODE_FP16},
        {.model = "int4-tp1", .tp = 1, .pp = 3, .mode = K_MODE_A8},
    };
    const char *seed = getenv("GLMD_TEST_SEED");
    uint64_t base = seed ? strtoull(seed, NULL, 10) : 20221006;
    print_message("seed %llu\n", (unsigned long long)base);
    uint32_t n_steps = golden_long() ? 1000 : 60;
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        *random_state() = base * 2654435761u + i + 1;
        struct golden_options o = cases[i];
        o.n_slots = N_SLOTS;
        o.max_step_tokens = STEP_TOKENS;
        check_invariance(&o, n_steps);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_invariance)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
