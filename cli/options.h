/* options.h: the command line of a verb as tables: each option says where its value goes. */
#ifndef GLMD_CLI_OPTIONS_H
#define GLMD_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

/* Takes the text behind an option; NULL where an optional one is missing. 0 or an exit code, with
 * the reason printed. */
typedef int cli_take(void *context, const char *verb, const char *text);

struct cli_option {
    const char *name; /* without the dashes */
    char letter;      /* -L; 0 = none */
    enum {
        CLI_OPTION_FLAG,
        CLI_OPTION_TEXT,
        CLI_OPTION_U32,
        CLI_OPTION_U64,
        CLI_OPTION_I32,
        CLI_OPTION_FLOAT,
        CLI_OPTION_DOUBLE,
        CLI_OPTION_CHOICE, /* one of some words; its index goes into an enum */
        CLI_OPTION_TAKE,
        CLI_OPTION_TAKE_NONE,     /* has no value: take() gets NULL */
        CLI_OPTION_TAKE_OPTIONAL, /* --NAME or --NAME=VALUE */
    } kind;
    void *value;                /* of the kind's type; what take() gets as its context */
    double min, max;            /* of numbers; from 2^64 on no limit */
    const char *const *choices; /* NULL-terminated */
    bool *given;                /* becomes true where the option is there; NULL = nobody asks */
    cli_take *take;
};

/* An address of the right type, as a void pointer. */
#define CLI_TYPED(type, p) ((void)sizeof((type *)0 == (p)), (p))

#define CLI_FLAG(name_, p)                                                                         \
    {                                                                                              \
        .name = (name_), .kind = CLI_OPTION_FLAG, .value = CLI_TYPED(bool, p)                      \
    }
#define CLI_TEXT(name_, p)                                                                         \
    {                                                                                              \
        .name = (name_), .kind = CLI_OPTION_TEXT, .value = CLI_TYPED(const char *, p)              \
    }
#define CLI_NUMBER(kind_, type, name_, p, min_, max_, ...)                                         \
    {                                                                                              \
        .name = (name_), .kind = (kind_), .value = CLI_TYPED(type, p), .min = (min_),              \
        .max = (max_), __VA_ARGS__                                                                 \
    }
/* Behind the bounds, where wanted: .given = &FLAG, .letter = 'L' */
#define CLI_U32(name, ...)    CLI_NUMBER(CLI_OPTION_U32, uint32_t, name, __VA_ARGS__, )
#define CLI_U64(name, ...)    CLI_NUMBER(CLI_OPTION_U64, uint64_t, name, __VA_ARGS__, )
#define CLI_I32(name, ...)    CLI_NUMBER(CLI_OPTION_I32, int32_t, name, __VA_ARGS__, )
#define CLI_FLOAT(name, ...)  CLI_NUMBER(CLI_OPTION_FLOAT, float, name, __VA_ARGS__, )
#define CLI_DOUBLE(name, ...) CLI_NUMBER(CLI_OPTION_DOUBLE, double, name, __VA_ARGS__, )
/* p: of an enum without negative values; its values are indices into the words. */
#define CLI_CHOICE(name_, p, words)                                                                \
    {                                                                                              \
        .name = (name_), .kind = CLI_OPTION_CHOICE, .choices = (words),                            \
        .value = ((void)sizeof(char[sizeof *(p) == sizeof(unsigned) ? 1 : -1]), (p))               \
    }
#define CLI_TAKE(name_, take_, context)                                                            \
    {                                                                                              \
        .name = (name_), .kind = CLI_OPTION_TAKE, .value = (context), .take = (take_)              \
    }

/* Options that belong together: a verb's own ones, those of every call to a server.
 *
 * Each option has its line of --help, in the usage or in one of the helps:
 *
 *   "  -L, --name VALUE  what it is"     two blanks before the explanation, unless it is below;
 *   "      --name [VALUE]"               where the value may be missing;
 *   "      --name A, --other B  ..."     two of them. What goes on below does not begin with a
 * dash.
 *
 * cli_help_check compares tables and lines. */
struct cli_options {
    const struct cli_option *options;
    size_t n;
    const char *help; /* their lines of --help, where the verb's usage does not have them */
};
#define CLI_OWN(array)                                                                             \
    {                                                                                              \
        .options = (array), .n = sizeof(array) / sizeof((array)[0])                                \
    }

enum { CLI_MAX_OPTIONS = 64 };

/* That there is a line for every option and an option for every line, with the same letter and a
 * value or none. 0, or -EINVAL with the first that differs. */
int cli_help_check(const char *usage, const struct cli_options *tables, size_t n_tables,
                   struct err *e);

/* Reads the options of argv, whose first word is the verb; operands are left behind optind. -h and
 * --help print `usage` and the help of the tables (EXIT_FAILED where cli_help_check finds fault: so
 * that asking every verb for its help tests them all). -1: go on; otherwise an exit code. */
int cli_parse(int argc, char **argv, const char *usage, const struct cli_options *tables,
              size_t n_tables);

#endif
