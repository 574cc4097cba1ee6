/* rpc_grpc_addr.c: addresses: their syntax, and why one cannot be listened on. gRPC itself reports
 * nothing but "did not work". */
#include "proto/rpc/rpc_grpc.h"

#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_HOST_BYTES = 255, MAX_PORT_DIGITS = 5 };

static const char unix_prefix[] = "unix:";

static bool is_unix(const char *address)
{
    return strncmp(address, unix_prefix, sizeof unix_prefix - 1) == 0;
}

static int syntax_error(const char *address, const char *problem, struct err *e)
{
    return err_set(e, -EINVAL,
                   "address \"%.200s\": %s; expected HOST:PORT, [IPV6]:PORT or unix:PATH", address,
                   problem);
}

/* Splits HOST:PORT; the port is checked, the host only for its shape. */
static int split(const char *address, char host[MAX_HOST_BYTES + 1], unsigned *ret_port,
                 struct err *e)
{
    const char *colon = strrchr(address, ':');
    if (!colon)
        return syntax_error(address, "there is no port", e);
    const char *start = address, *end = colon;
    if (*start == '[') {
        if (end == start || end[-1] != ']')
            return syntax_error(address, "the bracket is not closed before the port", e);
        start++;
        end--;
    } else if (memchr(start, ':', (size_t)(end - start))) {
        return syntax_error(address, "an IPv6 address needs brackets", e);
    }
    size_t length = (size_t)(end - start);
    if (!length || length > MAX_HOST_BYTES)
        return syntax_error(address, "there is no host, or it is too long", e);
    memcpy(host, start, length);
    host[length] = '\0';
    if (host[strcspn(host, "/?#@% \t")])
        return syntax_error(address, "the host contains a character that none has", e);
    size_t digits = strspn(colon + 1, "0123456789");
    if (!digits || digits > MAX_PORT_DIGITS || colon[1 + digits])
        return syntax_error(address, "the port is not a number", e);
    unsigned port = 0;
    for (size_t i = 0; i < digits; i++)
        port = port * 10 + (unsigned)(colon[1 + i] - '0');
    if (port > 65535)
        return syntax_error(address, "ports end at 65535", e);
    *ret_port = port;
    return 0;
}

int address_check(const char *address, bool listening, struct err *e)
{
    if (is_unix(address)) {
        size_t length = strlen(address + sizeof unix_prefix - 1);
        if (!length || length >= sizeof((struct sockaddr_un *)0)->sun_path)
            return syntax_error(address, "a socket's path has 1 to 107 bytes", e);
        return 0;
    }
    char host[MAX_HOST_BYTES + 1];
    unsigned port = 0;
    int code = split(address, host, &port, e);
    if (!code && !port && !listening)
        return syntax_error(address, "port 0 cannot be dialed", e);
    return code;
}

static int unix_error(const char *path, int code, struct err *e)
{
    return err_set(e, code, "cannot listen on unix:%s: %s", path, err_name(code));
}

/* The folder of a socket that is not there yet. */
static int probe_folder(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char folder[sizeof((struct sockaddr_un *)0)->sun_path] = ".";
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return access(folder, W_OK | X_OK) < 0 ? unix_error(path, -errno, e) : 0;
}

/* gRPC removes whatever socket file is there, also that of a living server. */
static int probe_unix(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? probe_folder(path, e) : unix_error(path, -errno, e);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, -EEXIST, "cannot listen on unix:%s: the file is there and is no socket",
                       path);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(e, -errno, "cannot make a socket: %s", err_name(-errno));
    int r = connect(fd, (struct sockaddr *)&to, sizeof to) < 0 ? -errno : 0;
    close(fd);
    if (r == 0 || r == -EAGAIN)
        return err_set(e, -EADDRINUSE,
                       "cannot listen on unix:%s: another process listens there; stop it or choose "
                       "another path",
                       path);
    return 0; /* nobody there: a left-over file */
}

static int probe_one(const struct addrinfo *ai)
{
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); /* as gRPC does */
    int r = bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 ? -errno : 0;
    close(fd);
    return r;
}

int address_probe(const char *address, struct err *e)
{
    if (is_unix(address))
        return probe_unix(address + sizeof unix_prefix - 1, e);
    char host[MAX_HOST_BYTES + 1], service[8];
    unsigned port = 0;
    int code = split(address, host, &port, e);
    if (code)
        return code;
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found;
    int gai = getaddrinfo(host, service, &hints, &found);
    if (gai)
        return err_set(e, -EADDRNOTAVAIL, "cannot listen on %s: host \"%s\": %s", address, host,
                       gai_strerror(gai));
    bool some = false;
    int why = -EADDRNOTAVAIL;
    for (const struct addrinfo *ai = found; ai; ai = ai->ai_next) {
        int r = probe_one(ai);
        some = some || !r;
        if (r == -EADDRINUSE || r == -EACCES) { /* one of several addresses is not enough */
            some = false;
            why = r;
            break;
        }
        if (r)
            why = r;
    }
    freeaddrinfo(found);
    if (some)
        return 0;
    if (why == -EADDRINUSE)
        return err_set(e, why,
                       "cannot listen on %s: another process listens on that port; stop it or "
                       "choose another port",
                       address);
    return err_set(e, why, "cannot listen on %s: %s", address, err_name(why));
}
