/* golden_arch.h: sizes and tokens of the golden model. */
#ifndef GLMD_TESTS_COORDINATOR_GOLDEN_ARCH_H
#define GLMD_TESTS_COORDINATOR_GOLDEN_ARCH_H

#include "model/arch.h"

extern const struct arch golden_arch;

#endif
