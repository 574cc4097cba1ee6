/* identity.c: see identity.h. */
#include "worker/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/random.h"

enum { BACKLOG = 128 };

static void read_boot_id(char *text, size_t size)
{
    text[0] = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
}

/* Two processes share memory by name when they run under the same kernel and see the same
 * /dev/shm; containers on one host usually have one each. */
static void find_shm_domain(struct identity *id)
{
    struct stat s;
    id->shm_domain[0] = 0;
    if (id->boot_id[0] && stat("/dev/shm", &s) == 0 && S_ISDIR(s.st_mode) &&
        access("/dev/shm", W_OK) == 0)
        snprintf(id->shm_domain, sizeof id->shm_domain, "%s:%llx:%llx", id->boot_id,
                 (unsigned long long)s.st_dev, (unsigned long long)s.st_ino);
}

/* "host:port", "[v6]:port" -> parts */
static int split_address(const char *address, char host[256], char port[8], struct err *e)
{
    const char *colon = strrchr(address, ':');
    const char *begin = address, *end = colon;
    if (colon && address[0] == '[' && colon > address + 1 && colon[-1] == ']') {
        begin++;
        end--;
    } else if (colon && memchr(address, ':', (size_t)(colon - address))) {
        colon = NULL; /* a bare IPv6 address */
    }
    if (!colon || end <= begin || end - begin > 255 || !colon[1] || strlen(colon + 1) > 5)
        return err_set(e, -EINVAL, "%s: expected HOST:PORT or [IPV6]:PORT", address);
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = 0;
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return 0;
}

static int listen_on(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0)
        return -errno;
    int one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG)) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static int describe_listener(struct identity *id, const char *host, struct err *e)
{
    union address a = {.v6 = {0}};
    socklen_t size = sizeof a;
    if (getsockname(id->listen_fd, &a.any, &size))
        return err_set(e, -errno, "listening socket: %s", err_name(-errno));
    bool v6 = a.any.sa_family == AF_INET6;
    bool everywhere =
        v6 ? IN6_IS_ADDR_UNSPECIFIED(&a.v6.sin6_addr) : a.v4.sin_addr.s_addr == htonl(INADDR_ANY);
    unsigned port = ntohs(v6 ? a.v6.sin6_port : a.v4.sin_port);
    const char *name = everywhere ? id->hostname : host;
    snprintf(id->listen_address, sizeof id->listen_address, strchr(name, ':') ? "[%s]:%u" : "%s:%u",
             name, port);
    return 0;
}

static int open_listener(struct identity *id, const char *listen_text, struct err *e)
{
    char host[256], port[8];
    int r = split_address(listen_text, host, port, e);
    if (r)
        return r;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    int g = getaddrinfo(host, port, &hints, &list);
    if (g)
        return err_set(e, -EINVAL, "worker.listen %s: %s", listen_text, gai_strerror(g));
    r = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a && r < 0; a = a->ai_next)
        r = listen_on(a);
    freeaddrinfo(list);
    if (r < 0)
        return err_set(e, r, "worker.listen %s: %s; choose an address of this host", listen_text,
                       err_name(r));
    id->listen_fd = r;
    return describe_listener(id, host, e);
}

int identity_init(struct identity *id, const char *listen_text, struct err *e)
{
    *id = (struct identity){.listen_fd = -1};
    int r = random_bytes(id->instance, sizeof id->instance);
    if (r)
        return err_set(e, r, "no random numbers from the system");
    id->pid = (uint32_t)getpid();
    if (gethostname(id->hostname, sizeof id->hostname - 1))
        snprintf(id->hostname, sizeof id->hostname, "localhost");
    read_boot_id(id->boot_id, sizeof id->boot_id);
    find_shm_domain(id);
    r = open_listener(id, listen_text, e);
    if (r)
        identity_deinit(id);
    return r;
}

void identity_deinit(struct identity *id)
{
    if (id->listen_fd >= 0)
        close(id->listen_fd);
    id->listen_fd = -1;
}
