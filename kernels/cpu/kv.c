/* kv.c: the paged cache: sizes, memory, copies of blocks. Layout: kv.h. */
#include "cpu.h"
#include "mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ODD_FROM_PIECES = 64 }; /* which adds 1.6 % at most */

static struct k_kv geometry(enum k_mode mode, const struct k_kv_params *p)
{
    struct k_kv kv = {.p = *p, .type = k_kv_resolve(p->type, mode)};
    assert(kv.type == K_KV_F32 || kv.type == K_KV_F16 || kv.type == K_KV_I8);
    kv.dim_pad = (p->head_dim + CPU_KV_LANES - 1) / CPU_KV_LANES * CPU_KV_LANES;
    kv.token_groups = (p->block_tokens + CPU_KV_LANES - 1) / CPU_KV_LANES;
    kv.value_bytes = CPU_KV_VALUE_BYTES(kv.type);
    size_t tokens = (size_t)kv.token_groups * CPU_KV_LANES;
    kv.keys_at = 2 * tokens * CPU_KV_SCALE_BYTES(kv.type);
    kv.values_at = kv.keys_at + tokens * kv.dim_pad * kv.value_bytes;
    kv.head_bytes = kv.values_at + tokens * kv.dim_pad * kv.value_bytes;
    assert(kv.head_bytes == CPU_KV_HEAD_BYTES(kv.type, tokens, kv.dim_pad));
    /* Of many pieces an odd number: a head's pieces of the blocks would otherwise be a power of two
     * apart in many models, and compete for the same few lines of the caches. */
    size_t pieces = (size_t)p->n_layers * p->n_kv_heads;
    kv.block_bytes = (pieces < ODD_FROM_PIECES ? pieces : pieces | 1) * kv.head_bytes;
    return kv;
}

size_t cpu_sizes_kv_block(enum k_mode mode, const struct k_kv_params *p)
{
    return geometry(mode, p).block_bytes;
}

size_t cpu_kv_block_bytes(struct k_ctx *c, const struct k_kv_params *p)
{
    return cpu_sizes_kv_block(c->mode, p);
}

static int reserve_scores(struct k_ctx *c, const struct k_kv *kv)
{
    uint32_t blocks = (c->max_seq + kv->p.block_tokens - 1) / kv->p.block_tokens;
    size_t groups = (size_t)blocks * kv->token_groups;
    uint32_t rows = c->kernels->attention_rows;
    size_t thread = groups * CPU_KV_LANES * rows;
    if (c->mode != K_MODE_FP32) {
        size_t context =
            cpu_context_bytes(groups, kv->dim_pad, rows) / sizeof(float) + CPU_KV_LANES;
        thread = context / CPU_KV_LANES * CPU_KV_LANES; /* more than the scores */
    }
    int e =
        mem_reserve(&c->scores, &c->score_bytes, thread * pool_threads(c->pool) * sizeof(float));
    if (!e && thread > c->scores_per_thread)
        c->scores_per_thread = thread;
    return e;
}

struct k_kv *cpu_kv_new(struct k_ctx *c, const struct k_kv_params *p)
{
    assert(p->n_layers && p->n_kv_heads && p->n_blocks && p->block_tokens);
    assert(p->head_dim && p->head_dim <= CPU_MAX_HEAD_DIM);
    struct k_kv *kv = malloc(sizeof *kv);
    if (!kv)
        return NULL;
    *kv = geometry(c->mode, p);
    size_t bytes;
    if (!__builtin_mul_overflow(cpu_kv_block_bytes(c, p), (size_t)p->n_blocks, &bytes))
        kv->data = mem_alloc(bytes);
    if (!kv->data || reserve_scores(c, kv)) {
        cpu_kv_free(c, kv);
        return NULL;
    }
    return kv;
}

void cpu_kv_free(struct k_ctx *c, struct k_kv *kv)
{
    (void)c;
    if (!kv)
        return;
    mem_free(kv->data);
    free(kv);
}

void cpu_kv_copy(struct k_ctx *c, struct k_kv *kv, uint32_t src, uint32_t dst)
{
    (void)c;
    assert(src < kv->p.n_blocks && dst < kv->p.n_blocks);
    if (src == dst)
        return;
    memcpy(kv->data + dst * kv->block_bytes, kv->data + src * kv->block_bytes, kv->block_bytes);
}
