/* bench_rpc.c: `glmd bench rpc`: what a coordinator costs. It starts one with ranks on fake devices
 * and measures the coordinator's processor time and memory from outside, in four phases:
 *
 *   idle       no requests
 *   streamed   a batch of streams: each step sends one message per stream
 *   silent     the same batch as few requests with best_of, which send nothing before their end
 *   open       many streams at once, memory before, while and at the end
 *
 * streamed and silent plan and dispatch the same batch, so that silent is the cost of a step and
 * the difference that of the messages, with the text of their tokens:
 *
 *   cpu per step, streamed = cpu per step, silent + messages per step * message
 *
 * What the process needs when idle is taken off before. Processor time comes from the process's own
 * clock, messages from what arrived here, steps from the coordinator's Status. So does what its
 * loop measures of itself: planning and dispatching steps, results, messages (LoopTime).
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_cluster.h"
#include "cli/bench_dataset.h"
#include "cli/bench_load.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"

static const char verb[] = "bench rpc";

static const char usage[] =
    "usage: glmd bench rpc --like DIR [OPTIONS]\n"
    "\n"
    "Starts a coordinator whose ranks compute nothing, puts load on it, and reports the\n"
    "coordinator's processor time for a step and for a streamed message, and its memory.\n"
    "\n"
    "  --like DIR            a model directory: its tokenizer and vocabulary are used\n"
    "  --ranks N             ranks of the group: 1, 2, 4, ... 64; default 2\n"
    "  --batch N             streams of the first phases; default 64\n"
    "  --best-of N           sequences of a silent request, 2 to 16; default 16\n"
    "  --streams N           open streams of the last phase, up to 1024; default 1000\n"
    "  --step-us US          time of a step; default 5000\n"
    "  --decode-us US        and of each sequence in it; default 100\n"
    "  --input-len N         tokens of a prompt; default 16\n"
    "  --output-len N        tokens of a stream, then another one follows; default 1800\n"
    "  --seconds S           time of each phase; default 10\n"
    "  --set KEY=VALUE       of the coordinator's configuration; may be repeated\n"
    "  --coordinator-program PATH  default: glmd-coordinator beside this program\n"
    "  --json FILE           results as JSON (- = standard output)\n"
    "  --svg FILE            plot of processor time and memory over time\n";

enum { MAX_SETS = 24, MAX_TRACE = 100000, TICK_MS = 100 };

/* Targets of this project, on one core. */
static const double target_step_us = 100, target_message_us = 15, target_idle_percent = 1;
static const double target_open_bytes = 100e6;

struct snapshot {
    int64_t at_ns, cpu_ns, loop_ns; /* loop_ns: 0 where it is not known */
    uint64_t rss, messages, tokens;
    struct cluster_numbers own;
};

struct window { /* between two snapshots of a phase */
    double seconds, cpu_share;
    double steps, messages, tokens;
    double cpu_us_per_step, loop_us_per_step, cpu_us_per_message, messages_per_step;
    double plan_us_per_step, result_us_per_step, update_us_per_message; /* the loop's own count */
};

struct trace_point {
    double at, cpu_percent, rss_mb;
};

struct rpc_bench {
    /* options */
    const char *like, *program, *json, *svg;
    uint32_t ranks, batch, best_of, streams, input_len, output_len;
    double step_us, decode_us, seconds;
    const char *sets[MAX_SETS + 1];
    size_t n_sets;
    /* owned */
    struct cluster cluster;
    struct dataset prompts;
    struct trace_point *trace; /* [MAX_TRACE] */
    /* state */
    struct client_target target;
    size_t n_trace;
    int64_t begin_ns;
    struct snapshot last_tick; /* of the trace */
    /* of the phase that runs */
    int64_t from_ns, to_ns; /* of its window */
    bool has_first, has_last;
    struct snapshot first, last;
    uint64_t rss_peak;
    /* results */
    double idle_percent, idle_after_percent;
    struct window streamed, silent, open;
    uint64_t rss_start, rss_before, rss_open, rss_end, rss_closed;
    uint32_t max_open;
    double step_cost_us, message_cost_us;
};

/* ---- options ---- */

static int add_set(void *context, const char *name, const char *text)
{
    struct rpc_bench *b = context;
    if (b->n_sets == MAX_SETS / 2)
        return cli_usage_error(name, "--set: expected at most %d", MAX_SETS / 2);
    b->sets[b->n_sets++] = text;
    return 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(struct rpc_bench *b, int argc, char **argv)
{
    *b = (struct rpc_bench){.ranks = 2,
                            .batch = 64,
                            .best_of = 16,
                            .streams = 1000,
                            .input_len = 16,
                            .output_len = 1800,
                            .step_us = 5000,
                            .decode_us = 100,
                            .seconds = 10,
                            .cluster = CLUSTER_INIT};
    const struct cli_option own[] = {
        CLI_TEXT("like", &b->like),
        CLI_U32("ranks", &b->ranks, 1, 64),
        CLI_U32("batch", &b->batch, 2, 1024),
        CLI_U32("best-of", &b->best_of, 2, 16),
        CLI_U32("streams", &b->streams, 0, 1024),
        CLI_DOUBLE("step-us", &b->step_us, 1, 1e7),
        CLI_DOUBLE("decode-us", &b->decode_us, 0, 1e6),
        CLI_U32("input-len", &b->input_len, 1, 1024),
        CLI_U32("output-len", &b->output_len, 2, 1800),
        CLI_DOUBLE("seconds", &b->seconds, 0.5, 3600),
        CLI_TAKE("set", add_set, b),
        CLI_TEXT("coordinator-program", &b->program),
        CLI_TEXT("json", &b->json),
        CLI_TEXT("svg", &b->svg),
    };
    const struct cli_options tables[] = {CLI_OWN(own)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    if (!b->like || optind != argc)
        return cli_usage_error(verb, "expected --like DIR");
    if (b->ranks & (b->ranks - 1))
        return cli_usage_error(verb, "--ranks %u: expected a power of two", b->ranks);
    if (b->batch % b->best_of)
        return cli_usage_error(verb, "--batch %u: expected a multiple of --best-of %u", b->batch,
                               b->best_of);
    return -1;
}

/* ---- measuring ---- */

/* Without what the coordinator says, which takes a call. */
static int look(const struct rpc_bench *b, const struct load_result *load, struct snapshot *ret)
{
    *ret = (struct snapshot){.at_ns = clock_now_ns()};
    int r = process_cpu_ns(b->cluster.pid, &ret->cpu_ns);
    if (r == 0)
        r = process_rss_bytes(b->cluster.pid, &ret->rss);
    if (process_loop_ns(b->cluster.pid, &ret->loop_ns) < 0)
        ret->loop_ns = 0;
    if (load) {
        ret->messages = load->n_messages;
        ret->tokens = load->n_tokens;
    }
    return r;
}

static void add_trace(struct rpc_bench *b, const struct snapshot *s)
{
    int64_t elapsed = s->at_ns - b->last_tick.at_ns;
    if (b->last_tick.at_ns && elapsed > 0 && b->n_trace != MAX_TRACE)
        b->trace[b->n_trace++] = (struct trace_point){
            (double)(s->at_ns - b->begin_ns) / 1e9,
            100.0 * (double)(s->cpu_ns - b->last_tick.cpu_ns) / (double)elapsed,
            (double)s->rss / 1e6};
    b->last_tick = *s;
}

static int ask(struct rpc_bench *b, struct snapshot *s)
{
    return cluster_numbers(&b->target, &s->own) ? -EIO : 0;
}

/* In the loop of a load: the trace, and the ends of the window. */
static int on_tick(void *context, const struct load_result *load)
{
    struct rpc_bench *b = context;
    struct snapshot s;
    int r = look(b, load, &s);
    if (r < 0)
        return r;
    add_trace(b, &s);
    b->rss_peak = MAX(b->rss_peak, s.rss);
    if (!b->has_first && s.at_ns >= b->from_ns) {
        b->has_first = true;
        b->first = s;
        return ask(b, &b->first);
    }
    if (!b->has_last && s.at_ns >= b->to_ns) {
        b->has_last = true;
        b->last = s;
        return ask(b, &b->last);
    }
    return 0;
}

/* In microseconds. */
static double per(uint64_t ns, double n)
{
    return n > 0 ? (double)ns / 1e3 / n : 0;
}

/* idle_share: of a core, what the process costs without any work; not charged to steps. */
static struct window window_between(const struct snapshot *a, const struct snapshot *z,
                                    double idle_share)
{
    double cpu_us = (double)(z->cpu_ns - a->cpu_ns) / 1e3;
    double idle_us = idle_share * (double)(z->at_ns - a->at_ns) / 1e3;
    struct window w = {.seconds = (double)(z->at_ns - a->at_ns) / 1e9,
                       .steps = (double)(z->own.steps - a->own.steps),
                       .messages = (double)(z->messages - a->messages),
                       .tokens = (double)(z->tokens - a->tokens)};
    w.cpu_share = cpu_us / 1e6 / w.seconds;
    cpu_us = MAX(cpu_us - idle_us, 0);
    w.cpu_us_per_step = w.steps > 0 ? cpu_us / w.steps : 0;
    w.loop_us_per_step = w.steps > 0 ? (double)(z->loop_ns - a->loop_ns) / 1e3 / w.steps : 0;
    w.cpu_us_per_message = w.messages > 0 ? cpu_us / w.messages : 0;
    w.plan_us_per_step = per(z->own.plan_ns - a->own.plan_ns, w.steps);
    w.result_us_per_step = per(z->own.result_ns - a->own.result_ns, w.steps);
    w.update_us_per_message = per(z->own.update_ns - a->own.update_ns, w.messages);
    w.messages_per_step = w.steps > 0 ? w.messages / w.steps : 0;
    return w;
}

/* n requests of so many sequences; the window begins behind a second (or a quarter) of warming up.
 */
static int run_phase(struct rpc_bench *b, uint32_t n, uint32_t best_of, struct window *ret,
                     struct err *e)
{
    double ramp = MIN(1 + n / 1000.0, 0.25 * b->seconds + n / 1000.0);
    struct load_result load = {0};
    struct dataset d = {0};
    int32_t ids[256];
    for (uint32_t i = 0; i != ARRAY_LEN(ids); i++)
        ids[i] = b->prompts.tokens[i % b->prompts.prompts[0].n_tokens];
    /* streams that come to an end are followed by others */
    double lives = b->seconds * 1e6 / (b->step_us * b->output_len);
    const struct dataset_options o = {.n = n * (64 + (uint32_t)MIN(lives, 4000.0)),
                                      .input_len = b->input_len,
                                      .output_len = b->output_len,
                                      .seed = 1};
    if (dataset_random(&o, ids, ARRAY_LEN(ids), &d) < 0) {
        dataset_deinit(&d);
        return err_set(e, -ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i != d.n; i++)
        d.prompts[i].best_of = best_of;
    b->has_first = b->has_last = false;
    b->rss_peak = 0;
    b->from_ns = clock_now_ns() + (int64_t)(ramp * 1e9);
    b->to_ns = b->from_ns + (int64_t)(b->seconds * 1e9);
    const struct load_config config = {.target = &b->target,
                                       .prompts = d.prompts,
                                       .n_prompts = d.n,
                                       .max_concurrency = n,
                                       .ignore_end = true,
                                       .duration_ns = (int64_t)((ramp + b->seconds) * 1e9) +
                                                      3 * TICK_MS * NSEC_PER_MSEC,
                                       .on_tick = on_tick,
                                       .tick_ns = TICK_MS * NSEC_PER_MSEC,
                                       .context = b};
    int r = load_run(&config, &load, e);
    b->max_open = load.max_open;
    if (r == 0 && load.n_errors)
        r = err_set(e, -EIO, "%u requests failed: %s", load.errors[0].n, load.errors[0].message);
    else if (r == 0 && load.interrupted)
        r = err_set(e, -ECANCELED, "interrupted");
    else if (r == 0 && !b->has_last)
        r = err_set(e, -EIO, "the load ended before its time");
    if (r == 0)
        *ret = window_between(&b->first, &b->last, b->idle_percent / 100);
    load_result_deinit(&load);
    dataset_deinit(&d);
    return r;
}

/* Share of a core, in percent, without any request. */
static int run_idle(struct rpc_bench *b, double *ret, struct err *e)
{
    struct snapshot first, last;
    int64_t end = clock_now_ns() + (int64_t)(b->seconds / 2 * 1e9);
    int r = look(b, NULL, &first);
    last = first;
    add_trace(b, &first);
    while (r == 0 && clock_now_ns() < end) {
        usleep(TICK_MS * 1000);
        r = look(b, NULL, &last);
        add_trace(b, &last);
    }
    if (r < 0)
        return err_set(e, r, "the coordinator: %s", err_name(r));
    *ret = 100 * window_between(&first, &last, 0).cpu_share;
    return 0;
}

/* ---- the run ---- */

static int start(struct rpc_bench *b, struct err *e)
{
    static char sets[4][80];
    char device[96];
    uint32_t slots = MAX(b->streams, b->batch);
    snprintf(device, sizeof device, "fake:step_us=%.3f:decode_us=%.3f", b->step_us, b->decode_us);
    snprintf(sets[0], sizeof sets[0], "coordinator.limits.max_connections=%u", slots + 256);
    snprintf(sets[1], sizeof sets[1], "coordinator.limits.max_queue=%u", slots + 256);
    for (size_t i = 0; i != 2; i++)
        b->sets[b->n_sets++] = sets[i];
    const struct cluster_config config = {.like = b->like,
                                          .program = b->program,
                                          .device = device,
                                          .ranks = b->ranks,
                                          .slots = slots,
                                          .sets = b->sets};
    int r = cluster_start(&b->cluster, &config, e);
    if (r < 0)
        return r;
    client_target_init(&b->target, verb);
    b->target.coordinator = b->cluster.address;
    /* ids of words, from the tokenizer of the coordinator */
    const struct dataset_options o = {.n = 1, .input_len = 256, .output_len = 1};
    return dataset_make(&o, &b->target, &b->prompts) ? err_set(e, -EIO, "no prompts") : 0;
}

static int measure_open(struct rpc_bench *b, struct err *e)
{
    struct snapshot s;
    int r = look(b, NULL, &s);
    b->rss_before = s.rss;
    if (r < 0)
        return err_set(e, r, "the coordinator: %s", err_name(r));
    r = run_phase(b, b->streams, 1, &b->open, e);
    b->rss_open = b->first.rss;
    b->rss_end = b->last.rss;
    return r;
}

static void solve(struct rpc_bench *b)
{
    double messages = b->streamed.messages_per_step - b->silent.messages_per_step;
    b->step_cost_us = b->silent.cpu_us_per_step;
    if (messages > 0)
        b->message_cost_us = (b->streamed.cpu_us_per_step - b->step_cost_us) / messages;
}

static int measure(struct rpc_bench *b, struct err *e)
{
    struct snapshot s;
    b->begin_ns = clock_now_ns();
    int r = look(b, NULL, &s);
    b->rss_start = s.rss;
    if (r < 0)
        return err_set(e, r, "the coordinator: %s", err_name(r));
    r = run_idle(b, &b->idle_percent, e);
    if (r == 0)
        r = run_phase(b, b->batch, 1, &b->streamed, e);
    if (r == 0)
        r = run_phase(b, b->batch / b->best_of, b->best_of, &b->silent, e);
    if (r == 0 && b->streams)
        r = measure_open(b, e);
    if (r == 0)
        r = run_idle(b, &b->idle_after_percent, e);
    b->rss_closed = b->last_tick.rss;
    if (r == 0)
        solve(b);
    return r;
}

/* ---- results ---- */

static void print_window(FILE *out, const char *name, const struct window *w)
{
    fprintf(out, "%-10s %9.1f %10.1f %12.1f %10.1f %10.1f %11.2f %8.1f%%\n", name,
            w->steps / w->seconds, w->messages / w->seconds, w->messages_per_step,
            w->cpu_us_per_step, w->loop_us_per_step, w->cpu_us_per_message, 100 * w->cpu_share);
}

static void print_target(FILE *out, const char *what, double found, const char *unit, double target)
{
    fprintf(out, "%-52s %10.2f %-3s (target %g: %s)\n", what, found, unit, target,
            found <= target ? "met" : "missed");
}

static void print_value(FILE *out, const char *what, double found, const char *unit)
{
    fprintf(out, "%-52s %10.2f %s\n", what, found, unit);
}

static void print_report(const struct rpc_bench *b, FILE *out)
{
    char what[80];
    fprintf(out,
            "coordinator with %u rank%s on fake devices, step %g us + %g us per sequence\n\n"
            "%-10s %9s %10s %12s %10s %10s %11s %9s\n",
            b->ranks, b->ranks > 1 ? "s" : "", b->step_us, b->decode_us, "phase", "steps/s",
            "messages/s", "messages/step", "us/step", "of it loop", "us/message", "one core");
    print_window(out, "streamed", &b->streamed);
    print_window(out, "silent", &b->silent);
    if (b->streams)
        print_window(out, "open", &b->open);
    fprintf(out, "\n");
    snprintf(what, sizeof what, "planning and dispatch of a step at batch %u", b->batch);
    print_target(out, what, b->streamed.plan_us_per_step, "us", target_step_us);
    print_target(out, "a streamed token message", b->message_cost_us, "us", target_message_us);
    print_target(out, "idle, before any request", b->idle_percent, "%", target_idle_percent);
    print_target(out, "idle, at the end", b->idle_after_percent, "%", target_idle_percent);
    if (b->streams) {
        snprintf(what, sizeof what, "memory with %u open streams", b->max_open);
        print_target(out, what, (double)b->rss_open / 1e6, "MB", target_open_bytes / 1e6);
    }
    fprintf(out, "\nbeside them:\n");
    print_value(out, "reading and committing the results of such a step",
                b->streamed.result_us_per_step, "us");
    print_value(out, "all of the process for such a step but its messages", b->step_cost_us, "us");
    print_value(out, "of a message, the loop's part", b->streamed.update_us_per_message, "us");
    print_value(out, "memory at the start", (double)b->rss_start / 1e6, "MB");
    if (!b->streams)
        return;
    print_value(out, "memory before the streams were opened", (double)b->rss_before / 1e6, "MB");
    snprintf(what, sizeof what, "memory after %.0f s of them", b->open.seconds);
    print_value(out, what, (double)b->rss_end / 1e6, "MB");
    print_value(out, "memory when they are closed", (double)b->rss_closed / 1e6, "MB");
}

static json_t *window_json(const struct window *w)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "seconds",
                     w->seconds, "cpu_share", w->cpu_share, "steps", w->steps, "messages",
                     w->messages, "tokens", w->tokens, "messages_per_step", w->messages_per_step,
                     "cpu_us_per_step", w->cpu_us_per_step, "loop_us_per_step", w->loop_us_per_step,
                     "cpu_us_per_message", w->cpu_us_per_message, "plan_us_per_step",
                     w->plan_us_per_step, "result_us_per_step", w->result_us_per_step,
                     "update_us_per_message", w->update_us_per_message);
}

static json_t *to_json(const struct rpc_bench *b)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:f, s:f, s:I}", "bench", "rpc",
        "version", GLMD_VERSION, "ranks", (json_int_t)b->ranks, "batch", (json_int_t)b->batch,
        "best_of", (json_int_t)b->best_of, "step_us", b->step_us, "decode_us", b->decode_us,
        "idle_cpu_percent", b->idle_percent, "idle_after_cpu_percent", b->idle_after_percent,
        "streamed", window_json(&b->streamed), "silent", window_json(&b->silent), "step_cpu_us",
        b->step_cost_us, "message_cpu_us", b->message_cost_us, "rss_start_bytes",
        (json_int_t)b->rss_start);
    if (root)
        json_object_set_new(root, "rss_closed_bytes", json_integer((json_int_t)b->rss_closed));
    if (!root || !b->streams)
        return root;
    json_object_set_new(root, "open", window_json(&b->open));
    json_object_set_new(root, "open_streams", json_integer(b->max_open));
    json_object_set_new(root, "rss_before_bytes", json_integer((json_int_t)b->rss_before));
    json_object_set_new(root, "rss_open_bytes", json_integer((json_int_t)b->rss_open));
    json_object_set_new(root, "rss_end_bytes", json_integer((json_int_t)b->rss_end));
    return root;
}

static int write_svg(const struct rpc_bench *b, struct err *e)
{
    double *columns = alloc_array(3 * b->n_trace, sizeof *columns);
    if (!columns)
        return err_set(e, -ENOMEM, "out of memory");
    double *at = columns, *cpu = columns + b->n_trace, *rss = columns + 2 * b->n_trace;
    for (size_t i = 0; i != b->n_trace; i++) {
        at[i] = b->trace[i].at;
        cpu[i] = b->trace[i].cpu_percent;
        rss[i] = b->trace[i].rss_mb;
    }
    const struct plot_series series[] = {{"coordinator", at, cpu, b->n_trace},
                                         {"coordinator", at, rss, b->n_trace}};
    const struct plot panels[] = {
        {"processor time", "seconds", "percent of a core", false, false, 0, NULL, &series[0], 1},
        {"memory", "seconds", "MB resident", false, false, target_open_bytes / 1e6, "target",
         &series[1], 1},
    };
    struct buf out = {0};
    int r = plot_svg(panels, ARRAY_LEN(panels), &out);
    r = r < 0 ? err_set(e, r, "%s: %s", b->svg, err_name(r))
              : bench_write(b->svg, out.data, out.size, e);
    buf_deinit(&out);
    free(columns);
    return r;
}

static int run(struct rpc_bench *b, struct err *e)
{
    b->trace = alloc_array(MAX_TRACE, sizeof *b->trace);
    if (!b->trace)
        return err_set(e, -ENOMEM, "out of memory");
    int r = start(b, e);
    if (r == 0)
        r = measure(b, e);
    if (r < 0)
        return r;
    print_report(b, b->json && strcmp(b->json, "-") == 0 ? stderr : stdout);
    if (b->json)
        r = bench_write_json(b->json, to_json(b), e);
    if (r == 0 && b->svg)
        r = write_svg(b, e);
    return r;
}

int bench_rpc(int argc, char **argv)
{
    struct rpc_bench b;
    struct err e = ERR_INIT;
    int code = parse_args(&b, argc, argv);
    if (code < 0)
        code = run(&b, &e) < 0 ? cli_failed(verb, &e) : EXIT_OK;
    cluster_stop(&b.cluster);
    dataset_deinit(&b.prompts);
    free(b.trace);
    return code;
}
