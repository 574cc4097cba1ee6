/* run_options.c: see run_options.h. */
#include "cli/run_options.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/common.h"

static int take_common(struct run_options *o, const char *verb, int c, const char *value)
{
    size_t n;
    int code = client_option(&o->target, c, value);
    if (code < 0)
        code = sampling_option(&o->sampling, verb, c, value);
    if (code >= 0)
        return code;
    switch (c - RUN_OPTION_FIRST) {
    case 0:
        return cli_option_i32(verb, "--priority", value, -100, 100, &o->priority);
    case 1:
        n = strlen(value);
        if (n > 128 || utf8_check(value, n) != n)
            return cli_usage_error(verb, "--user: expected at most 128 bytes of UTF-8");
        o->user = value;
        return 0;
    case 2:
        o->stats = true;
        return 0;
    case 3:
        o->json = true;
        return 0;
    default:
        return -1;
    }
}

int run_options_parse(struct run_options *o, int argc, char **argv, const struct run_verb *v)
{
    const char *verb = argv[0];
    o->user = "";
    client_target_init(&o->target, verb);
    sampling_options_init(&o->sampling);
    for (int c; (c = getopt_long(argc, argv, v->short_options, v->options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(v->usage, stdout);
            return EXIT_OK;
        }
        int code = take_common(o, verb, c, optarg);
        if (code < 0)
            code = v->take(v->context, verb, c, optarg);
        if (code)
            return code;
    }
    int code = sampling_options_check(&o->sampling, verb);
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
