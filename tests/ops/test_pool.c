/* test_pool.c: the thread pool: every share runs once per section, sections do not overlap, and
 * threads that went to sleep come back. */
#include "harness.h"

#include "kernels/cpu/pool.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 64 };

struct section {
    _Atomic uint32_t calls[MAX_THREADS];
    _Atomic uint32_t inside;
    _Atomic bool wrong;
    uint32_t n_threads; /* expected */
    uint64_t plain;     /* written by share 0 alone, read after the section */
};

static void share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct section *s = arg;
    atomic_fetch_add(&s->inside, 1);
    if (thread >= n_threads || n_threads != s->n_threads)
        atomic_store(&s->wrong, true); /* cmocka's assertions are for the test's own thread */
    else
        atomic_fetch_add(&s->calls[thread], 1);
    if (!thread)
        s->plain++;
    atomic_fetch_sub(&s->inside, 1);
}

static uint32_t allowed(void)
{
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return (uint32_t)CPU_COUNT(&set);
}

static void run_sections(uint32_t n_threads, uint32_t n_sections)
{
    struct pool *p = NULL;
    struct section s;
    memset(&s, 0, sizeof s);
    assert_int_equal(pool_new(n_threads, K_PIN_AUTO, &p), 0);
    uint32_t n = pool_threads(p);
    assert_true(n >= 1 && n <= allowed() && n <= MAX_THREADS);
    s.n_threads = n;
    assert_true(!n_threads || n <= n_threads);
    for (uint32_t i = 0; i < n_sections; i++) {
        pool_run(p, share, &s);
        assert_int_equal(atomic_load(&s.inside), 0);
        assert_int_equal(s.plain, i + 1);
        for (uint32_t t = 0; t < n; t++)
            assert_int_equal(atomic_load(&s.calls[t]), i + 1);
    }
    assert_false(atomic_load(&s.wrong));
    pool_free(p);
}

static void test_sections(void **state)
{
    (void)state;
    run_sections(1, 10);
    run_sections(2, 5000);
    run_sections(0, 5000);
    run_sections(MAX_THREADS, 10);
    pool_free(NULL);
}

/* Threads that had nothing to do for long enough to fall asleep work again. */
static void test_sleep(void **state)
{
    (void)state;
    struct pool *p = NULL;
    struct section s;
    memset(&s, 0, sizeof s);
    assert_int_equal(pool_new(0, K_PIN_AUTO, &p), 0);
    s.n_threads = pool_threads(p);
    for (uint32_t round = 0; round < 20; round++) {
        /* the workers spin for 50 us; this thread computes for up to 5 ms */
        struct timespec t;
        do
            assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t), 0);
        while (t.tv_nsec / 5000000 % 2 == round % 2);
        pool_run(p, share, &s);
        assert_int_equal(s.plain, round + 1);
    }
    pool_free(p);
}

struct places {
    cpu_set_t masks[MAX_THREADS];
};

static void note_place(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct places *p = arg;
    (void)n_threads;
    sched_getaffinity(0, sizeof p->masks[thread], &p->masks[thread]);
}

/* Threads with a CPU each stay on it, the caller's goes where it may; others are not touched. */
static void test_pinning(void **state)
{
    (void)state;
    cpu_set_t mine;
    assert_int_equal(sched_getaffinity(0, sizeof mine, &mine), 0);
    const uint32_t n = allowed();
    static const enum k_pin pins[] = {K_PIN_AUTO, K_PIN_ON, K_PIN_OFF};
    for (size_t i = 0; i < sizeof pins / sizeof *pins; i++)
        for (uint32_t threads = 1; threads <= n && threads <= MAX_THREADS; threads++) {
            struct pool *p = NULL;
            struct places at;
            cpu_set_t taken;
            CPU_ZERO(&taken);
            assert_int_equal(pool_new(threads, pins[i], &p), 0);
            pool_run(p, note_place, &at);
            bool pinned = pins[i] == K_PIN_ON || (pins[i] == K_PIN_AUTO && threads == n);
            assert_true(CPU_EQUAL(&at.masks[0], &mine));
            for (uint32_t t = 1; t < threads; t++) {
                if (pinned) {
                    cpu_set_t both;
                    CPU_AND(&both, &taken, &at.masks[t]);
                    assert_int_equal(CPU_COUNT(&at.masks[t]), 1);
                    assert_int_equal(CPU_COUNT(&both), 0);
                    CPU_OR(&taken, &taken, &at.masks[t]);
                } else {
                    assert_true(CPU_EQUAL(&at.masks[t], &mine));
                }
            }
            CPU_AND(&taken, &taken, &mine);
            assert_int_equal(CPU_COUNT(&taken), pinned ? threads - 1 : 0);
            pool_free(p);
        }
}

static void test_share(void **state)
{
    (void)state;
    for (uint64_t n = 0; n < 40; n++)
        for (uint32_t threads = 1; threads < 9; threads++) {
            uint64_t at = 0, first, end;
            for (uint32_t t = 0; t < threads; t++) {
                pool_share(n, t, threads, &first, &end);
                assert_int_equal(first, at);
                assert_true(end >= first && end - first <= n / threads + 1);
                at = end;
            }
            assert_int_equal(at, n);
        }
}

/* ---- items ---- */

enum { MAX_ITEMS = 5000 };

struct items {
    _Atomic uint32_t calls[MAX_ITEMS], n_done;
    _Atomic bool wrong;
    uint32_t n;
    bool stuck; /* who has item 0 goes on when all that others can take is done */
};

static bool before(const struct timespec *end)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec < end->tv_sec || (t.tv_sec == end->tv_sec && t.tv_nsec < end->tv_nsec);
}

static void count_items(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    struct items *s = arg;
    if (first >= end || end > more || more > s->n)
        atomic_store(&s->wrong, true);
    if (first == 0 && s->stuck) {
        struct timespec deadline;
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline.tv_sec += 20;
        while (atomic_load(&s->n_done) != s->n - end && before(&deadline))
            sched_yield();
    }
    for (uint64_t i = first; i < end && i < MAX_ITEMS; i++)
        atomic_fetch_add(&s->calls[i], 1);
    if (first == 0 && s->stuck && atomic_load(&s->n_done) != s->n - end)
        atomic_store(&s->wrong, true);
    atomic_fetch_add(&s->n_done, (uint32_t)(end - first));
}

static void run_items(struct pool *p, uint32_t n, uint32_t piece, bool stuck)
{
    static struct items s;
    memset(&s, 0, sizeof s);
    s.n = n;
    s.stuck = stuck;
    pool_run_items(p, n, piece, count_items, &s);
    assert_false(atomic_load(&s.wrong));
    for (uint32_t i = 0; i < MAX_ITEMS; i++)
        if (atomic_load(&s.calls[i]) != (i < n))
            fail_msg("item %u of %u, pieces of %u: %u calls", i, n, piece,
                     atomic_load(&s.calls[i]));
}

static void test_items(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct pool *p = NULL;
        assert_int_equal(pool_new(threads, K_PIN_AUTO, &p), 0);
        for (uint32_t n = 0; n < 70; n++)
            for (uint32_t piece = 1; piece < 80; piece += piece < 10 ? 1 : 23)
                run_items(p, n, piece, false);
        for (uint32_t i = 0; i < 200; i++)
            run_items(p, MAX_ITEMS, 1, false);
        pool_free(p);
    }
}

/* A thread that gets no further keeps nobody waiting for more than the piece that it has. */
static void test_items_of_a_stuck_thread(void **state)
{
    (void)state;
    struct pool *p = NULL;
    assert_int_equal(pool_new(0, K_PIN_AUTO, &p), 0);
    for (uint32_t i = 0; pool_threads(p) > 1 && i < 20; i++) {
        run_items(p, MAX_ITEMS, 1 + i, true);
        run_items(p, 64, 4, true);
        run_items(p, 2 * pool_threads(p), 1, true);
    }
    uint32_t n = pool_threads(p);
    pool_free(p);
    if (n == 1)
        skip(); /* one processor */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sections), cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_pinning),  cmocka_unit_test(test_share),
        cmocka_unit_test(test_items),    cmocka_unit_test(test_items_of_a_stuck_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
