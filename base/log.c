/* log.c: see log.h. A line is formatted on the stack and written with one write(2), so that lines
 * of several threads and processes never mix. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char log_name[64] = "glmd";
static enum log_level log_threshold = LOG_LEVEL_INFO;
static int log_to_journal;
static void (*log_sink)(void *context, enum log_level level, const char *line);
static void *sink_context;

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int level_priority[] = {3, 4, 6, 7}; /* syslog(3) */

void log_init(const char *name, enum log_level level)
{
    snprintf(log_name, sizeof log_name, "%s", name);
    log_threshold = level;
    log_to_journal = getenv("JOURNAL_STREAM") != NULL;
}

int log_level_parse(const char *text, enum log_level *ret_level)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

void log_set_sink(void (*sink)(void *context, enum log_level level, const char *line),
                  void *context)
{
    log_sink = sink;
    sink_context = context;
}

/* "<6>name: " or "12:00:00.000 info  name: "; nothing for a sink. Returns its length. */
static int write_prefix(char *line, size_t size, enum log_level level)
{
    if (log_sink)
        return 0;
    if (log_to_journal)
        return snprintf(line, size, "<%d>%s: ", level_priority[level], log_name);
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return snprintf(line, size, "%02d:%02d:%02d.%03ld %-5s %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
                    now.tv_nsec / 1000000, level_names[level], log_name);
}

void log_write(enum log_level level, const char *format, ...)
{
    if (level > log_threshold)
        return;
    char line[2048];
    int n = write_prefix(line, sizeof line, level);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    size_t length = (size_t)n + (m > 0 ? (size_t)m : 0);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    if (log_sink) {
        line[length] = '\0';
        log_sink(sink_context, level, line);
        return;
    }
    line[length++] = '\n';
    /* A log that cannot be written (disk full, closed pipe) must never stop the service. */
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written;
}
