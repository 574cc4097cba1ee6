/* outputs.c: see outputs.h. Runs on the engine's thread, and on the context's for rows that go
 * through the host. */
#include "worker/engine/outputs.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "worker/engine/outputs_impl.h"

/* Threads that sample on the host: with a device that does it, only beams and tools need one. */
static uint32_t n_samplers(bool on_device)
{
    return on_device ? 1 : OUTPUTS_SAMPLERS;
}

uint64_t outputs_bytes(const struct plan_limits *l, bool on_device)
{
    return results_bytes(l) +
           n_samplers(on_device) * (sampler_bytes(l->vocab) + l->vocab * sizeof(float));
}

int outputs_init(struct outputs *o, struct glm *model, const struct batch *batch,
                 const struct plan_limits *limits)
{
    o->model = model;
    o->batch = batch;
    o->limits = limits;
    int r = outputs_open_device(o);
    for (uint32_t i = 0; i != n_samplers(model->ops->sample) && r == 0; i++) {
        o->rows[i] = alloc_array(limits->vocab, sizeof *o->rows[i]);
        r = o->rows[i] ? sampler_new(limits->vocab, &o->samplers[i]) : -ENOMEM;
    }
    return r < 0 ? r : results_init(&o->results, limits);
}

void outputs_deinit(struct outputs *o)
{
    outputs_close_device(o);
    results_deinit(&o->results);
    for (uint32_t i = 0; i != OUTPUTS_SAMPLERS; i++) {
        sampler_free(o->samplers[i]);
        free(o->rows[i]);
    }
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

int32_t outputs_previous(const struct outputs *o, const struct plan_item *it)
{
    return it->tokens[0] == PLAN_TOKEN_PREVIOUS ? o->batch->slots[it->slot].sample : -1;
}

struct result_logprob *outputs_top(const struct outputs *o, uint32_t item)
{
    return o->results.top + (size_t)item * o->limits->n_top_logprobs;
}

void outputs_put_choice(struct outputs *o, uint32_t item, int32_t token, float logprob,
                        uint32_t n_top)
{
    struct result_item *result = &o->results.items[item];
    result->token = token;
    result->logprob = logprob;
    result->top = outputs_top(o, item);
    result->n_top = n_top;
}

struct outputs_score outputs_next_score(struct outputs *o, const struct plan *p, uint32_t item,
                                        struct outputs_cursor *at)
{
    struct results *r = &o->results;
    struct result_item *result = &r->items[item];
    const struct outputs_score to = {.score = r->scores + at->n_scores,
                                     .tokens = r->score_tokens + at->n_score_tokens,
                                     .logprobs = r->score_logprobs + at->n_score_tokens,
                                     .n_top = p->items[item].sampling.n_top_logprobs};
    if (!result->n_scores) {
        result->scores = to.score;
        result->score_tokens = to.tokens;
        result->score_logprobs = to.logprobs;
    }
    result->n_scores++;
    result->n_score_tokens += to.n_top;
    at->n_scores++;
    at->n_score_tokens += to.n_top;
    return to;
}

void outputs_put_score(const struct outputs_score *to, float score,
                       const struct result_logprob *top)
{
    *to->score = score;
    for (uint32_t i = 0; i != to->n_top; i++) {
        to->tokens[i] = top[i].token;
        to->logprobs[i] = top[i].logprob;
    }
}

/* ---- on the host ---- */

/* Rows of a chunk, taken by several threads. Places of results that others' sizes decide about are
 * found in the order of the rows, before. */
struct host_rows {
    struct outputs *o;
    const struct plan *p;
    const struct outputs_chunk *c;
    union {
        struct outputs_score score;
        float *logits;
    } to[WORKSPACE_HEAD_ROWS];
    _Atomic uint32_t next;
};

static const struct plan_item *item_of(const struct host_rows *j, uint32_t i)
{
    return &j->p->items[j->c->outputs[i]->item];
}

static void find_place(struct host_rows *j, uint32_t i, struct outputs_cursor *at)
{
    struct outputs *o = j->o;
    const struct batch_output *out = j->c->outputs[i];
    if (item_of(j, i)->output == PLAN_OUTPUT_SCORE) {
        j->to[i].score = outputs_next_score(o, j->p, out->item, at);
    } else if (item_of(j, i)->output == PLAN_OUTPUT_LOGITS) {
        j->to[i].logits = o->results.logits + at->n_logits;
        if (out->item_row == 0)
            o->results.items[out->item].logits = j->to[i].logits;
        at->n_logits += o->limits->vocab;
    }
}

/* One row of logits becomes a result. */
static void take_row(const struct host_rows *j, uint32_t i, uint32_t thread)
{
    struct outputs *o = j->o;
    struct sampler *sampler = o->samplers[thread];
    const struct plan_item *it = item_of(j, i);
    const uint32_t item = j->c->outputs[i]->item;
    float *row = glm_head_row(o->model, i, j->c->n, o->rows[thread]);
    if (it->output == PLAN_OUTPUT_SAMPLE) {
        const struct plan_sampling sampling = batch_sampling(o->batch, it);
        float logprob;
        int32_t token = sampler_choose(sampler, row, &sampling, outputs_previous(o, it), &logprob,
                                       outputs_top(o, item));
        outputs_put_choice(o, item, token, logprob, sampling.n_top_logprobs);
    } else if (it->output == PLAN_OUTPUT_SCORE) {
        struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
        float score = sampler_logprob(sampler, row, it->targets[j->c->outputs[i]->item_row],
                                      it->sampling.n_top_logprobs, top);
        outputs_put_score(&j->to[i].score, score, top);
    } else {
        assert(it->output == PLAN_OUTPUT_LOGITS);
        memcpy(j->to[i].logits, row, o->limits->vocab * sizeof *row);
    }
}

static void take_rows(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct host_rows *j = arg;
    (void)n_threads;
    if (thread >= OUTPUTS_SAMPLERS || !j->o->samplers[thread])
        return;
    for (uint32_t i; (i = atomic_fetch_add(&j->next, 1)) < j->c->n;)
        if (item_of(j, i)->output != PLAN_OUTPUT_BEAM)
            take_row(j, i, thread);
}

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
                     struct outputs_cursor *at)
{
    const struct plan_item *it = &p->items[item];
    if (!at->group_rows_left) {
        sampler_beam_begin(o->samplers[0], &p->groups[it->beam_group]);
        at->group_rows_left = group_rows(p, item);
    }
    const struct plan_sampling sampling = batch_sampling(o->batch, it);
    sampler_beam_row(o->samplers[0], row, item, it->beam_score, &sampling);
    if (--at->group_rows_left)
        return;
    struct result_candidate *candidates = o->results.candidates + at->n_candidates;
    uint32_t n = sampler_beam_finish(o->samplers[0], candidates);
    o->results.groups[it->beam_group] = (struct result_group){candidates, n};
    at->n_candidates += n;
}

static int take_on_host(struct outputs *o, const struct plan *p, const struct outputs_chunk *c,
                        struct comm *comm, struct outputs_cursor *at, struct err *e)
{
    struct glm *m = o->model;
    int r = glm_head(m, c->rows, c->n, comm, e);
    if (r < 0)
        return r;
    int64_t begin_ns = clock_now_ns();
    struct host_rows j = {.o = o, .p = p, .c = c};
    for (uint32_t i = 0; i != c->n; i++)
        find_place(&j, i, at);
    if (c->n > 1 && m->ops->each_thread)
        m->ops->each_thread(m->ctx, take_rows, &j);
    else
        take_rows(&j, 0, 1);
    for (uint32_t i = 0; i != c->n; i++)
        if (item_of(&j, i)->output == PLAN_OUTPUT_BEAM)
            beam_row(o, p, c->outputs[i]->item, glm_head_row(m, i, c->n, o->rows[0]), at);
    o->sample_ns += (uint64_t)(clock_now_ns() - begin_ns);
    return 0;
}

/* ---- a step ---- */

static bool for_device(const struct outputs *o, const struct plan_item *it)
{
    return o->device && (it->output == PLAN_OUTPUT_SAMPLE || it->output == PLAN_OUTPUT_SCORE);
}

/* Those rows of the step that go this way, in order, a head call at a time. */
static int produce(struct outputs *o, const struct plan *p, bool device, struct comm *comm,
                   struct outputs_cursor *at, struct err *e)
{
    const struct batch *b = o->batch;
    struct outputs_chunk c = {.n = 0};
    int r = 0;
    for (uint32_t i = 0; i != b->n_outputs && r == 0; i++) {
        const struct batch_output *out = &b->outputs[i];
        if (for_device(o, &p->items[out->item]) == device) {
            c.rows[c.n] = out->row;
            c.outputs[c.n++] = out;
        }
        if (c.n == WORKSPACE_HEAD_ROWS || (c.n && i + 1 == b->n_outputs)) {
            r = device ? outputs_take_on_device(o, p, &c, comm, at, e)
                       : take_on_host(o, p, &c, comm, at, e);
            c.n = 0;
        }
    }
    return r;
}

int outputs_produce(struct outputs *o, const struct plan *p, struct comm *comm, struct err *e)
{
    struct outputs_cursor at = {0};
    int r = o->device ? produce(o, p, true, comm, &at, e) : 0;
    return r == 0 ? produce(o, p, false, comm, &at, e) : r;
}
