/* footprint.h: the memory of one rank, computed from architecture, scheme and degrees alone.
 *
 * Pure arithmetic, for planning: no weights, no device. Every quantity comes from the function that
 * the allocation itself uses (kernels/sizes.h, workspace.h, batch.h, results.h, sampler.h), so that
 * what is planned is what engine_memory reports.
 */
#ifndef GLMD_WORKER_ENGINE_FOOTPRINT_H
#define GLMD_WORKER_ENGINE_FOOTPRINT_H

#include <stdint.h>

#include "base/err.h"
#include "kernels/sizes.h"
#include "model/arch.h"
#include "model/quant.h"
#include "proto/plan.h"

/* A rank of a group: its share of every layer in [layer_begin, layer_end), and what else its stage
 * needs (weights_stage_needs). */
struct footprint_rank {
    const struct arch *arch;
    const struct quant_scheme *scheme;
    const struct k_sizes *sizes; /* of the kind of device */
    enum k_mode mode;
    enum k_kv_type kv_type;
    uint32_t tp_size;
    uint32_t layer_begin, layer_end;
};

/* Bytes. Where host_memory is set in the device's sizes, host bytes are in the same memory. */
struct footprint {
    uint64_t weights;
    uint64_t kv_block;     /* of one block of PLAN_KV_BLOCK_TOKENS tokens; 0: no such cache */
    uint64_t scratch;      /* on the device */
    uint64_t scratch_host; /* in the memory of the host */
};

/* The limits of an engine with so many slots and tokens per step (0 = max_seq); n_blocks is left
 * at 0. */
void footprint_limits(const struct arch *a, uint32_t n_slots, uint32_t max_step_tokens,
                      struct plan_limits *ret);

/* -EINVAL: the scheme's groups or the sizes cannot be split over tp_size ranks, or this kind of
 * device has no KV cache of this type. */
int footprint_of(const struct footprint_rank *r, const struct plan_limits *limits,
                 struct footprint *ret, struct err *e);

#endif
