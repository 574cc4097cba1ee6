/* run_options.h: what `fill` and `generate` have in common: the server, how tokens are chosen,
 * whose request it is, how the answer is printed. */
#ifndef GLMD_CLI_RUN_OPTIONS_H
#define GLMD_CLI_RUN_OPTIONS_H

#include "cli/client.h"
#include "cli/sampling_options.h"

struct run_options {
    struct client_target target;
    struct sampling_options sampling;
    int32_t priority;
    const char *user;
    bool stats, json;
    /* the answer */
    bool has_seed;
    uint64_t seed;
};

/* cli_parse for `fill` and `generate`: the verb's own options, these, those of the server and of
 * sampling. */
int run_options_parse(struct run_options *o, int argc, char **argv, const char *usage,
                      const struct cli_option *own, size_t n_own);

/* Makes the call. `packed` is what wire_pack_... said. Returns an exit code; failures are printed.
 */
int run_call(const struct run_options *o, const char *path, int packed, const struct buf *request,
             int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e),
             void *context);

/* "stop", "length", "unfinished" */
const char *run_finish_name(enum wire_finish_reason reason);

#endif
