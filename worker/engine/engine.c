/* engine.c: see engine.h. Owns a rank's device context, weights, cache and step memory. The way of
 * a step: batch_check -> copies -> batch_build -> glm_forward -> head and sampler, a few rows at a
 * time -> batch_commit -> state hash. */
#include "worker/engine/engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/util.h"
#include "kernels/sizes.h"
#include "model/shard.h"
#include "worker/engine/batch.h"
#include "worker/engine/fake.h"
#include "worker/engine/footprint.h"
#include "worker/engine/glm.h"
#include "worker/engine/known_answer.h"
#include "worker/engine/outputs.h"

enum { MIN_BLOCKS = 2, DESCRIBE_BYTES = 256 };

struct engine {
    /* owned */
    struct glm model;
    struct batch batch;
    struct outputs outputs;
    struct fake *fake; /* NULL = a real device; else it stands for all of the above */
    /* borrowed */
    struct comm *comm;
    enum k_comm_choice collectives;
    const struct model_dir *dir;
    /* state */
    struct plan_limits limits;
    uint32_t pp_size, stage;
    uint64_t kv_bytes;
    uint64_t state_hash;
    int failed; /* the epoch is over: what engine_step returns until a reset */
    struct engine_stats stats;
    char describe[DESCRIBE_BYTES];
};

/* ---- opening ---- */

static int check_config(const struct engine_config *c, const struct arch *a, struct err *e)
{
    if (c->tp_size < 1 || c->tp_rank >= c->tp_size || c->tp_size > COMM_MAX_RANKS)
        return err_set(e, -EINVAL,
                       "rank %u of %u: expected a rank below the size, at most %d ranks",
                       c->tp_rank, c->tp_size, COMM_MAX_RANKS);
    if (c->pp_size > COMM_MAX_STAGES || c->stage >= MAX(c->pp_size, 1u))
        return err_set(e, -EINVAL,
                       "stage %u of %u: expected a stage below their number, at most %d stages",
                       c->stage, c->pp_size, COMM_MAX_STAGES);
    int r = arch_check_tp(a, c->tp_size, e);
    if (r < 0)
        return r;
    if (c->n_slots < 1 || c->n_slots > PLAN_MAX_ITEMS)
        return err_set(e, -EINVAL, "slots: expected 1..%d, found %u", PLAN_MAX_ITEMS, c->n_slots);
    if (c->max_step_tokens > PLAN_MAX_TOKENS)
        return err_set(e, -EINVAL, "tokens per step: expected at most %d, found %u",
                       PLAN_MAX_TOKENS, c->max_step_tokens);
    return 0;
}

/* Which layers are this stage's. */
static int set_layers(struct glm *m, const struct engine_config *c, const struct arch *a,
                      struct err *e)
{
    uint32_t pp_size = MAX(c->pp_size, 1u);
    if (!c->stage_layers) {
        if (shard_stage_layers(a->n_layers, pp_size, NULL, c->stage, &m->layer_begin,
                               &m->layer_end) < 0)
            return err_set(e, -EINVAL, "%u layers cannot be shared out to %u stages", a->n_layers,
                           pp_size);
        return 0;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i != pp_size; i++) {
        if (c->stage_layers[i] == 0)
            return err_set(e, -EINVAL, "stage %u: expected at least one layer", i);
        if (i == c->stage) {
            m->layer_begin = (uint32_t)sum;
            m->layer_end = (uint32_t)sum + c->stage_layers[i];
        }
        sum += c->stage_layers[i];
    }
    if (sum != a->n_layers)
        return err_set(e, -EINVAL, "stages: expected %u layers in all, found %llu", a->n_layers,
                       (unsigned long long)sum);
    return 0;
}

/* Before there are threads: the pool's and the loader's descend from this one. */
static int bind_thread(const struct cpus *cpus, struct err *e)
{
    int r = cpus && cpus->n ? cpus_bind(cpus) : 0;
    if (r == 0)
        return 0;
    char wanted[CPUS_TEXT_BYTES], found[CPUS_TEXT_BYTES];
    struct cpus allowed;
    cpus_allowed(&allowed);
    return err_set(e, r, "CPUs %s: expected some that this process may use (%s): %s",
                   cpus_print(cpus, wanted, sizeof wanted) == 0 ? wanted : "...",
                   cpus_print(&allowed, found, sizeof found) == 0 ? found : "...", err_name(r));
}

static int open_device(struct engine *g, const struct engine_config *c, const struct arch *a,
                       struct err *e)
{
    struct glm *m = &g->model;
    char message[256] = "";
    bool cuda = strncmp(c->device, "cuda", 4) == 0;
    const struct k_ops *ops = k_backend(cuda ? "cuda" : c->device, message, sizeof message);
    if (!ops)
        return err_set(e, -ENODEV, "backend %s: %s", c->device, message);
    if (!ops->comm && (c->collectives == K_COMM_NCCL || c->collectives == K_COMM_PEER))
        return err_set(e, -EINVAL,
                       "worker.collectives: %s is for GPUs, this device is %s: choose auto or host",
                       k_comm_choice_name(c->collectives), c->device);
    struct k_open_params p = {.device = c->device,
                              .mode = c->mode,
                              .n_threads = c->n_threads,
                              .pin = c->pin,
                              .max_rows = g->limits.max_tokens,
                              .max_cols = MAX(a->hidden, a->inner / c->tp_size),
                              .max_seq = a->max_seq,
                              .isa = c->isa,
                              .library_rows = c->library_rows,
                              .no_warpgroups = c->no_warpgroups,
                              .no_graphs = c->no_graphs};
    int r = cuda ? 0 : bind_thread(c->cpus, e);
    if (r < 0)
        return r;
    if (!p.n_threads && !cuda)
        p.n_threads = cpus_usable(); /* of those that it is bound to */
    r = ops->open(&p, &m->ctx, message, sizeof message);
    if (r < 0)
        return err_set(e, r, "device %s: %s", c->device, message);
    m->ops = ops;
    return 0;
}

/* Device memory for sums over ranks, which join later. */
static uint64_t sums_bytes(const struct engine *g)
{
    const struct k_sizes *sizes = k_sizes(g->model.ops->name);
    return sizes->sums_bytes(g->model.tp_size, g->limits.max_tokens, g->model.arch->hidden);
}

/* What comes with the cache: buffers of the context that its shape decides. */
static uint64_t comes_with_cache(const struct engine *g, const struct k_kv_params *kv,
                                 enum k_mode mode)
{
    const struct glm *m = &g->model;
    struct k_memory now = {0}, then;
    if (m->ops->context_memory)
        m->ops->context_memory(m->ctx, &now);
    k_sizes(m->ops->name)->context_memory(g->limits.max_tokens, m->arch->max_seq, mode, kv, &then);
    return then.device > now.device ? then.device - now.device : 0;
}

/* What memory_percent leaves for the cache beside `to_come`, now that everything else is there;
 * UINT64_MAX without a limit. */
static int memory_left(const struct engine *g, const struct engine_config *c, uint64_t to_come,
                       uint64_t *ret, struct err *e)
{
    const struct glm *m = &g->model;
    *ret = UINT64_MAX;
    if (!c->memory_percent || !m->ops || !m->ops->memory)
        return 0;
    uint64_t free_bytes, total;
    int r = m->ops->memory(m->ctx, &free_bytes, &total);
    if (r < 0)
        return err_set(e, r, "device %s does not say how much memory it has", c->device);
    uint64_t most = total / 100 * c->memory_percent;
    uint64_t taken = total - MIN(free_bytes, total) + to_come;
    *ret = most > taken ? most - taken : 0;
    return 0;
}

static int set_n_blocks(struct engine *g, const struct engine_config *c, const struct arch *a,
                        size_t block_bytes, uint64_t to_come, struct err *e)
{
    uint32_t per_sequence = (a->max_seq + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
    uint64_t left, n = c->n_kv_blocks;
    if (!n && c->kv_bytes)
        n = c->kv_bytes / block_bytes;
    if (!n && !c->kv_bytes) {
        int r = memory_left(g, c, to_come, &left, e);
        if (r < 0)
            return r;
        n = MIN((uint64_t)c->n_slots * per_sequence, left / block_bytes);
    }
    if (n < MIN_BLOCKS || n > INT32_MAX)
        return err_set(e, -EINVAL,
                       "the KV cache has room for %llu blocks of %d tokens (%zu bytes each), "
                       "expected at least %d: give it more memory",
                       (unsigned long long)n, PLAN_KV_BLOCK_TOKENS, block_bytes, MIN_BLOCKS);
    g->limits.n_blocks = (uint32_t)n;
    return 0;
}

static int open_kv(struct engine *g, const struct engine_config *c, const struct arch *a,
                   struct err *e)
{
    struct glm *m = &g->model;
    struct k_kv_params p = {.n_layers = m->layer_end - m->layer_begin,
                            .n_kv_heads = a->n_kv_heads / c->tp_size,
                            .head_dim = a->head_dim,
                            .block_tokens = PLAN_KV_BLOCK_TOKENS,
                            .type = c->kv_type};
    size_t block_bytes = m->ops->kv_block_bytes(m->ctx, &p);
    if (!block_bytes)
        return err_set(e, -EINVAL, "backend %s has no KV cache in %s", m->ops->name,
                       k_kv_type_name(k_kv_resolve(c->kv_type, c->mode)));
    uint64_t to_come = sums_bytes(g) + comes_with_cache(g, &p, c->mode);
    int r = set_n_blocks(g, c, a, block_bytes, to_come, e);
    if (r < 0)
        return r;
    p.n_blocks = g->limits.n_blocks;
    g->kv_bytes = p.n_blocks * (uint64_t)block_bytes;
    m->kv = m->ops->kv_new(m->ctx, &p);
    if (!m->kv)
        return err_set(e, -ENOMEM, "out of memory: KV cache of %u blocks, %.2f GB", p.n_blocks,
                       (double)g->kv_bytes / 1e9);
    return 0;
}

static int no_step_memory(const struct engine *g, struct err *e)
{
    return err_set(e, -ENOMEM,
                   "out of memory: buffers for steps of %u tokens; lower the tokens per step",
                   g->limits.max_tokens);
}

/* What a step needs on the device, besides the cache. */
static int open_workspace(struct engine *g, struct err *e)
{
    struct glm *m = &g->model;
    m->rope = glm_rope_new(m->arch, m->ops, m->ctx);
    if (!m->rope ||
        workspace_init(&m->ws, m->ops, m->ctx, m->arch, m->tp_size, m->tp_size * g->pp_size == 1,
                       g->limits.max_tokens) < 0 ||
        outputs_init(&g->outputs, m, &g->batch, &g->limits) < 0)
        return no_step_memory(g, e);
    return 0;
}

/* What it needs on the host. */
static int open_step_memory(struct engine *g, struct err *e)
{
    if (batch_init(&g->batch, &g->limits) < 0)
        return no_step_memory(g, e);
    return 0;
}

/* Weights, cache and step memory of a real device. */
static int open_model(struct engine *g, const struct engine_config *c, const struct arch *a,
                      struct err *e)
{
    int r = open_device(g, c, a, e);
    if (r < 0)
        return r;
    struct weights_load load = {.model = c->model,
                                .ops = g->model.ops,
                                .ctx = g->model.ctx,
                                .tp_size = c->tp_size,
                                .tp_rank = c->tp_rank,
                                .layer_begin = g->model.layer_begin,
                                .layer_end = g->model.layer_end,
                                .verify = c->verify,
                                .on_progress = c->on_progress,
                                .progress_context = c->progress_context};
    r = weights_load(&load, &g->model.weights, e);
    if (r == 0)
        r = open_workspace(g, e);
    if (r == 0)
        r = open_kv(g, c, a, e); /* last on the device: it takes what is left */
    if (r == 0)
        r = open_step_memory(g, e);
    g->batch.no_previous = g->pp_size > 1;
    if (r == 0)
        snprintf(g->describe, sizeof g->describe, "%s, KV cache in %s",
                 g->model.ops->describe(g->model.ctx),
                 k_kv_type_name(k_kv_resolve(c->kv_type, c->mode)));
    return r;
}

/* As many blocks as a real device would have with FP16 keys and values. */
static int open_fake(struct engine *g, const struct engine_config *c, const struct arch *a,
                     struct err *e)
{
    struct fake_config f = {0};
    int r = fake_parse(c->device, &f.params, e);
    if (r < 0)
        return r;
    uint64_t n_layers = g->model.layer_end - g->model.layer_begin;
    uint64_t block_bytes = arch_kv_bytes_per_token(a, 2) * PLAN_KV_BLOCK_TOKENS / c->tp_size;
    r = set_n_blocks(g, c, a, MAX(block_bytes * n_layers / a->n_layers, (uint64_t)1), 0, e);
    if (r < 0)
        return r;
    f.limits = g->limits;
    f.n_stages = g->pp_size;
    f.stage = g->stage;
    fake_config_set_arch(&f, a);
    r = fake_new(&f, &g->fake);
    if (r < 0)
        return err_set(e, r, "out of memory: fake device of %u blocks", g->limits.n_blocks);
    g->kv_bytes = fake_bytes(g->fake);
    snprintf(g->describe, sizeof g->describe, "no device: tokens are made up");
    return 0;
}

int engine_open(const struct engine_config *config, struct engine **ret, struct err *e)
{
    const struct arch *a = model_dir_arch(config->model);
    int r = check_config(config, a, e);
    if (r < 0)
        return r;
    struct engine *g = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, -ENOMEM, "out of memory");
    g->model.arch = a;
    g->model.tp_size = config->tp_size;
    g->model.tp_rank = config->tp_rank;
    g->pp_size = MAX(config->pp_size, 1u);
    g->stage = config->stage;
    footprint_limits(a, config->n_slots, config->max_step_tokens, &g->limits);
    g->dir = config->model;
    g->collectives = config->collectives;
    r = set_layers(&g->model, config, a, e);
    if (r == 0)
        r = fake_is_device(config->device) ? open_fake(g, config, a, e)
                                           : open_model(g, config, a, e);
    if (r < 0) {
        engine_close(g);
        return r;
    }
    *ret = g;
    return 0;
}

void engine_close(struct engine *g)
{
    if (!g)
        return;
    struct glm *m = &g->model;
    comm_device_close(&m->sums);
    fake_free(g->fake);
    outputs_deinit(&g->outputs);
    batch_deinit(&g->batch);
    if (m->ops) {
        workspace_deinit(&m->ws, m->ops, m->ctx);
        if (m->kv)
            m->ops->kv_free(m->ctx, m->kv);
        if (m->rope)
            m->ops->rope_free(m->ctx, m->rope);
        weights_free(m->ops, m->ctx, &m->weights);
        m->ops->close(m->ctx);
    }
    free(g);
}

int engine_set_comm(struct engine *g, struct comm *comm, struct err *e)
{
    if (comm->size != (int)g->model.tp_size || comm->rank != (int)g->model.tp_rank)
        return err_set(e, -EINVAL, "the comm is rank %d of %d, the engine is rank %u of %u",
                       comm->rank, comm->size, g->model.tp_rank, g->model.tp_size);
    if (comm->n_stages != (int)g->pp_size || comm->stage != (int)g->stage)
        return err_set(e, -EINVAL, "the comm is stage %d of %d, the engine is stage %u of %u",
                       comm->stage, comm->n_stages, g->stage, g->pp_size);
    engine_drop_comm(g);
    if (!g->fake) {
        int r = comm_device_open(&g->model.sums, g->collectives, g->model.ops, g->model.ctx, comm,
                                 g->limits.max_tokens, g->model.arch->hidden, e);
        if (r < 0)
            return r;
    }
    g->comm = comm;
    engine_reset(g);
    return 0;
}

void engine_drop_comm(struct engine *g)
{
    comm_device_close(&g->model.sums);
    g->comm = NULL;
}

const char *engine_collectives(struct engine *g)
{
    return comm_device_words(&g->model.sums);
}

void engine_collective_times(const struct engine *g, struct k_comm_times *ret)
{
    comm_device_times(&g->model.sums, ret);
}

void engine_reset(struct engine *g)
{
    if (g->fake)
        fake_reset(g->fake);
    else
        batch_reset(&g->batch);
    g->state_hash = 0;
    g->failed = 0;
}

static bool is_last_stage(const struct engine *g)
{
    return g->stage + 1 == g->pp_size;
}

/* ---- a step ---- */

static void begin_results(struct engine *g, const struct plan *p)
{
    struct results *r = &g->outputs.results;
    for (uint32_t i = 0; i != p->n_items; i++)
        r->items[i] = (struct result_item){
            .slot = p->items[i].slot, .slot_gen = p->items[i].slot_gen, .token = -1};
    memset(r->groups, 0, p->n_groups * sizeof *r->groups);
    r->step = (struct step_result){.epoch = p->epoch,
                                   .step = p->step,
                                   .items = r->items,
                                   .n_items = p->n_items,
                                   .groups = r->groups,
                                   .n_groups = p->n_groups};
}

static int run_plan(struct engine *g, const struct plan *p, struct err *e)
{
    struct glm *m = &g->model;
    for (uint32_t i = 0; i != p->n_copies; i++)
        m->ops->kv_copy(m->ctx, m->kv, p->copies[i].src, p->copies[i].dst);
    batch_build(&g->batch, p);
    begin_results(g, p);
    if (g->batch.n_rows == 0)
        return 0;
    const struct glm_tail tail = outputs_tail(&g->outputs, p);
    struct glm_batch batch = {.ids = g->batch.ids,
                              .positions = g->batch.positions,
                              .n_rows = g->batch.n_rows,
                              .seqs = g->batch.seqs,
                              .n_seqs = g->batch.n_seqs,
                              .n_whole_rows = g->batch.n_whole_rows,
                              .n_whole_seqs = g->batch.n_whole_seqs,
                              .slice_begin = p->layer_begin,
                              .slice_end = p->layer_end,
                              .tail = is_last_stage(g) ? &tail : NULL};
    int r = glm_forward(m, &batch, g->comm, e);
    if (r == 0 && is_last_stage(g) && g->batch.n_outputs) /* waits for what it reads */
        return outputs_produce(&g->outputs, p, g->comm, e);
    return r == 0 ? glm_wait(m, g->comm, e) : r;
}

/* The step on a real device. */
static int step_model(struct engine *g, const struct plan *plan, const struct step_result **ret,
                      struct err *e)
{
    int64_t begin_ns = clock_now_ns();
    int r = batch_check(&g->batch, plan, e);
    if (r < 0)
        return r; /* as on every other rank */
    r = is_last_stage(g) ? outputs_reserve(&g->outputs, plan, e) : 0;
    if (r == 0)
        r = run_plan(g, plan, e);
    if (r < 0) {
        g->failed = r;
        return r;
    }
    batch_commit(&g->batch, plan, g->outputs.results.items);
    g->state_hash =
        plan_state_hash(g->state_hash, plan, g->outputs.results.items, g->outputs.results.groups);
    struct step_result *result = &g->outputs.results.step;
    result->state_hash = g->state_hash;
    result->compute_ns = clock_now_ns() - begin_ns;
    *ret = result;
    return 0;
}

int engine_step(struct engine *g, const struct plan *plan, const struct step_result **ret,
                struct err *e)
{
    assert(g->comm);
    if (g->failed)
        return err_set(e, g->failed, "an earlier step of this epoch failed: %s",
                       err_name(g->failed));
    int r = g->fake ? fake_step(g->fake, plan, ret, e) : step_model(g, plan, ret, e);
    if (r < 0)
        return r;
    g->stats.steps++;
    g->stats.compute_ns += (uint64_t)(*ret)->compute_ns;
    g->stats.link_wait_ns = g->model.link_wait_ns;
    g->stats.sample_ns = g->outputs.sample_ns;
    g->stats.shared_rows = g->outputs.n_shared_rows;
    g->stats.wide_rows = g->outputs.n_wide_rows;
    g->stats.sum_ns = g->model.sum_ns;
    for (uint32_t i = 0; i != plan->n_items; i++) {
        const struct plan_item *it = &plan->items[i];
        if (it->sliced && plan->layer_end < g->limits.n_layers)
            continue; /* counted with its last slice */
        *(it->start ? &g->stats.decode_tokens : &g->stats.prefill_tokens) += it->n_tokens;
    }
    return 0;
}

int engine_known_answer(struct engine *g, uint64_t *ret_hash, struct err *e)
{
    engine_reset(g);
    int r = known_answer_run(g, g->model.arch, g->comm, ret_hash, e);
    if (r == 0 && g->fake) /* what others expect of this model, where the directory says it */
        model_dir_known_answer(g->dir, ret_hash);
    if (r == 0)
        engine_reset(g);
    else
        err_prefix(e, "known answer");
    return r;
}

/* ---- what there is to know ---- */

void engine_limits(const struct engine *g, struct plan_limits *ret)
{
    *ret = g->limits;
}

void engine_layers(const struct engine *g, uint32_t *ret_begin, uint32_t *ret_end)
{
    *ret_begin = g->model.layer_begin;
    *ret_end = g->model.layer_end;
}

size_t engine_link_bytes(const struct engine *g)
{
    size_t row_bytes = g->model.arch->hidden * sizeof(float);
    return g->pp_size > 1 ? g->limits.max_tokens * row_bytes : 0;
}

void engine_memory(const struct engine *g, struct engine_memory *ret)
{
    const struct plan_limits *l = &g->limits;
    if (g->fake) {
        *ret = (struct engine_memory){.kv = g->kv_bytes};
        return;
    }
    const struct glm *m = &g->model;
    const struct k_sizes *sizes = k_sizes(m->ops->name);
    uint64_t rope = sizes->rope_bytes(l->max_seq, m->arch->head_dim / 2);
    struct k_memory context = {0};
    if (m->ops->context_memory)
        m->ops->context_memory(m->ctx, &context);
    uint64_t device_sampler =
        g->outputs.device ? outputs_device_bytes(m->ops->name, m->tp_size, l) : 0;
    *ret = (struct engine_memory){
        .weights = g->model.weights.bytes,
        .kv = g->kv_bytes,
        .scratch = m->ws.bytes + m->ops->product_bytes(m->ctx) + rope + context.device +
                   context.host + sums_bytes(g) + g->batch.bytes +
                   outputs_bytes(l, m->ops->sample) + device_sampler +
                   g->outputs.results.logits_cap * sizeof(float),
    };
}

void engine_graphs(const struct engine *g, struct k_graph_stats *ret)
{
    const struct glm *m = &g->model;
    *ret = (struct k_graph_stats){0};
    if (m->ops && m->ops->graph_stats)
        m->ops->graph_stats(m->ctx, ret);
}

void engine_stats(const struct engine *g, struct engine_stats *ret)
{
    *ret = g->stats;
}

bool engine_profile(const struct engine *g, struct k_profile *ret)
{
    if (g->fake || !g->model.ops->profile)
        return false;
    g->model.ops->profile(g->model.ctx, ret);
    return true;
}

void engine_weights_report(const struct engine *g, struct weights_report *ret)
{
    *ret = g->model.weights.loaded;
}

bool engine_is_fake(const struct engine *g)
{
    return g->fake;
}

const char *engine_describe(const struct engine *g)
{
    return g->describe;
}

void engine_capture_layers(struct engine *g, float *buffer, uint32_t max_rows)
{
    g->model.capture = buffer;
    g->model.capture_rows = max_rows;
}
