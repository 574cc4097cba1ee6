/* arch.h: what a model is, as data. One struct describes every member of the family by sizes and
 * switches; GLM-130B is one value of it. Nothing else in the tree asks for a model by name.
 */
#ifndef GLMD_MODEL_ARCH_H
#define GLMD_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct json_t;

enum arch_norm { ARCH_NORM_LAYER };          /* LayerNorm, weight and bias */
enum arch_residual { ARCH_RESIDUAL_NORMED }; /* x = alpha * LN(x) + f(LN(x)): GLM-130B */
enum arch_glu { ARCH_GLU_GEGLU_SECOND };     /* first half * gelu(second half), erf GELU */
enum arch_rope { ARCH_ROPE_HALF_FP16 };      /* pairs (i, i + D/2), tables rounded to FP16 */
enum arch_context { ARCH_CONTEXT_BIDIRECTIONAL, ARCH_CONTEXT_CAUSAL };

/* Token ids with a meaning. -1: the model has no such token. */
struct arch_tokens {
    int32_t mask, gmask, smask; /* [MASK], [gMASK], [sMASK] */
    int32_t eod, sop, eop, enc, dblock;
    int32_t eos;             /* "</s>" of the text tokenizer */
    uint32_t n_image_tokens; /* ids below are image codes and never text; piece id + this = token */
    uint32_t special_base;   /* first special id; pieces end here */
};

struct arch {
    char name[64]; /* "glm-130b" or what config.json says */
    uint32_t n_layers;
    uint32_t hidden;  /* H */
    uint32_t n_heads; /* N, query heads */
    uint32_t n_kv_heads;
    uint32_t head_dim; /* D = H / N */
    uint32_t inner;    /* I, per half of the gated MLP */
    uint32_t vocab;    /* V, rows of the embedding, padding rows included */
    uint32_t max_seq;
    float norm_eps;
    double rope_base;
    double residual_alpha; /* sqrt(2 L) */
    enum arch_norm norm;
    enum arch_residual residual;
    enum arch_glu glu;
    enum arch_rope rope;
    enum arch_context context;
    bool tied_head;
    struct arch_tokens tokens;
};

/* The published model. Sizes and ids: zai-org/GLM-130B configs/model_glm_130b.sh, icetk. */
extern const struct arch arch_glm_130b;

/* Reads the keys of config.json: num_layers, hidden_size, num_heads, inner_size, vocab_size,
 * num_image_tokens, special_base, max_seq, layernorm_eps, rope_base, special_tokens {"[MASK]",
 * "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK", "eos"}. Every size is bounded and
 * checked against the others (arch_check). Unknown keys are ignored (the file also holds
 * quantization_config). -EINVAL names key, expected and found. */
int arch_from_json(const struct json_t *config, struct arch *ret_arch, struct err *e);

/* The inverse; adds the keys to an existing JSON object. */
int arch_to_json(const struct arch *a, struct json_t *config);

/* Sizes are positive, within limits and consistent (hidden = n_heads * head_dim, ...). */
int arch_check(const struct arch *a, struct err *e);

/* Whether tensor parallelism of this degree divides the model; the message names the sizes. */
int arch_check_tp(const struct arch *a, uint32_t tp, struct err *e);

/* Bytes of KV cache per token over all ranks, for elements of `element_bytes`. */
size_t arch_kv_bytes_per_token(const struct arch *a, size_t element_bytes);

#endif
