/* logits_cases.c: see logits_cases.h. */
#include "cli/logits_cases.h"

#include <assert.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/npy.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/safetensors.h"

enum {
    MAX_MANIFEST_BYTES = 64 << 20,
    MAX_MASK_BYTES = 256 << 20,
    MAX_CASES = 4096,
    MAX_SAMPLES = 256,
};

struct limits {
    uint32_t vocab, max_seq;
};

/* [n] integers in [0, limit) out of a JSON array -> a new array. */
static int read_ids(const json_t *array, const char *key, uint32_t limit, uint32_t max_n,
                    int32_t **ret, uint32_t *ret_n, struct err *e)
{
    size_t n = json_array_size(array); /* 0 for anything but an array */
    if (n < 1 || n > max_n)
        return err_set(e, -EINVAL, "%s: expected a list of 1..%u numbers, found %zu", key, max_n,
                       n);
    int32_t *ids = alloc_array(n, sizeof *ids);
    if (!ids)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i != n; i++) {
        const json_t *v = json_array_get(array, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= (json_int_t)limit) {
            free(ids);
            return err_set(e, -EINVAL, "%s[%zu]: expected a number in [0, %u), found %s", key, i,
                           limit, json_is_integer(v) ? "another" : "something else");
        }
        ids[i] = (int32_t)id;
    }
    *ret = ids;
    *ret_n = (uint32_t)n;
    return 0;
}

/* Position ids of a sequence of n tokens; without any 0, 1, 2, ... */
static int read_positions(const json_t *positions, const struct limits *l, uint32_t n,
                          int32_t **ret, struct err *e)
{
    if (!positions) {
        *ret = alloc_array(n, sizeof **ret);
        for (uint32_t i = 0; *ret && i != n; i++)
            (*ret)[i] = (int32_t)i;
        return *ret ? 0 : err_set(e, -ENOMEM, "out of memory");
    }
    if (json_is_array(json_array_get(positions, 0)))
        return err_set(e, -EINVAL,
                       "position_ids: two-dimensional positions belong to another architecture");
    uint32_t n_positions;
    int r = read_ids(positions, "position_ids", l->max_seq, n, ret, &n_positions, e);
    if (r == 0 && n_positions != n)
        return err_set(e, -EINVAL, "position_ids: expected %u, found %u", n, n_positions);
    return r;
}

static int read_sample(const json_t *ids, const json_t *positions, const struct limits *l,
                       const char *key, struct logits_sample *s, struct err *e)
{
    int r = read_ids(ids, key, l->vocab, l->max_seq, &s->ids, &s->n_valid, e);
    return r < 0 ? r : read_positions(positions, l, s->n_valid, &s->positions, e);
}

static int init_case(struct logits_case *c, uint32_t n_samples, const char *name, struct err *e)
{
    c->samples = alloc_array(n_samples, sizeof *c->samples);
    c->n_samples = c->samples ? n_samples : 0;
    size_t size = strlen(name) + sizeof ".logits";
    c->tensor_name = malloc(size);
    if (!c->samples || !c->tensor_name)
        return err_set(e, -ENOMEM, "out of memory");
    snprintf(c->tensor_name, size, "%s.logits", name);
    if (!st_name_ok(c->tensor_name))
        return err_set(e, -EINVAL, "name: expected letters, digits, '.', '_' and '-'");
    return 0;
}

/* An entry of "cases". */
static int read_plain_case(const json_t *o, size_t idx, const struct limits *l,
                           struct logits_case *c, struct err *e)
{
    char name[32];
    snprintf(name, sizeof name, "case%zu", idx);
    int r = init_case(c, 1, name, e);
    if (r == 0)
        r = read_sample(json_object_get(o, "input_ids"), json_object_get(o, "position_ids"), l,
                        "input_ids", &c->samples[0], e);
    if (r < 0)
        return r;
    c->n_rows = c->samples[0].n_valid;
    static const char *const keys[] = {"prefix_length", "bidirectional_prefix"};
    for (size_t i = 0; i != ARRAY_LEN(keys); i++) {
        const json_t *v = json_object_get(o, keys[i]);
        if (!v)
            continue;
        json_int_t n = json_integer_value(v);
        if (!json_is_integer(v) || n < 0 || n > (json_int_t)c->n_rows)
            return err_set(e, -EINVAL, "%s: expected a number in [0, %u]", keys[i], c->n_rows);
        c->samples[0].prefix_len = (uint32_t)n;
    }
    return 0;
}

/* ---- entries of "logits" ---- */

/* The prefix that the mask [n_rows, n_rows] of one sample describes for its valid rows. */
static int prefix_of_mask(const uint8_t *mask, uint32_t n_rows, uint32_t n_valid,
                          uint32_t *ret_prefix, struct err *e)
{
    uint32_t prefix = 0; /* row 0 sees [0, max(prefix, 1)) */
    while (prefix != n_rows && mask[prefix])
        prefix++;
    for (uint32_t row = 0; row != n_valid; row++) {
        uint32_t end = MAX(prefix, row + 1);
        for (uint32_t col = 0; col != n_rows; col++) {
            if ((mask[(size_t)row * n_rows + col] != 0) != (col < end))
                return err_set(e, -EINVAL,
                               "the mask is not that of a prefix: row %u, column %u (prefix %u)",
                               row, col, prefix);
        }
    }
    if (prefix > n_valid)
        return err_set(e, -EINVAL, "the mask's prefix of %u is longer than the %u valid rows",
                       prefix, n_valid);
    *ret_prefix = prefix > 1 ? prefix : 0;
    return 0;
}

static int apply_mask(const char *folder, const json_t *o, struct logits_case *c, struct err *e)
{
    const char *name = json_string_value(json_object_get(o, "allowed"));
    if (!name)
        return json_object_get(o, "allowed")
                   ? err_set(e, -EINVAL, "allowed: expected the name of a .npy file")
                   : 0;
    char *path = file_join(folder, name);
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    struct npy mask = {0};
    int r = npy_load(path, NPY_U8, 3, MAX_MASK_BYTES, &mask, e);
    if (r == 0 &&
        (mask.shape[0] != c->n_samples || mask.shape[1] != c->n_rows || mask.shape[2] != c->n_rows))
        r = err_set(e, -EINVAL, "%s: expected shape [%u, %u, %u], found [%llu, %llu, %llu]", path,
                    c->n_samples, c->n_rows, c->n_rows, (unsigned long long)mask.shape[0],
                    (unsigned long long)mask.shape[1], (unsigned long long)mask.shape[2]);
    for (uint32_t i = 0; i != c->n_samples && r == 0; i++) {
        struct logits_sample *s = &c->samples[i];
        const uint8_t *own = (const uint8_t *)mask.data + (size_t)i * c->n_rows * c->n_rows;
        r = prefix_of_mask(own, c->n_rows, s->n_valid, &s->prefix_len, e);
        if (r < 0)
            err_prefix(e, "%s: sample %u", path, i);
    }
    npy_deinit(&mask);
    free(path);
    return r;
}

static int apply_valid_lengths(const json_t *o, struct logits_case *c, struct err *e)
{
    const json_t *lengths = json_object_get(o, "valid_lengths");
    if (!lengths)
        return 0;
    int32_t *n_valid;
    uint32_t n;
    int r = read_ids(lengths, "valid_lengths", c->n_rows + 1, c->n_samples, &n_valid, &n, e);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i != n; i++) {
        if (n_valid[i] == 0)
            r = err_set(e, -EINVAL, "valid_lengths[%u]: expected at least 1", i);
        c->samples[i].n_valid = (uint32_t)n_valid[i];
    }
    free(n_valid);
    if (r == 0 && n != c->n_samples)
        r = err_set(e, -EINVAL, "valid_lengths: expected %u, found %u", c->n_samples, n);
    return r;
}

static int read_batched_case(const json_t *o, const char *folder, const struct limits *l,
                             struct logits_case *c, struct err *e)
{
    const char *name = json_string_value(json_object_get(o, "name"));
    const json_t *tokens = json_object_get(o, "tokens");
    const json_t *positions = json_object_get(o, "position_ids");
    size_t n = json_array_size(tokens);
    if (!name || n < 1 || n > MAX_SAMPLES || (positions && json_array_size(positions) != n))
        return err_set(e, -EINVAL,
                       "expected a name, 1..%d lists of tokens and as many lists of position_ids",
                       MAX_SAMPLES);
    c->batched = true;
    int r = init_case(c, (uint32_t)n, name, e);
    for (size_t i = 0; i != n && r == 0; i++) {
        r = read_sample(json_array_get(tokens, i), json_array_get(positions, i), l, "tokens",
                        &c->samples[i], e);
        if (r == 0 && i && c->samples[i].n_valid != c->n_rows)
            r = err_set(e, -EINVAL, "tokens: all lists must be as long as the first, %u",
                        c->n_rows);
        c->n_rows = c->samples[i].n_valid;
    }
    if (r == 0)
        r = apply_valid_lengths(o, c, e);
    return r < 0 ? r : apply_mask(folder, o, c, e);
}

/* ---- the manifest ---- */

static int read_cases(const json_t *manifest, const char *folder, const struct limits *l,
                      struct logits_cases *ret, struct err *e)
{
    const json_t *plain = json_object_get(manifest, "cases");
    const json_t *batched = json_object_get(manifest, "logits");
    const json_t *list = json_is_array(plain) ? plain : batched;
    size_t n = json_array_size(list);
    if (n < 1 || n > MAX_CASES)
        return err_set(e, -EINVAL, "expected a list \"cases\" or \"logits\" of 1..%d entries",
                       MAX_CASES);
    ret->cases = alloc_array(n, sizeof *ret->cases);
    if (!ret->cases)
        return err_set(e, -ENOMEM, "out of memory");
    ret->n = n;
    for (size_t i = 0; i != n; i++) {
        const json_t *o = json_array_get(list, i);
        int r = list == plain ? read_plain_case(o, i, l, &ret->cases[i], e)
                              : read_batched_case(o, folder, l, &ret->cases[i], e);
        if (r < 0) {
            err_prefix(e, "%s[%zu]", list == plain ? "cases" : "logits", i);
            return r;
        }
        assert(ret->cases[i].tensor_name);
        for (size_t j = 0; j != i; j++) {
            if (strcmp(ret->cases[i].tensor_name, ret->cases[j].tensor_name) == 0)
                return err_set(e, -EINVAL, "name: %s is there twice", ret->cases[i].tensor_name);
        }
    }
    return 0;
}

int logits_cases_load(const char *manifest, uint32_t vocab, uint32_t max_seq,
                      struct logits_cases *ret, struct err *e)
{
    json_t *root = NULL;
    int r = jsonfile_load(manifest, MAX_MANIFEST_BYTES, &root, e);
    if (r < 0)
        return r;
    const char *slash = strrchr(manifest, '/');
    char *folder = slash ? strndup(manifest, (size_t)(slash - manifest)) : strdup(".");
    struct limits l = {vocab, max_seq};
    struct logits_cases cases = {0};
    if (!folder)
        r = err_set(e, -ENOMEM, "out of memory");
    else
        r = read_cases(root, folder, &l, &cases, e);
    free(folder);
    json_decref(root);
    if (r < 0) {
        logits_cases_deinit(&cases);
        err_prefix(e, "%s", manifest);
        return r;
    }
    *ret = cases;
    return 0;
}

void logits_cases_deinit(struct logits_cases *c)
{
    for (size_t i = 0; i != c->n; i++) {
        struct logits_case *k = &c->cases[i];
        for (uint32_t j = 0; j != k->n_samples; j++) {
            free(k->samples[j].ids);
            free(k->samples[j].positions);
        }
        free(k->samples);
        free(k->tensor_name);
    }
    free(c->cases);
    *c = (struct logits_cases){0};
}
