/* cmd_detokenize.c: `glmd detokenize`: token ids -> text, without a server. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"
#include "model/tokenizer/tokenizer.h"

static const char usage[] =
    "usage: glmd detokenize --model DIR [OPTIONS] [ID...|-]\n"
    "\n"
    "Prints the text of token ids. Without ids, or with -, they are read from standard input,\n"
    "separated by white space or commas. Special tokens print as their names in an additional\n"
    "pair of brackets: [[MASK]], [sop], [</s>].\n"
    "\n"
    "  -m, --model DIR   model directory: config.json and tokenizer.model are read\n"
    "      --json        {\"text\": ...}\n"
    "  -h, --help\n";

static const char separators[] = " \t\r\n,[]";

struct args {
    const char *model;
    bool json;
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct args *a)
{
    const struct cli_option own[] = {
        {.name = "model", .letter = 'm', .kind = CLI_OPTION_TEXT, .value = &a->model},
        CLI_FLAG("json", &a->json),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code < 0 && !a->model)
        return cli_usage_error(argv[0], "--model DIR is missing");
    return code;
}

/* Appends the ids of a text; cuts it up. 0 or an exit code. */
static int add_ids(const char *verb, char *text, struct token_list *ids)
{
    char *state;
    for (char *word = strtok_r(text, separators, &state); word;
         word = strtok_r(NULL, separators, &state)) {
        uint64_t id;
        if (cli_parse_u64(word, 0, INT32_MAX, &id) < 0)
            return cli_usage_error(verb, "\"%s\" is not a token id", word);
        if (token_list_append(ids, (int32_t)id) < 0) {
            fprintf(stderr, "glmd %s: out of memory\n", verb);
            return EXIT_FAILED;
        }
    }
    return 0;
}

static int read_ids(int argc, char **argv, struct token_list *ids)
{
    if (argc - optind > 1 || (argc - optind == 1 && strcmp(argv[optind], "-") != 0)) {
        int code = 0;
        for (int i = optind; i < argc && code == 0; i++)
            code = add_ids(argv[0], argv[i], ids);
        return code;
    }
    struct buf text = {0};
    int code = cli_text(argv[0], argc, argv, &text);
    if (code == 0 && text.size)
        code = add_ids(argv[0], text.data, ids);
    buf_deinit(&text);
    return code;
}

static int print(const struct args *a, const struct buf *text)
{
    if (a->json)
        return cli_print_json(
            "detokenize", json_pack("{s:s%}", "text", text->data ? text->data : "", text->size));
    fwrite(text->data, 1, text->size, stdout);
    return putchar('\n') == EOF || fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

int cmd_detokenize(int argc, char **argv)
{
    struct args a = {0};
    int code = parse_args(argc, argv, &a);
    if (code >= 0)
        return code;
    struct token_list ids = {0};
    struct buf text = {0};
    struct tokenizer *t = NULL;
    struct arch arch;
    struct err e = ERR_INIT;
    code = read_ids(argc, argv, &ids);
    if (code == 0 && cli_open_tokenizer(a.model, &arch, &t, &e) < 0)
        code = cli_failed(argv[0], &e);
    if (code == 0)
        code = tokenizer_decode(t, ids.ids, ids.n, &text, &e) < 0 ? cli_failed(argv[0], &e)
                                                                  : print(&a, &text);
    tokenizer_close(t);
    buf_deinit(&text);
    token_list_deinit(&ids);
    return code;
}
