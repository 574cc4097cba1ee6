/* conf.h: configuration as a table of options.
 *
 * One table of {path, type, default, range, documentation} drives everything that touches a
 * configuration: reading YAML, `--set key=value` and named flags, checking, and the annotated
 * example that `glmd config show` prints. The values live in a plain struct of the caller's; the
 * table holds the offsets.
 *
 * The reader is bounded: 256 KiB, 6 levels, no anchors, aliases, tags or second documents; a key
 * that is unknown, repeated or of the wrong type is an error that names file and line.
 */
#ifndef GLMD_BASE_CONF_H
#define GLMD_BASE_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum {
    CONF_MAX_FILE_BYTES = 256 * 1024,
    CONF_MAX_DEPTH = 6,
    CONF_MAX_VALUE_BYTES = 4096,
    CONF_MAX_LIST = 1024,
    CONF_MAX_OPTIONS = 256,
};

enum conf_type {                /* the C type of the field at `offset` */
                 CONF_STRING,   /* char *, owned, never NULL after conf_defaults */
                 CONF_BOOL,     /* bool: true, false, yes, no, on, off */
                 CONF_UINT,     /* uint64_t: whole number */
                 CONF_SIZE,     /* uint64_t, bytes: "2GiB", "512MiB", "4096"; KiB MiB GiB TiB */
                 CONF_DURATION, /* int64_t, nanoseconds: "10s", "250ms", "5m", "1h" */
                 CONF_ENUM,     /* int: index into `choices` */
                 CONF_LIST,     /* struct conf_list: YAML sequence, or text separated by commas */
};

struct conf_list {
    char **items; /* owned */
    size_t n;
};

struct conf_option {
    const char *path; /* "coordinator.limits.max_queue" */
    enum conf_type type;
    size_t offset;
    const char *default_value;  /* as text, in the form a file would have it */
    uint64_t min, max;          /* numbers and lists: allowed values (bytes, nanoseconds, items);
                                   strings: allowed lengths. max 0 = no bound of its own */
    const char *const *choices; /* CONF_ENUM: NULL-terminated */
    const char *doc;            /* sentences; the annotated example wraps them */
};

struct conf_table {
    const struct conf_option *options;
    size_t n;
};

/* Copies the text; -ERANGE beyond CONF_MAX_LIST, -ENOMEM. */
int conf_list_append(struct conf_list *l, const char *text);
void conf_list_clear(struct conf_list *l);

/* Where a value came from: a line of a file, or 0. One entry per option, for cross-checks. */
struct conf_origin {
    char file[256]; /* "" = built-in default or command line */
    unsigned line[CONF_MAX_OPTIONS];
};

/* Sets every option to its default. The struct must be zeroed before. -ENOMEM; a default that does
 * not parse is a programmer's error. */
int conf_defaults(const struct conf_table *t, void *values);
void conf_deinit(const struct conf_table *t, void *values);

/* Reads YAML over the values. `file` is the name in messages. On failure the values are whatever
 * had been read so far: the caller throws them away. */
int conf_read(const struct conf_table *t, void *values, const char *file, const char *text,
              size_t size, struct conf_origin *origin, struct err *e);
int conf_read_file(const struct conf_table *t, void *values, const char *file,
                   struct conf_origin *origin, struct err *e);

/* One option from text, as in `--set path=value`: `where` starts the message ("--set"). */
int conf_set(const struct conf_table *t, void *values, const char *path, const char *value,
             const char *where, struct err *e);
/* "path=value" */
int conf_set_pair(const struct conf_table *t, void *values, const char *pair, const char *where,
                  struct err *e);

/* An error about an option: "file:line: path: " in front when it came from a file. */
int conf_error(const struct conf_table *t, const struct conf_origin *origin, const char *path,
               struct err *e, const char *format, ...) __attribute__((format(printf, 5, 6)));

/* The value as text, in the form a file would have it (lists: [a, b]). */
int conf_format(const struct conf_option *o, const void *values, struct buf *ret_text);

/* The whole table as annotated YAML. annotate: with documentation, type and default as comments. */
int conf_show(const struct conf_table *t, const void *values, bool annotate, struct buf *ret_text);

#endif
