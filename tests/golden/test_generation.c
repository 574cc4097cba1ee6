/* test_generation.c: all generations of the reference data, token for token, through the engine and
 * model/beam.h: greedy with the previous sample fed back inside the engine, beams with shared and
 * copied KV blocks, the calls of blank filling, and a batch whose sequences run together. */
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "model/beam.h"

enum { MAX_BEAMS = 4, MAX_FORBIDDEN = 8, MAX_BANNED = 64 };

/* One generation call. */
struct call {
    const char *name;
    int32_t prompt[GOLDEN_MAX_SEQ];
    uint32_t n_prompt;
    bool gmask;
    int32_t mask_position;
    uint32_t max_new;
    struct plan_bias end_bias[2]; /* of eop and eos */
    struct plan_range forbidden[MAX_FORBIDDEN];
    uint32_t n_forbidden;
    int32_t end_tokens[2];
};

static int32_t position(const struct call *c, uint32_t idx)
{
    return c->gmask || idx + 1 < c->n_prompt ? (int32_t)idx : c->mask_position;
}

static void init_call(struct call *c, const struct arch *a, const char *name, double end_bias)
{
    memset(c, 0, sizeof *c);
    c->name = name;
    c->end_tokens[0] = a->tokens.eop;
    c->end_tokens[1] = a->tokens.eos;
    for (int i = 0; i != 2; i++)
        c->end_bias[i] = (struct plan_bias){c->end_tokens[i], (float)end_bias};
}

static struct plan_sampling sampling_of(const struct call *c)
{
    return (struct plan_sampling){.temperature = 1.0f,
                                  .top_k = 1,
                                  .bias = c->end_bias,
                                  .n_bias = c->end_bias[0].bias != 0.0f ? 2 : 0,
                                  .forbidden = c->forbidden,
                                  .n_forbidden = c->n_forbidden};
}

static bool is_end(const struct call *c, int32_t token)
{
    return token == c->end_tokens[0] || token == c->end_tokens[1];
}

static void compare_tokens(const struct call *c, uint32_t beam, const int32_t *found, size_t n,
                           const int32_t *expected, size_t n_expected)
{
    for (size_t i = 0; i != MIN(n, n_expected); i++) {
        if (found[i] != expected[i])
            fail_msg("%s beam %u: token %zu is %d, expected %d", c->name, beam, i, found[i],
                     expected[i]);
    }
    if (n != n_expected)
        fail_msg("%s beam %u: %zu tokens, expected %zu", c->name, beam, n, n_expected);
}

/* ---- greedy ---- */

/* With one stage the engine feeds the sample back itself. */
static uint32_t run_greedy(struct golden_engine *g, const struct call *c, int32_t *ret_tokens)
{
    bool feed_back = g->n_stages == 1;
    int32_t positions[GOLDEN_MAX_SEQ];
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    static const int32_t previous = PLAN_TOKEN_PREVIOUS;
    golden_blocks(0, blocks);
    struct plan_item item = {.slot_gen = ++g->next_gen,
                             .prefix_len = c->n_prompt - 1,
                             .blocks = blocks,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                             .positions = positions,
                             .output = PLAN_OUTPUT_SAMPLE,
                             .sampling = sampling_of(c)};
    uint32_t n = 0;
    while (n != c->max_new) {
        item.start = n ? c->n_prompt + n - 1 : 0;
        item.n_tokens = n ? 1 : c->n_prompt;
        item.tokens = n ? (feed_back ? &previous : &ret_tokens[n - 1]) : c->prompt;
        for (uint32_t i = 0; i != item.n_tokens; i++)
            positions[i] = position(c, item.start + i);
        item.sampling.output_index = n;
        int32_t token = golden_step(g, &item, 1, NULL, 0, NULL, 0)->items[0].token;
        ret_tokens[n++] = token;
        if (is_end(c, token))
            break;
    }
    return n;
}

/* ---- beams ---- */

/* Blocks: one sequence's worth for the prompt, then two banks for every beam; a beam writes into
 * the bank that its parent does not read from. */
enum { N_BEAM_BLOCKS = GOLDEN_BLOCKS_PER_SEQ * (1 + 2 * MAX_BEAMS) };

struct beam_run {
    struct golden_engine *g;
    const struct call *c;
    struct beam_search *search;
    uint32_t tables[2][MAX_BEAMS][GOLDEN_BLOCKS_PER_SEQ]; /* of this step and the last one */
    uint32_t gens[MAX_BEAMS];
    struct plan_copy copies[MAX_BEAMS * GOLDEN_BLOCKS_PER_SEQ];
    uint32_t n_copies;
};

/* Tables of the live beams in a step that writes token `start`: whole blocks of the prompt stay
 * shared, everything behind is the beam's own copy of its parent's. */
static void make_tables(struct beam_run *r, uint32_t step, uint32_t start, const uint32_t *parent,
                        uint32_t n_live)
{
    uint32_t n_shared = r->c->n_prompt / PLAN_KV_BLOCK_TOKENS;
    uint32_t n_filled = (start + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
    r->n_copies = 0;
    for (uint32_t i = 0; i != n_live; i++) {
        uint32_t *own = r->tables[step % 2][i];
        const uint32_t *theirs = r->tables[(step + 1) % 2][parent[i]];
        golden_blocks(GOLDEN_BLOCKS_PER_SEQ * (1 + 2 * i + step % 2), own);
        memcpy(own, theirs, n_shared * sizeof *own);
        for (uint32_t b = n_shared; b < n_filled; b++)
            r->copies[r->n_copies++] = (struct plan_copy){theirs[b], own[b]};
    }
}

static bool beam_step(struct beam_run *r, uint32_t step, uint32_t *parent)
{
    const struct call *c = r->c;
    uint32_t n_live = beam_search_n_live(r->search);
    uint32_t start = step ? c->n_prompt + step - 1 : 0;
    struct plan_item items[MAX_BEAMS];
    int32_t tokens[MAX_BEAMS];
    int32_t positions[GOLDEN_MAX_SEQ];
    int32_t banned[MAX_BEAMS][MAX_BANNED];
    assert_true(n_live <= MAX_BEAMS);
    if (step)
        make_tables(r, step, start, parent, n_live);
    else
        golden_blocks(0, r->tables[0][0]);
    for (uint32_t i = 0; i != (step ? 1 : c->n_prompt); i++)
        positions[i] = position(c, start + i);
    for (uint32_t i = 0; i != n_live; i++) {
        if (!r->gens[i])
            r->gens[i] = ++r->g->next_gen;
        tokens[i] = step ? beam_search_last_token(r->search, i) : 0;
        items[i] = (struct plan_item){.slot = i,
                                      .slot_gen = r->gens[i],
                                      .start = start,
                                      .n_tokens = step ? 1 : c->n_prompt,
                                      .prefix_len = c->n_prompt - 1,
                                      .tokens = step ? &tokens[i] : c->prompt,
                                      .positions = positions,
                                      .blocks = r->tables[step % 2][i],
                                      .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                                      .output = PLAN_OUTPUT_BEAM,
                                      .beam_score = beam_search_score(r->search, i),
                                      .sampling = sampling_of(c)};
        size_t n = beam_search_bans(r->search, i, banned[i], MAX_BANNED);
        assert_true(n <= MAX_BANNED);
        items[i].sampling.banned = banned[i];
        items[i].sampling.n_banned = (uint32_t)n;
    }
    struct plan_beam_group group = {.width = beam_search_width(r->search), .deterministic = true};
    const struct step_result *result =
        golden_step(r->g, items, n_live, &group, 1, r->copies, step ? r->n_copies : 0);
    struct beam_candidate candidates[64];
    uint32_t n = result->groups[0].n_candidates;
    assert_int_equal(n, group.width);
    assert_true(n <= ARRAY_LEN(candidates));
    for (uint32_t i = 0; i != n; i++) {
        const struct result_candidate *k = &result->groups[0].candidates[i];
        candidates[i] = (struct beam_candidate){k->item, k->token, k->score};
    }
    bool done;
    assert_int_equal(beam_search_advance(r->search, candidates, n, parent, &done), 0);
    return done;
}

/* The caller frees the search. */
static struct beam_search *run_beams(struct golden_engine *g, const struct call *c,
                                     struct beam_params params)
{
    struct beam_run r = {.g = g, .c = c};
    params.consider_end = true;
    params.end_tokens = c->end_tokens;
    params.n_end_tokens = 2;
    params.prompt = c->prompt;
    assert_int_equal(beam_search_new(&params, c->n_prompt, &r.search), 0);
    uint32_t parent[BEAM_MAX] = {0};
    bool done = false;
    for (uint32_t step = 0; step != c->max_new && !done; step++)
        done = beam_step(&r, step, parent);
    assert_int_equal(beam_search_finish(r.search), 0);
    return r.search;
}

/* ---- the reference's entries ---- */

static void check_beams(struct golden_engine *g, const struct call *c, struct beam_params params,
                        const json_t *expected, const json_t *keys)
{
    struct beam_search *search = run_beams(g, c, params);
    size_t n = json_array_size(expected);
    assert_int_equal(beam_search_n_results(search), n);
    for (size_t i = 0; i != n; i++) {
        int32_t tokens[GOLDEN_MAX_SEQ];
        const struct beam_hypothesis *h = beam_search_result(search, i);
        uint32_t n_tokens = golden_ids(json_array_get(expected, i), tokens, GOLDEN_MAX_SEQ);
        compare_tokens(c, (uint32_t)i, h->tokens, h->n, tokens, n_tokens);
        double key = keys ? json_number_value(json_array_get(keys, i)) : h->key;
        if (fabs(h->key - key) > 1e-4 * fmax(1.0, fabs(key)))
            fail_msg("%s beam %zu: penalized score %.7f, expected %.7f", c->name, i, h->key, key);
    }
    beam_search_free(search);
}

static void check_generation(struct golden_engine *g, const json_t *entry)
{
    struct call c;
    init_call(&c, g->arch, golden_text(entry, "name"),
              json_number_value(json_object_get(entry, "end_token_logit_bias")));
    c.n_prompt = golden_ids(json_object_get(entry, "prompt"), c.prompt, GOLDEN_MAX_SEQ);
    c.gmask = json_is_true(json_object_get(entry, "gmask"));
    c.mask_position = (int32_t)golden_int(entry, "mask_position", 0);
    c.max_new = (uint32_t)golden_int(entry, "max_new_tokens", 0);
    const json_t *expected = json_object_get(entry, "generated");
    if (strcmp(golden_text(entry, "strategy"), "greedy") == 0) {
        int32_t found[GOLDEN_MAX_SEQ];
        int32_t tokens[GOLDEN_MAX_SEQ];
        uint32_t n = run_greedy(g, &c, found);
        compare_tokens(&c, 0, found, n, tokens,
                       golden_ids(json_array_get(expected, 0), tokens, GOLDEN_MAX_SEQ));
        return;
    }
    const json_t *params = json_object_get(entry, "params");
    struct beam_params p = {
        .n_beams = (uint32_t)golden_int(params, "num_beams", 0),
        .length_penalty = json_number_value(json_object_get(params, "length_penalty")),
        .no_repeat_ngram = (uint32_t)golden_int(params, "no_repeat_ngram_size", 0),
        .min_new_tokens = (uint32_t)golden_int(params, "min_gen_length", 0),
    };
    check_beams(g, &c, p, expected, json_object_get(entry, "penalized_scores"));
}

/* All entries for a model ("fp16" in the manifest is every FP16 checkpoint). */
static uint32_t check_model(struct golden_options o, const char *weights)
{
    json_t *manifest = golden_manifest();
    struct golden_engine g;
    o.n_slots = MAX_BEAMS;
    o.n_blocks = N_BEAM_BLOCKS;
    golden_open(&g, &o);
    uint32_t n = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "generation"), i, entry)
    {
        if (strcmp(golden_text(entry, "weights"), weights) != 0 ||
            !json_object_get(entry, "prompt"))
            continue;
        check_generation(&g, entry);
        n++;
    }
    golden_close(&g);
    json_decref(manifest);
    return n;
}

static void test_generations_fp16_weights(void **state)
{
    (void)state;
    assert_int_equal(check_model((struct golden_options){.model = "fp16-tp1", .tp = 1}, "fp16"),
                     49);
    assert_int_equal(check_model((struct golden_options){.model = "fp16-tp2", .tp = 2}, "fp16"),
                     49);
    if (golden_long())
        assert_int_equal(check_model((struct golden_options){.model = "fp16-tp4", .tp = 4}, "fp16"),
                         49);
}

static void test_generations_int4_weights(void **state)
{
    (void)state;
    assert_int_equal(check_model((struct golden_options){.model = "int4-tp1", .tp = 1}, "int4-tp1"),
                     5);
    assert_int_equal(check_model((struct golden_options){.model = "int4-tp1", .tp = 4}, "int4-tp1"),
                     5);
}

static const uint32_t one_two[] = {1, 2};

/* Stages, and prompts that run by layers. */
static const struct golden_options shapes[] = {
    {.tp = 1, .pp = 2, .stage_layers = one_two, .slice_layers = 1},
    {.tp = 2, .pp = 2, .slice_layers = 2},
    {.tp = 1, .pp = 3, .slice_layers = 2},
    {.tp = 1, .slice_layers = 1},
    {.tp = 1, .pp = 2},
    {.tp = 2, .slice_layers = 2},
    {.tp = 4, .slice_layers = 1},
};
enum { N_FULL_SHAPES = 4 }; /* run everything; the others do with --long */

static void test_generations_of_stages_and_slices(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(shapes); i++) {
        struct golden_options o = shapes[i];
        o.model = "int4-tp1";
        assert_int_equal(check_model(o, "int4-tp1"), 5);
        o.model = "fp16-tp1";
        if (i < N_FULL_SHAPES || golden_long())
            assert_int_equal(check_model(o, "fp16"), 49);
    }
}

/* ---- the calls of blank filling ---- */

static void fill_call(struct call *c, const struct arch *a, const json_t *entry, const json_t *call)
{
    init_call(c, a, golden_text(entry, "text"),
              json_number_value(json_object_get(entry, "end_token_logit_bias")));
    c->n_prompt = golden_ids(json_object_get(call, "input"), c->prompt, GOLDEN_MAX_SEQ);
    c->max_new = (uint32_t)golden_int(entry, "out_seq_length", 0) - c->n_prompt;
    const int32_t masks[] = {a->tokens.mask, a->tokens.smask, a->tokens.gmask};
    c->mask_position = -1;
    for (size_t m = 0; m != ARRAY_LEN(masks) && c->mask_position < 0; m++) {
        for (uint32_t i = 0; i != c->n_prompt && c->mask_position < 0; i++) {
            if (c->prompt[i] == masks[m]) {
                c->mask_position = (int32_t)i;
                c->gmask = masks[m] == a->tokens.gmask;
            }
        }
    }
    assert_true(c->mask_position >= 0);
    const json_t *ranges = json_object_get(entry, "invalid_id_ranges");
    c->n_forbidden = (uint32_t)json_array_size(ranges);
    assert_true(c->n_forbidden <= MAX_FORBIDDEN);
    for (uint32_t i = 0; i != c->n_forbidden; i++) {
        int32_t ends[2];
        assert_int_equal(golden_ids(json_array_get(ranges, i), ends, 2), 2);
        c->forbidden[i] = (struct plan_range){ends[0], ends[1]};
    }
}

/* The outputs hold the prompt as well. */
static json_t *without_prompt(const json_t *outputs, uint32_t n_prompt)
{
    json_t *copy = json_deep_copy(outputs);
    size_t i;
    json_t *list;
    json_array_foreach(copy, i, list)
    {
        for (uint32_t j = 0; j != n_prompt; j++)
            json_array_remove(list, 0);
    }
    return copy;
}

static void check_blank_filling(struct golden_options shape)
{
    json_t *manifest = golden_manifest();
    struct golden_engine g;
    shape.model = "fp16-tp4";
    shape.n_slots = MAX_BEAMS;
    shape.n_blocks = N_BEAM_BLOCKS;
    golden_open(&g, &shape);
    uint32_t n_calls = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "blank_filling"), i, entry)
    {
        size_t j;
        json_t *o;
        json_array_foreach(json_object_get(entry, "calls"), j, o)
        {
            struct call c;
            fill_call(&c, g.arch, entry, o);
            json_t *expected = without_prompt(json_object_get(o, "output"), c.n_prompt);
            if (strcmp(golden_text(entry, "strategy"), "greedy") == 0) {
                int32_t found[GOLDEN_MAX_SEQ];
                int32_t tokens[GOLDEN_MAX_SEQ];
                uint32_t n = run_greedy(&g, &c, found);
                compare_tokens(&c, 0, found, n, tokens,
                               golden_ids(json_array_get(expected, 0), tokens, GOLDEN_MAX_SEQ));
            } else {
                struct beam_params p = {.n_beams = 4, .length_penalty = 1.0, .no_repeat_ngram = 3};
                check_beams(&g, &c, p, expected, NULL);
            }
            json_decref(expected);
            n_calls++;
        }
    }
    assert_int_equal(n_calls, 10);
    golden_close(&g);
    json_decref(manifest);
}

static void test_blank_filling_calls(void **state)
{
    (void)state;
    check_blank_filling((struct golden_options){.tp = 2});
    for (size_t i = 0; i != ARRAY_LEN(shapes); i++)
        check_blank_filling(shapes[i]);
}

/* ---- a batch ---- */

/* The three sequences of d_batch in one plan per step, each from its own prompt. */
static void test_batch(void **state)
{
    (void)state;
    enum { N = 3 };
    json_t *manifest = golden_manifest();
    const json_t *batch = NULL;
    const json_t *prompts = NULL;
    size_t k;
    json_t *o;
    json_array_foreach(json_object_get(manifest, "generation"), k, o)
    {
        if (strcmp(golden_text(o, "name"), "batch_greedy_eval") == 0)
            batch = o;
    }
    json_array_foreach(json_object_get(manifest, "logits"), k, o)
    {
        if (strcmp(golden_text(o, "name"), golden_text(batch, "logits_case")) == 0)
            prompts = o;
    }
    assert_non_null(batch);
    assert_non_null(prompts);
    uint32_t max_new = (uint32_t)golden_int(batch, "max_new_tokens", 0);
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "fp16-tp1", .tp = 2, .n_slots = N});
    static int32_t ids[N][GOLDEN_MAX_SEQ];
    static int32_t positions[N][GOLDEN_MAX_SEQ];
    static uint32_t blocks[N][GOLDEN_BLOCKS_PER_SEQ];
    static int32_t found[N][GOLDEN_MAX_SEQ];
    static const int32_t previous = PLAN_TOKEN_PREVIOUS;
    struct plan_item items[N];
    int32_t advance[N]; /* of the position per token: 0 with [MASK], 1 with [gMASK] */
    for (uint32_t i = 0; i != N; i++) {
        golden_ids(json_array_get(json_object_get(prompts, "tokens"), i), ids[i], GOLDEN_MAX_SEQ);
        golden_ids(json_array_get(json_object_get(prompts, "position_ids"), i), positions[i],
                   GOLDEN_MAX_SEQ);
        uint32_t n = (uint32_t)json_integer_value(
            json_array_get(json_object_get(prompts, "valid_lengths"), i));
        advance[i] = positions[i][n - 1] == positions[i][n - 2] + 1;
        golden_blocks(i * GOLDEN_BLOCKS_PER_SEQ, blocks[i]);
        items[i] = (struct plan_item){.slot = i,
                                      .slot_gen = ++g.next_gen,
                                      .n_tokens = n,
                                      .prefix_len = n - 1,
                                      .tokens = ids[i],
                                      .positions = positions[i],
                                      .blocks = blocks[i],
                                      .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                                      .output = PLAN_OUTPUT_SAMPLE,
                                      .sampling = {.temperature = 1.0f, .top_k = 1}};
    }
    for (uint32_t step = 0; step != max_new; step++) {
        const struct step_result *r = golden_step(&g, items, N, NULL, 0, NULL, 0);
        for (uint32_t i = 0; i != N; i++) {
            found[i][step] = r->items[i].token;
            positions[i][0] = items[i].positions[items[i].n_tokens - 1] + advance[i];
            items[i].start += items[i].n_tokens;
            items[i].n_tokens = 1;
            items[i].tokens = &previous;
            items[i].positions = positions[i];
        }
    }
    for (uint32_t i = 0; i != N; i++) {
        struct call c = {.name = "batch_greedy_eval"};
        int32_t tokens[GOLDEN_MAX_SEQ];
        const json_t *expected = json_array_get(json_object_get(batch, "generated"), i);
        compare_tokens(&c, i, found[i], max_new, tokens,
                       golden_ids(expected, tokens, GOLDEN_MAX_SEQ));
    }
    golden_close(&g);
    json_decref(manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generations_fp16_weights),
        cmocka_unit_test(test_generations_int4_weights),
        cmocka_unit_test(test_generations_of_stages_and_slices),
        cmocka_unit_test(test_blank_filling_calls),
        cmocka_unit_test(test_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
