/* rope.c: rotates q and k and files k and v in the cache. */
#include "isa.h"

#include <assert.h>

enum { MAX_DIM = CPU_MAX_HEAD_DIM };

/* y[i] = x[i] cos - x[i + half] sin; y[i + half] = x[i + half] cos + x[i] sin */
static void rotate(const struct k_rope *r, uint32_t position, const float *x, float *y)
{
    const float *cos = r->cos + (size_t)position * r->half_dim;
    const float *sin = r->sin + (size_t)position * r->half_dim;
    for (uint32_t i = 0; i < r->half_dim; i += VEC) {
        int n = r->half_dim - i < VEC ? (int)(r->half_dim - i) : VEC;
        vf c = vf_load_n(cos + i, n), s = vf_load_n(sin + i, n);
        vf x0 = vf_load_n(x + i, n), x1 = vf_load_n(x + r->half_dim + i, n);
        vf_store_n(y + i, vf_sub(vf_mul(x0, c), vf_mul(x1, s)), n);
        vf_store_n(y + r->half_dim + i, vf_add(vf_mul(x1, c), vf_mul(x0, s)), n);
    }
}

/* dst[i * stride] = src[i] as an element of the cache; n is a multiple of 16. */
static void store_column(const struct k_kv *kv, uint8_t *dst, size_t stride, const float *src,
                         uint32_t n)
{
    if (!kv->half) {
        for (uint32_t i = 0; i < n; i++)
            ((float *)dst)[i * stride] = src[i];
        return;
    }
    uint16_t half[MAX_DIM];
    for (uint32_t i = 0; i < n; i += VEC)
        vf_store_half(half + i, vf_load(src + i));
    for (uint32_t i = 0; i < n; i++)
        ((uint16_t *)dst)[i * stride] = half[i];
}

static void store_row(const struct k_kv *kv, uint8_t *dst, const float *src, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += VEC) {
        if (kv->half)
            vf_store_half((uint16_t *)dst + i, vf_load(src + i));
        else
            vf_store((float *)dst + i, vf_load(src + i));
    }
}

/* k and v [head_dim], padded with zeros to dim_pad, become token `token` of the sequence. */
static void store_token(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t kv_head,
                        uint32_t token, const float *k, const float *v)
{
    const struct k_kv *kv = j->kv;
    uint32_t block = seq->blocks[token / kv->p.block_tokens];
    uint32_t slot = token % kv->p.block_tokens;
    assert(block < kv->p.n_blocks);
    size_t size = kv->half ? sizeof(uint16_t) : sizeof(float);
    uint8_t *head = cpu_kv_head(kv, j->p.layer, block, kv_head);
    size_t k_at = (size_t)(slot / VEC) * kv->dim_pad * VEC + slot % VEC;
    store_column(kv, head + k_at * size, VEC, k, kv->dim_pad);
    size_t v_at = (size_t)(kv->token_groups * VEC + slot) * kv->dim_pad;
    store_row(kv, head + v_at * size, v, kv->dim_pad);
}

/* One token, one key-value head with its q heads. */
static void rope_row(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t kv_head,
                     uint32_t i)
{
    const struct k_attn_params *p = &j->p;
    uint32_t dim = p->head_dim, shared = p->n_heads / p->n_kv_heads;
    size_t row = seq->row0 + i;
    const float *x = j->qkv + (row * p->n_kv_heads + kv_head) * (shared + 2) * dim;
    float *q = j->q + (row * p->n_heads + (size_t)kv_head * shared) * dim;
    int32_t position = j->positions[row];
    assert(position >= 0 && (uint32_t)position < j->rope->max_seq);
    for (uint32_t h = 0; h < shared; h++)
        rotate(j->rope, (uint32_t)position, x + (size_t)h * dim, q + (size_t)h * dim);
    float k[MAX_DIM], v[MAX_DIM];
    memset(k, 0, j->kv->dim_pad * sizeof *k);
    memset(v, 0, j->kv->dim_pad * sizeof *v);
    rotate(j->rope, (uint32_t)position, x + (size_t)shared * dim, k);
    memcpy(v, x + (size_t)(shared + 1) * dim, dim * sizeof *v);
    store_token(j, seq, kv_head, seq->start + i, k, v);
}

CPU_RANGE_FN(rope, cpu_rope_job)
{
    for (uint64_t head = first; head < end; head++)
        for (uint32_t s = 0; s < j->n_seqs; s++)
            for (uint32_t i = 0; i < j->seqs[s].n_rows; i++)
                rope_row(j, &j->seqs[s], (uint32_t)head, i);
}
