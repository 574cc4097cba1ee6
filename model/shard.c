/* shard.c: see shard.h. Pure functions over the table below. */
#include "model/shard.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

/* Sizes as multiples of the architecture's. */
enum dim { DIM_1, DIM_H, DIM_QKV, DIM_I, DIM_2I, DIM_V };

struct rule {
    const char *name; /* behind "transformer.", or behind "transformer.layers.N." */
    enum shard_role role;
    enum shard_split split;
    enum dim rows, cols;
};

static const struct rule embedding_rule = {"word_embeddings.weight", SHARD_ROLE_EMBEDDING,
                                           SHARD_ROWS, DIM_V, DIM_H};

static const struct rule layer_rules[] = {
    {"input_layernorm.weight", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
    {"input_layernorm.bias", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
    {"attention.query_key_value.weight", SHARD_ROLE_LINEAR, SHARD_ROWS, DIM_QKV, DIM_H},
    {"attention.query_key_value.bias", SHARD_ROLE_BIAS, SHARD_ROWS, DIM_QKV, DIM_1},
    {"attention.dense.weight", SHARD_ROLE_LINEAR, SHARD_COLS, DIM_H, DIM_H},
    {"attention.dense.bias", SHARD_ROLE_BIAS, SHARD_COPY, DIM_H, DIM_1},
    {"post_attention_layernorm.weight", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
    {"post_attention_layernorm.bias", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
    {"mlp.dense_h_to_4h.weight", SHARD_ROLE_LINEAR, SHARD_ROWS_HALF, DIM_2I, DIM_H},
    {"mlp.dense_h_to_4h.bias", SHARD_ROLE_BIAS, SHARD_ROWS_HALF, DIM_2I, DIM_1},
    {"mlp.dense_4h_to_h.weight", SHARD_ROLE_LINEAR, SHARD_COLS, DIM_H, DIM_I},
    {"mlp.dense_4h_to_h.bias", SHARD_ROLE_BIAS, SHARD_COPY, DIM_H, DIM_1},
};

static const struct rule final_rules[] = {
    {"final_layernorm.weight", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
    {"final_layernorm.bias", SHARD_ROLE_NORM, SHARD_COPY, DIM_H, DIM_1},
};

static uint64_t size_of(const struct arch *a, enum dim d)
{
    switch (d) {
    case DIM_1:
        return 1;
    case DIM_H:
        return a->hidden;
    case DIM_QKV:
        return ((uint64_t)a->n_heads + 2 * (uint64_t)a->n_kv_heads) * a->head_dim;
    case DIM_I:
        return a->inner;
    case DIM_2I:
        return 2 * (uint64_t)a->inner;
    case DIM_V:
        return a->vocab;
    }
    assert(false);
    return 0;
}

static void fill(const struct arch *a, const struct rule *r, const char *prefix,
                 struct shard_tensor *ret_tensor)
{
    *ret_tensor = (struct shard_tensor){.role = r->role,
                                        .split = r->split,
                                        .rows = size_of(a, r->rows),
                                        .cols = size_of(a, r->cols)};
    int n = snprintf(ret_tensor->name, sizeof ret_tensor->name, "%s%s", prefix, r->name);
    assert(n > 0 && (size_t)n < sizeof ret_tensor->name);
}

size_t shard_n_tensors(const struct arch *a)
{
    return 1 + (size_t)a->n_layers * ARRAY_LEN(layer_rules) + ARRAY_LEN(final_rules);
}

void shard_tensor_at(const struct arch *a, size_t i, struct shard_tensor *ret_tensor)
{
    assert(i < shard_n_tensors(a));
    size_t n_layer_tensors = (size_t)a->n_layers * ARRAY_LEN(layer_rules);
    if (i == 0) {
        fill(a, &embedding_rule, "transformer.", ret_tensor);
    } else if (i - 1 < n_layer_tensors) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "transformer.layers.%zu.",
                 (i - 1) / ARRAY_LEN(layer_rules));
        fill(a, &layer_rules[(i - 1) % ARRAY_LEN(layer_rules)], prefix, ret_tensor);
    } else {
        fill(a, &final_rules[i - 1 - n_layer_tensors], "transformer.", ret_tensor);
    }
}

/* "N.rest" -> N and rest; false when this is not a plain decimal number with a dot behind it. */
static bool parse_layer(const char *text, uint32_t *ret_layer, const char **ret_rest)
{
    uint64_t layer = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++) {
        layer = layer * 10 + (uint64_t)(*p - '0');
        if (layer > UINT32_MAX || (p != text && *text == '0'))
            return false;
    }
    if (p == text || *p != '.')
        return false;
    *ret_layer = (uint32_t)layer;
    *ret_rest = p + 1;
    return true;
}

int shard_find(const struct arch *a, const char *name, struct shard_tensor *ret_tensor)
{
    static const char top[] = "transformer.", layers[] = "layers.";
    if (strncmp(name, top, sizeof top - 1) != 0)
        return -ENOENT;
    const char *rest = name + sizeof top - 1;
    if (strncmp(rest, layers, sizeof layers - 1) == 0) {
        uint32_t layer;
        if (!parse_layer(rest + sizeof layers - 1, &layer, &rest) || layer >= a->n_layers)
            return -ENOENT;
        for (size_t i = 0; i < ARRAY_LEN(layer_rules); i++) {
            if (strcmp(rest, layer_rules[i].name) == 0) {
                shard_tensor_at(a, 1 + (size_t)layer * ARRAY_LEN(layer_rules) + i, ret_tensor);
                return 0;
            }
        }
        return -ENOENT;
    }
    if (strcmp(rest, embedding_rule.name) == 0) {
        shard_tensor_at(a, 0, ret_tensor);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(final_rules); i++) {
        if (strcmp(rest, final_rules[i].name) == 0) {
            fill(a, &final_rules[i], "transformer.", ret_tensor);
            return 0;
        }
    }
    return -ENOENT;
}

size_t shard_pieces(const struct shard_tensor *t, uint32_t tp, uint32_t rank,
                    struct shard_piece ret_pieces[2])
{
    assert(tp > 0 && rank < tp);
    uint64_t part;
    switch (t->split) {
    case SHARD_COPY:
        ret_pieces[0] = (struct shard_piece){0, t->rows, 0, t->cols};
        return 1;
    case SHARD_ROWS:
        assert(t->rows % tp == 0);
        part = t->rows / tp;
        ret_pieces[0] = (struct shard_piece){rank * part, part, 0, t->cols};
        return 1;
    case SHARD_ROWS_HALF:
        assert(t->rows % 2 == 0 && t->rows / 2 % tp == 0);
        part = t->rows / 2 / tp;
        ret_pieces[0] = (struct shard_piece){rank * part, part, 0, t->cols};
        ret_pieces[1] = (struct shard_piece){t->rows / 2 + rank * part, part, 0, t->cols};
        return 2;
    case SHARD_COLS:
        assert(t->cols % tp == 0);
        part = t->cols / tp;
        ret_pieces[0] = (struct shard_piece){0, t->rows, rank * part, part};
        return 1;
    }
    assert(false);
    return 0;
}

/* Stages in the order in which they take a layer that could go to several: those in the middle, the
 * first, the last. */
static uint32_t stage_by_preference(uint32_t n_stages, uint32_t k)
{
    if (n_stages < 2 || k == n_stages - 1)
        return k;
    return k == n_stages - 2 ? 0 : k + 1;
}

int shard_stage_layers(uint32_t n_layers, uint32_t n_stages, const uint32_t *weights,
                       uint32_t stage, uint32_t *ret_begin, uint32_t *ret_end)
{
    if (n_stages < 1 || n_stages > n_layers || n_stages > SHARD_MAX_STAGES)
        return -EINVAL;
    assert(stage < n_stages);
    uint32_t layers[SHARD_MAX_STAGES];
    for (uint32_t s = 0; s < n_stages; s++) {
        if (weights && weights[s] == 0)
            return -EINVAL;
        layers[s] = 1;
    }
    for (uint32_t left = n_layers - n_stages; left > 0; left--) {
        uint32_t best = stage_by_preference(n_stages, 0);
        for (uint32_t k = 1; k < n_stages; k++) {
            uint32_t s = stage_by_preference(n_stages, k);
            uint64_t ours = ((uint64_t)layers[s] + 1) * (weights ? weights[best] : 1);
            uint64_t theirs = ((uint64_t)layers[best] + 1) * (weights ? weights[s] : 1);
            if (ours < theirs)
                best = s;
        }
        layers[best]++;
    }
    uint32_t begin = 0;
    for (uint32_t s = 0; s < stage; s++)
        begin += layers[s];
    *ret_begin = begin;
    *ret_end = begin + layers[stage];
    return 0;
}
