/* outputs.c: see outputs.h. Runs on the engine's thread. */
#include "worker/engine/outputs.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
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

uint64_t outputs_bytes(const struct plan_limits *l)
{
    return results_bytes(l) + sampler_bytes(l->vocab) + l->vocab * sizeof(float);
}

uint64_t outputs_device_bytes(const char *backend, uint32_t tp_size, const struct plan_limits *l)
{
    const struct k_sizes *sizes = k_sizes(backend);
    struct k_sampler_params p = device_params(tp_size, l);
    return sizes && sizes->sampler_bytes ? sizes->sampler_bytes(&p) : 0;
}

static bool has_head(const struct glm *m)
{
    return m->layer_end == m->arch->n_layers;
}

int outputs_init(struct outputs *o, struct glm *model, const struct batch *batch,
                 const struct plan_limits *limits)
{
    o->model = model;
    o->batch = batch;
    o->limits = limits;
    if (model->ops->sample && has_head(model)) {
        struct k_sampler_params p = device_params(model->tp_size, limits);
        o->device = model->ops->sample->create(model->ctx, &p);
        if (!o->device)
            return -ENOMEM;
    }
    o->row = alloc_array(limits->vocab, sizeof *o->row);
    int r = o->row ? sampler_new(limits->vocab, &o->sampler) : -ENOMEM;
    return r < 0 ? r : results_init(&o->results, limits);
}

void outputs_deinit(struct outputs *o)
{
    if (o->device)
        o->model->ops->sample->destroy(o->model->ctx, o->device);
    results_deinit(&o->results);
    sampler_free(o->sampler);
    free(o->row);
    *o = (struct outputs){0};
}

int outputs_reserve(struct outputs *o, const struct plan *p, struct err *e)
{
    size_t rows = 0;
    for (uint32_t i = 0; i != p->n_items; i++)
        rows += p->items[i].output == PLAN_OUTPUT_LOGITS ? p->items[i].n_tokens : 0;
    size_t n = rows * o->limits->vocab;
    if (n <= o->results.logits_cap)
        return 0;
    float *logits = realloc(o->results.logits, n * sizeof *logits);
    if (!logits)
        return err_set(e, -ENOMEM, "out of memory: logits of %zu rows, %.2f GB", rows,
                       (double)n * sizeof *logits / 1e9);
    o->results.logits = logits;
    o->results.logits_cap = n;
    return 0;
}

/* ---- results, filled front to back ---- */

struct cursor {
    uint32_t n_scores;
    uint32_t n_score_tokens;
    uint32_t n_candidates;
    size_t n_logits;
    uint32_t group_rows_left; /* of the beam group in progress */
};

/* A token that the history lacks; -1 = none. */
static int32_t previous_of(const struct outputs *o, const struct plan_item *it)
{
    return it->tokens[0] == PLAN_TOKEN_PREVIOUS ? o->batch->slots[it->slot].sample : -1;
}

static struct result_logprob *top_of(const struct outputs *o, uint32_t item)
{
    return o->results.top + (size_t)item * o->limits->n_top_logprobs;
}

static void put_choice(struct outputs *o, uint32_t item, int32_t token, float logprob,
                       uint32_t n_top)
{
    struct result_item *result = &o->results.items[item];
    result->token = token;
    result->logprob = logprob;
    result->top = top_of(o, item);
    result->n_top = n_top;
}

/* `top`: a result_logprob or the like for each of the item's best tokens. */
static void put_score(struct outputs *o, const struct plan *p, uint32_t item, float logprob,
                      const struct result_logprob *top, struct cursor *at)
{
    struct results *r = &o->results;
    struct result_item *result = &r->items[item];
    if (!result->n_scores) {
        result->scores = r->scores + at->n_scores;
        result->score_tokens = r->score_tokens + at->n_score_tokens;
        result->score_logprobs = r->score_logprobs + at->n_score_tokens;
    }
    uint32_t n_top = p->items[item].sampling.n_top_logprobs;
    r->scores[at->n_scores++] = logprob;
    result->n_scores++;
    for (uint32_t i = 0; i != n_top; i++) {
        r->score_tokens[at->n_score_tokens] = top[i].token;
        r->score_logprobs[at->n_score_tokens++] = top[i].logprob;
    }
    result->n_score_tokens += n_top;
}

/* ---- on the host ---- */

/* Items of a group are neighbours: its size is the length of the run that starts here. */
static uint32_t group_rows(const struct plan *p, uint32_t item)
{
    uint32_t n = 0;
    while (item + n < p->n_items && p->items[item + n].output == PLAN_OUTPUT_BEAM &&
           p->items[item + n].beam_group == p->items[item].beam_group)
        n++;
    return n;
}

static void beam_row(struct outputs *o, const struct plan *p, uint32_t item, float *row,
                     struct cursor *at)
{
    const struct plan_item *it = &p->items[item];
    if (!at->group_rows_left) {
        sampler_beam_begin(o->sampler, &p->groups[it->beam_group]);
        at->group_rows_left = group_rows(p, item);
    }
    const struct plan_sampling sampling = batch_sampling(o->batch, it);
    sampler_beam_row(o->sampler, row, item, it->beam_score, &sampling);
    if (--at->group_rows_left)
        return;
    struct result_candidate *candidates = o->results.candidates + at->n_candidates;
    uint32_t n = sampler_beam_finish(o->sampler, candidates);
    o->results.groups[it->beam_group] = (struct result_group){candidates, n};
    at->n_candidates += n;
}

/* One row of logits becomes a result. */
static void take_row(struct outputs *o, const struct plan *p, const struct batch_output *out,
                     float *row, struct cursor *at)
{
    const struct plan_item *it = &p->items[out->item];
    switch (it->output) {
    case PLAN_OUTPUT_NONE:
        assert(false); /* has no output rows */
        break;
    case PLAN_OUTPUT_SAMPLE: {
        const struct plan_sampling sampling = batch_sampling(o->batch, it);
        float logprob;
        int32_t token = sampler_choose(o->sampler, row, &sampling, previous_of(o, it), &logprob,
                                       top_of(o, out->item));
        put_choice(o, out->item, token, logprob, sampling.n_top_logprobs);
        break;
    }
    case PLAN_OUTPUT_BEAM:
        beam_row(o, p, out->item, row, at);
        break;
    case PLAN_OUTPUT_SCORE: {
        struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
        float logprob = sampler_logprob(o->sampler, row, it->targets[out->item_row],
                                        it->sampling.n_top_logprobs, top);
        put_score(o, p, out->item, logprob, top, at);
        break;
    }
    case PLAN_OUTPUT_LOGITS:
        if (out->item_row == 0)
            o->results.items[out->item].logits = o->results.logits + at->n_logits;
        memcpy(o->results.logits + at->n_logits, row, o->limits->vocab * sizeof(float));
        at->n_logits += o->limits->vocab;
        break;
    }
}

/* Some of the step's output rows: at most WORKSPACE_HEAD_ROWS. */
struct chunk {
    uint32_t rows[WORKSPACE_HEAD_ROWS]; /* of the batch */
    const struct batch_output *outputs[WORKSPACE_HEAD_ROWS];
    uint32_t n;
};

static int take_on_host(struct outputs *o, const struct plan *p, const struct chunk *c,
                        struct comm *comm, struct cursor *at, struct err *e)
{
    int r = glm_head(o->model, c->rows, c->n, comm, e);
    if (r < 0)
        return r;
    int64_t begin_ns = clock_now_ns();
    for (uint32_t i = 0; i != c->n; i++) {
        float *row = glm_head_row(o->model, i, c->n, o->row);
        take_row(o, p, c->outputs[i], row, at);
    }
    o->sample_ns += (uint64_t)(clock_now_ns() - begin_ns);
    return 0;
}

/* ---- on the device ---- */

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
    return outputs_sample_row(&sampling, previous_of(o, it));
}

/* ws.head_out [n, V/P] = this rank's logits. */
static void own_logits(struct glm *m, const struct chunk *c)
{
    m->ops->gather(m->ctx, m->ws.a, m->arch->hidden, c->rows, c->n, m->ws.head_x);
    m->ops->logits(m->ctx, glm_head_matrix(m), m->ws.head_x, c->n, m->ws.head_out, NULL);
}

/* All of the chunk, from logits that never leave the device. */
static int sample_alone(struct outputs *o, const struct chunk *c, const struct k_sample_row *rows,
                        struct k_sample_result *ret, struct comm *comm, struct err *e)
{
    struct glm *m = o->model;
    own_logits(m, c);
    m->ops->sample->begin(m->ctx, o->device, m->ws.head_out, 1, c->n, 0, rows, c->n);
    m->ops->sample->end(m->ctx, o->device, ret);
    return glm_wait(m, comm, e);
}

/* Some rows of a chunk. */
struct subset {
    struct chunk chunk;
    struct k_sample_row rows[WORKSPACE_HEAD_ROWS];
    uint32_t at[WORKSPACE_HEAD_ROWS]; /* in the chunk */
};

/* Those whose best tokens did not decide what is left of them. */
static void wide_rows(const struct chunk *c, const struct k_sample_row *rows,
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
static int gather_logits(struct outputs *o, const struct chunk *c, uint32_t first, uint32_t n,
                         struct comm *comm, bool *ret_whole, struct err *e)
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
        const float *row = glm_head_row(m, first + i, c->n, o->row);
        sample->put(m->ctx, o->device, (size_t)i * o->limits->vocab, row, o->limits->vocab);
    }
    return r;
}

/* This rank's share of the chunk, then everybody's results. `ret` has room for all shares. */
static int sample_share(struct outputs *o, const struct chunk *c, const struct k_sample_row *rows,
                        struct k_sample_result *ret, struct comm *comm, struct err *e)
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
static int end_together(struct outputs *o, const struct chunk *c, const struct k_sample_row *rows,
                        struct k_sample_result *ret, struct comm *comm, struct err *e)
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

static int sample_together(struct outputs *o, const struct chunk *c,
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
static int sampled_in_step(struct outputs *o, const struct chunk *c,
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

static int take_on_device(struct outputs *o, const struct plan *p, const struct chunk *c,
                          struct comm *comm, struct cursor *at, struct err *e)
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
            put_score(o, p, item, found[i].chosen.logprob, top, at);
        } else {
            memcpy(top_of(o, item), top, rows[i].n_top * sizeof *top);
            put_choice(o, item, found[i].chosen.token, found[i].chosen.logprob, rows[i].n_top);
        }
    }
    return r;
}

/* ---- a step ---- */

static bool for_device(const struct outputs *o, const struct plan_item *it)
{
    return o->device && (it->output == PLAN_OUTPUT_SAMPLE || it->output == PLAN_OUTPUT_SCORE);
}

/* Those rows of the step that go this way, in order, a head call at a time. */
static int produce(struct outputs *o, const struct plan *p, bool device, struct comm *comm,
                   struct cursor *at, struct err *e)
{
    const struct batch *b = o->batch;
    struct chunk c = {.n = 0};
    int r = 0;
    for (uint32_t i = 0; i != b->n_outputs && r == 0; i++) {
        const struct batch_output *out = &b->outputs[i];
        if (for_device(o, &p->items[out->item]) == device) {
            c.rows[c.n] = out->row;
            c.outputs[c.n++] = out;
        }
        if (c.n == WORKSPACE_HEAD_ROWS || (c.n && i + 1 == b->n_outputs)) {
            r = device ? take_on_device(o, p, &c, comm, at, e)
                       : take_on_host(o, p, &c, comm, at, e);
            c.n = 0;
        }
    }
    return r;
}

int outputs_produce(struct outputs *o, const struct plan *p, struct comm *comm, struct err *e)
{
    struct cursor at = {0};
    int r = o->device ? produce(o, p, true, comm, &at, e) : 0;
    return r == 0 ? produce(o, p, false, comm, &at, e) : r;
}
