/* admit_rig.c: see admit_rig.h. */
#include "admit_rig.h"

struct admit admit;

int admit_set_up_limit(uint32_t max_tokens)
{
    struct err e = ERR_INIT;
    golden_set_up(NULL);
    admit = (struct admit){
        .arch = &golden_arch,
        .tokenizer = tokenizer,
        .model = "golden",
        .max_input_bytes = 4096,
        .max_tokens = max_tokens,
        .max_masks = 8,
        .max_choices = 6,
    };
    return admit_init(&admit, &e);
}

int admit_set_up(void **state)
{
    (void)state;
    return admit_set_up_limit(200);
}
