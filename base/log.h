/* log.h: one line per event on standard error, for journald or a terminal.
 *
 * Under systemd (JOURNAL_STREAM set) a line starts with the syslog priority "<N>"; on a terminal it
 * starts with the time of day. Prompts, outputs and keys are never logged. Any thread may log.
 */
#ifndef GLMD_BASE_LOG_H
#define GLMD_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Name is what every line starts with ("coordinator", "worker/0"); it is copied. */
void log_init(const char *name, enum log_level level);

/* "error", "warn", "info" or "debug" -> level; returns -EINVAL for anything else. */
int log_level_parse(const char *text, enum log_level *ret_level);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Lines of every level that passes go to `sink` instead, without name and time; NULL restores
 * standard error. Not thread-safe: for tests, before threads start. */
void log_set_sink(void (*sink)(void *context, enum log_level level, const char *line),
                  void *context);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
