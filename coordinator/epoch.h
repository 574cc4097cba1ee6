/* epoch.h: the number that fences old ranks off, kept across restarts.
 *
 * What was handed out only grows, also when the coordinator crashed in between: before an epoch is
 * used, a number at least as great is on disk. EPOCH_RESERVE of them are written at once, so that a
 * group that is formed again and again does not keep the disk, and the loop, busy. The state
 * directory is locked: two coordinators cannot share it.
 */
#ifndef GLMD_COORDINATOR_EPOCH_H
#define GLMD_COORDINATOR_EPOCH_H

#include <stdint.h>

#include "base/err.h"

enum { EPOCH_RESERVE = 16 };

struct epoch_store {
    int dir_fd;        /* owned, locked; -1 = closed */
    uint64_t last;     /* handed out, or may have been by an earlier process */
    uint64_t reserved; /* on disk; >= last */
};

/* Creates the directory if need be. -EBUSY: another process holds it; -EBADMSG: the file is
 * damaged. */
int epoch_open(const char *dir, struct epoch_store *ret, struct err *e);
void epoch_close(struct epoch_store *s);

/* A new epoch, greater than every one before and than `above`. */
int epoch_next(struct epoch_store *s, uint64_t above, uint64_t *ret_epoch, struct err *e);

#endif
