/* ring.h: bytes from one writer to one reader, in memory that both see: threads of a process or
 * processes of a host. What the links between stages buffer in.
 *
 * The shared part is zero-initialised memory of comm_ring_bytes(capacity); each side keeps a handle
 * to it. Positions only grow; what is read from shared memory is checked before it becomes an
 * offset. Whoever owns several rings gives them one `failed` word and wakes their sleepers
 * (comm_ring_wake) after setting it.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_RING_H
#define GLMD_WORKER_ENGINE_COMM_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct comm_ring_shared {
    _Alignas(64) _Atomic uint64_t written; /* bytes since the beginning; the writer's */
    _Atomic uint32_t n_writes;             /* futex word */
    _Alignas(64) _Atomic uint64_t read;    /* the reader's */
    _Atomic uint32_t n_reads;              /* futex word */
};

struct comm_ring { /* one side's view; belongs to one thread */
    struct comm_ring_shared *shared;
    char *data; /* [capacity], behind `shared` */
    size_t capacity;
    _Atomic int32_t *failed; /* 0, or a negative errno value that ends all waits */
    int64_t spin_ns;         /* before sleeping */
};

/* A multiple of 64. */
size_t comm_ring_bytes(size_t capacity);
/* `memory` is 64-byte aligned. */
void comm_ring_attach(struct comm_ring *r, void *memory, size_t capacity, _Atomic int32_t *failed,
                      int64_t spin_ns);

/* The next contiguous bytes that may be written or read; 0 when the ring is full or empty. Damaged
 * positions set *failed (-EIO). */
size_t comm_ring_room(struct comm_ring *r, char **ret);
size_t comm_ring_filled(struct comm_ring *r, const char **ret);
/* n of them have been written or read: the other side may go on. */
void comm_ring_wrote(struct comm_ring *r, size_t n);
void comm_ring_took(struct comm_ring *r, size_t n);

/* Wait for room or for data until the deadline: 0, -ETIMEDOUT, or what *failed says. */
int comm_ring_wait_room(struct comm_ring *r, int64_t deadline_ns);
int comm_ring_wait_data(struct comm_ring *r, int64_t deadline_ns);

/* Makes both sides look again; any thread. */
void comm_ring_wake(struct comm_ring_shared *s);

#endif
