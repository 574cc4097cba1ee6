/* attention.c: one head of up to ATTENTION_ROWS rows of a sequence over the paged cache.
 *
 * Two passes: scores of all visible tokens (a token is a lane; a score is the sum of its even and
 * of its odd dimensions), then softmax, then the weighted sum of values in ascending token order (a
 * dimension is a lane). With a K_KV_I8 cache the sums are over its integers: a key's scale
 * multiplies the finished score, a value's scale the token's weight. The order of every sum of a
 * row depends on what the row sees and on nothing else, so prefill and decode give the same bits.
 * Lanes and tokens that a row does not see are left out, never multiplied by zero: they may hold
 * anything.
 */
#include "isa.h"
#include "vmath.h"

#include <assert.h>
#include <math.h>

enum { MAX_DIM = CPU_MAX_HEAD_DIM, V_COLUMNS = 2 };

/* 16 tokens of a sequence, as they lie in one block of the cache. */
struct group {
    const uint8_t *k, *v;              /* [dim_pad][16], [16][dim_pad] */
    const uint16_t *k_scale, *v_scale; /* [16], K_KV_I8 only */
    uint32_t token0, n;                /* tokens [token0, token0 + n) */
};

VEC_FN struct group find_group(const struct k_kv *kv, uint8_t *layer, uint32_t kv_head,
                               const uint32_t *blocks, uint32_t idx)
{
    uint32_t block = idx / kv->token_groups, within = idx % kv->token_groups;
    uint8_t *head = layer + ((size_t)blocks[block] * kv->p.n_kv_heads + kv_head) * kv->head_bytes;
    size_t piece = (size_t)kv->dim_pad * VEC * kv->value_bytes;
    uint32_t left = kv->p.block_tokens - within * VEC;
    return (struct group){
        .k = head + kv->keys_at + within * piece,
        .v = head + kv->values_at + within * piece,
        .k_scale = cpu_kv_scales(kv, head, false, within),
        .v_scale = cpu_kv_scales(kv, head, true, within),
        .token0 = block * kv->p.block_tokens + within * VEC,
        .n = left < VEC ? left : VEC,
    };
}

/* Groups that hold the first `visible` tokens. */
static uint32_t groups_of(const struct k_kv *kv, uint32_t visible)
{
    uint32_t last = visible - 1;
    return last / kv->p.block_tokens * kv->token_groups + last % kv->p.block_tokens / VEC + 1;
}

/* Tokens of the group among the first `visible`. */
VEC_FN int tokens_seen(const struct group *g, uint32_t visible)
{
    if (visible <= g->token0)
        return 0;
    return (int)(visible - g->token0 < g->n ? visible - g->token0 : g->n);
}

/* Integers in K_KV_I8. */
VEC_FN vf load_cached(enum k_kv_type type, const uint8_t *p, size_t idx)
{
    return type == K_KV_I8    ? vf_load_i8((const int8_t *)p + idx)
           : type == K_KV_F16 ? vf_load_half((const uint16_t *)p + idx)
                              : vf_load((const float *)p + idx);
}

struct rows {
    const struct k_kv *kv;
    uint8_t *layer;
    const uint32_t *blocks;
    uint32_t kv_head, dim_pad;
    uint32_t visible[ATTENTION_ROWS]; /* ascending */
    uint32_t n_groups[ATTENTION_ROWS];
    float *scores[ATTENTION_ROWS]; /* [n_groups][16] */
    const float *q;                /* [R][dim_pad], scaled */
    float *out[ATTENTION_ROWS];    /* [dim_pad] */
    float inverse[ATTENTION_ROWS]; /* 1 / sum of the exponentials */
};

/* The group behind g, to be brought in while g is worked on; the last one is its own successor. */
VEC_FN struct group next_group(const struct rows *a, uint32_t g, int R)
{
    uint32_t next = g + 1 < a->n_groups[R - 1] ? g + 1 : g;
    return find_group(a->kv, a->layer, a->kv_head, a->blocks, next);
}

/* Several rows over integers are bound by the conversions. */
VEC_FN bool bring_in(enum k_kv_type type, int R)
{
    return type != K_KV_I8 || R == 1;
}

VEC_FN void score_rows(const struct rows *a, enum k_kv_type type, int R)
{
    const uint32_t dim = a->dim_pad;
    for (uint32_t g = 0; g < a->n_groups[R - 1]; g++) {
        struct group at = find_group(a->kv, a->layer, a->kv_head, a->blocks, g);
        const uint8_t *next = next_group(a, g, R).k;
        vf sum[ATTENTION_ROWS][2];
        TILE_UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vf_zero();
        for (uint32_t d = 0; d < dim; d += 2) {
            if (bring_in(type, R))
                VEC_PREFETCH(next + (size_t)d * VEC * a->kv->value_bytes);
            vf k0 = load_cached(type, at.k, (size_t)d * VEC);
            vf k1 = load_cached(type, at.k, (size_t)(d + 1) * VEC);
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                const float *q = a->q + (size_t)r * dim + d;
                sum[r][0] = vf_fma(vf_set1(q[0]), k0, sum[r][0]);
                sum[r][1] = vf_fma(vf_set1(q[1]), k1, sum[r][1]);
            }
        }
        TILE_UNROLL for (int r = 0; r < R; r++)
        {
            int seen = tokens_seen(&at, a->visible[r]);
            vf score = vf_add(sum[r][0], sum[r][1]);
            if (type == K_KV_I8)
                score = vf_mul(score, vf_load_half(at.k_scale));
            if (seen)
                vf_store(a->scores[r] + (size_t)g * VEC,
                         vf_select_n(seen, score, vf_set1(-INFINITY)));
        }
    }
}

/* Scores become exp(score - largest); returns 1 / their sum. */
static float exponentials(float *scores, uint32_t n_groups)
{
    vf largest = vf_set1(-INFINITY);
    for (uint32_t g = 0; g < n_groups; g++)
        largest = vf_max(largest, vf_load(scores + (size_t)g * VEC));
    const vf top = vf_set1(vf_max_lanes(largest));
    vf sum = vf_zero();
    for (uint32_t g = 0; g < n_groups; g++) {
        vf below = vf_sub(vf_load(scores + (size_t)g * VEC), top);
        vf e = vf_exp2(vf_mul(below, vf_set1(0x1.715476p+0f)));
        vf_store(scores + (size_t)g * VEC, e);
        sum = vf_add(sum, e);
    }
    return 1.0f / vf_sum(sum);
}

/* K_KV_I8: the weights of the group's values take on the values' scales. */
VEC_FN void scale_weights(const struct rows *a, const struct group *at, uint32_t g, int R)
{
    vf scale = vf_load_half(at->v_scale);
    TILE_UNROLL for (int r = 0; r < R; r++)
    {
        float *weights = a->scores[r] + (size_t)g * VEC;
        if (g < a->n_groups[r])
            vf_store(weights, vf_mul(vf_load(weights), scale));
    }
}

/* Dimensions [d, d + 16 C) of the rows' results, d = 0 first. */
VEC_FN void weigh_columns(const struct rows *a, enum k_kv_type type, int R, int C, uint32_t d)
{
    vf sum[ATTENTION_ROWS][ATTENTION_WIDE];
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int c = 0; c < C; c++) sum[r][c] =
        vf_zero();
    for (uint32_t g = 0; g < a->n_groups[R - 1]; g++) {
        struct group at = find_group(a->kv, a->layer, a->kv_head, a->blocks, g);
        const uint8_t *next = next_group(a, g, R).v + d * a->kv->value_bytes;
        if (type == K_KV_I8 && d == 0)
            scale_weights(a, &at, g, R);
        int common = tokens_seen(&at, a->visible[0]);
        for (int t = 0; t < common; t++) {
            vf v[ATTENTION_WIDE];
            if (bring_in(type, R))
                TILE_UNROLL for (int c = 0; c < C; c += 2) VEC_PREFETCH(
                    next + ((size_t)t * a->dim_pad + (size_t)c * VEC) * a->kv->value_bytes);
            TILE_UNROLL for (int c = 0; c < C; c++) v[c] =
                load_cached(type, at.v, (size_t)t * a->dim_pad + d + (size_t)c * VEC);
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                vf p = vf_set1(a->scores[r][(size_t)g * VEC + (size_t)t]);
                TILE_UNROLL for (int c = 0; c < C; c++) sum[r][c] = vf_fma(p, v[c], sum[r][c]);
            }
        }
        TILE_UNROLL for (int r = 1; r < R; r++)
        {
            int seen = tokens_seen(&at, a->visible[r]);
            for (int t = common; t < seen; t++) {
                vf p = vf_set1(a->scores[r][(size_t)g * VEC + (size_t)t]);
                TILE_UNROLL for (int c = 0; c < C; c++)
                {
                    size_t idx = (size_t)t * a->dim_pad + d + (size_t)c * VEC;
                    sum[r][c] = vf_fma(p, load_cached(type, at.v, idx), sum[r][c]);
                }
            }
        }
    }
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int c = 0; c < C; c++)
        vf_store(a->out[r] + d + c * VEC, vf_mul(sum[r][c], vf_set1(a->inverse[r])));
}

VEC_FN void attend(struct rows *a, enum k_kv_type type, int R)
{
    score_rows(a, type, R);
    for (int r = 0; r < R; r++)
        a->inverse[r] = exponentials(a->scores[r], a->n_groups[r]);
    const int C = R == 1 ? ATTENTION_WIDE : V_COLUMNS;
    uint32_t d = 0;
    for (; d + (uint32_t)C * VEC <= a->dim_pad; d += (uint32_t)C * VEC)
        weigh_columns(a, type, R, C, d);
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
ATTEND(1)
ATTEND(2)
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
ATTEND(4)
ATTEND(8)
#endif

static void attend_rows(struct rows *a, uint32_t n)
{
    if (n == 1)
        attend_1(a);
    else if (n == 2)
        attend_2(a);
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
    else if (n == 4)
        attend_4(a);
    else
        attend_8(a);
#endif
}

/* Rows [row, row + n) of the sequence, n a size that attend_rows knows. */
static void some_rows(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t head,
                      uint32_t row, uint32_t n, float *scores)
{
    const struct k_attn_params *p = &j->p;
    const struct k_kv *kv = j->kv;
    const uint32_t dim = p->head_dim;
    const float scale = 1.0f / sqrtf((float)dim);
    float q[ATTENTION_ROWS * MAX_DIM], out[ATTENTION_ROWS * MAX_DIM];
    struct rows a = {
        .kv = kv,
        .layer = cpu_kv_head(kv, p->layer, 0, 0),
        .blocks = seq->blocks,
        .kv_head = head / (p->n_heads / p->n_kv_heads),
        .dim_pad = kv->dim_pad,
        .q = q,
    };
    for (uint32_t r = 0; r < n; r++) {
        uint32_t causal = seq->start + row + r + 1;
        a.visible[r] = causal > seq->prefix_len ? causal : seq->prefix_len;
        a.n_groups[r] = groups_of(kv, a.visible[r]);
        a.scores[r] = scores;
        scores += (size_t)a.n_groups[r] * VEC;
        a.out[r] = out + (size_t)r * kv->dim_pad;
        const float *from = j->q + ((size_t)(seq->row0 + row + r) * p->n_heads + head) * dim;
        float *to = q + (size_t)r * kv->dim_pad;
        for (uint32_t d = 0; d < dim; d++)
            to[d] = from[d] * scale;
        for (uint32_t d = dim; d < kv->dim_pad; d++)
            to[d] = 0.0f;
    }
    attend_rows(&a, n);
    for (uint32_t r = 0; r < n; r++)
        memcpy(j->out + ((size_t)(seq->row0 + row + r) * p->n_heads + head) * dim, a.out[r],
               dim * sizeof(float));
}

void CPU_FN(attention)(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t head,
                       uint32_t row, uint32_t n, float *scores)
{
    assert(n <= ATTENTION_ROWS);
    while (n) {
        uint32_t piece = ATTENTION_ROWS;
        while (piece > n)
            piece /= 2;
        some_rows(j, seq, head, row, piece, scores);
        row += piece;
        n -= piece;
    }
}
