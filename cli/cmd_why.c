/* cmd_why.c: `glmd why`: what became of a request of a running coordinator. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd why REQUEST_ID [OPTIONS]\n"
    "\n"
    "What became of a request: when it was queued, where it ran, what interrupted it, how it "
    "ended\n"
    "and why. The id is the one that the client gave, or that in its answer.\n"
    "The coordinator remembers the last two thousand requests; the newest one of this id is "
    "first.\n"
    "\n"
    "      --json                a JSON array\n"
    "  -h, --help\n";

struct why {
    struct client_target target;
    bool json;
    struct wire_why_response *response; /* owned */
};

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct why *w = context;
    wire_free_why_response(w->response);
    w->response = NULL;
    return wire_unpack_why_response(data, size, &w->response, e);
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct why *w)
{
    const struct cli_option own[] = {CLI_FLAG("json", &w->json)};
    client_target_init(&w->target, argv[0]);
    w->target.timeout_seconds = 5;
    int code = client_parse(argc, argv, usage, own, ARRAY_LEN(own), &w->target);
    if (code >= 0)
        return code;
    if (argc - optind != 1)
        return cli_usage_error(argv[0], "expected one REQUEST_ID");
    return -1;
}

static const char *event_name(enum wire_event_kind kind)
{
    static const char *const names[] = {"unknown",     "queued",    "started", "prefill",
                                        "first_token", "preempted", "lost",    "paused",
                                        "goes_on",     "ended",     "refused"};
    return (size_t)kind < ARRAY_LEN(names) ? names[kind] : "unknown";
}

/* ---- for people ---- */

static void print_event(const struct wire_request_timeline *r, const struct wire_request_event *e)
{
    printf("  %10.3f s  ", e->at_seconds);
    switch (e->kind) {
    case WIRE_EVENT_QUEUED:
        printf("queued, %" PRIu32 " waiting", e->n);
        break;
    case WIRE_EVENT_STARTED:
        printf("started on group %s, epoch %" PRIu64, e->group, e->epoch);
        if (e->n)
            printf(", %" PRIu32 " tokens of its prompt were in the cache", e->n);
        break;
    case WIRE_EVENT_PREFILL:
        printf("prefill of %" PRIu32 " tokens, last part sent at %.3f s", e->n, e->until_seconds);
        break;
    case WIRE_EVENT_FIRST_TOKEN:
        printf("first token");
        break;
    case WIRE_EVENT_PREEMPTED:
        printf("preempted after %" PRIu32 " tokens: made room for a higher priority", e->n);
        break;
    case WIRE_EVENT_LOST:
        printf("group %s was lost after %" PRIu32 " tokens: waits to go on elsewhere", e->group,
               e->n);
        break;
    case WIRE_EVENT_PAUSED:
        printf("paused: the client does not read");
        break;
    case WIRE_EVENT_GOES_ON:
        printf("goes on: the client reads again");
        break;
    case WIRE_EVENT_ENDED:
        printf("ended: %s, %s%s%s", r->end, r->status, *r->message ? ": " : "", r->message);
        break;
    case WIRE_EVENT_REFUSED:
        printf("refused: %s: %s", r->end, r->message);
        break;
    default:
        printf("something that this version of glmd does not know");
    }
    putchar('\n');
}

static void print_timeline(const struct wire_request_timeline *r)
{
    printf("%s: %s, arrived %.1f s ago, priority %" PRId32, r->request_id, r->kind, r->age_seconds,
           r->priority);
    if (*r->trace_id)
        printf(", trace %s", r->trace_id);
    if (r->ended)
        printf(", %" PRIu32 " + %" PRIu64 " tokens\n", r->prompt_tokens, r->completion_tokens);
    else
        printf(", %" PRIu32 " prompt tokens, has not ended\n", r->prompt_tokens);
    for (uint32_t i = 0; i != r->n_events; i++)
        print_event(r, &r->events[i]);
    if (r->events_lost)
        printf("  (%" PRIu32 " more events before the end)\n", r->events_lost);
}

/* ---- for programs ---- */

static json_t *event_to_json(const struct wire_request_event *e)
{
    return json_pack("{s:s, s:f, s:f, s:s, s:I, s:I}", "event", event_name(e->kind), "at_seconds",
                     e->at_seconds, "until_seconds", e->until_seconds, "group", e->group, "epoch",
                     (json_int_t)e->epoch, "n", (json_int_t)e->n);
}

static json_t *timeline_to_json(const struct wire_request_timeline *r)
{
    json_t *events = json_array();
    for (uint32_t i = 0; i != r->n_events; i++)
        json_array_append_new(events, event_to_json(&r->events[i]));
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:I, s:I, s:b, s:s, s:s, s:s, s:o, s:I}",
                     "request_id", r->request_id, "trace_id", r->trace_id, "kind", r->kind,
                     "priority", (int)r->priority, "age_seconds", r->age_seconds, "prompt_tokens",
                     (json_int_t)r->prompt_tokens, "completion_tokens",
                     (json_int_t)r->completion_tokens, "ended", r->ended, "end", r->end, "status",
                     r->status, "message", r->message, "events", events, "events_lost",
                     (json_int_t)r->events_lost);
}

static int print_json(const char *verb, const struct wire_why_response *response)
{
    json_t *all = json_array();
    for (uint32_t i = 0; i != response->n_requests; i++)
        json_array_append_new(all, timeline_to_json(&response->requests[i]));
    return cli_print_json(verb, all);
}

static int print_response(const char *verb, const struct why *w)
{
    if (w->json)
        return print_json(verb, w->response);
    for (uint32_t i = 0; i != w->response->n_requests; i++)
        print_timeline(&w->response->requests[i]);
    return EXIT_OK;
}

int cmd_why(int argc, char **argv)
{
    struct why w = {0};
    int code = parse_args(argc, argv, &w);
    if (code >= 0)
        return code;
    const struct wire_why_request request = {.request_id = argv[optind]};
    struct buf packed = {0};
    struct err e = ERR_INIT;
    int r = wire_pack_why_request(&request, &packed);
    if (r < 0) {
        err_set(&e, r, "REQUEST_ID: %s", err_name(r));
        return cli_failed(argv[0], &e);
    }
    const struct client_call call = {.path = "/glmd.v1.Cluster/Why",
                                     .request = &packed,
                                     .on_message = on_message,
                                     .context = &w};
    code = client_run(&w.target, &call);
    if (code == EXIT_OK)
        code = print_response(argv[0], &w);
    buf_deinit(&packed);
    wire_free_why_response(w.response);
    return code;
}
