/* front_kserve.h: what the two halves of the Open Inference Protocol's front share. Loop thread. */
#ifndef GLMD_COORDINATOR_FRONT_KSERVE_H
#define GLMD_COORDINATOR_FRONT_KSERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct coordinator;

enum kserve_method {
    KSERVE_LIVE,
    KSERVE_READY,
    KSERVE_MODEL_READY,
    KSERVE_SERVER_METADATA,
    KSERVE_MODEL_METADATA,
    KSERVE_INFER,
    KSERVE_STREAM_INFER,
};

/* front_kserve_info.c: every method but the last two */

/* Whether the process lives is nobody's secret; the rest asks for a key, where keys are in force.
 */
bool kserve_info_is_public(enum kserve_method method);
/* Packs the answer to a message; on failure nothing was answered, and e says why. */
int kserve_info_answer(const struct coordinator *c, enum kserve_method method, const uint8_t *data,
                       size_t size, struct buf *out, struct err *e);

#endif
