/* sampling_options.h: the options of `fill` and `generate` that say how tokens are chosen. */
#ifndef GLMD_CLI_SAMPLING_OPTIONS_H
#define GLMD_CLI_SAMPLING_OPTIONS_H

#include <getopt.h>

#include "proto/rpc/wire_inference.h"

enum { SAMPLING_MAX_BIAS = 1024, SAMPLING_MAX_STOP = 16, SAMPLING_MAX_STOP_IDS = 64 };

struct sampling_options {
    struct wire_sampling_parameters wire; /* points into this struct */
    struct wire_beam_parameters beam;
    struct wire_id_ranges any_id;
    struct plan_bias bias[SAMPLING_MAX_BIAS];
    const char *stop[SAMPLING_MAX_STOP]; /* borrowed from the command line */
    int32_t stop_ids[SAMPLING_MAX_STOP_IDS];
};

enum { SAMPLING_OPTION_FIRST = 2000 };
#define SAMPLING_OPTIONS                                                                           \
    {"temperature", required_argument, NULL, SAMPLING_OPTION_FIRST},                               \
        {"top-k", required_argument, NULL, SAMPLING_OPTION_FIRST + 1},                             \
        {"top-p", required_argument, NULL, SAMPLING_OPTION_FIRST + 2},                             \
        {"seed", required_argument, NULL, SAMPLING_OPTION_FIRST + 3},                              \
        {"greedy", no_argument, NULL, SAMPLING_OPTION_FIRST + 4},                                  \
        {"min-tokens", required_argument, NULL, SAMPLING_OPTION_FIRST + 5},                        \
        {"logit-bias", required_argument, NULL, SAMPLING_OPTION_FIRST + 6},                        \
        {"any-token", no_argument, NULL, SAMPLING_OPTION_FIRST + 7},                               \
        {"beams", required_argument, NULL, SAMPLING_OPTION_FIRST + 8},                             \
        {"length-penalty", required_argument, NULL, SAMPLING_OPTION_FIRST + 9},                    \
        {"no-repeat-ngram", required_argument, NULL, SAMPLING_OPTION_FIRST + 10},                  \
        {"sampled-beams", no_argument, NULL, SAMPLING_OPTION_FIRST + 11},                          \
        {"no-consider-end", no_argument, NULL, SAMPLING_OPTION_FIRST + 12},                        \
        {"ignore-end", no_argument, NULL, SAMPLING_OPTION_FIRST + 13},                             \
        {"min-p", required_argument, NULL, SAMPLING_OPTION_FIRST + 14},                            \
        {"repetition-penalty", required_argument, NULL, SAMPLING_OPTION_FIRST + 15},               \
        {"presence-penalty", required_argument, NULL, SAMPLING_OPTION_FIRST + 16},                 \
        {"frequency-penalty", required_argument, NULL, SAMPLING_OPTION_FIRST + 17},                \
        {"stop", required_argument, NULL, SAMPLING_OPTION_FIRST + 18},                             \
        {"stop-id", required_argument, NULL, SAMPLING_OPTION_FIRST + 19},                          \
    {                                                                                              \
        "include-stop", no_argument, NULL, SAMPLING_OPTION_FIRST + 20                              \
    }
#define SAMPLING_HELP                                                                              \
    "How tokens are chosen:\n"                                                                     \
    "      --temperature T       0 = greedy, up to 10 (default 1)\n"                               \
    "      --top-k K             among the K best; 0 = off (default), 1 = greedy\n"                \
    "      --top-p P             among the best that make up P; 0 or 1 = off (default 0.7)\n"      \
    "      --min-p P             among those at least P times as likely as the best; 0 = off\n"    \
    "      --repetition-penalty R  0.01 to 100: divides the logits of tokens that were there\n"    \
    "      --presence-penalty P  -2 to 2: taken from the logits of tokens of the output\n"         \
    "      --frequency-penalty F  -2 to 2: as often as the token is there\n"                       \
    "      --seed N              the same seed gives the same output (default: drawn)\n"           \
    "      --greedy              the best token always: --top-k 1\n"                               \
    "      --min-tokens N        no end before N tokens\n"                                         \
    "      --ignore-end          end tokens neither end the text nor appear\n"                     \
    "      --stop TEXT           ends in front of this text; may be repeated, up to 16 times\n"    \
    "      --stop-id ID          ends at this token; may be repeated, up to 64 times\n"            \
    "      --include-stop        keep the text of --stop\n"                                        \
    "      --logit-bias ID=B     add B (-100 to 100) to a token's logit; may be repeated\n"        \
    "      --any-token           also tokens that are no text (image codes, other specials)\n"     \
    "      --beams B             beam search with B beams (1 to 64) instead of sampling\n"         \
    "      --length-penalty P    of beam search (default 1)\n"                                     \
    "      --no-repeat-ngram N   of beam search: no N-gram twice; 0 = off (default)\n"             \
    "      --sampled-beams       of beam search: draw candidates instead of taking the best\n"     \
    "      --no-consider-end     of beam search: unfinished beams do not compete at the end\n"

/* Everything the server's default. */
void sampling_options_init(struct sampling_options *o);

/* Takes an option that getopt_long returned: 0 when it was one of SAMPLING_OPTIONS, -1 when not,
 * EXIT_USAGE (printed) when its value is wrong. */
int sampling_option(struct sampling_options *o, const char *verb, int c, const char *value);

/* Options that exclude one another: 0 or EXIT_USAGE (printed). */
int sampling_options_check(const struct sampling_options *o, const char *verb);

#endif
