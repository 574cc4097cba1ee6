/* conf.c: option tables: values from text, defaults, look-up. See conf.h; the YAML reader is in
 * conf_yaml.c, the printer in conf_show.c. No I/O here. */
#include "base/conf.h"

#include <assert.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/conf_internal.h"
#include "base/util.h"

struct unit {
    const char *name;
    uint64_t factor;
};

/* Largest first: the printer takes the first that divides. */
static const struct unit size_units[] = {
    {"TiB", UINT64_C(1) << 40},
    {"GiB", UINT64_C(1) << 30},
    {"MiB", UINT64_C(1) << 20},
    {"KiB", UINT64_C(1) << 10},
};
static const struct unit duration_units[] = {
    {"h", UINT64_C(3600000000000)}, {"m", UINT64_C(60000000000)}, {"s", UINT64_C(1000000000)},
    {"ms", UINT64_C(1000000)},      {"us", UINT64_C(1000)},
};

int conf_find(const struct conf_table *t, const char *path)
{
    for (size_t i = 0; i != t->n; i++) {
        if (strcmp(t->options[i].path, path) == 0)
            return (int)i;
    }
    return -1;
}

bool conf_is_section(const struct conf_table *t, const char *path)
{
    size_t n = strlen(path);
    for (size_t i = 0; i != t->n; i++) {
        const char *p = t->options[i].path;
        if (strncmp(p, path, n) == 0 && p[n] == '.')
            return true;
    }
    return false;
}

/* Levenshtein distance, words of at most 95 bytes. */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { MAX_WORD = 95 };
    size_t na = strlen(a), nb = strlen(b);
    if (na > MAX_WORD || nb > MAX_WORD)
        return 1000;
    unsigned row[MAX_WORD + 1];
    for (size_t j = 0; j <= nb; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned above = row[j];
            unsigned replace = diagonal + (a[i - 1] != b[j - 1]);
            row[j] = MIN(MIN(above, row[j - 1]) + 1, replace);
            diagonal = above;
        }
    }
    return row[nb];
}

static const char *leaf_of(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

const char *conf_nearest(const struct conf_table *t, const char *path, char *buffer, size_t size)
{
    unsigned best = 1000;
    buffer[0] = '\0';
    for (size_t i = 0; i != t->n; i++) {
        const char *p = t->options[i].path;
        /* The option and every section above it are candidates. */
        for (size_t n = strlen(p); n; n--) {
            if (p[n] != '\0' && p[n] != '.')
                continue;
            char candidate[96];
            snprintf(candidate, sizeof candidate, "%.*s", (int)n, p);
            unsigned d = edit_distance(path, candidate);
            /* The right key under the wrong parent is a common slip. */
            if (strcmp(leaf_of(path), leaf_of(candidate)) == 0)
                d = MIN(d, 2u);
            if (d < best) {
                best = d;
                snprintf(buffer, size, "%s", candidate);
            }
        }
    }
    size_t n = strlen(path);
    return best <= MAX(n / 3, (size_t)2) ? buffer : NULL;
}

void conf_format_size(uint64_t bytes, struct buf *ret_text)
{
    for (size_t i = 0; bytes && i != ARRAY_LEN(size_units); i++) {
        if (bytes % size_units[i].factor == 0) {
            buf_printf(ret_text, "%llu%s", (unsigned long long)(bytes / size_units[i].factor),
                       size_units[i].name);
            return;
        }
    }
    buf_printf(ret_text, "%llu", (unsigned long long)bytes);
}

void conf_format_duration(int64_t ns, struct buf *ret_text)
{
    assert(ns >= 0);
    for (size_t i = 0; ns && i != ARRAY_LEN(duration_units); i++) {
        if ((uint64_t)ns % duration_units[i].factor == 0) {
            buf_printf(ret_text, "%llu%s",
                       (unsigned long long)((uint64_t)ns / duration_units[i].factor),
                       duration_units[i].name);
            return;
        }
    }
    buf_printf(ret_text, ns ? "%lldns" : "%llds", (long long)ns);
}

static void describe_number(const struct conf_option *o, uint64_t v, struct buf *text)
{
    if (o->type == CONF_SIZE)
        conf_format_size(v, text);
    else if (o->type == CONF_DURATION)
        conf_format_duration((int64_t)v, text);
    else
        buf_printf(text, "%llu", (unsigned long long)v);
}

static const char *const type_words[] = {
    [CONF_STRING] = "a text",
    [CONF_BOOL] = "true or false",
    [CONF_UINT] = "a whole number",
    [CONF_SIZE] = "a size in bytes, KiB, MiB, GiB or TiB",
    [CONF_DURATION] = "a time in us, ms, s, m or h",
    [CONF_ENUM] = "one of",
    [CONF_LIST] = "a list",
};

void conf_describe_range(const struct conf_option *o, struct buf *text)
{
    buf_append_str(text, type_words[o->type]);
    if (o->type == CONF_ENUM) {
        for (size_t i = 0; o->choices[i]; i++)
            buf_printf(text, "%s %s", i ? "," : "", o->choices[i]);
    } else if (o->type == CONF_STRING) {
        if (o->min)
            buf_printf(text, " of %llu to %llu bytes", (unsigned long long)o->min,
                       (unsigned long long)(o->max ? o->max : CONF_MAX_VALUE_BYTES));
        else if (o->max)
            buf_printf(text, " of at most %llu bytes", (unsigned long long)o->max);
    } else if (o->type == CONF_LIST) {
        buf_printf(text, " of %llu to %llu items", (unsigned long long)o->min,
                   (unsigned long long)(o->max ? o->max : CONF_MAX_LIST));
    } else if (o->type != CONF_BOOL) {
        buf_append_str(text, " from ");
        describe_number(o, o->min, text);
        buf_append_str(text, " to ");
        describe_number(o, o->max, text);
    }
}

/* "123" + unit -> number; the unit is required when there is a table and the number is not bare. */
static int parse_number(const char *text, const struct unit *units, size_t n_units, bool bare,
                        uint64_t *ret)
{
    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    uint64_t v = 0;
    const char *p = text;
    for (; isdigit((unsigned char)*p); p++) {
        if (__builtin_mul_overflow(v, UINT64_C(10), &v) ||
            __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return -ERANGE;
    }
    while (*p == ' ')
        p++;
    if (*p == '\0') {
        *ret = v;
        return bare || v == 0 ? 0 : -EINVAL;
    }
    for (size_t i = 0; i != n_units; i++) {
        if (strcmp(p, units[i].name) == 0)
            return __builtin_mul_overflow(v, units[i].factor, ret) ? -ERANGE : 0;
    }
    return -EINVAL;
}

static int parse_bool(const char *text, bool *ret)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};
    for (size_t i = 0; i != ARRAY_LEN(words); i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *ret = i % 2;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_enum(const struct conf_option *o, const char *text, int *ret)
{
    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(text, o->choices[i]) == 0) {
            *ret = i;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_string(const struct conf_option *o, const char *text, char **field)
{
    size_t n = strlen(text);
    if (n < o->min || n > (o->max ? o->max : CONF_MAX_VALUE_BYTES))
        return -ERANGE;
    char *copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    free(*field);
    *field = copy;
    return 0;
}

static int parse_quantity(const struct conf_option *o, const char *text, void *field)
{
    uint64_t v;
    int r;
    if (o->type == CONF_UINT)
        r = parse_number(text, NULL, 0, true, &v);
    else if (o->type == CONF_SIZE)
        r = parse_number(text, size_units, ARRAY_LEN(size_units), true, &v);
    else
        r = parse_number(text, duration_units, ARRAY_LEN(duration_units), false, &v);
    if (r < 0)
        return r;
    if (v < o->min || v > o->max)
        return -ERANGE;
    if (o->type == CONF_DURATION)
        *(int64_t *)field = (int64_t)v;
    else
        *(uint64_t *)field = v;
    return 0;
}

int conf_parse_scalar(const struct conf_option *o, void *values, const char *text,
                      struct buf *ret_expected)
{
    void *field = conf_field(o, values);
    int r;
    if (o->type == CONF_STRING)
        r = parse_string(o, text, field);
    else if (o->type == CONF_BOOL)
        r = parse_bool(text, field);
    else if (o->type == CONF_ENUM)
        r = parse_enum(o, text, field);
    else if (o->type == CONF_LIST)
        r = -EINVAL;
    else
        r = parse_quantity(o, text, field);
    if (r < 0 && r != -ENOMEM)
        conf_describe_range(o, ret_expected);
    return r;
}

int conf_list_append(struct conf_list *l, const char *text)
{
    if (l->n == CONF_MAX_LIST)
        return -ERANGE;
    char **items = realloc(l->items, (l->n + 1) * sizeof *items);
    if (!items)
        return -ENOMEM;
    l->items = items;
    items[l->n] = strdup(text);
    if (!items[l->n])
        return -ENOMEM;
    l->n++;
    return 0;
}

void conf_list_clear(struct conf_list *l)
{
    for (size_t i = 0; i != l->n; i++)
        free(l->items[i]);
    free(l->items);
    *l = (struct conf_list){0};
}

int conf_check_list(const struct conf_option *o, const struct conf_list *l,
                    struct buf *ret_expected)
{
    if (l->n >= o->min && l->n <= (o->max ? o->max : CONF_MAX_LIST))
        return 0;
    conf_describe_range(o, ret_expected);
    return -ERANGE;
}

/* "a,b,c" -> items; spaces around commas are dropped; "" = no items. */
static int list_from_text(struct conf_list *l, const char *text)
{
    conf_list_clear(l);
    while (*text) {
        char item[CONF_MAX_VALUE_BYTES];
        size_t n = strcspn(text, ",");
        if (n >= sizeof item)
            return -ERANGE;
        const char *start = text;
        text += n + (text[n] == ',');
        while (n && *start == ' ') {
            start++;
            n--;
        }
        while (n && start[n - 1] == ' ')
            n--;
        if (n == 0)
            return -EINVAL;
        memcpy(item, start, n);
        item[n] = '\0';
        int r = conf_list_append(l, item);
        if (r < 0)
            return r;
    }
    return 0;
}

static int set_from_text(const struct conf_option *o, void *values, const char *text,
                         struct buf *ret_expected)
{
    if (o->type != CONF_LIST)
        return conf_parse_scalar(o, values, text, ret_expected);
    struct conf_list *l = conf_field(o, values);
    int r = list_from_text(l, text);
    if (r == 0)
        return conf_check_list(o, l, ret_expected);
    if (r != -ENOMEM)
        conf_describe_range(o, ret_expected);
    return r;
}

int conf_defaults(const struct conf_table *t, void *values)
{
    assert(t->n <= CONF_MAX_OPTIONS);
    for (size_t i = 0; i != t->n; i++) {
        struct buf expected = {0};
        int r = set_from_text(&t->options[i], values, t->options[i].default_value, &expected);
        buf_deinit(&expected);
        if (r == -ENOMEM)
            return r;
        assert(r == 0);
    }
    return 0;
}

void conf_deinit(const struct conf_table *t, void *values)
{
    for (size_t i = 0; i != t->n; i++) {
        const struct conf_option *o = &t->options[i];
        if (o->type == CONF_STRING) {
            char **field = conf_field(o, values);
            free(*field);
            *field = NULL;
        } else if (o->type == CONF_LIST) {
            conf_list_clear(conf_field(o, values));
        }
    }
}

int conf_set(const struct conf_table *t, void *values, const char *path, const char *value,
             const char *where, struct err *e)
{
    int i = conf_find(t, path);
    if (i < 0) {
        char near[128];
        const char *hint = conf_nearest(t, path, near, sizeof near);
        return err_set(e, -EINVAL, "%s: unknown key \"%.96s\"%s%s%s", where, path,
                       hint ? "; did you mean \"" : "", hint ? hint : "", hint ? "\"?" : "");
    }
    struct buf expected = {0};
    int r = set_from_text(&t->options[i], values, value, &expected);
    if (r == -ENOMEM)
        err_set(e, r, "%s: out of memory", where);
    else if (r < 0)
        r = err_set(e, -EINVAL, "%s: %s: expected %s, found \"%.96s\"", where, path, expected.data,
                    value);
    buf_deinit(&expected);
    return r;
}

int conf_set_pair(const struct conf_table *t, void *values, const char *pair, const char *where,
                  struct err *e)
{
    const char *equals = strchr(pair, '=');
    char path[128];
    if (!equals || (size_t)(equals - pair) >= sizeof path)
        return err_set(e, -EINVAL, "%s: expected KEY=VALUE, found \"%.96s\"", where, pair);
    memcpy(path, pair, (size_t)(equals - pair));
    path[equals - pair] = '\0';
    return conf_set(t, values, path, equals + 1, where, e);
}

int conf_error(const struct conf_table *t, const struct conf_origin *origin, const char *path,
               struct err *e, const char *format, ...)
{
    char message[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    int i = conf_find(t, path);
    assert(i >= 0);
    if (origin && origin->line[i])
        return err_set(e, -EINVAL, "%s:%u: %s: %s", origin->file, origin->line[i], path, message);
    return err_set(e, -EINVAL, "%s: %s", path, message);
}
