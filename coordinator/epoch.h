/* epoch.h: the number that fences old ranks off, kept across restarts.
 *
 * An epoch is written to disk before it is used, and only grows, also when the coordinator crashed
 * in between. The state directory is locked: two coordinators cannot share it.
 */
#ifndef GLMD_COORDINATOR_EPOCH_H
#define GLMD_COORDINATOR_EPOCH_H

#include <stdint.h>

#include "base/err.h"

struct epoch_store {
    int dir_fd; /* owned, locked; -1 = closed */
    uint64_t last;
};

/* Creates the directory if need be. -EBUSY: another process holds it; -EBADMSG: the file is
 * damaged. */
int epoch_open(const char *dir, struct epoch_store *ret, struct err *e);
void epoch_close(struct epoch_store *s);

/* A new epoch, greater than every one before and than `above`; on disk when this returns 0. */
int epoch_next(struct epoch_store *s, uint64_t above, uint64_t *ret_epoch, struct err *e);

#endif
