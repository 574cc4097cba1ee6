/* ring.c: see ring.h. */
#include "worker/engine/comm/ring.h"

#include <assert.h>
#include <errno.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/comm/futex.h"

size_t comm_ring_bytes(size_t capacity)
{
    return sizeof(struct comm_ring_shared) + round_up(capacity, 64);
}

void comm_ring_attach(struct comm_ring *r, void *memory, size_t capacity, _Atomic int32_t *failed,
                      int64_t spin_ns)
{
    assert(capacity > 0 && (uintptr_t)memory % 64 == 0);
    *r = (struct comm_ring){.shared = memory,
                            .data = (char *)memory + sizeof(struct comm_ring_shared),
                            .capacity = capacity,
                            .failed = failed,
                            .spin_ns = spin_ns};
}

/* Bytes in the ring, at most its capacity. */
static size_t used(struct comm_ring *r)
{
    uint64_t read = atomic_load_explicit(&r->shared->read, memory_order_acquire);
    uint64_t written = atomic_load_explicit(&r->shared->written, memory_order_acquire);
    /* Only one of the two is the other side's, so that a sane pair never looks torn: the writer
     * sees an older `read` at worst, the reader an older `written`. */
    uint64_t n = written - read;
    if (n <= r->capacity)
        return (size_t)n;
    int32_t none = 0;
    atomic_compare_exchange_strong(r->failed, &none, -EIO);
    return SIZE_MAX;
}

size_t comm_ring_room(struct comm_ring *r, char **ret)
{
    size_t n = used(r);
    if (n == SIZE_MAX)
        return 0;
    size_t at =
        (size_t)(atomic_load_explicit(&r->shared->written, memory_order_relaxed) % r->capacity);
    *ret = r->data + at;
    return MIN(r->capacity - n, r->capacity - at);
}

size_t comm_ring_filled(struct comm_ring *r, const char **ret)
{
    size_t n = used(r);
    if (n == SIZE_MAX)
        return 0;
    size_t at =
        (size_t)(atomic_load_explicit(&r->shared->read, memory_order_relaxed) % r->capacity);
    *ret = r->data + at;
    return MIN(n, r->capacity - at);
}

void comm_ring_wrote(struct comm_ring *r, size_t n)
{
    atomic_fetch_add_explicit(&r->shared->written, n, memory_order_release);
    atomic_fetch_add(&r->shared->n_writes, 1);
    futex_wake_all(&r->shared->n_writes);
}

void comm_ring_took(struct comm_ring *r, size_t n)
{
    atomic_fetch_add_explicit(&r->shared->read, n, memory_order_release);
    atomic_fetch_add(&r->shared->n_reads, 1);
    futex_wake_all(&r->shared->n_reads);
}

void comm_ring_wake(struct comm_ring_shared *s)
{
    atomic_fetch_add(&s->n_writes, 1);
    futex_wake_all(&s->n_writes);
    atomic_fetch_add(&s->n_reads, 1);
    futex_wake_all(&s->n_reads);
}

/* Waits while the ring holds exactly `stuck` bytes; `word` changes when the other side moves. */
static int wait_while(struct comm_ring *r, size_t stuck, _Atomic uint32_t *word,
                      int64_t deadline_ns)
{
    for (struct futex_spin spin = {0};;) {
        uint32_t value = atomic_load_explicit(word, memory_order_acquire);
        size_t n = used(r);
        int failed = atomic_load(r->failed);
        if (failed)
            return failed;
        if (n != stuck)
            return 0;
        if (futex_spin(&spin, r->spin_ns))
            continue;
        int64_t left_ns = deadline_ns - clock_now_ns();
        if (left_ns <= 0)
            return -ETIMEDOUT;
        futex_sleep_while(word, value, left_ns);
    }
}

int comm_ring_wait_room(struct comm_ring *r, int64_t deadline_ns)
{
    return wait_while(r, r->capacity, &r->shared->n_reads, deadline_ns);
}

int comm_ring_wait_data(struct comm_ring *r, int64_t deadline_ns)
{
    return wait_while(r, 0, &r->shared->n_writes, deadline_ns);
}
