/* bench_target.h: what a benchmark of the bare engine runs on, and the options that say so: shared
 * by `glmd bench engine` and `glmd bench stages`. */
#ifndef GLMD_CLI_BENCH_TARGET_H
#define GLMD_CLI_BENCH_TARGET_H

#include "cli/local_engine.h"
#include "model/quant.h"

struct bench_target {
    /* options */
    const char *model, *synthetic; /* one of the two */
    const char *json;
    uint32_t layers, context; /* layers: 0 = all */
    double seconds;
    struct quant_scheme scheme; /* of a synthetic model */
    struct local_engine_options engine;
    /* owned */
    struct model_dir *dir; /* NULL until bench_target_open */
};

/* Activations as a worker has them unless told otherwise. */
#define BENCH_TARGET_INIT                                                                          \
    {                                                                                              \
        .context = 128, .seconds = 3, .scheme = {.weights = QUANT_INT4}, .engine = {               \
            .tp = 1,                                                                               \
            .pp = 1,                                                                               \
            .device = "cpu",                                                                       \
            .mode = K_MODE_FP16,                                                                   \
            .kv_type = K_KV_AUTO                                                                   \
        }                                                                                          \
    }

/* The lines of --help, those of local_engine_usage not among them. */
extern const char bench_target_usage[];

enum {
    BENCH_OPT_SYNTHETIC = 512, /* a benchmark's own options are below */
    BENCH_OPT_LAYERS,
    BENCH_OPT_WEIGHTS,
    BENCH_OPT_GROUP,
    BENCH_OPT_HEAD,
    BENCH_OPT_CONTEXT,
    BENCH_OPT_SECONDS,
    BENCH_OPT_JSON,
};

/* getopt_long: with the short options "hm:". */
#define BENCH_TARGET_LONG_OPTIONS                                                                  \
    {"model", required_argument, NULL, 'm'},                                                       \
        {"synthetic", required_argument, NULL, BENCH_OPT_SYNTHETIC},                               \
        {"layers", required_argument, NULL, BENCH_OPT_LAYERS},                                     \
        {"weights", required_argument, NULL, BENCH_OPT_WEIGHTS},                                   \
        {"group", required_argument, NULL, BENCH_OPT_GROUP},                                       \
        {"head", required_argument, NULL, BENCH_OPT_HEAD},                                         \
        {"context", required_argument, NULL, BENCH_OPT_CONTEXT},                                   \
        {"seconds", required_argument, NULL, BENCH_OPT_SECONDS},                                   \
        {"json", required_argument, NULL, BENCH_OPT_JSON}, {"help", no_argument, NULL, 'h'},       \
        LOCAL_ENGINE_LONG_OPTIONS

/* One of these options, or of the engine's. 0 or an exit code. */
int bench_target_option(const char *verb, int c, const char *text, struct bench_target *t);
/* Behind the last option: argv is used up, and there is one model. 0 or an exit code. */
int bench_target_check(const char *verb, const struct bench_target *t, int argc);

int bench_target_open(struct bench_target *t, struct err *e);
void bench_target_close(struct bench_target *t);

#endif
