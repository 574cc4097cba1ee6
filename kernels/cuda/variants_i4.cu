/* variants_i4.cu: see variants.cuh. */
#include "variants.cuh"

const struct variant variants_i4[] = {VARIANTS_LONG(4),
                                      VARIANTS_SHORT(4),
                                      VARIANTS_WIDE(4),
                                      variant_wide<4, 1, 64, false>(),
                                      variant_wide<4, 2, 128, true>(),
                                      {}};
