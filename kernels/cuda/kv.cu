/* kv.cu: the cache's memory and copies of its blocks. Layout: kv.h. */
#include "kernels/cuda/kv.h"

#include <cassert>
#include <cstdlib>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dev.h"
#include "kernels/cuda/memory.h"

namespace
{

enum { THREADS = 256, PER_THREAD = 4 };

struct copy_params {
    uint8_t *data; /* of layer 0 */
    size_t layer_bytes, block_bytes;
    uint32_t src, dst;
};

/* One layer's block, in words of 16 bytes. */
DEV_KERNEL(THREADS, 1) void copy_kernel(DEV_PARAMS(copy_params) p)
{
    uint8_t *layer = p.data + dev_cta_y() * p.layer_bytes;
    size_t first = (size_t)dev_cta_x() * THREADS * PER_THREAD + dev_thread();
    DEV_UNROLL
    for (int i = 0; i < PER_THREAD; i++) {
        size_t at = (first + (size_t)i * THREADS) * 16;
        if (at < p.block_bytes)
            dev_store16(layer + p.dst * p.block_bytes + at,
                        dev_load16(layer + p.src * p.block_bytes + at));
    }
}

/* False: there is no such cache. */
bool geometry(const struct k_ctx *c, const struct k_kv_params *p, struct k_kv *ret)
{
    *ret = {};
    ret->p = *p;
    ret->type = k_kv_resolve(p->type, c->mode);
    if (ret->type != K_KV_F16 && ret->type != K_KV_I8)
        return false;
    if (p->head_dim > CUDA_MAX_HEAD_DIM || p->head_dim % 16 || p->block_tokens % CUDA_KV_GROUP)
        return false;
    struct cuda_kv_view *v = &ret->view;
    const bool i8 = ret->type == K_KV_I8;
    v->n_kv_heads = p->n_kv_heads;
    v->block_tokens = p->block_tokens;
    v->dim_pad = (p->head_dim + 63) / 64 * 64;
    v->vector_bytes = v->dim_pad * (i8 ? 1 : 2);
    v->keys_at = i8 ? 2 * p->block_tokens * (uint32_t)sizeof(uint16_t) : 0;
    v->values_at = v->keys_at + p->block_tokens * v->vector_bytes;
    v->head_bytes = v->values_at + p->block_tokens * v->vector_bytes;
    ret->layer_bytes = (size_t)p->n_blocks * p->n_kv_heads * v->head_bytes;
    return true;
}

bool reserve_scratch(struct k_ctx *c, const struct k_kv *kv)
{
    const size_t bytes =
        memory_attention(c->max_rows, c->max_seq, kv->p.n_kv_heads, kv->view.dim_pad);
    const size_t n = (size_t)c->max_rows * kv->p.n_kv_heads;
    if (c->attention_bytes < bytes) {
        cuda_free(c, c->attention);
        c->attention = cuda_new(c, bytes);
        c->attention_bytes = c->attention ? bytes : 0;
    }
    if (c->n_attention_counters < n) {
        cuda_free(c, c->attention_counters);
        c->attention_counters = (uint32_t *)cuda_new(c, n * sizeof(uint32_t));
        c->n_attention_counters = c->attention_counters ? n : 0;
    }
    return c->attention && c->attention_counters;
}

} // namespace

size_t cuda_kv_block_bytes(struct k_ctx *c, const struct k_kv_params *p)
{
    struct k_kv kv;
    if (!geometry(c, p, &kv))
        return 0;
    return (size_t)p->n_layers * p->n_kv_heads * kv.view.head_bytes;
}

struct k_kv *cuda_kv_new(struct k_ctx *c, const struct k_kv_params *p)
{
    struct k_kv *kv = (struct k_kv *)malloc(sizeof *kv);
    if (!kv)
        return nullptr;
    bool known = geometry(c, p, kv);
    assert(known);
    size_t bytes;
    if (!__builtin_mul_overflow(kv->layer_bytes, (size_t)p->n_layers, &bytes))
        kv->view.data = (uint8_t *)cuda_new(c, bytes);
    bool there = kv->view.data && reserve_scratch(c, kv);
    if (!there || cuda_step_reserve(c, p->block_tokens)) {
        cuda_kv_free(c, kv);
        return nullptr;
    }
    return kv;
}

void cuda_kv_free(struct k_ctx *c, struct k_kv *kv)
{
    if (!kv)
        return;
    cuda_free(c, kv->view.data);
    free(kv);
}

void cuda_kv_copy(struct k_ctx *c, struct k_kv *kv, uint32_t src, uint32_t dst)
{
    assert(src < kv->p.n_blocks && dst < kv->p.n_blocks);
    if (src == dst)
        return;
    copy_params p = {kv->view.data, kv->layer_bytes, (size_t)kv->p.n_kv_heads * kv->view.head_bytes,
                     src, dst};
    cuda_enter(c);
    struct dev_launch at = {};
    const size_t per_cta = (size_t)THREADS * PER_THREAD * 16;
    at.grid = {(unsigned)((p.block_bytes + per_cta - 1) / per_cta), kv->p.n_layers, 1};
    at.threads = THREADS;
    at.stream = c->stream;
    cuda_check(c, dev_run(at, copy_kernel, p), "copy of a block");
}
