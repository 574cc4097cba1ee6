/* admit_rig.h: admission of the golden model, with small limits. */
#ifndef GLMD_TESTS_COORDINATOR_ADMIT_RIG_H
#define GLMD_TESTS_COORDINATOR_ADMIT_RIG_H

#include "coordinator/admit.h"
#include "golden_model.h"

/* Fixtures of a program's group: golden_tear_down takes it down. */
extern struct admit admit;
int admit_set_up(void **state); /* 200 new tokens at most */
int admit_set_up_limit(uint32_t max_tokens);

#endif
