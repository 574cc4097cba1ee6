/* golden_arch.c: see golden_arch.h. */
#include "golden_arch.h"

const struct arch golden_arch = {
    .name = "golden",
    .n_layers = 3,
    .hidden = 64,
    .n_heads = 4,
    .vocab = 640,
    .max_seq = 256,
    .tokens = {.mask = 512,
               .gmask = 513,
               .smask = 514,
               .eod = 515,
               .sop = 516,
               .eop = 517,
               .enc = 518,
               .dblock = 519,
               .eos = 34,
               .n_image_tokens = 32,
               .special_base = 512},
};
