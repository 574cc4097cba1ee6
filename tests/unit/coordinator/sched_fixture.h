/* sched_fixture.h: requests, and schedulers to give them to, for the tests of the scheduler. */
#ifndef GLMD_TESTS_COORDINATOR_SCHED_FIXTURE_H
#define GLMD_TESTS_COORDINATOR_SCHED_FIXTURE_H

#include "coordinator/sched.h"
#include "fake_engine.h"
#include "golden_arch.h"

/* 0 .. n - 1, from a state that a test sets. */
extern uint64_t fixture_random;
uint32_t rnd(uint32_t n);

/* Any kind, any options; whatever stops it is in reference.h's reach. */
struct request *fixture_random_request(void);

/* One greedy sequence that ends by its length. */
struct request *fixture_request(uint32_t n_prompt, uint32_t max_new);

/* Four slots, 32 blocks. */
extern const struct plan_limits fixture_small;

/* A scheduler with a queue for two, and group 0 with these limits; NULL: without a group. */
struct sched *fixture_sched(const struct plan_limits *limits);
/* As sched_submit; fixture_finish frees the request. */
int fixture_submit(struct sched *s, struct request *r, struct err *e);
/* The next step of a group, run and committed. */
void fixture_step(struct sched *s, uint32_t group, struct fake_engine *f, int64_t now);
/* The request is done and has what reference_run said. */
void fixture_expect(struct request *r, const char *expected);
/* Ends and frees what was submitted, and the scheduler. */
void fixture_finish(struct sched *s);

#endif
