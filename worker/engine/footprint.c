/* footprint.c: see footprint.h. */
#include "worker/engine/footprint.h"

#include <assert.h>

#include "base/util.h"
#include "model/shard.h"
#include "worker/engine/batch.h"
#include "worker/engine/outputs.h"
#include "worker/engine/weights.h"
#include "worker/engine/workspace.h"

enum { MIN_STEP_TOKENS = 16 };

void footprint_limits(const struct arch *a, uint32_t n_slots, uint32_t max_step_tokens,
                      struct plan_limits *ret)
{
    uint32_t max_tokens = max_step_tokens ? max_step_tokens : a->max_seq;
    *ret = (struct plan_limits){
        .n_slots = n_slots,
        .max_tokens = MAX(MAX(max_tokens, n_slots), (uint32_t)MIN_STEP_TOKENS),
        .max_seq = a->max_seq,
        .vocab = a->vocab,
        .n_layers = a->n_layers,
        .n_top_logprobs = MIN((uint32_t)PLAN_MAX_TOP_LOGPROBS, a->vocab),
    };
}

static void add_linear(const struct footprint_rank *r, enum k_weight type, uint64_t rows,
                       uint64_t cols, uint32_t n_groups, uint32_t max_rows, uint64_t *weights,
                       size_t *product)
{
    const struct k_sizes *s = r->sizes;
    *weights += s->linear_bytes(type, (uint32_t)rows, (uint32_t)cols, n_groups);
    size_t bytes = s->product_bytes(max_rows, type, (uint32_t)rows, (uint32_t)cols, n_groups);
    *product = MAX(*product, bytes);
}

/* What a rank packs of one tensor, and what its context then keeps for products with it. */
static int add_tensor(const struct footprint_rank *r, const struct shard_tensor *t,
                      uint32_t max_rows, uint64_t *weights, size_t *product, struct err *e)
{
    struct shard_piece pieces[2];
    size_t n = shard_pieces(t, r->tp_size, 0, pieces);
    uint64_t rows = pieces[0].n_rows + (n == 2 ? pieces[1].n_rows : 0);
    uint64_t cols = pieces[0].n_cols;
    if (t->role == SHARD_ROLE_NORM) { /* two tensors, weight and bias */
        *weights += r->sizes->norm_bytes((uint32_t)rows) / 2;
    } else if (t->role == SHARD_ROLE_BIAS) { /* those of split rows belong to their linear */
        *weights += t->split == SHARD_COPY ? r->sizes->bias_bytes((uint32_t)rows) : 0;
    } else {
        struct quant_groups groups = {.n_groups = 1, .group_cols = (uint32_t)cols};
        bool quantized = quant_applies(r->scheme, t);
        int code = quantized ? quant_piece_groups(r->scheme, t, &pieces[0], &groups, e) : 0;
        if (code < 0)
            return code;
        enum k_weight type = (enum k_weight)(quantized ? r->scheme->weights : QUANT_FP16);
        const bool embedding = t->role == SHARD_ROLE_EMBEDDING;
        const struct weights_embedding use =
            weights_embedding(r->arch, r->scheme, r->layer_begin, r->layer_end);
        if (!embedding || use.fp16)
            add_linear(r, type, rows, cols, groups.n_groups, max_rows, weights, product);
        if (embedding && use.int8_head)
            add_linear(r, K_WEIGHT_I8, rows, cols, 1, max_rows, weights, product);
    }
    return 0;
}

int footprint_of(const struct footprint_rank *r, const struct plan_limits *limits,
                 struct footprint *ret, struct err *e)
{
    const struct arch *a = r->arch;
    assert(r->layer_begin < r->layer_end && r->layer_end <= a->n_layers);
    int code = arch_check_tp(a, r->tp_size, e);
    if (code == 0)
        code = quant_check(r->scheme, a, e);
    *ret = (struct footprint){0};
    size_t product = 0, n_tensors = shard_n_tensors(a);
    for (size_t i = 0; i != n_tensors && code == 0; i++) {
        if (!weights_stage_needs(a, r->layer_begin, r->layer_end, i))
            continue;
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        code = add_tensor(r, &t, limits->max_tokens, &ret->weights, &product, e);
    }
    if (code < 0)
        return code;

    struct k_kv_params kv = {.n_layers = r->layer_end - r->layer_begin,
                             .n_kv_heads = a->n_kv_heads / r->tp_size,
                             .head_dim = a->head_dim,
                             .n_blocks = 1,
                             .block_tokens = PLAN_KV_BLOCK_TOKENS,
                             .type = r->kv_type};
    ret->kv_block = r->sizes->kv_block_bytes(r->mode, &kv);
    if (!ret->kv_block)
        return err_set(e, -EINVAL, "backend %s has no KV cache in %s", r->sizes->backend,
                       k_kv_type_name(k_kv_resolve(r->kv_type, r->mode)));

    bool alone = r->tp_size == 1 && r->layer_end - r->layer_begin == a->n_layers;
    struct workspace_sizes ws;
    workspace_sizes(a, r->tp_size, limits->max_tokens, r->sizes->act_bytes(), &ws);
    struct k_memory context;
    r->sizes->context_memory(limits->max_tokens, a->max_seq, r->mode, &kv, &context);
    ret->scratch = workspace_device_bytes(&ws) + product +
                   r->sizes->rope_bytes(a->max_seq, a->head_dim / 2) + context.device +
                   r->sizes->sums_bytes(r->tp_size, limits->max_tokens, a->hidden);
    if (r->layer_end == a->n_layers)
        ret->scratch += outputs_device_bytes(r->sizes->backend, r->tp_size, limits);
    ret->scratch_host = workspace_host_bytes(&ws, alone, r->sizes->host_memory) + context.host +
                        batch_bytes(limits) + outputs_bytes(limits, r->sizes->sampler_bytes);
    return 0;
}
