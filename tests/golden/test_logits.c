/* test_logits.c: every logits file of the reference data, at tensor parallelism 1, 2 and 4, with
 * FP16, INT4 and INT8 weights, in the FP32 and the FP16 mode; layer outputs; decoding token by
 * token gives the bits of one prefill, and several stages or slices those of one; every instruction
 * set of this machine. */
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

/* Largest differences that the reference's README allows: FP32 arithmetic, and every activation
 * rounded to FP16. */
static const double fp32_tolerance = 1e-4;
static const double fp16_tolerance = 0.15;
/* FP32 arithmetic over keys and values in FP16 and INT8: largest and root mean square differences
 * of logits of standard deviation 2.7. Random weights take rounding badly: see docs/model.md for a
 * trained model. */
static const double kv16_tolerance = 0.05, kv16_rms = 0.005; /* found: 0.033, 0.0039 */
static const double kv8_tolerance = 1.0, kv8_rms = 0.1;      /* found: 0.87, 0.082 */
/* An INT8 head on INT4 weights, against the FP16 one. */
static const double head8_tolerance = 0.15, head8_rms = 0.03;

struct sample {
    int32_t ids[GOLDEN_MAX_SEQ], positions[GOLDEN_MAX_SEQ];
    uint32_t n; /* valid rows */
    uint32_t prefix_len;
};

/* Row 0 of a prefix mask sees exactly the prefix. */
static void load_samples(const json_t *entry, struct sample *samples, uint32_t *ret_n,
                         uint32_t *ret_rows)
{
    struct npy mask;
    golden_npy(golden_text(entry, "allowed"), NPY_U8, 3, &mask);
    const json_t *tokens = json_object_get(entry, "tokens");
    *ret_n = (uint32_t)json_array_size(tokens);
    assert_true(*ret_n >= 1 && *ret_n <= 4);
    *ret_rows = (uint32_t)mask.shape[1];
    for (uint32_t i = 0; i != *ret_n; i++) {
        struct sample *s = &samples[i];
        golden_ids(json_array_get(tokens, i), s->ids, GOLDEN_MAX_SEQ);
        golden_ids(json_array_get(json_object_get(entry, "position_ids"), i), s->positions,
                   GOLDEN_MAX_SEQ);
        s->n = (uint32_t)json_integer_value(
            json_array_get(json_object_get(entry, "valid_lengths"), i));
        const uint8_t *row = (const uint8_t *)mask.data + (size_t)i * *ret_rows * *ret_rows;
        s->prefix_len = 0;
        while (s->prefix_len != *ret_rows && row[s->prefix_len])
            s->prefix_len++;
        if (s->prefix_len == 1)
            s->prefix_len = 0; /* every row sees column 0 anyway */
    }
    npy_deinit(&mask);
}

static uint32_t best(const float *row, uint32_t vocab)
{
    uint32_t b = 0;
    for (uint32_t i = 1; i != vocab; i++)
        b = row[i] > row[b] ? i : b;
    return b;
}

/* Rows [n, V] against the reference: differences, and the top token wherever the reference's lead
 * is larger than twice the tolerance. Returns the sum of the squared differences. */
static double compare_rows(const char *what, const float *found, const float *expected, uint32_t n,
                           uint32_t vocab, double tolerance)
{
    double squares = 0.0;
    for (uint32_t row = 0; row != n; row++) {
        const float *f = found + (size_t)row * vocab;
        const float *x = expected + (size_t)row * vocab;
        for (uint32_t i = 0; i != vocab; i++) {
            double difference = fabs((double)f[i] - (double)x[i]);
            if (!(difference <= tolerance))
                fail_msg("%s: row %u token %u: logit %.7g, expected %.7g (difference %g, allowed "
                         "%g)",
                         what, row, i, (double)f[i], (double)x[i], difference, tolerance);
            squares += difference * difference;
        }
        uint32_t top = best(x, vocab);
        float second = -INFINITY;
        for (uint32_t i = 0; i != vocab; i++)
            second = i != top && x[i] > second ? x[i] : second;
        if ((double)(x[top] - second) > 2 * tolerance && best(f, vocab) != top)
            fail_msg("%s: row %u: top token %u, expected %u", what, row, best(f, vocab), top);
    }
    return squares;
}

/* All entries of the manifest that have `key`; returns how many. The root mean square difference
 * must be at most `rms`. */
static uint32_t check_model(const struct golden_options *o, const char *key, double tolerance,
                            double rms)
{
    json_t *manifest = golden_manifest();
    struct golden_engine g;
    golden_open(&g, o);
    uint32_t vocab = g.arch->vocab;
    uint32_t n_checked = 0;
    double squares = 0.0;
    size_t n_logits = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "logits"), i, entry)
    {
        if (!*golden_text(entry, key))
            continue;
        struct sample samples[4];
        uint32_t n_samples;
        uint32_t n_rows;
        load_samples(entry, samples, &n_samples, &n_rows);
        struct npy expected;
        golden_npy(golden_text(entry, key), NPY_F32, 3, &expected);
        assert_int_equal(expected.shape[2], vocab);
        for (uint32_t j = 0; j != n_samples; j++) {
            const struct sample *s = &samples[j];
            const float *found = golden_logits(&g, s->ids, s->positions, s->n, s->prefix_len);
            char what[192];
            snprintf(what, sizeof what, "%s %s sample %u (%s, %s, mode %d, KV cache in %s)",
                     golden_text(entry, "name"), key, j, o->model, golden_shape(o, (char[64]){0}),
                     (int)o->mode, k_kv_type_name(o->kv_type));
            squares +=
                compare_rows(what, found, (float *)expected.data + (size_t)j * n_rows * vocab, s->n,
                             vocab, tolerance);
            n_logits += (size_t)s->n * vocab;
        }
        n_checked++;
        npy_deinit(&expected);
    }
    golden_close(&g);
    json_decref(manifest);
    if (!(sqrt(squares / (double)n_logits) <= rms))
        fail_msg("%s, mode %d, KV cache in %s: root mean square difference %g, allowed %g",
                 o->model, (int)o->mode, k_kv_type_name(o->kv_type),
                 sqrt(squares / (double)n_logits), rms);
    return n_checked;
}

static const struct {
    const char *model, *key;
    uint32_t n_entries;
} weights[] = {
    {"fp16-tp1", "logits", 11},
    {"fp16-tp2", "logits", 11},
    {"fp16-tp4", "logits", 11},
    {"int4-tp1", "logits_int4_tp1", 6},
    {"int4-tp2", "logits_ckpt-int4-tp2", 2},
    {"int4-tp4", "logits_ckpt-int4-tp4", 2},
    {"int8-tp2", "logits_ckpt-int8-tp2", 2},
};
static const uint32_t degrees[] = {1, 2, 4};

static void check_all(enum k_mode mode, double tolerance)
{
    for (size_t i = 0; i != ARRAY_LEN(weights); i++) {
        for (size_t j = 0; j != ARRAY_LEN(degrees); j++) {
            struct golden_options o = {
                .model = weights[i].model, .tp = degrees[j], .mode = mode, .n_slots = 1};
            assert_int_equal(check_model(&o, weights[i].key, tolerance, tolerance),
                             weights[i].n_entries);
        }
    }
}

static void test_fp32_mode(void **state)
{
    (void)state;
    check_all(K_MODE_FP32, fp32_tolerance);
}

static void test_fp16_mode(void **state)
{
    (void)state;
    check_all(K_MODE_FP16, fp16_tolerance);
}

/* Exact arithmetic over a rounded cache: the difference is the cache's. */
static void test_kv_caches(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(weights); i++) {
        struct golden_options o = {
            .model = weights[i].model, .tp = degrees[i % 3], .mode = K_MODE_FP32, .n_slots = 1};
        o.kv_type = K_KV_F16;
        assert_int_equal(check_model(&o, weights[i].key, kv16_tolerance, kv16_rms),
                         weights[i].n_entries);
        o.kv_type = K_KV_I8;
        assert_int_equal(check_model(&o, weights[i].key, kv8_tolerance, kv8_rms),
                         weights[i].n_entries);
    }
}

/* ---- stages and slices ---- */

static const uint32_t one_two[] = {1, 2};

/* tp x pp: 1x2 (3 layers: uneven, either way), 2x2, 1x3. */
static const struct golden_options stages[] = {
    {.tp = 1, .pp = 2},
    {.tp = 1, .pp = 2, .stage_layers = one_two},
    {.tp = 2, .pp = 2},
    {.tp = 1, .pp = 3},
};

/* Every other combination unless there is time for all. */
static void test_stages(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(weights); i++) {
        for (size_t j = 0; j != ARRAY_LEN(stages); j++) {
            struct golden_options o = stages[j];
            o.model = weights[i].model;
            o.n_slots = 1;
            o.mode = K_MODE_FP32;
            if (golden_long() || (i + j) % 2 == 0)
                assert_int_equal(check_model(&o, weights[i].key, fp32_tolerance, INFINITY),
                                 weights[i].n_entries);
            o.mode = K_MODE_FP16;
            if (golden_long() || (i + j) % 4 == 1)
                assert_int_equal(check_model(&o, weights[i].key, fp16_tolerance, INFINITY),
                                 weights[i].n_entries);
        }
    }
}

/* Log-probabilities of every row's next token: what a sliced item can say of all its rows. */
static void score_rows(struct golden_engine *g, const struct sample *s, float *ret_scores)
{
    int32_t targets[GOLDEN_MAX_SEQ];
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, blocks);
    for (uint32_t i = 0; i != s->n; i++)
        targets[i] = s->ids[(i + 1) % s->n];
    struct plan_item item = {.slot_gen = ++g->next_gen,
                             .n_tokens = s->n,
                             .prefix_len = s->prefix_len,
                             .tokens = s->ids,
                             .positions = s->positions,
                             .targets = targets,
                             .blocks = blocks,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                             .output = PLAN_OUTPUT_SCORE};
    const struct step_result *r = golden_step(g, &item, 1, NULL, 0, NULL, 0);
    assert_int_equal(r->items[0].n_scores, s->n);
    memcpy(ret_scores, r->items[0].scores, s->n * sizeof *ret_scores);
}

static uint32_t bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static void compare_bits(const char *what, const float *found, const float *expected, size_t n)
{
    for (size_t i = 0; i != n; i++)
        if (bits(found[i]) != bits(expected[i]))
            fail_msg("%s: value %zu is %a, expected %a", what, i, (double)found[i],
                     (double)expected[i]);
}

/* Logits and scores of all samples are those of one stage with whole steps, bit for bit. */
static void check_bits(const struct golden_options *o)
{
    json_t *manifest = golden_manifest();
    struct golden_options whole = *o;
    whole.pp = 1;
    whole.stage_layers = NULL;
    whole.slice_layers = 0;
    struct golden_engine reference;
    struct golden_engine g;
    golden_open(&reference, &whole);
    golden_open(&g, o);
    uint32_t vocab = g.arch->vocab;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "logits"), i, entry)
    {
        struct sample samples[4];
        uint32_t n_samples;
        uint32_t n_rows;
        load_samples(entry, samples, &n_samples, &n_rows);
        for (uint32_t j = 0; j != n_samples; j++) {
            const struct sample *s = &samples[j];
            char shape[64];
            char what[200];
            snprintf(what, sizeof what, "%s sample %u (%s, %s, mode %d, slices of %u layers)",
                     golden_text(entry, "name"), j, o->model, golden_shape(o, shape), (int)o->mode,
                     o->slice_layers);
            float expected[GOLDEN_MAX_SEQ];
            float found[GOLDEN_MAX_SEQ];
            score_rows(&reference, s, expected);
            score_rows(&g, s, found);
            compare_bits(what, found, expected, s->n);
            const float *logits =
                golden_logits(&reference, s->ids, s->positions, s->n, s->prefix_len);
            compare_bits(what, golden_logits(&g, s->ids, s->positions, s->n, s->prefix_len), logits,
                         (size_t)s->n * vocab);
        }
    }
    golden_close(&g);
    golden_close(&reference);
    json_decref(manifest);
}

static void test_stages_and_slices_have_the_bits_of_one(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        enum k_mode mode;
    } cases[] = {{"fp16-tp1", K_MODE_FP32},
                 {"int4-tp2", K_MODE_FP16},
                 {"int4-tp1-head8", K_MODE_FP16},
                 {"int8-tp2", K_MODE_A8}};
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct golden_options o = {.model = cases[i].model, .mode = cases[i].mode, .n_slots = 1};
        for (o.tp = 1; o.tp <= 4; o.tp *= 2) {
            for (o.slice_layers = 1; o.slice_layers <= 2; o.slice_layers++) {
                if (golden_long() || o.slice_layers == 1 + (i + o.tp / 2) % 2)
                    check_bits(&o);
            }
        }
        for (size_t j = 0; j != ARRAY_LEN(stages); j++) {
            o = stages[j];
            o.model = cases[i].model;
            o.mode = cases[i].mode;
            o.n_slots = 1;
            for (o.slice_layers = 0; o.slice_layers <= 2; o.slice_layers++) {
                if (golden_long() || o.slice_layers == (i + j) % 3)
                    check_bits(&o);
            }
        }
    }
}

/* Every rank quantizes its own rows of the head, so that no degree changes anything; and it is not
 * the FP16 head. */
static void test_int8_head(void **state)
{
    (void)state;
    for (uint32_t pp = 1; pp <= 2; pp++) {
        for (uint32_t tp = 1; tp <= 2; tp++) {
            struct golden_options o = {
                .model = "int4-tp1-head8", .tp = tp, .pp = pp, .mode = K_MODE_FP32, .n_slots = 1};
            assert_int_equal(check_model(&o, "logits_int4_tp1", head8_tolerance, head8_rms), 6);
        }
    }
    const int32_t ids[] = {1, 2, 3, 4}, positions[] = {0, 1, 2, 3};
    float expected[4096];
    size_t n = 0;
    for (int i = 0; i < 2; i++) {
        struct golden_options o = {
            .model = i ? "int4-tp1-head8" : "int4-tp1", .tp = 1, .mode = K_MODE_FP32, .n_slots = 1};
        struct golden_engine g;
        golden_open(&g, &o);
        const float *found = golden_logits(&g, ids, positions, 4, 0);
        n = 4 * (size_t)g.arch->vocab;
        assert_true(n <= ARRAY_LEN(expected));
        if (i)
            assert_memory_not_equal(found, expected, n * sizeof *found);
        memcpy(expected, found, n * sizeof *found);
        golden_close(&g);
    }
}

/* Every instruction set that this machine has. */
static void test_instruction_sets(void **state)
{
    (void)state;
    static const char *const sets[] = {"c",      "avx2",       "avxvnni",
                                       "avx512", "avx512vnni", "avx512gfni"};
    for (size_t i = 0; i != ARRAY_LEN(sets); i++) {
        struct k_open_params p = {.device = "cpu",
                                  .n_threads = 1,
                                  .max_rows = 1,
                                  .max_cols = 64,
                                  .max_seq = 16,
                                  .isa = sets[i]};
        char message[256];
        const struct k_ops *ops = k_backend("cpu", message, sizeof message);
        struct k_ctx *c = NULL;
        if (ops->open(&p, &c, message, sizeof message) < 0)
            continue;
        ops->close(c);
        struct golden_options o = {
            .model = "fp16-tp2", .tp = 2, .mode = K_MODE_FP32, .isa = sets[i], .n_slots = 1};
        check_model(&o, "logits", fp32_tolerance, fp32_tolerance);
        o.model = "int4-tp1";
        check_model(&o, "logits_int4_tp1", fp32_tolerance, fp32_tolerance);
        o.mode = K_MODE_FP16;
        check_model(&o, "logits_int4_tp1", fp16_tolerance, fp16_tolerance);
    }
}

/* The rotary tables must be the FP16 ones: exact angles are visibly something else. */
static void test_rotary_tables(void **state)
{
    (void)state;
    json_t *manifest = golden_manifest();
    const json_t *entry = json_array_get(json_object_get(manifest, "logits"), 0);
    struct npy exact;
    struct sample samples[4];
    uint32_t n_samples;
    uint32_t n_rows;
    golden_npy(golden_text(entry, "logits_exact_rope"), NPY_F32, 3, &exact);
    load_samples(entry, samples, &n_samples, &n_rows);
    struct golden_engine g;
    golden_open(&g, &(struct golden_options){.model = "fp16-tp1", .tp = 1, .n_slots = 1});
    const float *found = golden_logits(&g, samples[0].ids, samples[0].positions, samples[0].n,
                                       samples[0].prefix_len);
    double worst = 0.0;
    for (size_t i = 0; i != (size_t)samples[0].n * g.arch->vocab; i++)
        worst = fmax(worst, fabs((double)found[i] - (double)((float *)exact.data)[i]));
    if (worst < 10 * fp32_tolerance)
        fail_msg("exact angles differ by %g only, expected about 0.017", worst);
    golden_close(&g);
    npy_deinit(&exact);
    json_decref(manifest);
}

static void test_layer_outputs(void **state)
{
    (void)state;
    json_t *manifest = golden_manifest();
    const json_t *entry = json_array_get(json_object_get(manifest, "logits"), 0);
    struct npy expected;
    golden_npy(golden_text(entry, "layer_outputs"), NPY_F32, 3, &expected);
    struct sample samples[4];
    uint32_t n_samples;
    uint32_t n_rows;
    load_samples(entry, samples, &n_samples, &n_rows);
    static const struct golden_options shapes[] = {
        {.tp = 1}, {.tp = 2}, {.tp = 4}, {.tp = 1, .pp = 3}, {.tp = 2, .pp = 2}};
    for (size_t i = 0; i != ARRAY_LEN(shapes); i++) {
        struct golden_options o = shapes[i];
        struct golden_engine g;
        o.model = "fp16-tp1";
        o.n_slots = 1;
        golden_open(&g, &o);
        assert_int_equal(expected.shape[0], g.arch->n_layers);
        assert_int_equal(expected.shape[2], g.arch->hidden);
        float *found = alloc_array(expected.n, sizeof *found);
        for (uint32_t stage = 0; stage != g.n_stages; stage++)
            engine_capture_layers(local_group_engine(g.group, (stage + 1) * o.tp - 1), found,
                                  samples[0].n);
        golden_logits(&g, samples[0].ids, samples[0].positions, samples[0].n,
                      samples[0].prefix_len);
        for (size_t j = 0; j != expected.n; j++) {
            double x = (double)((float *)expected.data)[j];
            double difference = fabs((double)found[j] - x);
            /* relative to the size of the residual stream, alpha times a normalised vector */
            if (difference > fp32_tolerance * fmax(1.0, fabs(x)))
                fail_msg("%s: layer %zu element %zu: %.7g, expected %.7g",
                         golden_shape(&o, (char[64]){0}),
                         j / (expected.shape[1] * expected.shape[2]),
                         j % (expected.shape[1] * expected.shape[2]), (double)found[j], x);
        }
        free(found);
        golden_close(&g);
    }
    npy_deinit(&expected);
    json_decref(manifest);
}

/* The prefix as one step, then one token per step. */
static void check_decode(struct golden_engine *g, const struct sample *s, const char *what)
{
    uint32_t vocab = g->arch->vocab;
    size_t bytes = (size_t)s->n * vocab * sizeof(float);
    float *expected = alloc_array(1, bytes);
    memcpy(expected, golden_logits(g, s->ids, s->positions, s->n, s->prefix_len), bytes);
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, blocks);
    struct plan_item item = {.slot_gen = ++g->next_gen,
                             .prefix_len = s->prefix_len,
                             .blocks = blocks,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                             .output = PLAN_OUTPUT_LOGITS};
    for (uint32_t done = 0; done != s->n; done += item.n_tokens) {
        item.start = done;
        item.n_tokens = done ? 1 : s->prefix_len ? s->prefix_len : 1;
        item.tokens = s->ids + done;
        item.positions = s->positions + done;
        const float *found = golden_step(g, &item, 1, NULL, 0, NULL, 0)->items[0].logits;
        size_t n = (size_t)item.n_tokens * vocab;
        if (memcmp(found, expected + (size_t)done * vocab, n * sizeof *found) != 0)
            fail_msg("%s: rows from %u differ between decode and prefill", what, done);
    }
    free(expected);
}

static void test_decode_equals_prefill(void **state)
{
    (void)state;
    json_t *manifest = golden_manifest();
    static const enum k_mode modes[] = {K_MODE_FP32, K_MODE_FP16, K_MODE_A8};
    static const char *const models[] = {"fp16-tp1", "int4-tp2", "int8-tp2"};
    for (size_t m = 0; m != ARRAY_LEN(modes) * ARRAY_LEN(models); m++) {
        struct golden_options o = {.model = models[m / ARRAY_LEN(modes)],
                                   .tp = degrees[m % ARRAY_LEN(degrees)],
                                   .mode = modes[(m + m / 3) % ARRAY_LEN(modes)],
                                   .kv_type = m % 2 ? K_KV_I8 : K_KV_AUTO,
                                   .n_slots = 1};
        struct golden_engine g;
        golden_open(&g, &o);
        size_t i;
        json_t *entry;
        json_array_foreach(json_object_get(manifest, "logits"), i, entry)
        {
            struct sample samples[4];
            uint32_t n_samples;
            uint32_t n_rows;
            load_samples(entry, samples, &n_samples, &n_rows);
            char what[128];
            snprintf(what, sizeof what, "%s (%s, tp %u, mode %d)", golden_text(entry, "name"),
                     o.model, o.tp, (int)o.mode);
            for (uint32_t j = 0; j != n_samples; j++)
                check_decode(&g, &samples[j], what);
        }
        golden_close(&g);
    }
    json_decref(manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32_mode),
        cmocka_unit_test(test_fp16_mode),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_stages_and_slices_have_the_bits_of_one),
        cmocka_unit_test(test_kv_caches),
        cmocka_unit_test(test_int8_head),
        cmocka_unit_test(test_instruction_sets),
        cmocka_unit_test(test_rotary_tables),
        cmocka_unit_test(test_layer_outputs),
        cmocka_unit_test(test_decode_equals_prefill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
