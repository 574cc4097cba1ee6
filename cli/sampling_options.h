/* sampling_options.h: the options of `fill` and `generate` that say how tokens are chosen. */
#ifndef GLMD_CLI_SAMPLING_OPTIONS_H
#define GLMD_CLI_SAMPLING_OPTIONS_H

#include "cli/options.h"
#include "proto/rpc/wire_inference.h"

enum { SAMPLING_MAX_BIAS = 1024, SAMPLING_MAX_STOP = 16, SAMPLING_MAX_STOP_IDS = 64 };

struct sampling_options {
    struct wire_sampling_parameters wire; /* points into this struct */
    struct wire_beam_parameters beam;
    struct wire_id_ranges any_id;
    struct plan_bias bias[SAMPLING_MAX_BIAS];
    const char *stop[SAMPLING_MAX_STOP]; /* borrowed from the command line */
    int32_t stop_ids[SAMPLING_MAX_STOP_IDS];
    bool greedy, any_token, any_beam_option, no_consider_end;
};

/* Everything the server's default. */
void sampling_options_init(struct sampling_options *o);

/* For cli_parse. */
enum { SAMPLING_N_OPTIONS = 21 };
struct cli_options sampling_options(struct sampling_options *o,
                                    struct cli_option ret[SAMPLING_N_OPTIONS]);

/* Behind cli_parse: what the options mean together. 0 or EXIT_USAGE (printed): they exclude one
 * another. */
int sampling_options_check(struct sampling_options *o, const char *verb);

#endif
