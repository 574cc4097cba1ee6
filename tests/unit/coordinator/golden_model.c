/* golden_model.c: see golden_model.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "golden_model.h"

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

struct tokenizer *golden_tokenizer(void)
{
    const char *root = getenv("GLMD_SOURCE_DIR");
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/glm130b/tokenizer.model", root ? root : ".");
    struct tokenizer *t;
    struct err e = ERR_INIT;
    if (tokenizer_open_file(path, &golden_arch, TOKENIZER_PLAIN, &t, &e) < 0)
        fail_msg("%s", e.message);
    return t;
}
