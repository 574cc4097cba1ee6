/* main.c: glmd-sim: whole clusters on virtual time; see docs/simulator.md. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "model/tokenizer/tokenizer.h"
#include "sim.h"

static const char usage[] =
    "glmd-sim: a whole cluster in one thread on virtual time\n\n"
    "usage: glmd-sim [--model DIR] --seed N [--trace]\n"
    "       glmd-sim [--model DIR] --seeds A..B [--twice N]\n\n"
    "  --seed N      one run\n"
    "  --seeds A..B  runs of the seeds A to B, B included; ends at the first that fails\n"
    "  --file FILE   runs of the seeds in a file: one number a line, # comments\n"
    "  --trace       everything that happens, on standard output\n"
    "  --twice N     run every N-th seed twice and compare the traces (default 20; 0: never)\n"
    "  --model DIR   tokenizer and architecture (default deploy/demo/model)\n";

struct arguments {
    uint64_t first, last;
    const char *file, *model;
    bool have_seeds, trace;
    uint64_t twice;
};

struct totals {
    uint64_t n_seeds;
    struct sim_result sum;
};

static char abort_text[96]; /* made before each run: a signal handler may only write it */

/* An assert of the programs under test: say which seed it was. */
static void on_abort(int signal_number)
{
    ssize_t written = write(STDERR_FILENO, abort_text, sizeof abort_text - 1);
    (void)written;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
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

static bool parse_range(const char *text, struct arguments *a)
{
    const char *dots = strstr(text, "..");
    a->have_seeds = dots && parse_number(text, "..", &a->first) &&
                    parse_number(dots + 2, "", &a->last) && a->first <= a->last;
    return a->have_seeds;
}

static bool parse(int argc, char **argv, struct arguments *a)
{
    *a = (struct arguments){.model = "deploy/demo/model", .twice = 20};
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
                     struct totals *t)
{
    struct sim_result first, second;
    snprintf(abort_text, sizeof abort_text,
             "seed %" PRIu64 " aborted; replay: --seed %" PRIu64 " --trace\n", seed, seed);
    sim_run(seed, m, a->trace ? stdout : NULL, &first);
    add(t, &first);
    if (a->trace || a->twice == 0 || seed % a->twice)
        return true;
    sim_run(seed, m, NULL, &second);
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
        uint64_t seed;
        if (line[0] != '#' && line[0] != '\n')
            ok = parse_number(line, "", &seed) && run_seed(a, m, seed, t);
    }
    fclose(f);
    return ok;
}

static bool run_all(const struct arguments *a, const struct sim_model *m, struct totals *t)
{
    if (a->file && !run_file(a, m, t))
        return false;
    for (uint64_t seed = a->first; a->have_seeds && seed <= a->last; seed++) {
        if (!run_seed(a, m, seed, t))
            return false;
    }
    return true;
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
    int r = model_dir_open(a.model, &m.dir, &e);
    if (r == 0)
        r = tokenizer_open(a.model, model_dir_arch(m.dir), &m.tokenizer, &e);
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
    model_dir_close(m.dir);
    return ok ? 0 : 1;
}
