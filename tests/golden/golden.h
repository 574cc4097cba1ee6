/* golden.h: what the golden tests share: the reference data, converted models, and a way to run
 * sequences through all ranks of an engine in one process.
 *
 * Reference data lies in tests/golden/glm130b (its README says where it comes from). Models are
 * converted from its checkpoints by the ctest fixture "golden_models" into GLMD_GOLDEN_MODELS.
 * Every function fails the running test when something is wrong.
 */
#ifndef GLMD_TESTS_GOLDEN_GOLDEN_H
#define GLMD_TESTS_GOLDEN_GOLDEN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdbool.h>

#include "cli/npy.h"
#include "worker/engine/local_group.h"

/* ---- reference data ---- */

/* The manifest; the caller decrefs. */
json_t *golden_manifest(void);
/* A .npy file named relative to the manifest. */
void golden_npy(const char *name, enum npy_type type, uint32_t n_dims, struct npy *ret);
/* A list of integers -> ids[0..n), n <= max. */
uint32_t golden_ids(const json_t *list, int32_t *ret_ids, uint32_t max);
/* Member as text; "" when absent. */
const char *golden_text(const json_t *object, const char *key);
int64_t golden_int(const json_t *object, const char *key, int64_t absent);

/* Whether heavy variants run (GLMD_TEST_LONG). */
bool golden_long(void);

/* ---- engines ---- */

enum { GOLDEN_MAX_SEQ = 256, GOLDEN_BLOCKS_PER_SEQ = GOLDEN_MAX_SEQ / PLAN_KV_BLOCK_TOKENS };

struct golden_engine {
    struct model_dir *dir;
    const struct arch *arch;
    struct local_group *group;
    uint64_t epoch, step;            /* of the last plan */
    uint32_t slice_layers, n_stages; /* of golden_options */
    uint32_t next_gen;               /* generations are handed out engine-wide */
};

struct golden_options {
    const char *model; /* "fp16-tp1", "int4-tp2", ... */
    uint32_t tp;
    uint32_t threads; /* of each rank; 0 = 1 */
    enum k_mode mode;
    enum k_kv_type kv_type;
    const char *device;           /* NULL = "cpu" */
    const char *isa;              /* NULL = GLMD_TEST_ISA, or the best */
    uint32_t pp;                  /* stages; 0 = 1 */
    const uint32_t *stage_layers; /* [pp], NULL = even */
    uint32_t slice_layers; /* golden_step runs steps that only begin sequences in slices of so many
                              layers; 0 = whole */
    uint32_t n_slots;
    uint32_t n_blocks; /* 0 = full sequences for all slots */
    uint32_t max_step_tokens;
    enum k_comm_choice collectives;
    bool no_graphs;
    uint32_t library_rows;
};

/* "1x2 (1+2 layers)": tp x pp, for messages. */
const char *golden_shape(const struct golden_options *o, char text[64]);

void golden_open(struct golden_engine *g, const struct golden_options *o);
void golden_close(struct golden_engine *g);

/* Runs a plan with the next step number; fails the test on any error. */
const struct step_result *golden_step(struct golden_engine *g, const struct plan_item *items,
                                      uint32_t n_items, const struct plan_beam_group *groups,
                                      uint32_t n_groups, const struct plan_copy *copies,
                                      uint32_t n_copies);

/* Any plan, with the next step number and the epoch filled in. */
const struct step_result *golden_run(struct golden_engine *g, struct plan *plan);

/* The same, but the plan is expected to be refused with -EINVAL and `words` in the message. */
void golden_step_refused(struct golden_engine *g, const struct plan_item *items, uint32_t n_items,
                         const char *words);

void golden_run_refused(struct golden_engine *g, struct plan *plan, const char *words);

/* Logits [n, V] of one sequence run as one item in slot 0 (blocks 0, 1, ...). */
const float *golden_logits(struct golden_engine *g, const int32_t *ids, const int32_t *positions,
                           uint32_t n, uint32_t prefix_len);

/* A greedy step over a prompt of n tokens in `slot`, a new life of it; all but the last one are its
 * context. What is pointed to is borrowed. */
struct plan_item golden_prompt(struct golden_engine *g, uint32_t slot, const int32_t *tokens,
                               const int32_t *positions, uint32_t n,
                               const uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ]);

/* blocks[i] = first + i for a whole sequence. */
void golden_blocks(uint32_t first, uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ]);

/* GLMD_GPU, or cuda:0 where it is not set; NULL: it cannot be opened, and it was said why. */
const char *golden_gpu(void);

/* log softmax(row)[token] in double. */
double golden_logprob(const float *row, uint32_t vocab, int32_t token);

#endif
