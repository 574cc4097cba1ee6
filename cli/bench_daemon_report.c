/* bench_daemon_report.c: the results of `glmd bench daemon` as text and JSON (bench_daemon.h):
 * ratios of neighbouring measurements, and their medians. */
#include "cli/bench_daemon.h"

#include <stddef.h>

#include "base/util.h"

/* Targets of this project. */
static const double target_share = 0.95, target_many = 3, target_many_a8 = 4;

enum ratio {
    SHARE_MANY,
    SHARE_ONE,
    MANY_TO_ONE,
    ENGINE_MANY_TO_ONE,
    STEP_MS,
};

static double ratio_of(const struct daemon_result *d, const struct daemon_round *m, enum ratio k)
{
    switch (k) {
    case SHARE_MANY:
        return m->daemon_many.tokens_per_s / m->engine_many.tokens_per_s;
    case SHARE_ONE:
        return m->daemon_one.tokens_per_s / m->engine_one.tokens_per_s;
    case MANY_TO_ONE:
        return m->daemon_many.tokens_per_s / m->daemon_one.tokens_per_s;
    case ENGINE_MANY_TO_ONE:
        return m->engine_many.tokens_per_s / m->engine_one.tokens_per_s;
    case STEP_MS:
        return 1e3 * d->batch / m->engine_many.tokens_per_s;
    }
    return 0;
}

static struct bench_summary summary_of(const struct daemon_result *d, enum ratio k)
{
    double values[DAEMON_MAX_ROUNDS];
    struct bench_samples s = {.values = values, .n = d->n_rounds};
    for (uint32_t i = 0; i != d->n_rounds; i++)
        values[i] = ratio_of(d, &d->rounds[i], k);
    return bench_summarize(&s);
}

static double median(double *values, uint32_t n)
{
    struct bench_samples s = {.values = values, .n = n};
    return bench_summarize(&s).median;
}

static void print_ratio(const struct daemon_result *d, FILE *out, enum ratio k, const char *what,
                        double target)
{
    struct bench_summary s = summary_of(d, k);
    fprintf(out, "%-56s %7.3f  (%.3f .. %.3f)", what, s.median, s.min, s.max);
    if (target > 0)
        fprintf(out, "  target %g: %s", target, s.median >= target ? "met" : "missed");
    fputc('\n', out);
}

/* What the engine's thread did, in the middle of the rounds. */
static void print_thread(const struct daemon_result *d, FILE *out)
{
    static const struct {
        const char *name;
        size_t offset;
    } rows[] = {{"daemon, many", offsetof(struct daemon_round, daemon_many)},
                {"engine, many", offsetof(struct daemon_round, engine_many)},
                {"daemon, one", offsetof(struct daemon_round, daemon_one)},
                {"engine, one", offsetof(struct daemon_round, engine_one)}};
    fprintf(out, "\n%-30s %10s %26s %10s\n", "the engine's thread, medians:", "ran",
            "waited for a processor", "otherwise");
    for (size_t k = 0; k != ARRAY_LEN(rows); k++) {
        double run[DAEMON_MAX_ROUNDS], queued[DAEMON_MAX_ROUNDS], slept[DAEMON_MAX_ROUNDS];
        for (uint32_t i = 0; i != d->n_rounds; i++) {
            const struct daemon_speed *s =
                (const struct daemon_speed *)((const char *)&d->rounds[i] + rows[k].offset);
            run[i] = s->run;
            queued[i] = s->queued;
            slept[i] = MAX(1 - s->run - s->queued, 0.0);
        }
        fprintf(out, "%-30s %10.3f %26.3f %10.3f\n", rows[k].name, median(run, d->n_rounds),
                median(queued, d->n_rounds), median(slept, d->n_rounds));
    }
}

void daemon_report_print(const struct daemon_result *d, FILE *out)
{
    char what[80];
    fprintf(out, "\n%s, %s, %u thread%s, medians of %u rounds (least .. most):\n", d->synthetic,
            d->activations, d->n_threads, d->n_threads == 1 ? "" : "s", d->n_rounds);
    snprintf(what, sizeof what, "daemon / engine, %u streams", d->batch);
    print_ratio(d, out, SHARE_MANY, what, target_share);
    print_ratio(d, out, SHARE_ONE, "daemon / engine, one stream", 0);
    snprintf(what, sizeof what, "%u streams / one, through the daemon", d->batch);
    print_ratio(d, out, MANY_TO_ONE, what, d->a8 ? target_many_a8 : target_many);
    snprintf(what, sizeof what, "%u sequences / one, engine", d->batch);
    print_ratio(d, out, ENGINE_MANY_TO_ONE, what, 0);
    snprintf(what, sizeof what, "milliseconds of the engine's step with %u", d->batch);
    print_ratio(d, out, STEP_MS, what, 0);
    print_thread(d, out);
}

static json_t *speed_json(const struct daemon_speed *s)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "tokens_per_s", s->tokens_per_s, "context", s->context,
                     "run", s->run, "queued", s->queued);
}

json_t *daemon_report_json(const struct daemon_result *d)
{
    json_t *rounds = json_array();
    for (uint32_t i = 0; i != d->n_rounds; i++) {
        const struct daemon_round *m = &d->rounds[i];
        json_array_append_new(rounds, json_pack("{s:o, s:o, s:o, s:o}", "daemon_many",
                                                speed_json(&m->daemon_many), "engine_many",
                                                speed_json(&m->engine_many), "daemon_one",
                                                speed_json(&m->daemon_one), "engine_one",
                                                speed_json(&m->engine_one)));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:o}", "bench", "daemon",
                     "version", GLMD_VERSION, "model", d->synthetic, "activations", d->activations,
                     "threads", (json_int_t)d->n_threads, "batch", (json_int_t)d->batch,
                     "daemon_share", summary_of(d, SHARE_MANY).median, "daemon_share_one",
                     summary_of(d, SHARE_ONE).median, "many_to_one",
                     summary_of(d, MANY_TO_ONE).median, "engine_many_to_one",
                     summary_of(d, ENGINE_MANY_TO_ONE).median, "rounds", rounds);
}
