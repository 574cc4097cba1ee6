/* test_cli_options.c: the command line as tables: where values go, what is refused, what help
 * prints.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <getopt.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/options.h"

struct taken {
    int times;
    const char *last;
    int answer;
};

static int take(void *context, const char *verb, const char *text)
{
    struct taken *t = context;
    assert_string_equal(verb, "verb");
    t->times++;
    t->last = text;
    return t->answer;
}

enum colour { RED, GREEN, BLUE };
static const char *const colours[] = {"red", "green", "blue", NULL};

static const char usage[] = "usage: verb --text TEXT\n"
                            "\n"
                            "  -u, --u32 N         a number, as --u64 takes one\n"
                            "      --u64 N, --i32 N\n"
                            "                      two more\n"
                            "      --float F --double D  and two\n"
                            "      --colour red|green|blue\n"
                            "      --flag, --none  without a value\n"
                            "      --text TEXT\n"
                            "      --every KEY ...  more than one word\n"
                            "  -m, --maybe [V]     a value or none\n"
                            "  -h, --help\n";

struct values {
    enum colour colour;
    bool flag, given;
    const char *text;
    uint32_t u32;
    uint64_t u64;
    int32_t i32;
    float f;
    double d;
    struct taken every, none, maybe;
};

/* `line`: words parted by blanks, behind the verb. */
static int parse(struct values *v, const char *line)
{
    const struct cli_option numbers[] = {
        CLI_U32("u32", &v->u32, 1, 9, .letter = 'u', .given = &v->given),
        CLI_U64("u64", &v->u64, 0, 0x1p64),
        CLI_I32("i32", &v->i32, -5, 5),
        CLI_FLOAT("float", &v->f, 0, 1),
        CLI_DOUBLE("double", &v->d, -1, 1),
    };
    const struct cli_option others[] = {
        CLI_FLAG("flag", &v->flag),
        CLI_TEXT("text", &v->text),
        CLI_CHOICE("colour", &v->colour, colours),
        CLI_TAKE("every", take, &v->every),
        {.name = "none", .kind = CLI_OPTION_TAKE_NONE, .value = &v->none, .take = take},
        {.name = "maybe",
         .letter = 'm',
         .kind = CLI_OPTION_TAKE_OPTIONAL,
         .value = &v->maybe,
         .take = take},
    };
    const struct cli_options tables[] = {CLI_OWN(numbers), CLI_OWN(others)};
    static char words[256];
    char *argv[16] = {(char[]){"verb"}};
    int argc = 1;
    assert_true(strlen(line) < sizeof words);
    memcpy(words, line, strlen(line) + 1);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    return cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
}

static void values_go_where_the_tables_say(void **state)
{
    (void)state;
    struct values v = {0};
    assert_int_equal(parse(&v, "--u32 7 --u64=18446744073709551615 --i32 -5 --float 0.25 --double "
                               "-1 --flag --text words operand"),
                     -1);
    assert_int_equal(v.u32, 7);
    assert_true(v.given);
    assert_true(v.u64 == UINT64_MAX);
    assert_int_equal(v.i32, -5);
    assert_true(v.f == 0.25f && v.d == -1);
    assert_true(v.flag);
    assert_string_equal(v.text, "words");
    assert_int_equal(v.colour, RED);
    assert_int_equal(optind, 13); /* the operand */
}

static void letters_and_prefixes(void **state)
{
    (void)state;
    struct values v = {0};
    assert_int_equal(parse(&v, "-u3 --fla -m --col blue"), -1);
    assert_int_equal(v.colour, BLUE);
    assert_int_equal(v.u32, 3);
    assert_true(v.flag);
    assert_int_equal(v.maybe.times, 1);
    assert_null(v.maybe.last);
    assert_int_equal(parse(&v, "-m4 --maybe=5"), -1);
    assert_int_equal(v.maybe.times, 3);
    assert_string_equal(v.maybe.last, "5");
}

static void takers_see_every_time_and_can_refuse(void **state)
{
    (void)state;
    struct values v = {0};
    assert_int_equal(parse(&v, "--every a --none --every b"), -1);
    assert_int_equal(v.every.times, 2);
    assert_string_equal(v.every.last, "b");
    assert_int_equal(v.none.times, 1);
    assert_null(v.none.last);
    v.every.answer = EXIT_FAILED;
    assert_int_equal(parse(&v, "--every c --flag"), EXIT_FAILED);
    assert_false(v.flag); /* nothing behind it was read */
}

static void what_is_wrong_is_refused(void **state)
{
    (void)state;
    static const char *const lines[] = {"--u32 0",   "--u32 10", "--u32 x",     "--i32 6",
                                        "--i32 -6",  "--u64 -1", "--float 1.5", "--double nan",
                                        "--unknown", "-x",       "--text",      "--colour r",
                                        "--colour",  "--flag=1", "--none=words"};
    for (size_t i = 0; i != ARRAY_LEN(lines); i++) {
        struct values v = {0};
        int code = parse(&v, lines[i]);
        if (code != EXIT_USAGE || v.given)
            fail_msg("%s: expected %d and nothing given, found %d", lines[i], EXIT_USAGE, code);
    }
}

static void help_ends_well(void **state)
{
    (void)state;
    struct values v = {0};
    assert_int_equal(parse(&v, "--help --unknown"), EXIT_OK);
    assert_int_equal(parse(&v, "-h"), EXIT_OK);
    assert_int_equal(parse(&v, "--unknown --help"), EXIT_USAGE);
}

/* Against --count N, -f/--flag and --maybe [V]. */
static int check(const char *text, struct err *e)
{
    uint32_t count = 0;
    bool flag = false;
    const struct cli_option numbers[] = {CLI_U32("count", &count, 1, 9)};
    const struct cli_option others[] = {
        {.name = "flag", .letter = 'f', .kind = CLI_OPTION_FLAG, .value = &flag},
        {.name = "maybe", .kind = CLI_OPTION_TAKE_OPTIONAL, .take = take},
    };
    const struct cli_options tables[] = {
        {numbers, ARRAY_LEN(numbers), "  --maybe [V]  a value or none\n"}, CLI_OWN(others)};
    return cli_help_check(text, tables, ARRAY_LEN(tables), e);
}

static void help_and_tables_agree(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message; /* NULL: nothing is wrong */
    } cases[] = {
        {"usage: --no-option\n\n  -f, --flag   like --count\n      --count N  --flag\n", NULL},
        {"  --count N, -f, --flag\n  -h, --help\n", NULL},
        {"  --count N\n", "--help lacks --flag"},
        {"  -f, --flag\n", "--help lacks --count"},
        {"  --count N\n  -f, --flag\n  --more\n", "--help has --more, which is no option"},
        {"  --count N\n  -f, --flag\n  --count N\n", "--help has --count twice"},
        {"  --count N\n  --flag\n", "--flag: --help has the letter ' ', the option 'f'"},
        {"  -c, --count N\n  -f, --flag\n", "--count: --help has the letter 'c', the option ' '"},
        {"  --count  N\n  -f, --flag\n", "--count: --help has a value: none; the option: one"},
        {"  --count [N]\n  -f, --flag\n",
         "--count: --help has a value: perhaps one; the option: one"},
        {"  --count N\n  -f, --flag YES\n", "--flag: --help has a value: one; the option: none"},
        {"  --coun N\n  -f, --flag\n", "--help has --coun, which is no option"},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct err e = ERR_INIT;
        int r = check(cases[i].text, &e);
        if ((r == 0) != !cases[i].message)
            fail_msg("%s: found %d, %s", cases[i].text, r, e.message);
        if (cases[i].message)
            assert_string_equal(e.message, cases[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_go_where_the_tables_say),
        cmocka_unit_test(letters_and_prefixes),
        cmocka_unit_test(takers_see_every_time_and_can_refuse),
        cmocka_unit_test(what_is_wrong_is_refused),
        cmocka_unit_test(help_ends_well),
        cmocka_unit_test(help_and_tables_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
