/* log.h: one event per line, for journald, a terminal or a collector.
 *
 *   text     "12:00:00.000 info  worker/0: message" on standard error
 *   json     one object per line on standard error: time (UTC), level, name, message, fields
 *   journal  native entries over journald's socket: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER
 *            (glmd-NAME) and the fields as GLMD_REQUEST, GLMD_TRACE, GLMD_GROUP, GLMD_RANK,
 *            GLMD_EPOCH, GLMD_STEP
 *   auto     journal when standard error is journald's (systemd sets JOURNAL_STREAM), else text
 *
 * An entry that journald does not take goes to standard error as text with its syslog priority
 * "<N>". Control characters become '?' in text: no message can look like another one. Prompts,
 * outputs and keys are never logged here; see log.prompts in config.c. Any thread may log.
 */
#ifndef GLMD_BASE_LOG_H
#define GLMD_BASE_LOG_H

#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_format { LOG_FORMAT_AUTO, LOG_FORMAT_TEXT, LOG_FORMAT_JSON, LOG_FORMAT_JOURNAL };

/* What an event is about; NULL and 0 = not known. Borrowed while it is logged. */
struct log_fields {
    const char *request, *trace, *group;
    const uint32_t *rank;
    uint64_t epoch, step;
};

/* Name is what every line starts with ("coordinator", "worker/0"); it is copied. */
void log_init(const char *name, enum log_level level, enum log_format format);

/* Fields of events that do not say their own; the strings are not copied. Before threads start. */
void log_set_fields(const struct log_fields *defaults);

/* "error", "warn", "info" or "debug" -> level; returns -EINVAL for anything else. */
int log_level_parse(const char *text, enum log_level *ret_level);

/* fields may be NULL. */
void log_event(enum log_level level, const struct log_fields *fields, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Lines of every level that passes go to `sink` instead, without name, time and fields; NULL
 * restores the format. Not thread-safe: for tests, before threads start. */
void log_set_sink(void (*sink)(void *context, enum log_level level, const char *line),
                  void *context);

/* From now on entries go to this socket as to journald's (/run/systemd/journal/socket). Returns 0
 * or a negative errno value. For tests, before threads start. */
int log_set_journal(const char *path);

/* LOG(.group = name, .rank = &rank) */
#define LOG(...) (&(const struct log_fields){__VA_ARGS__})

#define log_error(...) log_event(LOG_LEVEL_ERROR, NULL, __VA_ARGS__)
#define log_warn(...)  log_event(LOG_LEVEL_WARN, NULL, __VA_ARGS__)
#define log_info(...)  log_event(LOG_LEVEL_INFO, NULL, __VA_ARGS__)
#define log_debug(...) log_event(LOG_LEVEL_DEBUG, NULL, __VA_ARGS__)

#endif
