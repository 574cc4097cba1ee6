/* cmd_score.c: `glmd score`: log-probabilities of given continuations (multiple choice). */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

enum { MAX_CHOICES = 256 };

static const char usage[] =
    "usage: glmd score --choice A --choice B ... [OPTIONS] [TEXT|-]\n"
    "\n"
    "Says how likely each choice is in place of the text's mask (or behind the text when it has\n"
    "none): the sum of the log-probabilities of its tokens. The best one is marked. Without TEXT,\n"
    "or with -, the text is read from standard input.\n"
    "\n"
    "      --choice TEXT         a continuation; at least one\n"
    "      --priority N          -100 to 100: greater ones first (default 0)\n"
    "      --user NAME           whom fairness counts this for\n"
    "      --gmask               use [gMASK] and running positions instead of [MASK]\n"
    "      --tokens              also the log-probability of each token\n"
    "      --json                one JSON object\n"
    "  -h, --help\n";

struct score {
    struct client_target target;
    struct wire_score_request request;
    const char *choices[MAX_CHOICES];
    bool tokens, json;
    struct wire_score_response *response; /* owned */
};

static int add_choice(void *context, const char *verb, const char *text)
{
    struct score *s = context;
    if (s->request.n_choices == MAX_CHOICES)
        return cli_usage_error(verb, "at most %d choices", MAX_CHOICES);
    if (!text[0] || utf8_check(text, strlen(text)) != strlen(text))
        return cli_usage_error(verb, "a choice must be text in UTF-8, and not empty");
    s->choices[s->request.n_choices++] = text;
    return 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct score *s)
{
    const struct cli_option own[] = {
        CLI_TAKE("choice", add_choice, s),  CLI_I32("priority", &s->request.priority, -100, 100),
        CLI_TEXT("user", &s->request.user), CLI_FLAG("gmask", &s->request.use_gmask),
        CLI_FLAG("tokens", &s->tokens),     CLI_FLAG("json", &s->json)};
    client_target_init(&s->target, argv[0]);
    int code = client_parse(argc, argv, usage, own, ARRAY_LEN(own), &s->target);
    if (code >= 0)
        return code;
    if (s->request.n_choices == 0)
        return cli_usage_error(argv[0], "--choice TEXT is missing");
    s->request.choices = s->choices;
    return -1;
}

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct score *s = context;
    struct wire_score_response *m;
    int r = wire_unpack_score_response(data, size, &m, e);
    if (r < 0)
        return r;
    wire_free_score_response(s->response);
    s->response = m;
    if (m->n_choices != s->request.n_choices || m->best >= m->n_choices)
        return err_set(e, -EBADMSG, "the server scored %" PRIu32 " choices of %" PRIu32,
                       m->n_choices, s->request.n_choices);
    return 0;
}

static int print_json(const struct score *s)
{
    json_t *choices = json_array();
    for (uint32_t i = 0; i < s->response->n_choices; i++) {
        const struct wire_choice_score *c = &s->response->choices[i];
        json_t *tokens = json_array();
        for (uint32_t k = 0; k < c->n_token_logprobs; k++)
            json_array_append_new(tokens, json_real((double)c->token_logprobs[k]));
        json_array_append_new(choices, json_pack("{s:s, s:f, s:o}", "text", s->choices[i],
                                                 "logprob", c->logprob, "token_logprobs", tokens));
    }
    json_t *root =
        json_pack("{s:o, s:I}", "choices", choices, "best", (json_int_t)s->response->best);
    client_add_usage(root, s->response->usage, NULL);
    return cli_print_json(s->target.verb, root);
}

static int print_table(const struct score *s)
{
    for (uint32_t i = 0; i < s->response->n_choices; i++) {
        const struct wire_choice_score *c = &s->response->choices[i];
        printf("%c %11.5f  ", i == s->response->best ? '*' : ' ', c->logprob);
        client_print(stdout, s->choices[i]);
        for (uint32_t k = 0; s->tokens && k < c->n_token_logprobs; k++)
            printf("%s%.4f", k ? " " : "  (", (double)c->token_logprobs[k]);
        puts(s->tokens && c->n_token_logprobs ? ")" : "");
    }
    return fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

static int run(struct score *s)
{
    struct buf packed = {0};
    int code;
    if (wire_pack_score_request(&s->request, &packed) < 0) {
        fprintf(stderr, "glmd %s: out of memory\n", s->target.verb);
        code = EXIT_FAILED;
    } else {
        const struct client_call call = {.path = "/glmd.v1.Inference/Score",
                                         .request = &packed,
                                         .on_message = on_message,
                                         .context = s};
        code = client_run(&s->target, &call);
    }
    buf_deinit(&packed);
    if (code != EXIT_OK)
        return code;
    if (!s->response) {
        fprintf(stderr, "glmd %s: the server sent no result\n", s->target.verb);
        return EXIT_FAILED;
    }
    return s->json ? print_json(s) : print_table(s);
}

int cmd_score(int argc, char **argv)
{
    struct score s = {0};
    struct buf text = {0};
    int code = parse_args(argc, argv, &s);
    if (code < 0) {
        code = client_text(argv[0], argc, argv, &text);
        if (code == 0) {
            s.request.text = text.data;
            code = run(&s);
        }
    }
    wire_free_score_response(s.response);
    buf_deinit(&text);
    return code;
}
