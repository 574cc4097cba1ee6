/* outputs_device.c: rows that are sampled where their logits lie (see outputs.h). Runs on the
 * engine's thread. */
#include "worker/engine/outputs_impl.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "kernels/sizes.h"

/* The plan's lists go to the device as they are. */
static_assert(sizeof(struct plan_bias) == sizeof(struct k_sample_bias) &&
                  offsetof(struct plan_bias, bias) == offsetof(struct k_sample_bias, bias) &&
                  sizeof(struct plan_range) == sizeof(struct k_sample_range) &&
                  offsetof(struct plan_range, end) == offsetof(struct k_sample_range, end),
              "the same lists");
static_assert((int)PLAN_MAX_TOP_LOGPROBS <= (int)K_SAMPLE_MAX_TOP, "as many best tokens");

/* Rows of one head call that a rank samples. */
static uint32_t share_of(uint32_t n_rows, uint32_t tp_size)
{
    return (n_rows + tp_size - 1) / tp_size;
}

/* Of one head call. */
static uint32_t head_rows(const struct plan_limits *l)
{
    return MIN((uint32_t)WORKSPACE_HEAD_ROWS, l->max_tokens);
}

static struct k_sampler_params device_params(uint32_t tp_size, const struct plan_limits *l)
{
    return (struct k_sampler_params){.vocab = l->vocab,
                                     .max_rows = head_rows(l),
                                     .n_ranks = tp_size,
                                     .buffer_rows = tp_size > 1 ? head_rows(l) : 0,
                                     .max_history = l->max_seq,
                                     .max_bias = PLAN_MAX_BIAS,
                                     .max_forbidden = PLAN_MAX_RANGES,
                                     .max_banned = PLAN_MAX_BANNED};
}

uint64_t outputs_device_bytes(const char *backend, uint32_t tp_size, const struct plan_limits *l)
{
    const struct k_sizes *sizes = k_sizes(backend);
    struct k_sampler_params p = device_params(tp_size, l);
    return sizes && sizes->sampler_bytes ? sizes->sampler_bytes(&p) : 0;
}

int outputs_open_device(struct outputs *o)
{
    struct glm *m = o->model;
    if (!m->ops->sample || m->layer_end != m->arch->n_layers)
        return 0;
    struct k_sampler_params p = device_params(m->tp_size, o->limits);
    o->device = m->ops->sample->create(m->ctx, &p);
    return o->device ? 0 : -ENOMEM;
}

void outputs_close_device(struct outputs *o)
{
    if (o->device)
        o->model->ops->sample->destroy(o->model->ctx, o->device);
}

struct k_sample_row outputs_sample_row(const struct plan_sampling *p, int32_t previous)
{
    return (struct k_sample_row){
        .n_top = p->n_top_logprobs,
        .temperature = p->temperature,
        .top_k = p->top_k,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition = p->repetition_penalty,
        .frequency = p->frequency_penalty,
        .presence = p->presence_penalty,
        .history = p->history,
        .n_history = p->n_history,
        .n_history_prompt = p->n_history_prompt,
        .previous = previous,
        .seed = p->seed,
        .counter = {(uint32_t)p->request, (uint32_t)(p->request >> 32), p->choice, p->output_index},
        .bias = (const struct k_sample_bias *)p->bias,
        .n_bias = p->n_bias,
        .forbidden = (const struct k_sample_range *)p->forbidden,
        .n_forbidden = p->n_forbidden,
        .banned = p->banned,
        .n_banned = p->n_banned,
    };
}

static struct k_sample_row device_row(const struct outputs *o, const struct plan *p,
                                      const struct batch_output *out)
{
    const struct plan_item *it = &p->items[out->item];
    if (it->output == PLAN_OUTPUT_SCORE)
        return (struct k_sample_row){.score = true,
                                     .target = it->targets[out->item_row],
                                     .n_top = it->sampling.n_top_logprobs,
                                     .previous = -1};
    const struct plan_sampling sampling = batch_sampling(o->batch, it);
    return outputs_sample_row(&sampling, outputs_previous(o, it));
}

/* ws.head_out [n, V/P] = this rank's logits. */
static void own_logits(struct glm *m, const struct outputs_chunk *c)
{
    m->ops->gather(m->ctx, m->ws.a, m->arch->hidden, c->rows, c->n, m->ws.head_x);
    m->ops->logits(m->ctx, glm_head_matrix(m), m->ws.head_x, c->n, m->ws.head_out, NULL);
}

/* All of the chunk, from logits that never leave the device. */
static int sample_alone(struct outputs *o, const struct outputs_chunk *c,
                        const struct k_sample_row *rows, struct k_sample_result *ret,
                        struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    own_logits(m, c);
    m->ops->sample->begin(m->ctx, o->device, m->ws.head_out, 1, c->n, 0, rows, c->n);
    m->ops->sample->end(m->ctx, o->device, ret);
    return glm_wait(m, comm, e);
}

/* Some rows of a chunk. */
struct subset {
    struct outputs_chunk chunk;
    struct k_sample_row rows[WORKSPACE_HEAD_ROWS];
    uint32_t at[WORKSPACE_HEAD_ROWS]; /* in the chunk */
};

/* Those whose best tokens did not decide what is left of them. */
static void wide_rows(const struct outputs_chunk *c, const struct k_sample_row *rows,
                      const struct k_sample_result *found, struct subset *ret)
{
    ret->chunk.n = 0;
    for (uint32_t i = 0; i != c->n; i++) {
        if (found[i].chosen.token >= 0)
            continue;
        const uint32_t n = ret->chunk.n++;
        ret->chunk.rows[n] = c->rows[i];
        ret->chunk.outputs[n] = c->outputs[i];
        ret->rows[n] = rows[i];
        ret->at[n] = i;
    }
}

/* The chunk's logits of all ranks, in the sampler's buffer: [P, n, V/P] as the devices gather them,
 * or [share, V], only this rank's rows, through the host. */
static int gather_logits(struct outputs *o, const struct outputs_chunk *c, uint32_t first,
                         uint32_t n, struct comm *comm, bool *ret_whole, struct err *e)
{
    struct glm *m = o->model;
    const struct k_sample_ops *sample = m->ops->sample;
    const size_t bytes = (size_t)c->n * (o->limits->vocab / m->tp_size) * sizeof(float);
    *ret_whole = m->sums.comm && bytes % 16 == 0;
    if (*ret_whole) {
        own_logits(m, c);
        m->sums.ops->gather(m->sums.comm, m->ws.head_out, bytes, sample->buffer(o->device));
        return 0;
    }
    int r = glm_head(m, c->rows, c->n, comm, e);
    for (uint32_t i = 0; i != n && r == 0; i++) {
        const float *row = glm_head_row(m, first + i, c->n, o->rows[0]);
        sample->put(m->ctx, o->device, (size_t)i * o->limits->vocab, row, o->limits->vocab);
    }
    return r;
}

/* This rank's share of the chunk, then everybody's results. `ret` has room for all shares. */
static int sample_share(struct outputs *o, const struct outputs_chunk *c,
                        const struct k_sample_row *rows, struct k_sample_result *ret,
                        struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    const struct k_sample_ops *sample = m->ops->sample;
    const uint32_t share = share_of(c->n, m->tp_size);
    const uint32_t first = MIN(m->tp_rank * share, c->n), n = MIN(share, c->n - first);
    struct k_sample_result *own = ret + (size_t)m->tp_rank * share;
    memset(own, 0, share * sizeof *own);
    bool whole;
    int r = gather_logits(o, c, first, n, comm, &whole, e);
    if (r < 0)
        return r;
    if (n) {
        void *logits = sample->buffer(o->device);
        if (whole)
            sample->begin(m->ctx, o->device, logits, m->tp_size, c->n, first, rows + first, n);
        else
            sample->begin(m->ctx, o->device, logits, 1, n, 0, rows + first, n);
        sample->end(m->ctx, o->device, own);
    }
    r = glm_wait(m, comm, e);
    if (r < 0)
        return r;
    r = comm->ops->all_gather(comm, own, share * sizeof *own, ret);
    if (r == -EIO) /* a peer is gone: not to be taken for a failure of this rank's device */
        r = -ECONNRESET;
    return r < 0 ? err_set(e, r, "exchanging the tokens of %u ranks: %s", m->tp_size, err_name(r))
                 : 0;
}

static void gather_parts(void *context, const void *own, size_t bytes, void *all)
{
    const struct glm *m = context;
    m->sums.ops->gather(m->sums.comm, own, bytes, all);
}

static struct k_sample_ranks ranks_of(struct glm *m)
{
    return (struct k_sample_ranks){m->tp_rank, m->tp_size, gather_parts, m};
}

/* The results of a chunk that every rank sampled from its part of the logits. Rows that are too
 * wide for that are the same ones on all ranks; their logits are computed again, and gathered. */
static int end_together(struct outputs *o, const struct outputs_chunk *c,
                        const struct k_sample_row *rows, struct k_sample_result *ret,
                        struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    m->ops->sample->end(m->ctx, o->device, ret);
    int r = glm_wait(m, comm, e);
    if (r < 0)
        return r;
    struct subset wide;
    wide_rows(c, rows, ret, &wide);
    o->n_shared_rows += c->n - wide.chunk.n;
    o->n_wide_rows += wide.chunk.n;
    if (!wide.chunk.n)
        return 0;
    struct k_sample_result found[WORKSPACE_HEAD_ROWS + COMM_MAX_RANKS];
    r = sample_share(o, &wide.chunk, wide.rows, found, comm, e);
    for (uint32_t i = 0; i != wide.chunk.n && r == 0; i++)
        ret[wide.at[i]] = found[i];
    return r;
}

static int sample_together(struct outputs *o, const struct outputs_chunk *c,
                           const struct k_sample_row *rows, struct k_sample_result *ret,
                           struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    const struct k_sample_ranks ranks = ranks_of(m);
    own_logits(m, c);
    m->ops->sample->begin_shard(m->ctx, o->device, &ranks, m->ws.head_out, rows, c->n);
    return end_together(o, c, rows, ret, comm, e);
}

/* ---- on the device, as a part of a decode step ---- */

/* What was sampled with the step's layers. */
static int sampled_in_step(struct outputs *o, const struct outputs_chunk *c,
                           const struct k_sample_row *rows, struct k_sample_result *ret,
                           struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    if (m->tp_size > 1)
        return end_together(o, c, rows, ret, comm, e);
    m->ops->sample->end(m->ctx, o->device, ret);
    return glm_wait(m, comm, e);
}

/* All rows of the step, in order, choose a token. */
static bool all_sample(const struct batch *b, const struct plan *p)
{
    for (uint32_t i = 0; i != b->n_outputs; i++)
        if (b->outputs[i].row != i || p->items[b->outputs[i].item].output != PLAN_OUTPUT_SAMPLE)
            return false;
    return b->n_outputs == b->n_rows;
}

static uint32_t prepare_tail(void *context, uint32_t n_rows)
{
    struct outputs *o = context;
    const struct batch *b = o->batch;
    if (!o->device || n_rows > head_rows(o->limits) || !all_sample(b, o->plan))
        return 0;
    struct k_sample_row rows[WORKSPACE_HEAD_ROWS];
    for (uint32_t i = 0; i != b->n_rows; i++)
        rows[i] = device_row(o, o->plan, &b->outputs[i]);
    struct glm *m = o->model;
    o->in_step = true;
    return m->ops->sample->send(m->ctx, o->device, rows, b->n_rows, n_rows);
}

static void enqueue_tail(void *context, uint32_t n_rows, uint32_t kind)
{
    struct outputs *o = context;
    struct glm *m = o->model;
    const struct k_sample_ranks ranks = ranks_of(m);
    m->ops->logits(m->ctx, glm_head_matrix(m), m->ws.a, n_rows, m->ws.head_out, NULL);
    m->ops->sample->launch(m->ctx, o->device, m->tp_size > 1 ? &ranks : NULL, m->ws.head_out,
                           n_rows, kind);
}

struct glm_tail outputs_tail(struct outputs *o, const struct plan *p)
{
    o->plan = p;
    o->in_step = false;
    return (struct glm_tail){o, prepare_tail, enqueue_tail};
}

/* ---- a chunk ---- */

int outputs_take_on_device(struct outputs *o, const struct plan *p, const struct outputs_chunk *c,
                           struct comm *comm, struct outputs_cursor *at, struct err *e)
{
    struct k_sample_row rows[WORKSPACE_HEAD_ROWS];
    struct k_sample_result found[WORKSPACE_HEAD_ROWS + COMM_MAX_RANKS];
    for (uint32_t i = 0; i != c->n; i++)
        rows[i] = device_row(o, p, c->outputs[i]);
    int r = o->in_step               ? sampled_in_step(o, c, rows, found, comm, e)
            : o->model->tp_size == 1 ? sample_alone(o, c, rows, found, comm, e)
            : o->model->sums.comm    ? sample_together(o, c, rows, found, comm, e)
                                     : sample_share(o, c, rows, found, comm, e);
    for (uint32_t i = 0; i != c->n && r == 0; i++) {
        const uint32_t item = c->outputs[i]->item;
        struct result_logprob top[PLAN_MAX_TOP_LOGPROBS] = {{0}};
        for (uint32_t j = 0; j != rows[i].n_top; j++)
            top[j] = (struct result_logprob){found[i].top[j].token, found[i].top[j].logprob};
        if (rows[i].score) {
            const struct outputs_score to = outputs_next_score(o, p, item, at);
            outputs_put_score(&to, found[i].chosen.logprob, top);
        } else {
            memcpy(outputs_top(o, item), top, rows[i].n_top * sizeof *top);
            outputs_put_choice(o, item, found[i].chosen.token, found[i].chosen.logprob,
                               rows[i].n_top);
        }
    }
    return r;
}
