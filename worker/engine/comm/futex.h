/* futex.h: sleeping on a word that other threads or processes change. */
#ifndef GLMD_WORKER_ENGINE_COMM_FUTEX_H
#define GLMD_WORKER_ENGINE_COMM_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static inline void futex_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A wait that spins before it sleeps: true as long as it has spun for less than `spin_ns`, since
 * the first call with a zeroed `s`. */
struct futex_spin {
    uint32_t n;
    int64_t end_ns;
};

enum { FUTEX_SPINS_PER_CLOCK = 64 };

static inline bool futex_spin(struct futex_spin *s, int64_t spin_ns)
{
    if (spin_ns == 0)
        return false;
    if (s->n++ % FUTEX_SPINS_PER_CLOCK == 0) {
        int64_t now = clock_now_ns();
        if (s->end_ns == 0)
            s->end_ns = now + spin_ns;
        else if (now >= s->end_ns)
            return false;
    }
    futex_relax();
    return true;
}

static inline void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Sleeps while *word == value, at most `timeout_ns`; may also wake for nothing. */
static inline void futex_sleep_while(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns)
{
    struct timespec timeout = {timeout_ns / NSEC_PER_SEC, timeout_ns % NSEC_PER_SEC};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

#endif
