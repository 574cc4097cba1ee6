/* tcp.c: ranks on several hosts, over a full mesh of TCP connections.
 *
 * Sum: every rank sends each peer that peer's slice of its data, receives its own slice from all of
 * them, sums it in rank order, and sends the sum to everyone (reduce-scatter and all-gather by
 * direct exchange). Every exchange is one message to and from each peer, poll-driven, under one
 * deadline. A message starts with its number and its size, so that ranks that have got out of step
 * find out instead of adding garbage.
 *
 * abort() shuts the sockets down: peers learn of it at once, as they do when a process dies.
 */
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/reduce.h"
#include "worker/engine/comm/tcp.h"

/* Floats of one piece of a sum: bounds the receive buffer, and 1 MiB is far above the size where
 * another round trip would show. */
enum { PIECE = 1 << 18 };

struct tcp_header { /* network order */
    uint32_t number;
    uint32_t bytes;
};
static_assert(sizeof(struct tcp_header) == 8, "the message header on the wire");

/* One direction of one exchange with one peer. */
struct tcp_flow {
    struct tcp_header header;
    char *data;
    size_t bytes;
    size_t done; /* header included */
};

struct comm_tcp {
    struct comm base;
    int fds[COMM_MAX_RANKS]; /* -1 at our own place */
    int abort_fd;            /* eventfd, readable after abort() */
    _Atomic int failed;      /* 0, or what every call returns from now on */
    int64_t timeout_ns;
    uint32_t number;  /* of the next exchange */
    float *scratch;   /* [size][slice of a piece] received slices */
    size_t max_slice; /* floats */
    struct tcp_flow out[COMM_MAX_RANKS], in[COMM_MAX_RANKS];
};

static struct comm_tcp *tcp_of(struct comm *c)
{
    return (struct comm_tcp *)c;
}

/* The first failure ends the comm on this rank and, by the closed connections, on the others. */
static int fail(struct comm_tcp *t, int code)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&t->failed, &none, code)) {
        for (int peer = 0; peer != t->base.size; peer++) {
            if (t->fds[peer] >= 0)
                shutdown(t->fds[peer], SHUT_RDWR);
        }
    }
    return atomic_load(&t->failed);
}

static bool flow_finished(const struct tcp_flow *f)
{
    return f->done == sizeof f->header + f->bytes;
}

/* The part of header and data that is still to be moved. */
static int flow_iov(struct tcp_flow *f, struct iovec iov[2])
{
    int n = 0;
    size_t done = f->done;
    if (done < sizeof f->header) {
        iov[n++] = (struct iovec){(char *)&f->header + done, sizeof f->header - done};
        done = 0;
    } else {
        done -= sizeof f->header;
    }
    if (done < f->bytes)
        iov[n++] = (struct iovec){f->data + done, f->bytes - done};
    return n;
}

static int flow_send(int fd, struct tcp_flow *f)
{
    struct iovec iov[2];
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)flow_iov(f, iov)};
    ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -EIO;
    f->done += (size_t)n;
    return 0;
}

static int flow_recv(int fd, struct tcp_flow *f, uint32_t number)
{
    struct iovec iov[2];
    bool had_header = f->done >= sizeof f->header;
    int n_iov = flow_iov(f, iov);
    /* The header alone first: its check decides whether the rest may be stored. */
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)(had_header ? n_iov : 1)};
    ssize_t n = recvmsg(fd, &m, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -EIO;
    if (n == 0)
        return -EIO;
    f->done += (size_t)n;
    if (!had_header && f->done >= sizeof f->header &&
        (ntohl(f->header.number) != number || ntohl(f->header.bytes) != f->bytes))
        return -EIO;
    return 0;
}

/* What to poll for. Returns the number of unfinished directions. */
static int gather_events(const struct comm_tcp *t, struct pollfd *p)
{
    int n_left = 0;
    for (int peer = 0; peer != t->base.size; peer++) {
        short events = 0;
        if (peer != t->base.rank) {
            bool out = !flow_finished(&t->out[peer]);
            bool in = !flow_finished(&t->in[peer]);
            n_left += out + in;
            events = (short)((out ? POLLOUT : 0) | (in ? POLLIN : 0));
        }
        /* A negative descriptor is skipped by poll: nothing left to do with this peer. */
        p[peer] = (struct pollfd){.fd = events ? t->fds[peer] : -1, .events = events};
    }
    return n_left;
}

static int move_bytes(struct comm_tcp *t, const struct pollfd *p)
{
    for (int peer = 0; peer != t->base.size; peer++) {
        short happened = p[peer].fd < 0 ? 0 : p[peer].revents;
        int r = 0;
        /* Errors and hang-ups surface in the call itself; data in front of them is still read. */
        if (happened & ~POLLOUT && !flow_finished(&t->in[peer]))
            r = flow_recv(t->fds[peer], &t->in[peer], t->number);
        if (r == 0 && happened & ~POLLIN && !flow_finished(&t->out[peer]))
            r = flow_send(t->fds[peer], &t->out[peer]);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Moves t->out and t->in (data and bytes set) to and from every peer. */
static int exchange(struct comm_tcp *t)
{
    int failed = atomic_load(&t->failed);
    if (failed)
        return failed;
    for (int peer = 0; peer != t->base.size; peer++) {
        assert(t->out[peer].bytes <= UINT32_MAX);
        t->out[peer].header =
            (struct tcp_header){htonl(t->number), htonl((uint32_t)t->out[peer].bytes)};
        t->out[peer].done = t->in[peer].done = 0;
    }
    int64_t deadline_ns = clock_now_ns() + t->timeout_ns;
    struct pollfd p[COMM_MAX_RANKS + 1];
    while (gather_events(t, p)) {
        int64_t left_ns = deadline_ns - clock_now_ns();
        if (left_ns <= 0)
            return fail(t, -ETIMEDOUT);
        p[t->base.size] = (struct pollfd){.fd = t->abort_fd, .events = POLLIN};
        int64_t left_ms = left_ns / NSEC_PER_MSEC + 1;
        int n = poll(p, (nfds_t)t->base.size + 1, (int)MIN(left_ms, 60000));
        if (n < 0 && errno != EINTR)
            return fail(t, -EIO);
        if (p[t->base.size].revents)
            return fail(t, -ECANCELED);
        if (n <= 0)
            continue;
        int r = move_bytes(t, p);
        if (r < 0)
            return fail(t, r);
    }
    t->number++;
    return 0;
}

static int reduce_piece(struct comm_tcp *t, float *data, size_t n)
{
    int size = t->base.size;
    int self = t->base.rank;
    size_t begin = reduce_begin(n, size, self);
    size_t own = reduce_begin(n, size, self + 1) - begin;
    assert(own <= t->max_slice);
    for (int peer = 0; peer != size; peer++) {
        size_t peer_begin = reduce_begin(n, size, peer);
        size_t peer_n = reduce_begin(n, size, peer + 1) - peer_begin;
        t->out[peer] =
            (struct tcp_flow){.data = (char *)(data + peer_begin), .bytes = peer_n * sizeof *data};
        t->in[peer] = (struct tcp_flow){.data = (char *)(t->scratch + (size_t)peer * t->max_slice),
                                        .bytes = own * sizeof *data};
    }
    int r = exchange(t);
    if (r < 0)
        return r;
    memcpy(t->scratch + (size_t)self * t->max_slice, data + begin, own * sizeof *data);
    float *sum = data + begin;
    memcpy(sum, t->scratch, own * sizeof *data);
    for (int peer = 1; peer < size; peer++) {
        const float *part = t->scratch + (size_t)peer * t->max_slice;
        for (size_t i = 0; i != own; i++)
            sum[i] += part[i];
    }
    for (int peer = 0; peer != size; peer++) {
        size_t peer_begin = reduce_begin(n, size, peer);
        size_t peer_n = reduce_begin(n, size, peer + 1) - peer_begin;
        t->out[peer] =
            (struct tcp_flow){.data = (char *)(data + begin), .bytes = own * sizeof *data};
        t->in[peer] =
            (struct tcp_flow){.data = (char *)(data + peer_begin), .bytes = peer_n * sizeof *data};
    }
    return exchange(t);
}

static int tcp_all_reduce(struct comm *c, float *data, size_t n)
{
    for (size_t at = 0; at < n; at += PIECE) {
        int r = reduce_piece(tcp_of(c), data + at, MIN((size_t)PIECE, n - at));
        if (r < 0)
            return r;
    }
    return 0;
}

static int tcp_all_gather(struct comm *c, const void *src, size_t bytes, void *dst)
{
    struct comm_tcp *t = tcp_of(c);
    char *own = (char *)dst + (size_t)c->rank * bytes;
    if (own != src)
        memcpy(own, src, bytes);
    const size_t piece = (size_t)PIECE * sizeof(float);
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = MIN(piece, bytes - at);
        for (int peer = 0; peer != c->size; peer++) {
            t->out[peer] = (struct tcp_flow){.data = own + at, .bytes = n};
            t->in[peer] =
                (struct tcp_flow){.data = (char *)dst + (size_t)peer * bytes + at, .bytes = n};
        }
        int r = exchange(t);
        if (r < 0)
            return r;
    }
    return 0;
}

static int tcp_barrier(struct comm *c)
{
    struct comm_tcp *t = tcp_of(c);
    memset(t->out, 0, sizeof t->out);
    memset(t->in, 0, sizeof t->in);
    return exchange(t);
}

/* A peer that has ended the comm has closed its connections. */
static int tcp_state(struct comm *c)
{
    struct comm_tcp *t = tcp_of(c);
    int failed = atomic_load(&t->failed);
    if (failed)
        return failed;
    struct pollfd p[COMM_MAX_RANKS];
    for (int peer = 0; peer != c->size; peer++)
        p[peer] = (struct pollfd){.fd = t->fds[peer], .events = POLLRDHUP};
    if (poll(p, (nfds_t)c->size, 0) <= 0)
        return 0;
    for (int peer = 0; peer != c->size; peer++)
        if (p[peer].fd >= 0 && p[peer].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL))
            return fail(t, -EIO);
    return 0;
}

static void tcp_abort(struct comm *c)
{
    struct comm_tcp *t = tcp_of(c);
    fail(t, -ECANCELED);
    uint64_t one = 1;
    ssize_t n = write(t->abort_fd, &one, sizeof one);
    (void)n; /* fails only when the counter is full, that is, readable */
}

static void tcp_close(struct comm *c)
{
    struct comm_tcp *t = tcp_of(c);
    for (int peer = 0; peer != c->size; peer++) {
        if (t->fds[peer] >= 0)
            close(t->fds[peer]);
    }
    if (t->abort_fd >= 0)
        close(t->abort_fd);
    free(t->scratch);
    free(t);
}

static const struct comm_ops ops = {
    .name = "tcp",
    .all_reduce = tcp_all_reduce,
    .all_gather = tcp_all_gather,
    .barrier = tcp_barrier,
    .state = tcp_state,
    .abort = tcp_abort,
    .close = tcp_close,
};

int comm_tcp_new(int listen_fd, const char *const *peers, const uint8_t token[16], int rank,
                 int size, int64_t timeout_ns, struct comm **ret, struct err *e)
{
    if (size < 1 || size > COMM_MAX_RANKS || rank < 0 || rank >= size)
        return err_set(e, -EINVAL,
                       "rank %d of %d: expected a rank below the size, at most %d ranks", rank,
                       size, COMM_MAX_RANKS);
    struct comm_tcp *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, -ENOMEM, "out of memory");
    t->base = (struct comm){
        .ops = &ops, .rank = rank, .size = size, .n_stages = 1, .timeout_ns = timeout_ns};
    t->timeout_ns = timeout_ns;
    for (int i = 0; i != COMM_MAX_RANKS; i++)
        t->fds[i] = -1;
    t->abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->max_slice = (size_t)PIECE / (size_t)size + 1;
    t->scratch = alloc_array((size_t)size * t->max_slice, sizeof *t->scratch);
    int r = 0;
    if (t->abort_fd < 0 || !t->scratch)
        r = err_set(e, -ENOMEM, "out of memory or descriptors");
    if (r == 0)
        r = tcp_join(listen_fd, peers, token, TCP_CHANNEL_STAGE, rank, size,
                     clock_now_ns() + timeout_ns, t->fds, e);
    if (r < 0) {
        /* tcp_join has closed what it opened */
        for (int i = 0; i != COMM_MAX_RANKS; i++)
            t->fds[i] = -1;
        tcp_close(&t->base);
        return r;
    }
    *ret = &t->base;
    return 0;
}
