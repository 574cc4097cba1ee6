/* notify.c: see notify.h. The socket stays open and is never waited for: a full queue loses a
 * status line, and the next watchdog message comes soon. */
#include "base/notify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

enum { MESSAGE_BYTES = 1024 };

static struct {
    int fd; /* -1 = nobody listens */
    int64_t watchdog_ns;
} notify = {.fd = -1};

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || length >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = 0; /* abstract name space */
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, size)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int64_t watchdog_interval(void)
{
    const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    if (!usec || (pid && strtol(pid, NULL, 10) != getpid()))
        return 0;
    char *end;
    long long value = strtoll(usec, &end, 10);
    if (*end || value <= 0 || value > INT64_MAX / NSEC_PER_USEC)
        return 0;
    return MAX(value * NSEC_PER_USEC / 2, NSEC_PER_MSEC);
}

void notify_init(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    notify_deinit();
    if (path) {
        notify.fd = connect_to(path);
        notify.watchdog_ns = notify.fd >= 0 ? watchdog_interval() : 0;
    }
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

void notify_deinit(void)
{
    if (notify.fd >= 0)
        close(notify.fd);
    notify.fd = -1;
    notify.watchdog_ns = 0;
}

bool notify_enabled(void)
{
    return notify.fd >= 0;
}

int64_t notify_watchdog_interval_ns(void)
{
    return notify.watchdog_ns;
}

void notify_send(const char *format, ...)
{
    if (notify.fd < 0)
        return;
    char message[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (n <= 0)
        return;
    size_t size = MIN((size_t)n, sizeof message - 1);
    ssize_t sent = send(notify.fd, message, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)sent; /* see the top of the file */
}
