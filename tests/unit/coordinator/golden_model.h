/* golden_model.h: the golden model with its tokenizer, for tests that need real text. */
#ifndef GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H
#define GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H

#include "golden_arch.h"
#include "model/tokenizer/tokenizer.h"

/* Fails the test when the file is not there. */
struct tokenizer *golden_tokenizer(void);

/* One for all tests of a program: fixtures of its group. */
extern struct tokenizer *tokenizer;
int golden_set_up(void **state);
int golden_tear_down(void **state);

#endif
