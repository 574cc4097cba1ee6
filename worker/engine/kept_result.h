/* kept_result.h: a copy of a step's result that outlives the engine's next step. */
#ifndef GLMD_WORKER_ENGINE_KEPT_RESULT_H
#define GLMD_WORKER_ENGINE_KEPT_RESULT_H

#include <stddef.h>

#include "proto/plan.h"

struct kept_result { /* zero-initialised = empty */
    struct step_result step;
    void *memory; /* owned; holds what `step` points to; grows and stays */
    size_t capacity;
};

/* `plan` is the one that the result answers, `vocab` the length of a row of logits. -ENOMEM leaves
 * the copy as it was. */
int kept_result_set(struct kept_result *k, const struct step_result *from, const struct plan *plan,
                    size_t vocab);
void kept_result_deinit(struct kept_result *k);

#endif
