/* conf_yaml.c: YAML text -> values of an option table, by libyaml's event parser.
 *
 * Events are handled as they come, so that memory stays bounded by the file's size; whatever YAML
 * offers beyond mappings, sequences and scalars is refused with its line.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#include "base/conf.h"
#include "base/conf_internal.h"
#include "base/util.h"

enum { MAX_PATH = 128, MAX_EVENTS = 32768, MAX_SECTIONS = 64 };

/* The reader's place: the path of open mappings, and the key that waits for its value. */
struct reader {
    const struct conf_table *table;
    void *values;
    const char *file;
    struct conf_origin *origin;
    struct err *e;

    char path[MAX_PATH];             /* "" or "coordinator.limits" */
    size_t path_end[CONF_MAX_DEPTH]; /* length of `path` below each open mapping */
    unsigned depth;                  /* open mappings */
    bool have_key;
    char key[MAX_PATH]; /* full path of the key that waits for a value */
    unsigned key_line;
    int list; /* option whose sequence is open, or -1 */

    bool seen[CONF_MAX_OPTIONS];
    unsigned seen_line[CONF_MAX_OPTIONS];
    char sections[MAX_SECTIONS][MAX_PATH]; /* mappings met so far: a repeated one is an error */
    unsigned section_line[MAX_SECTIONS];
    unsigned n_sections;
};

static unsigned line_of(const yaml_event_t *ev)
{
    return (unsigned)ev->start_mark.line + 1;
}

static int fail_expected(struct reader *r, unsigned line, const char *path,
                         const struct conf_option *o, const char *found)
{
    struct buf expected = {0};
    conf_describe_range(o, &expected);
    int code = err_set(r->e, -EINVAL, "%s:%u: %s: expected %s, found %s", r->file, line, path,
                       expected.data ? expected.data : "another value", found);
    buf_deinit(&expected);
    return code;
}

static int fail_unknown(struct reader *r, unsigned line, const char *path)
{
    char near[MAX_PATH];
    const char *hint = conf_nearest(r->table, path, near, sizeof near);
    return err_set(
        r->e, -EINVAL, "%s:%u: unknown key \"%s\"%s%s%s (`glmd config show` lists all keys)",
        r->file, line, path, hint ? ", did you mean \"" : "", hint ? hint : "", hint ? "\"?" : "");
}

/* Anchors and tags have no use here, and aliases can make a small file unfold without bound. */
static int check_decoration(struct reader *r, const yaml_event_t *ev, const yaml_char_t *anchor,
                            const yaml_char_t *tag)
{
    if (anchor)
        return err_set(r->e, -EINVAL, "%s:%u: anchors (&name) are not allowed: write the value",
                       r->file, line_of(ev));
    if (tag)
        return err_set(r->e, -EINVAL, "%s:%u: tags (!type) are not allowed: remove it", r->file,
                       line_of(ev));
    return 0;
}

static int take_key(struct reader *r, const yaml_event_t *ev)
{
    const char *word = (const char *)ev->data.scalar.value;
    size_t n = ev->data.scalar.length;
    if (n == 0 || n != strlen(word) || strlen(r->path) + 1 + n >= MAX_PATH)
        return err_set(r->e, -EINVAL, "%s:%u: a key is a word of at most %d bytes, found %zu bytes",
                       r->file, line_of(ev), MAX_PATH - 1, n);
    for (const char *p = word; *p; p++) {
        if (*p == '.' || (unsigned char)*p <= ' ' || (unsigned char)*p >= 0x7f)
            return err_set(r->e, -EINVAL,
                           "%s:%u: a key holds letters, digits and _; nest mappings instead of "
                           "writing dots",
                           r->file, line_of(ev));
    }
    int written = snprintf(r->key, sizeof r->key, "%s%s%s", r->path, *r->path ? "." : "", word);
    assert(written > 0 && (size_t)written < sizeof r->key);
    r->key_line = line_of(ev);
    if (conf_find(r->table, r->key) < 0 && !conf_is_section(r->table, r->key))
        return fail_unknown(r, r->key_line, r->key);
    r->have_key = true;
    return 0;
}

static int mark_seen(struct reader *r, int option)
{
    if (r->seen[option])
        return err_set(r->e, -EINVAL, "%s:%u: %s: given twice, first in line %u: remove one",
                       r->file, r->key_line, r->key, r->seen_line[option]);
    r->seen[option] = true;
    r->seen_line[option] = r->key_line;
    if (r->origin)
        r->origin->line[option] = r->key_line;
    return 0;
}

static int mark_section(struct reader *r)
{
    for (unsigned i = 0; i != r->n_sections; i++) {
        if (strcmp(r->sections[i], r->key) == 0)
            return err_set(r->e, -EINVAL, "%s:%u: %s: given twice, first in line %u: join them",
                           r->file, r->key_line, r->key, r->section_line[i]);
    }
    assert(r->n_sections != MAX_SECTIONS); /* tables have fewer sections */
    snprintf(r->sections[r->n_sections], MAX_PATH, "%s", r->key);
    r->section_line[r->n_sections++] = r->key_line;
    return 0;
}

static bool is_null(const yaml_event_t *ev)
{
    const char *v = (const char *)ev->data.scalar.value;
    return ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (*v == '\0' || strcmp(v, "~") == 0 || strcasecmp(v, "null") == 0);
}

/* The scalar as a NUL-terminated text without control characters, or an error. */
static int check_text(struct reader *r, const yaml_event_t *ev)
{
    const char *v = (const char *)ev->data.scalar.value;
    size_t n = ev->data.scalar.length;
    if (n > CONF_MAX_VALUE_BYTES)
        return err_set(r->e, -EINVAL, "%s:%u: %s: expected at most %d bytes, found %zu", r->file,
                       line_of(ev), r->key, CONF_MAX_VALUE_BYTES, n);
    for (size_t i = 0; i != n; i++) {
        if ((unsigned char)v[i] < 0x20 || v[i] == 0x7f)
            return err_set(r->e, -EINVAL,
                           "%s:%u: %s: expected text in one line, found control character 0x%02x",
                           r->file, line_of(ev), r->key, (unsigned)(unsigned char)v[i]);
    }
    return 0;
}

static int take_list_item(struct reader *r, const yaml_event_t *ev)
{
    const struct conf_option *o = &r->table->options[r->list];
    int code = check_text(r, ev);
    if (code < 0)
        return code;
    if (ev->data.scalar.length == 0)
        return err_set(r->e, -EINVAL, "%s:%u: %s: expected a text, found an empty item", r->file,
                       line_of(ev), r->key);
    code = conf_list_append(conf_field(o, r->values), (const char *)ev->data.scalar.value);
    if (code == -ERANGE)
        return fail_expected(r, line_of(ev), o->path, o, "more");
    return code;
}

static int take_value(struct reader *r, const yaml_event_t *ev)
{
    r->have_key = false;
    int option = conf_find(r->table, r->key);
    if (option < 0) { /* a section: "group:" with nothing below is an empty mapping */
        if (is_null(ev))
            return mark_section(r);
        return err_set(r->e, -EINVAL, "%s:%u: %s: expected a mapping of keys, found one value",
                       r->file, line_of(ev), r->key);
    }
    const struct conf_option *o = &r->table->options[option];
    int code = mark_seen(r, option);
    if (code == 0)
        code = check_text(r, ev);
    if (code < 0)
        return code;
    const char *text = (const char *)ev->data.scalar.value;
    bool plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (is_null(ev))
        return fail_expected(r, line_of(ev), r->key, o, "nothing");
    if (!plain && (o->type == CONF_UINT || o->type == CONF_BOOL))
        return fail_expected(r, line_of(ev), r->key, o, "a quoted text");
    struct buf expected = {0};
    code = conf_parse_scalar(o, r->values, text, &expected);
    if (code < 0 && code != -ENOMEM)
        code = err_set(r->e, -EINVAL, "%s:%u: %s: expected %s, found \"%.96s\"", r->file,
                       line_of(ev), r->key, expected.data ? expected.data : "another value", text);
    buf_deinit(&expected);
    return code;
}

static int on_scalar(struct reader *r, const yaml_event_t *ev)
{
    /* libyaml marks untagged scalars as implicit; an explicit tag sets `tag` */
    int code = check_decoration(r, ev, ev->data.scalar.anchor, ev->data.scalar.tag);
    if (code < 0)
        return code;
    if (r->list >= 0)
        return take_list_item(r, ev);
    if (r->depth == 0) {
        if (is_null(ev))
            return 0; /* an empty file: all defaults */
        return err_set(r->e, -EINVAL, "%s:%u: expected a mapping of keys, found one value", r->file,
                       line_of(ev));
    }
    return r->have_key ? take_value(r, ev) : take_key(r, ev);
}

static int on_mapping_start(struct reader *r, const yaml_event_t *ev)
{
    int code = check_decoration(r, ev, ev->data.mapping_start.anchor, ev->data.mapping_start.tag);
    if (code < 0)
        return code;
    if (r->depth == CONF_MAX_DEPTH)
        return err_set(r->e, -EINVAL, "%s:%u: nested deeper than %d levels", r->file, line_of(ev),
                       CONF_MAX_DEPTH);
    if (r->list >= 0)
        return err_set(r->e, -EINVAL, "%s:%u: %s: expected a list of texts, found a mapping",
                       r->file, line_of(ev), r->key);
    if (r->depth && !r->have_key)
        return err_set(r->e, -EINVAL, "%s:%u: expected a key, found a mapping", r->file,
                       line_of(ev));
    r->path_end[r->depth++] = strlen(r->path);
    if (r->depth == 1)
        return 0;
    int option = conf_find(r->table, r->key);
    if (option >= 0)
        return fail_expected(r, line_of(ev), r->key, &r->table->options[option], "a mapping");
    r->have_key = false;
    memcpy(r->path, r->key, strlen(r->key) + 1);
    return mark_section(r);
}

static int on_sequence_start(struct reader *r, const yaml_event_t *ev)
{
    int code = check_decoration(r, ev, ev->data.sequence_start.anchor, ev->data.sequence_start.tag);
    if (code < 0)
        return code;
    if (r->list >= 0 || !r->have_key)
        return err_set(r->e, -EINVAL, "%s:%u: expected %s, found a list", r->file, line_of(ev),
                       r->list >= 0 ? "a text"
                       : r->depth   ? "a key"
                                    : "a mapping of keys");
    int option = conf_find(r->table, r->key);
    if (option < 0)
        return err_set(r->e, -EINVAL, "%s:%u: %s: expected a mapping of keys, found a list",
                       r->file, line_of(ev), r->key);
    if (r->table->options[option].type != CONF_LIST)
        return fail_expected(r, line_of(ev), r->key, &r->table->options[option], "a list");
    code = mark_seen(r, option);
    if (code < 0)
        return code;
    r->list = option;
    conf_list_clear(conf_field(&r->table->options[option], r->values));
    return 0;
}

static int on_sequence_end(struct reader *r, const yaml_event_t *ev)
{
    const struct conf_option *o = &r->table->options[r->list];
    const struct conf_list *l = conf_field(o, r->values);
    r->list = -1;
    r->have_key = false;
    struct buf expected = {0};
    int code = conf_check_list(o, l, &expected);
    buf_deinit(&expected);
    if (code < 0) {
        char found[32];
        snprintf(found, sizeof found, "%zu items", l->n);
        return fail_expected(r, line_of(ev), o->path, o, found);
    }
    return 0;
}

static int on_event(struct reader *r, const yaml_event_t *ev, unsigned *n_documents)
{
    switch (ev->type) {
    case YAML_DOCUMENT_START_EVENT:
        if ((*n_documents)++)
            return err_set(r->e, -EINVAL, "%s:%u: expected one document, found a second (---)",
                           r->file, line_of(ev));
        return 0;
    case YAML_ALIAS_EVENT:
        return err_set(r->e, -EINVAL, "%s:%u: aliases (*name) are not allowed: write the value",
                       r->file, line_of(ev));
    case YAML_SCALAR_EVENT:
        return on_scalar(r, ev);
    case YAML_MAPPING_START_EVENT:
        return on_mapping_start(r, ev);
    case YAML_MAPPING_END_EVENT:
        assert(r->depth);
        r->path[r->path_end[--r->depth]] = '\0';
        return 0;
    case YAML_SEQUENCE_START_EVENT:
        return on_sequence_start(r, ev);
    case YAML_SEQUENCE_END_EVENT:
        return on_sequence_end(r, ev);
    default:
        return 0;
    }
}

static int read_events(struct reader *r, yaml_parser_t *parser)
{
    unsigned n_events = 0, n_documents = 0;
    for (bool done = false; !done;) {
        yaml_event_t ev;
        if (!yaml_parser_parse(parser, &ev))
            return err_set(r->e, -EINVAL, "%s:%zu: not valid YAML: %s", r->file,
                           parser->problem_mark.line + 1,
                           parser->problem ? parser->problem : "unknown problem");
        int code = 0;
        if (++n_events > MAX_EVENTS)
            code = err_set(r->e, -EINVAL, "%s:%u: expected at most %d values", r->file,
                           line_of(&ev), MAX_EVENTS);
        done = ev.type == YAML_STREAM_END_EVENT;
        if (code == 0)
            code = on_event(r, &ev, &n_documents);
        yaml_event_delete(&ev);
        if (code < 0)
            return code == -ENOMEM ? err_set(r->e, code, "%s: out of memory", r->file) : code;
    }
    return 0;
}

int conf_read(const struct conf_table *t, void *values, const char *file, const char *text,
              size_t size, struct conf_origin *origin, struct err *e)
{
    if (size > CONF_MAX_FILE_BYTES)
        return err_set(e, -EFBIG, "%s: expected at most %d bytes, found %zu", file,
                       CONF_MAX_FILE_BYTES, size);
    /* libyaml skips what it cannot print in comments; a NUL would end nothing there. */
    if (memchr(text, 0, size))
        return err_set(e, -EINVAL, "%s: expected text, found a NUL byte", file);
    assert(t->n <= CONF_MAX_OPTIONS);
    struct reader r = {
        .table = t, .values = values, .file = file, .origin = origin, .e = e, .list = -1};
    if (origin)
        snprintf(origin->file, sizeof origin->file, "%s", file);
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return err_set(e, -ENOMEM, "%s: out of memory", file);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    int code = read_events(&r, &parser);
    yaml_parser_delete(&parser);
    return code;
}

/* Reads a regular file of at most `limit` bytes. */
static int read_whole(int fd, const char *file, struct buf *ret, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(e, -errno, "%s: cannot read: %s", file, err_name(-errno));
    if (!S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode))
        return err_set(e, -EINVAL, "%s: expected a file", file);
    for (;;) {
        int r = buf_reserve(ret, 16384);
        if (r < 0)
            return err_set(e, r, "%s: out of memory", file);
        ssize_t n = read(fd, ret->data + ret->size, 16384);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(e, -errno, "%s: cannot read: %s", file, err_name(-errno));
        if (n == 0)
            return 0;
        ret->size += (size_t)n;
        if (ret->size > CONF_MAX_FILE_BYTES)
            return err_set(e, -EFBIG, "%s: expected at most %d bytes", file, CONF_MAX_FILE_BYTES);
    }
}

int conf_read_file(const struct conf_table *t, void *values, const char *file,
                   struct conf_origin *origin, struct err *e)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, -errno, "%s: cannot open: %s", file, err_name(-errno));
    struct buf text = {0};
    int r = read_whole(fd, file, &text, e);
    close(fd);
    if (r == 0)
        r = conf_read(t, values, file, text.data ? text.data : "", text.size, origin, e);
    buf_deinit(&text);
    return r;
}
