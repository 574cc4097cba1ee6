/* kernels.h: the compute seam. A table of operations with a CPU and a CUDA implementation, and the
 * plain structs that they take. kernels/ knows nothing of the project (half.h excepted): no plans,
 * no files, no model names.
 *
 * Conventions
 * - A context (struct k_ctx) is one device with its worker threads or stream, and one activation
 *   mode. Operations are enqueued in order; results are visible after k_ops.sync. On the CPU they
 *   have finished when the call returns. One thread drives a context.
 * - Activation buffers come from k_ops.alloc and hold `k_ops.act_bytes(ctx)` bytes per element:
 *   float on the CPU in every mode, half on CUDA. Matrices are row-major and dense, [rows,
 * columns].
 * - T is the number of rows (tokens) of the step, H the hidden size, Nl the heads of this rank, D
 * the head size.
 * - Nothing is allocated inside an operation; scratch is part of the context (k_open_params).
 * - Batch invariance: a row of a result has the same bits whatever the other rows are and however
 *   many there are. Every sum has an order that depends on the operation's shape only.
 * - Operations do not fail: shapes are asserted. Device errors are sticky and reported by sync.
 */
#ifndef GLMD_KERNELS_KERNELS_H
#define GLMD_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum k_weight { K_WEIGHT_F16, K_WEIGHT_I8, K_WEIGHT_I4 };

/* FP32: everything equals the references; dequantized weights are fp16(q * scale), as published.
 * FP16: 16-bit faithful and fast; scales are applied to sums. On CPUs the rows of a context go over
 * its keys and values in 16-bit integers, with a scale per token and head; so they do with A8.
 * A8: products with activations quantized to INT8 per row and group. */
enum k_mode { K_MODE_FP32, K_MODE_FP16, K_MODE_A8 };

/* Which CPUs the threads of a pool run on, that of the caller apart. AUTO: one each, where the pool
 * has as many threads as CPUs are allowed, so that nobody else was promised them. ON: the first
 * ones allowed, one per core before a core's second; for who knows that no other rank has the same.
 */
enum k_pin { K_PIN_AUTO, K_PIN_ON, K_PIN_OFF };

struct k_comm_ops;
struct k_sample_ops;
struct k_feed_ops;
struct k_ctx;    /* device, threads, scratch */
struct k_linear; /* a weight matrix in the backend's packed layout, with scales and bias */
struct k_kv;     /* paged KV cache of one rank: all layers */

struct k_open_params {
    const char *device; /* "cpu", "cuda:0" */
    enum k_mode mode;
    uint32_t n_threads; /* CPU: threads of the pool, the caller included; 0 = allowed CPUs */
    uint32_t max_rows;  /* largest T of a call */
    uint32_t max_cols;  /* largest input dimension of a linear */
    uint32_t max_seq;   /* largest sequence */
    const char *isa;    /* CPU: NULL = best; for tests one of cpu/cpuid.c, or "c" */
    bool no_warpgroups; /* CUDA, sm_90a: products stay with mma.sync */
    bool no_graphs;     /* CUDA: launches of decode steps are not recorded */
    uint32_t
        library_rows; /* CUDA: products of at least so many rows go through cuBLASLt, whose
                         order of sums depends on their number: no batch invariance; 0: never */
    enum k_pin pin;   /* CPU: where the pool's threads stay */
};

/* LayerNorm: (x - mean) / sqrt(variance + eps); RMS: x / sqrt(mean square + eps). */
enum k_norm_kind { K_NORM_LAYER, K_NORM_RMS };

/* GEGLU: first half * gelu(second half), exact erf form. SWIGLU: silu(first half) * second half. */
enum k_glu { K_GLU_GEGLU, K_GLU_SWIGLU };

/* A weight shard as it lies on disk: row-major [rows, cols], out x in. K_WEIGHT_I4: two values a
 * byte, even column in the high nibble, signed. scale [rows, n_groups]: group g covers columns
 * [g * group_cols, (g + 1) * group_cols) of this shard; NULL for K_WEIGHT_F16. bias [rows] F16 or
 * NULL. */
struct k_linear_src {
    enum k_weight type;
    uint32_t rows, cols;
    uint32_t n_groups, group_cols;
    const void *data;
    const uint16_t *scale;
    const uint16_t *bias;
    bool glu; /* for k_ops.linear_glu: rows i and rows / 2 + i are used together */
};

/* One sequence of a step: rows [row0, row0 + n_rows) of the batch are its tokens
 * [start, start + n_rows). Row i sees columns [0, max(prefix_len, start + i + 1)). blocks: physical
 * block of tokens [block_tokens * j, ...), covering start + n_rows tokens. */
struct k_seq {
    uint32_t row0, n_rows;
    uint32_t start;
    uint32_t prefix_len;
    const uint32_t *blocks;
};

/* The rows of a step: ids and positions [n_rows], and the sequences they belong to, whose blocks
 * hold block_tokens each. */
struct k_step {
    const int32_t *ids;
    const int32_t *positions;
    uint32_t n_rows;
    const struct k_seq *seqs;
    uint32_t n_seqs;
    uint32_t block_tokens;
};

/* Bytes on the device and, where that has memory of its own, in the host's. */
struct k_memory {
    uint64_t device, host;
};

/* How decode steps were run (k_ops.graph_begin). */
struct k_graph_stats {
    uint32_t n_graphs;              /* records that there are */
    uint64_t n_replays, n_enqueued; /* steps that ran one; steps whose operations were enqueued */
    const char *off;                /* why nothing is recorded any more; NULL = it is */
};

struct k_attn_params {
    uint32_t n_heads, n_kv_heads, head_dim; /* of this rank */
    uint32_t layer;
};

/* How keys and values are kept. I8: with an FP16 scale for the key and one for the value of every
 * token, head and layer, which lie in the block: a token is quantized once, by itself, so that what
 * a sequence gives depends neither on its neighbours nor on how it was cut into steps. A backend
 * may lack types: see kv_block_bytes. */
enum k_kv_type {
    K_KV_AUTO, /* F32 in K_MODE_FP32, otherwise F16 */
    K_KV_F16,
    K_KV_I8,
    K_KV_F32,
};

static inline enum k_kv_type k_kv_resolve(enum k_kv_type type, enum k_mode mode)
{
    return type != K_KV_AUTO ? type : mode == K_MODE_FP32 ? K_KV_F32 : K_KV_F16;
}

static inline const char *k_kv_type_name(enum k_kv_type type)
{
    static const char *const names[] = {"auto", "fp16", "int8", "fp32"};
    return names[type];
}

struct k_kv_params {
    uint32_t n_layers, n_kv_heads, head_dim;
    uint32_t n_blocks, block_tokens;
    enum k_kv_type type;
};

/* What a context's time goes into. */
enum k_part {
    K_PART_PRODUCTS,    /* with INT4 and INT8 weights */
    K_PART_HEAD,        /* with FP16 weights, as the output head's are */
    K_PART_ACTIVATIONS, /* the inputs of both: quantized, in the order that they are read in */
    K_PART_ATTENTION,
    K_PART_ROPE, /* and keys and values into the cache */
    K_PART_NORM, /* with the residual */
    K_PART_GLU,
    K_PART_EMBED,
    K_N_PARTS
};

/* Since the context was opened, of the thread that drives it. */
struct k_profile {
    uint64_t ns[K_N_PARTS];
    /* of these and of each_thread: its own share done, waiting for the pool's other threads */
    uint64_t wait_ns;
    uint64_t n_sections;
};

struct k_ops {
    const char *name; /* "cpu", "cuda" */

    /* 0, or a negative errno value with the reason in `message`. */
    int (*open)(const struct k_open_params *p, struct k_ctx **ret, char *message, size_t size);
    void (*close)(struct k_ctx *c);
    /* One line for logs: instruction set or GPU name, threads, mode. */
    const char *(*describe)(struct k_ctx *c);
    /* 0, or -EIO when the device failed (sticky), with the reason. */
    int (*sync)(struct k_ctx *c, char *message, size_t size);

    size_t (*act_bytes)(struct k_ctx *c);
    void *(*alloc)(struct k_ctx *c,
                   size_t bytes); /* 64-byte aligned, zeroed; NULL = out of memory */
    void (*free)(struct k_ctx *c, void *p);
    /* Bytes of the device's own memory, used by whoever; NULL where the host's is used. 0 or -EIO.
     */
    int (*memory)(struct k_ctx *c, uint64_t *ret_free, uint64_t *ret_total);
    /* Host FP32 <-> activation buffer. Both wait: `src` may change afterwards, `dst` is there. */
    void (*upload)(struct k_ctx *c, void *dst, const float *src, size_t n);
    void (*download)(struct k_ctx *c, float *dst, const void *src, size_t n);
    /* Host pointer to an activation buffer as FP32, or NULL where memory is not shared: host
     * collectives and the sampler then stage through download/upload. */
    float *(*host_view)(struct k_ctx *c, void *buffer);

    /* Bytes that a packed linear of this shape takes on the device. */
    size_t (*linear_bytes)(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                           uint32_t n_groups);
    /* Bytes that the context keeps for products with the matrices packed so far. */
    size_t (*product_bytes)(struct k_ctx *c);
    /* What the context keeps besides: buffers for transfers and steps, scratch of attention. NULL:
     * nothing. */
    void (*context_memory)(struct k_ctx *c, struct k_memory *ret);
    /* Packs; the source may be freed afterwards. NULL = out of memory. */
    struct k_linear *(*linear_new)(struct k_ctx *c, const struct k_linear_src *src);
    void (*linear_free)(struct k_ctx *c, struct k_linear *l);

    /* Announces a step's arrays to a device with memory of its own, which copies them; NULL where
     * they are read in place. embed, rope_kv and attention are then given the same pointers, with
     * the first so many rows or sequences of the step, until the next call. */
    void (*begin_step)(struct k_ctx *c, const struct k_step *s);

    /* Decode steps, of one row a sequence: from one to the next only the data differ, so that what
     * is enqueued for one can be recorded and run again for those that follow (a CUDA graph). All
     * of these or none:
     *
     *   n = begin_decode(c, &step);               instead of begin_step
     *   for (bool go = graph_begin(c, kind); go; go = graph_end(c))
     *       enqueue operations on n rows;         for a kind the same ones, with the same buffers
     *
     * n is at least step.n_rows and depends on that and on max_rows alone: the same on all ranks.
     * The rows behind step.n_rows are padding: they leave no trace in the cache and mean nothing.
     * 0: steps of so many rows are not recorded, and nothing was announced. Nothing in the loop
     * may wait or touch the host's memory: operations, k_sample_ops.launch, sums and gatherings of
     * k_ops.comm, which all come to an end with k_comm_ops.close. When recording fails the
     * operations are enqueued once more, and as they are from then on (graph_stats says why). */
    uint32_t (*begin_decode)(struct k_ctx *c, const struct k_step *s);
    bool (*graph_begin)(struct k_ctx *c, uint32_t kind);
    bool (*graph_end)(struct k_ctx *c);
    void (*graph_stats)(struct k_ctx *c, struct k_graph_stats *ret);

    /* A hint: the next fused sum over ranks (k_comm_ops.sum_residual_norm) is followed by a product
     * with this matrix, whose first bytes may be fetched while it waits. NULL: of no use. */
    void (*prefetch)(struct k_ctx *c, const struct k_linear *l);

    /* y[T, rows] = x[T, cols] W^T + bias */
    void (*linear)(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows,
                   void *y);
    /* The same onto the host, in FP32 where activations are not: logits [n_rows, rows]. Waits.
     * `scratch`: room for n_rows * rows floats on the device; `ret` NULL: there they stay, and
     * nothing waits. NULL: linear and download are it. */
    void (*logits)(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows,
                   void *scratch, float *ret);
    /* y[t] = row (ids[t] - first_row) of the table, or zeros where the id is outside
     * [first_row, first_row + rows). The table is a K_WEIGHT_F16 linear without bias (tied head).
     */
    void (*embed)(struct k_ctx *c, const struct k_linear *table, uint32_t first_row,
                  const int32_t *ids, uint32_t n_rows, void *y);
    /* y = LayerNorm(x) or RMSNorm(x), as norm_new was told, with weight and bias [H] FP32 (device
     * copies made by norm_new); bias NULL: none. */
    struct k_norm *(*norm_new)(struct k_ctx *c, enum k_norm_kind kind, const uint16_t *weight,
                               const uint16_t *bias, uint32_t cols);
    void (*norm_free)(struct k_ctx *c, struct k_norm *n);
    void (*norm)(struct k_ctx *c, const struct k_norm *n, float eps, const void *x, uint32_t n_rows,
                 void *y);
    /* x = alpha * a + r + bias; y = norm(x). `r` is overwritten with x (the layer's output
     * before the next norm). bias: [H] FP16 on the host side copied by bias_new; may be NULL. */
    struct k_bias *(*bias_new)(struct k_ctx *c, const uint16_t *bias, uint32_t cols);
    void (*bias_free)(struct k_ctx *c, struct k_bias *b);
    void (*residual_norm)(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                          const void *a, void *r, const struct k_bias *bias, uint32_t n_rows,
                          void *y);
    /* Whether `y` may be `a`: x is not kept then, and one row less goes through memory. */
    bool norm_in_place;

    struct k_kv *(*kv_new)(struct k_ctx *c, const struct k_kv_params *p);
    void (*kv_free)(struct k_ctx *c, struct k_kv *kv);
    /* Of one block, all layers, scales included; 0 when the backend does not have the type. */
    size_t (*kv_block_bytes)(struct k_ctx *c, const struct k_kv_params *p);
    /* Copies whole blocks (all layers), copy-on-write. */
    void (*kv_copy)(struct k_ctx *c, struct k_kv *kv, uint32_t src, uint32_t dst);

    /* Rotary tables: cos, sin [max_seq, D/2] as FP32 values (already rounded as the architecture
     * asks), copied to the device. */
    struct k_rope *(*rope_new)(struct k_ctx *c, const float *cos, const float *sin,
                               uint32_t max_seq, uint32_t half_dim);
    void (*rope_free)(struct k_ctx *c, struct k_rope *r);
    /* qkv [T, Nl * 3 * D], per head q, k, v (with n_kv_heads < n_heads: per key-value head its
     * n_heads / n_kv_heads q, then k, v): rotates q and k by positions[t] (pairs (i, i + D/2)),
     * writes k and v into the cache and q densely to q [T, Nl * D]. */
    void (*rope_kv)(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                    const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                    uint32_t n_seqs, struct k_kv *kv, void *q);
    /* out [T, Nl * D] = softmax(q k^T / sqrt(D)) v over the visible columns; softmax in FP32. */
    void (*attention)(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                      const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out);
    /* u [T, 2 I] -> g [T, I], from the halves of a row. */
    void (*glu)(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows, uint32_t inner,
                void *g);
    /* Optional, NULL: there are the separate operations only, whose bits these give.
     * linear, then glu: x [T, cols] -> g [T, rows / 2], of a matrix packed with `glu` set.
     * u [T, rows]: scratch. */
    void (*linear_glu)(struct k_ctx *c, const struct k_linear *l, enum k_glu glu, const void *x,
                       uint32_t n_rows, void *u, void *g);
    /* linear, then rope_kv. qkv [T, rows]: scratch. */
    void (*linear_rope_kv)(struct k_ctx *c, const struct k_linear *l, const void *x,
                           const struct k_attn_params *p, const struct k_rope *r,
                           const int32_t *positions, const struct k_seq *seqs, uint32_t n_seqs,
                           struct k_kv *kv, void *qkv, void *q);
    /* Gathers rows: y[i] = x[rows[i]], i < n. */
    void (*gather)(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows, uint32_t n,
                   void *y);

    /* fn(arg, i, n) for every i < n on the n threads of the context at once, the caller's being the
     * first, for what the host does with results. Returns when all have returned. NULL: it has no
     * threads but the caller's. */
    void (*each_thread)(struct k_ctx *c, void (*fn)(void *arg, uint32_t thread, uint32_t n_threads),
                        void *arg);

    /* What was counted until now; NULL where a call does not wait for the work. */
    void (*profile)(struct k_ctx *c, struct k_profile *ret);

    /* Sums over ranks where the activations lie (kernels/comm.h); NULL: through the host only. */
    const struct k_comm_ops *comm;
    /* Tokens from logits on the device (kernels/sample.h); NULL: the host samples. */
    const struct k_sample_ops *sample;

    /* Matrices piece by piece, by several threads (kernels/feed.h). */
    const struct k_feed_ops *feed;
};

/* "cpu" or "cuda"; NULL when this build or this host does not have it (`message` says why). The
 * CUDA table lives in libglmd_cuda.so, opened on the first request. */
const struct k_ops *k_backend(const char *name, char *message, size_t size);

#endif
