/* cmd_config.c: `glmd config check FILE` and `glmd config show [FILE]`. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/config.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"

static const char usage[] =
    "usage: glmd config check FILE [--set KEY=VALUE]...\n"
    "       glmd config show [FILE] [--set KEY=VALUE]... [--plain]\n"
    "\n"
    "check  reads a configuration as the daemons would and says \"ok\", or what is wrong with\n"
    "       file, line and key\n"
    "show   prints every key with its meaning, allowed values and value: the defaults, or those\n"
    "       that result from FILE; the output is itself a valid configuration\n"
    "\n"
    "  --set KEY=VALUE  override one key, as the daemons' --set does\n"
    "  --plain          without the explanations\n";

enum { MAX_SETS = 256 };

struct config_args {
    bool show, plain;
    const char *sets[MAX_SETS]; /* KEY=VALUE */
    size_t n_sets;
    const char *file; /* NULL: defaults */
};

static int add_set(void *context, const char *name, const char *text)
{
    struct config_args *args = context;
    if (args->n_sets == MAX_SETS)
        return cli_usage_error(name, "--set: at most %d", MAX_SETS);
    args->sets[args->n_sets++] = text;
    return 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct config_args *args)
{
    const struct cli_option own[] = {
        CLI_TAKE("set", add_set, args),
        CLI_FLAG("plain", &args->plain),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code >= 0)
        return code;
    const char *what = optind < argc ? argv[optind++] : "";
    args->show = strcmp(what, "show") == 0;
    if (!args->show && strcmp(what, "check") != 0)
        return cli_usage_error(argv[0], "expected check or show");
    args->file = optind < argc ? argv[optind++] : NULL;
    if (optind < argc || (!args->show && !args->file))
        return cli_usage_error(argv[0], "%s: expected one FILE", what);
    return -1;
}

/* The file, and what --set says over it. */
static int read_config(const struct config_args *args, struct config *config, struct err *e)
{
    int r = args->file ? config_load(config, args->file, e) : 0;
    for (size_t i = 0; i != args->n_sets && r == 0; i++)
        r = config_set_pair(config, args->sets[i], e);
    return r == 0 ? config_check(config, e) : r;
}

static int print_config(const struct config_args *args, const struct config *config)
{
    struct buf text = {0};
    int r = 0;
    if (!args->plain)
        r = buf_append_str(&text,
                           "# Configuration of glmd: coordinator, workers and tools read the "
                           "same file.\n# Every key is optional.\n");
    if (r == 0)
        r = conf_show(&config_table, config, !args->plain, &text);
    if (r == 0)
        fputs(text.data, stdout);
    buf_deinit(&text);
    return r == 0 && fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_config(int argc, char **argv)
{
    struct config config;
    struct config_args args = {0};
    struct err e = ERR_INIT;
    int code = parse_args(argc, argv, &args);
    if (code >= 0)
        return code;
    if (config_init(&config) < 0) {
        fputs("glmd config: out of memory\n", stderr);
        return EXIT_FAILED;
    }
    code = EXIT_OK;
    if (read_config(&args, &config, &e) < 0) {
        fprintf(stderr, "%s\n", e.message); /* begins with file, line and key */
        code = EXIT_FAILED;
    } else if (args.show) {
        code = print_config(&args, &config);
    } else {
        printf("%s: ok\n", args.file);
    }
    config_deinit(&config);
    return code;
}
