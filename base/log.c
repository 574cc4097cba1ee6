/* log.c: see log.h. An event is formatted on the stack and goes out with one system call, so that
 * those of several threads and processes never mix. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log_format.h"
#include "base/utf8.h"

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static struct {
    char name[64];
    enum log_level threshold;
    enum log_format format; /* never LOG_FORMAT_AUTO */
    bool syslog;            /* text starts with the priority: journald reads standard error */
    int journal_fd;         /* -1 = none */
    struct log_fields defaults;
    void (*sink)(void *context, enum log_level level, const char *line);
    void *sink_context;
} state = {
    .name = "glmd", .threshold = LOG_LEVEL_INFO, .format = LOG_FORMAT_TEXT, .journal_fd = -1};

/* ---- where to ---- */

/* JOURNAL_STREAM is DEVICE:INODE of what was standard output or error when systemd started us: it
 * may have been redirected since. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat s;
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &s) == 0 && (unsigned long long)s.st_dev == device &&
           (unsigned long long)s.st_ino == inode;
}

int log_set_journal(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (state.journal_fd >= 0)
        close(state.journal_fd);
    state.journal_fd = -1;
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    state.journal_fd = fd;
    state.format = LOG_FORMAT_JOURNAL;
    return 0;
}

void log_init(const char *name, enum log_level level, enum log_format format)
{
    snprintf(state.name, sizeof state.name, "%s", name);
    state.threshold = level;
    state.syslog = stderr_is_journal();
    if (format == LOG_FORMAT_AUTO)
        format = state.syslog ? LOG_FORMAT_JOURNAL : LOG_FORMAT_TEXT;
    state.format = format == LOG_FORMAT_JSON ? LOG_FORMAT_JSON : LOG_FORMAT_TEXT;
    if (format == LOG_FORMAT_JOURNAL)
        log_set_journal(JOURNAL_SOCKET); /* without one: text */
}

void log_set_fields(const struct log_fields *defaults)
{
    state.defaults = *defaults;
}

void log_set_sink(void (*sink)(void *context, enum log_level level, const char *line),
                  void *context)
{
    state.sink = sink;
    state.sink_context = context;
}

int log_level_parse(const char *text, enum log_level *ret_level)
{
    for (int i = 0; i <= LOG_LEVEL_DEBUG; i++) {
        if (strcmp(text, log_level_name((enum log_level)i)) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* ---- an event ---- */

static void complete(struct log_fields *f)
{
    const struct log_fields *d = &state.defaults;
    f->request = f->request ? f->request : d->request;
    f->trace = f->trace ? f->trace : d->trace;
    f->group = f->group ? f->group : d->group;
    f->rank = f->rank ? f->rank : d->rank;
    f->epoch = f->epoch ? f->epoch : d->epoch;
    f->step = f->step ? f->step : d->step;
}

/* A log that cannot be written (disk full, closed pipe, a journal that is busy) must never stop the
 * service. */
static void send_line(const struct log_line *l)
{
    char out[LOG_LINE_BYTES];
    size_t n;
    if (state.format == LOG_FORMAT_JOURNAL) {
        n = log_format_journal(l, out);
        if (send(state.journal_fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n)
            return;
    }
    n = state.format == LOG_FORMAT_JSON ? log_format_json(l, out)
        : state.syslog                  ? log_format_syslog(l, out)
                                        : log_format_text(l, out);
    ssize_t written = write(STDERR_FILENO, out, n);
    (void)written;
}

void log_event(enum log_level level, const struct log_fields *fields, const char *format, ...)
{
    char message[LOG_MESSAGE_BYTES];
    if (level > state.threshold)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    utf8_repair(message, strlen(message)); /* it may have been cut inside a character */
    if (state.sink) {
        state.sink(state.sink_context, level, message);
        return;
    }
    struct log_line l = {.level = level, .name = state.name, .message = message};
    if (fields)
        l.fields = *fields;
    complete(&l.fields);
    clock_gettime(CLOCK_REALTIME, &l.time);
    send_line(&l);
}
