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
#include "cli/bench_rpc.h"
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

struct snapshot {
    int64_t at_ns, cpu_ns, loop_ns; /* loop_ns: 0 where it is not known */
    uint64_t rss, messages, tokens;
    struct cluster_numbers own;
};

struct rpc_bench {
    /* options */
    const char *like, *program, *json, *svg;
    uint32_t input_len, output_len;
    double seconds;
    const char *sets[MAX_SETS + 1];
    size_t n_sets;
    /* owned */
    struct cluster cluster;
    struct dataset prompts; /* result.trace: [MAX_TRACE] */
    /* state */
    struct client_target target;
    int64_t begin_ns;
    struct snapshot last_tick; /* of the trace */
    /* of the phase that runs */
    int64_t from_ns, to_ns; /* of its window */
    bool has_first, has_last;
    struct snapshot first, last;
    struct rpc_result result;
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
static int parse_args(void *state, int argc, char **argv)
{
    struct rpc_bench *b = state;
    *b = (struct rpc_bench){.result.ranks = 2,
                            .result.batch = 64,
                            .result.best_of = 16,
                            .result.streams = 1000,
                            .input_len = 16,
                            .output_len = 1800,
                            .result.step_us = 5000,
                            .result.decode_us = 100,
                            .seconds = 10,
                            .cluster = CLUSTER_INIT};
    const struct cli_option own[] = {
        CLI_TEXT("like", &b->like),
        CLI_U32("ranks", &b->result.ranks, 1, 64),
        CLI_U32("batch", &b->result.batch, 2, 1024),
        CLI_U32("best-of", &b->result.best_of, 2, 16),
        CLI_U32("streams", &b->result.streams, 0, 1024),
        CLI_DOUBLE("step-us", &b->result.step_us, 1, 1e7),
        CLI_DOUBLE("decode-us", &b->result.decode_us, 0, 1e6),
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
    if (b->result.ranks & (b->result.ranks - 1))
        return cli_usage_error(verb, "--ranks %u: expected a power of two", b->result.ranks);
    if (b->result.batch % b->result.best_of)
        return cli_usage_error(verb, "--batch %u: expected a multiple of --best-of %u",
                               b->result.batch, b->result.best_of);
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
    if (b->last_tick.at_ns && elapsed > 0 && b->result.n_trace != MAX_TRACE)
        b->result.trace[b->result.n_trace++] = (struct rpc_trace_point){
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
static struct rpc_window window_between(const struct snapshot *a, const struct snapshot *z,
                                        double idle_share)
{
    double cpu_us = (double)(z->cpu_ns - a->cpu_ns) / 1e3;
    double idle_us = idle_share * (double)(z->at_ns - a->at_ns) / 1e3;
    struct rpc_window w = {.seconds = (double)(z->at_ns - a->at_ns) / 1e9,
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
static int run_phase(struct rpc_bench *b, uint32_t n, uint32_t best_of, struct rpc_window *ret,
                     struct err *e)
{
    double ramp = MIN(1 + n / 1000.0, 0.25 * b->seconds + n / 1000.0);
    struct load_result load = {0};
    struct dataset d = {0};
    int32_t ids[256];
    for (uint32_t i = 0; i != ARRAY_LEN(ids); i++)
        ids[i] = b->prompts.tokens[i % b->prompts.prompts[0].n_tokens];
    /* streams that come to an end are followed by others */
    double lives = b->seconds * 1e6 / (b->result.step_us * b->output_len);
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
    b->result.max_open = load.max_open;
    if (r == 0 && load.n_errors)
        r = err_set(e, -EIO, "%u requests failed: %s", load.errors[0].n, load.errors[0].message);
    else if (r == 0 && load.interrupted)
        r = err_set(e, -ECANCELED, "interrupted");
    else if (r == 0 && !b->has_last)
        r = err_set(e, -EIO, "the load ended before its time");
    if (r == 0)
        *ret = window_between(&b->first, &b->last, b->result.idle_percent / 100);
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
    uint32_t slots = MAX(b->result.streams, b->result.batch);
    snprintf(device, sizeof device, "fake:step_us=%.3f:decode_us=%.3f", b->result.step_us,
             b->result.decode_us);
    snprintf(sets[0], sizeof sets[0], "coordinator.limits.max_connections=%u", slots + 256);
    snprintf(sets[1], sizeof sets[1], "coordinator.limits.max_queue=%u", slots + 256);
    for (size_t i = 0; i != 2; i++)
        b->sets[b->n_sets++] = sets[i];
    const struct cluster_config config = {.like = b->like,
                                          .program = b->program,
                                          .device = device,
                                          .ranks = b->result.ranks,
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
    b->result.rss_before = s.rss;
    if (r < 0)
        return err_set(e, r, "the coordinator: %s", err_name(r));
    r = run_phase(b, b->result.streams, 1, &b->result.open, e);
    b->result.rss_open = b->first.rss;
    b->result.rss_end = b->last.rss;
    return r;
}

static void solve(struct rpc_bench *b)
{
    double messages = b->result.streamed.messages_per_step - b->result.silent.messages_per_step;
    b->result.step_cost_us = b->result.silent.cpu_us_per_step;
    if (messages > 0)
        b->result.message_cost_us =
            (b->result.streamed.cpu_us_per_step - b->result.step_cost_us) / messages;
}

static int measure(struct rpc_bench *b, struct err *e)
{
    struct snapshot s;
    b->begin_ns = clock_now_ns();
    int r = look(b, NULL, &s);
    b->result.rss_start = s.rss;
    if (r < 0)
        return err_set(e, r, "the coordinator: %s", err_name(r));
    r = run_idle(b, &b->result.idle_percent, e);
    if (r == 0)
        r = run_phase(b, b->result.batch, 1, &b->result.streamed, e);
    if (r == 0)
        r = run_phase(b, b->result.batch / b->result.best_of, b->result.best_of, &b->result.silent,
                      e);
    if (r == 0 && b->result.streams)
        r = measure_open(b, e);
    if (r == 0)
        r = run_idle(b, &b->result.idle_after_percent, e);
    b->result.rss_closed = b->last_tick.rss;
    if (r == 0)
        solve(b);
    return r;
}

/* ---- the command ---- */

static int run(void *state, struct err *e)
{
    struct rpc_bench *b = state;
    b->result.trace = alloc_array(MAX_TRACE, sizeof *b->result.trace);
    if (!b->result.trace)
        return err_set(e, -ENOMEM, "out of memory");
    int r = start(b, e);
    if (r == 0)
        r = measure(b, e);
    if (r < 0)
        return r;
    rpc_report_print(&b->result, bench_report_file(b->json));
    if (b->json)
        r = bench_write_json(b->json, rpc_report_json(&b->result), e);
    if (r == 0 && b->svg)
        r = rpc_report_plot(&b->result, b->svg, e);
    return r;
}

static void tear_down(void *state)
{
    struct rpc_bench *b = state;
    cluster_stop(&b->cluster);
    dataset_deinit(&b->prompts);
    free(b->result.trace);
}

int bench_rpc(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct rpc_bench), parse_args, run, tear_down};
    return bench_main(&v, argc, argv);
}
