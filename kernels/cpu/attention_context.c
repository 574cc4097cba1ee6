/* attention_context.c: the rows of a context, which all see all of it, in the modes fp16 and a8. A
 * head's keys and values are turned into integers once, in the order that the products want them
 * in, and serve all of its rows: vi_dot16 makes twice as many multiply-adds as FP32 does, vi_dot8
 * four times as many, and no conversion stands beside it. A row's own arithmetic depends on the
 * context and on the row alone, so the cut into tiles, parts and threads is free, and a context
 * gives the same bits whatever else is in the step. Rows behind the context (decoding, or being
 * replayed) are attention.c's.
 *
 *   key, row of q:  round(x / scale), scale = largest magnitude of the token or row / key limit;
 *   value:          round(x / scale), scale = largest magnitude of the token / value limit;
 *   weight:         round(w / scale), w = exp(score - largest) * scale of the value, scale =
 *                   largest w of the row among BLOCK_TOKENS tokens / weight limit.
 *
 * In mode fp16 the limits are the largest ones for which 32-bit sums are exact: of a score, and of
 * the values of BLOCK_TOKENS tokens, which are added up in FP32 in ascending order. With 128
 * dimensions the key limit is 4095: the step is 2^-13 of the largest magnitude, where binary16 has
 * 2^-11 of each value. In a8 they are those of 8 bits, as everywhere in that mode. What a K_KV_I8
 * cache holds are integers already.
 *
 * The sum that the weights are divided by is that of the exponentials themselves.
 */
#include "attention.h"
#include "vmath.h"

#include <assert.h>
#include <math.h>

enum { BLOCK_GROUPS = 4, BLOCK_TOKENS = BLOCK_GROUPS * VEC };
enum { WIDE_SUM_LIMIT = 5792, BYTE_LIMIT = 127, BYTE_WEIGHT_LIMIT = 255, BYTE_ZERO = 128 };
static_assert((int64_t)BLOCK_TOKENS * WIDE_SUM_LIMIT * WIDE_SUM_LIMIT <= INT32_MAX, "exact");
static_assert((int64_t)MAX_DIM * 255 * BYTE_LIMIT <= INT32_MAX, "scores in bytes are exact");

/* Integers are kept in words of two or four: what a lane of a dot takes. Bytes are for sets that
 * have a dot of them; the others keep the same numbers in 16 bits. */
#if defined CPU_ISA_avx512vnni || defined CPU_ISA_avxvnni
#define HAVE_BYTES 1
#else
#define HAVE_BYTES 0
#endif
#define IN_WORD(bits) (32u / (uint32_t)(bits))
enum { MAX_IN_WORD = 4 };

/* Magnitudes below this count as this, so that 1 / scale stays finite. */
#define TINY 1e-30f

struct context {
    const struct cpu_attention_job *j;
    const struct k_seq *seq;
    uint32_t kv_head, dim_pad;
    uint32_t n_groups, n_blocks; /* the last block perhaps without some of its groups */
    float key_limit, value_limit, weight_limit;
    uint8_t *keys;      /* [n_groups][dim_pad / IN_WORD][16 tokens] words of dimensions; bytes: +
                           BYTE_ZERO */
    uint8_t *values;    /* [dim_pad / 16][n_blocks][BLOCK_TOKENS / IN_WORD][16 dimensions] words of
                           tokens */
    float *key_scale;   /* [n_blocks * BLOCK_TOKENS] */
    float *hidden;      /* the same: 0, or minus infinity where there is no token */
    float *value_scale; /* the same; 0 where there is no token */
    /* of a tile of R rows */
    const float *next_q[ATTENTION_ROWS]; /* rows of the next tile, to be brought in; or NULL */
    float *out_row[ATTENTION_ROWS];
    float *scores;       /* [n_groups][R][16] */
    uint8_t *weights;    /* [n_blocks][R][BLOCK_TOKENS] integers */
    float *weight_scale; /* [n_blocks][R] */
    uint8_t q[ATTENTION_ROWS * Q_STRIDE * sizeof(int16_t)]; /* rows Q_STRIDE integers apart */
    int32_t start[ATTENTION_ROWS];                          /* of the sums: takes BYTE_ZERO out */
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
    int32_t bits = vi_max_lanes(vi_max(magnitudes, vi_bits(vf_set1(TINY))));
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Not finite: any integer, 0 as 8 or 16 bits. */
VEC_FN vi quantized(vf x, vf inverse)
{
    return vi_from_float(vf_mul(x, inverse));
}

/* The low bits of IN_WORD integers. */
VEC_FN vi word_of(const vi *v, int bits)
{
    if (bits == 16)
        return vi_add(vi_and(v[0], vi_set1(0xffff)), vi_sll(v[1], 16));
    const vi byte = vi_set1(0xff);
    vi low = vi_add(vi_and(v[0], byte), vi_sll(vi_and(v[1], byte), 8));
    return vi_add(low, vi_add(vi_sll(vi_and(v[2], byte), 16), vi_sll(v[3], 24)));
}

/* acc + the sum over a word of the products; in bytes `u` has no signs. */
VEC_FN vi dot(int bits, vi acc, vi u, vi s)
{
    return bits == 16 ? vi_dot16(acc, u, s) : vi_dot8(acc, u, s);
}

VEC_FN void store_integers(int bits, uint8_t *to, vi x)
{
    if (bits == 16)
        vi_store_i16((int16_t *)to, x);
    else
        vi_store_bytes(to, x);
}

/* ---- keys and values ---- */

/* next: the group whose keys and values come into the cache meanwhile: blocks are far apart. */
VEC_FN void convert_keys(const struct context *c, enum k_kv_type type, int bits,
                         const struct group *at, uint32_t g, const struct group *next)
{
    const uint32_t dim = c->dim_pad, in_word = IN_WORD(bits);
    uint8_t *to = c->keys + (size_t)g * dim / in_word * sizeof(vi);
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
    const size_t step = (size_t)in_word * VEC * CPU_KV_VALUE_BYTES(type);
    for (uint32_t d = 0; d < dim; d += in_word, to += sizeof(vi)) {
        for (size_t i = 0; i < step; i += 64) {
            VEC_PREFETCH(next->k + d / in_word * step + i);
            VEC_PREFETCH(next->v + d / in_word * step + i);
        }
        vi k[MAX_IN_WORD];
        TILE_UNROLL for (uint32_t i = 0; i < in_word; i++)
        {
            k[i] = quantized(load_cached(type, at->k, (size_t)(d + i) * VEC), inverse);
            if (bits == 8)
                k[i] = vi_add(k[i], vi_set1(BYTE_ZERO));
        }
        vi_store(to, word_of(k, bits));
    }
    int n = tokens_seen(at, c->seq->prefix_len);
    vf_store(c->key_scale + (size_t)g * VEC, vf_select_n(n, scale, vf_zero()));
    vf_store(c->hidden + (size_t)g * VEC, vf_select_n(n, vf_zero(), vf_set1(-INFINITY)));
}

/* The largest magnitudes of 16 values, a token in each lane; `n` tokens are there. */
VEC_FN vf largest_values(const struct context *c, enum k_kv_type type, const struct group *at,
                         int n)
{
    vf most[VEC];
    for (int t = 0; t < VEC; t++) {
        vi largest = vi_zero();
        for (uint32_t d = 0; t < n && d < c->dim_pad; d += VEC)
            largest =
                vi_max(largest, magnitude(load_cached(type, at->v, (size_t)t * c->dim_pad + d)));
        most[t] = vf_from_bits(largest);
    }
    vf_transpose(most);
    vi m = vi_bits(most[0]);
    for (int t = 1; t < VEC; t++)
        m = vi_max(m, vi_bits(most[t]));
    return vf_from_bits(m);
}

VEC_FN void convert_values(const struct context *c, enum k_kv_type type, int bits,
                           const struct group *at, uint32_t g)
{
    const uint32_t dim = c->dim_pad, in_word = IN_WORD(bits);
    const int n = tokens_seen(at, c->seq->prefix_len);
    float inverses[VEC];
    vf scale, inverse = vf_set1(1.0f);
    if (type == K_KV_I8) {
        scale = vf_load_half(at->v_scale);
    } else {
        vf m = vf_max(vf_set1(TINY), largest_values(c, type, at, n)); /* in this order NaN passes */
        inverse = vf_div(vf_set1(c->value_limit), m);
        scale = vf_div(m, vf_set1(c->value_limit));
    }
    vf_store(inverses, vf_select_n(n, inverse, vf_zero()));
    vf_store(c->value_scale + (size_t)g * VEC, vf_select_n(n, scale, vf_zero()));
    const size_t stream = (size_t)c->n_blocks * BLOCK_TOKENS / in_word * sizeof(vi);
    uint8_t *group = c->values + (size_t)g * VEC / in_word * sizeof(vi);
    for (uint32_t d = 0; d < dim; d += VEC, group += stream) {
        uint8_t *to = group;
        for (uint32_t t = 0; t < VEC; t += in_word, to += sizeof(vi)) {
            vi v[MAX_IN_WORD];
            TILE_UNROLL for (uint32_t i = 0; i < in_word; i++) v[i] = quantized(
                load_cached(type, at->v, (size_t)(t + i) * dim + d), vf_set1(inverses[t + i]));
            vi_store(to, word_of(v, bits));
        }
    }
}

VEC_FN void convert(const struct context *c, enum k_kv_type type, int bits)
{
    uint8_t *first = cpu_kv_head(c->j->kv, c->j->p.layer, 0, c->kv_head);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const uint32_t next_g = g + 1 < c->n_groups ? g + 1 : g;
        const struct group at = find_group(c->j->kv, first, c->seq->blocks, g);
        const struct group next = find_group(c->j->kv, first, c->seq->blocks, next_g);
        convert_keys(c, type, bits, &at, g, &next);
        convert_values(c, type, bits, &at, g);
    }
}

/* ---- a tile of rows ---- */

/* Scores of groups [g, g + G), each to be multiplied with its row's scale. */
VEC_FN void score_groups(const struct context *c, int bits, int R, int G, uint32_t g)
{
    const size_t group_bytes = (size_t)c->dim_pad / IN_WORD(bits) * sizeof(vi);
    const size_t row_bytes = (size_t)Q_STRIDE * bits / 8;
    const uint8_t *k = c->keys + g * group_bytes;
    const uint8_t *q = c->q;
    vi sum[ATTENTION_ROWS][MAX_GROUPS];
    TILE_UNROLL for (int i = 0; i < G; i++) TILE_UNROLL for (int r = 0; r < R; r++) sum[r][i] =
        bits == 8 ? vi_bcast(c->start + r) : vi_zero();
    for (size_t done = 0; done < group_bytes; done += 2 * sizeof(vi), q += 2 * sizeof(uint32_t))
        TILE_UNROLL for (int e = 0; e < 2; e++)
        {
            vi key[MAX_GROUPS];
            TILE_UNROLL for (int i = 0; i < G; i++) key[i] =
                vi_load(k + (size_t)i * group_bytes + done + (size_t)e * sizeof(vi));
            TILE_UNROLL for (int r = 0; r < R; r++)
            {
                vi row = vi_bcast(q + r * row_bytes + e * sizeof(uint32_t));
                TILE_UNROLL for (int i = 0; i < G; i++) sum[r][i] =
                    dot(bits, sum[r][i], key[i], row);
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

VEC_FN void score_rows(const struct context *c, int bits, int R)
{
    uint32_t g = 0;
    for (; g + GROUPS(R) <= c->n_groups; g += GROUPS(R))
        score_groups(c, bits, R, GROUPS(R), g);
    for (; g < c->n_groups; g++)
        score_groups(c, bits, R, 1, g);
}

/* A row of scores on its way to weights. */
struct softmax {
    vf slope, top, sum;
    float weight_limit, weight_step;
};

/* `n` groups of a block; scores and weights: of its first one. Returns the weights' scale. */
VEC_FN float weights_of_block(struct softmax *s, int bits, const float *scores, size_t stride,
                              const float *value_scale, uint32_t n, uint8_t *weights)
{
    vf w[BLOCK_GROUPS];
    vi most = vi_zero();
    TILE_UNROLL for (uint32_t i = 0; i < BLOCK_GROUPS; i++)
    {
        w[i] = vf_zero();
        if (i < n) {
            vf e = vf_exp2_coarse(vf_fma(vf_load(scores + i * stride), s->slope, s->top));
            s->sum = vf_add(s->sum, e);
            w[i] = vf_mul(e, vf_load(value_scale + (size_t)i * VEC));
            most = vi_max(most, magnitude(w[i]));
        }
    }
    const float m = largest_lane(most);
    const vf inverse = vf_set1(s->weight_limit / m);
    TILE_UNROLL for (uint32_t i = 0; i < BLOCK_GROUPS; i++) store_integers(
        bits, weights + (size_t)i * VEC * (size_t)bits / 8, quantized(w[i], inverse));
    return m * s->weight_step;
}

/* The scores of row r become weights. */
VEC_FN void weights_of_row(struct context *c, int bits, uint32_t R, uint32_t r)
{
    const float *scores = c->scores + (size_t)r * VEC;
    const size_t stride = (size_t)R * VEC;
    vf largest = vf_set1(-INFINITY);
    for (uint32_t g = 0; g < c->n_groups; g++)
        largest = vf_max(largest, vf_load(scores + g * stride));
    const float factor = c->q_scale[r] * 0x1.715476p+0f; /* log2 e */
    struct softmax s = {vf_set1(factor), vf_set1(-factor * vf_max_lanes(largest)), vf_zero(),
                        c->weight_limit, 1.0f / c->weight_limit};
    for (uint32_t b = 0; b < c->n_blocks; b++) {
        const uint32_t g = b * BLOCK_GROUPS, left = c->n_groups - g;
        const size_t at = (size_t)b * R + r;
        const float *from = scores + g * stride, *value_scale = c->value_scale + (size_t)g * VEC;
        uint8_t *to = c->weights + at * BLOCK_TOKENS * (size_t)bits / 8;
        c->weight_scale[at] =
            left >= BLOCK_GROUPS
                ? weights_of_block(&s, bits, from, stride, value_scale, BLOCK_GROUPS, to)
                : weights_of_block(&s, bits, from, stride, value_scale, left, to);
    }
    c->inverse[r] = 1.0f / vf_sum(s.sum);
}

/* What is needed next of the row's place in memory: rows of a head are far apart. */
VEC_FN void bring_in(const struct context *c, uint32_t r)
{
    const uint32_t n = c->j->p.head_dim;
    for (uint32_t d = 0; c->next_q[r] && d < n; d += VEC)
        VEC_PREFETCH(c->next_q[r] + d);
    for (uint32_t d = 0; d < n; d += VEC)
        VEC_PREFETCH(c->out_row[r] + d);
}

/* The compiler forgets where `p` points to, and with it what it could keep in registers. */
#define IN_MEMORY(p) __asm__ volatile("" : "+r"(p) : : "memory")

/* Dimensions [d, d + 16 C) of the rows' results, not yet divided: out[R][C][16]. */
VEC_FN void weigh_columns(const struct context *c, int bits, int R, int C, uint32_t d, float *out)
{
    const size_t block_bytes = BLOCK_TOKENS / IN_WORD(bits) * sizeof(vi);
    const size_t row_bytes = (size_t)BLOCK_TOKENS * bits / 8;
    const size_t stream = c->n_blocks * block_bytes;
    const uint8_t *v = c->values + (size_t)d / VEC * stream;
    TILE_UNROLL for (int i = 0; i < R * C; i++) vf_store(out + i * VEC, vf_zero());
    for (uint32_t b = 0; b < c->n_blocks; b++) {
        const uint32_t left = c->n_groups - b * BLOCK_GROUPS;
        const uint8_t *p = c->weights + (size_t)b * (size_t)R * row_bytes;
        const float *scale = c->weight_scale + (size_t)b * (size_t)R;
        const uint8_t *const end =
            p + (left < BLOCK_GROUPS ? left : BLOCK_GROUPS) * VEC * (size_t)bits / 8;
        const uint8_t *at = v + b * block_bytes;
        vi sum[ATTENTION_ROWS][MAX_WIDE];
        TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int i = 0; i < C; i++) sum[r][i] =
            vi_zero();
        for (; p < end; p += 2 * sizeof(uint32_t), at += 2 * sizeof(vi))
            TILE_UNROLL for (int e = 0; e < 2; e++)
            {
                vi value[MAX_WIDE];
                TILE_UNROLL for (int i = 0; i < C; i++) value[i] =
                    vi_load(at + (size_t)i * stream + (size_t)e * sizeof(vi));
                TILE_UNROLL for (int r = 0; r < R; r++)
                {
                    vi weight = vi_bcast(p + r * row_bytes + e * sizeof(uint32_t));
                    TILE_UNROLL for (int i = 0; i < C; i++) sum[r][i] =
                        dot(bits, sum[r][i], weight, value[i]);
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
VEC_FN void weigh(const struct context *c, int bits, int R, int C, uint32_t d, float *y)
{
    float area[ATTENTION_ROWS * MAX_WIDE * VEC] __attribute__((aligned(64)));
    weigh_columns(c, bits, R, C, d, area);
    TILE_UNROLL for (int r = 0; r < R; r++) TILE_UNROLL for (int i = 0; i < C; i++)
        vf_store(y + (size_t)r * c->dim_pad + d + (size_t)i * VEC,
                 vf_mul(vf_load(area + (r * C + i) * VEC), vf_set1(c->inverse[r])));
}

static void weights_of_row_16(struct context *c, uint32_t R, uint32_t r)
{
    weights_of_row(c, 16, R, r);
}

static void weights_of_row_8(struct context *c, uint32_t R, uint32_t r)
{
    weights_of_row(c, 8, R, r);
}

VEC_FN void attend(struct context *c, int bits, int R, float *y)
{
    score_rows(c, bits, R);
    for (int r = 0; r < R; r++) {
        bring_in(c, (uint32_t)r);
        (bits == 8 ? weights_of_row_8 : weights_of_row_16)(c, (uint32_t)R, (uint32_t)r);
    }
    uint32_t d = 0;
    for (; d + WIDE(R) * VEC <= c->dim_pad; d += WIDE(R) * VEC)
        weigh(c, bits, R, WIDE(R), d, y);
    for (; d < c->dim_pad; d += VEC)
        weigh(c, bits, R, 1, d, y);
}

#define ATTEND(R)                                                                                  \
    static void attend_16_##R(struct context *c, float *y)                                         \
    {                                                                                              \
        attend(c, 16, R, y);                                                                       \
    }
#define ATTEND_BYTES(R)                                                                            \
    static void attend_8_##R(struct context *c, float *y)                                          \
    {                                                                                              \
        attend(c, 8, R, y);                                                                        \
    }
#define ATTEND_CASE(R)                                                                             \
    case (R):                                                                                      \
        attend_16_##R(c, y);                                                                       \
        break;
#define ATTEND_BYTES_CASE(R)                                                                       \
    case (R):                                                                                      \
        attend_8_##R(c, y);                                                                        \
        break;

ATTEND_SIZES(ATTEND)
#if HAVE_BYTES
ATTEND_SIZES(ATTEND_BYTES)
#endif

static void attend_rows(struct context *c, int bits, uint32_t n, float *y)
{
#if HAVE_BYTES
    if (bits == 8) {
        switch (n) {
            ATTEND_SIZES(ATTEND_BYTES_CASE)
        default:
            assert(!"a number of rows without a kernel");
        }
        return;
    }
#endif
    assert(bits == 16);
    switch (n) {
        ATTEND_SIZES(ATTEND_CASE)
    default:
        assert(!"a number of rows without a kernel");
    }
}

VEC_FN void quantize_row(struct context *c, int bits, const float *from, uint32_t r)
{
    const uint32_t dim = c->j->p.head_dim;
    float x[MAX_DIM] __attribute__((aligned(64)));
    memcpy(x, from, dim * sizeof *x);
    memset(x + dim, 0, (c->dim_pad - dim) * sizeof *x);
    vi largest = vi_zero(), sum = vi_zero();
    for (uint32_t d = 0; d < c->dim_pad; d += VEC)
        largest = vi_max(largest, magnitude(vf_load(x + d)));
    const float m = largest_lane(largest);
    const vf inverse = vf_set1(c->key_limit / m);
    for (uint32_t d = 0; d < c->dim_pad; d += VEC) {
        vi v = quantized(vf_load(x + d), inverse);
        if (bits == 8)
            v = vi_max(v, vi_set1(-BYTE_LIMIT)); /* which only what is not finite is below */
        sum = vi_add(sum, v);
        store_integers(bits, c->q + ((size_t)r * Q_STRIDE + d) * (size_t)bits / 8, v);
    }
    c->start[r] = bits == 8 ? -BYTE_ZERO * vi_sum(sum) : 0;
    c->q_scale[r] = m / c->key_limit * (1.0f / sqrtf((float)dim));
}

/* Rows [row, row + n), behind which n_next more come. */
VEC_FN void some_rows(struct context *c, int bits, uint32_t row, uint32_t n, uint32_t n_next)
{
    const struct k_attn_params *p = &c->j->p;
    float y[ATTENTION_ROWS * MAX_DIM] __attribute__((aligned(64)));
    for (uint32_t r = 0; r < n; r++) {
        quantize_row(c, bits, c->j->q + row_at(p, c->seq, c->kv_head, row + r), r);
        c->out_row[r] = c->j->out + row_at(p, c->seq, c->kv_head, row + r);
        c->next_q[r] = r < n_next ? c->j->q + row_at(p, c->seq, c->kv_head, row + n + r) : NULL;
    }
    attend_rows(c, bits, n, y);
    for (uint32_t r = 0; r < n; r++)
        memcpy(c->out_row[r], y + (size_t)r * c->dim_pad, p->head_dim * sizeof(float));
}

/* Cuts the scratch as cpu_context_bytes counts it. */
static void set_areas(struct context *c, uint8_t *at)
{
    const size_t n = (size_t)c->n_blocks * BLOCK_TOKENS;
    c->keys = at;
    c->values = c->keys + n * c->dim_pad * sizeof(int16_t);
    c->key_scale = (float *)(c->values + n * c->dim_pad * sizeof(int16_t));
    c->hidden = c->key_scale + n;
    c->value_scale = c->hidden + n;
    c->scores = c->value_scale + n;
    c->weights = (uint8_t *)(c->scores + n * ATTENTION_ROWS);
    c->weight_scale = (float *)(c->weights + n * ATTENTION_ROWS * sizeof(int16_t));
}

VEC_FN void attend_part(struct context *c, int bits, uint32_t row, uint32_t n)
{
    const enum k_kv_type type = c->j->kv->type;
    if (type == K_KV_I8)
        convert(c, K_KV_I8, bits);
    else if (type == K_KV_F16)
        convert(c, K_KV_F16, bits);
    else
        convert(c, K_KV_F32, bits);
    while (n) {
        const uint32_t piece = piece_of(n);
        n -= piece;
        some_rows(c, bits, row, piece, piece_of(n));
        row += piece;
    }
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
    c.n_blocks = (n_groups + BLOCK_GROUPS - 1) / BLOCK_GROUPS;
    c.key_limit = j->bytes ? BYTE_LIMIT : floorf(sqrtf((float)(INT32_MAX / kv->dim_pad)));
    c.value_limit = j->bytes ? BYTE_LIMIT : WIDE_SUM_LIMIT;
    c.weight_limit = j->bytes ? BYTE_WEIGHT_LIMIT : WIDE_SUM_LIMIT;
    set_areas(&c, scratch);
    if (HAVE_BYTES && j->bytes)
        attend_part(&c, 8, row, n);
    else
        attend_part(&c, 16, row, n);
}
