/* cmd_metrics.c: `glmd metrics`: what a running coordinator counts. */
#include <getopt.h>
#include <stdio.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd metrics [OPTIONS]\n"
    "\n"
    "Prints the metrics of a coordinator in Prometheus' text format, as /metrics gives them.\n"
    "docs/observability.md explains each.\n"
    "\n"
    "  -h, --help\n";

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    (void)context;
    struct wire_metrics_response *m;
    int r = wire_unpack_metrics_response(data, size, &m, e);
    if (r < 0)
        return r;
    fputs(m->text, stdout);
    wire_free_metrics_response(m);
    return 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct client_target *t)
{
    client_target_init(t, argv[0]);
    t->timeout_seconds = 5;
    int code = client_parse(argc, argv, usage, NULL, 0, t);
    if (code >= 0)
        return code;
    if (optind < argc)
        return cli_usage_error(argv[0], "unexpected argument \"%s\"", argv[optind]);
    return -1;
}

int cmd_metrics(int argc, char **argv)
{
    struct client_target target;
    int code = parse_args(argc, argv, &target);
    if (code >= 0)
        return code;
    const struct wire_metrics_request request = {0};
    struct buf packed = {0};
    struct err e = ERR_INIT;
    int r = wire_pack_metrics_request(&request, &packed);
    if (r < 0) {
        err_set(&e, r, "request: %s", err_name(r));
        return cli_failed(argv[0], &e);
    }
    const struct client_call call = {
        .path = "/glmd.v1.Cluster/Metrics", .request = &packed, .on_message = on_message};
    code = client_run(&target, &call);
    buf_deinit(&packed);
    return code;
}
