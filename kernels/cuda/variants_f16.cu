/* variants_f16.cu: see variants.cuh. */
#include "variants.cuh"

const struct variant variants_f16[] = {VARIANTS_LONG(16), VARIANTS_WIDE(16), {}};
