/* jsonfile.c: see jsonfile.h. Nesting is bounded by the parser (2048 levels). */
#include "model/jsonfile.h"

#include <stdlib.h>
#include <string.h>

#include "model/file.h"

int jsonfile_parse(const char *text, size_t size, const char *where, json_t **ret_object,
                   struct err *e)
{
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return err_set(e, -EBADMSG, "%s:%d:%d: not valid JSON: %s", where, error.line, error.column,
                       error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(e, -EBADMSG, "%s: expected a JSON object at the top", where);
    }
    *ret_object = root;
    return 0;
}

int jsonfile_load(const char *path, size_t max_bytes, json_t **ret_object, struct err *e)
{
    struct buf text = {0};
    int r = file_read_all(path, max_bytes, &text, e);
    if (r == 0)
        r = jsonfile_parse(text.data, text.size, path, ret_object, e);
    buf_deinit(&text);
    return r;
}

int jsonfile_format(const json_t *object, struct buf *ret_text)
{
    char *text = json_dumps(object, JSON_INDENT(1) | JSON_REAL_PRECISION(15));
    int r = text ? buf_append_str(ret_text, text) : -ENOMEM;
    if (r == 0)
        r = buf_append_str(ret_text, "\n");
    free(text);
    return r;
}

int jsonfile_save(const char *path, const json_t *object, struct err *e)
{
    struct buf text = {0};
    int r = jsonfile_format(object, &text) < 0 ? err_set(e, -ENOMEM, "%s: out of memory", path)
                                               : file_replace(path, text.data, text.size, e);
    buf_deinit(&text);
    return r;
}

const char *jsonfile_type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

/* The member, or NULL with the message set. */
static const json_t *member(const json_t *object, const char *key, const char *expected,
                            struct err *e)
{
    const json_t *v = json_object_get(object, key);
    if (!v)
        err_set(e, -EINVAL, "%s: missing; expected %s", key, expected);
    return v;
}

int jsonfile_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                     uint64_t *ret_value, struct err *e)
{
    const json_t *v = member(object, key, "a whole number", e);
    if (!v)
        return -EINVAL;
    if (!json_is_number(v))
        return err_set(e, -EINVAL, "%s: expected a whole number, found %s", key,
                       jsonfile_type_name(v));
    double real = json_number_value(v);
    bool whole = json_is_integer(v) ? json_integer_value(v) >= 0
                                    : real >= 0 && real < 0x1p53 && real == (double)(uint64_t)real;
    uint64_t value = 0;
    if (whole)
        value = json_is_integer(v) ? (uint64_t)json_integer_value(v) : (uint64_t)real;
    if (!whole || value < min || value > max)
        return err_set(e, -EINVAL, "%s: expected a whole number from %llu to %llu, found %.17g",
                       key, (unsigned long long)min, (unsigned long long)max, real);
    *ret_value = value;
    return 0;
}

int jsonfile_get_double(const json_t *object, const char *key, double min, double max,
                        double *ret_value, struct err *e)
{
    const json_t *v = member(object, key, "a number", e);
    if (!v)
        return -EINVAL;
    if (!json_is_number(v))
        return err_set(e, -EINVAL, "%s: expected a number, found %s", key, jsonfile_type_name(v));
    double value = json_number_value(v);
    if (!(value >= min && value <= max))
        return err_set(e, -EINVAL, "%s: expected a number from %g to %g, found %g", key, min, max,
                       value);
    *ret_value = value;
    return 0;
}

int jsonfile_get_bool(const json_t *object, const char *key, bool *ret_value, struct err *e)
{
    const json_t *v = member(object, key, "true or false", e);
    if (!v)
        return -EINVAL;
    if (!json_is_boolean(v))
        return err_set(e, -EINVAL, "%s: expected true or false, found %s", key,
                       jsonfile_type_name(v));
    *ret_value = json_is_true(v);
    return 0;
}

int jsonfile_get_string(const json_t *object, const char *key, const char **ret_text, struct err *e)
{
    const json_t *v = member(object, key, "a string", e);
    if (!v)
        return -EINVAL;
    if (!json_is_string(v))
        return err_set(e, -EINVAL, "%s: expected a string, found %s", key, jsonfile_type_name(v));
    *ret_text = json_string_value(v);
    return 0;
}

int jsonfile_get_object(const json_t *object, const char *key, json_t **ret_object, struct err *e)
{
    const json_t *v = member(object, key, "an object", e);
    if (!v)
        return -EINVAL;
    if (!json_is_object(v))
        return err_set(e, -EINVAL, "%s: expected an object, found %s", key, jsonfile_type_name(v));
    *ret_object = json_object_get(object, key);
    return 0;
}

int jsonfile_get_choice(const json_t *object, const char *key, const char *const *names, size_t n,
                        size_t *ret_idx, struct err *e)
{
    const char *text = "";
    int r = jsonfile_get_string(object, key, &text, e);
    if (r < 0)
        return r;
    struct buf allowed = {0};
    for (size_t i = 0; i < n; i++) {
        if (strcmp(text, names[i]) == 0) {
            buf_deinit(&allowed);
            *ret_idx = i;
            return 0;
        }
        buf_printf(&allowed, "%s\"%s\"", i ? ", " : "", names[i]);
    }
    r = err_set(e, -EINVAL, "%s: expected one of %s; found \"%.64s\"", key,
                allowed.data ? allowed.data : "", text);
    buf_deinit(&allowed);
    return r;
}
