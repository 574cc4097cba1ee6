/* quant.c: quantization schemes: names, JSON, and which groups a tensor has. The arithmetic is in
 * quantize.c. Pure functions; any thread. */
#include "model/quant.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "model/jsonfile.h"

static const char *const weights_names[] = {
    [QUANT_FP16] = "fp16", [QUANT_INT8] = "int8", [QUANT_INT4] = "int4"};
static const char *const group_names[] = {
    [QUANT_GROUP_ROW] = "row", [QUANT_GROUP_SHARD] = "shard", [QUANT_GROUP_COLS] = "columns"};
static const char *const head_names[] = {"fp16", "int8"};
static const char method[] = "glmd"; /* quant_method in config.json */

int quant_weights_parse(const char *text, enum quant_weights *ret_weights)
{
    for (size_t i = 0; i < ARRAY_LEN(weights_names); i++) {
        if (strcmp(text, weights_names[i]) == 0) {
            *ret_weights = (enum quant_weights)i;
            return 0;
        }
    }
    return -EINVAL;
}

const char *quant_weights_name(enum quant_weights w)
{
    assert((size_t)w < ARRAY_LEN(weights_names));
    return weights_names[w];
}

unsigned quant_bits(enum quant_weights w)
{
    return w == QUANT_INT4 ? 4 : w == QUANT_INT8 ? 8 : 16;
}

static bool group_size_ok(uint64_t cols)
{
    return cols == 32 || cols == 64 || cols == 128;
}

/* "1".."256" */
static bool parse_shards(const char *text, uint32_t *ret_n)
{
    uint32_t n = 0;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9')
            return false;
        n = n * 10 + (uint32_t)(*p - '0');
        if (n > QUANT_MAX_SHARDS)
            return false;
    }
    *ret_n = n;
    return n > 0;
}

int quant_group_parse(const char *text, struct quant_scheme *scheme, struct err *e)
{
    uint32_t n;
    if (strcmp(text, "row") == 0) {
        scheme->group = QUANT_GROUP_ROW;
        scheme->group_n = 0;
    } else if (strcmp(text, "shard") == 0) {
        scheme->group = QUANT_GROUP_SHARD;
        scheme->group_n = 0;
    } else if (strncmp(text, "shard:", 6) == 0 && parse_shards(text + 6, &n)) {
        scheme->group = n == 1 ? QUANT_GROUP_ROW : QUANT_GROUP_SHARD;
        scheme->group_n = n == 1 ? 0 : n;
    } else if (strcmp(text, "32") == 0 || strcmp(text, "64") == 0 || strcmp(text, "128") == 0) {
        scheme->group = QUANT_GROUP_COLS;
        scheme->group_n = text[0] == '3' ? 32 : text[0] == '6' ? 64 : 128;
    } else {
        return err_set(e, -EINVAL,
                       "group: expected row, shard, shard:N (N up to %d), 32, 64 or 128; found "
                       "\"%.64s\"",
                       QUANT_MAX_SHARDS, text);
    }
    return 0;
}

int quant_head_parse(const char *text, struct quant_scheme *scheme, struct err *e)
{
    bool int8 = strcmp(text, head_names[1]) == 0;
    if (!int8 && strcmp(text, head_names[0]) != 0)
        return err_set(e, -EINVAL, "head: expected fp16 or int8, found \"%.64s\"", text);
    scheme->head_int8 = int8;
    return 0;
}

void quant_describe(const struct quant_scheme *s, char ret_text[QUANT_DESCRIBE_BYTES])
{
    const char *head = s->head_int8 ? ", int8 head" : "";
    const char *name = quant_weights_name(s->weights);
    if (s->weights == QUANT_FP16)
        snprintf(ret_text, QUANT_DESCRIBE_BYTES, "%s", name);
    else if (s->group == QUANT_GROUP_ROW)
        snprintf(ret_text, QUANT_DESCRIBE_BYTES, "%s, one scale per row%s", name, head);
    else if (s->group == QUANT_GROUP_SHARD)
        snprintf(ret_text, QUANT_DESCRIBE_BYTES, "%s, one scale per row and shard (%u)%s", name,
                 s->group_n, head);
    else
        snprintf(ret_text, QUANT_DESCRIBE_BYTES, "%s, one scale per %u columns%s", name, s->group_n,
                 head);
}

static int read_scheme(const json_t *q, struct quant_scheme *s, struct err *e)
{
    const char *text;
    int r = jsonfile_get_string(q, "quant_method", &text, e);
    if (r < 0)
        return r;
    if (strcmp(text, method) != 0)
        return err_set(e, -EINVAL, "quant_method: expected \"%s\", found \"%.64s\"", method, text);
    uint64_t bits = 0, n = 0;
    size_t group = 0, head = 0;
    r = jsonfile_get_u64(q, "bits", 4, 8, &bits, e);
    if (r == 0 && bits != 4 && bits != 8)
        r = err_set(e, -EINVAL, "bits: expected 4 or 8, found %u", (unsigned)bits);
    if (r == 0)
        r = jsonfile_get_choice(q, "group", group_names, ARRAY_LEN(group_names), &group, e);
    if (r == 0 && group == QUANT_GROUP_SHARD)
        r = jsonfile_get_u64(q, "group_shards", 2, QUANT_MAX_SHARDS, &n, e);
    if (r == 0 && group == QUANT_GROUP_COLS)
        r = jsonfile_get_u64(q, "group_size", 32, 128, &n, e);
    if (r == 0 && group == QUANT_GROUP_COLS && !group_size_ok(n))
        r = err_set(e, -EINVAL, "group_size: expected 32, 64 or 128, found %u", (unsigned)n);
    if (r == 0 && json_object_get(q, "head"))
        r = jsonfile_get_choice(q, "head", head_names, ARRAY_LEN(head_names), &head, e);
    if (r == 0)
        *s = (struct quant_scheme){.weights = bits == 4 ? QUANT_INT4 : QUANT_INT8,
                                   .group = (enum quant_group)group,
                                   .group_n = (uint32_t)n,
                                   .head_int8 = head == 1};
    return r;
}

int quant_from_json(const struct json_t *config, struct quant_scheme *ret_scheme, struct err *e)
{
    *ret_scheme = (struct quant_scheme){.weights = QUANT_FP16};
    if (!json_object_get(config, "quantization_config"))
        return 0;
    json_t *q = NULL;
    int r = jsonfile_get_object(config, "quantization_config", &q, e);
    if (r < 0)
        return r;
    r = read_scheme(q, ret_scheme, e);
    if (r < 0)
        err_prefix(e, "quantization_config");
    return r;
}

int quant_to_json(const struct quant_scheme *s, struct json_t *config)
{
    if (s->weights == QUANT_FP16)
        return 0;
    json_t *q = json_object();
    if (!q)
        return -ENOMEM;
    int r = 0;
    r |= json_object_set_new(q, "quant_method", json_string(method));
    r |= json_object_set_new(q, "bits", json_integer(quant_bits(s->weights)));
    r |= json_object_set_new(q, "group", json_string(group_names[s->group]));
    if (s->group == QUANT_GROUP_SHARD)
        r |= json_object_set_new(q, "group_shards", json_integer(s->group_n));
    if (s->group == QUANT_GROUP_COLS)
        r |= json_object_set_new(q, "group_size", json_integer(s->group_n));
    if (s->head_int8)
        r |= json_object_set_new(q, "head", json_string(head_names[1]));
    r |= json_object_set_new(q, "sym", json_true());
    r |= json_object_set_new(q, "scale_dtype", json_string("float16"));
    r |= json_object_set_new(config, "quantization_config", q);
    return r ? -ENOMEM : 0;
}

bool quant_applies(const struct quant_scheme *s, const struct shard_tensor *t)
{
    return s->weights != QUANT_FP16 && t->role == SHARD_ROLE_LINEAR;
}

uint32_t quant_n_groups(const struct quant_scheme *s, const struct shard_tensor *t)
{
    if (!quant_applies(s, t))
        return 0;
    switch (s->group) {
    case QUANT_GROUP_ROW:
        return 1;
    case QUANT_GROUP_SHARD:
        return t->split == SHARD_COLS ? s->group_n : 1;
    case QUANT_GROUP_COLS:
        return (uint32_t)(t->cols / s->group_n);
    }
    assert(false);
    return 0;
}

uint64_t quant_row_bytes(enum quant_weights w, uint64_t cols)
{
    switch (w) {
    case QUANT_FP16:
        return 2 * cols;
    case QUANT_INT8:
        return cols;
    case QUANT_INT4:
        assert(cols % 2 == 0);
        return cols / 2;
    }
    assert(false);
    return 0;
}

int quant_check(const struct quant_scheme *s, const struct arch *a, struct err *e)
{
    if (s->head_int8 && s->weights == QUANT_FP16)
        return err_set(e, -EINVAL, "an INT8 head needs INT4 or INT8 weights, found fp16");
    /* every layer has the same shapes: the first one and what surrounds the layers tell all */
    size_t n = MIN(shard_n_tensors(a), (size_t)64);
    for (size_t i = 0; i < n; i++) {
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        if (!quant_applies(s, &t))
            continue;
        if (s->weights == QUANT_INT4 && t.cols % 2)
            return err_set(e, -EINVAL, "%s: INT4 needs an even number of columns, found %llu",
                           t.name, (unsigned long long)t.cols);
        uint64_t groups =
            s->group == QUANT_GROUP_COLS ? t.cols / s->group_n : (uint64_t)quant_n_groups(s, &t);
        if (groups == 0 || t.cols % groups || (s->group == QUANT_GROUP_COLS && t.cols % s->group_n))
            return err_set(e, -EINVAL,
                           "%s: %llu columns cannot be cut into %s of %u: choose a smaller group "
                           "or one scale per row",
                           t.name, (unsigned long long)t.cols,
                           s->group == QUANT_GROUP_COLS ? "groups" : "a number of shards",
                           s->group_n);
        if (s->weights == QUANT_INT4 && t.cols / groups % 2)
            return err_set(e, -EINVAL,
                           "%s: groups of %llu columns; INT4 needs an even number of columns",
                           t.name, (unsigned long long)(t.cols / groups));
    }
    return 0;
}

int quant_piece_groups(const struct quant_scheme *s, const struct shard_tensor *t,
                       const struct shard_piece *piece, struct quant_groups *ret, struct err *e)
{
    uint32_t n_groups = quant_n_groups(s, t);
    assert(n_groups > 0); /* quant_check */
    uint64_t width = t->cols / n_groups;
    uint64_t end = piece->col0 + piece->n_cols;
    assert(piece->n_cols > 0 && end <= t->cols);
    if (s->weights == QUANT_INT4 && (piece->col0 % 2 || piece->n_cols % 2))
        return err_set(e, -EINVAL,
                       "%s: columns %llu to %llu of a rank do not start and end at whole bytes of "
                       "INT4: use a smaller tensor-parallel degree",
                       t->name, (unsigned long long)piece->col0, (unsigned long long)end);
    uint64_t first = piece->col0 / width, last = (end - 1) / width;
    bool inside_one = first == last;
    bool whole = piece->col0 % width == 0 && end % width == 0;
    if (!inside_one && !whole)
        return err_set(e, -EINVAL,
                       "%s: columns %llu to %llu of a rank cross the borders of its groups of "
                       "%llu columns: use a degree that divides or is a multiple of the %u groups",
                       t->name, (unsigned long long)piece->col0, (unsigned long long)end,
                       (unsigned long long)width, quant_n_groups(s, t));
    ret->group0 = (uint32_t)first;
    ret->n_groups = (uint32_t)(last - first + 1);
    ret->group_cols = (uint32_t)(inside_one ? piece->n_cols : width);
    return 0;
}
