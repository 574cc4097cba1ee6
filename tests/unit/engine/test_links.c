/* test_links.c: messages between stages and whole groups, every transport through the same cases:
 * sizes around what a link holds, running ahead, stages out of step, abort, missing stages, a
 * killed process, damaged positions in shared memory; sums and messages of a grid of ranks
 * together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "tests/unit/engine/comm_rig.h"
#include "worker/engine/comm/group.h"
#include "worker/engine/comm/links.h"

enum { MAX_RANKS = 6, LINK_BYTES = 10000 };

/* ---- a group whose ranks are threads ---- */

struct group;
struct member {
    struct group *group;
    int rank; /* in the group */
    struct comm *comm;
    int opened; /* result of opening */
    struct err error;
    pthread_t thread;
};

struct group {
    int tp_size, pp_size;
    enum transport within, between;
    int64_t timeout_ns;
    void (*body)(struct member *m);
    pthread_barrier_t all_open; /* a body may end the group, which must not catch one that joins */
    char name[64];
    int listen_fds[MAX_RANKS];
    char addresses[MAX_RANKS][32];
    const char *peers[MAX_RANKS];
    struct comm *inproc[MAX_RANKS]; /* columns of one rank only */
    struct member members[MAX_RANKS];
};

static int n_ranks(const struct group *g)
{
    return g->tp_size * g->pp_size;
}

static void group_init(struct group *g, enum transport within, enum transport between, int tp_size,
                       int pp_size, int64_t timeout_ns)
{
    static int serial;
    memset(g, 0, sizeof *g);
    g->within = within;
    g->between = between;
    g->tp_size = tp_size;
    g->pp_size = pp_size;
    g->timeout_ns = timeout_ns;
    snprintf(g->name, sizeof g->name, "glmd-test-links-%d-%d", (int)getpid(), serial++);
    for (int rank = 0; rank != n_ranks(g); rank++) {
        g->members[rank].group = g;
        g->members[rank].rank = rank;
        g->listen_fds[rank] = listen_any(g->addresses[rank]);
        g->peers[rank] = g->addresses[rank];
    }
    if (between == INPROC) {
        assert_int_equal(tp_size, 1);
        assert_int_equal(comm_inproc_links_new(pp_size, LINK_BYTES, timeout_ns, g->inproc), 0);
    }
}

static int open_rank(struct group *g, int rank, struct comm **ret, struct err *e)
{
    if (g->between == INPROC) {
        *ret = g->inproc[rank];
        return 0;
    }
    struct comm_group_config c = {.tp_size = g->tp_size,
                                  .pp_size = g->pp_size,
                                  .rank = rank,
                                  .within_stage = g->within == SHM ? COMM_SHM : COMM_TCP,
                                  .between_stages = g->between == SHM ? COMM_SHM : COMM_TCP,
                                  .name = g->name,
                                  .token = token,
                                  .listen_fd = g->listen_fds[rank],
                                  .peers = g->peers,
                                  .piece_bytes = 8192,
                                  .link_bytes = LINK_BYTES,
                                  .timeout_ns = g->timeout_ns};
    return comm_group_new(&c, ret, e);
}

static void *member_main(void *context)
{
    struct member *m = context;
    m->opened = open_rank(m->group, m->rank, &m->comm, &m->error);
    pthread_barrier_wait(&m->group->all_open);
    if (m->opened == 0)
        m->group->body(m);
    return NULL;
}

/* Runs `body` on every rank; the comms stay open until group_close. */
static void group_run(struct group *g, void (*body)(struct member *m))
{
    g->body = body;
    assert_int_equal(pthread_barrier_init(&g->all_open, NULL, (unsigned)n_ranks(g)), 0);
    for (int rank = 0; rank != n_ranks(g); rank++)
        assert_int_equal(
            pthread_create(&g->members[rank].thread, NULL, member_main, &g->members[rank]), 0);
    for (int rank = 0; rank != n_ranks(g); rank++)
        pthread_join(g->members[rank].thread, NULL);
    pthread_barrier_destroy(&g->all_open);
    for (int rank = 0; rank != n_ranks(g); rank++) {
        if (g->members[rank].opened < 0)
            fail_msg("%s/%s rank %d: %s", transport_names[g->within], transport_names[g->between],
                     rank, g->members[rank].error.message);
    }
}

static void group_close(struct group *g)
{
    for (int rank = 0; rank != n_ranks(g); rank++) {
        comm_close(g->members[rank].comm);
        close(g->listen_fds[rank]);
    }
}

static void nothing(struct member *m)
{
    (void)m;
}

/* ---- the ring ---- */

static void test_ring(void **state)
{
    (void)state;
    enum { CAPACITY = 100 }; /* not a power of two: positions wrap anywhere */
    _Atomic int32_t failed = 0;
    void *memory = aligned_alloc(64, comm_ring_bytes(CAPACITY));
    assert_non_null(memory);
    memset(memory, 0, comm_ring_bytes(CAPACITY));
    struct comm_ring w;
    struct comm_ring r;
    comm_ring_attach(&w, memory, CAPACITY, &failed, 0);
    comm_ring_attach(&r, memory, CAPACITY, &failed, 0);
    char *room = NULL;
    const char *filled = NULL;
    assert_int_equal(comm_ring_filled(&r, &filled), 0);
    assert_int_equal(comm_ring_wait_data(&r, clock_now_ns() + NSEC_PER_MSEC), -ETIMEDOUT);
    uint8_t next_in = 0;
    uint8_t next_out = 0;
    for (size_t i = 0; i != 1000; i++) {
        size_t n = comm_ring_room(&w, &room);
        n = MIN(n, 1 + i * 7 % 37);
        for (size_t j = 0; j != n; j++)
            room[j] = (char)next_in++;
        comm_ring_wrote(&w, n);
        n = comm_ring_filled(&r, &filled);
        n = MIN(n, 1 + i * 11 % 41);
        for (size_t j = 0; j != n; j++)
            assert_int_equal((uint8_t)filled[j], next_out++);
        comm_ring_took(&r, n);
    }
    while (comm_ring_room(&w, &room))
        comm_ring_wrote(&w, comm_ring_room(&w, &room));
    assert_int_equal(comm_ring_wait_room(&w, clock_now_ns() + NSEC_PER_MSEC), -ETIMEDOUT);
    assert_int_equal(comm_ring_wait_data(&r, clock_now_ns()), 0);

    /* Positions that another process has damaged become no offset. */
    atomic_fetch_add(&w.shared->written, 1);
    assert_int_equal(comm_ring_filled(&r, &filled), 0);
    assert_int_equal(comm_ring_room(&w, &room), 0);
    assert_int_equal(comm_ring_wait_data(&r, clock_now_ns() + NSEC_PER_SEC), -EIO);
    assert_int_equal(comm_ring_wait_room(&w, clock_now_ns() + NSEC_PER_SEC), -EIO);
    free(memory);
}

/* ---- messages ---- */

/* Below, at and far above what a link holds. */
static const size_t sizes[] = {0, 1, 63, 64, 4095, 9984, 10000, 10001, 100003, 1000000};

static uint8_t content(int from_stage, int rank, uint32_t number, size_t i)
{
    return (uint8_t)(i * 7 + i / 251 + number * 31 + (uint32_t)from_stage * 101 +
                     (uint32_t)rank * 17);
}

static void send_message(struct comm *c, uint32_t number, size_t bytes)
{
    uint8_t *data = alloc_array(bytes, 1);
    for (size_t i = 0; i != bytes; i++)
        data[i] = content(c->stage, c->rank, number, i);
    assert_int_equal(c->ops->send(c, data, bytes), 0);
    free(data);
}

static void recv_message(struct comm *c, uint32_t number, size_t bytes)
{
    int from = (c->stage + c->n_stages - 1) % c->n_stages;
    uint8_t *data = alloc_array(bytes, 1);
    assert_int_equal(c->ops->recv(c, data, bytes), 0);
    for (size_t i = 0; i != bytes; i++) {
        if (data[i] != content(from, c->rank, number, i))
            fail_msg("%s stage %d of %d: message %u, byte %zu of %zu is %u, expected %u",
                     c->ops->name, c->stage, c->n_stages, number, i, bytes, data[i],
                     content(from, c->rank, number, i));
    }
    free(data);
}

/* Down the column, and a few bytes from the last stage to the first. */
static void pass_messages(struct member *m)
{
    struct comm *c = m->comm;
    assert_int_equal(c->stage, m->rank / m->group->tp_size);
    assert_int_equal(c->n_stages, m->group->pp_size);
    assert_int_equal(c->rank, m->rank % m->group->tp_size);
    assert_int_equal(c->size, m->group->tp_size);
    uint32_t number = 0;
    for (uint32_t run = 0; run != 3; run++) {
        for (size_t i = 0; i != ARRAY_LEN(sizes); i++, number++) {
            if (c->stage > 0)
                recv_message(c, number, sizes[i]);
            if (c->stage + 1 < c->n_stages)
                send_message(c, number, sizes[i]);
        }
        if (c->stage + 1 == c->n_stages)
            send_message(c, run, 4);
        if (c->stage == 0)
            recv_message(c, run, 4);
    }
    for (uint32_t run = 0; run != 500; run++, number++) {
        if (c->stage > 0)
            recv_message(c, number, run % 97);
        if (c->stage + 1 < c->n_stages)
            send_message(c, number, run % 97);
        assert_int_equal(c->ops->barrier(c), 0);
    }
}

static void test_messages(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        for (int n_stages = 2; n_stages <= 5; n_stages++) {
            struct group g;
            group_init(&g, (enum transport)t, (enum transport)t, 1, n_stages, LONG_NS);
            group_run(&g, pass_messages);
            group_close(&g);
        }
    }
}

/* A stage of one rank has collectives, too. */
static void test_collectives_of_one(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, (enum transport)t, 1, 2, LONG_NS);
        group_run(&g, nothing);
        struct comm *c = g.members[0].comm;
        float x = 3.0f;
        float y = 0.0f;
        assert_int_equal(c->ops->all_reduce(c, &x, 1), 0);
        assert_int_equal(c->ops->all_gather(c, &x, sizeof x, &y), 0);
        assert_true(x == 3.0f && y == 3.0f);
        group_close(&g);
    }
}

/* What fits the link is sent without anybody receiving. */
static void test_running_ahead(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, (enum transport)t, 1, 3, LONG_NS);
        group_run(&g, nothing);
        send_message(g.members[0].comm, 0, LINK_BYTES / 2);
        send_message(g.members[0].comm, 1, LINK_BYTES / 2 - 64);
        send_message(g.members[1].comm, 0, LINK_BYTES);
        for (uint32_t i = 0; i != 20; i++)
            send_message(g.members[2].comm, i, 8);
        recv_message(g.members[2].comm, 0, LINK_BYTES);
        recv_message(g.members[1].comm, 0, LINK_BYTES / 2);
        recv_message(g.members[1].comm, 1, LINK_BYTES / 2 - 64);
        for (uint32_t i = 0; i != 20; i++)
            recv_message(g.members[0].comm, i, 8);
        group_close(&g);
    }
}

/* ---- grids ---- */

static void sums_and_messages(struct member *m)
{
    struct comm *c = m->comm;
    for (uint32_t run = 0; run != 50; run++) {
        float x[100];
        for (size_t i = 0; i != ARRAY_LEN(x); i++)
            x[i] = (float)(c->stage * 1000 + c->rank * 10) + (float)run;
        float sum = 0.0f;
        for (int rank = 0; rank != c->size; rank++)
            sum += (float)(c->stage * 1000 + rank * 10) + (float)run;
        assert_int_equal(c->ops->all_reduce(c, x, ARRAY_LEN(x)), 0);
        for (size_t i = 0; i != ARRAY_LEN(x); i++)
            assert_true(x[i] == sum);
        int32_t ranks[MAX_RANKS];
        ranks[c->rank] = c->stage * c->size + c->rank;
        assert_int_equal(c->ops->all_gather(c, &ranks[c->rank], sizeof ranks[0], ranks), 0);
        for (int rank = 0; rank != c->size; rank++)
            assert_int_equal(ranks[rank], c->stage * c->size + rank);
        if (c->stage > 0)
            recv_message(c, run, 12345);
        if (c->stage + 1 < c->n_stages)
            send_message(c, run, 12345);
        assert_int_equal(c->ops->barrier(c), 0);
    }
}

static const struct {
    enum transport within, between;
    int tp_size, pp_size;
} grids[] = {
    {SHM, SHM, 2, 2}, {TCP, TCP, 2, 2}, {SHM, TCP, 2, 2}, {TCP, SHM, 2, 2}, {TCP, TCP, 2, 3},
    {TCP, TCP, 3, 2}, {SHM, SHM, 3, 2}, {SHM, TCP, 2, 3}, {TCP, TCP, 3, 1}, {SHM, SHM, 2, 1},
};

static void test_grids(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(grids); i++) {
        struct group g;
        group_init(&g, grids[i].within, grids[i].between, grids[i].tp_size, grids[i].pp_size,
                   LONG_NS);
        group_run(&g, sums_and_messages);
        group_close(&g);
    }
}

/* Rank 0 fails; the others run until they notice, which is before their deadlines. */
static void until_failure(struct member *m)
{
    struct comm *c = m->comm;
    float x[10] = {0};
    char data[100] = {0};
    int r = 0;
    for (uint32_t run = 0; r == 0; run++) {
        if (m->rank == 0 && run == 20)
            c->ops->abort(c);
        r = c->ops->all_reduce(c, x, ARRAY_LEN(x));
        if (r == 0 && c->stage > 0)
            r = c->ops->recv(c, data, sizeof data);
        if (r == 0 && c->stage + 1 < c->n_stages)
            r = c->ops->send(c, data, sizeof data);
    }
    assert_true(r == -ECANCELED || r == -EIO);
    assert_true(c->ops->barrier(c) < 0);
    assert_true(c->ops->send(c, data, sizeof data) < 0);
    assert_true(c->ops->recv(c, data, sizeof data) < 0);
}

static void test_failure_reaches_all(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(grids); i++) {
        if (grids[i].pp_size == 1)
            continue;
        struct group g;
        int64_t begin_ns = clock_now_ns();
        group_init(&g, grids[i].within, grids[i].between, grids[i].tp_size, grids[i].pp_size,
                   LONG_NS);
        group_run(&g, until_failure);
        assert_true(clock_now_ns() - begin_ns < LONG_NS);
        group_close(&g);
    }
}

/* ---- failures ---- */

static void test_out_of_step(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, (enum transport)t, 1, 2, LONG_NS);
        group_run(&g, nothing);
        struct comm *c = g.members[1].comm;
        char data[16] = {0};
        send_message(g.members[0].comm, 0, 8);
        assert_int_equal(c->ops->recv(c, data, 9), -EIO);
        assert_int_equal(c->ops->recv(c, data, 8), -EIO);
        group_close(&g);
    }
}

struct pending {
    struct comm *comm;
    int result;
};

static void *recv_once(void *context)
{
    struct pending *p = context;
    char data[100];
    p->result = p->comm->ops->recv(p->comm, data, sizeof data);
    return NULL;
}

static void *send_too_much(void *context)
{
    struct pending *p = context;
    static const char data[100000];
    p->result = p->comm->ops->send(p->comm, data, sizeof data);
    /* TCP: the other side's buffers take some, too. */
    while (p->result == 0)
        p->result = p->comm->ops->send(p->comm, data, sizeof data);
    return NULL;
}

/* abort() ends a call that waits for the neighbour; the neighbour learns of it. */
static void test_abort(void **state)
{
    (void)state;
    static void *(*const calls[])(void *) = {recv_once, send_too_much};
    for (size_t i = 0; i != N_TRANSPORTS * ARRAY_LEN(calls); i++) {
        enum transport t = (enum transport)(i / ARRAY_LEN(calls));
        struct group g;
        group_init(&g, t, t, 1, 2, LONG_NS);
        group_run(&g, nothing);
        struct pending p = {.comm = g.members[0].comm};
        pthread_t thread;
        int64_t begin_ns = clock_now_ns();
        assert_int_equal(pthread_create(&thread, NULL, calls[i % ARRAY_LEN(calls)], &p), 0);
        p.comm->ops->abort(p.comm);
        pthread_join(thread, NULL);
        assert_int_equal(p.result, -ECANCELED);
        assert_int_equal(p.comm->ops->barrier(p.comm), -ECANCELED);
        p.comm->ops->abort(p.comm); /* idempotent */
        struct pending peer = {.comm = g.members[1].comm};
        recv_once(&peer);
        assert_int_equal(peer.result, t == TCP ? -EIO : -ECANCELED);
        assert_true(clock_now_ns() - begin_ns < LONG_NS / 2);
        group_close(&g);
    }
}

static void test_missing_stage(void **state)
{
    (void)state;
    static void *(*const calls[])(void *) = {recv_once, send_too_much};
    for (size_t i = 0; i != N_TRANSPORTS * ARRAY_LEN(calls); i++) {
        enum transport t = (enum transport)(i / ARRAY_LEN(calls));
        struct group g;
        group_init(&g, t, t, 1, 3, t == INPROC ? SHORT_NS : NSEC_PER_SEC);
        group_run(&g, nothing);
        struct pending p = {.comm = g.members[1].comm};
        int64_t begin_ns = clock_now_ns();
        calls[i % ARRAY_LEN(calls)](&p);
        int64_t waited_ns = clock_now_ns() - begin_ns;
        assert_int_equal(p.result, -ETIMEDOUT);
        assert_true(waited_ns >= g.timeout_ns && waited_ns < LONG_NS);
        assert_int_equal(p.comm->ops->barrier(p.comm), -ETIMEDOUT);
        for (int stage = 0; stage <= 2; stage += 2) { /* without waiting */
            p.comm = g.members[stage].comm;
            recv_once(&p);
            assert_true(p.result == -ETIMEDOUT || p.result == -EIO);
        }
        group_close(&g);
    }
}

static void test_alone(void **state)
{
    (void)state;
    static const enum transport transports[] = {SHM, TCP};
    for (size_t i = 0; i != ARRAY_LEN(transports); i++) {
        for (int rank = 0; rank != 2; rank++) {
            struct group g;
            group_init(&g, transports[i], transports[i], 1, 2, SHORT_NS);
            close(g.listen_fds[!rank]); /* the other one does not listen either */
            struct comm *c = NULL;
            struct err e = ERR_INIT;
            assert_int_equal(open_rank(&g, rank, &c, &e), -ETIMEDOUT);
            assert_int_equal(e.code, -ETIMEDOUT);
            assert_true(e.message[0]);
            close(g.listen_fds[rank]);
        }
    }
}

static void test_bad_arguments(void **state)
{
    (void)state;
    struct comm *c[2] = {NULL};
    struct err e = ERR_INIT;
    assert_int_equal(comm_inproc_links_new(1, 64, SHORT_NS, c), -EINVAL);
    assert_int_equal(comm_inproc_links_new(2, SIZE_MAX, SHORT_NS, c), -EINVAL);
    assert_int_equal(comm_shm_links_new("x", token, 2, 2, 64, SHORT_NS, c, &e), -EINVAL);
    assert_int_equal(comm_shm_links_new("a/b", token, 0, 2, 64, SHORT_NS, c, &e), -EINVAL);
    const char *peers[] = {"nowhere", "127.0.0.1:1"};
    assert_int_equal(comm_tcp_links_new(-1, peers, token, 1, 2, 64, SHORT_NS, c, &e), -EINVAL);
    assert_non_null(strstr(e.message, "nowhere"));
    static const struct comm_group_config groups[] = {
        {.tp_size = 0, .pp_size = 1},
        {.tp_size = 1, .pp_size = COMM_MAX_STAGES + 1},
        {.tp_size = 2, .pp_size = 2, .rank = 4, .within_stage = COMM_SHM},
        {.tp_size = 2, .pp_size = 1},
        {.tp_size = 1, .pp_size = 2, .within_stage = COMM_SHM},
    };
    for (size_t i = 0; i != ARRAY_LEN(groups); i++)
        assert_int_equal(comm_group_new(&groups[i], c, &e), -EINVAL);
    struct comm_group_config one = {.tp_size = 1, .pp_size = 1};
    assert_int_equal(comm_group_new(&one, c, &e), 0);
    assert_string_equal(c[0]->ops->name, "self");
    comm_close(c[0]);
}

/* A stage's process dies in the middle: the survivor gets an error within the deadline. */
static void test_killed_process(void **state)
{
    (void)state;
    static const enum transport transports[] = {SHM, TCP};
    for (size_t i = 0; i != ARRAY_LEN(transports); i++) {
        struct group g;
        group_init(&g, transports[i], transports[i], 1, 2, 2 * NSEC_PER_SEC);
        char data[5000] = {0};
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct comm *c = NULL;
            if (open_rank(&g, 1, &c, NULL) < 0 || !c)
                _exit(1);
            for (int j = 0; j != 10; j++) {
                if (c->ops->recv(c, data, sizeof data) < 0 ||
                    c->ops->send(c, data, sizeof data) < 0)
                    _exit(2);
            }
            if (c->ops->recv(c, data, sizeof data) < 0) /* the tenth answer has arrived */
                _exit(3);
            raise(SIGKILL);
        }
        struct comm *c = NULL;
        struct err e = ERR_INIT;
        if (open_rank(&g, 0, &c, &e) < 0)
            fail_msg("%s: %s", transport_names[g.between], e.message);
        int n_done = 0;
        int r = c ? 0 : -EINVAL;
        while (r == 0) {
            r = c->ops->send(c, data, sizeof data);
            if (r == 0)
                r = c->ops->recv(c, data, sizeof data);
            n_done += r == 0;
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_int_equal(r, g.between == TCP ? -EIO : -ETIMEDOUT);
        assert_int_equal(n_done, 10);
        comm_close(c);
        for (int rank = 0; rank != 2; rank++)
            close(g.listen_fds[rank]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_process), /* forks: before any thread is started */
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_collectives_of_one),
        cmocka_unit_test(test_running_ahead),
        cmocka_unit_test(test_grids),
        cmocka_unit_test(test_failure_reaches_all),
        cmocka_unit_test(test_out_of_step),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_missing_stage),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
