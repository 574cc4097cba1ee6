/* barrier.c: see barrier.h. */
#include "worker/engine/comm/barrier.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/util.h"
#include "worker/engine/comm/futex.h"

int64_t comm_spin_ns(int size, int64_t spin_ns)
{
    cpu_set_t allowed; /* the process's: the calling thread may be bound to its rank's share */
    if (sched_getaffinity(getpid(), sizeof allowed, &allowed) < 0)
        return 0;
    uint32_t quota = cpus_quota(CPUS_GROUPS, CPUS_MEMBERSHIP);
    return MIN((uint32_t)CPU_COUNT(&allowed), quota) >= (uint32_t)size ? spin_ns : 0;
}

int comm_barrier_fail(struct comm_barrier *b, int code)
{
    assert(code < 0);
    int32_t none = 0;
    atomic_compare_exchange_strong(&b->failed, &none, code);
    /* Waiters compare generations: a change lets nobody fall asleep on the old one. */
    atomic_fetch_add(&b->generation, 1);
    futex_wake_all(&b->generation);
    return atomic_load(&b->failed);
}

int comm_barrier_wait(struct comm_barrier *b, int size, int64_t spin_ns, int64_t timeout_ns)
{
    uint32_t generation = atomic_load_explicit(&b->generation, memory_order_acquire);
    int failed = atomic_load(&b->failed);
    if (failed)
        return failed;
    if (atomic_fetch_add(&b->n_arrived, 1) + 1 == (uint32_t)size) {
        atomic_store(&b->n_arrived, 0);
        /* Loses only against a failure, which has moved the generation on already. */
        atomic_compare_exchange_strong(&b->generation, &generation, generation + 1);
        futex_wake_all(&b->generation);
        return atomic_load(&b->failed);
    }
    for (struct futex_spin spin = {0}; futex_spin(&spin, spin_ns);)
        if (atomic_load_explicit(&b->generation, memory_order_acquire) != generation)
            return atomic_load(&b->failed);
    int64_t deadline_ns = clock_now_ns() + timeout_ns;
    while (atomic_load_explicit(&b->generation, memory_order_acquire) == generation) {
        int64_t left_ns = deadline_ns - clock_now_ns();
        if (left_ns <= 0)
            return comm_barrier_fail(b, -ETIMEDOUT);
        futex_sleep_while(&b->generation, generation, left_ns);
    }
    return atomic_load(&b->failed);
}
