/* cpus.h: sets of processors, in the kernel's words ("0-7,16-23"), and which of them ranks that
 * share a host should have, so that each one's memory is near to it; and how many of them a
 * container's limit leaves. Any thread. */
#ifndef GLMD_BASE_CPUS_H
#define GLMD_BASE_CPUS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { CPUS_MAX = 4096, CPUS_TEXT_BYTES = 1024 };

struct cpus {
    uint32_t n;
    uint16_t ids[CPUS_MAX]; /* ascending, each once */
};

/* A list as "0-3,8,10-11": numbers below CPUS_MAX and ranges of them, in any order. "" is the empty
 * set. -EINVAL with what was expected. */
int cpus_parse(const char *text, struct cpus *ret, struct err *e);

/* The shortest such list. -ENOSPC: it does not fit. */
int cpus_print(const struct cpus *c, char *out, size_t size);

/* Those that the calling thread may run on; none: the kernel does not say. */
void cpus_allowed(struct cpus *ret);

/* How many processors' worth of time the control groups of this process leave it, as a container's
 * limit does (--cpus=4): whole ones, at least 1; UINT32_MAX: no limit. `root` is where the groups
 * are, `membership` the kernel's file that names this process's. What is not understood limits
 * nothing. */
uint32_t cpus_quota(const char *root, const char *membership);
#define CPUS_GROUPS     "/sys/fs/cgroup"
#define CPUS_MEMBERSHIP "/proc/self/cgroup"

/* How many threads of the calling one's kind can compute at once: the processors that it may run
 * on, or the quota where that is less, since threads that spin beyond it are stopped all together.
 * At least 1. */
uint32_t cpus_usable(void);

/* Keeps the calling thread, and those that it will create, on these. -EINVAL: none of them is
 * there, or the process may use none of them. */
int cpus_bind(const struct cpus *c);

/* Whole NUMA nodes for the `rank`th of `n_ranks` that share the allowed processors: with them lined
 * up node by node and cut into n_ranks equal parts, the nodes of the rank's part. As many ranks as
 * nodes have one each; more of them share one; fewer have several. All of `allowed` where the
 * kernel's `folder` ("/sys/devices/system/node") tells of no more than one node. */
void cpus_near(const char *folder, const struct cpus *allowed, uint32_t rank, uint32_t n_ranks,
               struct cpus *ret);
#define CPUS_NODES "/sys/devices/system/node"

#endif
