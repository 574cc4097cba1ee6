/* watch.h: what the CPU backend tells AddressSanitizer and ThreadSanitizer; nothing in other
 * builds.
 *
 * They see the accesses that the compiler makes. They do not see operands in memory of instructions
 * that are written as text, nor (gcc) masked and streaming instructions, and no end of an area that
 * is mapped or rounded up.
 */
#ifndef GLMD_KERNELS_CPU_WATCH_H
#define GLMD_KERNELS_CPU_WATCH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define WATCH_AREAS
#elif defined(__SANITIZE_THREAD__)
#define WATCH_ACCESSES
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WATCH_AREAS
#elif __has_feature(thread_sanitizer)
#define WATCH_ACCESSES
#endif
#endif

#ifdef WATCH_AREAS
#define WATCH_ACCESSES
#include <sanitizer/asan_interface.h>
#define watch_forbid(p, bytes) __asan_poison_memory_region(p, bytes)
#define watch_allow(p, bytes)  __asan_unpoison_memory_region(p, bytes)
#else
#define watch_forbid(p, bytes) ((void)(p), (void)(bytes))
#define watch_allow(p, bytes)  ((void)(p), (void)(bytes))
#endif

/* The 32-bit word at p, and the first and last of n bytes, are accessed. */
#ifdef WATCH_ACCESSES
#define watch_word(p) ((void)*(const volatile uint32_t *)(const void *)(p))

static inline void watch_bytes(const void *p, size_t n)
{
    const volatile uint8_t *at = p;
    if (n) {
        (void)at[0];
        (void)at[n - 1];
    }
}
#else
#define watch_word(p)     ((void)(p))
#define watch_bytes(p, n) ((void)(p), (void)(n))
#endif

#endif
