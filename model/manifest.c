/* manifest.c: see manifest.h. */
#include "model/manifest.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/jsonfile.h"
#include "model/safetensors.h"

static const char format[] = "glmd-model";
enum { FORMAT_VERSION = 1, KNOWN_ANSWER_DIGITS = 16 };

void manifest_list_deinit(struct manifest_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->entries[i].name);
    free(l->entries);
    *l = (struct manifest_list){0};
}

void manifest_deinit(struct manifest *m)
{
    manifest_list_deinit(&m->files);
    manifest_list_deinit(&m->tensors);
    json_decref(m->source);
    *m = (struct manifest){0};
}

int manifest_add(struct manifest_list *l, const char *name, uint64_t bytes,
                 const struct checksum *sum)
{
    if (l->n == l->capacity) {
        size_t capacity = MAX((size_t)64, 2 * l->capacity);
        struct manifest_entry *grown = realloc(l->entries, capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        l->entries = grown;
        l->capacity = capacity;
    }
    char *copy = strdup(name);
    if (!copy)
        return -ENOMEM;
    l->entries[l->n++] = (struct manifest_entry){.name = copy, .bytes = bytes, .sum = *sum};
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct manifest_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static void sort_list(struct manifest_list *l)
{
    if (l->n)
        qsort(l->entries, l->n, sizeof *l->entries, compare_names);
}

int manifest_complete(struct manifest *m)
{
    sort_list(&m->files);
    sort_list(&m->tensors);
    return manifest_digest(&m->tensors, &m->digest);
}

const struct manifest_entry *manifest_find(const struct manifest_list *l, const char *name)
{
    const struct manifest_entry key = {.name = (char *)name};
    return l->n ? bsearch(&key, l->entries, l->n, sizeof *l->entries, compare_names) : NULL;
}

int manifest_digest(const struct manifest_list *tensors, struct checksum *ret)
{
    struct checksum_state *s = checksum_new();
    if (!s)
        return -ENOMEM;
    for (size_t i = 0; i < tensors->n; i++) {
        const struct manifest_entry *t = &tensors->entries[i];
        checksum_update(s, t->name, strlen(t->name) + 1);
        checksum_update(s, t->sum.bytes, sizeof t->sum.bytes);
    }
    checksum_final(s, ret);
    checksum_free(s);
    return 0;
}

json_t *manifest_list_to_json(const struct manifest_list *l)
{
    json_t *object = json_object();
    for (size_t i = 0; i < l->n && object; i++) {
        const struct manifest_entry *t = &l->entries[i];
        char hex[CHECKSUM_HEX_BYTES];
        checksum_hex(&t->sum, hex);
        json_t *entry = json_pack("{s:I, s:s}", "bytes", (json_int_t)t->bytes, "xxh3_128", hex);
        if (json_object_set_new(object, t->name, entry) < 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

int manifest_list_from_json(const json_t *object, struct manifest_list *ret, struct err *e)
{
    const char *name;
    json_t *entry;
    *ret = (struct manifest_list){0};
    json_object_foreach((json_t *)object, name, entry)
    {
        uint64_t bytes = 0;
        const char *hex = "";
        struct checksum sum;
        int r = 0;
        if (!st_name_ok(name) || !json_is_object(entry))
            r = err_set(e, -EINVAL, "\"%.64s\": expected a name of [A-Za-z0-9._-] and an object",
                        name);
        if (r == 0)
            r = jsonfile_get_u64(entry, "bytes", 0, INT64_MAX, &bytes, e);
        if (r == 0)
            r = jsonfile_get_string(entry, "xxh3_128", &hex, e);
        if (r == 0 && checksum_parse(hex, &sum) < 0)
            r = err_set(e, -EINVAL, "%s: xxh3_128: expected 32 hex digits, found \"%.64s\"", name,
                        hex);
        if (r == 0 && manifest_add(ret, name, bytes, &sum) < 0)
            r = err_set(e, -ENOMEM, "out of memory");
        if (r < 0) {
            manifest_list_deinit(ret);
            return r;
        }
    }
    sort_list(ret);
    return 0;
}

static int parse_known_answer(const json_t *root, struct manifest *m, struct err *e)
{
    if (!json_object_get(root, "known_answer"))
        return 0;
    const char *text = "";
    int r = jsonfile_get_string(root, "known_answer", &text, e);
    if (r < 0)
        return r;
    if (strlen(text) != KNOWN_ANSWER_DIGITS ||
        strspn(text, "0123456789abcdef") != KNOWN_ANSWER_DIGITS)
        return err_set(e, -EINVAL, "known_answer: expected %d hex digits, found \"%.64s\"",
                       KNOWN_ANSWER_DIGITS, text);
    m->known_answer = strtoull(text, NULL, 16);
    m->has_known_answer = true;
    return 0;
}

static int parse_head(const json_t *root, struct manifest *m, struct err *e)
{
    const char *text = "";
    uint64_t version = 0;
    int r = jsonfile_get_string(root, "format", &text, e);
    if (r == 0 && strcmp(text, format) != 0)
        r = err_set(e, -EINVAL, "format: expected \"%s\", found \"%.64s\"", format, text);
    if (r == 0)
        r = jsonfile_get_u64(root, "format_version", FORMAT_VERSION, FORMAT_VERSION, &version, e);
    if (r == 0)
        r = jsonfile_get_string(root, "converter", &text, e);
    if (r == 0)
        snprintf(m->converter, sizeof m->converter, "%s", text);
    json_t *source = NULL;
    if (r == 0)
        r = jsonfile_get_object(root, "source", &source, e);
    if (r == 0)
        m->source = json_incref(source);
    return r;
}

static int parse_list(const json_t *root, const char *key, struct manifest_list *l, struct err *e)
{
    json_t *object = NULL;
    int r = jsonfile_get_object(root, key, &object, e);
    if (r < 0)
        return r;
    r = manifest_list_from_json(object, l, e);
    return r < 0 ? err_prefix(e, "%s", key) : 0;
}

static int parse_digest(const json_t *root, struct manifest *m, struct err *e)
{
    const char *text = "";
    struct checksum found;
    int r = jsonfile_get_string(root, "digest", &text, e);
    if (r == 0 && checksum_parse(text, &m->digest) < 0)
        r = err_set(e, -EINVAL, "digest: expected 32 hex digits, found \"%.64s\"", text);
    if (r == 0 && manifest_digest(&m->tensors, &found) < 0)
        r = err_set(e, -ENOMEM, "out of memory");
    if (r == 0 && !checksum_equal(&found, &m->digest))
        r = err_set(e, -EBADMSG,
                    "digest: does not fit the tensors' checksums: the file was "
                    "changed or is damaged");
    return r;
}

int manifest_from_json(const json_t *root, struct manifest *ret, struct err *e)
{
    *ret = (struct manifest){0};
    int r = parse_head(root, ret, e);
    if (r == 0)
        r = parse_list(root, "files", &ret->files, e);
    if (r == 0)
        r = parse_list(root, "tensors", &ret->tensors, e);
    if (r == 0)
        r = parse_digest(root, ret, e);
    if (r == 0)
        r = parse_known_answer(root, ret, e);
    if (r < 0)
        manifest_deinit(ret);
    return r;
}

int manifest_load(const char *path, struct manifest *ret, struct err *e)
{
    json_t *root = NULL;
    int r = jsonfile_load(path, MANIFEST_MAX_BYTES, &root, e);
    if (r < 0)
        return r;
    r = manifest_from_json(root, ret, e);
    json_decref(root);
    return r < 0 ? err_prefix(e, "%s", path) : 0;
}

int manifest_save(const char *path, const struct manifest *m, struct err *e)
{
    char digest[CHECKSUM_HEX_BYTES], answer[KNOWN_ANSWER_DIGITS + 1];
    checksum_hex(&m->digest, digest);
    snprintf(answer, sizeof answer, "%016" PRIx64, m->known_answer);
    json_t *root = json_object();
    struct {
        const char *key;
        json_t *value;
    } members[] = {
        {"format", json_string(format)},
        {"format_version", json_integer(FORMAT_VERSION)},
        {"converter", json_string(m->converter)},
        {"source", m->source ? json_incref(m->source) : json_object()},
        {"digest", json_string(digest)},
        {"known_answer", m->has_known_answer ? json_string(answer) : json_null()},
        {"files", manifest_list_to_json(&m->files)},
        {"tensors", manifest_list_to_json(&m->tensors)},
    };
    int r = root ? 0 : -ENOMEM;
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        if (json_is_null(members[i].value))
            continue; /* not known yet: no key */
        if (json_object_set_new(root, members[i].key, members[i].value) < 0)
            r = -ENOMEM;
    }
    if (r < 0)
        err_set(e, r, "%s: out of memory", path);
    else
        r = jsonfile_save(path, root, e);
    json_decref(root);
    return r;
}
