/* script.h: a few steps of three sequences, the same for every engine: what comes out can be
 * compared between devices, ranks and stages. Prompts of all slots, the second and third whole or
 * in slices of one layer; then decodes of all three, the first one writing into a copy of its last
 * block. */
#ifndef GLMD_TESTS_GOLDEN_SCRIPT_H
#define GLMD_TESTS_GOLDEN_SCRIPT_H

#include "tests/golden/golden.h"

enum {
    SCRIPT_PROMPT = 37,
    SCRIPT_DECODES = 6,
    SCRIPT_SLOTS = 3,
    SCRIPT_LOGIT_ROWS = SCRIPT_PROMPT + SCRIPT_SLOTS * SCRIPT_DECODES,
};

/* Runs it on an engine of its own (the slots and blocks of `o` are filled in) and returns the
 * logits of the first prompt and of all decodes, *ret_n values, to be freed. */
float *script_run(const struct golden_options *o, bool sliced, size_t *ret_n);

#endif
