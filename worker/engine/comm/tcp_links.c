/* tcp_links.c: links between stages on several hosts.
 *
 * A thread of its own (the mover) takes what the engine has put into the out ring to the socket of
 * the next stage, and what comes from the socket of the previous one into the in ring. With two
 * stages both are one socket.
 *
 *   engine --put--> out ring --mover--> next stage       previous stage --mover--> in ring
 * --take-->
 *
 * The engine tells the mover by an eventfd that it has moved bytes, the mover wakes the engine by
 * the rings. When a peer goes away or anything fails, the column is over: the sockets are shut
 * down, so that the neighbours learn of it at once.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/comm/barrier.h"
#include "worker/engine/comm/links.h"
#include "worker/engine/comm/tcp.h"

struct tcp_links {
    struct comm_links links;
    struct comm_ring_shared *out, *in; /* owned */
    int next_fd, prev_fd;              /* owned; equal with two stages */
    int event_fd;                      /* owned */
    pthread_t mover;
    bool has_mover;
    _Atomic int32_t failed;
    _Atomic int closing;
    /* the mover's own view */
    struct comm_ring mover_out, mover_in;
};

static void kick(struct comm_links *l)
{
    uint64_t one = 1;
    ssize_t n = write(((struct tcp_links *)l)->event_fd, &one, sizeof one);
    (void)n; /* fails only when the counter is full, that is, readable */
}

static int tcp_fail(struct comm_links *l, int code)
{
    struct tcp_links *t = (struct tcp_links *)l;
    int32_t none = 0;
    if (atomic_compare_exchange_strong(&t->failed, &none, code)) {
        shutdown(t->next_fd, SHUT_RDWR);
        shutdown(t->prev_fd, SHUT_RDWR);
    }
    comm_ring_wake(t->out);
    comm_ring_wake(t->in);
    kick(l);
    return atomic_load(&t->failed);
}

/* ---- the mover ---- */

static int send_some(struct tcp_links *t)
{
    const char *p = NULL;
    size_t n_filled = comm_ring_filled(&t->mover_out, &p);
    if (!n_filled)
        return 0;
    ssize_t n = send(t->next_fd, p, n_filled, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -EIO;
    comm_ring_took(&t->mover_out, (size_t)n);
    return 0;
}

static int recv_some(struct tcp_links *t)
{
    char *p = NULL;
    size_t room = comm_ring_room(&t->mover_in, &p);
    if (!room)
        return 0;
    ssize_t n = recv(t->prev_fd, p, room, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -EIO;
    if (n == 0)
        return -EIO;
    comm_ring_wrote(&t->mover_in, (size_t)n);
    return 0;
}

/* One round: waits until something can move and moves it. */
static int move(struct tcp_links *t)
{
    const char *filled;
    char *room;
    short out = comm_ring_filled(&t->mover_out, &filled) ? POLLOUT : 0;
    short in = comm_ring_room(&t->mover_in, &room) ? POLLIN : 0;
    struct pollfd p[3] = {{.fd = t->event_fd, .events = POLLIN},
                          {.fd = t->next_fd, .events = (short)(out | POLLRDHUP)},
                          {.fd = t->prev_fd, .events = (short)(in | POLLRDHUP)}};
    if (poll(p, ARRAY_LEN(p), -1) < 0)
        return errno == EINTR ? 0 : -EIO;
    uint64_t count;
    if (p[0].revents && read(t->event_fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return -EIO;
    int r = 0;
    if (p[2].revents & POLLIN)
        r = recv_some(t);
    if (r == 0 && p[1].revents & POLLOUT)
        r = send_some(t);
    /* What the peer sent before it went away does not help: the step cannot end without it. */
    if (r == 0 && (p[1].revents | p[2].revents) & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL))
        r = -EIO;
    return r;
}

static void *mover_main(void *context)
{
    struct tcp_links *t = context;
    pthread_setname_np(pthread_self(), "links");
    while (!atomic_load(&t->closing) && !atomic_load(&t->failed)) {
        int r = move(t);
        if (r < 0 && !atomic_load(&t->closing))
            tcp_fail(&t->links, r);
    }
    return NULL;
}

/* ---- life cycle ---- */

static void tcp_links_close(struct comm *c)
{
    struct tcp_links *t = (struct tcp_links *)c;
    if (t->has_mover) {
        atomic_store(&t->closing, 1);
        kick(&t->links);
        pthread_join(t->mover, NULL);
    }
    if (t->prev_fd >= 0 && t->prev_fd != t->next_fd)
        close(t->prev_fd);
    if (t->next_fd >= 0)
        close(t->next_fd);
    if (t->event_fd >= 0)
        close(t->event_fd);
    free(t->out);
    free(t->in);
    free(t);
}

static const struct comm_ops ops = {
    .name = "tcp",
    .all_reduce = comm_links_all_reduce,
    .all_gather = comm_links_all_gather,
    .barrier = comm_links_barrier,
    .send = comm_links_send,
    .recv = comm_links_recv,
    .state = comm_links_barrier, /* which does not wait */
    .abort = comm_links_abort,
    .close = tcp_links_close,
};

static struct comm_ring_shared *new_ring(struct tcp_links *t, size_t capacity,
                                         struct comm_ring *engine_side,
                                         struct comm_ring *mover_side)
{
    struct comm_ring_shared *s = aligned_alloc(64, comm_ring_bytes(capacity));
    if (!s)
        return NULL;
    memset(s, 0, sizeof *s);
    comm_ring_attach(engine_side, s, capacity, &t->failed, comm_spin_ns(2, COMM_LINK_SPIN_NS));
    comm_ring_attach(mover_side, s, capacity, &t->failed, 0);
    return s;
}

/* Every stage meets every other one and keeps its neighbours. */
static int meet(struct tcp_links *t, int listen_fd, const char *const *peers, const uint8_t *token,
                struct err *e)
{
    int stage = t->links.base.stage;
    int n_stages = t->links.base.n_stages;
    int fds[COMM_MAX_STAGES];
    int r = tcp_join(listen_fd, peers, token, TCP_CHANNEL_LINKS, stage, n_stages,
                     clock_now_ns() + t->links.timeout_ns, fds, e);
    if (r < 0)
        return r;
    int next = (stage + 1) % n_stages;
    int prev = (stage + n_stages - 1) % n_stages;
    t->next_fd = fds[next];
    t->prev_fd = fds[prev];
    for (int s = 0; s != n_stages; s++) {
        if (s != stage && s != next && s != prev)
            close(fds[s]);
    }
    return 0;
}

static int start_mover(struct tcp_links *t, struct err *e)
{
    int r = -pthread_create(&t->mover, NULL, mover_main, t);
    t->has_mover = r == 0;
    return r < 0 ? err_set(e, r, "cannot start a thread for the links: %s", err_name(r)) : 0;
}

int comm_tcp_links_new(int listen_fd, const char *const *peers, const uint8_t token[16], int stage,
                       int n_stages, size_t link_bytes, int64_t timeout_ns, struct comm **ret,
                       struct err *e)
{
    int r = comm_links_check(stage, n_stages, link_bytes, e);
    if (r < 0)
        return r;
    struct tcp_links *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, -ENOMEM, "out of memory");
    t->links = (struct comm_links){
        .base = {.ops = &ops, .size = 1, .stage = stage, .n_stages = n_stages},
        .timeout_ns = timeout_ns,
        .moved = kick,
        .fail = tcp_fail,
    };
    t->next_fd = t->prev_fd = -1;
    t->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int before = (stage + n_stages - 1) % n_stages;
    t->out =
        new_ring(t, comm_links_capacity(stage, n_stages, link_bytes), &t->links.out, &t->mover_out);
    t->in =
        new_ring(t, comm_links_capacity(before, n_stages, link_bytes), &t->links.in, &t->mover_in);
    if (t->event_fd < 0 || !t->out || !t->in)
        r = err_set(e, -ENOMEM, "out of memory or descriptors");
    if (r == 0)
        r = meet(t, listen_fd, peers, token, e);
    if (r == 0)
        r = start_mover(t, e);
    if (r < 0) {
        tcp_links_close(&t->links.base);
        return r;
    }
    *ret = &t->links.base;
    return 0;
}
