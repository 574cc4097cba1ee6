/* tcp_join.c: how the ranks of a group find each other over TCP.
 *
 * Rank r connects to every rank below it and accepts every rank above. The one who connects says
 * hello (who it is, of which group, and the token); the one who accepts answers with its own rank
 * and the token, or closes. Everything that arrives before a valid hello is a stranger: it gets a
 * hello's bytes of attention at most, a place among few, and never holds up the others.
 *
 * A rank of several stages joins twice, its stage and then its column, at the same socket. One that
 * comes for the other channel, or between the two, gets an answer without a channel and tries again
 * a little later.
 */
#include <assert.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/comm/tcp.h"

enum {
    MAX_STRANGERS = 16, /* accepted connections whose hello is not complete */
    RETRY_MS = 20,      /* between attempts to reach a rank that does not listen yet */
    ADDRESS_BYTES = 320,
};

/* Both directions send this: 36 bytes, integers in network order. */
struct hello {
    uint32_t magic;
    uint32_t version;
    uint32_t channel;
    uint32_t rank; /* the sender's */
    uint32_t size;
    uint8_t token[COMM_TOKEN_BYTES];
};
static_assert(sizeof(struct hello) == 36, "the hello on the wire");

#define HELLO_MAGIC   UINT32_C(0x676c6d63)
#define HELLO_VERSION 2

struct join { /* this rank's side of the mesh while it forms */
    const uint8_t *token;
    enum tcp_channel channel;
    int rank, size;
    int64_t deadline_ns;
    int *fds; /* [size], -1 = not connected yet */
    uint32_t n_refused;
};

static struct hello make_hello(const struct join *j)
{
    struct hello h = {htonl(HELLO_MAGIC),          htonl(HELLO_VERSION),
                      htonl((uint32_t)j->channel), htonl((uint32_t)j->rank),
                      htonl((uint32_t)j->size),    {0}};
    memcpy(h.token, j->token, COMM_TOKEN_BYTES);
    return h;
}

/* Says "later" to one who may not have shown the token: without ours. */
static void send_later(int fd)
{
    struct hello h = {.magic = htonl(HELLO_MAGIC), .version = htonl(HELLO_VERSION)};
    ssize_t sent = send(fd, &h, sizeof h, MSG_NOSIGNAL);
    (void)sent; /* it tries again anyway */
}

static bool hello_is_later(const struct hello *h)
{
    return ntohl(h->magic) == HELLO_MAGIC && ntohl(h->version) == HELLO_VERSION &&
           ntohl(h->channel) == TCP_CHANNEL_NONE;
}

/* Of this group and epoch, whatever it came for. */
static bool hello_is_known(const struct join *j, const struct hello *h)
{
    return ntohl(h->magic) == HELLO_MAGIC && ntohl(h->version) == HELLO_VERSION &&
           comm_token_equal(h->token, j->token);
}

static bool hello_is_ours(const struct join *j, const struct hello *h)
{
    return hello_is_known(j, h) && ntohl(h->channel) == (uint32_t)j->channel &&
           ntohl(h->size) == (uint32_t)j->size;
}

static void prepare(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

static int ms_left(const struct join *j, int at_most_ms)
{
    int64_t left_ns = j->deadline_ns - clock_now_ns();
    if (left_ns <= 0)
        return 0;
    int64_t ms = left_ns / NSEC_PER_MSEC + 1;
    return ms < at_most_ms ? (int)ms : at_most_ms;
}

/* Waits for `events`; 0 or -ETIMEDOUT. */
static int wait_for(const struct join *j, int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (;;) {
        int n = poll(&p, 1, ms_left(j, 1000));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (clock_now_ns() >= j->deadline_ns)
            return -ETIMEDOUT;
    }
}

static int transfer(const struct join *j, int fd, struct hello *h, bool sending)
{
    size_t at = 0;
    while (at != sizeof *h) {
        char *p = (char *)h + at;
        ssize_t n =
            sending ? send(fd, p, sizeof *h - at, MSG_NOSIGNAL) : recv(fd, p, sizeof *h - at, 0);
        if (n == 0)
            return -ECONNRESET;
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return -errno;
        int r = wait_for(j, fd, sending ? POLLOUT : POLLIN);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- connecting ---- */

/* "host:port" or "[v6]:port" -> getaddrinfo; the caller frees. */
static int resolve(const char *address, struct addrinfo **ret, struct err *e)
{
    char host[ADDRESS_BYTES];
    size_t length = strlen(address);
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address || !colon[1] || length >= sizeof host)
        return err_set(e, -EINVAL, "peer address \"%s\": expected host:port", address);
    const char *begin = address;
    const char *end = colon;
    if (*begin == '[' && end[-1] == ']') {
        begin++;
        end--;
    }
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = '\0';
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    int r = getaddrinfo(host, colon + 1, &hints, ret);
    if (r != 0)
        return err_set(e, -EHOSTUNREACH, "peer address \"%s\": %s", address, gai_strerror(r));
    return 0;
}

static int connect_to(const struct join *j, const struct addrinfo *a, int *ret_fd)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    prepare(fd);
    int r = connect(fd, a->ai_addr, a->ai_addrlen) < 0 ? -errno : 0;
    if (r == -EINPROGRESS) {
        r = wait_for(j, fd, POLLOUT);
        int code = 0;
        socklen_t size = sizeof code;
        if (r == 0)
            r = getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0 ? -errno : -code;
    }
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* The handshake of the connecting side. -EAGAIN: the peer says "later". */
static int introduce(struct join *j, int fd, int peer)
{
    struct hello h = make_hello(j);
    int r = transfer(j, fd, &h, true);
    if (r == 0)
        r = transfer(j, fd, &h, false);
    if (r < 0)
        /* The peer closes on a hello that it does not like. */
        return r == -ETIMEDOUT ? r : -EACCES;
    if (hello_is_later(&h))
        return -EAGAIN;
    return hello_is_ours(j, &h) && ntohl(h.rank) == (uint32_t)peer ? 0 : -EACCES;
}

/* One attempt: connected and introduced. */
static int try_peer(struct join *j, const struct addrinfo *list, int peer, int *ret_fd,
                    bool *ret_connected)
{
    int fd = -1;
    int r = -EHOSTUNREACH;
    for (const struct addrinfo *a = list; a && r < 0; a = a->ai_next)
        r = connect_to(j, a, &fd);
    *ret_connected = r == 0;
    if (r < 0)
        return r;
    r = introduce(j, fd, peer);
    if (r < 0)
        close(fd);
    else
        *ret_fd = fd;
    return r;
}

static int reach_peer(struct join *j, const char *address, int peer, struct err *e)
{
    struct addrinfo *list = NULL;
    int r = resolve(address, &list, e);
    if (r < 0)
        return r;
    int fd = -1;
    bool connected;
    for (;;) {
        r = try_peer(j, list, peer, &fd, &connected);
        bool again = !connected || r == -EAGAIN;
        if (r == 0 || !again || clock_now_ns() >= j->deadline_ns)
            break;
        poll(NULL, 0, ms_left(j, RETRY_MS)); /* it does not listen yet, or not for this */
    }
    freeaddrinfo(list);
    if (r < 0 && (!connected || r == -EAGAIN))
        return err_set(e, -ETIMEDOUT, "cannot reach rank %d at %s in time: %s", peer, address,
                       r == -EAGAIN ? "it is still busy with another part of the group"
                                    : err_name(r));
    if (r == -ETIMEDOUT)
        return err_set(e, r, "rank %d at %s did not answer the handshake in time", peer, address);
    if (r < 0)
        return err_set(e, r, "rank %d at %s refused the handshake: another group, epoch or rank",
                       peer, address);
    j->fds[peer] = fd;
    return 0;
}

/* ---- accepting ---- */

struct stranger {
    int fd;
    size_t n_read;
    struct hello hello;
};

struct door {
    int listen_fd;
    struct stranger strangers[MAX_STRANGERS];
    uint32_t n_strangers;
};

static void drop(struct door *d, uint32_t i)
{
    d->strangers[i] = d->strangers[--d->n_strangers];
}

static void let_in(struct door *d)
{
    int fd = accept4(d->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    prepare(fd);
    if (d->n_strangers == MAX_STRANGERS) {
        /* The one that has been silent longest makes room. */
        close(d->strangers[0].fd);
        memmove(&d->strangers[0], &d->strangers[1], sizeof d->strangers - sizeof d->strangers[0]);
        d->n_strangers--;
    }
    d->strangers[d->n_strangers++] = (struct stranger){.fd = fd};
}

/* Reads from a stranger. 0: wait for more; 1: it has become rank *ret_rank; < 0: throw it out. */
static int listen_to(struct join *j, struct stranger *s, int *ret_rank)
{
    ssize_t n = recv(s->fd, (char *)&s->hello + s->n_read, sizeof s->hello - s->n_read, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -ECONNRESET;
    s->n_read += (size_t)n;
    if (s->n_read < sizeof s->hello)
        return 0;
    if (hello_is_known(j, &s->hello) && ntohl(s->hello.channel) != (uint32_t)j->channel) {
        send_later(s->fd);
        return -EAGAIN;
    }
    uint32_t rank = ntohl(s->hello.rank);
    if (!hello_is_ours(j, &s->hello) || rank <= (uint32_t)j->rank || rank >= (uint32_t)j->size ||
        j->fds[rank] >= 0)
        return -EACCES;
    struct hello answer = make_hello(j);
    /* A hello into an empty socket buffer: short only if the connection is gone. */
    if (send(s->fd, &answer, sizeof answer, MSG_NOSIGNAL) != (ssize_t)sizeof answer)
        return -ECONNRESET;
    *ret_rank = (int)rank;
    return 1;
}

static uint32_t n_missing(const struct join *j)
{
    uint32_t n = 0;
    for (int rank = j->rank + 1; rank < j->size; rank++)
        n += j->fds[rank] < 0;
    return n;
}

/* One round of the door: whoever knocks comes in, whoever has spoken is judged. */
static void serve_door(struct join *j, struct door *d, int wait_ms)
{
    struct pollfd p[MAX_STRANGERS + 1];
    uint32_t n = d->n_strangers;
    for (uint32_t i = 0; i != n; i++)
        p[i] = (struct pollfd){.fd = d->strangers[i].fd, .events = POLLIN};
    p[n] = (struct pollfd){.fd = d->listen_fd, .events = POLLIN};
    if (poll(p, n + 1, wait_ms) <= 0)
        return;
    for (uint32_t i = n; i--;) { /* backwards: drop() moves the last one here */
        if (!p[i].revents)
            continue;
        int rank = -1;
        int r = listen_to(j, &d->strangers[i], &rank);
        if (r == 0)
            continue;
        if (r > 0) {
            j->fds[rank] = d->strangers[i].fd;
        } else {
            close(d->strangers[i].fd);
            j->n_refused += r != -EAGAIN;
        }
        drop(d, i);
    }
    if (p[n].revents)
        let_in(d);
}

static int accept_peers(struct join *j, int listen_fd, struct err *e)
{
    /* A connection may vanish between poll and accept: accept must not block then. */
    int flags = fcntl(listen_fd, F_GETFL);
    if (flags < 0 || fcntl(listen_fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(e, -errno, "listening socket: %s", err_name(-errno));
    struct door d = {.listen_fd = listen_fd};
    while (n_missing(j) && clock_now_ns() < j->deadline_ns)
        serve_door(j, &d, ms_left(j, 1000));
    for (uint32_t i = 0; i != d.n_strangers; i++) {
        send_later(d.strangers[i].fd);
        close(d.strangers[i].fd);
    }
    fcntl(listen_fd, F_SETFL, flags);
    uint32_t missing = n_missing(j);
    if (missing)
        return err_set(e, -ETIMEDOUT,
                       "%u of the ranks above %d did not connect in time (%u connections refused)",
                       missing, j->rank, j->n_refused);
    return 0;
}

int tcp_join(int listen_fd, const char *const *peers, const uint8_t token[COMM_TOKEN_BYTES],
             enum tcp_channel channel, int rank, int size, int64_t deadline_ns, int *ret_fds,
             struct err *e)
{
    struct join j = {.token = token,
                     .channel = channel,
                     .rank = rank,
                     .size = size,
                     .deadline_ns = deadline_ns,
                     .fds = ret_fds};
    for (int i = 0; i != size; i++)
        ret_fds[i] = -1;
    int r = 0;
    for (int peer = 0; peer < rank && r == 0; peer++)
        r = reach_peer(&j, peers[peer], peer, e);
    if (r == 0 && rank < size - 1)
        r = accept_peers(&j, listen_fd, e);
    if (r < 0) {
        for (int i = 0; i != size; i++) {
            if (ret_fds[i] >= 0)
                close(ret_fds[i]);
        }
    }
    return r;
}
