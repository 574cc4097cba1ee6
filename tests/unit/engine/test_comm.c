/* test_comm.c: the collectives, every transport through the same cases: equal bits on every rank
 * and in every run, odd sizes, abort, missing ranks, wrong tokens, a killed process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/util.h"
#include "tests/unit/engine/comm_rig.h"
#include "worker/engine/comm/comm.h"

enum { MAX_RANKS = 5, SHM_PIECE = 8192 };

static const uint8_t other_token[16] = "0123456789abcdX";

/* ---- a group whose ranks are threads ---- */

struct group;
struct member {
    struct group *group;
    int rank;
    struct comm *comm;
    int opened; /* result of opening */
    struct err error;
    pthread_t thread;
};

struct group {
    enum transport transport;
    int size;
    int64_t timeout_ns;
    void (*body)(struct member *m);
    char shm_name[64];
    int listen_fds[MAX_RANKS];
    char addresses[MAX_RANKS][32];
    const char *peers[MAX_RANKS];
    struct comm *inproc[MAX_RANKS];
    struct member members[MAX_RANKS];
};

static void group_init(struct group *g, enum transport t, int size, int64_t timeout_ns)
{
    static int serial;
    memset(g, 0, sizeof *g);
    g->transport = t;
    g->size = size;
    g->timeout_ns = timeout_ns;
    snprintf(g->shm_name, sizeof g->shm_name, "glmd-test-comm-%d-%d", (int)getpid(), serial++);
    for (int rank = 0; rank != size; rank++) {
        g->members[rank].group = g;
        g->members[rank].rank = rank;
        if (t == TCP)
            g->listen_fds[rank] = listen_any(g->addresses[rank]);
        g->peers[rank] = g->addresses[rank];
    }
    if (t == INPROC)
        assert_int_equal(comm_inproc_new(size, timeout_ns, g->inproc), 0);
}

static void group_deinit(struct group *g)
{
    for (int rank = 0; rank != g->size; rank++) {
        if (g->transport == TCP)
            close(g->listen_fds[rank]);
    }
}

static int open_rank(struct group *g, int rank, const uint8_t *tok, struct comm **ret,
                     struct err *e)
{
    switch (g->transport) {
    case INPROC:
        *ret = g->inproc[rank];
        return 0;
    case SHM:
        return comm_shm_new(g->shm_name, tok, rank, g->size, SHM_PIECE, g->timeout_ns, ret, e);
    case TCP:
        return comm_tcp_new(g->listen_fds[rank], g->peers, tok, rank, g->size, g->timeout_ns, ret,
                            e);
    default:
        return -EINVAL;
    }
}

static void *member_main(void *context)
{
    struct member *m = context;
    m->opened = open_rank(m->group, m->rank, token, &m->comm, &m->error);
    if (m->opened == 0)
        m->group->body(m);
    return NULL;
}

/* Runs `body` on every rank; the comms stay open until group_close. */
static void group_run(struct group *g, void (*body)(struct member *m))
{
    g->body = body;
    for (int rank = 0; rank != g->size; rank++)
        assert_int_equal(
            pthread_create(&g->members[rank].thread, NULL, member_main, &g->members[rank]), 0);
    for (int rank = 0; rank != g->size; rank++)
        pthread_join(g->members[rank].thread, NULL);
    for (int rank = 0; rank != g->size; rank++) {
        if (g->members[rank].opened < 0)
            fail_msg("%s rank %d: %s", transport_names[g->transport], rank,
                     g->members[rank].error.message);
    }
}

static void group_close(struct group *g)
{
    for (int rank = 0; rank != g->size; rank++)
        comm_close(g->members[rank].comm);
    group_deinit(g);
}

/* ---- sums and gathers ---- */

/* Values whose sum depends on the order: magnitudes from 2^-12 to 2^12. */
static float value(int rank, size_t i, uint32_t run)
{
    uint32_t x = (uint32_t)i * 2654435761u + (uint32_t)rank * 40503u + run * 97u + 1u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    float mantissa = (float)(x & 0xffff) / 65536.0f - 0.5f;
    return mantissa * (float)(1u << (x >> 16 & 15)) / 16.0f;
}

static const size_t sizes[] = {1, 2, 3, 5, 64, 1023, 2048, 2049, 30011, 270001};

static uint32_t bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static void check_all_reduce(struct member *m, size_t n, uint32_t run)
{
    float *data = alloc_array(n, sizeof *data);
    for (size_t i = 0; i != n; i++)
        data[i] = value(m->rank, i, run);
    assert_int_equal(m->comm->ops->all_reduce(m->comm, data, n), 0);
    for (size_t i = 0; i != n; i++) {
        float sum = value(0, i, run);
        for (int rank = 1; rank < m->comm->size; rank++)
            sum += value(rank, i, run);
        if (bits(sum) != bits(data[i]))
            fail_msg("%s rank %d of %d, n %zu: sum[%zu] = %a, expected %a", m->comm->ops->name,
                     m->rank, m->comm->size, n, i, (double)data[i], (double)sum);
    }
    free(data);
}

static void check_all_gather(struct member *m, size_t bytes, bool in_place)
{
    size_t size = (size_t)m->comm->size;
    uint8_t *dst = alloc_array(size, bytes);
    uint8_t *own = alloc_array(1, bytes);
    uint8_t *src = in_place ? dst + (size_t)m->rank * bytes : own;
    for (size_t i = 0; i != bytes; i++)
        src[i] = (uint8_t)(i * 7 + (size_t)m->rank * 31);
    assert_int_equal(m->comm->ops->all_gather(m->comm, src, bytes, dst), 0);
    for (size_t i = 0; i != size * bytes; i++) {
        uint8_t expected = (uint8_t)(i % bytes * 7 + i / bytes * 31);
        if (dst[i] != expected)
            fail_msg("%s rank %d of %zu: byte %zu of %zu = %u, expected %u", m->comm->ops->name,
                     m->rank, size, i, bytes, dst[i], expected);
    }
    free(dst);
    free(own);
}

static void all_cases(struct member *m)
{
    for (uint32_t run = 0; run != 2; run++) {
        for (size_t i = 0; i != ARRAY_LEN(sizes); i++) {
            check_all_reduce(m, sizes[i], run);
            check_all_gather(m, sizes[i], run == 1);
            assert_int_equal(m->comm->ops->barrier(m->comm), 0);
        }
    }
}

static void test_sums_and_gathers(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        for (int size = 1; size <= MAX_RANKS; size++) {
            struct group g;
            group_init(&g, (enum transport)t, size, LONG_NS);
            group_run(&g, all_cases);
            group_close(&g);
        }
    }
}

/* Many small calls back to back: a fast rank must not overtake a slow one's reading. */
static void many_small(struct member *m)
{
    for (uint32_t run = 0; run != 300; run++) {
        check_all_reduce(m, 1 + run % 97, run);
        if (run % 3 == 0)
            check_all_gather(m, 1 + run % 13, run % 2 == 0);
    }
}

static void test_many_small_calls(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, 3, LONG_NS);
        group_run(&g, many_small);
        group_close(&g);
    }
}

static void test_self(void **state)
{
    (void)state;
    struct member m = {0};
    assert_int_equal(comm_self_new(&m.comm), 0);
    all_cases(&m);
    m.comm->ops->abort(m.comm);
    float x = 1.0f;
    assert_int_equal(m.comm->ops->all_reduce(m.comm, &x, 1), -ECANCELED);
    assert_int_equal(m.comm->ops->barrier(m.comm), -ECANCELED);
    comm_close(m.comm);
}

/* ---- failures ---- */

static void nothing(struct member *m)
{
    (void)m;
}

struct pending {
    struct comm *comm;
    int result;
};

static void *reduce_once(void *context)
{
    struct pending *p = context;
    float data[100] = {0};
    p->result = p->comm->ops->all_reduce(p->comm, data, ARRAY_LEN(data));
    return NULL;
}

/* abort() from another thread ends a call that waits for a rank that never comes. */
static void test_abort(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, 2, LONG_NS);
        group_run(&g, nothing);
        struct pending p = {.comm = g.members[0].comm};
        struct comm *peer = g.members[1].comm;
        pthread_t thread;
        int64_t begin_ns = clock_now_ns();
        assert_int_equal(p.comm->ops->state(p.comm), 0);
        assert_int_equal(peer->ops->state(peer), 0);
        assert_int_equal(pthread_create(&thread, NULL, reduce_once, &p), 0);
        p.comm->ops->abort(p.comm);
        pthread_join(thread, NULL);
        assert_int_equal(p.result, -ECANCELED);
        assert_int_equal(p.comm->ops->barrier(p.comm), -ECANCELED);
        p.comm->ops->abort(p.comm); /* idempotent */
        assert_int_equal(p.comm->ops->state(p.comm), -ECANCELED);
        /* The peer sees it when it looks; over TCP as soon as the connection has ended there. */
        while (peer->ops->state(peer) == 0)
            assert_true(clock_now_ns() - begin_ns < LONG_NS / 2);
        assert_int_equal(peer->ops->state(peer), t == TCP ? -EIO : -ECANCELED);
        /* And learns of it when it calls, without waiting. */
        int r = peer->ops->barrier(peer);
        if (t == TCP)
            assert_int_equal(r, -EIO);
        else
            assert_int_equal(r, -ECANCELED);
        assert_true(clock_now_ns() - begin_ns < LONG_NS / 2);
        group_close(&g);
    }
}

/* A rank that does not take part: the others fail at the deadline, it fails when it comes. */
static void test_missing_rank(void **state)
{
    (void)state;
    for (int t = 0; t != N_TRANSPORTS; t++) {
        struct group g;
        group_init(&g, (enum transport)t, 2, t == INPROC ? SHORT_NS : NSEC_PER_SEC);
        group_run(&g, nothing);
        struct pending p = {.comm = g.members[0].comm};
        int64_t begin_ns = clock_now_ns();
        reduce_once(&p);
        int64_t waited_ns = clock_now_ns() - begin_ns;
        assert_int_equal(p.result, -ETIMEDOUT);
        assert_true(waited_ns >= g.timeout_ns && waited_ns < LONG_NS);
        assert_int_equal(p.comm->ops->barrier(p.comm), -ETIMEDOUT);
        p.comm = g.members[1].comm;
        reduce_once(&p);
        assert_true(p.result == -ETIMEDOUT || p.result == -EIO);
        group_close(&g);
    }
}

/* Nobody else joins. */
static void test_alone(void **state)
{
    (void)state;
    static const enum transport transports[] = {SHM, TCP};
    for (size_t i = 0; i != ARRAY_LEN(transports); i++) {
        for (int rank = 0; rank != 2; rank++) {
            struct group g;
            group_init(&g, transports[i], 2, SHORT_NS);
            if (g.transport == TCP)
                close(g.listen_fds[!rank]); /* the other rank does not listen either */
            struct comm *c = NULL;
            struct err e = ERR_INIT;
            assert_int_equal(open_rank(&g, rank, token, &c, &e), -ETIMEDOUT);
            assert_int_equal(e.code, -ETIMEDOUT);
            assert_true(e.message[0]);
            if (g.transport == TCP)
                close(g.listen_fds[rank]);
        }
    }
}

static void *open_other_token(void *context)
{
    struct member *m = context;
    m->opened = open_rank(m->group, m->rank, other_token, &m->comm, &m->error);
    return NULL;
}

static void test_wrong_token(void **state)
{
    (void)state;
    static const enum transport transports[] = {SHM, TCP};
    for (size_t i = 0; i != ARRAY_LEN(transports); i++) {
        struct group g;
        group_init(&g, transports[i], 2, NSEC_PER_SEC);
        struct member *m = &g.members[1];
        assert_int_equal(pthread_create(&m->thread, NULL, open_other_token, m), 0);
        struct comm *c = NULL;
        struct err e = ERR_INIT;
        assert_int_equal(open_rank(&g, 0, token, &c, &e), -ETIMEDOUT);
        pthread_join(m->thread, NULL);
        /* Shared memory: rank 0 may have given up and unlinked before the other's last look. */
        if (g.transport == SHM)
            assert_true(m->opened == -EACCES || m->opened == -ETIMEDOUT);
        else
            assert_int_equal(m->opened, -EACCES);
        group_deinit(&g);
    }
}

/* A segment that a dead group has left behind is replaced. */
static void test_stale_segment(void **state)
{
    (void)state;
    struct group g;
    group_init(&g, SHM, 2, LONG_NS);
    char path[80];
    snprintf(path, sizeof path, "/%s", g.shm_name);
    int fd = shm_open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 123), 0);
    close(fd);
    group_run(&g, all_cases);
    assert_int_equal(shm_open(path, O_RDWR, 0600), -1); /* unlinked once all have joined */
    group_close(&g);
}

static void test_bad_arguments(void **state)
{
    (void)state;
    struct comm *c = NULL;
    struct err e = ERR_INIT;
    assert_int_equal(comm_shm_new("a/b", token, 0, 1, 64, SHORT_NS, &c, &e), -EINVAL);
    assert_int_equal(comm_shm_new("", token, 0, 1, 64, SHORT_NS, &c, &e), -EINVAL);
    assert_int_equal(comm_shm_new("x", token, 2, 2, 64, SHORT_NS, &c, &e), -EINVAL);
    assert_int_equal(comm_shm_new("x", token, 0, 1, SIZE_MAX, SHORT_NS, &c, &e), -EINVAL);
    const char *peers[] = {"nowhere", "127.0.0.1:1"};
    assert_int_equal(comm_tcp_new(-1, peers, token, 1, 2, SHORT_NS, &c, &e), -EINVAL);
    assert_non_null(strstr(e.message, "nowhere"));
    assert_int_equal(comm_tcp_new(-1, peers, token, 0, 1000, SHORT_NS, &c, &e), -EINVAL);
}

/* Strangers at the door: silent ones, talkative ones, one that says half a hello. */
static void test_strangers(void **state)
{
    (void)state;
    struct group g;
    group_init(&g, TCP, 2, LONG_NS);
    int fds[24];
    for (size_t i = 0; i != ARRAY_LEN(fds); i++) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        a.sin_port = htons((uint16_t)strtoul(strchr(g.addresses[0], ':') + 1, NULL, 10));
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        /* The backlog is short: connections beyond it may be left hanging, which is as good. */
        struct timeval timeout = {0, 100000};
        setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (connect(fds[i], (struct sockaddr *)&a, sizeof a) < 0)
            continue;
        char noise[64];
        memset(noise, (int)i, sizeof noise);
        size_t n = i % 3 == 0 ? 0 : i % 3 == 1 ? sizeof noise : 16;
        assert_true(send(fds[i], noise, n, MSG_NOSIGNAL) == (ssize_t)n);
    }
    group_run(&g, all_cases);
    group_close(&g);
    for (size_t i = 0; i != ARRAY_LEN(fds); i++)
        close(fds[i]);
}

/* A rank process dies in the middle: the survivor gets an error within the deadline. */
static void test_killed_process(void **state)
{
    (void)state;
    static const enum transport transports[] = {SHM, TCP};
    for (size_t i = 0; i != ARRAY_LEN(transports); i++) {
        struct group g;
        group_init(&g, transports[i], 2, 2 * NSEC_PER_SEC);
        pid_t child = fork();
        assert_true(child >= 0);
        float data[5000] = {0};
        if (child == 0) {
            struct comm *c = NULL;
            if (open_rank(&g, 1, token, &c, NULL) < 0 || !c)
                _exit(1);
            for (int j = 0; j != 10; j++) {
                if (c->ops->all_reduce(c, data, ARRAY_LEN(data)) < 0)
                    _exit(2);
            }
            raise(SIGKILL);
        }
        struct comm *c = NULL;
        struct err e = ERR_INIT;
        if (open_rank(&g, 0, token, &c, &e) < 0)
            fail_msg("%s: %s", transport_names[g.transport], e.message);
        int n_done = 0;
        int r = c ? 0 : -EINVAL;
        while (c && (r = c->ops->all_reduce(c, data, ARRAY_LEN(data))) == 0)
            n_done++;
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_int_equal(r, g.transport == TCP ? -EIO : -ETIMEDOUT);
        assert_int_equal(n_done, 10);
        comm_close(c);
        group_deinit(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_process), /* forks: before any thread is started */
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_sums_and_gathers),
        cmocka_unit_test(test_many_small_calls),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_missing_rank),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_wrong_token),
        cmocka_unit_test(test_stale_segment),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_strangers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
