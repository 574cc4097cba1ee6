/* scheme_options.c: see scheme_options.h. */
#include "cli/scheme_options.h"

#include <string.h>

#include "cli/common.h"

static const char *const weights[] = {
    [QUANT_FP16] = "fp16", [QUANT_INT8] = "int8", [QUANT_INT4] = "int4", NULL};

static int take_group(void *context, const char *verb, const char *text)
{
    struct err e = ERR_INIT;
    return quant_group_parse(text, context, &e) < 0 ? cli_usage_error(verb, "--%s", e.message) : 0;
}

static int take_head(void *context, const char *verb, const char *text)
{
    struct err e = ERR_INIT;
    return quant_head_parse(text, context, &e) < 0 ? cli_usage_error(verb, "--%s", e.message) : 0;
}

struct cli_options scheme_options(struct quant_scheme *s, struct cli_option ret[SCHEME_N_OPTIONS])
{
    const struct cli_option options[SCHEME_N_OPTIONS] = {
        [SCHEME_WEIGHTS] = CLI_CHOICE("weights", &s->weights, weights),
        [SCHEME_GROUP] = CLI_TAKE("group", take_group, s),
        [SCHEME_HEAD] = CLI_TAKE("head", take_head, s),
    };
    memcpy(ret, options, sizeof options);
    return (struct cli_options){ret, SCHEME_N_OPTIONS, NULL};
}
