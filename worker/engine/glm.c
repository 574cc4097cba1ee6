/* glm.c: the forward pass (see glm.h). Formulas: docs/model.md; source: GLM-130B on
 * SwissArmyTransformer. Runs on the engine's thread.
 *
 * T rows, H hidden, N heads of size D, I inner, V vocabulary, P ranks. A rank holds N/P heads, I/P
 * columns of either half of the MLP and V/P rows of the embedding; linears that are split by
 * columns (attention.dense, mlp.dense_4h_to_h) give partial sums, whose bias is added once, after
 * the sum over ranks.
 */
#include "worker/engine/glm.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/util.h"

struct k_rope *glm_rope_new(const struct arch *a, const struct k_ops *ops, struct k_ctx *ctx)
{
    assert(a->rope == ARCH_ROPE_HALF_FP16);
    uint32_t half_dim = a->head_dim / 2;
    size_t n = (size_t)a->max_seq * half_dim;
    float *cosines = alloc_array(n, sizeof *cosines);
    float *sines = alloc_array(n, sizeof *sines);
    struct k_rope *rope = NULL;
    if (cosines && sines) {
        for (uint32_t i = 0; i != half_dim; i++) {
            /* The original keeps frequencies, angles and tables in FP16. At position 1000 the angle
             * is off by up to 0.46 rad: the weights were trained with that, so it must be so. */
            double exponent = -2.0 * i / a->head_dim;
            float inverse = half_round((float)pow(a->rope_base, exponent));
            for (uint32_t p = 0; p != a->max_seq; p++) {
                float angle = half_round((float)p * inverse);
                cosines[(size_t)p * half_dim + i] = half_round((float)cos((double)angle));
                sines[(size_t)p * half_dim + i] = half_round((float)sin((double)angle));
            }
        }
        rope = ops->rope_new(ctx, cosines, sines, a->max_seq, half_dim);
    }
    free(cosines);
    free(sines);
    return rope;
}

/* x[n] = sum of x over ranks. `what` and `layer` name the place in the error message. */
static int sum_over_ranks(struct glm *m, struct comm *comm, void *x, size_t n, const char *what,
                          uint32_t layer, struct err *e)
{
    if (m->tp_size == 1) { /* nothing to add, but the step may have been aborted */
        int aborted = comm->ops->barrier(comm);
        return aborted < 0 ? err_set(e, aborted, "after %s %u: %s", what, layer, err_name(aborted))
                           : 0;
    }
    float *host = m->ops->host_view(m->ctx, x);
    float *data = host ? host : m->ws.staging;
    if (!host)
        m->ops->download(m->ctx, data, x, n);
    int r = comm->ops->all_reduce(comm, data, n);
    if (r < 0)
        return err_set(e, r, "sum over %u ranks after %s %u: %s", m->tp_size, what, layer,
                       err_name(r));
    if (!host)
        m->ops->upload(m->ctx, x, data, n);
    return 0;
}

static int check_device(struct glm *m, struct err *e)
{
    char message[256];
    int r = m->ops->sync(m->ctx, message, sizeof message);
    return r < 0 ? err_set(e, r, "device: %s", message) : 0;
}

int glm_forward(struct glm *m, const struct glm_batch *batch, struct comm *comm, struct err *e)
{
    const struct k_ops *op = m->ops;
    const struct arch *arch = m->arch;
    const struct glm_weights *w = &m->weights;
    struct workspace *ws = &m->ws;
    struct k_ctx *c = m->ctx;
    const uint32_t n_rows = batch->n_rows; /* T */
    const size_t n = (size_t)n_rows * arch->hidden;
    const float eps = arch->norm_eps;
    const float alpha = (float)arch->residual_alpha;
    struct k_attn_params attn = {.n_heads = arch->n_heads / m->tp_size,
                                 .n_kv_heads = arch->n_kv_heads / m->tp_size,
                                 .head_dim = arch->head_dim};
    assert(arch->norm == ARCH_NORM_LAYER && arch->residual == ARCH_RESIDUAL_NORMED &&
           arch->glu == ARCH_GLU_GEGLU_SECOND && arch->tied_head);

    /* r = E[ids]: each id is a row of one rank and zeros on the others. */
    op->embed(c, w->embedding, m->tp_rank * (arch->vocab / m->tp_size), batch->ids, n_rows, ws->r);
    int r = sum_over_ranks(m, comm, ws->r, n, "the embedding", 0, e);
    if (r < 0)
        return r;
    op->norm(c, w->layers[0].input_norm, eps, ws->r, n_rows, ws->a);

    for (uint32_t layer = 0; layer != arch->n_layers; layer++) {
        const struct glm_layer *l = &w->layers[layer];
        attn.layer = layer;

        /* r = alpha a + Attn(a); b = LN_post(r) */
        op->linear(c, l->qkv, ws->a, n_rows, ws->qkv);
        op->rope_kv(c, &attn, m->rope, ws->qkv, batch->positions, batch->seqs, batch->n_seqs, m->kv,
                    ws->q);
        op->attention(c, &attn, ws->q, batch->seqs, batch->n_seqs, m->kv, ws->context);
        op->linear(c, l->dense, ws->context, n_rows, ws->r);
        r = sum_over_ranks(m, comm, ws->r, n, "attention of layer", layer, e);
        if (r < 0)
            return r;
        op->residual_norm(c, l->post_norm, eps, alpha, ws->a, ws->r, l->dense_bias, n_rows, ws->b);

        /* r = alpha b + MLP(b); a = LN of what comes next (r) */
        op->linear(c, l->h_to_4h, ws->b, n_rows, ws->u);
        op->geglu(c, ws->u, n_rows, arch->inner / m->tp_size, ws->g);
        op->linear(c, l->four_h_to_h, ws->g, n_rows, ws->r);
        r = sum_over_ranks(m, comm, ws->r, n, "the MLP of layer", layer, e);
        if (r < 0)
            return r;
        const struct k_norm *next =
            layer + 1 < arch->n_layers ? w->layers[layer + 1].input_norm : w->final_norm;
        op->residual_norm(c, next, eps, alpha, ws->b, ws->r, l->four_h_to_h_bias, n_rows, ws->a);

        if (m->capture && n_rows <= m->capture_rows)
            op->download(c, m->capture + layer * n, ws->r, n);
    }
    return check_device(m, e);
}

int glm_head(struct glm *m, const uint32_t *rows, uint32_t n, struct comm *comm, struct err *e)
{
    assert(n <= WORKSPACE_HEAD_ROWS);
    struct workspace *ws = &m->ws;
    /* head_out[n, V/P] = a[rows] E^T */
    m->ops->gather(m->ctx, ws->a, m->arch->hidden, rows, n, ws->head_x);
    m->ops->linear(m->ctx, m->weights.embedding, ws->head_x, n, ws->head_out);
    size_t part = (size_t)n * (m->arch->vocab / m->tp_size);
    float *own = ws->logits + m->tp_rank * part;
    m->ops->download(m->ctx, own, ws->head_out, part);
    int r = check_device(m, e);
    if (r < 0 || m->tp_size == 1)
        return r;
    r = comm->ops->all_gather(comm, own, part * sizeof *own, ws->logits);
    return r < 0 ? err_set(e, r, "gathering the logits of %u ranks: %s", m->tp_size, err_name(r))
                 : 0;
}

void glm_head_row(const struct glm *m, uint32_t i, uint32_t n, float *ret_row)
{
    assert(i < n);
    size_t cols = m->arch->vocab / m->tp_size;
    for (uint32_t rank = 0; rank != m->tp_size; rank++)
        memcpy(ret_row + rank * cols, m->ws.logits + ((size_t)rank * n + i) * cols,
               cols * sizeof *ret_row);
}
