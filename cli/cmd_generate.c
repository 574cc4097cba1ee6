/* cmd_generate.c: `glmd generate`: continues a text (or fills its first mask), streamed. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "cli/sampling_options.h"
#include "proto/rpc/wire.h"

enum { MAX_CHOICES = 64 };

static const char usage[] =
    "usage: glmd generate [OPTIONS] [TEXT|-]\n"
    "\n"
    "Continues a text; what is generated is printed as it arrives. A text with a mask is filled "
    "at\n"
    "its first mask. Without TEXT, or with -, the text is read from standard input. Ctrl-C\n"
    "cancels.\n"
    "\n"
    "      --max-tokens N        at most N new tokens (default: what fits, at most 256)\n"
    "      --n N                 N choices, 1 to 16; with --beams: how many are printed\n"
    "      --unidirectional      causal prompt: [gMASK] in front of the text\n"
    "      --ignore-end          end tokens neither end the text nor appear\n"
    "      --logprobs            log-probability of each token (with --json)\n"
    "      --top-logprobs K      and of the K best ones, 0 to 20 (with --json)\n"
    "      --stats               tokens per second, on standard error\n"
    "      --json                one JSON object at the end\n"
    "  -h, --help\n" CLIENT_HELP SAMPLING_HELP;

/* One choice as it grows. */
struct choice {
    struct buf text;
    json_t *tokens, *logprobs; /* --json */
    enum wire_finish_reason finish_reason;
    bool has_score;
    double score;
};

struct generate {
    struct client_target target;
    struct sampling_options sampling;
    struct wire_generate_request request;
    bool stats, json;
    /* the answer */
    struct choice choices[MAX_CHOICES];
    size_t n_choices;
    bool has_seed, has_usage;
    uint64_t seed;
    struct wire_usage usage;
    bool streamed; /* text has gone to standard output */
};

/* ---- options ---- */

enum {
    OPT_MAX_TOKENS = 256,
    OPT_N,
    OPT_UNI,
    OPT_IGNORE_END,
    OPT_LOGPROBS,
    OPT_TOP,
    OPT_STATS,
    OPT_JSON
};

static const struct option options[] = {{"max-tokens", required_argument, NULL, OPT_MAX_TOKENS},
                                        {"n", required_argument, NULL, OPT_N},
                                        {"unidirectional", no_argument, NULL, OPT_UNI},
                                        {"ignore-end", no_argument, NULL, OPT_IGNORE_END},
                                        {"logprobs", no_argument, NULL, OPT_LOGPROBS},
                                        {"top-logprobs", required_argument, NULL, OPT_TOP},
                                        {"stats", no_argument, NULL, OPT_STATS},
                                        {"json", no_argument, NULL, OPT_JSON},
                                        {"help", no_argument, NULL, 'h'},
                                        CLIENT_OPTIONS,
                                        SAMPLING_OPTIONS,
                                        {0}};

/* 0 or EXIT_USAGE. */
static int take_option(struct generate *g, const char *verb, int c, const char *value)
{
    int code = client_option(&g->target, c, value);
    if (code < 0)
        code = sampling_option(&g->sampling, verb, c, value);
    if (code >= 0)
        return code;
    switch (c) {
    case OPT_MAX_TOKENS:
        return cli_option_u32(verb, "--max-tokens", value, 1, UINT32_MAX, &g->request.max_tokens);
    case OPT_N:
        return cli_option_u32(verb, "--n", value, 1, MAX_CHOICES, &g->request.n);
    case OPT_UNI:
        g->request.unidirectional = true;
        return 0;
    case OPT_IGNORE_END:
        g->sampling.wire.ignore_end = true;
        return 0;
    case OPT_LOGPROBS:
        g->sampling.wire.logprobs = true;
        return 0;
    case OPT_TOP:
        g->sampling.wire.logprobs = true;
        return cli_option_u32(verb, "--top-logprobs", value, 0, 20, &g->sampling.wire.top_logprobs);
    case OPT_STATS:
        g->stats = true;
        return 0;
    case OPT_JSON:
        g->json = true;
        return 0;
    default:
        return EXIT_USAGE; /* getopt has said why */
    }
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct generate *g)
{
    client_target_init(&g->target, argv[0]);
    sampling_options_init(&g->sampling);
    for (int c; (c = getopt_long(argc, argv, "h" CLIENT_SHORT_OPTIONS, options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return EXIT_OK;
        }
        int code = take_option(g, argv[0], c, optarg);
        if (code)
            return code;
    }
    int code = sampling_options_check(&g->sampling, argv[0]);
    return code ? code : -1;
}

/* ---- the answer ---- */

static json_t *logprob_to_json(const struct wire_token_logprob *l)
{
    json_t *top = json_array();
    for (uint32_t i = 0; i < l->n_top; i++)
        json_array_append_new(top, json_pack("{s:i, s:f, s:s}", "token", l->top[i].token, "logprob",
                                             (double)l->top[i].logprob, "text", l->top[i].text));
    return json_pack("{s:i, s:f, s:o}", "token", l->token, "logprob", (double)l->logprob, "top",
                     top);
}

static int keep_json(struct choice *to, const struct wire_choice_delta *d)
{
    if (!to->tokens)
        to->tokens = json_array();
    if (!to->logprobs)
        to->logprobs = json_array();
    for (uint32_t i = 0; i < d->n_tokens; i++) {
        if (json_array_append_new(to->tokens, json_integer(d->tokens[i])) < 0)
            return -ENOMEM;
    }
    for (uint32_t i = 0; i < d->n_logprobs; i++) {
        if (json_array_append_new(to->logprobs, logprob_to_json(&d->logprobs[i])) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* One choice is printed as it grows; several are kept until they are complete. */
static int take_delta(struct generate *g, const struct wire_choice_delta *d, struct err *e)
{
    if (d->index >= MAX_CHOICES)
        return err_set(e, -EBADMSG, "the server sent choice %" PRIu32 ", expected at most %d",
                       d->index, MAX_CHOICES - 1);
    struct choice *to = &g->choices[d->index];
    g->n_choices = MAX(g->n_choices, (size_t)d->index + 1);
    if (d->finish_reason)
        to->finish_reason = d->finish_reason;
    if (d->has_score) {
        to->has_score = true;
        to->score = d->score;
    }
    if (!g->json && g->request.n <= 1 && d->index == 0) {
        g->streamed = true;
        return client_print(stdout, d->text) < 0 ? err_set(e, -EIO, "cannot write the text") : 0;
    }
    if (buf_append_str(&to->text, d->text) < 0 || (g->json && keep_json(to, d) < 0))
        return err_set(e, -ENOMEM, "out of memory");
    return 0;
}

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct generate *g = context;
    struct wire_generate_response *m;
    int r = wire_unpack_generate_response(data, size, &m, e);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < m->n_choices && r == 0; i++)
        r = take_delta(g, &m->choices[i], e);
    if (m->has_seed) {
        g->has_seed = true;
        g->seed = m->seed;
    }
    if (m->usage) {
        g->has_usage = true;
        g->usage = *m->usage;
    }
    wire_free_generate_response(m);
    return r;
}

/* ---- printing ---- */

static const char *finish_name(enum wire_finish_reason reason)
{
    switch (reason) {
    case WIRE_FINISH_STOP:
        return "stop";
    case WIRE_FINISH_LENGTH:
        return "length";
    case WIRE_FINISH_UNSPECIFIED:
        break;
    }
    return "unfinished";
}

static int print_json(const struct generate *g)
{
    json_t *choices = json_array();
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct choice *c = &g->choices[i];
        json_t *o = json_pack("{s:i, s:s%, s:s, s:O?, s:O?}", "index", (int)i, "text",
                              c->text.data ? c->text.data : "", c->text.size, "finish_reason",
                              finish_name(c->finish_reason), "tokens", c->tokens, "logprobs",
                              g->sampling.wire.logprobs ? c->logprobs : NULL);
        if (c->has_score)
            json_object_set_new(o, "score", json_real(c->score));
        json_array_append_new(choices, o);
    }
    json_t *root = json_pack("{s:o}", "choices", choices);
    client_add_usage(root, g->has_usage ? &g->usage : NULL, g->has_seed ? &g->seed : NULL);
    return cli_print_json(g->target.verb, root);
}

static int print_choices(const struct generate *g)
{
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct choice *c = &g->choices[i];
        if (c->has_score)
            printf("[%zu] score %.6f\n", i, c->score);
        else
            printf("[%zu]\n", i);
        if (client_print(stdout, c->text.data ? c->text.data : "") < 0)
            return EXIT_FAILED;
        putchar('\n');
    }
    return EXIT_OK;
}

static int run(struct generate *g)
{
    struct buf packed = {0};
    int code;
    g->request.sampling = &g->sampling.wire;
    g->request.return_token_ids = g->json;
    if (wire_pack_generate_request(&g->request, &packed) < 0) {
        fprintf(stderr, "glmd %s: out of memory\n", g->target.verb);
        code = EXIT_FAILED;
    } else {
        const struct client_call call = {.path = "/glmd.v1.Inference/Generate",
                                         .request = &packed,
                                         .on_message = on_message,
                                         .context = g};
        code = client_run(&g->target, &call);
    }
    buf_deinit(&packed);
    if (g->streamed)
        putchar('\n');
    else if (code == EXIT_OK && !g->json)
        code = print_choices(g);
    if (code == EXIT_OK && g->json)
        code = print_json(g);
    fflush(stdout); /* the text stands before what goes to standard error */
    /* the first token of each choice belongs to the prefill */
    if (g->stats && g->has_usage)
        client_print_stats(&g->usage, g->n_choices, g->has_seed ? &g->seed : NULL);
    return code;
}

int cmd_generate(int argc, char **argv)
{
    struct generate *g = calloc(1, sizeof *g);
    if (!g) {
        fprintf(stderr, "glmd %s: out of memory\n", argv[0]);
        return EXIT_FAILED;
    }
    struct buf text = {0};
    int code = parse_args(argc, argv, g);
    if (code < 0) {
        code = client_text(argv[0], argc, argv, &text);
        if (code == 0) {
            g->request.text = text.data;
            code = run(g);
        }
    }
    for (size_t i = 0; i < MAX_CHOICES; i++) {
        buf_deinit(&g->choices[i].text);
        json_decref(g->choices[i].tokens);
        json_decref(g->choices[i].logprobs);
    }
    buf_deinit(&text);
    free(g);
    return code;
}
