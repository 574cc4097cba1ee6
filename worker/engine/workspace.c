/* workspace.c: see workspace.h. */
#include "worker/engine/workspace.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

static void *device_buffer(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx,
                           size_t bytes)
{
    w->bytes += bytes;
    return ops->alloc(ctx, bytes);
}

static size_t padded(size_t elements, size_t element_bytes)
{
    return round_up(elements * element_bytes, 64);
}

int workspace_init(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx,
                   const struct arch *a, uint32_t tp_size, uint32_t max_rows)
{
    size_t element = ops->act_bytes(ctx);
    size_t hidden = padded((size_t)max_rows * a->hidden, element);
    size_t heads = a->n_heads / tp_size;
    size_t kv_heads = a->n_kv_heads / tp_size;
    size_t qkv = padded(max_rows * (heads + 2 * kv_heads) * a->head_dim, element);
    size_t q = padded(max_rows * heads * a->head_dim, element);
    size_t u = padded((size_t)max_rows * 2 * (a->inner / tp_size), element);
    size_t g = padded((size_t)max_rows * (a->inner / tp_size), element);
    size_t rows = WORKSPACE_HEAD_ROWS;
    size_t vocab = a->vocab / tp_size;

    w->a = device_buffer(w, ops, ctx, hidden);
    w->b = device_buffer(w, ops, ctx, hidden);
    w->r = device_buffer(w, ops, ctx, hidden);
    /* Attention's buffers and the MLP's are never alive at the same time. */
    w->inner = device_buffer(w, ops, ctx, MAX(qkv + 2 * q, u + g));
    w->head_x = device_buffer(w, ops, ctx, padded(rows * a->hidden, element));
    w->head_out = device_buffer(w, ops, ctx, padded(rows * vocab, element));
    w->logits = alloc_array(rows * vocab * tp_size, sizeof *w->logits);
    w->bytes += rows * vocab * tp_size * sizeof *w->logits;
    if (!w->a || !w->b || !w->r || !w->inner || !w->head_x || !w->head_out || !w->logits)
        return -ENOMEM;
    w->qkv = w->inner;
    w->q = (char *)w->qkv + qkv;
    w->context = (char *)w->q + q;
    w->u = w->inner;
    w->g = (char *)w->u + u;
    if (tp_size > 1 && !ops->host_view(ctx, w->r)) {
        w->staging = alloc_array((size_t)max_rows * a->hidden, sizeof *w->staging);
        w->bytes += (size_t)max_rows * a->hidden * sizeof *w->staging;
        if (!w->staging)
            return -ENOMEM;
    }
    return 0;
}

void workspace_deinit(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx)
{
    void *buffers[] = {w->a, w->b, w->r, w->inner, w->head_x, w->head_out};
    for (size_t i = 0; i != ARRAY_LEN(buffers); i++) {
        if (buffers[i])
            ops->free(ctx, buffers[i]);
    }
    free(w->logits);
    free(w->staging);
    *w = (struct workspace){0};
}
