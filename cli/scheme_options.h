/* scheme_options.h: in which numbers a model's weights are: --weights, --group and --head. */
#ifndef GLMD_CLI_SCHEME_OPTIONS_H
#define GLMD_CLI_SCHEME_OPTIONS_H

#include "cli/options.h"
#include "model/quant.h"

/* For cli_parse; their lines of --help, which differ, are the verb's. Whether one was given: its
 * `given` is the caller's to set. */
enum { SCHEME_WEIGHTS, SCHEME_GROUP, SCHEME_HEAD, SCHEME_N_OPTIONS };
struct cli_options scheme_options(struct quant_scheme *s, struct cli_option ret[SCHEME_N_OPTIONS]);

#endif
