/* cpu.h: inside the CPU backend. The context, what its objects look like, and the table of kernels
 * that exists once per instruction set.
 */
#ifndef GLMD_KERNELS_CPU_CPU_H
#define GLMD_KERNELS_CPU_CPU_H

#include "kernels/int4.h"
#include "kernels/kernels.h"
#include "kv.h"
#include "pool.h"

/* How the activations of a product are handed to its kernel. */
enum cpu_format {
    CPU_F32, /* float */
    CPU_I16, /* round(x / scale), 16 bits, scale per row and block */
    CPU_I8,  /* the same with 8 bits */
    CPU_N_FORMATS,
};
enum { CPU_N_WEIGHTS = 3 };
enum { CPU_I16_MAX = 32639, CPU_I8_MAX = 127 };
enum { CPU_MAX_HEAD_DIM = 512 }; /* buffers on the stack */

struct k_linear {
    enum k_weight type;
    struct pack_shape shape;
    uint8_t *panels; /* shape.matrix_bytes */
    float *bias;     /* [n_panels * 16], zeros where there is none */
};

struct k_norm {
    enum k_norm_kind kind;
    uint32_t cols;
    float *weight, *bias; /* [cols] */
};

struct k_bias {
    uint32_t cols;
    float *values; /* [cols] */
};

struct k_rope {
    uint32_t max_seq, half_dim;
    float *cos, *sin; /* [max_seq, half_dim] */
};

/* One product y[n_rows, rows] = x W^T + bias. Rows of x are cut into tiles of at most tile_rows,
 * of nearly equal size; `data` holds them tile by tile as the kernels read them (activations.c). */
struct cpu_product {
    const struct k_linear *l;
    const float *x; /* [n_rows, cols] */
    float *y;       /* [n_rows, rows] */
    uint32_t n_rows, n_tiles;
    void *data;
    float *scale;   /* [tile][n_blocks][rows of the tile] */
    int32_t *start; /* the same: minus the zero point times the sum of the quantized values */
    float *g;       /* with a GLU behind it: [n_rows, rows / 2], in place of y */
    enum k_glu glu;
    uint64_t *glu_ns; /* counts the time it takes; NULL: nobody asks */
    void (*pack)(const struct cpu_product *j, uint64_t first, uint64_t end);
    void (*multiply)(const struct cpu_product *j, uint64_t first, uint64_t end, uint64_t more);
};

static inline uint32_t cpu_tile_row(const struct cpu_product *j, uint32_t tile)
{
    return (uint32_t)((uint64_t)j->n_rows * tile / j->n_tiles);
}

struct cpu_norm_job {
    const struct k_norm *norm;
    const struct k_bias *bias; /* or NULL */
    const float *x;            /* [n_rows, cols] */
    const float *a;            /* the same; norm of alpha * a + x + bias. NULL: of x */
    float alpha, eps;
    float *sum; /* where that goes, with `a`; x or y */
    float *y;   /* perhaps a */
};

struct cpu_glu_job {
    enum k_glu kind;
    const float *u;
    float *g;
    uint32_t inner;
};

enum { CPU_GLU_PIECE = 1024 }; /* columns of an item */

static inline uint32_t cpu_glu_pieces(uint32_t inner)
{
    return (inner + CPU_GLU_PIECE - 1) / CPU_GLU_PIECE;
}

/* Floats between keys: no power of two, so that they do not compete for the same lines. */
enum { CPU_KEY_STRIDE = CPU_MAX_HEAD_DIM + 32 };

struct cpu_rope_job {
    struct k_attn_params p;
    const struct k_rope *rope;
    const float *qkv;
    const int32_t *positions;
    const struct k_seq *seqs;
    uint32_t n_seqs;
    struct k_kv *kv;
    float *q;
};

/* Rotated keys of tokens that share a group of 16 in the cache, until all of a step are there. */
struct cpu_rope_keys {
    float values[CPU_KV_LANES * CPU_KEY_STRIDE];
};

/* Items of an attention, in this order: (sequence, key-value head, row tile). A row is a token with
 * one of the heads that share the key-value head, in this order: n_rows * n_heads / n_kv_heads. */
struct cpu_attention_job {
    struct k_attn_params p;
    const float *q;
    const struct k_seq *seqs;
    uint32_t n_seqs;
    const struct k_kv *kv;
    float *out;
    bool bytes; /* rows of a context go in integers of 8 bits, not of up to 16 */
};

/* Kernels for one instruction set. Functions over [first, end) may be called from any thread for
 * any disjoint ranges: the result does not depend on the cut. */
struct cpu_kernels {
    const char *name;
    uint32_t tile_rows[CPU_N_FORMATS]; /* of a product */
    uint32_t attention_rows;           /* of an attention item */

    /* items: (tile, block) in this order */
    void (*pack[CPU_N_FORMATS])(const struct cpu_product *j, uint64_t first, uint64_t end);
    /* items: panels; up to `more`: those that the thread may have next, which come into its cache
     * meanwhile */
    void (*multiply[CPU_N_FORMATS][CPU_N_WEIGHTS])(const struct cpu_product *j, uint64_t first,
                                                   uint64_t end, uint64_t more);
    /* the same with a GLU behind it, whose halves are whole panels; items: panels of a half. NULL:
     * not by itself faster than the two */
    void (*multiply_glu[CPU_N_FORMATS][CPU_N_WEIGHTS])(const struct cpu_product *j, uint64_t first,
                                                       uint64_t end, uint64_t more);
    /* items: rows */
    void (*norm)(const struct cpu_norm_job *j, uint64_t first, uint64_t end);
    /* items: (row, piece) in this order */
    void (*glu)(const struct cpu_glu_job *j, uint64_t first, uint64_t end);
    /* items: key-value heads */
    void (*rope)(const struct cpu_rope_job *j, uint64_t first, uint64_t end);
    /* the same for rows [row, end) of one head, which come in ascending order, call by call; x: its
     * columns of them; keys: what the call before has left */
    void (*rope_rows)(const struct cpu_rope_job *j, uint32_t kv_head, uint32_t row, uint32_t end,
                      const float *x, struct cpu_rope_keys *keys);
    /* one tile of rows [row, row + n) of a sequence and key-value head, n <= attention_rows;
     * scores: attention_rows times the padded length of the sequence; next, next_head: whose first
     * keys to bring in at the end, NULL: nobody's */
    void (*attention)(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t kv_head,
                      uint32_t row, uint32_t n, float *scores, const struct k_seq *next,
                      uint32_t next_head);
    /* the same for any number of rows of the context, in integers; scratch: cpu_context_bytes of
     * the groups of its tokens */
    void (*attention_context)(const struct cpu_attention_job *j, const struct k_seq *seq,
                              uint32_t kv_head, uint32_t row, uint32_t n, void *scratch);
    /* y[cols] = row of an FP16 matrix */
    void (*embed)(const struct k_linear *table, uint32_t row, float *y);
};

extern const struct cpu_kernels cpu_kernels_c;
extern const struct cpu_kernels cpu_kernels_avx2;
extern const struct cpu_kernels cpu_kernels_avxvnni;
extern const struct cpu_kernels cpu_kernels_avx512;
extern const struct cpu_kernels cpu_kernels_avx512vnni;
extern const struct cpu_kernels cpu_kernels_avx512gfni;

/* The kernels called `name`, or the best ones when it is NULL; NULL when this processor or this
 * build does not have them. */
const struct cpu_kernels *cpu_kernels_find(const char *name);
/* Names that cpu_kernels_find knows here, best first; NULL behind the last. */
const char *cpu_kernels_name(uint32_t idx);

struct k_ctx {
    /* set once */
    enum k_mode mode;
    uint32_t max_rows, max_cols, max_seq;
    const struct cpu_kernels *kernels;
    char description[96];

    /* owned */
    struct pool *pool;
    void *activations; /* of one product */
    size_t activation_bytes;
    void *scores; /* scratch of attention, a piece per thread */
    size_t score_bytes;
    size_t scores_per_thread; /* floats */

    struct k_profile profile; /* wait_ns apart, which the pool has */
};

/* cpu.c: a section on all threads of the pool, in shares or in items; the time counts for `part`.
 * One piece of items is not worth a section: the caller does it. */
void cpu_run(struct k_ctx *c, enum k_part part, pool_fn fn, void *arg);
void cpu_run_items(struct k_ctx *c, enum k_part part, uint64_t n, uint32_t piece, pool_items_fn fn,
                   void *arg);
uint64_t cpu_now_ns(void);

/* Values of a row that a thread changes in some microseconds, where handing a section over to
 * threads that spin takes one and waking them thirty. */
enum { CPU_PIECE_VALUES = 16384 };

/* Items of so many values that make up a piece, one at least. */
static inline uint32_t cpu_piece(uint64_t values)
{
    return (uint32_t)(CPU_PIECE_VALUES / (values + 1)) + 1;
}

/* Rows of a product that are packed at a time; longer batches go in several passes. */
enum { CPU_PASS_ROWS = 512 };

/* linear.c */
size_t cpu_sizes_linear(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups);
size_t cpu_sizes_product(uint32_t max_rows, enum k_weight type, uint32_t rows, uint32_t cols,
                         uint32_t n_groups);
size_t cpu_product_bytes(struct k_ctx *c);
size_t cpu_linear_bytes(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                        uint32_t n_groups);
/* Memory and bias, no weights yet. */
struct k_linear *cpu_linear_begin(struct k_ctx *c, const struct k_linear_src *src);
struct k_linear *cpu_linear_new(struct k_ctx *c, const struct k_linear_src *src);
void cpu_linear_free(struct k_ctx *c, struct k_linear *l);
void cpu_linear(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows, void *y);
void cpu_linear_glu(struct k_ctx *c, const struct k_linear *l, enum k_glu glu, const void *x,
                    uint32_t n_rows, void *u, void *g);
void cpu_linear_rope_kv(struct k_ctx *c, const struct k_linear *l, const void *x,
                        const struct k_attn_params *p, const struct k_rope *r,
                        const int32_t *positions, const struct k_seq *seqs, uint32_t n_seqs,
                        struct k_kv *kv, void *qkv, void *q);
void cpu_embed(struct k_ctx *c, const struct k_linear *table, uint32_t first_row,
               const int32_t *ids, uint32_t n_rows, void *y);

/* pack.c: rows [first_row, first_row + n_rows) as they lie on disk into their panels; whole panels,
 * but for the last one. Any thread, disjoint ranges. */
void cpu_pack_rows(const struct k_linear *l, uint32_t first_row, uint32_t n_rows, const void *data);
/* The same with their scales [n_rows, n_groups]. */
void cpu_pack_scales(const struct k_linear *l, uint32_t first_row, uint32_t n_rows,
                     const uint16_t *scale);

/* feed.c */
extern const struct k_feed_ops cpu_feed_ops;

/* kv.c */
size_t cpu_sizes_kv_block(enum k_mode mode, const struct k_kv_params *p);
struct k_kv *cpu_kv_new(struct k_ctx *c, const struct k_kv_params *p);
void cpu_kv_free(struct k_ctx *c, struct k_kv *kv);
size_t cpu_kv_block_bytes(struct k_ctx *c, const struct k_kv_params *p);
void cpu_kv_copy(struct k_ctx *c, struct k_kv *kv, uint32_t src, uint32_t dst);

/* What attention_context takes for `groups` groups of 16 tokens: keys and values as integers, three
 * numbers for each token; scores, weights and scales of a tile's rows. */
static inline size_t cpu_context_bytes(size_t groups, uint32_t dim_pad, uint32_t rows)
{
    groups = (groups + 3) / 4 * 4; /* in blocks */
    size_t token = 2 * (size_t)dim_pad * sizeof(int16_t) + 3 * sizeof(float) +
                   rows * (sizeof(float) + sizeof(int16_t));
    return groups * CPU_KV_LANES * token + groups / 4 * rows * sizeof(float);
}

/* sequence.c: rope, attention. The job of rope_kv, whose parameters it checks: */
struct cpu_rope_job cpu_rope_job(const struct k_attn_params *p, const struct k_rope *r,
                                 const void *qkv, const int32_t *positions,
                                 const struct k_seq *seqs, uint32_t n_seqs, struct k_kv *kv,
                                 void *q);
size_t cpu_sizes_rope(uint32_t max_seq, uint32_t half_dim);
struct k_rope *cpu_rope_new(struct k_ctx *c, const float *cos, const float *sin, uint32_t max_seq,
                            uint32_t half_dim);
void cpu_rope_free(struct k_ctx *c, struct k_rope *r);
void cpu_rope_kv(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                 const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                 uint32_t n_seqs, struct k_kv *kv, void *q);
void cpu_attention(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                   const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out);

/* rowwise.c: norms, GLU, gather */
struct k_norm *cpu_norm_new(struct k_ctx *c, enum k_norm_kind kind, const uint16_t *weight,
                            const uint16_t *bias, uint32_t cols);
void cpu_norm_free(struct k_ctx *c, struct k_norm *n);
void cpu_norm(struct k_ctx *c, const struct k_norm *n, float eps, const void *x, uint32_t n_rows,
              void *y);
struct k_bias *cpu_bias_new(struct k_ctx *c, const uint16_t *bias, uint32_t cols);
void cpu_bias_free(struct k_ctx *c, struct k_bias *b);
void cpu_residual_norm(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                       const void *a, void *r, const struct k_bias *bias, uint32_t n_rows, void *y);
void cpu_glu(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows, uint32_t inner,
             void *g);
void cpu_gather(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows, uint32_t n,
                void *y);

extern const struct k_ops cpu_ops;

#endif
