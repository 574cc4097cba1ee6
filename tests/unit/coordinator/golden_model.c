/* golden_model.c: see golden_model.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "golden_model.h"

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

struct tokenizer *tokenizer;

int golden_set_up(void **state)
{
    (void)state;
    tokenizer = golden_tokenizer();
    return 0;
}

int golden_tear_down(void **state)
{
    (void)state;
    tokenizer_close(tokenizer);
    return 0;
}
