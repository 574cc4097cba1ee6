/* variants_i8.cu: see variants.cuh. */
#include "variants.cuh"

const struct variant variants_i8[] = {VARIANTS_LONG(8), VARIANTS_SHORT(8), {}};
