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

/* cli_parse for a benchmark of the engine: its own options, these, and the engine's; and that there
 * is one model and nothing behind the options. -1: go on; otherwise an exit code. */
int bench_target_parse(struct bench_target *t, int argc, char **argv, const char *usage,
                       const struct cli_option *own, size_t n_own);

/* The model of the options, or made-up weights in memory. */
int bench_target_open(struct bench_target *t, struct err *e);
void bench_target_close(struct bench_target *t);

#endif
