/* barrier.h: a barrier over a futex that can fail: what the in-process and the shared-memory
 * collectives wait on.
 *
 * Lives in memory that all ranks see (zero-initialised). It counts arrivals of one generation after
 * the other; the first failure (a deadline, an abort) is final and is what every pending and every
 * later wait returns.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_BARRIER_H
#define GLMD_WORKER_ENGINE_COMM_BARRIER_H

#include <stdatomic.h>
#include <stdint.h>

struct comm_barrier {
    _Alignas(64) _Atomic uint32_t n_arrived;
    _Alignas(64) _Atomic uint32_t generation; /* the futex word */
    _Alignas(64) _Atomic int32_t failed; /* 0, or the negative errno value of the first failure */
};

/* How long waits spin before they sleep. Ranks of one step come to a sum some hundred microseconds
 * apart where others use the processors, too, and a sleep costs both sides 30 to 100 us (on virtual
 * machines most); what comes over a link takes longer than that, so that spinning gains little. */
enum { COMM_SPIN_NS = 500 * 1000, COMM_LINK_SPIN_NS = 20 * 1000 };

/* spin_ns when every rank can have a CPU of its own; 0, not at all, otherwise: a spinning rank
 * would keep its peer from running. */
int64_t comm_spin_ns(int size, int64_t spin_ns);

/* Waits until `size` ranks have arrived. 0, -ETIMEDOUT (after failing the barrier for everyone), or
 * the failure of another rank. */
int comm_barrier_wait(struct comm_barrier *b, int size, int64_t spin_ns, int64_t timeout_ns);

/* Fails the barrier for everyone, from any thread; the first code stays. Returns that code. */
int comm_barrier_fail(struct comm_barrier *b, int code);

#endif
