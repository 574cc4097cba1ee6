/* attention_prefill.cuh: sequences of many rows: a CTA for 128 rows of one key-value head, a warp
 * for 16 of them. Keys and values of a tile are in shared memory, two tiles at a time.
 *
 * Shared memory of a tile, pieces of 16 bytes:
 *   keys [64][CHUNKS], values [64][CHUNKS], K_KV_I8: key scales [64], value scales [64] (binary16)
 * A vector's pieces are permuted so that the lanes of a load meet different banks: with a shift of
 * the piece's number that depends on the token (key_shift, value_shift).
 */
#ifndef GLMD_KERNELS_CUDA_ATTENTION_PREFILL_CUH
#define GLMD_KERNELS_CUDA_ATTENTION_PREFILL_CUH

#include "kernels/cuda/attention.cuh"

enum {
    PREFILL_WARPS = 8,
    PREFILL_THREADS = PREFILL_WARPS * DEV_WARP,
    PREFILL_ROWS = PREFILL_WARPS * ATT_ROWS,
};

template <int DIM, bool INT8> struct shared_shape {
    static constexpr uint32_t chunks = DIM * (INT8 ? 1 : 2) / 16; /* of a vector */
    static constexpr uint32_t vectors = ATT_KEYS * chunks;        /* of the keys */
    static constexpr uint32_t scales = INT8 ? ATT_KEYS * 2 / 16 : 0;
    static constexpr uint32_t total = 2 * vectors + 2 * scales;
    static constexpr uint32_t bytes = 2 * total * 16; /* of both tiles */
};

template <int DIM, bool INT8> DEV_FN uint32_t key_shift(uint32_t token)
{
    uint32_t shift = INT8 ? (token & 3) << 1 : (token & 1) << 2;
    return shift & (shared_shape<DIM, INT8>::chunks - 1);
}

template <int DIM, bool INT8> DEV_FN uint32_t value_shift(uint32_t token)
{
    return (token >> 1 & 3) << 1 & (shared_shape<DIM, INT8>::chunks - 1);
}

/* What the loop over tiles does not keep in registers: sm_100 and sm_120 have none to spare for it.
 */
template <int DIM, bool INT8> DEV_FN uint32_t prefill_anew(uint32_t v)
{
#if DEV_ARCH >= 1000
    return DIM == 128 && !INT8 ? dev_anew(v) : v;
#else
    return v;
#endif
}

/* A tile in shared memory, as attention.cuh reads it. */
template <int DIM, bool INT8> struct shared_tile {
    typedef shared_shape<DIM, INT8> shape;
    dev_shared<uint4> at;
    uint32_t n; /* tokens that the sequence has */

    DEV_MEMBER uint4 load(uint32_t vector_at, uint32_t shift, uint32_t dim) const
    {
        if constexpr (INT8) {
            dev_shared<uint2> half = dev_shared_as<uint2>(at);
            uint2 v = half[2 * (vector_at + (dim / 16 ^ shift)) + dim / 8 % 2];
            return halves_of(v);
        } else {
            uint4 v = at[vector_at + (dim / 8 ^ shift)];
            return v;
        }
    }
    DEV_MEMBER static uint32_t anew(uint32_t v)
    {
        return prefill_anew<DIM, INT8>(v);
    }
    DEV_MEMBER uint4 key(int, uint32_t token, uint32_t dim) const
    {
        return load(token * shape::chunks, key_shift<DIM, INT8>(token), dim);
    }
    DEV_MEMBER uint4 value(int, uint32_t token, uint32_t dim) const
    {
        return load(shape::vectors + token * shape::chunks, value_shift<DIM, INT8>(token), dim);
    }
    DEV_MEMBER uint16_t scale(uint32_t first, uint32_t token) const
    {
        dev_shared<uint16_t> scales = dev_shared_as<uint16_t>(at + 2 * shape::vectors + first);
        uint16_t v = scales[token];
        return token < n ? v : (uint16_t)0; /* beyond may be anything */
    }
    DEV_MEMBER uint16_t key_scale(int, uint32_t token) const
    {
        return scale(0, token);
    }
    DEV_MEMBER uint16_t value_scale(int, uint32_t token) const
    {
        return scale(shape::scales, token);
    }
};

/* Starts the copies of tile `tile`; tokens beyond the sequence become zeros. */
template <int DIM, bool INT8>
DEV_FN void fetch_tile(dev_shared<uint4> to, const attention_params &p, const struct cuda_seq &s,
                       uint32_t tile, uint32_t kv_head)
{
    typedef shared_shape<DIM, INT8> shape;
    const uint32_t limit = s.start + s.n_rows, thread = prefill_anew<DIM, INT8>(dev_thread());
    DEV_NO_UNROLL /* addresses of all pieces at once do not fit the registers */
        for (uint32_t i = thread; i < shape::total; i += PREFILL_THREADS)
    {
        const bool is_scale = i >= 2 * shape::vectors;
        const uint32_t j = is_scale ? i - 2 * shape::vectors : i;
        const uint32_t per_token_8 = is_scale ? 1 : 8 * shape::chunks; /* pieces of 8 tokens */
        const bool values = j >= (is_scale ? shape::scales : shape::vectors);
        const uint32_t k = j - (values ? (is_scale ? shape::scales : shape::vectors) : 0);
        const uint32_t token8 = k / per_token_8 * 8;
        const uint32_t within = is_scale ? token8 : k / shape::chunks; /* the tile's token */
        const uint32_t chunk = is_scale ? 0 : k % shape::chunks;
        const uint32_t token = tile * ATT_KEYS + within;
        const bool valid = token < limit;
        const uint8_t *from = p.kv.data;
        if (valid) {
            uint32_t block = p.blocks[s.first_block + token / p.kv.block_tokens];
            uint32_t slot = token % p.kv.block_tokens;
            from += ((size_t)block * p.kv.n_kv_heads + kv_head) * p.kv.head_bytes;
            if (is_scale)
                from += (slot + (values ? p.kv.block_tokens : 0)) * 2;
            else
                from += (values ? p.kv.values_at : p.kv.keys_at) + slot * p.kv.vector_bytes +
                        chunk * 16;
        }
        uint32_t place = i;
        if (!is_scale)
            place =
                (values ? shape::vectors : 0) + within * shape::chunks +
                (chunk ^ (values ? value_shift<DIM, INT8>(within) : key_shift<DIM, INT8>(within)));
        dev_copy16(to + place, from, valid);
    }
    dev_copy_commit();
}

/* The sequence and the piece of its rows that this CTA has: pieces of long sequences are counted
 * over the batch. False: there are not so many. */
DEV_FN bool find_piece(const attention_params &p, uint32_t piece, struct cuda_seq *ret_seq,
                       uint32_t *ret_row)
{
    for (uint32_t i = 0; i < p.n_seqs; i++) {
        uint32_t n_rows = p.seqs[i].n_rows * p.group;
        if (n_rows <= ATT_ROWS)
            continue;
        uint32_t pieces = (n_rows + PREFILL_ROWS - 1) / PREFILL_ROWS;
        if (piece < pieces) {
            *ret_seq = p.seqs[i];
            *ret_row = piece * PREFILL_ROWS;
            return true;
        }
        piece -= pieces;
    }
    return false;
}

template <int DIM>
DEV_FN void store_rows(const attention_params &p, const struct cuda_seq &s, uint32_t first_row,
                       uint32_t kv_head, const float (&o)[DIM / 64][8][4], const float (&l)[2])
{
    const uint32_t g = dev_lane() / 4, t = dev_lane() % 4;
    DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint32_t row = first_row + g + 8 * half;
        if (row / p.group >= s.n_rows)
            continue;
        uint16_t *out = p.out + attention_place(p, s, row, kv_head);
        const float inverse = dev_div(1.0f, l[half]);
        DEV_UNROLL
        for (int h = 0; h < DIM / 64; h++)
            DEV_UNROLL
        for (int e = 0; e < 2; e++) {
            const uint32_t d = 64 * h + 16 * t + 8 * e;
            uint32_t w[4];
            DEV_UNROLL
            for (int n = 0; n < 4; n++)
                w[n] = dev_half2(o[h][2 * n][2 * half + e] * inverse,
                                 o[h][2 * n + 1][2 * half + e] * inverse);
            if (d < p.dim)
                dev_store16(out + d, make_uint4(w[0], w[1], w[2], w[3]));
        }
    }
}

/* Grid: key-value heads, pieces of the long sequences. */
template <int DIM, bool INT8>
DEV_KERNEL(PREFILL_THREADS, 1)
void prefill_kernel(DEV_PARAMS(attention_params) p)
{
    typedef shared_shape<DIM, INT8> shape;
    dev_shared<uint4> tiles = dev_dynamic<uint4>(0, 2 * shape::total);
    const uint32_t g = dev_lane() / 4, kv_head = dev_cta_x();
    struct cuda_seq s = {};
    uint32_t cta_row = 0;
    if (!find_piece(p, dev_cta_y(), &s, &cta_row))
        return; /* the whole CTA */
    const uint32_t first_row = cta_row + dev_warp() * ATT_ROWS;
    uint32_t last_row = cta_row + PREFILL_ROWS - 1;
    last_row = last_row < s.n_rows * p.group ? last_row : s.n_rows * p.group - 1;
    const uint32_t limit = s.start + s.n_rows;
    const uint32_t n_tiles = (attention_visible(s, last_row, p.group) + ATT_KEYS - 1) / ATT_KEYS;

    uint32_t q[DIM / 16][4];
    load_q<DIM>(q, p, s, first_row, kv_head);
    attention_rows rows;
    rows.visible[0] = attention_visible(s, first_row + g, p.group);
    rows.visible[1] = attention_visible(s, first_row + g + 8, p.group);
    float m[2] = {ATT_NOTHING, ATT_NOTHING}, l[2] = {0, 0}, sum[DIM / 64][8][4];
    DEV_UNROLL
    for (int h = 0; h < DIM / 64; h++)
        DEV_UNROLL
    for (int n = 0; n < 8; n++)
        DEV_UNROLL
    for (int j = 0; j < 4; j++)
        sum[h][n][j] = 0.0f;

    fetch_tile<DIM, INT8>(tiles, p, s, 0, kv_head);
    for (uint32_t i = 0; i < n_tiles; i++) {
        cta_row = prefill_anew<DIM, INT8>(cta_row);
        if (i + 1 < n_tiles)
            fetch_tile<DIM, INT8>(tiles + (i + 1) % 2 * shape::total, p, s, i + 1, kv_head);
        else
            dev_copy_commit(); /* an empty group: the wait below counts */
        dev_copy_wait<1>();
        dev_barrier();
        const shared_tile<DIM, INT8> tile = {tiles + i % 2 * shape::total, limit - i * ATT_KEYS};
        float scores[8][4], tile_m[2], tile_l[2];
        tile_scores<DIM, INT8>(scores, tile, q, p.scale, rows, i * ATT_KEYS);
        tile_largest(tile_m, scores);
        uint32_t weights[4][4];
        tile_weights(weights, tile_l, scores, tile_m);
        attention_factors f[2];
        f[0] = attention_merge(&m[0], &l[0], tile_m[0], tile_l[0]);
        f[1] = attention_merge(&m[1], &l[1], tile_m[1], tile_l[1]);
        DEV_UNROLL
        for (int h = 0; h < DIM / 64; h++) {
            float o[8][4];
            tile_values<INT8>(o, tile, weights, h);
            DEV_UNROLL
            for (int n = 0; n < 8; n++)
                DEV_UNROLL
            for (int j = 0; j < 4; j++)
                sum[h][n][j] = attention_added(f[j / 2], sum[h][n][j], o[n][j]);
        }
        dev_barrier(); /* before this tile is overwritten */
    }
    store_rows<DIM>(p, s, cta_row + dev_warp() * ATT_ROWS, kv_head, sum, l);
}

template <int DIM, bool INT8>
static int prefill_run_as(const struct dev_launch &from, const attention_params &p)
{
    struct dev_launch at = from;
    at.shared = shared_shape<DIM, INT8>::bytes;
    int e = (int)dev_allow_shared(prefill_kernel<DIM, INT8>, at.shared);
    return e ? e : (int)dev_run(at, prefill_kernel<DIM, INT8>, p);
}

static int prefill_run(struct CUstream_st *stream, const attention_params &p, uint32_t pieces,
                       bool int8)
{
    struct dev_launch at = {};
    at.grid = {p.kv.n_kv_heads, pieces, 1};
    at.threads = PREFILL_THREADS;
    at.stream = stream;
    if (p.kv.dim_pad == 64)
        return int8 ? prefill_run_as<64, true>(at, p) : prefill_run_as<64, false>(at, p);
    return int8 ? prefill_run_as<128, true>(at, p) : prefill_run_as<128, false>(at, p);
}

#endif
