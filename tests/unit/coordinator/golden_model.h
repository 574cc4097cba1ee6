/* golden_model.h: the golden model with its tokenizer, for tests that need real text. */
#ifndef GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H
#define GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H

#include "golden_arch.h"
#include "model/tokenizer/tokenizer.h"

/* Fails the test when the file is not there. */
struct tokenizer *golden_tokenizer(void);

#endif
