/* options.c: see options.h. getopt_long does the parsing. */
#include "cli/options.h"

#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "cli/cli.h"
#include "cli/common.h"

enum { FIRST = 256, NAME_BYTES = 64 }; /* FIRST: above every letter */

struct parser {
    const struct cli_option *options[CLI_MAX_OPTIONS];
    size_t n;
    struct option longs[CLI_MAX_OPTIONS + 2]; /* and --help, and the end */
    char letters[3 * CLI_MAX_OPTIONS + 2];    /* "L::" each, and h */
};

static int has_value(const struct cli_option *o)
{
    switch (o->kind) {
    case CLI_OPTION_FLAG:
    case CLI_OPTION_TAKE_NONE:
        return no_argument;
    case CLI_OPTION_TAKE_OPTIONAL:
        return optional_argument;
    default:
        return required_argument;
    }
}

static void add_option(struct parser *p, const struct cli_option *o, char **letter)
{
    assert(p->n < CLI_MAX_OPTIONS);
    int value = has_value(o);
    p->longs[p->n] = (struct option){o->name, value, NULL, FIRST + (int)p->n};
    p->options[p->n++] = o;
    if (!o->letter)
        return;
    *(*letter)++ = o->letter;
    for (; value; value--) /* required: one colon, optional: two */
        *(*letter)++ = ':';
}

static void build(struct parser *p, const struct cli_options *tables, size_t n_tables)
{
    char *letter = p->letters;
    *letter++ = 'h';
    for (size_t t = 0; t != n_tables; t++) {
        for (size_t i = 0; i != tables[t].n; i++)
            add_option(p, &tables[t].options[i], &letter);
    }
    p->longs[p->n] = (struct option){"help", no_argument, NULL, 'h'};
}

static const struct cli_option *find(const struct parser *p, int c)
{
    for (size_t i = 0; i != p->n; i++) {
        if (c == FIRST + (int)i || (c < FIRST && c == p->options[i]->letter))
            return p->options[i];
    }
    return NULL;
}

static uint64_t whole(double bound)
{
    return bound < 0x1p64 ? (uint64_t)bound : UINT64_MAX;
}

/* "fp32, fp16 or a8" behind what is wrong. */
static int take_choice(const struct cli_option *o, const char *verb, const char *text)
{
    char words[128] = "";
    for (unsigned i = 0; o->choices[i]; i++) {
        if (strcmp(text, o->choices[i]) == 0) {
            *(unsigned *)o->value = i;
            return 0;
        }
        size_t n = strlen(words);
        snprintf(words + n, sizeof words - n, "%s%s",
                 i == 0              ? ""
                 : o->choices[i + 1] ? ", "
                                     : " or ",
                 o->choices[i]);
    }
    return cli_usage_error(verb, "--%s %s: expected %s", o->name, text, words);
}

static int take(const struct cli_option *o, const char *verb, const char *text)
{
    char name[NAME_BYTES];
    double number = 0;
    int code;
    snprintf(name, sizeof name, "--%s", o->name);
    switch (o->kind) {
    case CLI_OPTION_FLAG:
        *(bool *)o->value = true;
        return 0;
    case CLI_OPTION_TEXT:
        *(const char **)o->value = text;
        return 0;
    case CLI_OPTION_U32:
        return cli_option_u32(verb, name, text, (uint32_t)o->min, (uint32_t)o->max, o->value);
    case CLI_OPTION_U64:
        return cli_option_u64(verb, name, text, whole(o->min), whole(o->max), o->value);
    case CLI_OPTION_I32:
        return cli_option_i32(verb, name, text, (int32_t)o->min, (int32_t)o->max, o->value);
    case CLI_OPTION_FLOAT:
        code = cli_option_double(verb, name, text, o->min, o->max, &number);
        *(float *)o->value = (float)number;
        return code;
    case CLI_OPTION_DOUBLE:
        return cli_option_double(verb, name, text, o->min, o->max, o->value);
    case CLI_OPTION_CHOICE:
        return take_choice(o, verb, text);
    case CLI_OPTION_TAKE:
    case CLI_OPTION_TAKE_NONE:
    case CLI_OPTION_TAKE_OPTIONAL:
        return o->take(o->value, verb, text);
    }
    assert(false);
    return EXIT_USAGE;
}

static int print_help(const char *verb, const char *usage, const struct cli_options *tables,
                      size_t n_tables)
{
    struct err e = ERR_INIT;
    fputs(usage, stdout);
    for (size_t t = 0; t != n_tables; t++) {
        if (tables[t].help)
            fputs(tables[t].help, stdout);
    }
    if (cli_help_check(usage, tables, n_tables, &e) < 0)
        return cli_failed(verb, &e);
    return fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

int cli_parse(int argc, char **argv, const char *usage, const struct cli_options *tables,
              size_t n_tables)
{
    struct parser p = {0};
    build(&p, tables, n_tables);
    optind = 0; /* begin anew, whatever was read before */
    for (int c; (c = getopt_long(argc, argv, p.letters, p.longs, NULL)) != -1;) {
        const struct cli_option *o = find(&p, c);
        if (!o && c == 'h')
            return print_help(argv[0], usage, tables, n_tables);
        if (!o)
            return EXIT_USAGE; /* getopt has said why */
        int code = take(o, argv[0], optarg);
        if (code)
            return code;
        if (o->given)
            *o->given = true;
    }
    return -1;
}
