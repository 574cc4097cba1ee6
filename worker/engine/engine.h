/* engine.h: one rank's model, KV cache and sampler behind two calls: open and step.
 *
 * A library without sockets: the worker daemon feeds it plans from the coordinator, `glmd logits`
 * and the tests feed it plans of their own. One thread drives an engine. The ranks of a group are
 * engines that were given the same plans and are joined by a comm (comm/comm.h): `pp_size` stages
 * of `tp_size` ranks each, number stage * tp_size + tp_rank.
 *
 * Stages. A stage holds the weights and the KV cache of its layers; what leaves its last layer goes
 * to the next stage over the comm. Only the last stage chooses tokens: the results of the others
 * say that the step ran, with token -1 and without scores, candidates and logits. State hashes are
 * to be compared among the ranks of a stage. A step of one stage ends when its output is buffered,
 * so that it can begin the next step while the next stage runs this one: to keep all stages busy,
 * give every rank its plans as soon as they are there, pp_size of them or more, of different slots.
 * A sample is known to the last stage only, so that PLAN_TOKEN_PREVIOUS is refused with several
 * stages.
 */
#ifndef GLMD_WORKER_ENGINE_ENGINE_H
#define GLMD_WORKER_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cpus.h"
#include "base/err.h"
#include "kernels/comm.h"
#include "kernels/kernels.h"
#include "model/model_dir.h"
#include "proto/plan.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/weights.h"

/* What ps, top and perf call the thread that drives an engine. */
#define ENGINE_THREAD_NAME "engine"

struct engine; /* opaque */

struct engine_config {
    const struct model_dir *model; /* borrowed, outlives the engine */
    uint32_t tp_size, tp_rank;
    uint32_t pp_size, stage; /* pp_size 0 = 1 */
    /* [pp_size] layers of each stage, in all those of the model; the same on every rank. NULL: as
     * shard_stage_layers divides them evenly. */
    const uint32_t *stage_layers;
    const char *device; /* "cpu", "cuda:N", "fake[:KEY=VALUE,...]" (fake.h) */
    enum k_mode mode;
    uint32_t n_threads; /* on a CPU; 0 = cpus_usable(), all of them: ranks that share a host should
                           be told their share */
    enum k_pin pin;     /* of the CPU threads */
    /* NULL or empty = where the caller may run. Otherwise engine_open binds its thread, and with it
     * all those that compute and load, to these. Used on CPUs only. */
    const struct cpus *cpus;
    const char *isa; /* NULL = best; tests */
    uint32_t n_slots;
    uint32_t n_kv_blocks; /* 0 = as many as kv_bytes allows */
    enum k_kv_type kv_type;
    size_t kv_bytes; /* used when n_kv_blocks = 0; 0 = room for n_slots full sequences, as far as
                        memory_percent allows */
    uint32_t memory_percent;  /* of the device's own memory that may be taken, weights, scratch and
                                 cache together, when neither of the above is given; 0 = no limit */
    uint32_t max_step_tokens; /* 0 = max_seq, at least n_slots */
    bool no_warpgroups;       /* on GPUs: products without wgmma */
    uint32_t library_rows;    /* on GPUs: longer products go through cuBLASLt; 0 = none */
    enum k_comm_choice collectives; /* what sums over ranks where activations are on a device */
    bool no_graphs;                 /* CUDA: launches of decode steps are not recorded */
    bool verify; /* checksums of every tensor that is read (default on in the daemon) */
    /* Called from engine_open between tensors: progress in bytes; may be NULL. A non-zero return
     * cancels the load (-ECANCELED). */
    int (*on_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_context;
};

struct engine_memory { /* bytes of this rank, printed at start */
    uint64_t weights;
    uint64_t kv;
    uint64_t scratch;
};

struct engine_stats {
    uint64_t steps;
    uint64_t prefill_tokens, decode_tokens;
    uint64_t compute_ns;
    /* parts of compute_ns: */
    uint64_t link_wait_ns; /* waiting for the stage before or behind this one */
    uint64_t sum_ns;       /* sums over ranks through the host */
    uint64_t sample_ns;    /* choosing tokens from logits */
    /* rows that the devices of several ranks sampled from their parts of the vocabulary, and those
     * that had to be gathered after all */
    uint64_t shared_rows, wide_rows;
};

/* Loads this rank's rows and columns, allocates everything a step needs. Collectives are not used
 * while opening, so that ranks load at their own pace. */
int engine_open(const struct engine_config *config, struct engine **ret, struct err *e);
void engine_close(struct engine *g); /* NULL is fine; does not close the comm */

/* The group's collectives; borrowed until the next call or engine_drop_comm; may be set again after
 * an epoch change (drops all slots, keeps the weights). Must have tp_size ranks and pp_size stages.
 * Required before the first step, comm_self_new for one rank. All ranks together: with several of
 * them on GPUs the devices' own collectives come up here, over the comm.
 */
int engine_set_comm(struct engine *g, struct comm *comm, struct err *e);
/* Before the comm is closed while the engine lives on. */
void engine_drop_comm(struct engine *g);
/* What sums over ranks, and why, since the last engine_set_comm; "" before. */
const char *engine_collectives(struct engine *g);
/* What the device's own collectives have done, in all groups until now; zeros where there are none.
 */
void engine_collective_times(const struct engine *g, struct k_comm_times *ret);

/* How decode steps were run; zeros where the device does not record any. Since it was opened. */
void engine_graphs(const struct engine *g, struct k_graph_stats *ret);

/* Runs one step. The result is valid until the next call. -EINVAL: the plan contradicts the
 * engine's slots (nothing ran); -EIO: the device failed; -ETIMEDOUT, -ECONNRESET, -ECANCELED: a
 * peer did, or the comm was aborted. The epoch is over then. */
int engine_step(struct engine *g, const struct plan *plan, const struct step_result **ret,
                struct err *e);

/* Forgets all slots and the state hash: a new epoch begins. */
void engine_reset(struct engine *g);

void engine_limits(const struct engine *g, struct plan_limits *ret);
/* The layers [begin, end) of this rank's stage. */
void engine_layers(const struct engine *g, uint32_t *ret_begin, uint32_t *ret_end);
/* What a link to the next stage should buffer (comm_group_config): the output of a whole step. 0
 * with one stage. */
size_t engine_link_bytes(const struct engine *g);
void engine_memory(const struct engine *g, struct engine_memory *ret);
void engine_stats(const struct engine *g, struct engine_stats *ret);
/* Where the device's share of compute_ns went; false where that is not counted (GPUs). */
bool engine_profile(const struct engine *g, struct k_profile *ret);
const char *engine_describe(const struct engine *g);
/* How the weights got here; zeros with a fake device. */
void engine_weights_report(const struct engine *g, struct weights_report *ret);
/* A fake device answers at once: compute_ns of its results says how long the step should take. */
bool engine_is_fake(const struct engine *g);

/* A fixed greedy generation whose token hash must equal the manifest's (and every other rank's, of
 * all stages): run once before a rank reports ready. Uses the comm. Leaves the engine reset. */
int engine_known_answer(struct engine *g, uint64_t *ret_hash, struct err *e);

/* Output of every layer before the next norm, [n_layers, rows, H], of the last step; a stage writes
 * those of its layers. Test hook, off unless enabled before engine_step. */
void engine_capture_layers(struct engine *g, float *buffer, uint32_t max_rows);

#endif
