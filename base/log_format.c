/* log_format.c: see log_format.h. Buffers are sized so that nothing has to be checked on the way:
 * a byte of a message takes at most six ("\u001f"), and all the rest is short. */
#include "base/log_format.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"

enum { FIELD_BYTES = 160 }; /* of a value; longer ones are cut */

_Static_assert(LOG_LINE_BYTES >= 6 * LOG_MESSAGE_BYTES + 4 * 6 * FIELD_BYTES + 256, "room for all");

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7};

const char *log_level_name(enum log_level level)
{
    return level_names[level];
}

int log_level_priority(enum log_level level)
{
    return level_priorities[level];
}

struct writer {
    char *out;
    size_t n;
};

static void put_bytes(struct writer *w, const void *data, size_t size)
{
    assert(size <= LOG_LINE_BYTES - w->n);
    memcpy(w->out + w->n, data, size);
    w->n += size;
}

__attribute__((format(printf, 2, 3))) static void put(struct writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(w->out + w->n, LOG_LINE_BYTES - w->n, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < LOG_LINE_BYTES - w->n);
    w->n += (size_t)n;
}

/* ---- text ---- */

/* Bytes of the control character at `text`: of C0, DEL or C1 (U+0080 to U+009F, among them another
 * escape); 0 = it is none. */
static size_t control_length(const char *text, size_t n)
{
    unsigned char c = (unsigned char)text[0];
    if (c < 0x20 || c == 0x7f)
        return 1;
    return c == 0xc2 && n > 1 && (unsigned char)text[1] < 0xa0 ? 2 : 0;
}

static void put_plain(struct writer *w, const char *text)
{
    size_t n = strnlen(text, LOG_MESSAGE_BYTES);
    for (size_t i = 0; i != n; i++) {
        size_t n_control = control_length(text + i, n - i);
        w->out[w->n++] = n_control ? '?' : text[i];
        i += n_control ? n_control - 1 : 0;
    }
}

size_t log_format_text(const struct log_line *l, char *out)
{
    struct writer w = {out, 0};
    struct tm tm;
    localtime_r(&l->time.tv_sec, &tm);
    put(&w, "%02d:%02d:%02d.%03ld %-5s %.63s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
        l->time.tv_nsec / 1000000, level_names[l->level], l->name);
    put_plain(&w, l->message);
    put(&w, "\n");
    return w.n;
}

size_t log_format_syslog(const struct log_line *l, char *out)
{
    struct writer w = {out, 0};
    put(&w, "<%d>%.63s: ", level_priorities[l->level], l->name);
    put_plain(&w, l->message);
    put(&w, "\n");
    return w.n;
}

/* ---- json ---- */

/* What is not UTF-8, or was cut inside a character, becomes '?'. */
static void put_string(struct writer *w, const char *text, size_t max)
{
    size_t n = strnlen(text, max), bad = utf8_check(text, n);
    put(w, "\"");
    for (size_t i = 0; i != n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (i == bad) {
            bad = i + 1 + utf8_check(text + i + 1, n - i - 1);
            put(w, "?");
        } else if (c == '"' || c == '\\') {
            put(w, "\\%c", c);
        } else if (c < 0x20) {
            put(w, "\\u%04x", c);
        } else {
            put_bytes(w, &text[i], 1);
        }
    }
    put(w, "\"");
}

static void put_member(struct writer *w, const char *name, const char *value)
{
    if (!value || !*value)
        return;
    put(w, ",\"%s\":", name);
    put_string(w, value, FIELD_BYTES);
}

size_t log_format_json(const struct log_line *l, char *out)
{
    struct writer w = {out, 0};
    const struct log_fields *f = &l->fields;
    struct tm tm;
    gmtime_r(&l->time.tv_sec, &tm);
    put(&w, "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ\",\"level\":\"%s\"",
        tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
        l->time.tv_nsec / 1000000, level_names[l->level]);
    put_member(&w, "name", l->name);
    put(&w, ",\"message\":");
    put_string(&w, l->message, LOG_MESSAGE_BYTES);
    put_member(&w, "request", f->request);
    put_member(&w, "trace", f->trace);
    put_member(&w, "group", f->group);
    if (f->rank)
        put(&w, ",\"rank\":%u", *f->rank);
    if (f->epoch)
        put(&w, ",\"epoch\":%llu", (unsigned long long)f->epoch);
    if (f->step)
        put(&w, ",\"step\":%llu", (unsigned long long)f->step);
    put(&w, "}\n");
    return w.n;
}

/* ---- journal ---- */

/* A value with a newline goes with its size, 8 bytes, least significant first. */
static void put_field(struct writer *w, const char *name, const char *value, size_t max)
{
    if (!value || !*value)
        return;
    size_t n = strnlen(value, max);
    if (!memchr(value, '\n', n)) {
        put(w, "%s=", name);
    } else {
        put(w, "%s\n", name);
        for (unsigned shift = 0; shift != 64; shift += 8) {
            char byte = (char)((uint64_t)n >> shift & 0xff);
            put_bytes(w, &byte, 1);
        }
    }
    put_bytes(w, value, n);
    put(w, "\n");
}

static void put_number(struct writer *w, const char *name, uint64_t value)
{
    put(w, "%s=%llu\n", name, (unsigned long long)value);
}

size_t log_format_journal(const struct log_line *l, char *out)
{
    struct writer w = {out, 0};
    const struct log_fields *f = &l->fields;
    put_field(&w, "MESSAGE", l->message, LOG_MESSAGE_BYTES);
    put_number(&w, "PRIORITY", (uint64_t)level_priorities[l->level]);
    put(&w, "SYSLOG_IDENTIFIER=glmd-%.63s\n", l->name);
    put_field(&w, "GLMD_REQUEST", f->request, FIELD_BYTES);
    put_field(&w, "GLMD_TRACE", f->trace, FIELD_BYTES);
    put_field(&w, "GLMD_GROUP", f->group, FIELD_BYTES);
    if (f->rank)
        put_number(&w, "GLMD_RANK", *f->rank);
    if (f->epoch)
        put_number(&w, "GLMD_EPOCH", f->epoch);
    if (f->step)
        put_number(&w, "GLMD_STEP", f->step);
    return w.n;
}
