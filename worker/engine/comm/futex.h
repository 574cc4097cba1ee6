/* futex.h: sleeping on a word that other threads or processes change. */
#ifndef GLMD_WORKER_ENGINE_COMM_FUTEX_H
#define GLMD_WORKER_ENGINE_COMM_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
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
