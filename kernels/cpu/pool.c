/* pool.c: a persistent pool with one parallel section at a time.
 *
 * The driving thread publishes a section by raising `generation`; workers that see it run the
 * function and lower `pending`; the driver runs share 0 itself and waits for `pending` == 0. A
 * waiting side first spins for SPIN_NS (a decode step is a chain of sections some microseconds
 * apart, and waking a sleeper costs 30 us), then sleeps on a futex, so an idle daemon uses no CPU.
 * `sleepers` and `driver_sleeps` spare the wake call while everybody spins.
 *
 * Threads that have a CPU each to themselves are pinned to it: what they wrote first (the panels of
 * the weights that they will read, memory near their CPU) stays near. With fewer threads than
 * allowed CPUs the others belong to somebody else, another rank with the same mask for one, and the
 * kernel knows better.
 */
#include "pool.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_NS = 50 * 1000, SPINS_PER_CLOCK = 64, MAX_THREADS = 1024 };

/* The items that a thread has left of a section: first << 32 | end. It takes them from the front,
 * others from the back. */
struct pool_left {
    _Alignas(64) _Atomic uint64_t range;
};

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

    uint64_t wait_ns; /* the driver's */

    struct pool_left *left; /* [n_threads], of a section of items */

    /* set once */
    uint32_t n_threads, n_started;
    pthread_t *threads; /* [n_started], of n_threads - 1 */
};

struct worker_arg {
    struct pool *pool;
    uint32_t thread;
};

/* The CPUs that this thread may run on, one of each core before the second ones. */
struct cpus {
    uint32_t n;
    uint32_t ids[MAX_THREADS];
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
#elif defined __aarch64__
    __asm__ volatile("yield" : : : "memory");
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
    pthread_setname_np(pthread_self(), "kernels");
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
    if (!atomic_load(&p->pending))
        return;
    int64_t begin = now_ns();
    wait_for_workers(p);
    p->wait_ns += (uint64_t)(now_ns() - begin);
}

/* ---- sections of items ---- */

struct items_job {
    struct pool *pool;
    uint32_t piece;
    pool_items_fn fn;
    void *arg;
};

static uint64_t range_of(uint64_t first, uint64_t end)
{
    return first << 32 | end;
}

static uint64_t range_items(uint64_t range)
{
    return (range & UINT32_MAX) - (range >> 32);
}

/* About n of `left` items: whole pieces, one at least. */
static uint64_t whole_pieces(const struct items_job *j, uint64_t n, uint64_t left)
{
    n = n / j->piece * j->piece;
    if (n < j->piece)
        n = j->piece;
    return n < left ? n : left;
}

static bool take_own(const struct items_job *j, uint32_t thread, uint64_t *first, uint64_t *end,
                     uint64_t *more)
{
    _Atomic uint64_t *left = &j->pool->left[thread].range;
    uint64_t range = atomic_load(left), n;
    do {
        n = range_items(range);
        if (!n)
            return false;
        *first = range >> 32;
        *end = *first + whole_pieces(j, n / 4, n);
        *more = range & UINT32_MAX;
    } while (!atomic_compare_exchange_weak(left, &range, range_of(*end, *more)));
    return true;
}

/* The thread with the most items left, and its range then; false: all have been taken. */
static bool find_victim(const struct pool *p, uint32_t *ret_thread, uint64_t *ret_range)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < p->n_threads; i++) {
        uint64_t range = atomic_load(&p->left[i].range), n = range_items(range);
        if (n > most) {
            most = n;
            *ret_thread = i;
            *ret_range = range;
        }
    }
    return most > 0;
}

/* The last items of another thread become this one's, which has none. Items are taken once in a
 * section, so that a range that was seen and is there still has not been away. */
static bool take_others(const struct items_job *j, uint32_t thread)
{
    uint32_t victim;
    uint64_t range;
    while (find_victim(j->pool, &victim, &range)) {
        uint64_t end = range & UINT32_MAX, n = range_items(range);
        n = whole_pieces(j, (n + 1) / 2, n);
        if (atomic_compare_exchange_strong(&j->pool->left[victim].range, &range,
                                           range_of(range >> 32, end - n))) {
            atomic_store(&j->pool->left[thread].range, range_of(end - n, end));
            return true;
        }
    }
    return false;
}

static void run_items(void *arg, uint32_t thread, uint32_t n_threads)
{
    const struct items_job *j = arg;
    (void)n_threads;
    do
        for (uint64_t first, end, more; take_own(j, thread, &first, &end, &more);)
            j->fn(j->arg, first, end, more);
    while (take_others(j, thread));
}

void pool_run_items(struct pool *p, uint64_t n, uint32_t piece, pool_items_fn fn, void *arg)
{
    assert(n <= UINT32_MAX && piece);
    if (p->n_threads == 1) {
        if (n)
            fn(arg, 0, n, n);
        return;
    }
    for (uint32_t i = 0; i < p->n_threads; i++) {
        uint64_t first, end;
        pool_share(n, i, p->n_threads, &first, &end);
        atomic_store_explicit(&p->left[i].range, range_of(first, end), memory_order_relaxed);
    }
    pool_run(p, run_items, &(struct items_job){p, piece, fn, arg});
}

uint64_t pool_wait_ns(const struct pool *p)
{
    return p->wait_ns;
}

uint32_t pool_threads(const struct pool *p)
{
    return p->n_threads;
}

/* The lowest CPU of this one's core, as far as the kernel tells. */
static uint32_t core_of(uint32_t cpu)
{
    char path[96];
    unsigned first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    if (!f)
        return cpu;
    if (fscanf(f, "%u", &first) != 1)
        first = cpu;
    fclose(f);
    return first;
}

/* Whether the core of ids[idx] has a CPU in front of it. */
static bool is_second(const uint32_t *cores, uint32_t idx)
{
    for (uint32_t i = 0; i < idx; i++)
        if (cores[i] == cores[idx])
            return true;
    return false;
}

static void sort_by_core(struct cpus *c)
{
    static _Thread_local uint32_t cores[MAX_THREADS], sorted[MAX_THREADS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        cores[i] = core_of(c->ids[i]);
    for (int second = 0; second < 2; second++)
        for (uint32_t i = 0; i < c->n; i++)
            if (is_second(cores, i) == (second == 1))
                sorted[n++] = c->ids[i];
    memcpy(c->ids, sorted, c->n * sizeof *sorted);
}

/* At least one. */
static void allowed_cpus(struct cpus *ret)
{
    *ret = (struct cpus){0};
    for (uint32_t n = 1024; n <= 1u << 18 && !ret->n; n *= 4) {
        cpu_set_t *set = CPU_ALLOC(n);
        if (!set)
            break;
        size_t bytes = CPU_ALLOC_SIZE(n);
        if (!sched_getaffinity(0, bytes, set))
            for (uint32_t cpu = 0; cpu < n && ret->n < MAX_THREADS; cpu++)
                if (CPU_ISSET_S(cpu, bytes, set))
                    ret->ids[ret->n++] = cpu;
        CPU_FREE(set);
    }
    if (!ret->n)
        ret->n = 1; /* wherever that is */
    sort_by_core(ret);
}

/* A wish: a CPU that went away meanwhile leaves the thread where it is. */
static void pin_to(pthread_t thread, uint32_t cpu)
{
    cpu_set_t *set = CPU_ALLOC(cpu + 1);
    if (!set)
        return;
    size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
    CPU_ZERO_S(bytes, set);
    CPU_SET_S(cpu, bytes, set);
    pthread_setaffinity_np(thread, bytes, set);
    CPU_FREE(set);
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

static int start_workers(struct pool *p, const struct cpus *cpus, bool pin)
{
    for (uint32_t i = 1; i < p->n_threads; i++) {
        int e = start_worker(p, i);
        if (e)
            return e;
        if (pin)
            pin_to(p->threads[i - 1], cpus->ids[i]);
    }
    return 0;
}

int pool_new(uint32_t n_threads, enum k_pin pin, struct pool **ret)
{
    struct cpus *cpus = malloc(sizeof *cpus);
    struct pool *p = aligned_alloc(64, sizeof *p);
    if (!cpus || !p) {
        free(cpus);
        free(p);
        return -ENOMEM;
    }
    allowed_cpus(cpus);
    if (!n_threads || n_threads > cpus->n)
        n_threads = cpus->n;
    *p = (struct pool){.n_threads = n_threads};
    p->threads = calloc(n_threads, sizeof *p->threads);
    p->left = aligned_alloc(64, n_threads * sizeof *p->left);
    bool pinned = pin == K_PIN_ON || (pin == K_PIN_AUTO && n_threads == cpus->n);
    int e = p->threads && p->left ? start_workers(p, cpus, pinned) : -ENOMEM;
    free(cpus);
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
    free(p->left);
    free(p->threads);
    free(p);
}
