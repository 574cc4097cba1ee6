/* attention_context.c: the rows of a context, which all see all of it, in the modes fp16 and a8. A
 * head's keys and values are turned into 16-bit integers once, in the order that the products want
 * them in, and serve all of its rows: vi_dot16 makes twice as many multiply-adds as FP32 does and
 * no conversion stands beside it. A row's own arithmetic depends on the context and on the row
 * alone, so the cut into tiles, parts and threads is free, and a context gives the same bits
 * whatever else is in the step. Rows behind the context (decoding, or being replayed) are
 * attention.c's.
 *
 *   key, row of q:  round(x / scale), scale = largest magnitude of the token or row / KEY_LIMIT;
 *   value:          round(x / scale), scale = largest magnitude of the token / SUM_LIMIT;
 *   weight:         round(w / scale), w = exp(score - largest) * scale of the value, scale =
 *                   largest w of the row among PAIR_TOKENS tokens / SUM_LIMIT.
 *
 * The limits are the largest ones for which 32-bit sums are exact: of a score, and of the values of
 * PAIR_TOKENS tokens, which are added up in FP32 in ascending order. With 128 dimensions KEY_LIMIT
 * is 4095: the step is 2^-13 of the largest magnitude, where binary16 has 2^-11 of each value. What
 * a K_KV_I8 cache holds are integers already.
 *
 * The sum that the weights are divided by is that of the exponentials themselves.
 */
#include "attention.h"
#include "vmath.h"

#include <assert.h>
#include <math.h>

enum { PAIR_TOKENS = 2 * VEC, SUM_LIMIT = 8191 };
static_assert((int64_t)PAIR_TOKENS * SUM_LIMIT * SUM_LIMIT <= INT32_MAX, "sums are exact");
enum { STEPS = VEC / 2 }; /* of two tokens, in a group */

/* Magnitudes below this count as this, so that 1 / scale stays finite. */
#define TINY 1e-30f

/* 16-bit words in twos: what a lane of vi_dot16 takes. */
struct context {
    const struct cpu_attention_job *j;
    const struct k_seq *seq;
    uint32_t kv_head, dim_pad;
    uint32_t n_groups, n_pairs; /* of groups, the last one perhaps without its second */
    float key_limit;
    uint8_t *keys;      /* [n_groups][dim_pad / 2][16 tokens] words of two dimensions */
    uint8_t *values;    /* [dim_pad / 16][n_pairs][2 * STEPS][16 dimensions] words of two tokens */
    float *key_scale;   /* [2 * n_pairs][16] */
    float *hidden;      /* the same: 0, or minus infinity where there is no token */
    float *value_scale; /* the same; 0 where there is no token */
    /* of a tile of R rows */
    float *scores;       /* [n_groups][R][16] */
    int16_t *weights;    /* [n_pairs][R][32] */
    float *weight_scale; /* [n_pairs][R] */
    int16_t q[ATTENTION_ROWS * Q_STRIDE];
    float q_scale[ATTENTION_ROWS];
    float inverse[ATTENTION_ROWS]; /* 1 / sum of the exponentials */
};

/* Magnitudes as integers: they have the same order, and NaN comes last. */
VEC_FN vi magnitude(vf x)
{
    return vi_and(vi_bits(x), vi_set1(0x7fffffff));
}

VEC_FN float largest_lane(vi magnitudes)
{
    int32_t bits = vi_max_lanes(magnitudes);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x > TINY || x != x ? x : TINY;
}

/* Not finite: any integer, 0 as 16 bits. */
VEC_FN vi quantized(vf x, vf inverse)
{
    return vi_from_float(vf_mul(x, inverse));
}

VEC_FN vi words(vi low, vi high)
{
    return vi_add(vi_and(low, vi_set1(0xffff)), vi_sll(high, 16));
}

/* ---- keys and values ---- */

VEC_FN void convert_keys(const struct context *c, enum k_kv_type type, const struct group *at,
                         uint32_t g)
{
    const uint32_t dim = c->dim_pad;
    uint8_t *to = c->keys + (size_t)g * dim / 2 * sizeof(vi);
    vf inverse = vf_set1(1.0f), scale;
    if (type == K_KV_I8) {
        scale = vf_load_half(at->k_scale);
    } else {
        vi largest = vi_zero();
        for (uint32_t d = 0; d < dim; d++)
            largest = vi_max(largest, magnitude(load_cached(type, at->k, (size_t)d * VEC)));
        vf m = vf_max(vf_set1(TINY), vf_from_bits(largest)); /* in this order NaN passes */
        inverse = vf_div(vf_set1(c->key_limit), m);
        scale = vf_div(m, vf_set1(c->key_limit));
    }
    for (uint32_t d = 0; d < dim; d += 2, to += sizeof(vi)) {
        vi low = quantized(load_cached(type, at->k, (size_t)d * VEC), inverse);
        vi high = quantized(load_cached(type, at->k, (size_t)(d + 1) * VEC), inverse);
        vi_store(to, words(low, high));
    }
    int n = tokens_seen(at, c->seq->prefix_len);
    vf_store(c->key_scale + (size_t)g * VEC, vf_select_n(n, scale, vf_zero()));
    vf_store(c->hidden + (size_t)g * VEC, vf_select_n(n, vf_zero(), vf_set1(-INFINITY)));
}

/* Tokens 2 step and 2 step + 1 of group g. */
VEC_FN void convert_two_values(const struct context *c, enum k_kv_type type, const struct group *at,
                               uint32_t g, uint32_t step)
{
    const uint32_t dim = c->dim_pad;
    float *scale = c->value_scale + (size_t)g * VEC + (size_t)step * 2;
    vf inverse[2];
    TILE_UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        const size_t from = (size_t)(2 * step + i) * dim;
        inverse[i] = vf_zero();
        scale[i] = 0.0f;
        if (2 * step + i >= (uint32_t)tokens_seen(at, c->seq->prefix_len))
            continue;
        if (type == K_KV_I8) {
            inverse[i] = vf_set1(1.0f);
            scale[i] = half_to_float(at->v_scale[2 * step + i]);
            continue;
        }
        vi largest = vi_zero();
        for (uint32_t d = 0; d < dim; d += VEC)
            largest = vi_max(largest, magnitude(load_cached(type, at->v, from + d)));
        float m = largest_lane(largest);
        inverse[i] = vf_set1(SUM_LIMIT / m);
        scale[i] = m / SUM_LIMIT;
    }
    for (uint32_t d = 0; d < dim; d += VEC) {
        size_t word = ((size_t)d / VEC * c->n_pairs * 2 + g) * STEPS + step;
        vi low = quantized(load_cached(type, at->v, (size_t)(2 * step) * dim + d), inverse[0]);
        vi high = quantized(load_cached(type, at->v, (size_t)(2 * step + 1) * dim + d), inverse[1]);
        vi_store(c->values + word * sizeof(vi), words(low, high));
    }
}

VEC_FN void convert(const struct context *c, enum k_kv_type type)
{
    uint8_t *first = cpu_kv_head(c->j->kv, c->j->p.layer, 0, c->kv_head);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        struct group at = find_group(c->j->kv, first, c->seq->blocks, g);
        convert_keys(c, type, &at, g);
        for (uint32_t step = 0; step < STEPS; step++)
            convert_two_values(c, type, &at, g, step);
    }
}

/* ---- a tile of rows ---- */

/* Scores of groups [g, g + G), each to be multiplied with its row's scale. */
VEC_FN void score_groups(const struct context *c, int R, int G, uint32_t g)
{
    const size_t group_bytes = (size_t)c->dim_pad / 2 * sizeof(vi);
    const uint8_t *k = c->keys + g * group_bytes;
    const int16_t *q = c->q;
    vi sum[ATTENTION_ROWS][MAX_GROUPS];
    TILE_UNROLL for (int i = 0; i < G; i++) TILE_UNROLL for (int r = 0; r < R; r++) sum[r][i] =
        vi_zero();
    for (size_t done = 0; done < group_bytes; done += 2 * sizeof(vi), q += 4)
        TILE_UNROLL for (int e = 0; e < 2; e++)
        {
            vi key[MAX_GROUPS];
            TILE_UNROLL for (int i = 0; i < G; i++) key[i] =
                vi_load(k + (size_t)i * group_bytes + done + (size_t)e * sizeof(vi));
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                vi row = vi_bcast(q + r * Q_STRIDE + 2 * e);
                TILE_UNROLL for (int i = 0; i < G; i++) sum[r][i] =
                    vi_dot16(sum[r][i], key[i], row);
            }
        }
    TILE_UNROLL for (int i = 0; i < G; i++)
    {
        vf scale = vf_load(c->key_scale + (size_t)(g + (uint32_t)i) * VEC);
        vf hidden = vf_load(c->hidden + (size_t)(g + (uint32_t)i) * VEC);
        TILE_UNROLL for (int r = 0; r < R; r++)
            vf_store(c->scores + ((size_t)(g + (uint32_t)i) * (size_t)R + (size_t)r) * VEC,
                     vf_fma(vf_from_int(sum[r][i]), scale, hidden));
    }
}

VEC_FN void score_rows(const struct context *c, int R)
{
    uint32_t g = 0;
    for (; g + GROUPS(R) <= c->n_groups; g += GROUPS(R))
        score_groups(c, R, GROUPS(R), g);
    for (; g < c->n_groups; g++)
        score_groups(c, R, 1, g);
}

/* The scores of row r become weights. */
static void weights_of_row(struct context *c, uint32_t R, uint32_t r)
{
    const float *scores = c->scores + (size_t)r * VEC;
    const size_t stride = (size_t)R * VEC;
    vf largest = vf_set1(-INFINITY), sum = vf_zero();
    for (uint32_t g = 0; g < c->n_groups; g++)
        largest = vf_max(largest, vf_load(scores + g * stride));
    const float factor = c->q_scale[r] * 0x1.715476p+0f; /* log2 e */
    const vf slope = vf_set1(factor), top = vf_set1(-factor * vf_max_lanes(largest));
    for (uint32_t pair = 0; pair < c->n_pairs; pair++) {
        vf w[2] = {vf_zero(), vf_zero()};
        vi most = vi_zero();
        TILE_UNROLL for (uint32_t i = 0; i < 2; i++)
        {
            const uint32_t g = 2 * pair + i;
            if (g == c->n_groups)
                break;
            vf e = vf_exp2(vf_fma(vf_load(scores + g * stride), slope, top));
            sum = vf_add(sum, e);
            w[i] = vf_mul(e, vf_load(c->value_scale + (size_t)g * VEC));
            most = vi_max(most, magnitude(w[i]));
        }
        const float m = largest_lane(most);
        const vf inverse = vf_set1(SUM_LIMIT / m);
        const size_t at = (size_t)pair * R + r;
        c->weight_scale[at] = m / SUM_LIMIT;
        vi_store_i16(c->weights + at * PAIR_TOKENS, quantized(w[0], inverse));
        vi_store_i16(c->weights + at * PAIR_TOKENS + VEC, quantized(w[1], inverse));
    }
    c->inverse[r] = 1.0f / vf_sum(sum);
}

/* The compiler forgets where `p` points to, and with it what it could keep in registers. */
#define IN_MEMORY(p) __asm__ volatile("" : "+r"(p) : : "memory")

/* Dimensions [d, d + 16 C) of the rows' results, not yet divided: out[R][C][16]. */
VEC_FN void weigh_columns(const struct context *c, int R, int C, uint32_t d, float *out)
{
    const size_t stream = (size_t)c->n_pairs * 2 * STEPS * sizeof(vi);
    const uint8_t *v = c->values + (size_t)d / VEC * stream;
    TILE_UNROLL for (int i = 0; i < R * C; i++) vf_store(out + i * VEC, vf_zero());
    for (uint32_t pair = 0; pair < c->n_pairs; pair++) {
        const int16_t *p = c->weights + (size_t)pair * (size_t)R * PAIR_TOKENS;
        const float *scale = c->weight_scale + (size_t)pair * (size_t)R;
        const int16_t *const end = p + (2 * pair + 1 < c->n_groups ? PAIR_TOKENS : VEC);
        const uint8_t *at = v + (size_t)pair * 2 * STEPS * sizeof(vi);
        vi sum[ATTENTION_ROWS][MAX_WIDE];
        TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int i = 0; i < C; i++) sum[r][i] =
            vi_zero();
        for (; p < end; p += 4, at += 2 * sizeof(vi))
            TILE_UNROLL for (int e = 0; e < 2; e++)
            {
                vi value[MAX_WIDE];
                TILE_UNROLL for (int i = 0; i < C; i++) value[i] =
                    vi_load(at + (size_t)i * stream + (size_t)e * sizeof(vi));
                TILE_UNROLL for (int r = 0; r < R; r++)
                {
                    vi weight = vi_bcast(p + r * PAIR_TOKENS + 2 * e);
                    TILE_UNROLL for (int i = 0; i < C; i++) sum[r][i] =
                        vi_dot16(sum[r][i], value[i], weight);
                }
            }
        IN_MEMORY(out);
        TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int i = 0; i < C; i++)
        {
            float *to = out + (r * C + i) * VEC;
            vf_store(to, vf_fma(vf_from_int(sum[r][i]), vf_set1(scale[r]), vf_load(to)));
        }
    }
}

/* y: [R][dim_pad] */
VEC_FN void weigh(const struct context *c, int R, int C, uint32_t d, float *y)
{
    float area[ATTENTION_ROWS * MAX_WIDE * VEC] __attribute__((aligned(64)));
    weigh_columns(c, R, C, d, area);
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int i = 0; i < C; i++)
        vf_store(y + (size_t)r * c->dim_pad + d + (size_t)i * VEC,
                 vf_mul(vf_load(area + (r * C + i) * VEC), vf_set1(c->inverse[r])));
}

VEC_FN void attend(struct context *c, int R, float *y)
{
    score_rows(c, R);
    for (int r = 0; r < R; r++)
        weights_of_row(c, (uint32_t)R, (uint32_t)r);
    uint32_t d = 0;
    for (; d + WIDE(R) * VEC <= c->dim_pad; d += WIDE(R) * VEC)
        weigh(c, R, WIDE(R), d, y);
    for (; d < c->dim_pad; d += VEC)
        weigh(c, R, 1, d, y);
}

#define ATTEND(R)                                                                                  \
    static void attend_##R(struct context *c, float *y)                                            \
    {                                                                                              \
        attend(c, R, y);                                                                           \
    }
ATTEND_SIZES(ATTEND)

static void attend_rows(struct context *c, uint32_t n, float *y)
{
#define ATTEND_CASE(R)                                                                             \
    case (R):                                                                                      \
        attend_##R(c, y);                                                                          \
        break;
    switch (n) {
        ATTEND_SIZES(ATTEND_CASE)
    default:
        assert(!"a number of rows without a kernel");
    }
}

static void quantize_row(struct context *c, const float *from, uint32_t r)
{
    const uint32_t dim = c->j->p.head_dim;
    float x[MAX_DIM] __attribute__((aligned(64)));
    memcpy(x, from, dim * sizeof *x);
    memset(x + dim, 0, (c->dim_pad - dim) * sizeof *x);
    vi largest = vi_zero();
    for (uint32_t d = 0; d < c->dim_pad; d += VEC)
        largest = vi_max(largest, magnitude(vf_load(x + d)));
    const float m = largest_lane(largest);
    const vf inverse = vf_set1(c->key_limit / m);
    for (uint32_t d = 0; d < c->dim_pad; d += VEC)
        vi_store_i16(c->q + (size_t)r * Q_STRIDE + d, quantized(vf_load(x + d), inverse));
    c->q_scale[r] = m / c->key_limit * (1.0f / sqrtf((float)dim));
}

static void some_rows(struct context *c, uint32_t row, uint32_t n)
{
    const struct k_attn_params *p = &c->j->p;
    float y[ATTENTION_ROWS * MAX_DIM] __attribute__((aligned(64)));
    for (uint32_t r = 0; r < n; r++)
        quantize_row(c, c->j->q + row_at(p, c->seq, c->kv_head, row + r), r);
    attend_rows(c, n, y);
    for (uint32_t r = 0; r < n; r++)
        memcpy(c->j->out + row_at(p, c->seq, c->kv_head, row + r), y + (size_t)r * c->dim_pad,
               p->head_dim * sizeof(float));
}

/* Cuts the scratch as cpu_context_bytes counts it. */
static void set_areas(struct context *c, uint8_t *at)
{
    const size_t n = 2 * (size_t)c->n_pairs;
    c->keys = at;
    c->values = c->keys + n * c->dim_pad * STEPS * sizeof(uint32_t);
    c->key_scale = (float *)(c->values + n * c->dim_pad * STEPS * sizeof(uint32_t));
    c->hidden = c->key_scale + n * VEC;
    c->value_scale = c->hidden + n * VEC;
    c->scores = c->value_scale + n * VEC;
    c->weights = (int16_t *)(c->scores + n * ATTENTION_ROWS * VEC);
    c->weight_scale = (float *)(c->weights + n * ATTENTION_ROWS * VEC);
}

void CPU_FN(attention_context)(const struct cpu_attention_job *j, const struct k_seq *seq,
                               uint32_t kv_head, uint32_t row, uint32_t n, void *scratch)
{
    const struct k_kv *kv = j->kv;
    const uint32_t n_groups = groups_of(kv, seq->prefix_len);
    struct context c;
    c.j = j;
    c.seq = seq;
    c.kv_head = kv_head;
    c.dim_pad = kv->dim_pad;
    c.n_groups = n_groups;
    c.n_pairs = (n_groups + 1) / 2;
    c.key_limit = floorf(sqrtf((float)(INT32_MAX / kv->dim_pad)));
    set_areas(&c, scratch);
    if (kv->type == K_KV_I8)
        convert(&c, K_KV_I8);
    else if (kv->type == K_KV_F16)
        convert(&c, K_KV_F16);
    else
        convert(&c, K_KV_F32);
    while (n) {
        uint32_t piece = piece_of(n);
        some_rows(&c, row, piece);
        row += piece;
        n -= piece;
    }
}
