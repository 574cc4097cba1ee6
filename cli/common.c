/* common.c: see common.h. */
#include "cli/common.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/tokenizer/tokenizer.h"

enum { MAX_TEXT_BYTES = 4 << 20, MAX_CONFIG_BYTES = 1 << 20 };

/* ---- messages ---- */

int cli_usage_error(const char *verb, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "glmd %s: ", verb);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n`glmd %s --help` explains the options\n", verb);
    return EXIT_USAGE;
}

int cli_failed(const char *verb, const struct err *e)
{
    fprintf(stderr, "glmd %s: %s\n", verb, e->message[0] ? e->message : err_name(e->code));
    return EXIT_FAILED;
}

/* ---- numbers ---- */

int cli_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
    char *end;
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || errno || value < min || value > max)
        return -EINVAL;
    *ret = value;
    return 0;
}

int cli_parse_double(const char *text, double min, double max, double *ret)
{
    char *end;
    /* decimal notation only: strtod would take blanks, "nan" and hexadecimal, too */
    if (strspn(text, "+-.0123456789eE") != strlen(text))
        return -EINVAL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(value) || value < min || value > max)
        return -EINVAL;
    *ret = value;
    return 0;
}

int cli_option_u64(const char *verb, const char *option, const char *text, uint64_t min,
                   uint64_t max, uint64_t *ret)
{
    if (cli_parse_u64(text, min, max, ret) < 0)
        return cli_usage_error(verb, "%s %s: expected a whole number from %" PRIu64 " to %" PRIu64,
                               option, text, min, max);
    return 0;
}

int cli_option_u32(const char *verb, const char *option, const char *text, uint32_t min,
                   uint32_t max, uint32_t *ret)
{
    uint64_t value = *ret;
    int code = cli_option_u64(verb, option, text, min, max, &value);
    *ret = (uint32_t)value;
    return code;
}

int cli_option_i32(const char *verb, const char *option, const char *text, int32_t min, int32_t max,
                   int32_t *ret)
{
    uint64_t value;
    bool negative = *text == '-';
    if (cli_parse_u64(text + negative, 0, INT32_MAX, &value) == 0) {
        *ret = negative ? -(int32_t)value : (int32_t)value;
        if (*ret >= min && *ret <= max)
            return 0;
    }
    return cli_usage_error(verb, "%s %s: expected a whole number from %d to %d", option, text, min,
                           max);
}

int cli_option_double(const char *verb, const char *option, const char *text, double min,
                      double max, double *ret)
{
    if (cli_parse_double(text, min, max, ret) < 0)
        return cli_usage_error(verb, "%s %s: expected a number from %g to %g", option, text, min,
                               max);
    return 0;
}

/* ---- text ---- */

static int read_stdin(const char *verb, struct buf *ret)
{
    ret->limit = MAX_TEXT_BYTES;
    if (isatty(STDIN_FILENO))
        fprintf(stderr, "glmd %s: reading the text from the terminal; Ctrl-D ends it\n", verb);
    for (;;) {
        char part[65536];
        ssize_t n = read(STDIN_FILENO, part, sizeof part);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            fprintf(stderr, "glmd %s: standard input: %s\n", verb, err_name(-errno));
            return EXIT_FAILED;
        }
        if (n == 0)
            break;
        if (buf_append(ret, part, (size_t)n) < 0) {
            fprintf(stderr, "glmd %s: the text is larger than %d bytes\n", verb, MAX_TEXT_BYTES);
            return EXIT_FAILED;
        }
    }
    if (ret->size && ret->data[ret->size - 1] == '\n')
        ret->data[--ret->size] = '\0';
    return 0;
}

int cli_text(const char *verb, int argc, char **argv, struct buf *ret_text)
{
    if (argc - optind > 1)
        return cli_usage_error(verb, "one TEXT expected, found %d: put it in quotes",
                               argc - optind);
    const char *text = optind < argc ? argv[optind] : "-";
    if (strcmp(text, "-") == 0)
        return read_stdin(verb, ret_text);
    ret_text->limit = MAX_TEXT_BYTES;
    if (buf_append_str(ret_text, text) < 0) {
        fprintf(stderr, "glmd %s: the text is larger than %d bytes\n", verb, MAX_TEXT_BYTES);
        return EXIT_FAILED;
    }
    return 0;
}

/* ---- models ---- */

int cli_open_tokenizer(const char *model_dir, struct arch *ret_arch, struct tokenizer **ret,
                       struct err *e)
{
    char *path = file_join(model_dir, "config.json");
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    json_t *config;
    int r = jsonfile_load(path, MAX_CONFIG_BYTES, &config, e);
    if (r == 0) {
        r = arch_from_json(config, ret_arch, e);
        if (r < 0)
            err_prefix(e, "%s", path);
        json_decref(config);
    }
    free(path);
    return r < 0 ? r : tokenizer_open(model_dir, ret_arch, ret, e);
}

/* ---- JSON ---- */

int cli_print_json(const char *verb, json_t *value)
{
    int r = value ? json_dumpf(value, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : -1;
    json_decref(value);
    if (r < 0 || putchar('\n') == EOF || fflush(stdout) == EOF) {
        fprintf(stderr, "glmd %s: cannot write the result\n", verb);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

json_t *cli_json_ids(const int32_t *ids, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n && array; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) < 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}
