/* json_out.h: writes JSON into a buffer, without trees and without allocating anything else.
 *
 * The caller puts braces, brackets and commas himself with json_raw; values are written as they
 * should be. The first failure sticks: what follows does nothing, and `error` says what it was.
 * Pure; any thread.
 */
#ifndef GLMD_COORDINATOR_JSON_OUT_H
#define GLMD_COORDINATOR_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct json_out {
    struct buf *buf; /* borrowed */
    int error;       /* 0, -ENOMEM, or -EFBIG (limit of the buffer) */
};

void json_raw(struct json_out *o, const char *text); /* as it is */
void json_raw_bytes(struct json_out *o, const char *bytes, size_t n);
/* UTF-8 in quotes; what must be escaped is. */
void json_text(struct json_out *o, const char *text);
void json_text_bytes(struct json_out *o, const char *bytes, size_t n);
/* The same without quotes, for strings that are put together from several pieces. */
void json_text_part(struct json_out *o, const char *bytes, size_t n);
/* In quotes, or null where text is NULL or "". */
void json_text_or_null(struct json_out *o, const char *text);
void json_u64(struct json_out *o, uint64_t v);
void json_i64(struct json_out *o, int64_t v);
void json_bool(struct json_out *o, bool v);
/* So that reading gives the same float again. JSON has no infinities: -9999 stands for them and for
 * what is not a number, as log-probabilities of other servers do. */
void json_float(struct json_out *o, float v);
void json_double(struct json_out *o, double v); /* 17 digits at most, likewise */
/* [1,2,3] */
void json_ids(struct json_out *o, const int32_t *ids, size_t n);

#endif
