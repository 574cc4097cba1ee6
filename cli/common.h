/* common.h: what several verbs share: text from the command line or standard input, numbers,
 * messages, the tokenizer of a model directory. */
#ifndef GLMD_CLI_COMMON_H
#define GLMD_CLI_COMMON_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/arch.h"

struct tokenizer;

/* "glmd VERB: message" and where to find help; returns EXIT_USAGE. */
int cli_usage_error(const char *verb, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* "glmd VERB: message"; returns EXIT_FAILED. */
int cli_failed(const char *verb, const struct err *e);

/* Whole numbers and decimal fractions within bounds, nothing around them. -EINVAL. */
int cli_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret);
int cli_parse_double(const char *text, double min, double max, double *ret);

/* One number of an option into *ret; prints and returns EXIT_USAGE when it is none, else 0. */
int cli_option_u32(const char *verb, const char *option, const char *text, uint32_t min,
                   uint32_t max, uint32_t *ret);
int cli_option_u64(const char *verb, const char *option, const char *text, uint64_t min,
                   uint64_t max, uint64_t *ret);
int cli_option_i32(const char *verb, const char *option, const char *text, int32_t min, int32_t max,
                   int32_t *ret);
int cli_option_double(const char *verb, const char *option, const char *text, double min,
                      double max, double *ret);

/* The text of a verb that takes TEXT or "-": what is left of the command line from optind on. No
 * argument, or "-", reads standard input to its end (a last newline is dropped). More than one
 * argument, text over 4 MiB: an error is printed. Returns 0 or an exit code. */
int cli_text(const char *verb, int argc, char **argv, struct buf *ret_text);

/* Tokenizer and architecture of a model directory; needs no weights. */
int cli_open_tokenizer(const char *model_dir, struct arch *ret_arch, struct tokenizer **ret,
                       struct err *e);

/* Prints the value and a newline, and releases it. NULL (out of memory) and output errors return
 * EXIT_FAILED. */
int cli_print_json(const char *verb, json_t *value);

/* Array of token ids; NULL when out of memory. */
json_t *cli_json_ids(const int32_t *ids, size_t n);

#endif
