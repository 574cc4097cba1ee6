/* rope.c: rotates q and k and files k and v in the cache, in its type (kv.h). */
#include "isa.h"

#include "base/half.h"

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

/* src[n] as values of the cache of this type; n is a multiple of 16. Returns the scale (K_KV_I8).
 */
static uint16_t encode(enum k_kv_type type, const float *src, uint32_t n, uint8_t *dst)
{
    if (type == K_KV_F32) {
        memcpy(dst, src, n * sizeof *src);
        return 0;
    }
    if (type == K_KV_F16) {
        for (uint32_t i = 0; i < n; i += VEC)
            vf_store_half((uint16_t *)dst + i, vf_load(src + i));
        return 0;
    }
    vi largest = vi_zero(); /* as integers magnitudes have the same order, and NaN comes last */
    for (uint32_t i = 0; i < n; i += VEC)
        largest = vi_max(largest, vi_and(vi_bits(vf_load(src + i)), vi_set1(0x7fffffff)));
    int32_t bits = vi_max_lanes(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    uint16_t stored = cpu_kv_scale(magnitude);
    float scale = half_to_float(stored);
    if (!(scale > 0.0f && scale <= 65504.0f)) { /* all zeros, or not finite */
        memset(dst, 0, n);
        return stored;
    }
    const vf inverse = vf_set1(1.0f / scale);
    for (uint32_t i = 0; i < n; i += VEC)
        vi_store_i8((int8_t *)dst + i, vi_from_float(vf_rint(vf_mul(vf_load(src + i), inverse))));
    return stored;
}

/* dst[i * 16] = src[i], values of `size` bytes */
static void scatter(uint8_t *dst, const uint8_t *src, size_t size, uint32_t n)
{
    if (size == sizeof(int8_t))
        for (uint32_t i = 0; i < n; i++)
            dst[i * VEC] = src[i];
    else if (size == sizeof(uint16_t))
        for (uint32_t i = 0; i < n; i++)
            ((uint16_t *)dst)[i * VEC] = ((const uint16_t *)src)[i];
    else
        for (uint32_t i = 0; i < n; i++)
            ((float *)dst)[i * VEC] = ((const float *)src)[i];
}

/* k and v [head_dim], padded with zeros to dim_pad, become token `token` of the sequence. */
static void store_token(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t kv_head,
                        uint32_t token, const float *k, const float *v)
{
    const struct k_kv *kv = j->kv;
    uint32_t block = seq->blocks[token / kv->p.block_tokens];
    uint32_t slot = token % kv->p.block_tokens;
    assert(block < kv->p.n_blocks);
    uint8_t *head = cpu_kv_head(kv, j->p.layer, block, kv_head);
    size_t key_at = (size_t)(slot / VEC) * kv->dim_pad * VEC + slot % VEC;
    size_t value_at = (size_t)slot * kv->dim_pad;
    float key[MAX_DIM]; /* as values of the cache */
    uint16_t key_scale = encode(kv->type, k, kv->dim_pad, (uint8_t *)key);
    scatter(head + kv->keys_at + key_at * kv->value_bytes, (const uint8_t *)key, kv->value_bytes,
            kv->dim_pad);
    uint8_t *value = head + kv->values_at + value_at * kv->value_bytes;
    uint16_t value_scale = encode(kv->type, v, kv->dim_pad, value);
    if (kv->type == K_KV_I8) {
        cpu_kv_scales(kv, head, false, slot / VEC)[slot % VEC] = key_scale;
        cpu_kv_scales(kv, head, true, slot / VEC)[slot % VEC] = value_scale;
    }
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
