/* test_invariance.c: a sequence's logits do not depend on who shares its batch, on how it is cut
 * into steps, on where its blocks lie, or on whether a token came through prefill or decode.
 * Bit-equal. Random compositions; the seed is printed and can be set with GLMD_TEST_SEED. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum {
    N_SEQUENCES = 12,
    N_SLOTS = 6,
    MAX_LENGTH = 60,
    BLOCKS = (MAX_LENGTH + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS,
    STEP_TOKENS = 160,
};

static uint64_t random_state;
static uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % n;
}

struct sequence {
    int32_t ids[MAX_LENGTH], positions[MAX_LENGTH];
    uint32_t length, prefix_len;
    float *expected; /* [length, V] run alone, in one step */
};

struct slot {
    const struct sequence *sequence; /* NULL = idle */
    uint32_t gen;
    uint32_t done;
    uint32_t blocks[BLOCKS];
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

static void random_step(struct golden_engine *g, struct slot *slots,
                        const struct sequence *sequences, const char *what, uint32_t step)
{
    struct plan_item items[N_SLOTS];
    uint32_t n = 0;
    uint32_t n_tokens = 0;
    uint32_t first = random_below(N_SLOTS);
    for (uint32_t i = 0; i != N_SLOTS; i++) {
        uint32_t idx = (first + i) % N_SLOTS;
        if (n && random_below(3) == 0)
            continue;
        items[n] = next_item(g, &slots[idx], idx, sequences);
        if (n_tokens + items[n].n_tokens > STEP_TOKENS)
            continue;
        n_tokens += items[n++].n_tokens;
    }
    const struct step_result *r = golden_step(g, items, n, NULL, 0, NULL, 0);
    uint32_t vocab = g->arch->vocab;
    for (uint32_t i = 0; i != n; i++) {
        struct slot *s = &slots[items[i].slot];
        const float *expected = s->sequence->expected + (size_t)s->done * vocab;
        for (uint32_t row = 0; row != items[i].n_tokens; row++) {
            if (memcmp(r->items[i].logits + (size_t)row * vocab, expected + (size_t)row * vocab,
                       vocab * sizeof *expected) != 0)
                fail_msg("%s: step %u, item %u of %u (%u tokens in all): row %u of sequence %td "
                         "differs from the sequence run alone",
                         what, step, i, n, n_tokens, s->done + row, s->sequence - sequences);
        }
        s->done += items[i].n_tokens;
        if (s->done == s->sequence->length)
            s->sequence = NULL;
    }
}

static void check_invariance(const struct golden_options *o, uint32_t n_steps)
{
    char what[96];
    snprintf(what, sizeof what, "%s, tp %u, mode %d, %s, KV cache in %s", o->model, o->tp,
             (int)o->mode, o->isa ? o->isa : "best", k_kv_type_name(o->kv_type));
    struct golden_engine g;
    golden_open(&g, o);
    struct sequence sequences[N_SEQUENCES];
    for (uint32_t i = 0; i != N_SEQUENCES; i++)
        make_sequence(&g, &sequences[i]);
    struct slot slots[N_SLOTS] = {0};
    deal_blocks(slots);
    for (uint32_t step = 0; step != n_steps; step++)
        random_step(&g, slots, sequences, what, step);
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
    };
    const char *seed = getenv("GLMD_TEST_SEED");
    uint64_t base = seed ? strtoull(seed, NULL, 10) : 20221006;
    print_message("seed %llu\n", (unsigned long long)base);
    uint32_t n_steps = golden_long() ? 1000 : 60;
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        random_state = base * 2654435761u + i + 1;
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
