/* sample.c: sampling on the device, the host's half: rows' parameters go there in one copy, results
 * come back in one. Lists are put in order here, so that the kernels need none. */
#include "kernels/cuda/sample.h"
#include "kernels/cuda/cuda.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct k_sampler {
    struct k_sampler_params params;
    struct sample_layout layout;
    /* owned */
    char *stage;                     /* page-locked [layout.stage_bytes] */
    struct k_sample_result *results; /* page-locked [max_rows] */
    char *device;                    /* [layout.end] */
    struct CUevent_st *copied;       /* the stage may be written again */
    uint32_t *seen;                  /* [vocab] zeros between calls */
    /* state */
    uint32_t n_rows; /* of the last begin */
    bool in_flight;  /* its parameters, for all that is known */
};

static void destroy(struct k_ctx *c, struct k_sampler *s)
{
    if (!s)
        return;
    cuda_enter(c);
    if (s->stage)
        (void)c->driver->free_host(s->stage);
    if (s->results)
        (void)c->driver->free_host(s->results);
    if (s->copied)
        (void)c->driver->event_free(s->copied);
    cuda_free(c, s->device);
    free(s->seen);
    free(s);
}

static struct k_sampler *create(struct k_ctx *c, const struct k_sampler_params *p)
{
    assert(p->max_rows && p->vocab && p->vocab <= SAMPLING_MAX_VOCAB);
    assert(p->n_ranks <= SAMPLE_MAX_PARTS && (p->n_ranks < 2 || p->vocab % p->n_ranks == 0));
    struct k_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->params = *p;
    sample_layout_of(p, &s->layout);
    s->seen = calloc(p->vocab, sizeof *s->seen);
    void *stage = NULL, *results = NULL;
    cuda_enter(c);
    int e = c->driver->alloc_host(&stage, s->layout.stage_bytes);
    if (!e)
        e = c->driver->alloc_host(&results, p->max_rows * sizeof *s->results);
    s->stage = stage;
    s->results = results;
    if (!e)
        e = c->driver->event_new(&s->copied);
    if (e)
        (void)c->driver->last_error(); /* the caller hears of it */
    s->device = e ? NULL : cuda_new(c, s->layout.end);
    if (!s->device || !s->seen) {
        destroy(c, s);
        return NULL;
    }
    return s;
}

/* ---- a row's parameters ---- */

/* Where lists are written: words of the stage, behind the rows. */
struct writer {
    uint32_t *words;
    uint32_t n, cap;
};

static uint32_t *take(struct writer *w, uint32_t n_entries, uint32_t words_each,
                      struct sample_list *ret)
{
    *ret = (struct sample_list){w->n, n_entries};
    w->n += n_entries * words_each;
    assert(w->n <= w->cap);
    return w->words + ret->at;
}

static void put_pair(uint32_t *to, uint32_t i, uint32_t a, const void *b)
{
    to[2 * i] = a;
    memcpy(&to[2 * i + 1], b, sizeof *to);
}

/* Equal tokens side by side, in the order in which they came: for each token, the first time that
 * it comes, all of its entries. */
static void write_bias(struct k_sampler *s, const struct k_sample_row *r, struct writer *w,
                       struct sample_list *ret)
{
    uint32_t *to = take(w, r->n_bias, 2, ret);
    bool repeats = false;
    for (uint32_t i = 0; i < r->n_bias; i++)
        repeats |= s->seen[r->bias[i].token]++ != 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_bias; i++) {
        uint32_t token = (uint32_t)r->bias[i].token;
        uint32_t n_left = repeats ? s->seen[token] : 1;
        for (uint32_t j = i; n_left && j < r->n_bias; j++) {
            if (r->bias[j].token != r->bias[i].token)
                continue;
            put_pair(to, n++, token, &r->bias[j].bias);
            n_left--;
        }
        s->seen[token] = 0;
    }
    assert(n == r->n_bias);
}

static bool penalizes(const struct k_sample_row *r)
{
    return (r->repetition != 0.0f && r->repetition != 1.0f) || r->presence != 0.0f ||
           r->frequency != 0.0f;
}

/* Every token of the history once, with the times that it stands in the output. */
static void write_penalties(struct k_sampler *s, const struct k_sample_row *r, struct writer *w,
                            struct sample_list *ret)
{
    *ret = (struct sample_list){0};
    if (!penalizes(r))
        return;
    const uint32_t n = r->n_history + (r->previous >= 0);
    uint32_t *to = take(w, n, 2, ret);
    uint32_t n_found = 0;
    for (uint32_t i = 0; i < n; i++) {
        int32_t token = i < r->n_history ? r->history[i] : r->previous;
        if (!s->seen[token]) { /* its place in the list, from 1 */
            uint32_t zero = 0;
            put_pair(to, n_found++, (uint32_t)token, &zero);
            s->seen[token] = n_found;
        }
        to[2 * (s->seen[token] - 1) + 1] += i >= r->n_history_prompt;
    }
    for (uint32_t i = 0; i < n_found; i++)
        s->seen[to[2 * i]] = 0;
    w->n -= 2 * (n - n_found);
    ret->n = n_found;
}

static void write_forbidden(const struct k_sample_row *r, struct writer *w, struct sample_row *ret)
{
    uint32_t *to = take(w, r->n_forbidden, 2, &ret->forbidden);
    for (uint32_t i = 0; i < r->n_forbidden; i++)
        put_pair(to, i, (uint32_t)r->forbidden[i].begin, &r->forbidden[i].end);
    to = take(w, r->n_banned, 1, &ret->banned);
    if (r->n_banned)
        memcpy(to, r->banned, r->n_banned * sizeof *to);
}

static struct sample_row write_row(struct k_sampler *s, const struct k_sample_row *r, bool in_shard,
                                   struct writer *w)
{
    const struct k_sampler_params *most = &s->params;
    assert(r->n_top <= K_SAMPLE_MAX_TOP && r->n_top <= most->vocab);
    struct sample_row row = {.target = r->target, .n_top = r->n_top};
    if (r->score) {
        assert(r->target >= 0 && (uint32_t)r->target < most->vocab);
        row.kind = SAMPLE_SCORE;
        return row;
    }
    assert(r->n_history <= most->max_history && r->n_history_prompt <= r->n_history &&
           r->n_bias <= most->max_bias && r->n_forbidden <= most->max_forbidden &&
           r->n_banned <= most->max_banned && r->temperature > 0.0f);
    row.kind = r->top_k == 1 ? SAMPLE_GREEDY : SAMPLE_DRAW;
    row.temperature = row.kind == SAMPLE_GREEDY ? 1.0f : r->temperature;
    if (row.kind == SAMPLE_DRAW) {
        row.top_k = r->top_k < most->vocab ? r->top_k : 0;
        row.top_p = r->top_p < 1.0f ? r->top_p : 0.0f;
        row.least = r->min_p > 0.0f ? sampling_fixed(r->min_p) : 0;
        row.seed = r->seed;
        memcpy(row.counter, r->counter, sizeof row.counter);
    }
    row.n_best = row.top_k;
    if (in_shard)
        row.n_best = row.top_k || row.top_p != 0.0f ? k_sampler_candidates(most) + 1 : 0;
    row.repetition = r->repetition;
    row.frequency = r->frequency;
    row.presence = r->presence;
    write_bias(s, r, w, &row.bias);
    write_penalties(s, r, w, &row.penalties);
    write_forbidden(r, w, &row);
    return row;
}

static void note_needs(const struct sample_row *row, struct sample_needs *ret)
{
    ret->draw |= row->kind == SAMPLE_DRAW;
    ret->rank |= row->top_k != 0;
    ret->mass |= row->top_p != 0.0f;
    ret->top |= row->n_top != 0;
    ret->cut |= row->n_best != 0;
}

/* ---- a call ---- */

static void *buffer(struct k_sampler *s)
{
    return s->device + s->layout.logits;
}

static void put(struct k_ctx *c, struct k_sampler *s, size_t at, const float *logits, size_t n)
{
    assert(at + n <= (size_t)s->params.buffer_rows * s->params.vocab);
    cuda_upload_bytes(c, (float *)buffer(s) + at, logits, n * sizeof *logits);
}

/* The parameters of all rows to the device; rows from n_rows to n_padded are nobody's. */
static struct sample_needs send_rows(struct k_ctx *c, struct k_sampler *s,
                                     const struct k_sample_row *rows, uint32_t n_rows,
                                     uint32_t n_padded, bool in_shard)
{
    cuda_enter(c);
    if (s->in_flight)
        cuda_check(c, c->driver->event_wait(s->copied), "the sampling before");
    const size_t rows_bytes = n_padded * sizeof(struct sample_row);
    struct sample_row *to = (struct sample_row *)s->stage;
    struct writer w = {.words = (uint32_t *)(s->stage + rows_bytes),
                       .cap = (uint32_t)((s->layout.stage_bytes - rows_bytes) / sizeof(uint32_t))};
    struct sample_needs needs = {0};
    for (uint32_t i = 0; i < n_rows; i++) {
        to[i] = write_row(s, &rows[i], in_shard, &w);
        note_needs(&to[i], &needs);
    }
    for (uint32_t i = n_rows; i < n_padded; i++)
        to[i] = (struct sample_row){.kind = SAMPLE_NONE};
    const size_t bytes = rows_bytes + w.n * sizeof *w.words;
    cuda_check(c, c->driver->copy(s->device, s->stage, bytes, c->stream), "sampling parameters");
    cuda_check(c, c->driver->event_record(s->copied, c->stream), "sampling parameters");
    s->in_flight = true;
    s->n_rows = n_rows;
    return needs;
}

/* Where everything lies, for logits in n_parts of `cols` each, and n_rows as they were sent, with
 * the padding. ranks NULL: alone. */
static struct sample_params places(const struct k_sampler *s, const struct k_sample_ranks *ranks,
                                   float *logits, uint32_t n_parts, uint32_t cols, uint32_t n_rows)
{
    const struct sample_layout *l = &s->layout;
    const uint32_t part_tiles = (cols + SAMPLE_TILE - 1) / SAMPLE_TILE;
    return (struct sample_params){
        .rows = (const struct sample_row *)s->device,
        .lists = (const uint32_t *)(s->device + n_rows * sizeof(struct sample_row)),
        .states = (struct sample_state *)(s->device + l->states),
        .results = (struct k_sample_result *)(s->device + l->results),
        .logits = logits,
        .values = (float *)(s->device + l->values),
        .tiles = (struct sample_share *)(s->device + l->tiles),
        .tops = (uint64_t *)(s->device + l->tops),
        .n_rows = n_rows,
        .n_parts = n_parts,
        .cols = cols,
        .n_ids = n_parts * cols,
        .first_id = ranks ? ranks->rank * cols : 0,
        .rank = ranks ? ranks->rank : 0,
        .n_ranks = ranks ? ranks->size : 1,
        .n_candidates = k_sampler_candidates(&s->params),
        .part_tiles = part_tiles,
        .n_tiles = part_tiles * n_parts,
    };
}

static void place_exchanges(const struct k_sampler *s, const struct sample_needs *needs,
                            struct sample_params *p)
{
    const struct sample_layout *l = &s->layout;
    for (int i = 0; i < SAMPLE_EXCHANGES; i++) {
        p->own[i] = s->device + l->own[i];
        p->all[i] = p->n_ranks > 1 ? s->device + l->all[i] : p->own[i];
        p->bytes[i] =
            sample_exchange_bytes(i, p->n_rows, needs->cut ? p->n_candidates : 0, needs->top);
    }
}

/* All kernels, with what ranks tell each other in between. */
static void enqueue(struct k_ctx *c, struct k_sampler *s, struct sample_params *p,
                    const struct sample_needs *needs, const struct k_sample_ranks *ranks)
{
    const struct sample_layout *l = &s->layout;
    place_exchanges(s, needs, p);
    const size_t cleared = l->states - l->cleared + p->n_rows * sizeof *p->states;
    cuda_check(c, c->driver->clear(s->device + l->cleared, cleared, c->stream), "sampling");
    for (int i = 0; i <= SAMPLE_EXCHANGES; i++) {
        if (i == SAMPLE_SHARES && !needs->draw)
            continue;
        cuda_check(c, sample_launch(p, needs, i, c->stream), "sampling");
        if (ranks && i < SAMPLE_EXCHANGES)
            ranks->gather(ranks->context, p->own[i], p->bytes[i], (char *)p->all[i]);
    }
    cuda_check(c,
               c->driver->copy(s->results, p->results, p->n_rows * sizeof *s->results, c->stream),
               "sampled tokens");
}

static void begin(struct k_ctx *c, struct k_sampler *s, void *logits, uint32_t n_parts,
                  uint32_t part_rows, uint32_t first, const struct k_sample_row *rows,
                  uint32_t n_rows)
{
    assert(n_rows && n_rows <= k_sampler_whole_rows(&s->params) && first + n_rows <= part_rows);
    assert(n_parts && n_parts <= SAMPLE_MAX_PARTS && s->params.vocab % n_parts == 0);
    const struct sample_needs needs = send_rows(c, s, rows, n_rows, n_rows, false);
    const uint32_t cols = s->params.vocab / n_parts;
    struct sample_params p =
        places(s, NULL, (float *)logits + (size_t)first * cols, n_parts, cols, n_rows);
    p.part_rows = part_rows;
    enqueue(c, s, &p, &needs, NULL);
}

/* Of n_padded rows that were sent; ranks NULL: alone. */
static void enqueue_own(struct k_ctx *c, struct k_sampler *s, const struct k_sample_ranks *ranks,
                        void *logits, uint32_t n_padded, const struct sample_needs *needs)
{
    const uint32_t size = ranks ? ranks->size : 1;
    assert(size == (s->params.n_ranks > 1 ? s->params.n_ranks : 1));
    assert(!ranks || ranks->rank < size);
    struct sample_params p = places(s, ranks, logits, 1, s->params.vocab / size, n_padded);
    p.part_rows = n_padded;
    enqueue(c, s, &p, needs, ranks);
}

static void begin_shard(struct k_ctx *c, struct k_sampler *s, const struct k_sample_ranks *ranks,
                        void *logits, const struct k_sample_row *rows, uint32_t n_rows)
{
    assert(n_rows && n_rows <= s->params.max_rows && ranks->size > 1);
    const struct sample_needs needs = send_rows(c, s, rows, n_rows, n_rows, true);
    enqueue_own(c, s, ranks, logits, n_rows, &needs);
}

/* ---- a call in two halves ---- */

/* Few kinds, so that few records are kept: what rows choose by, and whether any shows the best
 * tokens. A kernel that no row needs costs its launch. */
enum launch_kind { LAUNCH_GREEDY = 1, LAUNCH_DRAW, LAUNCH_ALL, LAUNCH_KINDS };

static const struct sample_needs launch_needs[LAUNCH_KINDS] = {
    [LAUNCH_GREEDY] = {0},
    [LAUNCH_DRAW] = {.draw = true, .rank = true, .mass = true, .cut = true},
    [LAUNCH_ALL] = {.draw = true, .rank = true, .mass = true, .cut = true, .top = true},
};

static uint32_t send(struct k_ctx *c, struct k_sampler *s, const struct k_sample_row *rows,
                     uint32_t n_rows, uint32_t n_padded)
{
    assert(n_rows && n_rows <= n_padded && n_padded <= s->params.max_rows);
    const struct sample_needs needs =
        send_rows(c, s, rows, n_rows, n_padded, s->params.n_ranks > 1);
    return needs.top ? LAUNCH_ALL : needs.draw ? LAUNCH_DRAW : LAUNCH_GREEDY;
}

static void launch(struct k_ctx *c, struct k_sampler *s, const struct k_sample_ranks *ranks,
                   void *logits, uint32_t n_padded, uint32_t kind)
{
    assert(kind && kind < LAUNCH_KINDS && n_padded <= s->params.max_rows);
    cuda_enter(c);
    enqueue_own(c, s, ranks, logits, n_padded, &launch_needs[kind]);
}

static void end(struct k_ctx *c, struct k_sampler *s, struct k_sample_result *ret)
{
    cuda_enter(c);
    cuda_wait(c, "sampled tokens");
    s->in_flight = c->error != 0;
    memcpy(ret, s->results, s->n_rows * sizeof *ret);
}

const struct k_sample_ops cuda_sample_ops = {
    .create = create,
    .destroy = destroy,
    .buffer = buffer,
    .put = put,
    .begin = begin,
    .begin_shard = begin_shard,
    .send = send,
    .launch = launch,
    .end = end,
};
