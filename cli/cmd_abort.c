/* cmd_abort.c: `glmd abort`: ends a request of a running coordinator. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd abort REQUEST_ID [OPTIONS]\n"
    "\n"
    "Ends the requests of this id, waiting or running; their clients see CANCELLED. The id is the\n"
    "one that the client gave, or, without one, that of the first message of its answer.\n"
    "\n"
    "  -h, --help\n";

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    uint32_t *aborted = context;
    struct wire_abort_response *m;
    int r = wire_unpack_abort_response(data, size, &m, e);
    if (r < 0)
        return r;
    *aborted = m->aborted;
    wire_free_abort_response(m);
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
    if (argc - optind != 1)
        return cli_usage_error(argv[0], "expected one REQUEST_ID");
    return -1;
}

int cmd_abort(int argc, char **argv)
{
    struct client_target target;
    int code = parse_args(argc, argv, &target);
    if (code >= 0)
        return code;
    const struct wire_abort_request request = {.request_id = argv[optind]};
    struct buf packed = {0};
    struct err e = ERR_INIT;
    int r = wire_pack_abort_request(&request, &packed);
    if (r < 0) {
        err_set(&e, r, "REQUEST_ID: %s", err_name(r));
        return cli_failed(argv[0], &e);
    }
    uint32_t aborted = 0;
    const struct client_call call = {.path = "/glmd.v1.Cluster/Abort",
                                     .request = &packed,
                                     .on_message = on_message,
                                     .context = &aborted};
    code = client_run(&target, &call);
    buf_deinit(&packed);
    if (code == EXIT_OK)
        printf("aborted %" PRIu32 " request%s\n", aborted, aborted == 1 ? "" : "s");
    return code;
}
