/* workspace.c: see workspace.h. */
#include "worker/engine/workspace.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

static size_t padded(size_t elements, size_t element_bytes)
{
    return round_up(elements * element_bytes, 64);
}

void workspace_sizes(const struct arch *a, uint32_t tp_size, uint32_t max_rows, size_t act_bytes,
                     struct workspace_sizes *ret)
{
    size_t t = max_rows, head_rows = WORKSPACE_HEAD_ROWS;
    size_t heads = a->n_heads / tp_size, kv_heads = a->n_kv_heads / tp_size;
    size_t inner = a->inner / tp_size;
    *ret = (struct workspace_sizes){
        .hidden = padded(t * a->hidden, act_bytes),
        .qkv = padded(t * (heads + 2 * kv_heads) * a->head_dim, act_bytes),
        .q = padded(t * heads * a->head_dim, act_bytes),
        .u = padded(t * 2 * inner, act_bytes),
        .g = padded(t * inner, act_bytes),
        .head_x = padded(head_rows * a->hidden, act_bytes),
        .head_out = padded(head_rows * (a->vocab / tp_size), sizeof(float)),
        .logits = head_rows * a->vocab * sizeof(float),
        .staging = t * a->hidden * sizeof(float),
    };
    /* Attention's buffers and the MLP's are never alive at the same time. */
    ret->inner = MAX(ret->qkv + 2 * ret->q, ret->u + ret->g);
}

uint64_t workspace_device_bytes(const struct workspace_sizes *s)
{
    return 4 * (uint64_t)s->hidden + s->inner + s->head_x + s->head_out;
}

uint64_t workspace_host_bytes(const struct workspace_sizes *s, bool alone, bool shared)
{
    return s->logits + (!alone && !shared ? s->staging : 0);
}

int workspace_init(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx,
                   const struct arch *a, uint32_t tp_size, bool alone, uint32_t max_rows)
{
    struct workspace_sizes s;
    workspace_sizes(a, tp_size, max_rows, ops->act_bytes(ctx), &s);
    w->a = ops->alloc(ctx, s.hidden);
    w->b = ops->alloc(ctx, s.hidden);
    w->r = ops->alloc(ctx, s.hidden);
    w->stash = ops->alloc(ctx, s.hidden);
    w->inner = ops->alloc(ctx, s.inner);
    w->head_x = ops->alloc(ctx, s.head_x);
    w->head_out = ops->alloc(ctx, s.head_out);
    w->logits = alloc_array(1, s.logits);
    if (!w->a || !w->b || !w->r || !w->stash || !w->inner || !w->head_x || !w->head_out ||
        !w->logits)
        return -ENOMEM;
    w->qkv = w->inner;
    w->q = (char *)w->qkv + s.qkv;
    w->context = (char *)w->q + s.q;
    w->u = w->inner;
    w->g = (char *)w->u + s.u;
    bool shared = ops->host_view(ctx, w->r) != NULL;
    if (!alone && !shared && !(w->staging = alloc_array(1, s.staging)))
        return -ENOMEM;
    w->bytes = workspace_device_bytes(&s) + workspace_host_bytes(&s, alone, shared);
    return 0;
}

void workspace_deinit(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx)
{
    void *buffers[] = {w->a, w->b, w->r, w->stash, w->inner, w->head_x, w->head_out};
    for (size_t i = 0; i != ARRAY_LEN(buffers); i++) {
        if (buffers[i])
            ops->free(ctx, buffers[i]);
    }
    free(w->logits);
    free(w->staging);
    *w = (struct workspace){0};
}
