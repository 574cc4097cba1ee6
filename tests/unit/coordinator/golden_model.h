/* golden_model.h: architecture and tokenizer of the golden model, for tests that need real text. */
#ifndef GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H
#define GLMD_TESTS_COORDINATOR_GOLDEN_MODEL_H

#include "model/tokenizer/tokenizer.h"

extern const struct arch golden_arch;

/* Fails the test when the file is not there. */
struct tokenizer *golden_tokenizer(void);

#endif
