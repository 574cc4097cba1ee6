/* front_internal.h: what the parts of the front share. See front.h. Loop thread. */
#ifndef GLMD_COORDINATOR_FRONT_INTERNAL_H
#define GLMD_COORDINATOR_FRONT_INTERNAL_H

#include "coordinator/front.h"
#include "coordinator/metrics.h"

/* Whoever is refused by a server that drains, stops or has no ranks finds another one, or this one
 * started again; whose own requests are too many has one that ends. */
#define FRONT_RETRY_NS NSEC_PER_SEC

/* front_reason.c: of a negative errno value of admission. */
const char *front_reason_refused(int code);
/* All of *ret from a request that has ended; `stopping`: the server ended it. */
void front_set_end(struct front_end *ret, const struct request *r, enum metrics_end how,
                   bool stopping);

#endif
