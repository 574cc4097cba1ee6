/* reference.h: what a request must give, computed from the request alone: no scheduler, no blocks,
 * no slots. */
#ifndef GLMD_TESTS_COORDINATOR_REFERENCE_H
#define GLMD_TESTS_COORDINATOR_REFERENCE_H

#include "coordinator/request.h"

/* Outputs of one round (or of the only one) as text: "tokens finish score ..." of every output, and
 * for Fill every round. Two requests with the same parameters give the same text. */
void reference_run(const struct arch *a, const struct request *fresh, struct buf *ret_text);

/* The same text from a request that the scheduler has finished. */
void reference_describe(const struct request *done, struct buf *ret_text);

/* Whether a text that ends in this token ends in a stop text of the request: its `watch` says that
 * it has some. Plays the front's part. */
bool reference_is_stop_text(const struct request *r, int32_t token);

#endif
