/* metrics.c: see metrics.h. The format is Prometheus' text exposition format 0.0.4. */
#include "base/metrics.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { LABEL_BYTES = 256, LABELS_BYTES = METRICS_MAX_LABELS * (2 * LABEL_BYTES + 72) };

static uint32_t n_labels(const struct metrics_family *f)
{
    uint32_t n = 0;
    while (n != METRICS_MAX_LABELS && f->labels[n])
        n++;
    return n;
}

/* ---- the registry ---- */

static bool is_name(const char *s, bool colon)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:";
    static const char digits[] = "0123456789";
    for (size_t i = 0; s[i]; i++) {
        bool ok = strchr(first, s[i]) && (colon || s[i] != ':');
        if (!ok && !(i && strchr(digits, s[i])))
            return false;
    }
    return *s != '\0';
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static int check_family(const struct metrics_family *f, struct err *e)
{
    if (!is_name(f->name, true))
        return err_set(e, -EINVAL, "\"%s\" is not a metric's name", f->name);
    if (!f->help || !*f->help || strchr(f->help, '\n'))
        return err_set(e, -EINVAL, "%s: expected a line that says what it is", f->name);
    if ((f->type == METRICS_COUNTER) != ends_with(f->name, "_total") &&
        f->type != METRICS_HISTOGRAM)
        return err_set(e, -EINVAL, "%s: names of counters, and only those, end in _total", f->name);
    static const char *const reserved[] = {"_bucket", "_count", "_sum"};
    for (size_t i = 0; i != 3; i++) {
        if (ends_with(f->name, reserved[i]))
            return err_set(e, -EINVAL, "%s: %s belongs to histograms", f->name, reserved[i]);
    }
    for (uint32_t i = 0; i != n_labels(f); i++) {
        const char *l = f->labels[i];
        if (!is_name(l, false) || strcmp(l, "le") == 0 || strncmp(l, "__", 2) == 0)
            return err_set(e, -EINVAL, "%s: \"%s\" is not a label's name", f->name, l);
    }
    return 0;
}

int metrics_registry_check(const struct metrics_registry *r, struct err *e)
{
    for (size_t i = 0; i != r->n; i++) {
        int code = check_family(&r->families[i], e);
        for (size_t j = 0; code == 0 && j != i; j++) {
            if (strcmp(r->families[i].name, r->families[j].name) == 0)
                code = err_set(e, -EINVAL, "%s stands twice", r->families[i].name);
        }
        if (code < 0)
            return code;
    }
    return 0;
}

uint64_t metrics_histogram_count(const struct metrics_histogram *h)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i <= h->buckets->n; i++)
        n += h->counts[i];
    return n;
}

/* ---- the text ---- */

void metrics_writer_init(struct metrics_writer *w, const struct metrics_registry *r,
                         struct buf *out)
{
    *w = (struct metrics_writer){.registry = r, .out = out};
}

__attribute__((format(printf, 2, 3))) static void print(struct metrics_writer *w,
                                                        const char *format, ...)
{
    char text[LABELS_BYTES + 512];
    if (w->code < 0)
        return;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < sizeof text);
    w->code = buf_append(w->out, text, (size_t)n);
}

/* Label values escape '\', '"' and the newline. Nobody needs longer ones than LABEL_BYTES. */
static size_t escape(char *dst, const char *value)
{
    char copy[LABEL_BYTES];
    size_t n = 0, size = strnlen(value, sizeof copy - 1);
    memcpy(copy, value, size);
    copy[size] = '\0';
    utf8_repair(copy, size);
    for (const char *p = copy; *p; p++) {
        if (*p == '\\' || *p == '"' || *p == '\n')
            dst[n++] = '\\';
        dst[n++] = *p == '\n' ? 'n' : *p;
    }
    dst[n] = '\0';
    return n;
}

/* a="1",b="2" of the family's labels. */
static void make_labels(const struct metrics_family *f, va_list values, char ret[LABELS_BYTES])
{
    size_t n = 0;
    ret[0] = '\0';
    for (uint32_t i = 0; i != n_labels(f); i++) {
        const char *value = va_arg(values, const char *);
        assert(value);
        n += (size_t)snprintf(ret + n, 72, "%s%.64s=\"", i ? "," : "", f->labels[i]);
        n += escape(ret + n, value);
        ret[n++] = '"';
        ret[n] = '\0';
    }
}

/* The shortest text that reads back as the same number. */
static void number_text(double value, char ret[40])
{
    if (isnan(value) || isinf(value)) {
        snprintf(ret, 40, "%s", isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
        return;
    }
    if (value >= 0 && value < 1e15 && value == (double)(long long)value) {
        snprintf(ret, 40, "%lld", (long long)value);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(ret, 40, "%.*g", digits, value);
        if (strtod(ret, NULL) == value)
            return;
    }
}

static void put(struct metrics_writer *w, const char *suffix, const char *labels, const char *more,
                const char *value)
{
    bool any = *labels || *more;
    const char *const parts[] = {w->family->name,
                                 suffix,
                                 any ? "{" : "",
                                 labels,
                                 *labels && *more ? "," : "",
                                 more,
                                 any ? "} " : " ",
                                 value,
                                 "\n"};
    for (size_t i = 0; w->code == 0 && i != sizeof parts / sizeof parts[0]; i++)
        w->code = buf_append_str(w->out, parts[i]);
}

void metrics_begin(struct metrics_writer *w, size_t family)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    assert(family < w->registry->n && family >= w->next);
    const struct metrics_family *f = &w->registry->families[family];
    w->next = family + 1;
    w->family = f;
    /* HELP escapes '\' and the newline; the registry has neither. */
    print(w, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name, types[f->type]);
}

static void put_value(struct metrics_writer *w, va_list label_values, const char *text)
{
    char labels[LABELS_BYTES];
    assert(w->family && w->family->type != METRICS_HISTOGRAM);
    make_labels(w->family, label_values, labels);
    put(w, "", labels, "", text);
}

void metrics_put(struct metrics_writer *w, double value, ...)
{
    char text[40];
    va_list values;
    number_text(value, text);
    va_start(values, value);
    put_value(w, values, text);
    va_end(values);
}

void metrics_put_count(struct metrics_writer *w, uint64_t value, ...)
{
    char text[40];
    va_list values;
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    va_start(values, value);
    put_value(w, values, text);
    va_end(values);
}

void metrics_put_histogram(struct metrics_writer *w, const struct metrics_histogram *h, ...)
{
    char labels[LABELS_BYTES], bound[40], more[56], text[40];
    assert(w->family && w->family->type == METRICS_HISTOGRAM);
    assert(h->buckets->n <= METRICS_MAX_BUCKETS);
    va_list values;
    va_start(values, h);
    make_labels(w->family, values, labels);
    va_end(values);
    uint64_t n = 0;
    for (uint32_t i = 0; i <= h->buckets->n; i++) {
        n += h->counts[i];
        number_text(i == h->buckets->n ? INFINITY : h->buckets->bounds[i], bound);
        snprintf(more, sizeof more, "le=\"%s\"", bound);
        snprintf(text, sizeof text, "%llu", (unsigned long long)n);
        put(w, "_bucket", labels, more, text);
    }
    number_text(h->sum, text);
    put(w, "_sum", labels, "", text);
    snprintf(text, sizeof text, "%llu", (unsigned long long)n);
    put(w, "_count", labels, "", text);
}

int metrics_end(const struct metrics_writer *w)
{
    return w->code;
}
