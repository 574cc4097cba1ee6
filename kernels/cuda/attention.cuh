/* attention.cuh: 16 rows of q against 64 keys of a sequence, by one warp on tensor cores: the one
 * piece of arithmetic that prefill and decode share.
 *
 * Rows. A row is a token and one of the q heads that share a key-value head: row i of a sequence's
 * work is token i / group, head i % group. One token of a model without shared heads fills one row
 * of 16: reading the cache is what takes the time.
 *
 * Sums. The keys of a sequence are cut into tiles of 64, from its beginning. For a row, each tile
 * gives by itself: m = its largest score, l = sum of 2^(score - m), o = sum of 2^(score - m) v, the
 * exponentials rounded to binary16 for the product. Tiles are then added up one by one, in order
 * (struct attention_sum): as they come in the prefill kernel, by the last CTA in the decode kernel.
 * What a row gives depends on what it sees and on nothing else, and has the same bits in both; a
 * tile of which it sees nothing is left out, not added. (A key or value that is not finite spoils
 * rows that see any key of its tile.)
 *
 * Fragments. The mapping of dimensions and tokens to the operands of mma is chosen so that every
 * lane reads 16 bytes in a row from the cache (8 with K_KV_I8), without ldmatrix. Lane 4g + t:
 *   scores: key g of 8, dimensions 32c + 8t .. + 7 of chunk c; q the same with row g, g + 8
 *   values: tokens 2t, 2t + 1, 2t + 8, 2t + 9 of 16, dimensions 64h + 8g .. + 7 of half h
 *   result: rows g, g + 8, dimensions 64h + 16t .. + 15
 */
#ifndef GLMD_KERNELS_CUDA_ATTENTION_CUH
#define GLMD_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dev.h"
#include "kernels/cuda/kv.h"

#ifndef DEV_MEMBER
#ifdef __CUDACC__
#define DEV_MEMBER __device__ __forceinline__
#else
#define DEV_MEMBER inline
#endif
#endif

enum {
    ATT_ROWS = CUDA_ATTENTION_ROWS,
    ATT_KEYS = CUDA_ATTENTION_KEYS,
    ATT_GROUPS = ATT_KEYS / CUDA_KV_GROUP,
};

struct attention_params {
    struct cuda_kv_view kv;
    const uint16_t *q; /* [T, heads, dim] */
    uint16_t *out;     /* [T, heads, dim] */
    const struct cuda_seq *seqs;
    const uint32_t *blocks;
    uint32_t first_seq, n_seqs; /* of this launch */
    uint32_t group, dim;
    float scale; /* log2(e) / sqrt(dim) */
    /* decode: [tile of the launch][kv head][rows][dim_pad + 2]: o, then m and l */
    float *partials;
    uint32_t *counters; /* [seq of the launch][kv head], zero between launches */
    uint32_t rows;      /* most rows of a sequence */
    uint32_t max_tiles; /* of a sequence: tiles of sequence i begin at i * max_tiles */
};

/* Scores and exponentials stand for 2^x. */
#define ATT_NOTHING (-INFINITY)

struct attention_rows {
    uint32_t visible[2]; /* keys that rows g and g + 8 see; 0 = there is no such row */
};

DEV_FN uint32_t attention_visible(const struct cuda_seq &s, uint32_t row, uint32_t group)
{
    uint32_t token = row / group;
    if (token >= s.n_rows)
        return 0;
    uint32_t causal = s.start + token + 1;
    return causal > s.prefix_len ? causal : s.prefix_len;
}

/* Where row `row` of the sequence and kv head lies in q and out. */
DEV_FN size_t attention_place(const attention_params &p, const struct cuda_seq &s, uint32_t row,
                              uint32_t kv_head)
{
    size_t token = s.row0 + row / p.group;
    return ((token * p.kv.n_kv_heads + kv_head) * p.group + row % p.group) * p.dim;
}

/* q[16 rows] as operands. */
template <int DIM>
DEV_FN void load_q(uint32_t (&a)[DIM / 16][4], const attention_params &p, const struct cuda_seq &s,
                   uint32_t first_row, uint32_t kv_head)
{
    const uint32_t g = dev_lane() / 4, t = dev_lane() % 4;
    DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t row = first_row + g + 8 * half;
        bool there = row / p.group < s.n_rows;
        const uint16_t *q = there ? p.q + attention_place(p, s, row, kv_head) : p.q;
        DEV_UNROLL
        for (int c = 0; c < DIM / 32; c++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (there && (uint32_t)(32 * c + 8 * t) < p.dim)
                v = dev_load16(q + 32 * c + 8 * t);
            a[2 * c][half] = v.x;
            a[2 * c][2 + half] = v.y;
            a[2 * c + 1][half] = v.z;
            a[2 * c + 1][2 + half] = v.w;
        }
    }
}

/* Four bytes (two's complement) as halves, exactly. */
DEV_FN void halves_of_bytes(uint32_t bytes, uint32_t *lo, uint32_t *hi)
{
    bytes ^= 0x80808080; /* + 128 */
    /* 0x6400 | u is 1024 + u */
    *lo = dev_half2_sub(dev_byte_perm(bytes, 0x64646464, 0x4140), 0x64806480);
    *hi = dev_half2_sub(dev_byte_perm(bytes, 0x64646464, 0x4342), 0x64806480);
}

/* 8 values of the cache as halves. */
DEV_FN uint4 halves_of(uint2 bytes)
{
    uint4 v;
    halves_of_bytes(bytes.x, &v.x, &v.y);
    halves_of_bytes(bytes.y, &v.z, &v.w);
    return v;
}

/* ---- where keys and values come from ---- */

/* From the cache. Groups of 16 tokens beyond the sequence's last token are not looked up. */
template <int DIM, bool INT8> struct cache_tile {
    const uint8_t *at[ATT_GROUPS];
    uint32_t slot[ATT_GROUPS];
    uint32_t keys_at, values_at, block_tokens;
    uint32_t n; /* tokens of the tile that the sequence has */

    DEV_MEMBER void find(const attention_params &p, const struct cuda_seq &s, uint32_t tile,
                         uint32_t kv_head)
    {
        const uint32_t first = tile * ATT_KEYS, limit = s.start + s.n_rows;
        n = limit > first ? limit - first : 0;
        keys_at = p.kv.keys_at;
        values_at = p.kv.values_at;
        block_tokens = p.kv.block_tokens;
        DEV_UNROLL
        for (int i = 0; i < ATT_GROUPS; i++) {
            uint32_t token = first + i * CUDA_KV_GROUP;
            at[i] = p.kv.data;
            slot[i] = token % block_tokens;
            if (token < limit) {
                uint32_t block = p.blocks[s.first_block + token / block_tokens];
                at[i] += ((size_t)block * p.kv.n_kv_heads + kv_head) * p.kv.head_bytes;
            }
        }
    }

    DEV_MEMBER uint4 load(const uint8_t *vector, uint32_t value, bool valid) const
    {
        if (!valid)
            return make_uint4(0, 0, 0, 0);
        if constexpr (INT8)
            return halves_of(dev_load8(vector + value));
        else
            return dev_load16(vector + 2 * value);
    }

    DEV_MEMBER static uint32_t anew(uint32_t v)
    {
        return v;
    }
    /* Dimensions [dim, dim + 8) of key `token` of the tile; zeros beyond the sequence. */
    DEV_MEMBER uint4 key(int i, uint32_t token, uint32_t dim) const
    {
        size_t vector = (size_t)(slot[i] + token % CUDA_KV_GROUP) * DIM * (INT8 ? 1 : 2);
        return load(at[i] + keys_at + vector, dim, token < n);
    }
    DEV_MEMBER uint4 value(int i, uint32_t token, uint32_t dim) const
    {
        size_t vector = (size_t)(slot[i] + token % CUDA_KV_GROUP) * DIM * (INT8 ? 1 : 2);
        return load(at[i] + values_at + vector, dim, token < n);
    }
    /* K_KV_I8. */
    DEV_MEMBER uint16_t key_scale(int i, uint32_t token) const
    {
        const uint16_t *scales = reinterpret_cast<const uint16_t *>(at[i]);
        return token < n ? scales[slot[i] + token % CUDA_KV_GROUP] : (uint16_t)0;
    }
    DEV_MEMBER uint16_t value_scale(int i, uint32_t token) const
    {
        const uint16_t *scales = reinterpret_cast<const uint16_t *>(at[i]) + block_tokens;
        return token < n ? scales[slot[i] + token % CUDA_KV_GROUP] : (uint16_t)0;
    }
};

/* ---- one tile ---- */

/* Scores [rows g, g + 8][8 keys each: 8i + 2t, 8i + 2t + 1], masked, in units of log2. */
template <int DIM, bool INT8, class Tile>
DEV_FN void tile_scores(float (&s)[8][4], const Tile &tile, const uint32_t (&q)[DIM / 16][4],
                        float scale, const attention_rows &rows, uint32_t first_key)
{
    const uint32_t lane = tile.anew(dev_lane()), g = lane / 4, t = lane % 4;
    DEV_UNROLL
    for (int i = 0; i < 8; i++) {
        DEV_UNROLL
        for (int j = 0; j < 4; j++)
            s[i][j] = 0.0f;
        DEV_UNROLL
        for (int c = 0; c < DIM / 32; c++) {
            uint4 k = tile.key(i / 2, 8 * i + g, 32 * c + 8 * t);
            dev_mma_16816(s[i], q[2 * c], k.x, k.y);
            dev_mma_16816(s[i], q[2 * c + 1], k.z, k.w);
        }
        DEV_UNROLL
        for (int e = 0; e < 2; e++) {
            uint32_t token = 8 * i + 2 * t + e;
            float factor = scale;
            if constexpr (INT8)
                factor = scale * dev_from_half(tile.key_scale(i / 2, token));
            DEV_UNROLL
            for (int half = 0; half < 2; half++)
                s[i][2 * half + e] = first_key + token < rows.visible[half]
                                         ? s[i][2 * half + e] * factor
                                         : ATT_NOTHING;
        }
    }
}

/* The largest score of rows g and g + 8, the same in the four lanes of a row. */
DEV_FN void tile_largest(float (&m)[2], const float (&s)[8][4])
{
    DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        m[half] = ATT_NOTHING;
        DEV_UNROLL
        for (int i = 0; i < 8; i++)
            DEV_UNROLL
        for (int e = 0; e < 2; e++)
            m[half] = m[half] < s[i][2 * half + e] ? s[i][2 * half + e] : m[half];
        DEV_UNROLL
        for (unsigned d = 1; d < 4; d *= 2) {
            float other = dev_shfl_xor(m[half], d);
            m[half] = m[half] < other ? other : m[half];
        }
    }
}

/* Exponentials as operands of the product with the values, and their sums. */
DEV_FN void tile_weights(uint32_t (&a)[4][4], float (&l)[2], const float (&s)[8][4],
                         const float (&m)[2])
{
    l[0] = l[1] = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < 8; i++)
        DEV_UNROLL
    for (int half = 0; half < 2; half++) {
        float e[2];
        DEV_UNROLL
        for (int j = 0; j < 2; j++) {
            float score = s[i][2 * half + j];
            e[j] = score == ATT_NOTHING ? 0.0f : dev_exp2(score - m[half]);
            l[half] += e[j];
        }
        a[i / 2][i % 2 * 2 + half] = dev_half2(e[0], e[1]);
    }
    DEV_UNROLL
    for (int half = 0; half < 2; half++)
        DEV_UNROLL
    for (unsigned d = 1; d < 4; d *= 2)
        l[half] += dev_shfl_xor(l[half], d);
}

/* o[n][0 .. 1]: row g, dimensions 64h + 16t + n and + 8; o[n][2 .. 3]: row g + 8. */
template <bool INT8, class Tile>
DEV_FN void tile_values(float (&o)[8][4], const Tile &tile, const uint32_t (&a)[4][4], int h)
{
    const uint32_t lane = tile.anew(dev_lane()), g = lane / 4, t = lane % 4;
    DEV_UNROLL
    for (int n = 0; n < 8; n++)
        DEV_UNROLL
    for (int j = 0; j < 4; j++)
        o[n][j] = 0.0f;
    DEV_UNROLL
    for (int i = 0; i < ATT_GROUPS; i++) {
        uint32_t v[4][4];
        DEV_UNROLL
        for (int j = 0; j < 4; j++) {
            uint32_t token = 16 * i + 2 * t + j % 2 + j / 2 * 8;
            uint4 w = tile.value(i, token, 64 * h + 8 * g);
            v[j][0] = w.x;
            v[j][1] = w.y;
            v[j][2] = w.z;
            v[j][3] = w.w;
            if constexpr (INT8) {
                uint32_t scale = tile.value_scale(i, token) * 0x10001u;
                DEV_UNROLL
                for (int k = 0; k < 4; k++)
                    v[j][k] = dev_half2_mul(v[j][k], scale);
            }
        }
        DEV_UNROLL
        for (int n = 0; n < 8; n++) {
            const uint32_t select = n % 2 ? 0x7632 : 0x5410;
            dev_mma_16816(o[n], a[i], dev_byte_perm(v[0][n / 2], v[1][n / 2], select),
                          dev_byte_perm(v[2][n / 2], v[3][n / 2], select));
        }
    }
}

/* ---- adding up tiles ---- */

/* Factors of what was summed so far and of what a tile adds; a tile without a visible key is not to
 * be added (`add` false). */
struct attention_factors {
    float before, tile;
    bool add;
};

DEV_FN attention_factors attention_merge(float *m, float *l, float tile_m, float tile_l)
{
    attention_factors f;
    f.add = !(tile_m == ATT_NOTHING);
    float largest = *m < tile_m ? tile_m : *m;
    f.before = *m == ATT_NOTHING ? 0.0f : dev_exp2(*m - largest);
    f.tile = dev_exp2(tile_m - largest);
    if (f.add) {
        *l = *l * f.before + tile_l * f.tile;
        *m = largest;
    }
    return f;
}

DEV_FN float attention_added(const attention_factors &f, float before, float tile)
{
    return f.add ? before * f.before + tile * f.tile : before;
}

#endif
