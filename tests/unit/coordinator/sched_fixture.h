/* sched_fixture.h: a model's sizes and requests for the tests of the scheduler. */
#ifndef GLMD_TESTS_COORDINATOR_SCHED_FIXTURE_H
#define GLMD_TESTS_COORDINATOR_SCHED_FIXTURE_H

#include "coordinator/request.h"
#include "model/arch.h"

/* The sizes of the golden model. */
extern const struct arch fixture_arch;

/* 0 .. n - 1, from a state that a test sets. */
extern uint64_t fixture_random;
uint32_t rnd(uint32_t n);

/* Any kind, any options; whatever stops it is in reference.h's reach. */
struct request *fixture_random_request(void);

/* One greedy sequence that ends by its length. */
struct request *fixture_request(uint32_t n_prompt, uint32_t max_new);

#endif
