/* log_format.h: an event as the bytes of each format. Internal to base; pure. */
#ifndef GLMD_BASE_LOG_FORMAT_H
#define GLMD_BASE_LOG_FORMAT_H

#include <stddef.h>
#include <time.h>

#include "base/log.h"

enum {
    LOG_MESSAGE_BYTES = 2048,              /* longer ones are cut */
    LOG_LINE_BYTES = 8 * LOG_MESSAGE_BYTES /* every format of one fits */
};

struct log_line {
    enum log_level level;
    const char *name;
    const char *message; /* UTF-8 */
    struct log_fields fields;
    struct timespec time; /* of day */
};

const char *log_level_name(enum log_level level);
int log_level_priority(enum log_level level); /* syslog(3) */

/* Each returns how many bytes it wrote, at most LOG_LINE_BYTES. */
size_t log_format_text(const struct log_line *l, char *out);
size_t log_format_json(const struct log_line *l, char *out);
/* As text, with "<N>" in place of the time. */
size_t log_format_syslog(const struct log_line *l, char *out);
/* journald's native protocol: FIELD=value lines, or FIELD, size and bytes. */
size_t log_format_journal(const struct log_line *l, char *out);

#endif
