/* test_cuda_sampling.c: the whole engine with tokens chosen on the device, on the emulated GPU:
 * tokens, log-probabilities and scores are those that the host's sampler makes of the same engine's
 * logits, bit for bit, over one rank and several; beside rows that stay with the host. */
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "kernels/sample.h"
#ifndef ON_A_GPU
#include "tests/support/emulated_driver.h"
#endif
#include "worker/engine/sampler.h"

/* With ON_A_GPU the program has the real backend: all ranks share the device that GLMD_GPU names.
 */
static const char *device = "cuda";

enum {
    N_SAMPLES = 6,
    SHORT = 5, /* tokens of a sequence that samples */
    LONG = 35, /* of one that is scored: more rows than one head call takes */
    SLOT_LOGITS = N_SAMPLES,
    SLOT_BEAM,
    SLOT_SCORE,
    SLOT_SCORE_LOGITS,
    N_SLOTS,
    BEAM_WIDTH = 3,
};

static const struct plan_bias bias[] = {{17, 1.5f}, {200, -2.0f}, {17, 0.25f}};
static const struct plan_range forbidden[] = {{20, 60}};
static const int32_t banned[] = {5, 300, 5};
static const int32_t prompt[SHORT] = {5, 6, 7, 8, 9};

static const struct plan_sampling samplings[N_SAMPLES] = {
    {.temperature = 1, .top_k = 1, .n_top_logprobs = 5},
    {.temperature = 1.3f, .seed = 11},
    {.temperature = 0.9f, .top_k = 12, .top_p = 0.8f, .seed = 12, .n_top_logprobs = 20},
    {.temperature = 2,
     .top_p = 0.9f,
     .min_p = 0.01f,
     .seed = 13,
     .repetition_penalty = 1.4f,
     .frequency_penalty = 0.3f,
     .presence_penalty = 0.2f,
     .history = prompt,
     .n_history = SHORT,
     .n_history_prompt = SHORT,
     .n_top_logprobs = 4},
    {.temperature = 1.1f,
     .top_k = 50,
     .seed = 14,
     .bias = bias,
     .n_bias = ARRAY_LEN(bias),
     .forbidden = forbidden,
     .n_forbidden = 1,
     .banned = banned,
     .n_banned = 3},
    {.temperature = 1, .top_p = 0.7f, .seed = 15},
};

struct sequences {
    int32_t ids[N_SLOTS][LONG + 8], positions[LONG + 8], targets[LONG];
    uint32_t blocks[N_SLOTS][GOLDEN_BLOCKS_PER_SEQ];
};

static void sequences_init(struct sequences *q)
{
    for (uint32_t i = 0; i != LONG + 8; i++)
        q->positions[i] = (int32_t)i;
    for (uint32_t s = 0; s != N_SLOTS; s++) {
        golden_blocks(s * GOLDEN_BLOCKS_PER_SEQ, q->blocks[s]);
        for (uint32_t i = 0; i != LONG; i++)
            q->ids[s][i] = s < SLOT_SCORE && i < SHORT ? prompt[i] : (int32_t)(3 + i * 37 % 480);
    }
    for (uint32_t i = 0; i != LONG; i++)
        q->targets[i] = i % 7 == 3 ? -1 : (int32_t)(3 + (i + 1) * 37 % 480);
}

static struct plan_item item_of(const struct sequences *q, uint32_t slot, uint32_t start,
                                uint32_t n, enum plan_output output)
{
    return (struct plan_item){.slot = slot,
                              .slot_gen = slot + 1,
                              .start = start,
                              .n_tokens = n,
                              .prefix_len = 4,
                              .tokens = q->ids[slot] + start,
                              .positions = q->positions + start,
                              .blocks = q->blocks[slot],
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = output,
                              .sampling = {.temperature = 1}};
}

static void same(const char *what, uint32_t i, int32_t token, float logprob, int32_t want_token,
                 float want_logprob)
{
    if (token != want_token || memcmp(&logprob, &want_logprob, sizeof logprob) != 0)
        fail_msg("%s %u: token %d, %.9g; the host's sampler: %d, %.9g", what, i, token,
                 (double)logprob, want_token, (double)want_logprob);
}

/* One sample against the host's, from the logits of the last row. */
static void check_sample(struct sampler *s, const struct golden_engine *g, uint32_t i,
                         const struct result_item *found, const float *logits,
                         const struct plan_sampling *p, int32_t previous)
{
    const uint32_t vocab = g->arch->vocab;
    float *row = alloc_array(vocab, sizeof *row), logprob;
    struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
    memcpy(row, logits, vocab * sizeof *row);
    int32_t token = sampler_choose(s, row, p, previous, &logprob, top);
    same("sample", i, found->token, found->logprob, token, logprob);
    assert_int_equal(found->n_top, p->n_top_logprobs);
    for (uint32_t j = 0; j != found->n_top; j++)
        same("top", i, found->top[j].token, found->top[j].logprob, top[j].token, top[j].logprob);
    free(row);
}

static void check_scores(struct sampler *s, const struct golden_engine *g,
                         const struct sequences *q, const struct result_item *found,
                         const float *logits, uint32_t n_top)
{
    uint32_t n = 0;
    for (uint32_t row = 0; row != LONG; row++) {
        if (q->targets[row] < 0)
            continue;
        struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
        float want =
            sampler_logprob(s, logits + (size_t)row * g->arch->vocab, q->targets[row], n_top, top);
        same("score", row, q->targets[row], found->scores[n], q->targets[row], want);
        for (uint32_t j = 0; j != n_top; j++)
            same("best beside a score", row, found->score_tokens[n * n_top + j],
                 found->score_logprobs[n * n_top + j], top[j].token, top[j].logprob);
        n++;
    }
    assert_int_equal(found->n_scores, n);
    assert_int_equal(found->n_score_tokens, n * n_top);
}

static void check_beam(struct sampler *s, const struct golden_engine *g,
                       const struct plan_beam_group *group, const struct result_group *found,
                       const float *logits)
{
    const uint32_t vocab = g->arch->vocab;
    float *row = alloc_array(vocab, sizeof *row);
    struct result_candidate want[BEAM_WIDTH];
    const struct plan_sampling p = {.temperature = 1};
    memcpy(row, logits, vocab * sizeof *row);
    sampler_beam_begin(s, group);
    sampler_beam_row(s, row, SLOT_BEAM, 0.0f, &p);
    assert_int_equal(sampler_beam_finish(s, want), BEAM_WIDTH);
    assert_int_equal(found->n_candidates, BEAM_WIDTH);
    for (uint32_t i = 0; i != BEAM_WIDTH; i++)
        same("beam", i, found->candidates[i].token, found->candidates[i].score, want[i].token,
             want[i].score);
    free(row);
}

/* Ranks whose devices exchange anything choose together; of the rows here the nucleus of some is
 * too wide for that. All ranks counted the same. */
static void check_ways(const struct golden_engine *g, const struct golden_options *o)
{
    struct engine_stats first, other;
    engine_stats(local_group_engine(g->group, 0), &first);
    const bool together =
        o->tp > 1 && (o->collectives == K_COMM_PEER || o->collectives == K_COMM_NCCL);
    print_message("%llu rows together, %llu too wide\n", (unsigned long long)first.shared_rows,
                  (unsigned long long)first.wide_rows);
    if (together)
        assert_true(first.shared_rows > 0 && first.wide_rows > 0 &&
                    first.shared_rows > first.wide_rows);
    else if (o->tp == 1 || o->collectives == K_COMM_HOST)
        assert_true(first.shared_rows == 0 && first.wide_rows == 0);
    for (uint32_t rank = 1; rank != (uint32_t)o->tp; rank++) {
        engine_stats(local_group_engine(g->group, rank), &other);
        assert_int_equal(other.shared_rows, first.shared_rows);
        assert_int_equal(other.wide_rows, first.wide_rows);
    }
}

/* Prompts, then some decode steps, in which samples go on with their own tokens, unseen by the
 * plan, and an item of the same tokens shows the logits. */
static void run(const struct golden_options *options)
{
    struct golden_engine g;
    struct golden_options o = *options;
    o.mode = K_MODE_FP16;
    o.device = device;
    o.n_slots = N_SLOTS;
    golden_open(&g, &o);
    struct sampler *s;
    assert_int_equal(sampler_new(g.arch->vocab, &s), 0);
    struct sequences q;
    sequences_init(&q);

    struct plan_item items[N_SLOTS];
    for (uint32_t i = 0; i != N_SLOTS; i++)
        items[i] =
            item_of(&q, i, 0, i < SLOT_SCORE ? (uint32_t)SHORT : (uint32_t)LONG,
                    i < N_SAMPLES || i == SLOT_BEAM ? PLAN_OUTPUT_SAMPLE : PLAN_OUTPUT_LOGITS);
    for (uint32_t i = 0; i != N_SAMPLES; i++)
        items[i].sampling = samplings[i];
    items[SLOT_BEAM].output = PLAN_OUTPUT_BEAM;
    items[SLOT_SCORE].output = PLAN_OUTPUT_SCORE;
    items[SLOT_SCORE].targets = q.targets;
    items[SLOT_SCORE].sampling.n_top_logprobs = 3;
    const struct plan_beam_group group = {.width = BEAM_WIDTH, .deterministic = true};
    const struct step_result *r = golden_step(&g, items, N_SLOTS, &group, 1, NULL, 0);
    const float *last = r->items[SLOT_LOGITS].logits + (SHORT - 1) * (size_t)g.arch->vocab;
    for (uint32_t i = 0; i != N_SAMPLES; i++)
        check_sample(s, &g, i, &r->items[i], last, &samplings[i], -1);
    check_scores(s, &g, &q, &r->items[SLOT_SCORE], r->items[SLOT_SCORE_LOGITS].logits, 3);
    check_beam(s, &g, &group, &r->groups[0], last);

    /* Sample 3 has penalties; the slot that shows logits follows it. */
    const uint32_t shown = 3;
    int32_t history[SHORT + 8];
    memcpy(history, prompt, sizeof prompt);
    static const int32_t previous_token[] = {PLAN_TOKEN_PREVIOUS};
    int32_t previous = r->items[shown].token;
    for (uint32_t step = 0; step != 3; step++) {
        const uint32_t at = SHORT + step;
        q.ids[SLOT_LOGITS][at] = previous;
        for (uint32_t i = 0; i != N_SAMPLES; i++) {
            items[i] = item_of(&q, i, at, 1, PLAN_OUTPUT_SAMPLE);
            items[i].tokens = previous_token;
            items[i].sampling =
                step && i == shown ? (struct plan_sampling){.kept = true, .n_history_prompt = SHORT}
                                   : samplings[i];
            items[i].sampling.output_index = step + 1;
        }
        items[SLOT_LOGITS] = item_of(&q, SLOT_LOGITS, at, 1, PLAN_OUTPUT_LOGITS);
        /* what stands behind the kept part: the token of the step before the last one */
        struct plan_sampling *p = &items[shown].sampling;
        p->history = history + SHORT + step - 1;
        p->n_history = step ? 1 : 0;
        p->n_history_kept = step ? SHORT + step - 1 : SHORT;
        r = golden_step(&g, items, SLOT_LOGITS + 1, NULL, 0, NULL, 0);
        /* the plan may have said that they are kept */
        struct plan_sampling whole = samplings[shown];
        whole.output_index = step + 1;
        whole.history = history;
        whole.n_history = SHORT + step;
        whole.n_history_kept = 0;
        check_sample(s, &g, shown, &r->items[shown], r->items[SLOT_LOGITS].logits, &whole,
                     previous);
        history[at] = previous;
        previous = r->items[shown].token;
    }
    sampler_free(s);
    check_ways(&g, options);
    golden_close(&g);
#ifndef ON_A_GPU
    assert_int_equal(emulated_driver_state()->allocated, 0);
    assert_int_equal(emulated_driver_state()->host_allocated, 0);
#endif
}

static void test_one_rank(void **state)
{
    (void)state;
    run(&(struct golden_options){.model = "int4-tp1", .tp = 1});
}

static void test_ranks(void **state)
{
    (void)state;
    run(&(struct golden_options){.model = "int4-tp2", .tp = 2});
    run(&(struct golden_options){.model = "int4-tp4", .tp = 4});
#ifndef ON_A_GPU
    /* Parts of the vocabulary on each device, and logits that come through the host. */
    run(&(struct golden_options){.model = "int4-tp4", .tp = 4, .collectives = K_COMM_PEER});
    run(&(struct golden_options){.model = "int4-tp2", .tp = 2, .collectives = K_COMM_NCCL});
    run(&(struct golden_options){.model = "int4-tp2", .tp = 2, .collectives = K_COMM_HOST});
#endif
}

/* ---- in the step ---- */

/* Decode steps all of whose rows choose a token sample as a part of what is recorded. Greedy rows,
 * rows that draw, rows that show the best tokens; 6 rows are padded to 8, 3 to 4: six sorts of
 * steps, in turn, four times. */
enum { N_KINDS = 3, N_SIZES = 2, N_SORTS = N_KINDS * N_SIZES, N_ROUNDS = 4 };

struct choices {
    uint32_t n;
    struct choice {
        int32_t token;
        float logprob;
        uint32_t n_top;
        struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
    } all[N_ROUNDS * N_KINDS * (N_SAMPLES + N_SAMPLES / 2)];
};

static struct plan_sampling sampling_of(uint32_t kind, uint32_t slot, uint32_t index)
{
    struct plan_sampling p = samplings[slot];
    p.output_index = index;
    if (kind == 0)
        p.top_k = 1;
    if (kind != 2)
        p.n_top_logprobs = 0;
    return p;
}

/* `beside`: a row that shows its logits, too, with which nothing is sampled in the step.
 * fail_at: the step of which a call of sampling's fails; -1: of none. */
static void choose(struct golden_engine *g, bool beside, int fail_at, struct choices *ret)
{
    struct sequences q;
    struct plan_item items[N_SAMPLES + 1];
    uint32_t length[N_SAMPLES + 1], step = 0;
    sequences_init(&q);
    for (uint32_t i = 0; i != N_SAMPLES + 1; i++) {
        items[i] = item_of(&q, i, 0, SHORT, PLAN_OUTPUT_NONE);
        length[i] = SHORT;
    }
    golden_step(g, items, N_SAMPLES + 1, NULL, 0, NULL, 0);
    ret->n = 0;
    for (uint32_t round = 0; round != N_ROUNDS; round++)
        for (uint32_t kind = 0; kind != N_KINDS; kind++)
            for (uint32_t size = N_SAMPLES; size; size = size == N_SAMPLES ? N_SAMPLES / 2 : 0) {
                for (uint32_t i = 0; i != size; i++) {
                    uint32_t s = (step + i) % N_SAMPLES;
                    items[i] = item_of(&q, s, length[s]++, 1, PLAN_OUTPUT_SAMPLE);
                    items[i].sampling = sampling_of(kind, s, step);
                }
                items[size] = item_of(&q, SLOT_LOGITS, length[SLOT_LOGITS], 1, PLAN_OUTPUT_LOGITS);
                length[SLOT_LOGITS] += beside;
#ifndef ON_A_GPU
                if ((int)step == fail_at) {
                    emulated_driver_state()->fail = "clear";
                    emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
                }
#else
                assert_true(fail_at < 0);
#endif
                step++;
                const struct step_result *r =
                    golden_step(g, items, size + beside, NULL, 0, NULL, 0);
                for (uint32_t i = 0; i != size; i++) {
                    const struct result_item *it = &r->items[i];
                    struct choice *c = &ret->all[ret->n++];
                    *c = (struct choice){it->token, it->logprob, it->n_top, {{0}}};
                    for (uint32_t j = 0; j != it->n_top; j++)
                        c->top[j] = it->top[j];
                }
            }
}

static void same_choices(const struct choices *got, const struct choices *want)
{
    assert_int_equal(got->n, want->n);
    for (uint32_t i = 0; i != want->n; i++) {
        const struct choice *a = &got->all[i], *b = &want->all[i];
        same("sample in the step", i, a->token, a->logprob, b->token, b->logprob);
        assert_int_equal(a->n_top, b->n_top);
        for (uint32_t j = 0; j != b->n_top; j++)
            same("top", i, a->top[j].token, a->top[j].logprob, b->top[j].token, b->top[j].logprob);
    }
}

static void open_in_step(struct golden_engine *g, const struct golden_options *options,
                         bool no_graphs)
{
    struct golden_options o = *options;
    o.mode = K_MODE_FP16;
    o.device = device;
    o.n_slots = N_SLOTS;
    o.no_graphs = no_graphs;
    golden_open(g, &o);
}

static void test_in_step(void **state)
{
    (void)state;
    static const struct golden_options cases[] = {
        {.model = "int4-tp1", .tp = 1},
#ifndef ON_A_GPU
        {.model = "int4-tp4", .tp = 4, .collectives = K_COMM_PEER},
        {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_NCCL},
        {.model = "int4-tp2", .tp = 2, .pp = 2, .collectives = K_COMM_PEER},
        {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_HOST},
#endif
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        const struct golden_options *o = &cases[i];
        struct golden_engine g;
        static struct choices want, got, again;
        open_in_step(&g, o, true);
        choose(&g, true, -1, &want);
        golden_close(&g);
        open_in_step(&g, o, true); /* in the step, enqueued */
        choose(&g, false, -1, &got);
        same_choices(&got, &want);
        golden_close(&g);
        open_in_step(&g, o, false);
        choose(&g, false, -1, &again);
        same_choices(&again, &want);
        for (uint32_t r = 0; r != o->tp * MAX(o->pp, 1u); r++) {
            const bool last = r + o->tp >= o->tp * MAX(o->pp, 1u);
            const uint32_t sorts = o->collectives == K_COMM_HOST ? 0 : last ? N_SORTS : N_SIZES;
            struct k_graph_stats s;
            engine_graphs(local_group_engine(g.group, r), &s);
            assert_int_equal(s.n_graphs, sorts);
            assert_int_equal(s.n_enqueued, sorts);
            assert_int_equal(s.n_replays, sorts ? N_ROUNDS * N_SORTS - sorts : 0);
        }
        if (o->tp > 1 && o->pp < 2)
            check_ways(&g, o);
        golden_close(&g);
    }
}

#ifndef ON_A_GPU

/* Sampling cannot be recorded, on one rank of the group: its steps are enqueued, with the same
 * bits. */
static void test_recording_fails(void **state)
{
    (void)state;
    static const struct golden_options cases[] = {
        {.model = "int4-tp1", .tp = 1},
        {.model = "int4-tp2", .tp = 2, .collectives = K_COMM_PEER},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        static struct choices want, got;
        struct golden_engine g;
        open_in_step(&g, &cases[i], true);
        choose(&g, true, -1, &want);
        golden_close(&g);
        open_in_step(&g, &cases[i], false);
        choose(&g, false, N_SORTS, &got); /* the first sort's second time */
        same_choices(&got, &want);
        uint32_t n_off = 0;
        for (uint32_t r = 0; r != cases[i].tp; r++) {
            struct k_graph_stats s;
            engine_graphs(local_group_engine(g.group, r), &s);
            n_off += s.off != NULL;
            if (s.off && !strstr(s.off, "(cudaErrorMemoryAllocation), first seen at sampling"))
                fail_msg("off: \"%s\"", s.off);
        }
        assert_int_equal(n_off, 1);
        golden_close(&g);
        assert_int_equal(emulated_driver_state()->allocated, 0);
        emulated_driver_reset();
    }
}

static void test_stages(void **state)
{
    (void)state;
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "int4-tp1",
                                             .tp = 1,
                                             .pp = 2,
                                             .mode = K_MODE_FP16,
                                             .device = "cuda",
                                             .n_slots = 1});
    struct engine_memory first, last;
    engine_memory(local_group_engine(g.group, 0), &first);
    engine_memory(local_group_engine(g.group, 1), &last);
    assert_true(last.scratch > first.scratch); /* only the stage with the head samples */
    golden_close(&g);
}

/* A step in steady state is two copies, of its arrays and of the parameters of sampling, and a
 * graph, which brings the tokens back; it waits for the device at its end alone, and allocates
 * nothing. */
static void test_steady_state(void **state)
{
    (void)state;
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "int4-tp1",
                                             .tp = 1,
                                             .mode = K_MODE_FP16,
                                             .device = "cuda",
                                             .n_slots = N_SLOTS});
    struct sequences q;
    sequences_init(&q);
    struct plan_item items[2];
    uint64_t n_launches = 0;
    struct emulated_driver before = {0}, *d = emulated_driver_state();
    static const int32_t previous_token[] = {PLAN_TOKEN_PREVIOUS};
    for (uint32_t step = 0; step != 6; step++) {
        for (uint32_t i = 0; i != 2; i++) {
            items[i] = item_of(&q, i, step ? SHORT + step - 1 : 0, step ? 1 : (uint32_t)SHORT,
                               PLAN_OUTPUT_SAMPLE);
            if (step)
                items[i].tokens = previous_token;
            items[i].sampling = samplings[i ? 5 : 0];
        }
        golden_step(&g, items, 2, NULL, 0, NULL, 0);
        if (step >= 4) {
            assert_int_equal(d->n_allocs, before.n_allocs);
            assert_int_equal(d->n_event_waits, before.n_event_waits);
            assert_int_equal(d->n_copies, before.n_copies + 2);
            assert_int_equal(d->n_graph_runs, before.n_graph_runs + 1);
            assert_int_equal(emulated_driver_launches(), n_launches);
            assert_int_equal(d->n_waits, before.n_waits + 2); /* the tokens; that nothing is left */
        }
        before = *d;
        n_launches = emulated_driver_launches();
    }
    golden_close(&g);
}

#endif

int main(void)
{
#ifdef ON_A_GPU
    device = golden_gpu();
    if (!device)
        return 77;
#else
    if (!emulated_driver_works())
        return 77;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_in_step),
#ifndef ON_A_GPU
        cmocka_unit_test(test_recording_fails), cmocka_unit_test(test_stages),
        cmocka_unit_test(test_steady_state),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
