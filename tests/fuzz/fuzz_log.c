/* fuzz_log.c: any bytes as a message and as what it is about (four strings with a NUL between
 * them): a line of JSON is one object with what was given, a line of text is one line that no
 * terminal obeys, and an entry for the journal has no field that was not meant. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/log_format.h"
#include "base/utf8.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char out[LOG_LINE_BYTES + 1];

static void check_text(const struct log_line *l,
                       size_t (*format)(const struct log_line *l, char *o))
{
    size_t n = format(l, out);
    assert(n > 0 && n <= LOG_LINE_BYTES && out[n - 1] == '\n');
    assert(utf8_check(out, n) == n);
    for (size_t i = 0; i != n - 1; i++) {
        unsigned char c = (unsigned char)out[i];
        assert(c >= 0x20 && c != 0x7f);
        assert(c != 0xc2 ||
               (unsigned char)out[i + 1] >= 0xa0); /* C1, to some terminals an escape */
    }
}

static void check_json(const struct log_line *l)
{
    size_t n = log_format_json(l, out);
    assert(n > 0 && n <= LOG_LINE_BYTES && memchr(out, '\n', n) == out + n - 1);
    json_t *line = json_loadb(out, n, JSON_REJECT_DUPLICATES, NULL);
    assert(json_is_object(line));
    const char *message = json_string_value(json_object_get(line, "message"));
    assert(message && strcmp(message, l->message) == 0);
    const char *request = l->fields.request;
    json_t *found = json_object_get(line, "request");
    assert(!*request == !found);
    size_t n_good = utf8_check(request, strlen(request));
    assert(!found || n_good > 150 || memcmp(json_string_value(found), request, n_good) == 0);
    json_decref(line);
}

/* The next field; its name begins at *at. */
static size_t next_field(size_t at, size_t n)
{
    size_t end = at + strspn(out + at, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");
    assert(end > at && end < n);
    if (out[end] == '=')
        return (size_t)((char *)memchr(out + end, '\n', n - end) - out) + 1;
    assert(out[end] == '\n' && n - end > 9);
    uint64_t length = 0;
    for (unsigned i = 0; i != 8; i++)
        length |= (uint64_t)(unsigned char)out[end + 1 + i] << (8 * i);
    assert(length < n - end - 9 && out[end + 9 + length] == '\n');
    return end + 9 + length + 1;
}

static void check_journal(const struct log_line *l)
{
    size_t n = log_format_journal(l, out), n_fields = 0;
    assert(n > 0 && n <= LOG_LINE_BYTES);
    out[n] = '\0';
    for (size_t at = 0; at != n; at = next_field(at, n))
        n_fields++;
    const struct log_fields *f = &l->fields;
    assert(n_fields == 2u + !!*l->message + !!*f->request + !!*f->trace + !!*f->group);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char texts[4][LOG_MESSAGE_BYTES];
    for (unsigned i = 0; i != ARRAY_LEN(texts); i++) {
        size_t n = strnlen((const char *)data, size);
        size_t kept = MIN(n, sizeof texts[i] - 1);
        memcpy(texts[i], data, kept);
        texts[i][kept] = '\0';
        n += n < size; /* the NUL */
        data += n;
        size -= n;
    }
    utf8_repair(texts[0], strlen(texts[0])); /* as log_event does */
    const struct log_line line = {
        .level = LOG_LEVEL_WARN,
        .name = "fuzz",
        .message = texts[0],
        .fields = {.request = texts[1], .trace = texts[2], .group = texts[3]},
    };
    check_text(&line, log_format_text);
    check_text(&line, log_format_syslog);
    check_json(&line);
    check_journal(&line);
    return 0;
}
