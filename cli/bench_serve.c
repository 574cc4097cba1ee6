/* bench_serve.c: `glmd bench serve`: load on a running coordinator, and what its users see.
 *
 *   TTFT  time to first token: from sending the request to the first message with a token
 *   TPOT  time per output token: (last - first message) / (tokens - 1), per request
 *   ITL   inter-token latency: between neighbouring messages of a stream
 *   E2E   from sending the request to its end
 *
 * Goodput counts the requests that meet every objective of --goodput.
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_dataset.h"
#include "cli/bench_load.h"
#include "cli/cli.h"
#include "cli/common.h"

static const char verb[] = "bench serve";

static const char usage[] =
    "usage: glmd bench serve [OPTIONS]\n"
    "\n"
    "Sends requests to a running coordinator and measures what its users see.\n"
    "\n"
    "      --num-prompts N          requests; default 100\n"
    "      --request-rate R         requests per second, Poisson arrivals; default inf: all at "
    "once\n"
    "      --max-concurrency N      at most N open at a time\n"
    "      --dataset random|FILE    FILE: JSON lines {\"prompt\": TEXT, \"max_tokens\": N}, used "
    "in\n"
    "                               order and over again; default random\n"
    "      --random-input-len N     tokens of a random prompt; default 128\n"
    "      --random-output-len N    tokens of its answer; default 64 (also where a line of FILE "
    "has\n"
    "                               no max_tokens)\n"
    "      --random-range-ratio R   lengths spread evenly over [1 - R, 1 + R] times that; default "
    "0\n"
    "      --seed N                 of prompts, lengths and arrivals; default 0\n"
    "      --sample                 sample as the model's defaults say (default: greedy)\n"
    "      --ignore-end, --stop-at-end  whether end tokens end an answer; random prompts ignore\n"
    "                               them unless told otherwise\n"
    "      --goodput KEY:MS ...     objectives: ttft, tpot, e2e; as --goodput ttft:500 tpot:80\n"
    "      --num-warmups N          requests before the measurement; default 0\n"
    "      --json FILE              results as JSON (- = standard output)\n"
    "      --svg FILE               plots\n"
    "  -h, --help\n";

enum { DISTRIBUTION_POINTS = 200, RATE_POINTS = 100 };

struct objectives { /* ms; 0 = none */
    double ttft, tpot, e2e;
};

struct serve {
    /* options */
    struct client_target target;
    struct dataset_options dataset;
    double rate;
    uint32_t max_concurrency, warmups;
    bool sample, ignore_end, stop_at_end;
    struct objectives objectives;
    const char *json, *svg;
    int argc; /* borrowed: the command line, while it is read */
    char **argv;
    /* owned */
    struct dataset prompts;
    struct load_result load;
    struct bench_samples ttft, tpot, e2e; /* ns */
    /* results */
    uint32_t n_ok, n_failed, n_good;
    uint64_t n_input, n_output;
    double seconds;
};

/* ---- options ---- */

static int take_objective(struct objectives *o, const char *text)
{
    static const struct {
        const char *name;
        size_t offset;
    } keys[] = {{"ttft:", offsetof(struct objectives, ttft)},
                {"tpot:", offsetof(struct objectives, tpot)},
                {"e2e:", offsetof(struct objectives, e2e)},
                {"e2el:", offsetof(struct objectives, e2e)}};
    for (size_t i = 0; i != ARRAY_LEN(keys); i++) {
        size_t n = strlen(keys[i].name);
        double *ms = (double *)((char *)o + keys[i].offset);
        if (strncmp(text, keys[i].name, n) == 0 && cli_parse_double(text + n, 0.001, 1e9, ms) == 0)
            return 0;
    }
    return cli_usage_error(verb, "--goodput %s: expected ttft:MS, tpot:MS or e2e:MS", text);
}

/* "ttft:500"; more of them may follow as words of their own. */
static int take_goodput(void *context, const char *name, const char *text)
{
    (void)name;
    struct serve *s = context;
    int code = take_objective(&s->objectives, text);
    while (code == 0 && optind < s->argc && strchr(s->argv[optind], ':') &&
           s->argv[optind][0] != '-')
        code = take_objective(&s->objectives, s->argv[optind++]);
    return code;
}

static int take_rate(void *context, const char *name, const char *text)
{
    struct serve *s = context;
    s->rate = 0;
    if (strcmp(text, "inf") == 0)
        return 0;
    return cli_option_double(name, "--request-rate", text, 1e-6, 1e6, &s->rate);
}

static int take_dataset(void *context, const char *name, const char *text)
{
    (void)name;
    struct serve *s = context;
    s->dataset.file = strcmp(text, "random") == 0 ? NULL : text;
    return 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(void *state, int argc, char **argv)
{
    struct serve *s = state;
    struct dataset_options *d = &s->dataset;
    const struct cli_option own[] = {
        CLI_U32("num-prompts", &d->n, 1, 1000000),
        CLI_TAKE("request-rate", take_rate, s),
        CLI_U32("max-concurrency", &s->max_concurrency, 1, 65536),
        CLI_TAKE("dataset", take_dataset, s),
        CLI_U32("random-input-len", &d->input_len, 1, 1048576),
        CLI_U32("random-output-len", &d->output_len, 1, 1048576),
        CLI_DOUBLE("random-range-ratio", &d->range, 0, 1),
        CLI_U32("seed", &d->seed, 0, UINT32_MAX),
        CLI_FLAG("sample", &s->sample),
        CLI_FLAG("ignore-end", &s->ignore_end),
        CLI_FLAG("stop-at-end", &s->stop_at_end),
        CLI_TAKE("goodput", take_goodput, s),
        CLI_U32("num-warmups", &s->warmups, 0, 10000),
        CLI_TEXT("json", &s->json),
        CLI_TEXT("svg", &s->svg),
    };
    client_target_init(&s->target, verb);
    *d = (struct dataset_options){.n = 100, .input_len = 128, .output_len = 64};
    s->argc = argc;
    s->argv = argv;
    int code = client_parse(argc, argv, usage, own, ARRAY_LEN(own), &s->target);
    if (code >= 0)
        return code;
    if (optind != argc)
        return cli_usage_error(verb, "%s: expected options only", argv[optind]);
    if (s->ignore_end && s->stop_at_end)
        return cli_usage_error(verb, "--ignore-end and --stop-at-end exclude each other");
    code = dataset_make(&s->dataset, &s->target, &s->prompts); /* says itself what failed */
    return code ? code : -1;
}

/* ---- evaluating ---- */

static bool meets(double ns, double objective_ms)
{
    return objective_ms == 0 || ns <= objective_ms * 1e6;
}

/* Latencies of the requests that ended well. */
static int evaluate(struct serve *s)
{
    int r = 0;
    s->seconds = (double)(s->load.end_ns - s->load.begin_ns) / (double)NSEC_PER_SEC;
    for (uint32_t i = 0; i != s->prompts.n && r == 0; i++) {
        const struct load_outcome *o = &s->load.outcomes[i];
        s->n_failed += o->begun && !o->ok;
        if (!o->ok)
            continue;
        double e2e = (double)(o->end_ns - o->begin_ns), ttft = NAN, tpot = NAN;
        s->n_ok++;
        s->n_input += o->n_prompt;
        s->n_output += o->n_output;
        r = bench_samples_add(&s->e2e, e2e);
        if (o->first_ns && r == 0) {
            ttft = (double)(o->first_ns - o->begin_ns);
            r = bench_samples_add(&s->ttft, ttft);
        }
        if (o->n_output > 1 && r == 0) {
            tpot = (double)(o->last_ns - o->first_ns) / (o->n_output - 1);
            r = bench_samples_add(&s->tpot, tpot);
        }
        s->n_good += meets(e2e, s->objectives.e2e) && meets(ttft, s->objectives.ttft) &&
                     (o->n_output <= 1 || meets(tpot, s->objectives.tpot));
    }
    return r;
}

static bool has_objectives(const struct serve *s)
{
    return s->objectives.ttft > 0 || s->objectives.tpot > 0 || s->objectives.e2e > 0;
}

/* ---- output ---- */

static void print_latency(FILE *out, const char *name, struct bench_samples *samples)
{
    struct bench_summary r = bench_summarize(samples);
    if (r.n)
        fprintf(out, "%-6s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, r.mean / 1e6,
                r.median / 1e6, r.p90 / 1e6, r.p99 / 1e6, r.max / 1e6);
    else
        fprintf(out, "%-6s %10s\n", name, "-");
}

static void print_report(struct serve *s, FILE *out)
{
    fprintf(out,
            "requests            %u ended well, %u failed, at most %u open\n"
            "time                %.2f s\n"
            "tokens              %llu in, %llu out\n"
            "requests/s          %.2f\n"
            "output tokens/s     %.2f\n"
            "all tokens/s        %.2f\n",
            s->n_ok, s->n_failed, s->load.max_open, s->seconds, (unsigned long long)s->n_input,
            (unsigned long long)s->n_output, s->n_ok / s->seconds, (double)s->n_output / s->seconds,
            (double)(s->n_input + s->n_output) / s->seconds);
    if (has_objectives(s))
        fprintf(out, "goodput             %.2f requests/s (%u of %u meet the objectives)\n",
                s->n_good / s->seconds, s->n_good, s->n_ok);
    fprintf(out, "\n%-6s %10s %10s %10s %10s %10s\n", "ms", "mean", "median", "p90", "p99", "max");
    print_latency(out, "TTFT", &s->ttft);
    print_latency(out, "TPOT", &s->tpot);
    print_latency(out, "ITL", &s->load.gaps);
    print_latency(out, "E2E", &s->e2e);
    for (uint32_t i = 0; i != s->load.n_errors; i++)
        fprintf(out, "\n%u failed: %s\n", s->load.errors[i].n, s->load.errors[i].message);
}

static void add_latency(json_t *root, const char *name, struct bench_samples *samples)
{
    struct bench_summary r = bench_summarize(samples);
    const struct {
        const char *stat;
        double value;
    } stats[] = {{"mean", r.mean}, {"median", r.median}, {"std", r.std},
                 {"p90", r.p90},   {"p95", r.p95},       {"p99", r.p99}};
    for (size_t i = 0; i != ARRAY_LEN(stats); i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_%s_ms", stats[i].stat, name);
        json_object_set_new(root, key, json_real(stats[i].value / 1e6));
    }
}

static json_t *to_json(struct serve *s)
{
    json_t *errors = json_object();
    for (uint32_t i = 0; i != s->load.n_errors; i++)
        json_object_set_new(errors, s->load.errors[i].message, json_integer(s->load.errors[i].n));
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:I, s:o, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o}", "bench",
        "serve", "version", GLMD_VERSION, "dataset", s->dataset.file ? s->dataset.file : "random",
        "num_prompts", (json_int_t)s->prompts.n, "request_rate",
        s->rate > 0 ? json_real(s->rate) : json_string("inf"), "max_concurrency",
        (json_int_t)s->max_concurrency, "seed", (json_int_t)s->dataset.seed, "duration", s->seconds,
        "completed", (json_int_t)s->n_ok, "failed", (json_int_t)s->n_failed, "total_input_tokens",
        (json_int_t)s->n_input, "total_output_tokens", (json_int_t)s->n_output,
        "request_throughput", s->n_ok / s->seconds, "output_throughput",
        (double)s->n_output / s->seconds, "total_token_throughput",
        (double)(s->n_input + s->n_output) / s->seconds, "errors", errors);
    if (!root)
        return NULL;
    json_object_set_new(root, "max_concurrent_requests", json_integer(s->load.max_open));
    if (has_objectives(s))
        json_object_set_new(root, "request_goodput", json_real(s->n_good / s->seconds));
    add_latency(root, "ttft", &s->ttft);
    add_latency(root, "tpot", &s->tpot);
    add_latency(root, "itl", &s->load.gaps);
    add_latency(root, "e2e", &s->e2e);
    return root;
}

/* Points of one distribution. */
struct curve {
    double x[DISTRIBUTION_POINTS], y[DISTRIBUTION_POINTS];
    size_t n;
};

static void set_curve(struct curve *c, struct bench_samples *samples)
{
    bench_samples_sort(samples);
    c->n = plot_distribution(samples, c->x, c->y, DISTRIBUTION_POINTS);
    for (size_t i = 0; i != c->n; i++)
        c->x[i] /= 1e6;
}

/* Tokens per second over time, in equal pieces. */
static void set_rate(struct curve *c, const struct serve *s)
{
    double piece = s->seconds / RATE_POINTS;
    c->n = RATE_POINTS;
    for (size_t i = 0; i != RATE_POINTS; i++) {
        c->x[i] = ((double)i + 0.5) * piece;
        c->y[i] = 0;
    }
    for (size_t i = 0; i != s->load.token_times.n; i++) {
        size_t at = (size_t)(s->load.token_times.values[i] / 1e9 / piece);
        c->y[MIN(at, (size_t)RATE_POINTS - 1)] += 1 / piece;
    }
}

static int write_svg(struct serve *s, struct err *e)
{
    struct curve curves[5];
    set_curve(&curves[0], &s->ttft);
    set_curve(&curves[1], &s->tpot);
    set_curve(&curves[2], &s->load.gaps);
    set_curve(&curves[3], &s->e2e);
    set_rate(&curves[4], s);
    static const char *const names[] = {"TTFT", "TPOT", "ITL", "E2E", "output"};
    struct plot_series series[5];
    for (size_t i = 0; i != 5; i++)
        series[i] = (struct plot_series){names[i], curves[i].x, curves[i].y, curves[i].n};
    const struct plot panels[] = {
        {"time to first token", "ms", "share of requests", false, false, 0, NULL, &series[0], 1},
        {"between tokens", "ms", "share", false, false, 0, NULL, &series[1], 2},
        {"whole requests", "ms", "share of requests", false, false, 0, NULL, &series[3], 1},
        {"throughput", "seconds", "tokens/s", false, false, (double)s->n_output / s->seconds,
         "mean", &series[4], 1},
    };
    int r = bench_write_plot(s->svg, panels, ARRAY_LEN(panels), e);
    return r;
}

/* ---- running ---- */

static int run_load(const struct serve *s, uint32_t n, double rate, struct load_result *ret,
                    struct err *e)
{
    const struct load_config config = {.target = &s->target,
                                       .prompts = s->prompts.prompts,
                                       .n_prompts = n,
                                       .rate = rate,
                                       .max_concurrency = s->max_concurrency,
                                       .seed = s->dataset.seed,
                                       .greedy = !s->sample,
                                       .ignore_end =
                                           s->ignore_end || (!s->dataset.file && !s->stop_at_end)};
    return load_run(&config, ret, e);
}

static int run(void *state, struct err *e)
{
    struct serve *s = state;
    struct load_result warm = {0};
    int r = 0;
    if (s->warmups)
        r = run_load(s, MIN(s->warmups, s->prompts.n), 0, &warm, e);
    load_result_deinit(&warm);
    if (r == 0)
        r = run_load(s, s->prompts.n, s->rate, &s->load, e);
    if (r == 0 && evaluate(s) < 0)
        r = err_set(e, -ENOMEM, "out of memory");
    if (r < 0)
        return r;
    print_report(s, bench_report_file(s->json));
    if (s->json)
        r = bench_write_json(s->json, to_json(s), e);
    if (r == 0 && s->svg)
        r = write_svg(s, e);
    if (r == 0 && s->load.interrupted)
        r = err_set(e, -ECANCELED, "interrupted");
    else if (r == 0 && !s->n_ok)
        r = err_set(e, -EIO, "no request ended well");
    return r;
}

static void tear_down(void *state)
{
    struct serve *s = state;
    dataset_deinit(&s->prompts);
    load_result_deinit(&s->load);
    bench_samples_deinit(&s->ttft);
    bench_samples_deinit(&s->tpot);
    bench_samples_deinit(&s->e2e);
}

int bench_serve(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct serve), parse_args, run, tear_down};
    return bench_main(&v, argc, argv);
}
