/* local_group.h: all ranks of a group, tensor-parallel times pipeline stages, as threads of one
 * process: `glmd logits`, `glmd compare` and the tests. One thread drives a group. */
#ifndef GLMD_WORKER_ENGINE_LOCAL_GROUP_H
#define GLMD_WORKER_ENGINE_LOCAL_GROUP_H

#include "worker/engine/engine.h"

struct local_group; /* opaque */

/* Plans that may be under way at once. */
enum { LOCAL_GROUP_MAX_STEPS = 8 };

/* Opens tp_size * pp_size engines. tp_rank and stage are ignored; device is "cpu", or "cuda" for
 * one GPU per rank (cuda:0, cuda:1, ...); n_threads is shared out among the ranks, 0 = the allowed
 * CPUs; on_progress reports rank 0. */
int local_group_open(const struct engine_config *config, struct local_group **ret, struct err *e);
void local_group_close(struct local_group *g); /* NULL is fine */

/* One step on every rank. The result is that of the last stage's rank 0, valid until the next step.
 * -EIO when ranks of a stage disagree about what they did (their state hashes differ). */
int local_group_step(struct local_group *g, const struct plan *plan, const struct step_result **ret,
                     struct err *e);

/* The same in two halves, for several steps under way: stages run them one behind the other. A plan
 * stays with its caller, unchanged, until its wait returns. submit never waits; -EAGAIN:
 * LOCAL_GROUP_MAX_STEPS are under way. wait is for the oldest one; its result is valid until the
 * next wait. Everything else asks for a group with nothing under way. */
int local_group_submit(struct local_group *g, const struct plan *plan);
int local_group_wait(struct local_group *g, const struct step_result **ret, struct err *e);

/* engine_reset on every rank. */
void local_group_reset(struct local_group *g);

/* engine_known_answer on every rank; -EIO when they disagree. */
int local_group_known_answer(struct local_group *g, uint64_t *ret_hash, struct err *e);

/* For limits, memory, description and hooks; steps go through the group. Rank
 * stage * tp_size + tp_rank. */
struct engine *local_group_engine(struct local_group *g, uint32_t rank);

#endif
