/* variants_i8.cu: see variants.cuh. */
#include "variants.cuh"

const struct variant variants_i8[] = {VARIANTS_LONG(8),
                                      VARIANTS_SHORT(8),
                                      VARIANTS_WIDE(8),
                                      variant_wide<8, 1, 64, false>(),
                                      variant_wide<8, 2, 128, true>(),
                                      {}};
