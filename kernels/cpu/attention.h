/* attention.h: what attention of rows in FP32 (attention.c) and of a context's rows in integers
 * (attention_context.c) share: the walk over the paged cache and the sizes of register tiles.
 */
#ifndef GLMD_KERNELS_CPU_ATTENTION_H
#define GLMD_KERNELS_CPU_ATTENTION_H

#include "isa.h"

enum { MAX_DIM = CPU_MAX_HEAD_DIM, MAX_GROUPS = 4, MAX_WIDE = 8 };
/* Values between rows of q: a constant, so that a row is an offset and needs no register, and no
 * power of two, so that rows do not compete for the same lines of the cache. */
enum { Q_STRIDE = MAX_DIM + 2 * VEC };

#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define GROUPS(R) ((R) <= 6 ? 4 : 2)
#define WIDE(R)   ((R) == 1 ? 8 : (R) <= 6 ? 4 : 2)
#elif defined CPU_ISA_avx2
#define GROUPS(R) ((R) == 1 ? 4 : (R) <= 3 ? 2 : 1)
#define WIDE(R)   ((R) == 1 ? 4 : (R) <= 3 ? 2 : 1)
#else
#define GROUPS(R) 1
#define WIDE(R)   1
#endif

/* 16 tokens of a sequence, as they lie in one block of the cache. */
struct group {
    const uint8_t *k, *v;              /* [dim_pad][16], [16][dim_pad] */
    const uint16_t *k_scale, *v_scale; /* [16], K_KV_I8 only */
    uint32_t token0, n;                /* tokens [token0, token0 + n) */
};

/* first: where block 0 of the head is. */
VEC_FN struct group find_group(const struct k_kv *kv, uint8_t *first, const uint32_t *blocks,
                               uint32_t idx)
{
    /* blocks of one group are the rule, and a division takes as long as a dozen multiply-adds */
    uint32_t block = kv->token_groups == 1 ? idx : idx / kv->token_groups;
    uint32_t within = idx - block * kv->token_groups;
    uint8_t *head = first + blocks[block] * kv->block_bytes;
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
static inline uint32_t groups_of(const struct k_kv *kv, uint32_t visible)
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

/* The numbers of rows that there are kernels for, largest first. */
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define ATTEND_SIZES(X) X(12) X(8) X(6) X(4) X(3) X(2) X(1)
#elif defined CPU_ISA_avx2
#define ATTEND_SIZES(X) X(6) X(3) X(2) X(1)
#else
#define ATTEND_SIZES(X) X(2) X(1)
#endif

/* As many of n rows as one kernel takes. */
static inline uint32_t piece_of(uint32_t n)
{
#define ATTEND_PIECE(R)                                                                            \
    if (n >= (R))                                                                                  \
        return (R);
    ATTEND_SIZES(ATTEND_PIECE)
    return 0;
}

/* Where row `row` of the sequence and key-value head is in q and out: [T][n_heads][head_dim]. */
static inline size_t row_at(const struct k_attn_params *p, const struct k_seq *seq,
                            uint32_t kv_head, uint32_t row)
{
    uint32_t shared = p->n_heads / p->n_kv_heads;
    size_t token = seq->row0 + row / shared;
    return (token * p->n_heads + kv_head * shared + row % shared) * p->head_dim;
}

#endif
