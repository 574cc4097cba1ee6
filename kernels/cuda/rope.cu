/* rope.cu: rotates q and k and files k and v in the cache, in its type (kv.h). A warp takes one
 * token and key-value head: its q heads, then k, then v (rope.cuh).
 */
#include <cassert>
#include <cstdlib>

#include "kernels/cuda/rope.cuh"

struct k_rope {
    uint32_t max_seq, half_dim;
    float *cos, *sin; /* device, [max_seq, half_dim] */
};

namespace
{

enum { WARPS = 4, THREADS = WARPS * DEV_WARP };

struct rope_params {
    struct rope_view at;
    const uint16_t *qkv; /* [T, kv heads, group + 2, dim] */
};

DEV_FN rope_values load(const uint16_t *x, uint32_t half)
{
    const uint32_t col = rope_col();
    if (col >= half)
        return rope_unpack(0, 0);
    return rope_unpack(*reinterpret_cast<const uint32_t *>(x + col),
                       *reinterpret_cast<const uint32_t *>(x + half + col));
}

DEV_KERNEL(THREADS, 1) void rope_kernel(DEV_PARAMS(rope_params) params)
{
    const rope_view &p = params.at;
    const uint32_t row = dev_cta_x();
    const uint32_t kv_head = dev_cta_y() * WARPS + dev_warp();
    if (kv_head >= p.kv.n_kv_heads)
        return; /* the whole warp */
    const uint32_t half = p.dim / 2;
    const rope_angles angles = rope_angles_of(p, row);
    const size_t head = (size_t)row * p.kv.n_kv_heads + kv_head;
    const uint16_t *x = params.qkv + head * (p.group + 2) * p.dim;
    uint16_t *q = p.q + head * p.group * p.dim;
    DEV_NO_UNROLL
    for (uint32_t h = 0; h < p.group; h++)
        rope_store_halves(q + h * p.dim, half, rope_rotate(load(x + h * p.dim, half), angles));
    rope_slot at;
    if (!rope_find(p, row, kv_head, &at))
        return; /* the whole warp */
    rope_file(p, at, false, rope_rotate(load(x + p.group * p.dim, half), angles));
    rope_file(p, at, true, load(x + (p.group + 1) * p.dim, half));
}

} // namespace

struct k_rope *cuda_rope_new(struct k_ctx *c, const float *cos, const float *sin, uint32_t max_seq,
                             uint32_t half_dim)
{
    struct k_rope *r = (struct k_rope *)calloc(1, sizeof *r);
    if (!r)
        return nullptr;
    const size_t bytes = (size_t)max_seq * half_dim * sizeof(float);
    r->max_seq = max_seq;
    r->half_dim = half_dim;
    r->cos = (float *)cuda_new(c, bytes);
    r->sin = (float *)cuda_new(c, bytes);
    if (!r->cos || !r->sin) {
        cuda_rope_free(c, r);
        return nullptr;
    }
    cuda_upload_bytes(c, r->cos, cos, bytes);
    cuda_upload_bytes(c, r->sin, sin, bytes);
    return r;
}

void cuda_rope_free(struct k_ctx *c, struct k_rope *r)
{
    if (!r)
        return;
    cuda_free(c, r->cos);
    cuda_free(c, r->sin);
    free(r);
}

struct rope_view cuda_rope_view(struct k_ctx *c, const struct k_attn_params *a,
                                const struct k_rope *r, const int32_t *positions, struct k_kv *kv,
                                void *q)
{
    assert(a->n_kv_heads && a->n_heads % a->n_kv_heads == 0);
    assert(a->n_kv_heads == kv->p.n_kv_heads && a->head_dim == kv->p.head_dim);
    assert(a->layer < kv->p.n_layers && r->half_dim * 2 == a->head_dim);
    struct rope_view p = {};
    p.kv = cuda_kv_layer(kv, a->layer);
    p.cos = r->cos;
    p.sin = r->sin;
    p.q = (uint16_t *)q;
    p.positions = cuda_step_positions(c, positions);
    p.row_seqs = c->step.row_seqs;
    p.seqs = c->step.seqs;
    p.blocks = c->step.blocks;
    p.group = a->n_heads / a->n_kv_heads;
    p.dim = a->head_dim;
    p.max_seq = r->max_seq;
    p.int8 = kv->type == K_KV_I8;
    return p;
}

void cuda_rope_kv(struct k_ctx *c, const struct k_attn_params *a, const struct k_rope *r,
                  const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                  uint32_t n_seqs, struct k_kv *kv, void *q)
{
    const rope_params p = {cuda_rope_view(c, a, r, positions, kv, q), (const uint16_t *)qkv};
    struct dev_launch at = {};
    at.grid = {cuda_step_rows(c, seqs, n_seqs), (a->n_kv_heads + WARPS - 1) / WARPS, 1};
    at.threads = THREADS;
    at.stream = c->stream;
    cuda_check(c, dev_run(at, rope_kernel, p), "rope");
}
