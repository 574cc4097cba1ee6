/* rope.c: rotates q and k and files k and v in the cache, in its type (kv.h).
 *
 * Tokens go in runs: those of a step that share a group of 16 in the cache. For a whole group keys
 * are transposed in registers; a part of one is scattered value by value, beside what is there.
 */
#include "isa.h"

#include "base/half.h"

#include <assert.h>

enum { MAX_DIM = CPU_MAX_HEAD_DIM };
enum { KEY_STRIDE = CPU_KEY_STRIDE };

/* y[i] = x[i] cos - x[i + half] sin; y[i + half] = x[i + half] cos + x[i] sin */
static void rotate(const struct k_rope *r, uint32_t position, const float *x, float *y)
{
    const uint32_t half = r->half_dim;
    const float *cos = r->cos + (size_t)position * half;
    const float *sin = r->sin + (size_t)position * half;
    uint32_t i = 0;
    for (; i + VEC <= half; i += VEC) {
        vf c = vf_load(cos + i), s = vf_load(sin + i);
        vf x0 = vf_load(x + i), x1 = vf_load(x + half + i);
        vf_store(y + i, vf_sub(vf_mul(x0, c), vf_mul(x1, s)));
        vf_store(y + half + i, vf_add(vf_mul(x1, c), vf_mul(x0, s)));
    }
    if (i < half) {
        int n = (int)(half - i);
        vf c = vf_load_n(cos + i, n), s = vf_load_n(sin + i, n);
        vf x0 = vf_load_n(x + i, n), x1 = vf_load_n(x + half + i, n);
        vf_store_n(y + i, vf_sub(vf_mul(x0, c), vf_mul(x1, s)), n);
        vf_store_n(y + half + i, vf_add(vf_mul(x1, c), vf_mul(x0, s)), n);
    }
}

/* x[n] becomes its integers, as floats; returns its scale (K_KV_I8). n is a multiple of 16. */
static uint16_t quantize(float *x, uint32_t n)
{
    vi largest = vi_zero(); /* as integers magnitudes have the same order, and NaN comes last */
    for (uint32_t i = 0; i < n; i += VEC)
        largest = vi_max(largest, vi_and(vi_bits(vf_load(x + i)), vi_set1(0x7fffffff)));
    int32_t bits = vi_max_lanes(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    uint16_t stored = cpu_kv_scale(magnitude);
    float scale = half_to_float(stored);
    if (!(scale > 0.0f && scale <= 65504.0f)) { /* all zeros, or not finite */
        memset(x, 0, n * sizeof *x);
        return stored;
    }
    const vf inverse = vf_set1(1.0f / scale);
    for (uint32_t i = 0; i < n; i += VEC)
        vf_store(x + i, vf_rint(vf_mul(vf_load(x + i), inverse)));
    return stored;
}

/* 16 values (integers in K_KV_I8) as the cache has them. */
VEC_FN void store_cached(enum k_kv_type type, uint8_t *dst, vf x)
{
    if (type == K_KV_I8)
        vi_store_i8((int8_t *)dst, vi_from_float(x));
    else if (type == K_KV_F16)
        vf_store_half((uint16_t *)dst, x);
    else
        vf_store((float *)dst, x);
}

/* x[n] to dst, one behind the other; n is a multiple of 16. */
VEC_FN void store_row(enum k_kv_type type, const float *x, uint32_t n, uint8_t *dst)
{
    for (uint32_t i = 0; i < n; i += VEC)
        store_cached(type, dst + i * CPU_KV_VALUE_BYTES(type), vf_load(x + i));
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

/* Tokens of a sequence that lie in one group of a block, and one key-value head. */
struct run {
    const struct cpu_rope_job *j;
    uint32_t kv_head, n;
    size_t row0;                 /* of the step */
    uint8_t *keys, *values;      /* of the group */
    uint32_t slot;               /* of the first token, in the group */
    uint16_t *k_scale, *v_scale; /* of its tokens, K_KV_I8 only */
};

static struct run find_run(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t kv_head,
                           uint32_t i, uint32_t n)
{
    const struct k_kv *kv = j->kv;
    const uint32_t token = seq->start + i, slot = token % kv->p.block_tokens, group = slot / VEC;
    const uint32_t block = seq->blocks[token / kv->p.block_tokens];
    assert(block < kv->p.n_blocks);
    uint8_t *head = cpu_kv_head(kv, j->p.layer, block, kv_head);
    const size_t piece = (size_t)group * VEC * kv->dim_pad * kv->value_bytes;
    return (struct run){
        .j = j,
        .kv_head = kv_head,
        .n = n,
        .row0 = seq->row0 + i,
        .keys = head + kv->keys_at + piece,
        .values = head + kv->values_at + piece,
        .slot = slot % VEC,
        .k_scale = cpu_kv_scales(kv, head, false, group) + slot % VEC,
        .v_scale = cpu_kv_scales(kv, head, true, group) + slot % VEC,
    };
}

/* keys: [n][KEY_STRIDE], padded. */
VEC_FN void store_keys(const struct run *run, enum k_kv_type type, float *keys)
{
    const uint32_t dim = run->j->kv->dim_pad;
    const size_t size = CPU_KV_VALUE_BYTES(type);
    for (uint32_t t = 0; type == K_KV_I8 && t < run->n; t++)
        run->k_scale[t] = quantize(keys + t * KEY_STRIDE, dim);
    if (run->n == VEC) {
        for (uint32_t d = 0; d < dim; d += VEC) {
            vf v[VEC];
            TILE_UNROLL for (uint32_t t = 0; t < VEC; t++) v[t] =
                vf_load(keys + t * KEY_STRIDE + d);
            vf_transpose(v);
            TILE_UNROLL for (uint32_t i = 0; i < VEC; i++)
                store_cached(type, run->keys + (size_t)(d + i) * VEC * size, v[i]);
        }
        return;
    }
    for (uint32_t t = 0; t < run->n; t++) {
        float key[MAX_DIM]; /* as values of the cache */
        store_row(type, keys + t * KEY_STRIDE, dim, (uint8_t *)key);
        scatter(run->keys + (run->slot + t) * size, (const uint8_t *)key, size, dim);
    }
}

/* x: [head_dim] of token t of the run. */
VEC_FN void store_value(const struct run *run, enum k_kv_type type, uint32_t t, const float *x)
{
    const uint32_t dim = run->j->p.head_dim, dim_pad = run->j->kv->dim_pad;
    float padded[MAX_DIM];
    const bool as_it_is = type != K_KV_I8 && dim == dim_pad;
    if (!as_it_is) {
        memcpy(padded, x, dim * sizeof *x);
        memset(padded + dim, 0, (dim_pad - dim) * sizeof *x);
    }
    if (type == K_KV_I8)
        run->v_scale[t] = quantize(padded, dim_pad);
    store_row(type, as_it_is ? x : padded, dim_pad,
              run->values + (size_t)(run->slot + t) * dim_pad * CPU_KV_VALUE_BYTES(type));
}

/* Tokens [t, end) of a run, with the head's rows of q; x: the head's columns of the first of them,
 * rows are x_stride apart. keys: [n][KEY_STRIDE], filed with the last token. */
VEC_FN void rope_tokens(const struct run *run, enum k_kv_type type, uint32_t t, uint32_t end,
                        const float *x, size_t x_stride, float *keys)
{
    const struct cpu_rope_job *j = run->j;
    const struct k_attn_params *p = &j->p;
    const uint32_t dim = p->head_dim, shared = p->n_heads / p->n_kv_heads;
    for (; t < end; t++, x += x_stride) {
        const size_t row = run->row0 + t;
        float *q = j->q + (row * p->n_heads + (size_t)run->kv_head * shared) * dim;
        const int32_t position = j->positions[row];
        assert(position >= 0 && (uint32_t)position < j->rope->max_seq);
        for (uint32_t h = 0; h < shared; h++)
            rotate(j->rope, (uint32_t)position, x + (size_t)h * dim, q + (size_t)h * dim);
        float *key = keys + t * KEY_STRIDE;
        rotate(j->rope, (uint32_t)position, x + (size_t)shared * dim, key);
        memset(key + dim, 0, (j->kv->dim_pad - dim) * sizeof *key);
        store_value(run, type, t, x + (size_t)(shared + 1) * dim);
    }
    if (end == run->n)
        store_keys(run, type, keys);
}

static void rope_run(const struct run *run, uint32_t t, uint32_t end, const float *x,
                     size_t x_stride, float *keys)
{
    const enum k_kv_type type = run->j->kv->type;
    if (type == K_KV_I8)
        rope_tokens(run, K_KV_I8, t, end, x, x_stride, keys);
    else if (type == K_KV_F16)
        rope_tokens(run, K_KV_F16, t, end, x, x_stride, keys);
    else
        rope_tokens(run, K_KV_F32, t, end, x, x_stride, keys);
}

/* Tokens of the run that begins with row i of the sequence. */
static uint32_t run_length(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t i)
{
    const uint32_t block_tokens = j->kv->p.block_tokens, slot = (seq->start + i) % block_tokens;
    uint32_t n = VEC - slot % VEC;
    n = n < block_tokens - slot ? n : block_tokens - slot;
    return n < seq->n_rows - i ? n : seq->n_rows - i;
}

/* Columns of a head in a row of qkv. */
static uint32_t head_columns(const struct k_attn_params *p)
{
    return (p->n_heads / p->n_kv_heads + 2) * p->head_dim;
}

/* Rows of a step are read front to back: all heads of a run before the next one. */
CPU_RANGE_FN(rope, cpu_rope_job)
{
    const uint32_t columns = head_columns(&j->p);
    const size_t stride = (size_t)j->p.n_kv_heads * columns;
    struct cpu_rope_keys keys;
    for (uint32_t s = 0; s < j->n_seqs; s++) {
        const struct k_seq *seq = &j->seqs[s];
        for (uint32_t i = 0, n; i < seq->n_rows; i += n) {
            n = run_length(j, seq, i);
            for (uint64_t head = first; head < end; head++) {
                const struct run run = find_run(j, seq, (uint32_t)head, i, n);
                rope_run(&run, 0, n, j->qkv + run.row0 * stride + head * columns, stride,
                         keys.values);
            }
        }
    }
}

/* The row of the sequence that the run of row i begins with. */
static uint32_t run_begin(const struct cpu_rope_job *j, const struct k_seq *seq, uint32_t i)
{
    const uint32_t before = (seq->start + i) % j->kv->p.block_tokens % VEC;
    return before < i ? i - before : 0;
}

void CPU_FN(rope_rows)(const struct cpu_rope_job *j, uint32_t kv_head, uint32_t row, uint32_t end,
                       const float *x, struct cpu_rope_keys *keys)
{
    const uint32_t columns = head_columns(&j->p);
    for (uint32_t s = 0; s < j->n_seqs && row < end; s++) {
        const struct k_seq *seq = &j->seqs[s];
        while (row < end && row < seq->row0 + seq->n_rows) {
            const uint32_t i = row - seq->row0, begin = run_begin(j, seq, i);
            const struct run run = find_run(j, seq, kv_head, begin, run_length(j, seq, begin));
            const uint32_t t = i - begin, left = run.n - t, n = left < end - row ? left : end - row;
            rope_run(&run, t, t + n, x, columns, keys->values);
            row += n;
            x += (size_t)n * columns;
        }
    }
}
