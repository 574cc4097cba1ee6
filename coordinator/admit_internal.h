/* admit_internal.h: what admit.c and admit_sampling.c share. */
#ifndef GLMD_COORDINATOR_ADMIT_INTERNAL_H
#define GLMD_COORDINATOR_ADMIT_INTERNAL_H

#include "coordinator/admit.h"

/* Sampling parameters (NULL = all defaults) into *p, whose lists the request owns. -EINVAL with the
 * field and its limits, -ENOMEM, -EIO (no random numbers). */
int admit_sampling(const struct admit *a, const struct wire_sampling_parameters *w,
                   struct request_params *p, struct err *e);

#endif
