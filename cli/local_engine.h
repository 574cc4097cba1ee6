/* local_engine.h: a model directory opened for running without a server: what `glmd logits` and
 * `glmd compare` share; and the options that say how, which benchmarks of the engine have, too. */
#ifndef GLMD_CLI_LOCAL_ENGINE_H
#define GLMD_CLI_LOCAL_ENGINE_H

#include "base/err.h"
#include "cli/options.h"
#include "kernels/kernels.h"
#include "model/model_dir.h"
#include "worker/engine/local_group.h"

struct local_engine_options {
    uint32_t tp;
    uint32_t pp;                            /* stages */
    uint32_t stage_layers[COMM_MAX_STAGES]; /* of every stage */
    uint32_t n_stage_layers;                /* pp, or 0 = shared out evenly */
    uint32_t n_threads;                     /* 0 = all */
    const char *device;                     /* "cpu", "cuda" */
    enum k_mode mode;
    enum k_kv_type kv_type;
};

#define LOCAL_ENGINE_OPTIONS_INIT                                                                  \
    {                                                                                              \
        .tp = 1, .pp = 1, .device = "cpu", .mode = K_MODE_FP32, .kv_type = K_KV_AUTO               \
    }

/* --tp, --pp, --stage-layers, --backend, --activations, --kv-cache and --threads, for cli_parse. */
enum { LOCAL_ENGINE_N_OPTIONS = 7 };
struct cli_options local_engine_options(struct local_engine_options *o,
                                        struct cli_option ret[LOCAL_ENGINE_N_OPTIONS]);

/* For CLI_CHOICE, in the order of their enums. */
extern const char *const local_engine_modes[];
extern const char *const local_engine_kv_types[]; /* without FP32, which follows from AUTO */

/* Fills in what the options say of a group; points into `o`. -EINVAL: they contradict each other.
 */
int local_engine_config(const struct local_engine_options *o, struct engine_config *config,
                        struct err *e);

/* One sequence at a time through all layers. */
struct local_engine {          /* zero-initialised = closed */
    struct model_dir *dir;     /* owned */
    struct local_group *group; /* owned */
    uint32_t *blocks;          /* owned, [n_blocks] the one block table: 0, 1, 2, ... */
    uint32_t n_blocks;
    uint64_t step;
    uint32_t slot_gen;
};

int local_engine_open(const char *model, const struct local_engine_options *o,
                      struct local_engine *ret, struct err *e);
void local_engine_close(struct local_engine *l);

/* Logits [n, V] of tokens [start, start + n) of the sequence; start = 0 begins a new one. Valid
 * until the next call. */
int local_engine_logits(struct local_engine *l, const int32_t *ids, const int32_t *positions,
                        uint32_t start, uint32_t n, uint32_t prefix_len, const float **ret,
                        struct err *e);

#endif
