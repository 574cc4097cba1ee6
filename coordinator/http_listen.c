/* http_listen.c: a listening socket from an address in text. */
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "coordinator/http_internal.h"

enum { BACKLOG = 1024, MAX_HOST_BYTES = 255 };

static int syntax_error(const char *address, struct err *e)
{
    return err_set(e, -EINVAL, "address \"%.200s\": expected HOST:PORT, [IPV6]:PORT or unix:PATH",
                   address);
}

static int bind_error(const char *address, int code, struct err *e)
{
    return err_set(e, code, "cannot listen on %.200s: %s%s", address, err_name(code),
                   code == -EADDRINUSE ? "; stop the other process or choose another address" : "");
}

static int split(const char *address, char host[MAX_HOST_BYTES + 1], char port[6], struct err *e)
{
    const char *colon = strrchr(address, ':');
    if (!colon)
        return syntax_error(address, e);
    const char *start = address, *end = colon;
    if (*start == '[') {
        if (end - start < 2 || end[-1] != ']')
            return syntax_error(address, e);
        start++;
        end--;
    } else if (memchr(start, ':', (size_t)(end - start))) {
        return syntax_error(address, e);
    }
    size_t n = (size_t)(end - start), digits = strspn(colon + 1, "0123456789");
    if (n == 0 || n > MAX_HOST_BYTES || digits == 0 || digits > 5 || colon[1 + digits] ||
        strtoul(colon + 1, NULL, 10) > 65535)
        return syntax_error(address, e);
    memcpy(host, start, n);
    host[n] = '\0';
    memcpy(port, colon + 1, digits + 1);
    return 0;
}

static int listen_on(const struct addrinfo *ai, const char *address, int *ret_fd, struct err *e)
{
    const int one = 1;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bind_error(address, -errno, e);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int r = bind_error(address, -errno, e);
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a;
    socklen_t n = sizeof a;
    memset(&a, 0, sizeof a);
    if (getsockname(fd, &a.any, &n) < 0)
        return 0;
    return a.any.sa_family == AF_INET6 ? ntohs(a.v6.sin6_port) : ntohs(a.v4.sin_port);
}

static int listen_tcp(const char *address, int *ret_fd, int *ret_port, struct err *e)
{
    char host[MAX_HOST_BYTES + 1], port[6];
    int r = split(address, host, port, e);
    if (r < 0)
        return r;
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code != 0)
        return err_set(e, -EINVAL, "cannot listen on %.200s: %s", address, gai_strerror(code));
    r = listen_on(found, address, ret_fd, e);
    freeaddrinfo(found);
    if (r == 0)
        *ret_port = port_of(*ret_fd);
    return r;
}

/* A socket file that a process left behind is replaced; one where somebody listens is not. */
static int clear_left_over(const struct sockaddr_un *a, const char *address, struct err *e)
{
    struct stat st;
    if (lstat(a->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : bind_error(address, -errno, e);
    if (!S_ISSOCK(st.st_mode))
        return bind_error(address, -EEXIST, e);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bind_error(address, -errno, e);
    int r = connect(fd, (const struct sockaddr *)a, sizeof *a) < 0 ? -errno : 0;
    close(fd);
    if (r == 0 || r == -EAGAIN)
        return bind_error(address, -EADDRINUSE, e);
    unlink(a->sun_path);
    return 0;
}

static int listen_unix(const char *address, const char *path, int *ret_fd, struct err *e)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof a.sun_path)
        return syntax_error(address, e);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int r = clear_left_over(&a, address, e);
    if (r < 0)
        return r;
    const struct addrinfo ai = {
        .ai_family = AF_UNIX, .ai_addr = (struct sockaddr *)&a, .ai_addrlen = sizeof a};
    return listen_on(&ai, address, ret_fd, e);
}

int http_listen_socket(const char *address, int *ret_fd, int *ret_port, char **ret_path,
                       struct err *e)
{
    static const char unix_prefix[] = "unix:";
    const size_t n = sizeof unix_prefix - 1;
    *ret_path = NULL;
    *ret_port = 0;
    if (strncmp(address, unix_prefix, n) != 0)
        return listen_tcp(address, ret_fd, ret_port, e);
    int r = listen_unix(address, address + n, ret_fd, e);
    if (r < 0)
        return r;
    *ret_path = text_dup(address + n, strlen(address + n));
    if (*ret_path)
        return 0;
    close(*ret_fd);
    return err_set(e, -ENOMEM, "out of memory");
}
