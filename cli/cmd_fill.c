/* cmd_fill.c: `glmd fill`: fills the blanks of a text. Blanks stream to the terminal as they grow;
 * the filled text goes to standard output. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/run_options.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd fill [OPTIONS] [TEXT|-]\n"
    "\n"
    "Fills the blanks of a text: every [MASK] (short), or else every [sMASK] (a sentence), or "
    "else\n"
    "[gMASK] (what follows; added at the end when the text has no mask). Without TEXT, or with -,\n"
    "the text is read from standard input. Ctrl-C cancels.\n"
    "\n"
    "      --max-length N        of the whole sequence in tokens, text included (default 256)\n"
    "      --all                 print all results with their scores (--beams)\n"
    "      --calls               token ids into and out of every generation call (with --json)\n"
    "  -q, --quiet               do not show the blanks while they grow\n";

struct fill {
    struct run_options run;
    struct wire_fill_request request;
    bool all, calls, quiet;
    /* the answer */
    bool showing; /* a blank is under way on standard error */
    uint32_t shown_blank;
    struct wire_fill_response *last; /* owned: the message with the results */
};

/* ---- options ---- */

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct fill *f)
{
    const struct cli_option own[] = {
        CLI_U32("max-length", &f->request.max_length, 1, UINT32_MAX),
        CLI_FLAG("all", &f->all),
        CLI_FLAG("calls", &f->calls),
        {.name = "quiet", .letter = 'q', .kind = CLI_OPTION_FLAG, .value = &f->quiet},
    };
    int code = run_options_parse(&f->run, argc, argv, usage, own, ARRAY_LEN(own));
    if (code < 0 && f->calls && !f->run.json)
        return cli_usage_error(argv[0], "--calls needs --json");
    f->quiet = f->quiet || f->run.json || !isatty(STDERR_FILENO);
    return code;
}

/* ---- the answer ---- */

static void show_blank(struct fill *f, const struct wire_blank_delta *b)
{
    if (f->quiet)
        return;
    if (!f->showing || f->shown_blank != b->index)
        fprintf(stderr, "%sblank %" PRIu32 ": ", f->showing ? "\n" : "", b->index + 1);
    f->showing = true;
    f->shown_blank = b->index;
    client_print(stderr, b->text);
}

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct fill *f = context;
    struct wire_fill_response *m;
    int r = wire_unpack_fill_response(data, size, &m, e);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < m->n_blanks; i++)
        show_blank(f, &m->blanks[i]);
    if (m->has_seed) {
        f->run.has_seed = true;
        f->run.seed = m->seed;
    }
    if (m->n_results) {
        wire_free_fill_response(f->last);
        f->last = m;
    } else {
        wire_free_fill_response(m);
    }
    return 0;
}

/* ---- printing ---- */

static json_t *result_to_json(const struct wire_filled_text *t)
{
    json_t *blanks = json_array();
    for (uint32_t i = 0; i < t->n_blanks; i++)
        json_array_append_new(blanks, json_string(t->blanks[i]));
    json_t *o = json_pack("{s:s, s:o, s:o}", "text", t->text, "blanks", blanks, "tokens",
                          cli_json_ids(t->tokens, t->n_tokens));
    if (t->has_score)
        json_object_set_new(o, "score", json_real(t->score));
    return o;
}

static json_t *call_to_json(const struct wire_fill_call *c)
{
    json_t *outputs = json_array();
    for (uint32_t i = 0; i < c->n_outputs; i++)
        json_array_append_new(outputs, cli_json_ids(c->outputs[i].ids, c->outputs[i].n_ids));
    return json_pack("{s:o, s:o}", "input", cli_json_ids(c->input, c->n_input), "outputs", outputs);
}

static int print_json(const struct fill *f)
{
    json_t *results = json_array();
    for (uint32_t i = 0; i < f->last->n_results; i++)
        json_array_append_new(results, result_to_json(&f->last->results[i]));
    json_t *root = json_pack("{s:o}", "results", results);
    if (f->calls) {
        json_t *calls = json_array();
        for (uint32_t i = 0; i < f->last->n_calls; i++)
            json_array_append_new(calls, call_to_json(&f->last->calls[i]));
        json_object_set_new(root, "calls", calls);
    }
    client_add_usage(root, f->last->usage, f->run.has_seed ? &f->run.seed : NULL);
    return cli_print_json(f->run.target.verb, root);
}

static int print_results(const struct fill *f)
{
    uint32_t n = f->all ? f->last->n_results : 1;
    for (uint32_t i = 0; i < n; i++) {
        const struct wire_filled_text *t = &f->last->results[i];
        if (f->all && t->has_score)
            printf("[%" PRIu32 "] score %.6f\n", i, t->score);
        if (client_print(stdout, t->text) < 0)
            return EXIT_FAILED;
        putchar('\n');
    }
    return fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

static int run(struct fill *f)
{
    struct buf packed = {0};
    f->request.sampling = &f->run.sampling.wire;
    f->request.priority = f->run.priority;
    f->request.user = f->run.user;
    f->request.return_token_ids = f->run.json;
    int r = wire_pack_fill_request(&f->request, &packed);
    int code = run_call(&f->run, "/glmd.v1.Inference/Fill", r, &packed, on_message, f);
    buf_deinit(&packed);
    if (f->showing)
        fputc('\n', stderr);
    if (code == EXIT_OK && !f->last) {
        fprintf(stderr, "glmd %s: the server sent no result\n", f->run.target.verb);
        return EXIT_FAILED;
    }
    if (code == EXIT_OK)
        code = f->run.json ? print_json(f) : print_results(f);
    if (f->run.stats && f->last && f->last->usage)
        client_print_stats(f->last->usage, 0, f->run.has_seed ? &f->run.seed : NULL);
    return code;
}

int cmd_fill(int argc, char **argv)
{
    struct fill *f = calloc(1, sizeof *f);
    if (!f) {
        fprintf(stderr, "glmd %s: out of memory\n", argv[0]);
        return EXIT_FAILED;
    }
    struct buf text = {0};
    int code = parse_args(argc, argv, f);
    if (code < 0) {
        code = client_text(argv[0], argc, argv, &text);
        if (code == 0) {
            f->request.text = text.data;
            code = run(f);
        }
    }
    wire_free_fill_response(f->last);
    buf_deinit(&text);
    free(f);
    return code;
}
