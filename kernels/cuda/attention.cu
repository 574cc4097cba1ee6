/* attention.cu: attention over the paged cache: which rows go where, and the two kernels around
 * attention.cuh.
 *
 * Sequences of at most 16 rows (decode): a warp for each tile of 64 keys, four to a CTA, all of
 * them at once; every warp leaves its tile's sums in memory, and the CTA that ends last for a
 * sequence and key-value head adds them up. Keys and values go from the cache to registers: each is
 * read once, 32 loads of 16 bytes a lane under way.
 *
 * Longer ones (prefill): a CTA for 128 rows, which share tiles of keys and values in shared memory,
 * the next tile on its way while one is computed.
 */
#include "kernels/cuda/attention.cuh"

#include <cassert>
#include <cmath>

#include "kernels/cuda/attention_prefill.cuh"

namespace
{

enum { DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * DEV_WARP };

/* ---- decode ---- */

DEV_FN uint32_t tiles_of(const struct cuda_seq &s)
{
    uint32_t most = s.start + s.n_rows > s.prefix_len ? s.start + s.n_rows : s.prefix_len;
    return (most + ATT_KEYS - 1) / ATT_KEYS;
}

/* Memory of a tile's sums: rows of dim_pad values, m, l. */
DEV_FN float *partial_of(const attention_params &p, uint32_t seq, uint32_t tile, uint32_t kv_head)
{
    size_t idx = ((size_t)seq * p.max_tiles + tile) * p.kv.n_kv_heads + kv_head;
    return p.partials + idx * p.rows * (p.kv.dim_pad + 2);
}

/* 16 dimensions of rows g and g + 8. */
template <int DIM>
DEV_FN void store_partial(float *to, const float (&o)[8][4], int h, uint32_t n_rows)
{
    const uint32_t g = dev_lane() / 4, t = dev_lane() % 4;
    DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t row = g + 8 * half;
        if (row >= n_rows)
            continue;
        float *at = to + row * (DIM + 2) + 64 * h + 16 * t;
        DEV_UNROLL
        for (int n = 0; n < 8; n++) {
            at[n] = o[n][2 * half];
            at[8 + n] = o[n][2 * half + 1];
        }
    }
}

template <int DIM, bool INT8>
DEV_FN void decode_tile(const attention_params &p, const struct cuda_seq &s, uint32_t seq,
                        uint32_t tile, uint32_t kv_head)
{
    const uint32_t g = dev_lane() / 4, t = dev_lane() % 4;
    const uint32_t n_rows = s.n_rows * p.group;
    cache_tile<DIM, INT8> from;
    from.find(p, s, tile, kv_head);
    uint32_t q[DIM / 16][4];
    load_q<DIM>(q, p, s, 0, kv_head);
    attention_rows rows;
    rows.visible[0] = attention_visible(s, g, p.group);
    rows.visible[1] = attention_visible(s, g + 8, p.group);
    float scores[8][4], m[2], l[2];
    tile_scores<DIM, INT8>(scores, from, q, p.scale, rows, tile * ATT_KEYS);
    tile_largest(m, scores);
    uint32_t weights[4][4];
    tile_weights(weights, l, scores, m);
    float *to = partial_of(p, seq, tile, kv_head);
    DEV_UNROLL
    for (int h = 0; h < DIM / 64; h++) {
        float o[8][4];
        tile_values<INT8>(o, from, weights, h);
        store_partial<DIM>(to, o, h, n_rows);
    }
    DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t row = g + 8 * half;
        if (t == 0 && row < n_rows) {
            to[row * (DIM + 2) + DIM] = m[half];
            to[row * (DIM + 2) + DIM + 1] = l[half];
        }
    }
}

/* Adds up a sequence's tiles, a thread for each row and dimension. */
template <int DIM>
DEV_FN void add_up(const attention_params &p, const struct cuda_seq &s, uint32_t seq,
                   uint32_t kv_head)
{
    const uint32_t n_tiles = tiles_of(s);
    const size_t stride = (size_t)p.kv.n_kv_heads * p.rows * (DIM + 2);
    for (uint32_t i = dev_thread(); i < s.n_rows * p.group * DIM; i += DECODE_THREADS) {
        const uint32_t row = i / DIM, d = i % DIM;
        const float *from = partial_of(p, seq, 0, kv_head) + row * (DIM + 2);
        float m = ATT_NOTHING, l = 0.0f, o = 0.0f;
        for (uint32_t tile = 0; tile < n_tiles; tile++) {
            attention_factors f = attention_merge(&m, &l, from[DIM], from[DIM + 1]);
            o = attention_added(f, o, from[d]);
            from += stride;
        }
        if (d < p.dim)
            p.out[attention_place(p, s, row, kv_head) + d] = dev_to_half(o * dev_div(1.0f, l));
    }
}

/* Grid: key-value heads, sequences, pieces of four tiles. */
template <int DIM, bool INT8>
DEV_KERNEL(DECODE_THREADS, 2)
void decode_kernel(DEV_PARAMS(attention_params) p)
{
    DEV_SHARED(uint32_t, is_last, 1);
    const uint32_t kv_head = dev_cta_x(), seq = dev_cta_y();
    const struct cuda_seq s = p.seqs[p.first_seq + seq];
    const uint32_t n_tiles = tiles_of(s), tile = dev_cta_z() * DECODE_WARPS + dev_warp();
    if (s.n_rows * p.group > ATT_ROWS || dev_cta_z() * DECODE_WARPS >= n_tiles)
        return; /* the whole CTA */
    if (tile < n_tiles)
        decode_tile<DIM, INT8>(p, s, seq, tile, kv_head);
    dev_fence();
    dev_barrier();
    if (dev_thread() == 0) {
        uint32_t *counter = p.counters + (size_t)seq * p.kv.n_kv_heads + kv_head;
        uint32_t n_ctas = (n_tiles + DECODE_WARPS - 1) / DECODE_WARPS;
        bool last = dev_atomic_add(counter, 1) == n_ctas - 1;
        if (last)
            *counter = 0; /* for the next launch */
        is_last[0] = last;
    }
    dev_barrier();
    uint32_t last = is_last[0];
    if (!last)
        return;
    dev_fence();
    add_up<DIM>(p, s, seq, kv_head);
}

/* ---- launching ---- */

uint32_t rows_of(const struct k_seq *s, uint32_t group)
{
    return s->n_rows * group;
}

uint32_t host_tiles(const struct k_seq *s)
{
    uint32_t most = s->start + s->n_rows > s->prefix_len ? s->start + s->n_rows : s->prefix_len;
    return (most + ATT_KEYS - 1) / ATT_KEYS;
}

template <int DIM> void run_decode(struct k_ctx *c, attention_params p, uint32_t tiles, bool int8)
{
    struct dev_launch at = {};
    at.grid = {p.kv.n_kv_heads, p.n_seqs, (tiles + DECODE_WARPS - 1) / DECODE_WARPS};
    at.threads = DECODE_THREADS;
    at.stream = c->stream;
    cuda_check(c,
               int8 ? dev_run(at, decode_kernel<DIM, true>, p)
                    : dev_run(at, decode_kernel<DIM, false>, p),
               "attention (decode)");
}

/* As many sequences in a launch as the scratch holds, of at most so many rows and tiles. */
void run_in_parts(struct k_ctx *c, attention_params p, uint32_t n_seqs, uint32_t rows,
                  uint32_t tiles, bool int8)
{
    p.rows = rows;
    p.max_tiles = tiles;
    const size_t per_seq =
        (size_t)tiles * p.kv.n_kv_heads * rows * (p.kv.dim_pad + 2) * sizeof(float);
    const size_t at_once = c->attention_bytes / per_seq;
    assert(at_once);
    for (uint32_t first = 0; first < n_seqs; first += p.n_seqs) {
        p.first_seq = first;
        p.n_seqs = n_seqs - first < at_once ? n_seqs - first : (uint32_t)at_once;
        if (p.kv.dim_pad == 64)
            run_decode<64>(c, p, tiles, int8);
        else
            run_decode<128>(c, p, tiles, int8);
    }
}

/* The short sequences. */
void decode(struct k_ctx *c, attention_params p, const struct k_seq *seqs, uint32_t n_seqs,
            bool int8)
{
    uint32_t tiles = 0, rows = 0;
    for (uint32_t i = 0; i < n_seqs; i++) {
        if (rows_of(&seqs[i], p.group) > ATT_ROWS)
            continue;
        tiles = host_tiles(&seqs[i]) > tiles ? host_tiles(&seqs[i]) : tiles;
        rows = rows_of(&seqs[i], p.group) > rows ? rows_of(&seqs[i], p.group) : rows;
    }
    if (tiles)
        run_in_parts(c, p, n_seqs, rows, tiles, int8);
}

void prefill(struct k_ctx *c, attention_params p, const struct k_seq *seqs, uint32_t n_seqs,
             bool int8)
{
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < n_seqs; i++)
        if (rows_of(&seqs[i], p.group) > ATT_ROWS)
            pieces += (rows_of(&seqs[i], p.group) + PREFILL_ROWS - 1) / PREFILL_ROWS;
    if (!pieces)
        return;
    p.n_seqs = n_seqs;
    cuda_check(c, prefill_run(c->stream, p, pieces, int8), "attention (prefill)");
}

/* Of a decode step: launches for all of its rows, padding included, that depend on its size and on
 * nothing else of it. */
void decode_step(struct k_ctx *c, attention_params p, bool int8)
{
    const struct cuda_step *s = &c->step;
    if (p.group <= ATT_ROWS) {
        run_in_parts(c, p, s->decode_rows, p.group, s->decode_tiles, int8);
        return;
    }
    p.n_seqs = s->decode_rows;
    uint32_t pieces = (p.group + PREFILL_ROWS - 1) / PREFILL_ROWS * p.n_seqs;
    cuda_check(c, prefill_run(c->stream, p, pieces, int8), "attention (decode)");
}

} // namespace

void cuda_attention(struct k_ctx *c, const struct k_attn_params *a, const void *q,
                    const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out)
{
    assert(a->n_kv_heads && a->n_heads % a->n_kv_heads == 0);
    assert(a->n_kv_heads == kv->p.n_kv_heads && a->head_dim == kv->p.head_dim);
    assert(a->layer < kv->p.n_layers);
    (void)cuda_step_rows(c, seqs, n_seqs);
    attention_params p = {};
    p.kv = cuda_kv_layer(kv, a->layer);
    p.q = (const uint16_t *)q;
    p.out = (uint16_t *)out;
    p.seqs = c->step.seqs;
    p.blocks = c->step.blocks;
    p.group = a->n_heads / a->n_kv_heads;
    p.dim = a->head_dim;
    p.scale = 1.44269504f / sqrtf((float)a->head_dim);
    p.counters = c->attention_counters;
    p.partials = (float *)c->attention;
    if (c->step.decode_rows) {
        decode_step(c, p, kv->type == K_KV_I8);
        return;
    }
    decode(c, p, seqs, n_seqs, kv->type == K_KV_I8);
    prefill(c, p, seqs, n_seqs, kv->type == K_KV_I8);
}
