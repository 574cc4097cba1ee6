/* known_answer.h: see known_answer.c. */
#ifndef GLMD_WORKER_ENGINE_KNOWN_ANSWER_H
#define GLMD_WORKER_ENGINE_KNOWN_ANSWER_H

#include <stdint.h>

#include "model/arch.h"
#include "worker/engine/engine.h"

/* Runs the generation on a reset engine with at least 2 blocks and 16 tokens per step. With
 * several stages the last one's tokens go to the first and from there to the others. */
int known_answer_run(struct engine *g, const struct arch *a, struct comm *comm, uint64_t *ret_hash,
                     struct err *e);

#endif
