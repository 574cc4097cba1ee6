/* json_out.c: see json_out.h. */
#include "coordinator/json_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void json_raw_bytes(struct json_out *o, const char *bytes, size_t n)
{
    if (o->error == 0)
        o->error = buf_append(o->buf, bytes, n);
}

void json_raw(struct json_out *o, const char *text)
{
    json_raw_bytes(o, text, strlen(text));
}

/* ---- strings ---- */

static bool is_plain(unsigned char c)
{
    return c >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
}

static void escape(struct json_out *o, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    static const char letters[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *at = c ? strchr(letters, c) : NULL;
    if (at) {
        json_raw_bytes(o, (char[]){'\\', names[at - letters]}, 2);
        return;
    }
    json_raw_bytes(o, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
}

void json_text_part(struct json_out *o, const char *bytes, size_t n)
{
    for (size_t at = 0; at != n;) {
        size_t run = at;
        while (run != n && is_plain((unsigned char)bytes[run]))
            run++;
        json_raw_bytes(o, bytes + at, run - at);
        if (run != n)
            escape(o, (unsigned char)bytes[run++]);
        at = run;
    }
}

void json_text_bytes(struct json_out *o, const char *bytes, size_t n)
{
    json_raw_bytes(o, "\"", 1);
    json_text_part(o, bytes, n);
    json_raw_bytes(o, "\"", 1);
}

void json_text(struct json_out *o, const char *text)
{
    json_text_bytes(o, text, strlen(text));
}

void json_text_or_null(struct json_out *o, const char *text)
{
    if (text && *text)
        json_text(o, text);
    else
        json_raw(o, "null");
}

/* ---- numbers ---- */

void json_u64(struct json_out *o, uint64_t v)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    json_raw_bytes(o, digits + at, sizeof digits - at);
}

void json_i64(struct json_out *o, int64_t v)
{
    if (v < 0)
        json_raw_bytes(o, "-", 1);
    json_u64(o, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
}

void json_bool(struct json_out *o, bool v)
{
    json_raw(o, v ? "true" : "false");
}

void json_float(struct json_out *o, float v)
{
    char text[40];
    int n = snprintf(text, sizeof text, "%.9g", isfinite(v) ? (double)v : -9999.0);
    json_raw_bytes(o, text, (size_t)n);
}

/* Few are written: as short as reads back the same. */
void json_double(struct json_out *o, double v)
{
    char text[40];
    int n = 0;
    double finite = isfinite(v) ? v : -9999.0, back = NAN;
    for (int digits = 15; digits <= 17 && back != finite; digits++) {
        n = snprintf(text, sizeof text, "%.*g", digits, finite);
        back = strtod(text, NULL);
    }
    json_raw_bytes(o, text, (size_t)n);
}

void json_ids(struct json_out *o, const int32_t *ids, size_t n)
{
    json_raw_bytes(o, "[", 1);
    for (size_t i = 0; i != n; i++) {
        if (i)
            json_raw_bytes(o, ",", 1);
        json_i64(o, ids[i]);
    }
    json_raw_bytes(o, "]", 1);
}
