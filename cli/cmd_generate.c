/* cmd_generate.c: `glmd generate`: continues a text (or fills its first mask), streamed. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/run_options.h"
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
    "      --best-of N           the best --n of N samples, by mean log-probability\n"
    "      --unidirectional      causal prompt: [gMASK] in front of the text\n"
    "      --logprobs            log-probability of each token (with --json)\n"
    "      --top-logprobs K      and of the K best ones, 0 to 20 (with --json)\n"
    "      --prompt-logprobs K   log-probability of each token of TEXT, and of the K best ones, 0 "
    "to\n"
    "                            20 (with --json; otherwise their sum)\n"
    "      --prompt-only         nothing is generated: only --prompt-logprobs\n";

/* One choice as it grows. */
struct choice {
    struct buf text;
    json_t *tokens, *logprobs; /* --json */
    enum wire_finish_reason finish_reason;
    json_t *ended_by; /* --json: the stop text, or the token */
    bool has_score;
    double score;
};

struct generate {
    struct run_options run;
    struct wire_generate_request request;
    /* the answer */
    struct choice choices[MAX_CHOICES];
    size_t n_choices;
    bool has_usage;
    struct wire_usage usage;
    json_t *prompt_logprobs; /* --prompt-logprobs */
    uint32_t n_scored;       /* tokens */
    double prompt_logprob;   /* their sum */
    bool streamed;           /* text has gone to standard output */
};

/* ---- options ---- */

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct generate *g)
{
    struct wire_generate_request *q = &g->request;
    struct wire_sampling_parameters *s = &g->run.sampling.wire;
    bool top = false;
    const struct cli_option own[] = {
        CLI_U32("max-tokens", &q->max_tokens, 1, UINT32_MAX),
        CLI_U32("n", &q->n, 1, MAX_CHOICES),
        CLI_U32("best-of", &q->best_of, 1, MAX_CHOICES),
        CLI_FLAG("unidirectional", &q->unidirectional),
        CLI_FLAG("logprobs", &s->logprobs),
        CLI_U32("top-logprobs", &s->top_logprobs, 0, 20, .given = &top),
        CLI_U32("prompt-logprobs", &q->prompt_logprobs, 0, 20, .given = &q->has_prompt_logprobs),
        CLI_FLAG("prompt-only", &q->prompt_only),
    };
    int code = run_options_parse(&g->run, argc, argv, usage, own, ARRAY_LEN(own));
    if (code < 0 && q->prompt_only && !q->has_prompt_logprobs)
        return cli_usage_error(argv[0], "--prompt-only needs --prompt-logprobs");
    s->logprobs = s->logprobs || top;
    return code;
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
    if (*d->stop || d->has_stop_token) {
        json_decref(to->ended_by);
        to->ended_by = *d->stop ? json_string(d->stop) : json_integer(d->stop_token);
    }
    if (!g->run.json && g->request.n <= 1 && d->index == 0) {
        g->streamed = true;
        return client_print(stdout, d->text) < 0 ? err_set(e, -EIO, "cannot write the text") : 0;
    }
    if (buf_append_str(&to->text, d->text) < 0 || (g->run.json && keep_json(to, d) < 0))
        return err_set(e, -ENOMEM, "out of memory");
    return 0;
}

/* Tokens of the prompt come in front of everything else. */
static int take_prompt(struct generate *g, const struct wire_generate_response *m, struct err *e)
{
    if (m->n_prompt_logprobs && !g->prompt_logprobs)
        g->prompt_logprobs = json_array();
    for (uint32_t i = 0; i < m->n_prompt_logprobs; i++) {
        const struct wire_token_logprob *l = &m->prompt_logprobs[i];
        g->n_scored++;
        g->prompt_logprob += (double)l->logprob;
        if (g->run.json && json_array_append_new(g->prompt_logprobs, logprob_to_json(l)) < 0)
            return err_set(e, -ENOMEM, "out of memory");
    }
    return 0;
}

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct generate *g = context;
    struct wire_generate_response *m;
    int r = wire_unpack_generate_response(data, size, &m, e);
    if (r < 0)
        return r;
    r = take_prompt(g, m, e);
    for (uint32_t i = 0; i < m->n_choices && r == 0; i++)
        r = take_delta(g, &m->choices[i], e);
    if (m->has_seed) {
        g->run.has_seed = true;
        g->run.seed = m->seed;
    }
    if (m->usage) {
        g->has_usage = true;
        g->usage = *m->usage;
    }
    wire_free_generate_response(m);
    return r;
}

/* ---- printing ---- */

static int print_json(const struct generate *g)
{
    json_t *choices = json_array();
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct choice *c = &g->choices[i];
        json_t *o = json_pack("{s:i, s:s%, s:s, s:O?, s:O?}", "index", (int)i, "text",
                              c->text.data ? c->text.data : "", c->text.size, "finish_reason",
                              run_finish_name(c->finish_reason), "tokens", c->tokens, "logprobs",
                              g->run.sampling.wire.logprobs ? c->logprobs : NULL);
        if (c->ended_by)
            json_object_set(o, "ended_by", c->ended_by);
        if (c->has_score)
            json_object_set_new(o, "score", json_real(c->score));
        json_array_append_new(choices, o);
    }
    json_t *root = json_pack("{s:o}", "choices", choices);
    if (g->prompt_logprobs)
        json_object_set(root, "prompt_logprobs", g->prompt_logprobs);
    client_add_usage(root, g->has_usage ? &g->usage : NULL, g->run.has_seed ? &g->run.seed : NULL);
    return cli_print_json(g->run.target.verb, root);
}

/* On standard error beside a text, as a result of its own without one. */
static void print_prompt_logprob(const struct generate *g)
{
    if (g->n_scored)
        fprintf(g->request.prompt_only ? stdout : stderr,
                "prompt: %" PRIu32 " tokens, log-probability %.5f, %.5f a token\n", g->n_scored,
                g->prompt_logprob, g->prompt_logprob / g->n_scored);
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
    g->request.sampling = &g->run.sampling.wire;
    g->request.priority = g->run.priority;
    g->request.user = g->run.user;
    g->request.return_token_ids = g->run.json;
    int r = wire_pack_generate_request(&g->request, &packed);
    int code = run_call(&g->run, "/glmd.v1.Inference/Generate", r, &packed, on_message, g);
    buf_deinit(&packed);
    if (g->streamed)
        putchar('\n');
    else if (code == EXIT_OK && !g->run.json)
        code = print_choices(g);
    if (code == EXIT_OK && g->run.json)
        code = print_json(g);
    else if (code == EXIT_OK)
        print_prompt_logprob(g);
    fflush(stdout); /* the text stands before what goes to standard error */
    /* the first token of each choice belongs to the prefill */
    if (g->run.stats && g->has_usage)
        client_print_stats(&g->usage, g->n_choices, g->run.has_seed ? &g->run.seed : NULL);
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
        json_decref(g->choices[i].ended_by);
    }
    json_decref(g->prompt_logprobs);
    buf_deinit(&text);
    free(g);
    return code;
}
