/* cmd_convert.c: `glmd convert`: published checkpoint -> model directory (model/convert.h), with
 * progress. Runs in the calling thread; SIGINT and SIGTERM stop it between two chunks. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/scheme_options.h"
#include "model/convert.h"

static const char usage[] =
    "usage: glmd convert --from DIR --out DIR [OPTIONS]\n"
    "\n"
    "Reads a checkpoint as published (SwissArmyTransformer: `latest` and the iteration's\n"
    "mp_rank_XX_model_states.pt, any number of shards, FP16 or already INT4/INT8) and writes a\n"
    "model directory that serves any tensor-parallel degree. Nothing in the checkpoint is "
    "executed.\n"
    "Interrupted, it goes on where it stopped when the same command is run again.\n"
    "\n"
    "  --from DIR         folder with `latest`\n"
    "  --out DIR          new or empty folder\n"
    "  --weights W        int4, int8 or fp16 (default: int4; quantized checkpoints stay as they\n"
    "                     are)\n"
    "  --group G          scales: row (default; equals the published quantizer on an unsplit\n"
    "                     checkpoint), shard or shard:N (equals it on N shards; default: as many\n"
    "                     as the checkpoint has), or 32, 64, 128 columns (better quality)\n"
    "  --head W           what a rank multiplies the output head in: fp16 (default) or int8, one\n"
    "                     scale per row: less to read in every step; the files stay the same\n"
    "  --tokenizer FILE   SentencePiece model (default: tokenizer.model beside `latest`)\n"
    "  --config FILE      sizes and special tokens as JSON (default: config.json beside `latest`;\n"
    "                     GLM-130B needs none)\n"
    "  --max-file-bytes N  of tensors in one output file (default 2147483648)\n"
    "  --threads N        for quantizing (default: the CPUs, at most 8)\n"
    "  -h, --help\n";

enum { REPORT_TERMINAL_MS = 200, REPORT_LINES_MS = 10000, MAX_THREADS = 64 };

static volatile sig_atomic_t stop_signal;

static void on_signal(int signal_number)
{
    stop_signal = signal_number;
}

struct display {
    bool terminal;
    int64_t start_ns, last_ns;
    size_t line_bytes; /* of the line on the terminal that the next one overwrites */
};

static void clear_line(struct display *d)
{
    if (d->line_bytes)
        fprintf(stderr, "\r%*s\r", (int)d->line_bytes, "");
    d->line_bytes = 0;
}

static void print_progress(struct display *d, const struct convert_progress *p, int64_t now_ns)
{
    double seconds = (double)(now_ns - d->start_ns) / 1e9;
    double rate = (double)(p->done_bytes - p->kept_bytes) / (seconds > 0 ? seconds : 1);
    double left = rate > 0 ? (double)(p->total_bytes - p->done_bytes) / rate : 0;
    char line[160];
    snprintf(line, sizeof line, "%5.1f %%  %.2f of %.2f GB  %.2f GB/s  %um%02us left",
             p->total_bytes ? 100.0 * (double)p->done_bytes / (double)p->total_bytes : 100.0,
             (double)p->done_bytes / 1e9, (double)p->total_bytes / 1e9, rate / 1e9,
             (unsigned)(left / 60), (unsigned)left % 60);
    if (!d->terminal) {
        fprintf(stderr, "%s\n", line);
        return;
    }
    clear_line(d);
    d->line_bytes = strlen(line);
    fprintf(stderr, "%s", line);
}

static int on_progress(void *context, const struct convert_progress *p)
{
    struct display *d = context;
    int64_t now_ns = clock_now_ns();
    int64_t interval_ms = d->terminal ? REPORT_TERMINAL_MS : REPORT_LINES_MS;
    if (now_ns - d->last_ns >= interval_ms * NSEC_PER_MSEC) {
        print_progress(d, p, now_ns);
        d->last_ns = now_ns;
    }
    return stop_signal != 0;
}

static void on_warning(void *context, const char *text)
{
    clear_line(context);
    log_warn("%s", text);
}

static uint32_t default_threads(void)
{
    uint32_t n = cpus_usable();
    return MIN(n, 8u);
}

/* -1: go on; otherwise the exit code. */
static int parse_options(int argc, char **argv, struct convert_options *o)
{
    uint32_t n_threads = default_threads();
    const struct cli_option own[] = {
        CLI_TEXT("from", &o->from),
        CLI_TEXT("out", &o->out),
        CLI_TEXT("tokenizer", &o->tokenizer),
        CLI_TEXT("config", &o->config),
        CLI_U64("max-file-bytes", &o->max_file_bytes, 1, INT64_MAX),
        CLI_U32("threads", &n_threads, 1, MAX_THREADS),
    };
    struct cli_option scheme[SCHEME_N_OPTIONS];
    const struct cli_options tables[] = {CLI_OWN(own), scheme_options(&o->scheme, scheme)};
    scheme[SCHEME_WEIGHTS].given = &o->has_weights;
    scheme[SCHEME_GROUP].given = &o->has_group;
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    o->n_threads = n_threads;
    if (optind < argc)
        return cli_usage_error(argv[0], "unexpected argument \"%s\"", argv[optind]);
    if (!o->from || !o->out)
        return cli_usage_error(argv[0], "expected --from DIR and --out DIR");
    return -1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL); /* a second one ends the program at once */
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a failed write, not the end */
}

static void print_result(const struct convert_options *o, const struct convert_result *r,
                         double seconds)
{
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(&r->scheme, scheme);
    if (r->was_complete) {
        printf("%s: was complete already\n", o->out);
        return;
    }
    double fresh = (double)(r->source_bytes - r->kept_bytes);
    printf("%s: %s, %s, from %u shards of iteration %s\n", o->out, r->arch.name, scheme,
           r->n_shards, r->iteration);
    printf("%.1f MB of tensors read in %.1f s, %.1f MB/s", fresh / 1e6, seconds,
           fresh / 1e6 / (seconds > 0 ? seconds : 1));
    if (r->kept_bytes)
        printf("; %.1f MB were there already", (double)r->kept_bytes / 1e6);
    puts("");
}

int cmd_convert(int argc, char **argv)
{
    struct display display = {.terminal = isatty(STDERR_FILENO)};
    struct convert_options o = {.max_file_bytes = CONVERT_DEFAULT_FILE_BYTES,
                                .on_progress = on_progress,
                                .on_warning = on_warning,
                                .context = &display};
    int code = parse_options(argc, argv, &o);
    if (code >= 0)
        return code;
    catch_signals();
    struct convert_result result;
    struct err e = ERR_INIT;
    display.start_ns = display.last_ns = clock_now_ns();
    int r = convert_run(&o, &result, &e);
    clear_line(&display);
    if (r < 0) {
        log_error("%s", e.message);
        return EXIT_FAILED;
    }
    print_result(&o, &result, (double)(clock_now_ns() - display.start_ns) / 1e9);
    return EXIT_OK;
}
