/* cmd_config.c: `glmd config check FILE` and `glmd config show [FILE]`. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/config.h"
#include "cli/cli.h"

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

struct config_args {
    bool show, plain;
    const char *file; /* NULL: defaults */
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct config_args *args, struct config *config)
{
    static const struct option long_options[] = {{"set", required_argument, NULL, 's'},
                                                 {"plain", no_argument, NULL, 'p'},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {0}};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "h", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return EXIT_OK;
        }
        if (c == 'p')
            args->plain = true;
        else if (c != 's')
            return EXIT_USAGE;
    }
    const char *verb = optind < argc ? argv[optind++] : "";
    args->show = strcmp(verb, "show") == 0;
    if (!args->show && strcmp(verb, "check") != 0) {
        fprintf(stderr, "glmd config: expected check or show\n%s", usage);
        return EXIT_USAGE;
    }
    args->file = optind < argc ? argv[optind++] : NULL;
    if (optind < argc || (!args->show && !args->file)) {
        fprintf(stderr, "glmd config %s: expected one FILE\n%s", verb, usage);
        return EXIT_USAGE;
    }
    struct err e = ERR_INIT;
    if (args->file && config_load(config, args->file, &e) < 0) {
        fprintf(stderr, "%s\n", e.message);
        return EXIT_FAILED;
    }
    optind = 1; /* flags over the file */
    for (int c; (c = getopt_long(argc, argv, "h", long_options, NULL)) != -1;) {
        if (c == 's' && config_set_pair(config, optarg, &e) < 0) {
            fprintf(stderr, "%s\n", e.message);
            return EXIT_FAILED;
        }
    }
    if (config_check(config, &e) < 0) {
        fprintf(stderr, "%s\n", e.message);
        return EXIT_FAILED;
    }
    return -1;
}

int cmd_config(int argc, char **argv)
{
    struct config config;
    struct config_args args = {0};
    if (config_init(&config) < 0) {
        fputs("glmd config: out of memory\n", stderr);
        return EXIT_FAILED;
    }
    int code = parse_args(argc, argv, &args, &config);
    if (code >= 0) {
        config_deinit(&config);
        return code;
    }
    code = EXIT_OK;
    if (args.show) {
        struct buf text = {0};
        if (!args.plain)
            buf_append_str(&text,
                           "# Configuration of glmd: coordinator, workers and tools read the "
                           "same file.\n# Every key is optional.\n");
        if (conf_show(&config_table, &config, !args.plain, &text) < 0)
            code = EXIT_FAILED;
        else
            fputs(text.data, stdout);
        buf_deinit(&text);
    } else {
        printf("%s: ok\n", args.file);
    }
    config_deinit(&config);
    return code;
}
