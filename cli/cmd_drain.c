/* cmd_drain.c: `glmd drain`: takes a group out of service and waits until its ranks have left. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd drain GROUP [OPTIONS]\n"
    "\n"
    "Takes a group out of service: it takes no new requests and finishes those that run, then its\n"
    "ranks are told to leave (they end with exit code 0, which systemd does not restart). Waits\n"
    "until they have left. Requests that still run when the grace is over go on in another group.\n"
    "\n"
    "      --grace SECONDS       for running requests; default: coordinator.deadlines.drain\n"
    "      --no-wait             do not wait for the end\n"
    "  -h, --help\n";

enum { POLL_MS = 200 };

struct drain {
    struct client_target target;
    const char *group;
    double grace_seconds;
    bool no_wait;
    uint32_t running; /* as the answer said */
    bool gone;
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct drain *d)
{
    const struct cli_option own[] = {CLI_DOUBLE("grace", &d->grace_seconds, 0.001, 86400),
                                     CLI_FLAG("no-wait", &d->no_wait)};
    client_target_init(&d->target, argv[0]);
    d->target.timeout_seconds = 5;
    int code = client_parse(argc, argv, usage, own, ARRAY_LEN(own), &d->target);
    if (code >= 0)
        return code;
    if (argc - optind != 1)
        return cli_usage_error(argv[0], "expected one GROUP; `glmd status` lists them");
    d->group = argv[optind];
    return -1;
}

static int on_drain_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct drain *d = context;
    struct wire_drain_response *m;
    int r = wire_unpack_drain_response(data, size, &m, e);
    if (r < 0)
        return r;
    d->running = m->running;
    wire_free_drain_response(m);
    return 0;
}

static int on_status_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct drain *d = context;
    struct wire_status_response *m;
    int r = wire_unpack_status_response(data, size, &m, e);
    if (r < 0)
        return r;
    d->gone = true;
    for (uint32_t i = 0; i < m->n_groups; i++) {
        if (strcmp(m->groups[i].id, d->group) == 0)
            d->gone = m->groups[i].state == WIRE_GROUP_GONE;
    }
    wire_free_status_response(m);
    return 0;
}

/* One call; `pack` has the result of packing the request into `packed`, which is taken over. */
static int call(struct drain *d, const char *path, int pack, struct buf *packed,
                int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e))
{
    struct err e = ERR_INIT;
    if (pack < 0) {
        err_set(&e, pack, "GROUP: %s", err_name(pack));
        return cli_failed(d->target.verb, &e);
    }
    const struct client_call c = {
        .path = path, .request = packed, .on_message = on_message, .context = d};
    int code = client_run(&d->target, &c);
    buf_deinit(packed);
    return code;
}

static int ask(struct drain *d)
{
    const struct wire_drain_request q = {.group = d->group, .timeout_seconds = d->grace_seconds};
    struct buf packed = {0};
    int r = wire_pack_drain_request(&q, &packed);
    return call(d, "/glmd.v1.Cluster/Drain", r, &packed, on_drain_message);
}

static int look(struct drain *d)
{
    const struct wire_status_request q = {0};
    struct buf packed = {0};
    int r = wire_pack_status_request(&q, &packed);
    return call(d, "/glmd.v1.Cluster/Status", r, &packed, on_status_message);
}

int cmd_drain(int argc, char **argv)
{
    struct drain d = {0};
    int code = parse_args(argc, argv, &d);
    if (code >= 0)
        return code;
    code = ask(&d);
    if (code != EXIT_OK)
        return code;
    printf("group %s drains: %" PRIu32 " requests to finish\n", d.group, d.running);
    fflush(stdout);
    while (!d.no_wait && !d.gone) {
        code = look(&d);
        if (code != EXIT_OK)
            return code;
        if (!d.gone)
            nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
    }
    if (d.gone)
        printf("group %s: its ranks have left\n", d.group);
    return EXIT_OK;
}
