/* ops.c: the CUDA backend's table of operations (kernels/kernels.h): the one symbol that
 * libglmd_cuda.so has for others. Puts the products (linear.h) beside the rest of the context. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sample.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- products ---- */

static void *products_alloc(void *arg, size_t bytes)
{
    return cuda_new(arg, bytes);
}

static void products_free(void *arg, void *p)
{
    cuda_free(arg, p);
}

static void products_upload(void *arg, void *dst, const void *src, size_t bytes)
{
    cuda_upload_bytes(arg, dst, src, bytes);
}

static void products_download(void *arg, void *dst, const void *src, size_t bytes)
{
    cuda_download_bytes(arg, dst, src, bytes);
}

static void close_products(struct k_ctx *c)
{
    products_deinit(c->products);
    free(c->products);
    c->products = NULL;
}

static int open_products(struct k_ctx *c, const struct k_open_params *p)
{
    const struct linear_device device = {
        .memory = {c, products_alloc, products_free, products_upload, products_download},
        .stream = c->stream,
        .arch = (uint32_t)c->arch * 10,
        .n_sms = (uint32_t)c->n_multiprocessors,
        .shared_bytes = c->shared_bytes,
        .max_rows = c->max_rows,
        .max_cols = c->max_cols,
        .library_rows = p->library_rows,
        .warpgroups = !p->no_warpgroups,
    };
    c->products = calloc(1, sizeof *c->products);
    if (!c->products)
        return -ENOMEM;
    c->close_products = close_products;
    return products_init(c->products, &device);
}

static int op_open(const struct k_open_params *p, struct k_ctx **ret, char *message, size_t size)
{
    struct k_ctx *c;
    int r = cuda_open(p, &c, message, size);
    if (r)
        return r;
    r = open_products(c, p);
    if (r) {
        if (r == -ENOSYS)
            snprintf(
                message, size,
                "worker.library_rows: cuBLASLt is not there, or no memory for it: set it to 0");
        else if (r != -EIO || !cuda_sync(c, message, size))
            snprintf(message, size, "out of memory: room for partial sums of products");
        cuda_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

static size_t op_linear_bytes(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                              uint32_t n_groups)
{
    (void)c;
    return linear_bytes(type, rows, cols, n_groups);
}

static size_t op_product_bytes(struct k_ctx *c)
{
    return products_bytes(c->products);
}

static struct k_linear *op_linear_new(struct k_ctx *c, const struct k_linear_src *src)
{
    cuda_enter(c);
    struct k_linear *l = linear_new(c->products, src);
    cuda_check(c, c->products->error, "packing of a matrix");
    return l;
}

static void op_linear_free(struct k_ctx *c, struct k_linear *l)
{
    if (l)
        linear_free(c->products, l);
}

static void op_linear(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows,
                      void *y)
{
    const struct linear_end end = {.kind = LINEAR_HALVES, .y = y};
    linear_multiply(c->products, l, x, n_rows, &end);
    cuda_check(c, c->products->error, "linear");
}

static void op_linear_glu(struct k_ctx *c, const struct k_linear *l, enum k_glu glu, const void *x,
                          uint32_t n_rows, void *u, void *g)
{
    const struct linear_end end = {.kind = LINEAR_GLU, .y = g, .glu = glu};
    if (linear_multiply(c->products, l, x, n_rows, &end) == 0) {
        cuda_check(c, c->products->error, "linear and glu");
        return;
    }
    op_linear(c, l, x, n_rows, u);
    cuda_glu(c, glu, u, n_rows, l->shape.rows / 2, g);
}

static void op_linear_rope_kv(struct k_ctx *c, const struct k_linear *l, const void *x,
                              const struct k_attn_params *a, const struct k_rope *r,
                              const int32_t *positions, const struct k_seq *seqs, uint32_t n_seqs,
                              struct k_kv *kv, void *qkv, void *q)
{
    const uint32_t n_rows = cuda_step_rows(c, seqs, n_seqs);
    const struct linear_end end = {.kind = LINEAR_ROPE,
                                   .rope = cuda_rope_view(c, a, r, positions, kv, q)};
    if (linear_multiply(c->products, l, x, n_rows, &end) == 0) {
        cuda_check(c, c->products->error, "linear and rope");
        return;
    }
    op_linear(c, l, x, n_rows, qkv);
    cuda_rope_kv(c, a, r, qkv, positions, seqs, n_seqs, kv, q);
}

static void op_prefetch(struct k_ctx *c, const struct k_linear *l)
{
    c->next = l->memory;
    c->next_bytes = l->shape.scale_at < c->prefetch_most ? l->shape.scale_at : c->prefetch_most;
}

static void op_logits(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows,
                      void *scratch, float *ret)
{
    cuda_enter(c);
    const struct linear_end end = {.kind = LINEAR_FLOATS, .y = scratch};
    linear_multiply(c->products, l, x, n_rows, &end);
    cuda_check(c, c->products->error, "logits");
    if (ret)
        cuda_download_bytes(c, ret, scratch, (size_t)n_rows * l->shape.rows * sizeof *ret);
}

static void op_embed(struct k_ctx *c, const struct k_linear *table, uint32_t first_row,
                     const int32_t *ids, uint32_t n_rows, void *y)
{
    linear_embed(c->products, table, first_row, cuda_step_ids(c, ids, n_rows), n_rows, y);
    cuda_check(c, c->products->error, "embedding");
}

/* An error while launches were recorded is not one of the device: they are enqueued again. */
static bool op_graph_end(struct k_ctx *c)
{
    bool again = cuda_graph_end(c);
    if (again)
        c->products->error = 0;
    return again;
}

/* ---- the table ---- */

__attribute__((visibility("default"))) const struct k_ops glmd_cuda_ops = {
    .name = "cuda",
    .open = op_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .sync = cuda_sync,
    .act_bytes = cuda_act_bytes,
    .alloc = cuda_new,
    .free = cuda_free,
    .memory = cuda_memory,
    .upload = cuda_upload,
    .download = cuda_download,
    .host_view = cuda_host_view,
    .linear_bytes = op_linear_bytes,
    .product_bytes = op_product_bytes,
    .context_memory = cuda_context_memory,
    .linear_new = op_linear_new,
    .linear_free = op_linear_free,
    .begin_step = cuda_begin_step,
    .begin_decode = cuda_begin_decode,
    .graph_begin = cuda_graph_begin,
    .graph_end = op_graph_end,
    .graph_stats = cuda_graph_stats,
    .prefetch = op_prefetch,
    .linear = op_linear,
    .logits = op_logits,
    .embed = op_embed,
    .norm_new = cuda_norm_new,
    .norm_free = cuda_norm_free,
    .norm = cuda_norm,
    .bias_new = cuda_bias_new,
    .bias_free = cuda_bias_free,
    .residual_norm = cuda_residual_norm,
    .kv_new = cuda_kv_new,
    .kv_free = cuda_kv_free,
    .kv_block_bytes = cuda_kv_block_bytes,
    .kv_copy = cuda_kv_copy,
    .rope_new = cuda_rope_new,
    .rope_free = cuda_rope_free,
    .rope_kv = cuda_rope_kv,
    .attention = cuda_attention,
    .glu = cuda_glu,
    .linear_glu = op_linear_glu,
    .linear_rope_kv = op_linear_rope_kv,
    .gather = cuda_gather,
    .comm = &cuda_comm_ops,
    .sample = &cuda_sample_ops,
    .feed = &cuda_feed_ops,
};
