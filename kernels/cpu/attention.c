/* attention.c: up to ATTENTION_ROWS rows of a sequence and key-value head over the paged cache, in
 * FP32 (but see attention_context.c for the rows of a context in the modes fp16 and a8). A
 * row is a token with one of the heads that share the key-value head: keys and values are loaded
 * and converted once for all of them.
 *
 * Two passes: scores of all visible tokens (a token is a lane; a score is one chain over the
 * dimensions, ascending), then softmax, then the weighted sum of values in ascending token order (a
 * dimension is a lane). With a K_KV_I8 cache the sums are over its integers: a key's scale
 * multiplies the finished score, a value's scale the token's weight. The order of every sum of a
 * row depends on what the row sees and on nothing else, so prefill and decode give the same bits.
 * Lanes and tokens that a row does not see are left out, never multiplied by zero: they may hold
 * anything.
 *
 * Registers: a tile of R rows takes GROUPS(R) groups of tokens, later WIDE(R) vectors of
 * dimensions, at a time. Twelve rows times two: 24 sums, two of keys, one of the row, and 24
 * multiply-adds for each 14 loads, where one row after the other would wait for its loads.
 */
#include "attention.h"
#include "vmath.h"

#include <assert.h>
#include <math.h>

struct rows {
    const struct k_kv *kv;
    uint8_t *first; /* block 0 of the head */
    const uint32_t *blocks;
    uint32_t dim_pad;
    uint32_t visible[ATTENTION_ROWS]; /* ascending */
    uint32_t n_groups[ATTENTION_ROWS];
    uint8_t *next_first; /* what comes behind: block 0 of its head, its groups; NULL: nothing */
    const uint32_t *next_blocks;
    uint32_t next_groups;
    float *scores;                 /* [n_groups of the last row][R][16] */
    const float *q;                /* [R][Q_STRIDE], scaled */
    float *out;                    /* [R][dim_pad] */
    float inverse[ATTENTION_ROWS]; /* 1 / sum of the exponentials */
};

VEC_FN struct group group_at(const struct rows *a, uint32_t g)
{
    return find_group(a->kv, a->first, a->blocks, g);
}

/* What is read `idx` groups behind the first keys, to be brought in while others are worked on:
 * keys of all groups, their values, then the next tile's keys. Both pieces of a group are as long.
 */
VEC_FN const uint8_t *ahead_at(const struct rows *a, uint32_t idx, int R)
{
    const uint32_t n = a->n_groups[R - 1];
    if (idx < n)
        return group_at(a, idx).k;
    if (idx < 2 * n)
        return group_at(a, idx - n).v;
    if (idx - 2 * n < a->next_groups)
        return find_group(a->kv, a->next_first, a->next_blocks, idx - 2 * n).k;
    return group_at(a, n - 1).v;
}

/* Several rows over integers are bound by the conversions. */
VEC_FN bool bring_in(enum k_kv_type type, int R)
{
    return type != K_KV_I8 || R == 1;
}

/* Scores of groups [g, g + G). */
VEC_FN void score_groups(const struct rows *a, enum k_kv_type type, int R, int G, uint32_t g)
{
    const uint32_t dim = a->dim_pad;
    struct group at[MAX_GROUPS];
    const uint8_t *next[MAX_GROUPS];
    vf sum[ATTENTION_ROWS][MAX_GROUPS];
    TILE_UNROLL for (int i = 0; i < G; i++)
    {
        at[i] = group_at(a, g + (uint32_t)i);
        next[i] = ahead_at(a, g + (uint32_t)(GROUPS(R) + i), R);
        TILE_UNROLL for (int r = 0; r < R; r++) sum[r][i] = vf_zero();
    }
    const size_t step = 2 * VEC * CPU_KV_VALUE_BYTES(type); /* bytes of two dimensions */
    const float *q = a->q;
    for (size_t done = 0; done < dim / 2 * step; done += step, q += 2) {
        if (bring_in(type, R))
            TILE_UNROLL for (int i = 0; i < G; i++) VEC_PREFETCH(next[i] + done);
        TILE_UNROLL for (int e = 0; e < 2; e++)
        {
            vf k[MAX_GROUPS];
            TILE_UNROLL for (int i = 0; i < G; i++) k[i] =
                load_cached(type, at[i].k + done, (size_t)e * VEC);
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                vf row = vf_set1(q[r * Q_STRIDE + e]);
                TILE_UNROLL for (int i = 0; i < G; i++) sum[r][i] = vf_fma(row, k[i], sum[r][i]);
            }
        }
    }
    TILE_UNROLL for (int i = 0; i < G; i++) TILE_UNROLL for (int r = 0; r < R; r++)
    {
        int seen = tokens_seen(&at[i], a->visible[r]);
        vf score = sum[r][i];
        if (type == K_KV_I8)
            score = vf_mul(score, vf_load_half(at[i].k_scale));
        if (seen)
            vf_store(a->scores + ((size_t)(g + (uint32_t)i) * (size_t)R + (size_t)r) * VEC,
                     vf_select_n(seen, score, vf_set1(-INFINITY)));
    }
}

VEC_FN void score_rows(const struct rows *a, enum k_kv_type type, int R)
{
    const uint32_t n = a->n_groups[R - 1];
    uint32_t g = 0;
    for (; g + GROUPS(R) <= n; g += GROUPS(R))
        score_groups(a, type, R, GROUPS(R), g);
    for (; g < n; g++)
        score_groups(a, type, R, 1, g);
}

/* Scores become exp(score - largest); returns 1 / their sum. Groups are `stride` floats apart. */
static float exponentials(float *scores, size_t stride, uint32_t n_groups)
{
    const vf log2_e = vf_set1(0x1.715476p+0f);
    vf largest = vf_set1(-INFINITY);
    for (uint32_t g = 0; g < n_groups; g++)
        largest = vf_max(largest, vf_load(scores + g * stride));
    const vf top = vf_set1(-0x1.715476p+0f * vf_max_lanes(largest));
    vf sum = vf_zero();
    for (uint32_t g = 0; g < n_groups; g++) {
        vf e = vf_exp2(vf_fma(vf_load(scores + g * stride), log2_e, top));
        vf_store(scores + g * stride, e);
        sum = vf_add(sum, e);
    }
    return 1.0f / vf_sum(sum);
}

/* K_KV_I8: the weights of the values take on the values' scales. */
VEC_FN void scale_weights(const struct rows *a, int R)
{
    for (uint32_t g = 0; g < a->n_groups[R - 1]; g++) {
        vf scale = vf_load_half(group_at(a, g).v_scale);
        TILE_UNROLL for (int r = 0; r < R; r++)
        {
            float *weights = a->scores + ((size_t)g * (size_t)R + (size_t)r) * VEC;
            if (g < a->n_groups[r])
                vf_store(weights, vf_mul(vf_load(weights), scale));
        }
    }
}

/* Dimensions [d, d + 16 C) of the rows' results. */
VEC_FN void weigh_columns(const struct rows *a, enum k_kv_type type, int R, int C, uint32_t d)
{
    vf sum[ATTENTION_ROWS][MAX_WIDE];
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int c = 0; c < C; c++) sum[r][c] =
        vf_zero();
    for (uint32_t g = 0; g < a->n_groups[R - 1]; g++) {
        struct group at = group_at(a, g);
        const uint8_t *next =
            ahead_at(a, a->n_groups[R - 1] + g + GROUPS(R), R) + d * a->kv->value_bytes;
        const float *weights = a->scores + (size_t)g * (size_t)R * VEC;
        int common = tokens_seen(&at, a->visible[0]);
        for (int t = 0; t < common; t++) {
            vf v[MAX_WIDE];
            if (bring_in(type, R))
                TILE_UNROLL for (int c = 0; c < C; c += 2) VEC_PREFETCH(
                    next + ((size_t)t * a->dim_pad + (size_t)c * VEC) * a->kv->value_bytes);
            TILE_UNROLL for (int c = 0; c < C; c++) v[c] =
                load_cached(type, at.v, (size_t)t * a->dim_pad + d + (size_t)c * VEC);
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                vf p = vf_set1(weights[r * VEC + t]);
                TILE_UNROLL for (int c = 0; c < C; c++) sum[r][c] = vf_fma(p, v[c], sum[r][c]);
            }
        }
        if (tokens_seen(&at, a->visible[R - 1]) == common)
            continue;
        TILE_UNROLL for (int r = 1; r < R; r++)
        {
            int seen = tokens_seen(&at, a->visible[r]);
            for (int t = common; t < seen; t++) {
                vf p = vf_set1(weights[r * VEC + t]);
                TILE_UNROLL for (int c = 0; c < C; c++)
                {
                    size_t idx = (size_t)t * a->dim_pad + d + (size_t)c * VEC;
                    sum[r][c] = vf_fma(p, load_cached(type, at.v, idx), sum[r][c]);
                }
            }
        }
    }
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int c = 0; c < C; c++)
        vf_store(a->out + (size_t)r * a->dim_pad + d + (size_t)c * VEC,
                 vf_mul(sum[r][c], vf_set1(a->inverse[r])));
}

VEC_FN void attend(struct rows *a, enum k_kv_type type, int R)
{
    score_rows(a, type, R);
    for (int r = 0; r < R; r++)
        a->inverse[r] = exponentials(a->scores + r * VEC, (size_t)R * VEC, a->n_groups[r]);
    if (type == K_KV_I8)
        scale_weights(a, R);
    uint32_t d = 0;
    for (; d + WIDE(R) * VEC <= a->dim_pad; d += WIDE(R) * VEC)
        weigh_columns(a, type, R, WIDE(R), d);
    for (; d < a->dim_pad; d += VEC)
        weigh_columns(a, type, R, 1, d);
}

#define ATTEND(R)                                                                                  \
    static void attend_##R(struct rows *a)                                                         \
    {                                                                                              \
        if (a->kv->type == K_KV_I8)                                                                \
            attend(a, K_KV_I8, R);                                                                 \
        else if (a->kv->type == K_KV_F16)                                                          \
            attend(a, K_KV_F16, R);                                                                \
        else                                                                                       \
            attend(a, K_KV_F32, R);                                                                \
    }
ATTEND_SIZES(ATTEND)

static void attend_rows(struct rows *a, uint32_t n)
{
#define ATTEND_CASE(R)                                                                             \
    case (R):                                                                                      \
        attend_##R(a);                                                                             \
        break;
    switch (n) {
        ATTEND_SIZES(ATTEND_CASE)
    default:
        assert(!"a number of rows without a kernel");
    }
}

/* Rows [row, row + n), n a size that attend_rows knows. */
static void some_rows(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t kv_head,
                      uint32_t row, uint32_t n, float *scores, const struct k_seq *next,
                      uint32_t next_head)
{
    const struct k_attn_params *p = &j->p;
    const struct k_kv *kv = j->kv;
    const uint32_t dim = p->head_dim, shared = p->n_heads / p->n_kv_heads;
    const float scale = 1.0f / sqrtf((float)dim);
    float q[ATTENTION_ROWS * Q_STRIDE], out[ATTENTION_ROWS * MAX_DIM];
    struct rows a = {
        .kv = kv,
        .first = cpu_kv_head(kv, p->layer, 0, kv_head),
        .blocks = seq->blocks,
        .dim_pad = kv->dim_pad,
        .scores = scores,
        .q = q,
        .out = out,
    };
    if (next) {
        a.next_first = cpu_kv_head(kv, p->layer, 0, next_head);
        a.next_blocks = next->blocks;
        a.next_groups = groups_of(kv, next->start + next->n_rows);
    }
    for (uint32_t r = 0; r < n; r++) {
        uint32_t causal = seq->start + (row + r) / shared + 1;
        a.visible[r] = causal > seq->prefix_len ? causal : seq->prefix_len;
        a.n_groups[r] = groups_of(kv, a.visible[r]);
        const float *from = j->q + row_at(p, seq, kv_head, row + r);
        float *to = q + (size_t)r * Q_STRIDE;
        for (uint32_t d = 0; d < dim; d++)
            to[d] = from[d] * scale;
        for (uint32_t d = dim; d < kv->dim_pad; d++)
            to[d] = 0.0f;
    }
    attend_rows(&a, n);
    for (uint32_t r = 0; r < n; r++)
        memcpy(j->out + row_at(p, seq, kv_head, row + r), out + (size_t)r * kv->dim_pad,
               dim * sizeof(float));
}

void CPU_FN(attention)(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t kv_head,
                       uint32_t row, uint32_t n, float *scores, const struct k_seq *next,
                       uint32_t next_head)
{
    assert(n <= ATTENTION_ROWS);
    while (n) {
        uint32_t piece = piece_of(n);
        some_rows(j, seq, kv_head, row, piece, scores, piece == n ? next : NULL, next_head);
        row += piece;
        n -= piece;
    }
}
