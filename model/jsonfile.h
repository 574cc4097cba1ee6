/* jsonfile.h: JSON files and values from outside, read with bounds: what every config file of a
 * model directory goes through. Messages name the key, what was expected and what was found. */
#ifndef GLMD_MODEL_JSONFILE_H
#define GLMD_MODEL_JSONFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"

/* Parses an object; duplicate keys are refused. `where` starts the message. -EBADMSG, -ENOMEM. */
int jsonfile_parse(const char *text, size_t size, const char *where, json_t **ret_object,
                   struct err *e);

/* Reads a whole file of at most max_bytes and parses it. -ENOENT and other errors of open pass
 * through with a message. */
int jsonfile_load(const char *path, size_t max_bytes, json_t **ret_object, struct err *e);

/* The object as indented text with a newline at the end, appended. -ENOMEM. */
int jsonfile_format(const json_t *object, struct buf *ret_text);

/* Writes the object, indented, to a temporary file beside `path`, syncs and renames it. */
int jsonfile_save(const char *path, const json_t *object, struct err *e);

/* Members of an object. Absent: -EINVAL with a message. Integers may be written as 10000.0. */
int jsonfile_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                     uint64_t *ret_value, struct err *e);
int jsonfile_get_double(const json_t *object, const char *key, double min, double max,
                        double *ret_value, struct err *e);
int jsonfile_get_bool(const json_t *object, const char *key, bool *ret_value, struct err *e);
/* Borrowed from the object. */
int jsonfile_get_string(const json_t *object, const char *key, const char **ret_text,
                        struct err *e);
int jsonfile_get_object(const json_t *object, const char *key, json_t **ret_object, struct err *e);

/* One of n names -> its index. */
int jsonfile_get_choice(const json_t *object, const char *key, const char *const *names, size_t n,
                        size_t *ret_idx, struct err *e);

/* "an object", "a list", ...: what was found, for messages. */
const char *jsonfile_type_name(const json_t *v);

#endif
