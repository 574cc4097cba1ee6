/* run_options.c: see run_options.h. */
#include "cli/run_options.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"

static int take_user(void *context, const char *verb, const char *text)
{
    struct run_options *o = context;
    size_t n = strlen(text);
    if (n > 128 || utf8_check(text, n) != n)
        return cli_usage_error(verb, "--user: expected at most 128 bytes of UTF-8");
    o->user = text;
    return 0;
}

int run_options_parse(struct run_options *o, int argc, char **argv, const char *usage,
                      const struct cli_option *own, size_t n_own)
{
    static const char help[] =
        "      --priority N          -100 to 100: greater ones first (default 0)\n"
        "      --user NAME           whom fairness counts this for\n"
        "      --stats               tokens per second, on standard error\n"
        "      --json                one JSON object at the end\n"
        "  -h, --help\n";
    const struct cli_option common[] = {
        CLI_I32("priority", &o->priority, -100, 100),
        CLI_TAKE("user", take_user, o),
        CLI_FLAG("stats", &o->stats),
        CLI_FLAG("json", &o->json),
    };
    struct cli_option server[CLIENT_N_OPTIONS], sampling[SAMPLING_N_OPTIONS];
    o->user = "";
    client_target_init(&o->target, argv[0]);
    sampling_options_init(&o->sampling);
    const struct cli_options tables[] = {
        {own, n_own, NULL},
        {common, ARRAY_LEN(common), help},
        client_options(&o->target, server),
        sampling_options(&o->sampling, sampling),
    };
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    code = sampling_options_check(&o->sampling, argv[0]);
    return code ? code : -1;
}

int run_call(const struct run_options *o, const char *path, int packed, const struct buf *request,
             int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e),
             void *context)
{
    if (packed < 0) {
        fprintf(stderr, "glmd %s: out of memory\n", o->target.verb);
        return EXIT_FAILED;
    }
    const struct client_call call = {
        .path = path, .request = request, .on_message = on_message, .context = context};
    return client_run(&o->target, &call);
}

const char *run_finish_name(enum wire_finish_reason reason)
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
