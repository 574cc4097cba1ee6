/* fit.h: whether a model fits on given devices, and how: what `glmd plan` computes.
 *
 * Pure functions over worker/engine/footprint.h: no device, no weights, no I/O. A layout is tp x
 * pp: pp pipeline stages, each of tp devices that share every layer of the stage.
 */
#ifndef GLMD_CLI_FIT_H
#define GLMD_CLI_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/footprint.h"

enum { FIT_MAX_DEVICES = COMM_MAX_RANKS };

/* What is left alone on every device. GPU: the CUDA context, the kernels' code and NCCL's buffers;
 * an assumption that no measurement stands behind yet. CPU: the program itself and what the system
 * needs. */
#define FIT_GPU_RESERVE_BYTES ((uint64_t)768 << 20)
#define FIT_CPU_RESERVE_BYTES ((uint64_t)256 << 20)
enum { FIT_HEAD_ROOM_PERCENT = 5 }; /* of the device, besides */

struct fit_device {
    uint32_t host;
    uint32_t index; /* on its host: cuda:<index> */
    uint64_t bytes;
};

struct fit_devices {                           /* zero-initialised = none */
    const struct k_sizes *sizes;               /* of their kind */
    struct fit_device device[FIT_MAX_DEVICES]; /* by host */
    uint32_t n, n_hosts;
};

/* Adds the devices of one host: "8x24GiB", "2x24GiB,1x48GiB", "cpu:64GiB", "cpu:2x64GiB"; without a
 * prefix they are GPUs ("cuda:"). Sizes in MiB, GiB, TiB (1024) or MB, GB, TB (1000). -EINVAL. */
int fit_devices_add(struct fit_devices *d, const char *text, struct err *e);

/* What nothing may be planned into, of a device with so many bytes. */
uint64_t fit_reserve(const struct k_sizes *sizes, uint64_t device_bytes);

struct fit_request {
    const struct arch *arch;
    const struct quant_scheme *scheme;
    const struct fit_devices *devices;
    enum k_mode mode;
    enum k_kv_type kv_type;
    uint32_t context;         /* tokens of a sequence, 1 .. max_seq */
    uint32_t concurrency;     /* sequences that must have room at once */
    uint32_t n_slots;         /* worker.slots, at least concurrency */
    uint32_t max_step_tokens; /* worker.max_step_tokens, 0 = max_seq */
    uint32_t tp, pp;          /* 0 = to be chosen */
};

struct fit_rank {
    uint32_t device; /* index into fit_devices.device */
    uint32_t stage, tp_rank;
    struct footprint need;
    uint64_t scratch;   /* of need: what the rank reports */
    uint64_t on_device; /* weights, and scratch as far as it is in the device's memory */
    uint64_t reserve;
    uint64_t n_blocks; /* that this rank alone has room for */
    uint64_t missing;  /* bytes that weights and scratch are too large by */
    uint64_t kv_bytes; /* of the group's blocks */
    uint64_t free;     /* left over */
};

struct fit_layout {
    uint32_t tp, pp;
    uint32_t stage_layers[FIT_MAX_DEVICES]; /* [pp] */
    bool even;                              /* stages are as shard_stage_layers makes them */
    bool crosses_hosts;                     /* a stage has devices of several hosts */
    struct fit_rank ranks[FIT_MAX_DEVICES]; /* [tp * pp], rank = stage * tp + tp_rank */
    uint64_t n_blocks;                      /* of the group: the fewest of any rank */
    uint64_t needed_blocks;                 /* for what was asked */
    uint64_t missing;                       /* of the rank that misses most */
    uint32_t sequences;                     /* of the asked context at once, at most n_slots */
    bool fits;
};

/* One layout, judged. -EINVAL: this model or these devices cannot be laid out so. */
int fit_layout(const struct fit_request *q, uint32_t tp, uint32_t pp, struct fit_layout *ret,
               struct err *e);

/* A layout in short. */
struct fit_choice {
    uint32_t tp, pp;
    uint64_t n_blocks, missing;
    uint32_t sequences;
    bool fits, crosses_hosts;
};

/* Every degree that divides the model, with the most stages that the devices allow (or what the
 * request fixes), best first: it fits, no stage crosses hosts, it uses more devices, its tp is
 * larger. Where none fits, the one with most room comes first. */
struct fit_choices {
    struct fit_choice choice[FIT_MAX_DEVICES];
    uint32_t n;
    struct fit_layout best; /* choice[0], in full */
};

static inline uint64_t fit_tokens(uint64_t n_blocks)
{
    return n_blocks * PLAN_KV_BLOCK_TOKENS;
}

/* -EINVAL: there is no layout at all. */
int fit_choose(const struct fit_request *q, struct fit_choices *ret, struct err *e);

enum { FIT_TEXT_BYTES = 320, FIT_MAX_HELP = 6 };

/* Why the first choice comes first, one line. */
void fit_why(const struct fit_request *q, const struct fit_choices *c, char ret[FIT_TEXT_BYTES]);

/* Why the first choice does not fit, and what would help, each found by trying it: fewer tokens or
 * sequences, shorter steps, an INT8 cache, INT4 weights, more devices. */
struct fit_advice {
    char reason[FIT_TEXT_BYTES];
    char help[FIT_MAX_HELP][FIT_TEXT_BYTES];
    uint32_t n_help;
};
void fit_advise(const struct fit_request *q, const struct fit_choices *c, struct fit_advice *ret);

#endif
