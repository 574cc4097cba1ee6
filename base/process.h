/* process.h: what this process uses, from the kernel. Any thread. */
#ifndef GLMD_BASE_PROCESS_H
#define GLMD_BASE_PROCESS_H

#include <stdint.h>

struct process_usage {
    uint64_t cpu_ns; /* user and system, all threads, also those that have ended */
    uint64_t resident_bytes, virtual_bytes; /* 0 = not known */
    uint32_t n_threads;                     /* likewise */
};

void process_usage(struct process_usage *ret);

/* Open file descriptors and how many there may be; 0 = not known. Walks a folder: not for every
 * heartbeat. */
uint32_t process_open_fds(void);
uint64_t process_max_fds(void);

#endif
