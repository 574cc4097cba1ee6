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

enum { RUN_OPTION_FIRST = 3000 };
#define RUN_OPTIONS                                                                                \
    {"priority", required_argument, NULL, RUN_OPTION_FIRST},                                       \
        {"user", required_argument, NULL, RUN_OPTION_FIRST + 1},                                   \
        {"stats", no_argument, NULL, RUN_OPTION_FIRST + 2},                                        \
        {"json", no_argument, NULL, RUN_OPTION_FIRST + 3}, {"help", no_argument, NULL, 'h'},       \
        CLIENT_OPTIONS, SAMPLING_OPTIONS
#define RUN_SHORT_OPTIONS "h" CLIENT_SHORT_OPTIONS
#define RUN_HELP                                                                                   \
    "      --priority N          -100 to 100: greater ones first (default 0)\n"                    \
    "      --user NAME           whom fairness counts this for\n"                                  \
    "      --stats               tokens per second, on standard error\n"                           \
    "      --json                one JSON object at the end\n"                                     \
    "  -h, --help\n" CLIENT_HELP SAMPLING_HELP

struct run_verb {
    const char *usage;
    const char *short_options;    /* RUN_SHORT_OPTIONS and the verb's own */
    const struct option *options; /* RUN_OPTIONS and the verb's own */
    /* An option of the verb's own: 0, or EXIT_USAGE (printed, by getopt for an unknown one). */
    int (*take)(void *context, const char *verb, int c, const char *value);
    void *context;
};

/* -1: go on; otherwise an exit code. */
int run_options_parse(struct run_options *o, int argc, char **argv, const struct run_verb *v);

/* Makes the call. `packed` is what wire_pack_... said. Returns an exit code; failures are printed.
 */
int run_call(const struct run_options *o, const char *path, int packed, const struct buf *request,
             int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e),
             void *context);

/* "stop", "length", "unfinished" */
const char *run_finish_name(enum wire_finish_reason reason);

#endif
