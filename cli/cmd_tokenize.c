/* cmd_tokenize.c: `glmd tokenize`: text -> token ids, without a server. */
#include <inttypes.h>
#include <stdio.h>

#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"
#include "model/prompt.h"
#include "model/tokenizer/tokenizer.h"

enum { MAX_TOKENS = 1 << 20, MAX_MASKS = 1 << 16 };

static const char usage[] =
    "usage: glmd tokenize --model DIR [OPTIONS] [TEXT|-]\n"
    "\n"
    "Prints the token ids of a text. Without TEXT, or with -, the text is read from standard\n"
    "input (a last newline is dropped).\n"
    "\n"
    "  -m, --model DIR        model directory: config.json and tokenizer.model are read\n"
    "      --parse-masks      [MASK], [sMASK] and [gMASK] become their ids; else they are text\n"
    "      --keep-linebreak   newlines become <n>; else they become spaces\n"
    "      --pieces           one token a line: id, tab, piece\n"
    "      --json             {\"ids\": [...], \"pieces\": [...]}\n"
    "  -h, --help\n";

struct args {
    const char *model;
    bool parse_masks, keep_linebreak, pieces, json;
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct args *a)
{
    const struct cli_option own[] = {
        {.name = "model", .letter = 'm', .kind = CLI_OPTION_TEXT, .value = &a->model},
        CLI_FLAG("parse-masks", &a->parse_masks),
        CLI_FLAG("keep-linebreak", &a->keep_linebreak),
        CLI_FLAG("pieces", &a->pieces),
        CLI_FLAG("json", &a->json),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code < 0 && !a->model)
        return cli_usage_error(argv[0], "--model DIR is missing");
    return code;
}

static const char *piece(const struct tokenizer *t, int32_t id)
{
    const char *text = tokenizer_piece(t, id);
    return text ? text : "";
}

static json_t *to_json(const struct tokenizer *t, const struct token_list *ids)
{
    json_t *pieces = json_array();
    for (size_t i = 0; i < ids->n; i++)
        json_array_append_new(pieces, json_string(piece(t, ids->ids[i])));
    return json_pack("{s:o, s:o}", "ids", cli_json_ids(ids->ids, ids->n), "pieces", pieces);
}

static int print(const struct args *a, const struct tokenizer *t, const struct token_list *ids)
{
    if (a->json)
        return cli_print_json("tokenize", to_json(t, ids));
    for (size_t i = 0; i < ids->n; i++) {
        if (a->pieces)
            printf("%" PRId32 "\t%s\n", ids->ids[i], piece(t, ids->ids[i]));
        else
            printf("%s%" PRId32, i ? " " : "", ids->ids[i]);
    }
    if (!a->pieces)
        putchar('\n');
    return fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

int cmd_tokenize(int argc, char **argv)
{
    struct args a = {0};
    int code = parse_args(argc, argv, &a);
    if (code >= 0)
        return code;
    struct buf text = {0};
    struct token_list ids = {0};
    struct tokenizer *t = NULL;
    struct arch arch;
    struct err e = ERR_INIT;
    code = cli_text(argv[0], argc, argv, &text);
    if (code == 0 && cli_open_tokenizer(a.model, &arch, &t, &e) < 0)
        code = cli_failed(argv[0], &e);
    if (code == 0) {
        int r =
            a.parse_masks
                ? prompt_encode_masked(t, &arch, text.data, text.size, a.keep_linebreak, MAX_TOKENS,
                                       MAX_MASKS, &ids, &e)
                : tokenizer_encode(t, text.data, text.size, a.keep_linebreak, MAX_TOKENS, &ids, &e);
        code = r < 0 ? cli_failed(argv[0], &e) : print(&a, t, &ids);
    }
    tokenizer_close(t);
    token_list_deinit(&ids);
    buf_deinit(&text);
    return code;
}
