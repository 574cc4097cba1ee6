/* main.c: glmd-sim: whole clusters on virtual time; see docs/simulator.md. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "model/tokenizer/tokenizer.h"
#include "sim.h"

enum { WATCHDOG_SECONDS = 120 }; /* sanitizers are slow, and long runs take a second */

static const char usage[] =
    "glmd-sim: a whole cluster in one thread on virtual time\n\n"
    "usage: glmd-sim [--model DIR] --seed N [--trace]\n"
    "       glmd-sim [--model DIR] --seeds A..B [--twice N]\n\n"
    "  --seed N      one run\n"
    "  --seeds A..B  runs of the seeds A to B, B included; ends at the first that fails\n"
    "  --file FILE   runs of the seeds in a file: one a line, with its generator; # comments\n"
    "  --trace       everything that happens, on standard output\n"
    "  --twice N     run every N-th seed twice and compare the traces (default 20; 0: never)\n"
    "  --generator N of the requests: 3, or 1 and 2 for older seeds (default 3)\n"
    "  --model DIR   tokenizer and architecture (default deploy/demo/model)\n";

struct arguments {
    uint64_t first, last;
    const char *file, *model;
    bool have_seeds, trace;
    uint64_t twice, generator;
};

struct totals {
    uint64_t n_seeds;
    struct sim_result sum;
};

static char abort_text[96]; /* made before each run: a signal handler may only write it */

/* An assert of the programs under test, or the watchdog: say which seed it was. */
static void on_abort(int signal_number)
{
    ssize_t written = write(STDERR_FILENO, abort_text, sizeof abort_text - 1);
    (void)written;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* A run that takes so much CPU goes round in circles. */
static void start_watchdog(void)
{
    const struct itimerval limit = {.it_value = {.tv_sec = WATCHDOG_SECONDS}};
    setitimer(ITIMER_VIRTUAL, &limit, NULL);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool parse_number(const char *text, const char *end_text, uint64_t *ret)
{
    char *end;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && !errno &&
           strncmp(end, end_text, strlen(end_text)) == 0;
}

static bool is_generator(uint64_t n)
{
    return n >= SIM_GENERATOR_FIRST && n <= SIM_GENERATOR;
}

static bool parse_range(const char *text, struct arguments *a)
{
    const char *dots = strstr(text, "..");
    a->have_seeds = dots && parse_number(text, "..", &a->first) &&
                    parse_number(dots + 2, "", &a->last) && a->first <= a->last;
    return a->have_seeds;
}

static bool parse(int argc, char **argv, struct arguments *a)
{
    *a = (struct arguments){.model = "deploy/demo/model", .twice = 20, .generator = SIM_GENERATOR};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(name, "--trace") == 0) {
            a->trace = true;
            continue;
        }
        bool ok = value != NULL;
        if (ok && strcmp(name, "--seed") == 0) {
            ok = parse_number(value, "", &a->first);
            a->last = a->first;
            a->have_seeds = ok;
        } else if (ok && strcmp(name, "--seeds") == 0) {
            ok = parse_range(value, a);
        } else if (ok && strcmp(name, "--file") == 0) {
            a->file = value;
        } else if (ok && strcmp(name, "--twice") == 0) {
            ok = parse_number(value, "", &a->twice);
        } else if (ok && strcmp(name, "--generator") == 0) {
            ok = parse_number(value, "", &a->generator) && is_generator(a->generator);
        } else if (ok && strcmp(name, "--model") == 0) {
            a->model = value;
        } else {
            ok = false;
        }
        if (!ok) {
            fprintf(stderr, "glmd-sim: %s: unknown option, or not its value\n\n%s", name, usage);
            return false;
        }
        i++;
    }
    if (!a->have_seeds && !a->file)
        fputs(usage, stderr);
    return a->have_seeds || a->file;
}

static void add(struct totals *t, const struct sim_result *r)
{
    t->n_seeds++;
    t->sum.virtual_seconds += r->virtual_seconds;
    t->sum.n_events += r->n_events;
    t->sum.n_requests += r->n_requests;
    t->sum.n_ok += r->n_ok;
    t->sum.n_tokens += r->n_tokens;
    t->sum.n_steps += r->n_steps;
    t->sum.n_faults += r->n_faults;
    t->sum.n_epochs += r->n_epochs;
    t->sum.n_hits += r->n_hits;
    t->sum.n_preempted += r->n_preempted;
    t->sum.n_resumed += r->n_resumed;
}

static bool run_seed(const struct arguments *a, const struct sim_model *m, uint64_t seed,
                     uint64_t generator, struct totals *t)
{
    struct sim_result first, second;
    snprintf(abort_text, sizeof abort_text,
             "seed %" PRIu64 " aborted; replay: --seed %" PRIu64 " --generator %" PRIu64
             " --trace\n",
             seed, seed, generator);
    start_watchdog();
    sim_run(seed, (uint32_t)generator, m, a->trace ? stdout : NULL, &first);
    add(t, &first);
    if (a->trace || a->twice == 0 || seed % a->twice)
        return true;
    start_watchdog();
    sim_run(seed, (uint32_t)generator, m, NULL, &second);
    if (first.trace_hash == second.trace_hash)
        return true;
    fprintf(stderr, "seed %" PRIu64 ": two runs have different traces\n", seed);
    return false;
}

static bool run_file(const struct arguments *a, const struct sim_model *m, struct totals *t)
{
    FILE *f = fopen(a->file, "re");
    if (!f) {
        fprintf(stderr, "glmd-sim: %s: %s\n", a->file, err_name(-errno));
        return false;
    }
    char line[512];
    bool ok = true;
    while (ok && fgets(line, sizeof line, f)) {
        uint64_t seed, generator;
        if (line[0] == '#' || line[0] == '\n')
            continue;
        ok =
            sscanf(line, "%" SCNu64 " %" SCNu64, &seed, &generator) == 2 && is_generator(generator);
        if (!ok)
            fprintf(stderr, "glmd-sim: %s: expected a seed and its generator, found %s", a->file,
                    line);
        ok = ok && run_seed(a, m, seed, generator, t);
    }
    fclose(f);
    return ok;
}

static bool run_all(const struct arguments *a, const struct sim_model *m, struct totals *t)
{
    if (a->file && !run_file(a, m, t))
        return false;
    for (uint64_t seed = a->first; a->have_seeds && seed <= a->last; seed++) {
        if (!run_seed(a, m, seed, a->generator, t))
            return false;
    }
    return true;
}

/* The same sizes and tokens; nobody reads its weights. */
static int make_causal(struct sim_model *m, struct err *e)
{
    struct arch a = *model_dir_arch(m->dir);
    a.context = ARCH_CONTEXT_CAUSAL;
    return model_dir_synthetic(&a, model_dir_scheme(m->dir), 1, &m->causal, e);
}

int main(int argc, char **argv)
{
    struct arguments a;
    struct totals t = {0};
    struct sim_model m = {0};
    struct err e = ERR_INIT;
    if (!parse(argc, argv, &a))
        return 2;
    signal(SIGABRT, on_abort);
    signal(SIGVTALRM, on_abort);
    int r = model_dir_open(a.model, &m.dir, &e);
    if (r == 0)
        r = tokenizer_open(a.model, model_dir_arch(m.dir), &m.tokenizer, &e);
    if (r == 0)
        r = make_causal(&m, &e);
    bool ok = r == 0;
    if (!ok)
        fprintf(stderr, "glmd-sim: %s: %s\n", a.model, e.message);
    double start = cpu_seconds();
    ok = ok && run_all(&a, &m, &t);
    double used = cpu_seconds() - start;
    if (ok)
        printf("%" PRIu64 " seeds: %" PRIu64 " requests, %" PRIu64 " answered, %" PRIu64
               " tokens, %" PRIu64 " steps, %" PRIu64 " faults, %" PRIu64 " epochs, %" PRIu64
               " events\n%" PRIu64 " contexts reused, %" PRIu64 " preemptions, %" PRIu64
               " requests resumed\n%.0f s simulated in %.2f s of CPU: %.0f times real time\n",
               t.n_seeds, t.sum.n_requests, t.sum.n_ok, t.sum.n_tokens, t.sum.n_steps,
               t.sum.n_faults, t.sum.n_epochs, t.sum.n_events, t.sum.n_hits, t.sum.n_preempted,
               t.sum.n_resumed, t.sum.virtual_seconds, used, t.sum.virtual_seconds / used);
    tokenizer_close(m.tokenizer);
    model_dir_close(m.causal);
    model_dir_close(m.dir);
    return ok ? 0 : 1;
}
