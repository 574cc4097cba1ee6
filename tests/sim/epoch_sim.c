/* epoch_sim.c: coordinator/epoch.h without a disk: the store outlives coordinators that crash. */
#include "coordinator/epoch.h"

#include "base/util.h"

int epoch_next(struct epoch_store *s, uint64_t above, uint64_t *ret_epoch, struct err *e)
{
    (void)e;
    s->last = *ret_epoch = MAX(s->last, above) + 1;
    return 0;
}
