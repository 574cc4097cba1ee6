/* Architecture: reading, writing, checking; the shard table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "base/util.h"
#include "model/arch.h"
#include "model/shard.h"

static json_t *config_glm_130b(void)
{
    json_t *config = json_object();
    assert_int_equal(arch_to_json(&arch_glm_130b, config), 0);
    return config;
}

static void test_round_trip(void **state)
{
    (void)state;
    json_t *config = config_glm_130b();
    struct arch a;
    struct err e = ERR_INIT;
    if (arch_from_json(config, &a, &e) < 0)
        fail_msg("%s", e.message);
    assert_string_equal(a.name, "glm-130b");
    assert_int_equal(a.n_layers, 70);
    assert_int_equal(a.head_dim, 128);
    assert_int_equal(a.tokens.sop, 150004);
    assert_int_equal(a.tokens.eos, 20002);
    assert_true(a.norm_eps == arch_glm_130b.norm_eps);
    assert_true(a.residual_alpha == arch_glm_130b.residual_alpha);
    json_t *again = json_object();
    assert_int_equal(arch_to_json(&a, again), 0);
    assert_true(json_equal(config, again));
    assert_true(json_real_value(json_object_get(again, "layernorm_eps")) == 1e-5);
    json_decref(again);
    json_decref(config);
}

static void test_glm_130b_is_consistent(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    if (arch_check(&arch_glm_130b, &e) < 0)
        fail_msg("%s", e.message);
    assert_int_equal(arch_kv_bytes_per_token(&arch_glm_130b, 2), 3440640);
    for (uint32_t tp = 1; tp <= 8; tp *= 2)
        assert_int_equal(arch_check_tp(&arch_glm_130b, tp, &e), 0);
    assert_int_equal(arch_check_tp(&arch_glm_130b, 5, &e), -EINVAL);
    assert_non_null(strstr(e.message, "num_heads is 96"));
    assert_int_equal(arch_check_tp(&arch_glm_130b, 0, NULL), -EINVAL);

    uint64_t parameters = 0;
    for (size_t i = 0; i < shard_n_tensors(&arch_glm_130b); i++) {
        struct shard_tensor t;
        shard_tensor_at(&arch_glm_130b, i, &t);
        parameters += t.rows * t.cols;
    }
    assert_int_equal(parameters, 128697794560);
}

/* Each of these changes makes the config wrong; the message must name the culprit. */
static void test_bad_values(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        const char *value; /* JSON; NULL = remove */
        const char *message;
    } cases[] = {
        {"num_layers", NULL, "num_layers: missing"},
        {"num_layers", "0", "num_layers: expected a whole number from 1"},
        {"num_layers", "-3", "num_layers"},
        {"num_layers", "1e300", "num_layers"},
        {"num_layers", "70.5", "num_layers"},
        {"num_layers", "\"70\"", "found a string"},
        {"num_layers", "100000", "num_layers"},
        {"hidden_size", "12289", "multiple of num_heads"},
        {"hidden_size", "9223372036854775807", "hidden_size"},
        {"num_heads", "12288", "even head size"},
        {"num_heads", "1", "head size"},
        {"inner_size", "null", "inner_size"},
        {"vocab_size", "1000", "special_tokens"},
        {"vocab_size", "150003", "special_tokens"},
        {"special_base", "1", "num_image_tokens < special_base"},
        {"special_base", "150001", "[MASK]"},
        {"num_image_tokens", "20003", "eos"},
        {"max_seq", "[]", "max_seq"},
        {"layernorm_eps", "0", "layernorm_eps"},
        {"rope_base", "true", "rope_base"},
        {"special_tokens", "{}", "[gMASK]: missing"},
        {"special_tokens", "7", "special_tokens: expected an object"},
        {"special_tokens",
         "{\"[gMASK]\": 150001, \"sop\": 150001, \"eop\": 150002, \"eos\": 20002}", "same id"},
        {"context", "\"sideways\"", "\"bidirectional\", \"causal\""},
        {"model_type", "\"llama\"", "model_type"},
        {"name", "\"../x\"", "name"},
        {"name", "\"\"", "name"},
        {"tie_word_embeddings", "false", "tie_word_embeddings"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        json_t *config = config_glm_130b();
        if (cases[i].value)
            json_object_set_new(config, cases[i].key,
                                json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        else
            json_object_del(config, cases[i].key);
        struct arch a;
        struct err e = ERR_INIT;
        int r = arch_from_json(config, &a, &e);
        if (r != -EINVAL || !strstr(e.message, cases[i].message))
            fail_msg("%s = %s: expected -EINVAL and \"%s\", found %d and \"%s\"", cases[i].key,
                     cases[i].value ? cases[i].value : "(absent)", cases[i].message, r, e.message);
        json_decref(config);
    }
}

static void test_shard_names(void **state)
{
    (void)state;
    const struct arch *a = &arch_glm_130b;
    assert_int_equal(shard_n_tensors(a), 1 + 70 * 12 + 2);
    for (size_t i = 0; i < shard_n_tensors(a); i++) {
        struct shard_tensor t, found;
        shard_tensor_at(a, i, &t);
        if (shard_find(a, t.name, &found) < 0)
            fail_msg("%s not found", t.name);
        assert_string_equal(found.name, t.name);
        assert_int_equal(found.rows, t.rows);
        assert_int_equal(found.cols, t.cols);
    }
    static const char *const absent[] = {
        "",
        "transformer.",
        "transformer.word_embeddings.bias",
        "transformer.layers.70.input_layernorm.weight",
        "transformer.layers.00.input_layernorm.weight",
        "transformer.layers.-1.input_layernorm.weight",
        "transformer.layers.99999999999999999999.input_layernorm.weight",
        "transformer.layers.0.attention.rotary_emb.inv_freq",
        "transformer.layers.0.attention.dense.weight_scale",
        "transformer.layers.0",
        "mixins.block.weight",
    };
    for (size_t i = 0; i < ARRAY_LEN(absent); i++) {
        struct shard_tensor t;
        if (shard_find(a, absent[i], &t) != -ENOENT)
            fail_msg("\"%s\": expected -ENOENT", absent[i]);
    }
}

/* The published shapes at P = 8. */
static void test_shard_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t rows, cols;
    } expected[] = {
        {"transformer.word_embeddings.weight", 18816, 12288},
        {"transformer.layers.3.input_layernorm.weight", 12288, 1},
        {"transformer.layers.3.attention.query_key_value.weight", 4608, 12288},
        {"transformer.layers.3.attention.query_key_value.bias", 4608, 1},
        {"transformer.layers.3.attention.dense.weight", 12288, 1536},
        {"transformer.layers.3.attention.dense.bias", 12288, 1},
        {"transformer.layers.3.mlp.dense_h_to_4h.weight", 8192, 12288},
        {"transformer.layers.3.mlp.dense_h_to_4h.bias", 8192, 1},
        {"transformer.layers.3.mlp.dense_4h_to_h.weight", 12288, 4096},
        {"transformer.layers.3.mlp.dense_4h_to_h.bias", 12288, 1},
        {"transformer.final_layernorm.bias", 12288, 1},
    };
    for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
        struct shard_tensor t;
        assert_int_equal(shard_find(&arch_glm_130b, expected[i].name, &t), 0);
        for (uint32_t rank = 0; rank < 8; rank++) {
            struct shard_piece p[2];
            size_t n = shard_pieces(&t, 8, rank, p);
            uint64_t rows = p[0].n_rows + (n == 2 ? p[1].n_rows : 0);
            if (rows != expected[i].rows || p[0].n_cols != expected[i].cols)
                fail_msg("%s rank %u: expected %lu x %lu, found %lu x %lu", t.name, rank,
                         expected[i].rows, expected[i].cols, rows, p[0].n_cols);
        }
    }
    struct shard_tensor t;
    struct shard_piece p[2];
    shard_find(&arch_glm_130b, "transformer.layers.0.mlp.dense_h_to_4h.weight", &t);
    assert_int_equal(shard_pieces(&t, 8, 3, p), 2);
    assert_int_equal(p[0].row0, 3 * 4096);
    assert_int_equal(p[1].row0, 32768 + 3 * 4096);
}

/* For every degree, the pieces of all ranks cover each element of a split tensor exactly once. */
static void test_pieces_tile(void **state)
{
    (void)state;
    static const struct arch tiny = {.n_layers = 1,
                                     .hidden = 24,
                                     .n_heads = 12,
                                     .n_kv_heads = 12,
                                     .head_dim = 2,
                                     .inner = 36,
                                     .vocab = 48};
    for (size_t i = 0; i < shard_n_tensors(&tiny); i++) {
        struct shard_tensor t;
        shard_tensor_at(&tiny, i, &t);
        for (uint32_t tp = 1; tp <= 12; tp++) {
            if (12 % tp)
                continue;
            unsigned char seen[72][64] = {{0}};
            for (uint32_t rank = 0; rank < tp; rank++) {
                struct shard_piece p[2];
                size_t n = shard_pieces(&t, tp, rank, p);
                for (size_t k = 0; k < n; k++)
                    for (uint64_t r = 0; r < p[k].n_rows; r++)
                        for (uint64_t c = 0; c < p[k].n_cols; c++)
                            seen[p[k].row0 + r][p[k].col0 + c]++;
            }
            unsigned expected = t.split == SHARD_COPY ? tp : 1;
            for (uint64_t r = 0; r < t.rows; r++)
                for (uint64_t c = 0; c < t.cols; c++)
                    if (seen[r][c] != expected)
                        fail_msg("%s tp %u [%lu, %lu]: expected %u ranks, found %u", t.name, tp, r,
                                 c, expected, seen[r][c]);
        }
    }
}

/* The smallest possible largest layers / weight, in thousandths, by trying every split. */
static uint64_t best_split(uint32_t n_layers, uint32_t n_stages, const uint32_t *weights)
{
    if (n_stages == 1)
        return 1000 * (uint64_t)n_layers / weights[0];
    uint64_t best = UINT64_MAX;
    for (uint32_t first = 1; first <= n_layers - (n_stages - 1); first++) {
        uint64_t rest = best_split(n_layers - first, n_stages - 1, weights + 1);
        best = MIN(best, MAX(1000 * (uint64_t)first / weights[0], rest));
    }
    return best;
}

static void test_stage_layers(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_layers, n_stages;
        uint32_t weights[7]; /* all 0: NULL */
        uint32_t layers[7];
    } cases[] = {
        {70, 1, {0}, {70}},
        {70, 2, {0}, {35, 35}},
        {70, 3, {0}, {23, 24, 23}},
        {70, 4, {0}, {17, 18, 18, 17}},
        {70, 5, {0}, {14, 14, 14, 14, 14}},
        {70, 6, {0}, {11, 12, 12, 12, 12, 11}},
        {70, 7, {0}, {10, 10, 10, 10, 10, 10, 10}},
        {3, 2, {0}, {2, 1}},
        {3, 3, {0}, {1, 1, 1}},
        {70, 3, {24, 24, 48}, {17, 18, 35}},
        {70, 2, {11, 24}, {22, 48}},
        {70, 2, {4000000000u, 4000000000u}, {35, 35}},
        {5, 3, {1, 1, 1000000}, {1, 1, 3}},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const uint32_t *weights = cases[i].weights[0] ? cases[i].weights : NULL;
        uint32_t expected_begin = 0;
        for (uint32_t s = 0; s < cases[i].n_stages; s++) {
            uint32_t begin = 77, end = 77;
            assert_int_equal(
                shard_stage_layers(cases[i].n_layers, cases[i].n_stages, weights, s, &begin, &end),
                0);
            if (begin != expected_begin || end != begin + cases[i].layers[s])
                fail_msg("%u layers, stage %u of %u: expected [%u, %u), found [%u, %u)",
                         cases[i].n_layers, s, cases[i].n_stages, expected_begin,
                         expected_begin + cases[i].layers[s], begin, end);
            expected_begin = end;
        }
        assert_int_equal(expected_begin, cases[i].n_layers);
    }
    uint32_t begin, end;
    assert_int_equal(shard_stage_layers(70, 0, NULL, 0, &begin, &end), -EINVAL);
    assert_int_equal(shard_stage_layers(3, 4, NULL, 0, &begin, &end), -EINVAL);
    assert_int_equal(shard_stage_layers(3, 2, (uint32_t[]){1, 0}, 0, &begin, &end), -EINVAL);
    assert_int_equal(shard_stage_layers(3, 2, (uint32_t[]){0, 1}, 0, &begin, &end), -EINVAL);
}

static void test_stage_layers_are_the_best_split(void **state)
{
    (void)state;
    for (uint32_t n_layers = 4; n_layers <= 11; n_layers++) {
        for (uint32_t mix = 0; mix < 256; mix++) {
            uint32_t weights[4], begin, end;
            for (uint32_t s = 0; s < 4; s++)
                weights[s] = 1 + (mix >> (2 * s) & 3) * 2;
            uint64_t worst = 0;
            for (uint32_t s = 0; s < 4; s++) {
                assert_int_equal(shard_stage_layers(n_layers, 4, weights, s, &begin, &end), 0);
                worst = MAX(worst, 1000 * (uint64_t)(end - begin) / weights[s]);
            }
            uint64_t best = best_split(n_layers, 4, weights);
            if (worst != best)
                fail_msg("%u layers on %u, %u, %u, %u: expected %lu thousandths, found %lu",
                         n_layers, weights[0], weights[1], weights[2], weights[3], best, worst);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_glm_130b_is_consistent),
        cmocka_unit_test(test_bad_values),   cmocka_unit_test(test_shard_names),
        cmocka_unit_test(test_shard_shapes), cmocka_unit_test(test_pieces_tile),
        cmocka_unit_test(test_stage_layers), cmocka_unit_test(test_stage_layers_are_the_best_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
