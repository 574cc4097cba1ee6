/* conf_show.c: an option table printed as YAML, with or without its documentation. */
#include <stdio.h>
#include <string.h>

#include "base/conf.h"
#include "base/conf_internal.h"
#include "base/util.h"

enum { WRAP_COLUMNS = 88 };

/* Whether a plain YAML scalar could be misread: then it is quoted. */
static bool needs_quotes(const char *s)
{
    if (strcasecmp(s, "null") == 0) /* plain, it means nothing at all */
        return true;
    if (*s == '\0' || strchr("~-?:,[]{}#&*!|>'\"%@` \t", *s))
        return true;
    for (const char *p = s; *p; p++) {
        if ((unsigned char)*p < 0x20 || strchr(",[]{}\"\\", *p))
            return true;
        if ((*p == ':' && (p[1] == ' ' || p[1] == '\0')) || (*p == '#' && p[-1] == ' '))
            return true;
    }
    return s[strlen(s) - 1] == ' ';
}

static int append_string(struct buf *text, const char *s)
{
    if (!needs_quotes(s))
        return buf_append_str(text, s);
    buf_append_str(text, "\"");
    for (const char *p = s; *p; p++) {
        if (*p == '"' || *p == '\\')
            buf_printf(text, "\\%c", *p);
        else if ((unsigned char)*p < 0x20)
            buf_printf(text, "\\x%02x", (unsigned)(unsigned char)*p);
        else
            buf_append(text, p, 1);
    }
    return buf_append_str(text, "\"");
}

int conf_format(const struct conf_option *o, const void *values, struct buf *text)
{
    const void *field = (const char *)values + o->offset;
    switch (o->type) {
    case CONF_STRING:
        return append_string(text, *(char *const *)field);
    case CONF_BOOL:
        return buf_append_str(text, *(const bool *)field ? "true" : "false");
    case CONF_UINT:
        return buf_printf(text, "%llu", (unsigned long long)*(const uint64_t *)field);
    case CONF_SIZE:
        conf_format_size(*(const uint64_t *)field, text);
        return 0;
    case CONF_DURATION:
        conf_format_duration(*(const int64_t *)field, text);
        return 0;
    case CONF_ENUM:
        return buf_append_str(text, o->choices[*(const int *)field]);
    case CONF_LIST: {
        const struct conf_list *l = field;
        buf_append_str(text, "[");
        for (size_t i = 0; i != l->n; i++) {
            buf_append_str(text, i ? ", " : "");
            append_string(text, l->items[i]);
        }
        return buf_append_str(text, "]");
    }
    }
    return -EINVAL;
}

/* Words of `doc` as comment lines. */
static void append_comment(struct buf *text, unsigned depth, const char *doc)
{
    size_t column = 0;
    while (*doc) {
        size_t n = strcspn(doc, " ");
        if (column == 0 || column + n + 1 > WRAP_COLUMNS) {
            buf_printf(text, "%s%*s#", column ? "\n" : "", (int)(2 * depth), "");
            column = 2 * depth + 1;
        }
        buf_printf(text, " %.*s", (int)n, doc);
        column += n + 1;
        doc += n;
        doc += strspn(doc, " ");
    }
    buf_append_str(text, "\n");
}

/* Prints the sections that open between the paths of two neighbours; returns the depth of the leaf.
 */
static unsigned open_sections(struct buf *text, const char *previous, const char *path,
                              bool annotate)
{
    unsigned depth = 0;
    size_t shared = 0; /* bytes of whole sections both have */
    for (size_t i = 0; path[i] && path[i] == previous[i]; i++) {
        if (path[i] == '.') {
            shared = i + 1;
            depth++;
        }
    }
    const char *p = path + shared;
    for (const char *dot; (dot = strchr(p, '.')); p = dot + 1) {
        if (annotate && text->size)
            buf_append_str(text, "\n");
        buf_printf(text, "%*s%.*s:\n", (int)(2 * depth), "", (int)(dot - p), p);
        depth++;
    }
    return depth;
}

int conf_show(const struct conf_table *t, const void *values, bool annotate, struct buf *text)
{
    const char *previous = "";
    for (size_t i = 0; i != t->n; i++) {
        const struct conf_option *o = &t->options[i];
        unsigned depth = open_sections(text, previous, o->path, annotate);
        previous = o->path;
        if (annotate) {
            struct buf comment = {0};
            buf_printf(&comment, "%s Expected: ", o->doc);
            conf_describe_range(o, &comment);
            buf_append_str(&comment, ".");
            append_comment(text, depth, comment.data ? comment.data : o->doc);
            buf_deinit(&comment);
        }
        const char *leaf = strrchr(o->path, '.');
        buf_printf(text, "%*s%s: ", (int)(2 * depth), "", leaf ? leaf + 1 : o->path);
        int r = conf_format(o, values, text);
        if (r < 0)
            return r;
        r = buf_append_str(text, "\n");
        if (r < 0)
            return r;
    }
    return 0;
}
