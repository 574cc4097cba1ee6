/* options.h: glmd-worker's command line over the configuration file. */
#ifndef GLMD_WORKER_OPTIONS_H
#define GLMD_WORKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/config.h"

struct worker_options {
    struct config config; /* owned; flags are applied */
    uint32_t rank;
    const char *device; /* points into argv or config */
    bool spawned;       /* the coordinator is the parent: end with it */
};

enum options_result { OPTIONS_RUN, OPTIONS_EXIT_OK, OPTIONS_EXIT_USAGE };

/* Reads argv, the file it names, and checks both. Says on `out` or `error_out` why the program
 * should not run. */
enum options_result options_parse(struct worker_options *o, int argc, char **argv, FILE *out,
                                  FILE *error_out);
void options_deinit(struct worker_options *o);

#endif
