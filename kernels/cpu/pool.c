/* pool.c: a persistent pool with one parallel section at a time.
 *
 * The driving thread publishes a section by raising `generation`; workers that see it run the
 * function and lower `pending`; the driver runs share 0 itself and waits for `pending` == 0. A
 * waiting side first spins for SPIN_NS (a decode step is a chain of sections some microseconds
 * apart, and waking a sleeper costs 30 us), then sleeps on a futex, so an idle daemon uses no CPU.
 * `sleepers` and `driver_sleeps` spare the wake call while everybody spins.
 */
#include "pool.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_NS = 50 * 1000, SPINS_PER_CLOCK = 64, MAX_THREADS = 1024 };

struct pool {
    /* a cache line each for the word that workers watch and the one that the driver watches */
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t pending;
    _Atomic uint32_t driver_sleeps;

    /* the section; written by the driver before `generation` is raised */
    pool_fn fn;
    void *arg;
    bool stop;

    /* set once */
    uint32_t n_threads, n_started;
    pthread_t *threads; /* [n_started], of n_threads - 1 */
};

struct worker_arg {
    struct pool *pool;
    uint32_t thread;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void pause_cpu(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Spins while *word == value; true when it has changed. */
static bool spin_while(_Atomic uint32_t *word, uint32_t value)
{
    int64_t end = 0;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value)
                return true;
            pause_cpu();
        }
        int64_t now = now_ns();
        if (!end)
            end = now + SPIN_NS;
        else if (now >= end)
            return false;
    }
}

static void wait_for_section(struct pool *p, uint32_t seen)
{
    if (spin_while(&p->generation, seen))
        return;
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->generation) == seen)
        futex_wait(&p->generation, seen);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void finish_share(struct pool *p)
{
    if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->driver_sleeps))
        futex_wake(&p->pending, 1);
}

static void wait_for_workers(struct pool *p)
{
    uint32_t left;
    while ((left = atomic_load(&p->pending)) != 0) {
        if (spin_while(&p->pending, left))
            continue;
        atomic_store(&p->driver_sleeps, 1);
        while ((left = atomic_load(&p->pending)) != 0)
            futex_wait(&p->pending, left);
        atomic_store(&p->driver_sleeps, 0);
    }
}

static void *worker(void *arg)
{
    struct worker_arg w = *(struct worker_arg *)arg;
    free(arg);
    uint32_t seen = 0;
    for (;;) {
        wait_for_section(w.pool, seen);
        seen++;
        if (w.pool->stop)
            return NULL;
        w.pool->fn(w.pool->arg, w.thread, w.pool->n_threads);
        finish_share(w.pool);
    }
}

static void publish(struct pool *p)
{
    atomic_store(&p->pending, p->n_threads - 1);
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers))
        futex_wake(&p->generation, MAX_THREADS);
}

void pool_run(struct pool *p, pool_fn fn, void *arg)
{
    if (p->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    publish(p);
    fn(arg, 0, p->n_threads);
    wait_for_workers(p);
}

uint32_t pool_threads(const struct pool *p)
{
    return p->n_threads;
}

static uint32_t allowed_cpus(void)
{
    for (int n = 1024; n <= 1 << 18; n *= 4) {
        cpu_set_t *set = CPU_ALLOC(n);
        if (!set)
            break;
        size_t bytes = CPU_ALLOC_SIZE(n);
        int count = sched_getaffinity(0, bytes, set) ? 0 : CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
        if (count)
            return (uint32_t)count;
    }
    return 1;
}

static int start_worker(struct pool *p, uint32_t thread)
{
    struct worker_arg *w = malloc(sizeof *w);
    if (!w)
        return -ENOMEM;
    *w = (struct worker_arg){p, thread};
    int e = pthread_create(&p->threads[p->n_started], NULL, worker, w);
    if (e) {
        free(w);
        return -e;
    }
    p->n_started++;
    return 0;
}

int pool_new(uint32_t n_threads, struct pool **ret)
{
    uint32_t allowed = allowed_cpus();
    if (!n_threads || n_threads > allowed)
        n_threads = allowed;
    if (n_threads > MAX_THREADS)
        n_threads = MAX_THREADS;
    struct pool *p = aligned_alloc(64, sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = (struct pool){.n_threads = n_threads};
    p->threads = calloc(n_threads, sizeof *p->threads);
    int e = p->threads ? 0 : -ENOMEM;
    for (uint32_t i = 1; !e && i < n_threads; i++)
        e = start_worker(p, i);
    if (e) {
        pool_free(p);
        return e;
    }
    *ret = p;
    return 0;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    p->stop = true;
    publish(p);
    for (uint32_t i = 0; i < p->n_started; i++)
        pthread_join(p->threads[i], NULL);
    free(p->threads);
    free(p);
}
