/* cmd_status.c: `glmd status`: one screen about a running coordinator; the exit code is its health.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/common.h"
#include "proto/rpc/wire.h"

static const char usage[] =
    "usage: glmd status [OPTIONS]\n"
    "\n"
    "Shows groups, ranks, memory, age of the running step and speed of a coordinator. The exit\n"
    "code is its health: 0 at least one group serves (which do not is said), 3 none does, or no\n"
    "coordinator answers.\n"
    "\n"
    "  -w, --watch [SECONDS]     again and again, every 2 seconds or as given; Ctrl-C ends it\n"
    "      --json                one JSON object\n"
    "  -h, --help\n";

static const double default_timeout_seconds = 5;

struct status {
    struct client_target target;
    double watch_seconds; /* 0: once */
    bool json;
    struct wire_status_response *response; /* owned */
};

static int take_watch(void *context, const char *verb, const char *text)
{
    struct status *s = context;
    s->watch_seconds = 2;
    return text ? cli_option_double(verb, "--watch", text, 0.1, 86400, &s->watch_seconds) : 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct status *s)
{
    const struct cli_option own[] = {{.name = "watch",
                                      .letter = 'w',
                                      .kind = CLI_OPTION_TAKE_OPTIONAL,
                                      .value = s,
                                      .take = take_watch},
                                     CLI_FLAG("json", &s->json)};
    client_target_init(&s->target, argv[0]);
    s->target.timeout_seconds = default_timeout_seconds;
    int code = client_parse(argc, argv, usage, own, ARRAY_LEN(own), &s->target);
    if (code >= 0)
        return code;
    /* "--watch 5" as well as "--watch=5" */
    if (s->watch_seconds > 0 && argc - optind == 1) {
        code = take_watch(s, argv[0], argv[optind++]);
        if (code)
            return code;
    }
    if (optind < argc)
        return cli_usage_error(argv[0], "unexpected argument \"%s\"", argv[optind]);
    return -1;
}

static int on_message(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct status *s = context;
    struct wire_status_response *m;
    int r = wire_unpack_status_response(data, size, &m, e);
    if (r < 0)
        return r;
    wire_free_status_response(s->response);
    s->response = m;
    return 0;
}

/* ---- words ---- */

struct text {
    char chars[48];
};

/* "3.4 GiB" */
static struct text bytes_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    struct text t;
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(t.chars, sizeof t.chars, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return t;
}

/* "2d 3h", "3h 12m", "4m 5s", "12s" */
static struct text duration_text(double seconds)
{
    struct text t;
    uint64_t s = seconds > 0 && seconds < 1e15 ? (uint64_t)seconds : 0;
    uint64_t m = s / 60, h = m / 60, d = h / 24;
    if (d)
        snprintf(t.chars, sizeof t.chars, "%" PRIu64 "d %" PRIu64 "h", d, h % 24);
    else if (h)
        snprintf(t.chars, sizeof t.chars, "%" PRIu64 "h %" PRIu64 "m", h, m % 60);
    else if (m)
        snprintf(t.chars, sizeof t.chars, "%" PRIu64 "m %" PRIu64 "s", m, s % 60);
    else
        snprintf(t.chars, sizeof t.chars, "%" PRIu64 "s", s);
    return t;
}

/* ---- the screen ---- */

static void print_head(const struct wire_status_response *r)
{
    const struct wire_model_info *m = r->model;
    const struct wire_request_counters *q = r->requests;
    printf("glmd-coordinator %s", r->version);
    if (r->cluster[0])
        printf(", cluster %s", r->cluster);
    printf(", up %s%s\n", duration_text(r->uptime_seconds).chars,
           r->draining ? ", DRAINING (takes no new requests)" : "");
    if (m)
        printf("model     %s (%s): %s weights, %" PRIu32 " layers, hidden %" PRIu32
               ", context %" PRIu32 ", digest %.12s\n",
               m->id, m->architecture, m->weights, m->layers, m->hidden_size, m->context_length,
               m->digest);
    if (q)
        printf("requests  %" PRIu64 " arrived, %" PRIu64 " finished, %" PRIu64 " failed, %" PRIu64
               " cancelled (%" PRIu64 " by operators), %" PRIu64 " rejected, %" PRIu64 " resumed\n",
               q->total, q->finished, q->failed, q->cancelled, q->aborted, q->rejected, q->resumed);
}

/* "1 of 3 serves, 2 requests wait; not: b (forming), c (gone)" */
static void print_groups_line(const struct wire_status_response *r)
{
    uint32_t n_ready = 0;
    for (uint32_t i = 0; i < r->n_groups; i++)
        n_ready += r->groups[i].state == WIRE_GROUP_READY;
    printf("groups    %" PRIu32 " of %" PRIu32 " serve%s", n_ready, r->n_groups,
           n_ready == 1 ? "s" : "");
    printf(", %" PRIu32 " requests wait", r->waiting);
    const char *before = "; not: ";
    for (uint32_t i = 0; i < r->n_groups; i++) {
        if (r->groups[i].state == WIRE_GROUP_READY)
            continue;
        printf("%s%s (%s)", before, r->groups[i].id, wire_group_state_name(r->groups[i].state));
        before = ", ";
    }
    putchar('\n');
}

/* What a rank is doing: the age of its step, or how far it has loaded. */
static struct text activity(const struct wire_rank_status *r)
{
    struct text t;
    if (r->state == WIRE_RANK_LOADING && r->total_bytes)
        snprintf(t.chars, sizeof t.chars, "loaded %.0f %%",
                 100.0 * (double)r->loaded_bytes / (double)r->total_bytes);
    else if (r->step_age_ms)
        snprintf(t.chars, sizeof t.chars, "%.3f s", (double)r->step_age_ms / 1000);
    else
        snprintf(t.chars, sizeof t.chars, "%s", r->state == WIRE_RANK_READY ? "idle" : "-");
    return t;
}

static void print_rank(const struct wire_rank_status *r)
{
    printf("  %4" PRIu32 "  %-8s %-16.16s %-10.10s %10s %10s %10s  %10" PRIu64
           " %12s %8.2f %8" PRIu32 "\n",
           r->rank, wire_rank_state_name(r->state), r->host, r->device,
           bytes_text(r->weights_bytes).chars, bytes_text(r->kv_bytes).chars,
           bytes_text(r->scratch_bytes).chars, r->step, activity(r).chars, r->compute_ms_avg,
           r->restarts);
    if (r->last_error[0]) {
        fputs("        last error: ", stdout);
        client_print(stdout, r->last_error);
        putchar('\n');
    }
}

static void print_group(const struct wire_group_status *g)
{
    printf("\ngroup %s  %s  epoch %" PRIu64 "  TP %" PRIu32, g->id, wire_group_state_name(g->state),
           g->epoch, g->tp_size);
    if (g->pp_size > 1) {
        printf(" x PP %" PRIu32 ", layers", g->pp_size);
        for (uint32_t i = 0; i < g->n_stage_layers; i++)
            printf("%s%" PRIu32, i ? "+" : " ", g->stage_layers[i]);
    }
    putchar('\n');
    if (g->state == WIRE_GROUP_GONE)
        return; /* nothing runs there, and nobody holds anything */
    printf("  running %" PRIu32 "; KV blocks %" PRIu32 " of %" PRIu32 " used; slots %" PRIu32
           " of %" PRIu32 " used\n",
           g->running, g->kv_blocks_total - MIN(g->kv_blocks_free, g->kv_blocks_total),
           g->kv_blocks_total, g->slots_used, g->slots_total);
    printf("  prefill %.1f tokens/s, decode %.1f tokens/s; %" PRIu64 " steps, %" PRIu64
           " + %" PRIu64 " tokens\n",
           g->prefill_tokens_per_second, g->decode_tokens_per_second, g->steps, g->prefill_tokens,
           g->decode_tokens);
    if (g->last_error[0]) {
        fputs("  previous epoch ended: ", stdout);
        client_print(stdout, g->last_error);
        putchar('\n');
    }
    if (g->n_ranks && g->ranks[0].collectives[0] && g->tp_size > 1) {
        fputs("  sums over ranks: ", stdout);
        client_print(stdout, g->ranks[0].collectives);
        putchar('\n');
    }
    printf("  %4s  %-8s %-16s %-10s %10s %10s %10s  %10s %12s %8s %8s\n", "RANK", "STATE", "HOST",
           "DEVICE", "WEIGHTS", "KV CACHE", "SCRATCH", "STEP", "STEP AGE", "MS/STEP", "RESTARTS");
    for (uint32_t i = 0; i < g->n_ranks; i++)
        print_rank(&g->ranks[i]);
}

static int print_screen(const struct status *s)
{
    const struct wire_status_response *r = s->response;
    if (s->watch_seconds > 0 && isatty(STDOUT_FILENO))
        fputs("\033[H\033[2J", stdout);
    print_head(r);
    print_groups_line(r);
    for (uint32_t i = 0; i < r->n_groups; i++)
        print_group(&r->groups[i]);
    if (r->n_groups == 0)
        puts("\nno groups");
    return fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
}

/* ---- JSON ---- */

static json_t *rank_to_json(const struct wire_rank_status *r)
{
    return json_pack(
        "{s:I, s:I, s:s, s:s, s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:I, "
        "s:I, s:s}",
        "rank", (json_int_t)r->rank, "stage", (json_int_t)r->stage, "state",
        wire_rank_state_name(r->state), "host", r->host, "pid", (json_int_t)r->pid, "device",
        r->device, "description", r->description, "weights_bytes", (json_int_t)r->weights_bytes,
        "kv_bytes", (json_int_t)r->kv_bytes, "scratch_bytes", (json_int_t)r->scratch_bytes,
        "loaded_bytes", (json_int_t)r->loaded_bytes, "total_bytes", (json_int_t)r->total_bytes,
        "step", (json_int_t)r->step, "step_age_ms", (json_int_t)r->step_age_ms, "compute_ms_avg",
        r->compute_ms_avg, "last_error", r->last_error, "restarts", (json_int_t)r->restarts,
        "fenced_messages", (json_int_t)r->fenced_messages, "collectives", r->collectives);
}

static json_t *group_to_json(const struct wire_group_status *g)
{
    json_t *ranks = json_array();
    for (uint32_t i = 0; i < g->n_ranks; i++)
        json_array_append_new(ranks, rank_to_json(&g->ranks[i]));
    json_t *layers = json_array();
    for (uint32_t i = 0; i < g->n_stage_layers; i++)
        json_array_append_new(layers, json_integer(g->stage_layers[i]));
    return json_pack(
        "{s:s, s:I, s:s, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, "
        "s:s, s:o}",
        "id", g->id, "epoch", (json_int_t)g->epoch, "state", wire_group_state_name(g->state),
        "tp_size", (json_int_t)g->tp_size, "pp_size", (json_int_t)g->pp_size, "stage_layers",
        layers, "kv_blocks_total", (json_int_t)g->kv_blocks_total, "kv_blocks_free",
        (json_int_t)g->kv_blocks_free, "running", (json_int_t)g->running, "waiting",
        (json_int_t)g->waiting, "prefill_tokens_per_second", g->prefill_tokens_per_second,
        "decode_tokens_per_second", g->decode_tokens_per_second, "steps", (json_int_t)g->steps,
        "prefill_tokens", (json_int_t)g->prefill_tokens, "decode_tokens",
        (json_int_t)g->decode_tokens, "slots_total", (json_int_t)g->slots_total, "slots_used",
        (json_int_t)g->slots_used, "last_error", g->last_error, "ranks", ranks);
}

static int print_json(const struct status *s)
{
    const struct wire_status_response *r = s->response;
    json_t *groups = json_array();
    for (uint32_t i = 0; i < r->n_groups; i++)
        json_array_append_new(groups, group_to_json(&r->groups[i]));
    json_t *root =
        json_pack("{s:b, s:s, s:f, s:s, s:b, s:I, s:o}", "healthy", wire_status_healthy(r),
                  "version", r->version, "uptime_seconds", r->uptime_seconds, "cluster", r->cluster,
                  "draining", r->draining, "waiting", (json_int_t)r->waiting, "groups", groups);
    const struct wire_model_info *m = r->model;
    if (m)
        json_object_set_new(root, "model",
                            json_pack("{s:s, s:s, s:I, s:I, s:s, s:s, s:I, s:I}", "id", m->id,
                                      "architecture", m->architecture, "context_length",
                                      (json_int_t)m->context_length, "vocab_size",
                                      (json_int_t)m->vocab_size, "weights", m->weights, "digest",
                                      m->digest, "layers", (json_int_t)m->layers, "hidden_size",
                                      (json_int_t)m->hidden_size));
    const struct wire_request_counters *q = r->requests;
    if (q)
        json_object_set_new(
            root, "requests",
            json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "total", (json_int_t)q->total,
                      "finished", (json_int_t)q->finished, "failed", (json_int_t)q->failed,
                      "cancelled", (json_int_t)q->cancelled, "rejected", (json_int_t)q->rejected,
                      "resumed", (json_int_t)q->resumed, "aborted", (json_int_t)q->aborted));
    const struct wire_loop_time *l = r->loop;
    if (l)
        json_object_set_new(root, "loop",
                            json_pack("{s:I, s:I, s:I, s:I, s:I}", "steps", (json_int_t)l->steps,
                                      "plan_ns", (json_int_t)l->plan_ns, "result_ns",
                                      (json_int_t)l->result_ns, "updates", (json_int_t)l->updates,
                                      "update_ns", (json_int_t)l->update_ns));
    return cli_print_json(s->target.verb, root);
}

/* ---- the verb ---- */

static int show_once(struct status *s)
{
    const struct wire_status_request request = {0};
    struct buf packed = {0};
    if (wire_pack_status_request(&request, &packed) < 0) {
        fprintf(stderr, "glmd %s: out of memory\n", s->target.verb);
        return EXIT_FAILED;
    }
    const struct client_call call = {.path = "/glmd.v1.Cluster/Status",
                                     .request = &packed,
                                     .on_message = on_message,
                                     .context = s};
    int code = client_run(&s->target, &call);
    buf_deinit(&packed);
    if (code != EXIT_OK)
        return code;
    if (!s->response) {
        fprintf(stderr, "glmd %s: the server sent no result\n", s->target.verb);
        return EXIT_FAILED;
    }
    code = s->json ? print_json(s) : print_screen(s);
    if (code == EXIT_OK && !wire_status_healthy(s->response))
        code = EXIT_UNAVAILABLE;
    return code;
}

int cmd_status(int argc, char **argv)
{
    struct status s = {0};
    int code = parse_args(argc, argv, &s);
    if (code >= 0)
        return code;
    for (;;) {
        code = show_once(&s);
        wire_free_status_response(s.response);
        s.response = NULL;
        /* while watching, a coordinator may go away and come back */
        if (s.watch_seconds == 0 || code == EXIT_FAILED)
            return code;
        struct timespec pause = {.tv_sec = (time_t)s.watch_seconds};
        pause.tv_nsec = (long)((s.watch_seconds - (double)pause.tv_sec) * 1e9);
        nanosleep(&pause, NULL);
    }
}
