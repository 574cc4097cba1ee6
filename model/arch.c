/* arch.c: see arch.h. Pure functions; any thread. */
#include "model/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/jsonfile.h"

enum { /* far above every member of the family; they keep products of sizes within 64 bits */
       MAX_LAYERS = 1024,
       MAX_HIDDEN = 1 << 17,
       MAX_INNER = 1 << 20,
       MAX_VOCAB = 1 << 22,
       MAX_HEAD_DIM = 1024,
       MAX_SEQ = 1 << 20,
};

static const char model_type[] = "glm-130b"; /* the architecture, not a particular model of it */

const struct arch arch_glm_130b = {
    .name = "glm-130b",
    .n_layers = 70,
    .hidden = 12288,
    .n_heads = 96,
    .n_kv_heads = 96,
    .head_dim = 128,
    .inner = 32768,
    .vocab = 150528,
    .max_seq = 2048,
    .norm_eps = 1e-5f,
    .rope_base = 10000,
    .residual_alpha = 11.832159566199232, /* sqrt(2 * 70) */
    .norm = ARCH_NORM_LAYER,
    .residual = ARCH_RESIDUAL_NORMED,
    .glu = ARCH_GLU_GEGLU_SECOND,
    .rope = ARCH_ROPE_HALF_FP16,
    .context = ARCH_CONTEXT_BIDIRECTIONAL,
    .tied_head = true,
    .tokens = {.mask = 150000,
               .gmask = 150001,
               .smask = 150002,
               .eod = 150003,
               .sop = 150004,
               .eop = 150005,
               .enc = 150006,
               .dblock = 150007,
               .eos = 20002,
               .n_image_tokens = 20000,
               .special_base = 150000},
};

static const char *const norm_names[] = {[ARCH_NORM_LAYER] = "layer"};
static const char *const residual_names[] = {[ARCH_RESIDUAL_NORMED] = "normed"};
static const char *const glu_names[] = {[ARCH_GLU_GEGLU_SECOND] = "geglu-second"};
static const char *const rope_names[] = {[ARCH_ROPE_HALF_FP16] = "half-fp16"};
static const char *const context_names[] = {
    [ARCH_CONTEXT_BIDIRECTIONAL] = "bidirectional", [ARCH_CONTEXT_CAUSAL] = "causal"};

/* Special tokens by their key in config.json. */
struct token_key {
    const char *key;
    size_t offset;
    bool required; /* no generation without it */
};

static const struct token_key token_keys[] = {
    {"[MASK]", offsetof(struct arch_tokens, mask), false},
    {"[gMASK]", offsetof(struct arch_tokens, gmask), true},
    {"[sMASK]", offsetof(struct arch_tokens, smask), false},
    {"eod", offsetof(struct arch_tokens, eod), false},
    {"sop", offsetof(struct arch_tokens, sop), true},
    {"eop", offsetof(struct arch_tokens, eop), true},
    {"ENC", offsetof(struct arch_tokens, enc), false},
    {"dBLOCK", offsetof(struct arch_tokens, dblock), false},
    {"eos", offsetof(struct arch_tokens, eos), true},
};

static int32_t *token_at(struct arch_tokens *t, size_t i)
{
    return (int32_t *)(void *)((char *)t + token_keys[i].offset);
}

static int32_t token_value(const struct arch_tokens *t, size_t i)
{
    int32_t value;
    memcpy(&value, (const char *)t + token_keys[i].offset, sizeof value);
    return value;
}

static int read_u32(const json_t *config, const char *key, uint32_t min, uint32_t max,
                    uint32_t *ret_value, struct err *e)
{
    uint64_t value = 0;
    int r = jsonfile_get_u64(config, key, min, max, &value, e);
    if (r == 0)
        *ret_value = (uint32_t)value;
    return r;
}

static int read_sizes(const json_t *config, struct arch *a, struct err *e)
{
    struct {
        const char *key;
        uint32_t min, max;
        uint32_t *value;
    } sizes[] = {
        {"num_layers", 1, MAX_LAYERS, &a->n_layers},
        {"hidden_size", 1, MAX_HIDDEN, &a->hidden},
        {"num_heads", 1, MAX_HIDDEN, &a->n_heads},
        {"inner_size", 1, MAX_INNER, &a->inner},
        {"vocab_size", 1, MAX_VOCAB, &a->vocab},
        {"num_image_tokens", 0, MAX_VOCAB, &a->tokens.n_image_tokens},
        {"special_base", 0, MAX_VOCAB, &a->tokens.special_base},
        {"max_seq", 1, MAX_SEQ, &a->max_seq},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        int r = read_u32(config, sizes[i].key, sizes[i].min, sizes[i].max, sizes[i].value, e);
        if (r < 0)
            return r;
    }
    a->n_kv_heads = a->n_heads;
    a->head_dim = a->hidden / a->n_heads;
    a->residual_alpha = sqrt(2.0 * a->n_layers);

    double eps = 0;
    int r = jsonfile_get_double(config, "layernorm_eps", 1e-12, 1, &eps, e);
    if (r < 0)
        return r;
    a->norm_eps = (float)eps;
    return jsonfile_get_double(config, "rope_base", 1, 1e9, &a->rope_base, e);
}

static int read_tokens(const json_t *config, struct arch *a, struct err *e)
{
    json_t *tokens;
    int r = jsonfile_get_object(config, "special_tokens", &tokens, e);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_LEN(token_keys); i++) {
        int32_t *value = token_at(&a->tokens, i);
        *value = -1;
        if (!token_keys[i].required && !json_object_get(tokens, token_keys[i].key))
            continue;
        uint32_t id = 0;
        r = read_u32(tokens, token_keys[i].key, 0, a->vocab - 1, &id, e);
        if (r < 0)
            return err_prefix(e, "special_tokens");
        *value = (int32_t)id;
    }
    return 0;
}

/* The switches; a file of the published checkpoint's kind has none of them. */
static int read_switches(const json_t *config, struct arch *a, struct err *e)
{
    struct {
        const char *key;
        const char *const *names;
        size_t n;
        size_t value;
    } switches[] = {
        {"norm", norm_names, ARRAY_LEN(norm_names), ARCH_NORM_LAYER},
        {"residual", residual_names, ARRAY_LEN(residual_names), ARCH_RESIDUAL_NORMED},
        {"glu", glu_names, ARRAY_LEN(glu_names), ARCH_GLU_GEGLU_SECOND},
        {"rope", rope_names, ARRAY_LEN(rope_names), ARCH_ROPE_HALF_FP16},
        {"context", context_names, ARRAY_LEN(context_names), ARCH_CONTEXT_BIDIRECTIONAL},
    };
    for (size_t i = 0; i < ARRAY_LEN(switches); i++) {
        if (!json_object_get(config, switches[i].key))
            continue;
        int r = jsonfile_get_choice(config, switches[i].key, switches[i].names, switches[i].n,
                                    &switches[i].value, e);
        if (r < 0)
            return r;
    }
    a->norm = (enum arch_norm)switches[0].value;
    a->residual = (enum arch_residual)switches[1].value;
    a->glu = (enum arch_glu)switches[2].value;
    a->rope = (enum arch_rope)switches[3].value;
    a->context = (enum arch_context)switches[4].value;
    a->tied_head = true;
    if (json_object_get(config, "tie_word_embeddings"))
        return jsonfile_get_bool(config, "tie_word_embeddings", &a->tied_head, e);
    return 0;
}

static bool same_sizes(const struct arch *a, const struct arch *b)
{
    return a->n_layers == b->n_layers && a->hidden == b->hidden && a->n_heads == b->n_heads &&
           a->inner == b->inner && a->vocab == b->vocab;
}

static int read_name(const json_t *config, struct arch *a, struct err *e)
{
    if (json_object_get(config, "model_type")) {
        const char *type;
        int r = jsonfile_get_string(config, "model_type", &type, e);
        if (r < 0)
            return r;
        if (strcmp(type, model_type) != 0)
            return err_set(e, -EINVAL, "model_type: expected \"%s\", found \"%.64s\"", model_type,
                           type);
    }
    const char *name = same_sizes(a, &arch_glm_130b) ? arch_glm_130b.name : "glm";
    if (json_object_get(config, "name")) {
        int r = jsonfile_get_string(config, "name", &name, e);
        if (r < 0)
            return r;
    }
    size_t length = strlen(name);
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (length == 0 || length >= sizeof a->name || strspn(name, allowed) != length)
        return err_set(e, -EINVAL,
                       "name: expected 1 to %zu characters of [A-Za-z0-9._-], found \"%.80s\"",
                       sizeof a->name - 1, name);
    memcpy(a->name, name, length + 1);
    return 0;
}

int arch_from_json(const struct json_t *config, struct arch *ret_arch, struct err *e)
{
    struct arch a = {0};
    if (!json_is_object(config))
        return err_set(e, -EINVAL, "expected a JSON object");
    int r = read_sizes(config, &a, e);
    if (r == 0)
        r = read_tokens(config, &a, e);
    if (r == 0)
        r = read_switches(config, &a, e);
    if (r == 0)
        r = read_name(config, &a, e);
    if (r == 0)
        r = arch_check(&a, e);
    if (r == 0)
        *ret_arch = a;
    return r;
}

/* The shortest decimal number that reads back as the same float: 1e-05, not 9.99999975e-06. */
static double shortest(float value)
{
    char text[32];
    for (int precision = 1; precision < 9; precision++) {
        snprintf(text, sizeof text, "%.*g", precision, (double)value);
        double d = strtod(text, NULL);
        if ((float)d == value)
            return d;
    }
    return value;
}

int arch_to_json(const struct arch *a, struct json_t *config)
{
    json_t *tokens = json_object();
    int r = tokens ? 0 : -1;
    for (size_t i = 0; i < ARRAY_LEN(token_keys) && r == 0; i++) {
        if (token_value(&a->tokens, i) >= 0)
            r = json_object_set_new(tokens, token_keys[i].key,
                                    json_integer(token_value(&a->tokens, i)));
    }
    struct {
        const char *key;
        json_t *value;
    } members[] = {
        {"name", json_string(a->name)},
        {"model_type", json_string(model_type)},
        {"num_layers", json_integer(a->n_layers)},
        {"hidden_size", json_integer(a->hidden)},
        {"num_heads", json_integer(a->n_heads)},
        {"inner_size", json_integer(a->inner)},
        {"vocab_size", json_integer(a->vocab)},
        {"num_image_tokens", json_integer(a->tokens.n_image_tokens)},
        {"special_base", json_integer(a->tokens.special_base)},
        {"max_seq", json_integer(a->max_seq)},
        {"layernorm_eps", json_real(shortest(a->norm_eps))},
        {"rope_base", json_real(a->rope_base)},
        {"norm", json_string(norm_names[a->norm])},
        {"residual", json_string(residual_names[a->residual])},
        {"glu", json_string(glu_names[a->glu])},
        {"rope", json_string(rope_names[a->rope])},
        {"context", json_string(context_names[a->context])},
        {"tie_word_embeddings", json_boolean(a->tied_head)},
        {"special_tokens", tokens},
    };
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        /* takes the value even when it fails */
        if (json_object_set_new(config, members[i].key, members[i].value) < 0)
            r = -1;
    }
    return r < 0 ? -ENOMEM : 0;
}

static int check_tokens(const struct arch *a, struct err *e)
{
    const struct arch_tokens *t = &a->tokens;
    if (t->n_image_tokens >= t->special_base || t->special_base > a->vocab)
        return err_set(e, -EINVAL,
                       "expected num_image_tokens < special_base <= vocab_size, found %u, %u, %u",
                       t->n_image_tokens, t->special_base, a->vocab);
    for (size_t i = 0; i < ARRAY_LEN(token_keys); i++) {
        int32_t id = token_value(t, i);
        if (id < 0 && !token_keys[i].required)
            continue;
        /* eos is a piece of the text tokenizer, the others follow the pieces */
        bool is_eos = token_keys[i].offset == offsetof(struct arch_tokens, eos);
        uint32_t low = is_eos ? t->n_image_tokens : t->special_base;
        uint32_t high = is_eos ? t->special_base : a->vocab;
        if (id < 0 || (uint32_t)id < low || (uint32_t)id >= high)
            return err_set(e, -EINVAL, "special_tokens: %s: expected an id in [%u, %u), found %d",
                           token_keys[i].key, low, high, id);
        for (size_t j = 0; j < i; j++) {
            if (token_value(t, j) == id)
                return err_set(e, -EINVAL, "special_tokens: %s and %s have the same id, %d",
                               token_keys[j].key, token_keys[i].key, id);
        }
    }
    return 0;
}

int arch_check(const struct arch *a, struct err *e)
{
    struct {
        const char *key;
        uint32_t value, max;
    } sizes[] = {
        {"num_layers", a->n_layers, MAX_LAYERS}, {"hidden_size", a->hidden, MAX_HIDDEN},
        {"num_heads", a->n_heads, MAX_HIDDEN},   {"head size", a->head_dim, MAX_HEAD_DIM},
        {"inner_size", a->inner, MAX_INNER},     {"vocab_size", a->vocab, MAX_VOCAB},
        {"max_seq", a->max_seq, MAX_SEQ},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].max)
            return err_set(e, -EINVAL, "%s: expected 1 to %u, found %u", sizes[i].key, sizes[i].max,
                           sizes[i].value);
    }
    if ((uint64_t)a->n_heads * a->head_dim != a->hidden)
        return err_set(e, -EINVAL, "hidden_size: expected a multiple of num_heads (%u), found %u",
                       a->n_heads, a->hidden);
    if (a->head_dim % 2)
        return err_set(e, -EINVAL, "hidden_size / num_heads: expected an even head size, found %u",
                       a->head_dim);
    if (a->n_kv_heads != a->n_heads)
        return err_set(e, -EINVAL, "key/value heads: expected as many as num_heads (%u), found %u",
                       a->n_heads, a->n_kv_heads);
    if (!(a->norm_eps > 0) || !(a->rope_base >= 1) || !(a->residual_alpha > 0))
        return err_set(e, -EINVAL, "layernorm_eps, rope_base: expected positive numbers");
    if (!a->tied_head)
        return err_set(e, -EINVAL,
                       "tie_word_embeddings: expected true (the head is the embedding)");
    return check_tokens(a, e);
}

int arch_check_tp(const struct arch *a, uint32_t tp, struct err *e)
{
    struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        {"num_heads", a->n_heads},
        {"hidden_size", a->hidden},
        {"inner_size", a->inner},
        {"vocab_size", a->vocab},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        if (tp == 0 || sizes[i].value % tp)
            return err_set(e, -EINVAL,
                           "tensor parallelism of %u does not divide the model: %s is %u (heads "
                           "%u, hidden %u, inner %u, vocabulary %u must all be multiples)",
                           tp, sizes[i].key, sizes[i].value, a->n_heads, a->hidden, a->inner,
                           a->vocab);
    }
    return 0;
}

size_t arch_kv_bytes_per_token(const struct arch *a, size_t element_bytes)
{
    return 2 * (size_t)a->n_layers * a->n_kv_heads * a->head_dim * element_bytes;
}
