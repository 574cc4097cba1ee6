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
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/util.h"
#include "proto/plan.h"

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

/* A peer is gone: not to be taken for a failure of this rank's device (-EIO). */
static int peer_failed(int r)
{
    return r == -EIO ? -ECONNRESET : r;
}

/* Whether the operations of a step may be recorded: nothing between them is the host's. */
static bool can_record(const struct glm *m, const struct glm_batch *b)
{
    return m->ops->begin_decode && (m->tp_size == 1 || m->sums.comm) && !m->capture &&
           b->n_seqs == b->n_rows && b->n_whole_rows == b->n_rows;
}

/* The step may have been aborted; asked where no other rank would be met. */
static int check_aborted(const struct glm *m, struct comm *comm, const char *what, uint32_t layer,
                         struct err *e)
{
    int aborted = m->tp_size == 1 ? comm->ops->barrier(comm) : 0;
    return aborted < 0 ? err_set(e, aborted, "after %s %u: %s", what, layer, err_name(aborted)) : 0;
}

/* x[n] = sum of x over ranks. `what` and `layer` name the place in the error message. */
static int sum_over_ranks(struct glm *m, struct comm *comm, void *x, size_t n, const char *what,
                          uint32_t layer, struct err *e)
{
    if (m->tp_size == 1)
        return m->recording ? 0 : check_aborted(m, comm, what, layer, e);
    if (m->sums.comm) { /* what goes wrong there is found when the step is waited for */
        m->sums.ops->sum(m->sums.comm, x, (uint32_t)(n / m->arch->hidden), m->arch->hidden);
        return 0;
    }
    float *host = m->ops->host_view(m->ctx, x);
    float *data = host ? host : m->ws.staging;
    if (!host)
        m->ops->download(m->ctx, data, x, n);
    int64_t begin_ns = clock_now_ns();
    int r = peer_failed(comm->ops->all_reduce(comm, data, n));
    m->sum_ns += (uint64_t)(clock_now_ns() - begin_ns);
    if (r < 0)
        return err_set(e, r, "sum over %u ranks after %s %u: %s", m->tp_size, what, layer,
                       err_name(r));
    if (!host)
        m->ops->upload(m->ctx, x, data, n);
    return 0;
}

/* The device has done what it was given, sums over ranks included. */
static int check_device(struct glm *m, struct comm *comm, struct err *e)
{
    char message[256];
    int failed = peer_failed(comm_device_wait(&m->sums, comm, e));
    int r = m->ops->sync(m->ctx, message, sizeof message);
    return r < 0 ? err_set(e, r, "device: %s", message) : failed;
}

/* The sum of r over ranks, then r = alpha * a + r + bias, y = norm(r). next: what y is multiplied
 * with; NULL: something else follows. */
static int sum_residual_norm(struct glm *m, struct comm *comm, const struct k_norm *norm,
                             const void *a, const struct k_bias *bias, uint32_t n_rows, void *y,
                             const struct k_linear *next, const char *what, uint32_t layer,
                             struct err *e)
{
    const float eps = m->arch->norm_eps, alpha = (float)m->arch->residual_alpha;
    void *r = m->ws.r;
    if (m->sums.comm) {
        if (next && m->ops->prefetch)
            m->ops->prefetch(m->ctx, next);
        m->sums.ops->sum_residual_norm(m->sums.comm, norm, eps, alpha, a, r, bias, n_rows, y);
        return 0;
    }
    int failed = sum_over_ranks(m, comm, r, (size_t)n_rows * m->arch->hidden, what, layer, e);
    if (failed == 0)
        m->ops->residual_norm(m->ctx, norm, eps, alpha, a, r, bias, n_rows, y);
    return failed;
}

/* ---- rows that come and go ---- */

static bool is_first(const struct glm *m)
{
    return m->layer_begin == 0;
}

static bool is_last(const struct glm *m)
{
    return m->layer_end == m->arch->n_layers;
}

static uint32_t n_sliced(const struct glm_batch *b)
{
    return b->n_rows - b->n_whole_rows;
}

static bool in_slice(const struct glm_batch *b, uint32_t layer)
{
    return layer >= b->slice_begin && layer < b->slice_end;
}

/* Rows that run the layer in front of `layer` and the one behind, or end there for now: what passes
 * between two stages that meet there. */
static uint32_t rows_at_border(const struct glm_batch *b, uint32_t layer)
{
    bool sliced = b->slice_begin < layer && layer <= b->slice_end;
    return b->n_whole_rows + (sliced ? n_sliced(b) : 0);
}

static int link_failed(int r, const char *what, struct err *e)
{
    return err_set(e, peer_failed(r), "%s: %s", what, err_name(peer_failed(r)));
}

/* a[0 .. rows) from the stage before. */
static int receive_rows(struct glm *m, uint32_t rows, struct comm *comm, struct err *e)
{
    size_t n = (size_t)rows * m->arch->hidden;
    if (!n)
        return 0;
    float *host = m->ops->host_view(m->ctx, m->ws.a);
    float *data = host ? host : m->ws.staging;
    int64_t begin_ns = clock_now_ns();
    int r = comm->ops->recv(comm, data, n * sizeof *data);
    m->link_wait_ns += (uint64_t)(clock_now_ns() - begin_ns);
    if (r < 0)
        return link_failed(r, "hidden states of the stage before", e);
    if (!host)
        m->ops->upload(m->ctx, m->ws.a, data, n);
    return 0;
}

static int send_rows(struct glm *m, uint32_t rows, struct comm *comm, struct err *e)
{
    size_t n = (size_t)rows * m->arch->hidden;
    if (!n)
        return 0;
    float *host = m->ops->host_view(m->ctx, m->ws.a);
    float *data = host ? host : m->ws.staging;
    if (!host)
        m->ops->download(m->ctx, data, m->ws.a, n);
    int r = check_device(m, comm, e);
    if (r < 0)
        return r;
    int64_t begin_ns = clock_now_ns();
    r = comm->ops->send(comm, data, n * sizeof *data);
    m->link_wait_ns += (uint64_t)(clock_now_ns() - begin_ns);
    return r < 0 ? link_failed(r, "hidden states for the stage behind", e) : 0;
}

/* The sliced rows of `a` to the stash or back. Both are row-major [rows, H], `a` from the first
 * sliced row on. */
static void stash_rows(struct glm *m, const struct glm_batch *b, bool save)
{
    uint32_t rows[WORKSPACE_HEAD_ROWS];
    size_t row_bytes = m->arch->hidden * m->ops->act_bytes(m->ctx);
    char *a = (char *)m->ws.a + b->n_whole_rows * row_bytes;
    char *stash = m->ws.stash;
    for (uint32_t done = 0; done != n_sliced(b);) {
        uint32_t n = MIN(n_sliced(b) - done, (uint32_t)WORKSPACE_HEAD_ROWS);
        for (uint32_t i = 0; i != n; i++)
            rows[i] = done + i;
        m->ops->gather(m->ctx, save ? a : stash, m->arch->hidden, rows, n,
                       (save ? stash : a) + done * row_bytes);
        done += n;
    }
}

/* a = embedding of the first `rows` rows, behind the first norm. */
static int embed(struct glm *m, const struct glm_batch *b, uint32_t rows, struct comm *comm,
                 struct err *e)
{
    /* r = E[ids]: each id is a row of one rank and zeros on the others. */
    struct workspace *ws = &m->ws;
    m->ops->embed(m->ctx, m->weights.embedding, m->tp_rank * (m->arch->vocab / m->tp_size), b->ids,
                  rows, ws->r);
    int r = sum_over_ranks(m, comm, ws->r, (size_t)rows * m->arch->hidden, "the embedding", 0, e);
    if (r < 0)
        return r;
    m->ops->norm(m->ctx, m->weights.layers[0].input_norm, m->arch->norm_eps, ws->r, rows, ws->a);
    return 0;
}

/* a = input of the stage's first layer, for the rows that come from in front of it. */
static int enter(struct glm *m, const struct glm_batch *b, struct comm *comm, struct err *e)
{
    if (!is_first(m))
        return receive_rows(m, rows_at_border(b, m->layer_begin), comm, e);
    uint32_t rows = in_slice(b, 0) ? b->n_rows : b->n_whole_rows;
    return rows ? embed(m, b, rows, comm, e) : 0;
}

/* ---- layers ---- */

/* Layer `layer` of the model on the first `n_rows` rows (T). */
static int run_layer(struct glm *m, const struct glm_batch *batch, uint32_t layer, uint32_t n_rows,
                     uint32_t n_seqs, struct comm *comm, struct err *e)
{
    const struct k_ops *op = m->ops;
    const struct arch *arch = m->arch;
    struct workspace *ws = &m->ws;
    struct k_ctx *c = m->ctx;
    const uint32_t idx = layer - m->layer_begin; /* in this stage's weights and cache */
    const struct glm_layer *l = &m->weights.layers[idx];
    const size_t n = (size_t)n_rows * arch->hidden;
    const struct k_attn_params attn = {.n_heads = arch->n_heads / m->tp_size,
                                       .n_kv_heads = arch->n_kv_heads / m->tp_size,
                                       .head_dim = arch->head_dim,
                                       .layer = idx};
    void *b = op->norm_in_place && !m->capture ? ws->a : ws->b;

    /* r = alpha a + Attn(a); b = LN_post(r) */
    if (op->linear_rope_kv) {
        op->linear_rope_kv(c, l->qkv, ws->a, &attn, m->rope, batch->positions, batch->seqs, n_seqs,
                           m->kv, ws->qkv, ws->q);
    } else {
        op->linear(c, l->qkv, ws->a, n_rows, ws->qkv);
        op->rope_kv(c, &attn, m->rope, ws->qkv, batch->positions, batch->seqs, n_seqs, m->kv,
                    ws->q);
    }
    op->attention(c, &attn, ws->q, batch->seqs, n_seqs, m->kv, ws->context);
    op->linear(c, l->dense, ws->context, n_rows, ws->r);
    int r = sum_residual_norm(m, comm, l->post_norm, ws->a, l->dense_bias, n_rows, b, l->h_to_4h,
                              "attention of layer", layer, e);
    if (r < 0)
        return r;

    /* r = alpha b + MLP(b); a = LN of what comes next (r) */
    if (op->linear_glu) {
        op->linear_glu(c, l->h_to_4h, K_GLU_GEGLU, b, n_rows, ws->u, ws->g);
    } else {
        op->linear(c, l->h_to_4h, b, n_rows, ws->u);
        op->glu(c, K_GLU_GEGLU, ws->u, n_rows, arch->inner / m->tp_size, ws->g);
    }
    op->linear(c, l->four_h_to_h, ws->g, n_rows, ws->r);
    const struct k_norm *next =
        layer + 1 < m->layer_end ? m->weights.layers[idx + 1].input_norm : m->weights.exit_norm;
    const struct k_linear *behind =
        layer + 1 < m->layer_end ? m->weights.layers[idx + 1].qkv : NULL;
    r = sum_residual_norm(m, comm, next, b, l->four_h_to_h_bias, n_rows, ws->a, behind,
                          "the MLP of layer", layer, e);
    if (r < 0)
        return r;

    if (m->capture && n_rows <= m->capture_rows)
        op->download(c, m->capture + layer * n, ws->r, n);
    return 0;
}

/* All layers of the stage on the rows that run them. */
static int run_layers(struct glm *m, const struct glm_batch *batch, struct comm *comm,
                      struct err *e)
{
    const bool sliced = n_sliced(batch) > 0;
    int r = enter(m, batch, comm, e);
    for (uint32_t layer = m->layer_begin; layer != m->layer_end && r == 0; layer++) {
        if (sliced && layer == batch->slice_begin && layer > 0)
            stash_rows(m, batch, false);
        if (sliced && layer == batch->slice_end)
            stash_rows(m, batch, true);
        bool all = in_slice(batch, layer);
        uint32_t n_rows = all ? batch->n_rows : batch->n_whole_rows;
        uint32_t n_seqs = all ? batch->n_seqs : batch->n_whole_seqs;
        if (n_rows)
            r = run_layer(m, batch, layer, n_rows, n_seqs, comm, e);
    }
    return r;
}

/* The same for a decode step, announced with begin_decode, on `n_rows` rows with its padding: the
 * device may have the operations recorded. */
static int replay_layers(struct glm *m, const struct glm_batch *batch, uint32_t n_rows,
                         struct comm *comm, struct err *e)
{
    int r = is_first(m) ? check_aborted(m, comm, "layer", m->layer_begin, e)
                        : receive_rows(m, batch->n_rows, comm, e);
    if (r < 0)
        return r;
    const struct glm_tail *tail = is_last(m) ? batch->tail : NULL;
    const uint32_t kind = tail ? tail->prepare(tail->context, n_rows) : 0;
    m->recording = true;
    for (bool go = m->ops->graph_begin(m->ctx, kind); go; go = m->ops->graph_end(m->ctx)) {
        r = is_first(m) ? embed(m, batch, n_rows, comm, e) : 0;
        for (uint32_t layer = m->layer_begin; layer != m->layer_end && r == 0; layer++)
            r = run_layer(m, batch, layer, n_rows, batch->n_seqs, comm, e);
        assert(r == 0); /* nothing in it waits */
        if (kind)
            tail->enqueue(tail->context, n_rows, kind);
    }
    m->recording = false;
    return 0;
}

int glm_forward(struct glm *m, const struct glm_batch *batch, struct comm *comm, struct err *e)
{
    const struct arch *arch = m->arch;
    assert(arch->norm == ARCH_NORM_LAYER && arch->residual == ARCH_RESIDUAL_NORMED &&
           arch->glu == ARCH_GLU_GEGLU_SECOND && arch->tied_head);
    const struct k_step step = {.ids = batch->ids,
                                .positions = batch->positions,
                                .n_rows = batch->n_rows,
                                .seqs = batch->seqs,
                                .n_seqs = batch->n_seqs,
                                .block_tokens = PLAN_KV_BLOCK_TOKENS};
    uint32_t rows = can_record(m, batch) ? m->ops->begin_decode(m->ctx, &step) : 0;
    if (!rows && m->ops->begin_step)
        m->ops->begin_step(m->ctx, &step);
    int r = rows ? replay_layers(m, batch, rows, comm, e) : run_layers(m, batch, comm, e);
    return r == 0 && !is_last(m) ? send_rows(m, rows_at_border(batch, m->layer_end), comm, e) : r;
}

int glm_wait(struct glm *m, struct comm *comm, struct err *e)
{
    return check_device(m, comm, e);
}

int glm_head(struct glm *m, const uint32_t *rows, uint32_t n, struct comm *comm, struct err *e)
{
    assert(n <= WORKSPACE_HEAD_ROWS);
    struct workspace *ws = &m->ws;
    const struct k_linear *head = glm_head_matrix(m);
    /* head_out[n, V/P] = a[rows] E^T */
    m->ops->gather(m->ctx, ws->a, m->arch->hidden, rows, n, ws->head_x);
    size_t part = (size_t)n * (m->arch->vocab / m->tp_size);
    float *own = m->ops->logits ? NULL : m->ops->host_view(m->ctx, ws->head_out);
    const bool in_place = own; /* they are on the host already */
    if (!in_place)
        own = ws->logits + m->tp_rank * part;
    if (m->ops->logits)
        m->ops->logits(m->ctx, head, ws->head_x, n, ws->head_out, own);
    else
        m->ops->linear(m->ctx, head, ws->head_x, n, ws->head_out);
    if (!m->ops->logits && !in_place)
        m->ops->download(m->ctx, own, ws->head_out, part);
    m->logits = m->tp_size == 1 ? own : ws->logits;
    int r = check_device(m, comm, e);
    if (r < 0 || m->tp_size == 1)
        return r;
    r = peer_failed(comm->ops->all_gather(comm, own, part * sizeof *own, ws->logits));
    return r < 0 ? err_set(e, r, "gathering the logits of %u ranks: %s", m->tp_size, err_name(r))
                 : 0;
}

float *glm_head_row(const struct glm *m, uint32_t i, uint32_t n, float *scratch)
{
    assert(i < n);
    size_t cols = m->arch->vocab / m->tp_size;
    if (m->tp_size == 1)
        return m->logits + i * cols;
    for (uint32_t rank = 0; rank != m->tp_size; rank++)
        memcpy(scratch + rank * cols, m->logits + ((size_t)rank * n + i) * cols,
               cols * sizeof *scratch);
    return scratch;
}
