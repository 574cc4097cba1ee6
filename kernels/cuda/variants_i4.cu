/* variants_i4.cu: see variants.cuh. */
#include "variants.cuh"

const struct variant variants_i4[] = {VARIANTS_LONG(4), VARIANTS_SHORT(4), {}};
