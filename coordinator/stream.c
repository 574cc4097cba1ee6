/* stream.c: see stream.h. Generate, Score, and what they share with stream_fill.c. */
#include "coordinator/stream.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/stream_internal.h"

/* 83 fields each at most: together far below what a message may have (proto/rpc/wire_scan.h). */
enum { PROMPT_TOKENS_PER_MESSAGE = 256 };

/* A sampled output has a token more, or an end: what of its text is settled, and does it stop? */
static int look(void *context, struct request *r, uint32_t output)
{
    struct stream *s = context;
    struct output *o = &r->outputs[output];
    const struct request_params *p = &r->params;
    struct stream_text *x = r->kind == REQUEST_FILL ? stream_blank(s, r->round) : &s->texts[output];
    if (!x)
        return -ENOMEM;
    bool end = o->finish != FINISH_NONE;
    int code = stream_text_push(x, s->tokenizer, p->stops, o->tokens.ids, o->tokens.n, end);
    struct stop_match m;
    if (code < 0 || !stream_text_find(x, p->stops, o->tokens.n < p->min_tokens, &m))
        return code;
    size_t n_keep = stream_text_cut(x, p->include_stop ? m.end : m.begin);
    output_stop(o, n_keep, m.index);
    if (r->kind != REQUEST_FILL)
        return 0;
    assert(!o->logprobs);
    /* The next blank's prompt holds the tokens: they must say what the text says. */
    struct token_list exact = {0};
    code = stream_text_encode(x, s->tokenizer, o->tokens.ids, &exact);
    if (code < 0) {
        token_list_deinit(&exact);
        return code;
    }
    token_list_deinit(&o->tokens);
    o->tokens = exact;
    return 0;
}

int stream_new(const struct tokenizer *t, const struct arch *a, struct request *r, bool return_ids,
               struct stream **ret)
{
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->tokenizer = t;
    s->arch = a;
    s->return_ids = return_ids;
    s->n_texts = r->kind == REQUEST_GENERATE ? r->params.n_choices : 0;
    s->texts = alloc_array(s->n_texts, sizeof *s->texts);
    if (!s->texts) {
        free(s);
        return -ENOMEM;
    }
    if (r->params.stops) {
        r->watch = look;
        r->watch_context = s;
    }
    *ret = s;
    return 0;
}

void stream_free(struct stream *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i != s->n_texts; i++)
        stream_text_deinit(&s->texts[i]);
    free(s->texts);
    free(s);
}

enum wire_finish_reason stream_finish(enum finish f)
{
    return f == FINISH_STOP     ? WIRE_FINISH_STOP
           : f == FINISH_LENGTH ? WIRE_FINISH_LENGTH
                                : WIRE_FINISH_UNSPECIFIED;
}

static double seconds(int64_t from_ns, int64_t to_ns)
{
    return from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) / (double)NSEC_PER_SEC : 0;
}

struct wire_usage stream_usage(const struct stream *s, const struct request *r)
{
    return (struct wire_usage){
        .prompt_tokens = r->n_prompt_tokens,
        .completion_tokens = (uint32_t)MIN(r->n_completion_tokens, (uint64_t)UINT32_MAX),
        .prefill_seconds = seconds(r->arrived_ns, r->first_token_ns),
        .decode_seconds = seconds(r->first_token_ns, r->last_token_ns),
        .scored_tokens = s->n_scored,
        .cached_tokens = r->n_cached_tokens,
    };
}

/* ---- log-probabilities ---- */

/* Owned by one message: the structs, and the texts they point to. */
struct logprob_list {
    struct wire_token_logprob *tokens;
    struct wire_top_logprob *top;
    struct buf texts;
};

static void logprob_list_deinit(struct logprob_list *l)
{
    free(l->tokens);
    free(l->top);
    buf_deinit(&l->texts);
}

/* The piece as it reads inside a text: the word mark is a space. NUL-terminated. */
static int append_piece(const struct tokenizer *t, int32_t id, struct buf *text)
{
    const char *p = tokenizer_piece(t, id);
    int r = 0;
    for (; r == 0 && p && *p; p++) {
        bool mark = strncmp(p, "\xe2\x96\x81", 3) == 0;
        r = mark ? buf_append(text, " ", 1) : buf_append(text, p, 1);
        p += mark ? 2 : 0;
    }
    return r == 0 ? buf_append(text, "", 1) : r;
}

/* Texts of the best tokens, once the buffer moves no more. */
static void set_texts(struct logprob_list *l, size_t n_top)
{
    const char *text = l->texts.data;
    for (size_t i = 0; text && i != n_top; i++) {
        l->top[i].text = text;
        text += strlen(text) + 1;
    }
}

static int allocate_logprobs(struct logprob_list *l, size_t n, size_t n_top)
{
    l->tokens = alloc_array(n, sizeof *l->tokens);
    l->top = alloc_array(n_top, sizeof *l->top);
    return l->tokens && l->top ? 0 : -ENOMEM;
}

/* Of the tokens [from, from + n) of an output, the one behind the last of them its end token. */
static int make_logprobs(const struct stream *s, const struct output *o, size_t from, size_t n,
                         struct logprob_list *l)
{
    size_t n_top = 0, at = 0;
    for (size_t i = 0; i != n; i++)
        n_top += o->logprobs[from + i].n_top;
    int r = allocate_logprobs(l, n, n_top);
    for (size_t i = 0; i != n && r == 0; i++) {
        const struct output_logprob *lp = &o->logprobs[from + i];
        int32_t id = from + i < o->tokens.n ? o->tokens.ids[from + i] : o->end_token;
        l->tokens[i] = (struct wire_token_logprob){id, lp->logprob, l->top + at, lp->n_top};
        for (uint32_t k = 0; k != lp->n_top && r == 0; k++) {
            l->top[at++] = (struct wire_top_logprob){lp->top[k].token, lp->top[k].logprob, NULL};
            r = append_piece(s->tokenizer, lp->top[k].token, &l->texts);
        }
    }
    set_texts(l, n_top);
    return r;
}

/* ---- Generate ---- */

static double mean_logprob(const struct output *o)
{
    return o->n_sampled ? o->logprob_sum / o->n_sampled : 0;
}

/* Owned by one message: what is new of one choice. */
struct choice_part {
    struct buf text;
    struct logprob_list logprobs;
};

/* What is new of output i; *ret_any says whether there is something. */
static int choice_delta(struct stream *s, const struct request *r, uint32_t i,
                        struct choice_part *part, struct wire_choice_delta *d, bool *ret_any)
{
    struct stream_text *x = &s->texts[i];
    const struct output *o = &r->outputs[i];
    const struct stop_set *stops = r->params.stops;
    bool end = o->finish != FINISH_NONE;
    *ret_any = false;
    if (x->told_end)
        return 0;
    int code = stream_text_push(x, s->tokenizer, stops, o->tokens.ids, o->tokens.n, end);
    if (code < 0)
        return code;
    size_t from = x->n_sent_tokens, bytes = stream_text_bytes(x, stops);
    size_t n = stream_text_tokens(x, stops) - from;
    code = buf_append(&part->text, x->text.data + x->n_sent_bytes, bytes - x->n_sent_bytes);
    *d = (struct wire_choice_delta){
        .index = i,
        .text = part->text.data,
        .finish_reason = stream_finish(o->finish),
        .stop = o->stop >= 0 ? stop_set_text(stops, (uint32_t)o->stop) : "",
        .has_stop_token = o->end_token >= 0,
        .stop_token = o->end_token,
        .has_score = r->params.beam || r->params.n_best,
        .score = r->params.beam ? o->score : mean_logprob(o),
    };
    if (s->return_ids && n) {
        d->tokens = o->tokens.ids + from;
        d->n_tokens = (uint32_t)n;
    }
    bool with_end = end && o->has_end_logprob;
    if (code == 0 && o->logprobs && r->params.logprobs && (n || with_end)) {
        assert(!with_end || from + n == o->tokens.n);
        code = make_logprobs(s, o, from, n + with_end, &part->logprobs);
        d->logprobs = part->logprobs.tokens;
        d->n_logprobs = (uint32_t)n;
        d->stop_logprob = with_end ? &part->logprobs.tokens[n] : NULL;
    }
    x->n_sent_bytes = bytes;
    x->n_sent_tokens += n;
    x->told_end = end;
    *ret_any = part->text.size || d->n_tokens || d->n_logprobs || end;
    return code;
}

/* best_of: the outputs with the greatest means, best first; equal ones in their order. */
static void order_outputs(const struct request *r, uint32_t order[REQUEST_MAX_CHOICES])
{
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        double mean = mean_logprob(&r->outputs[i]);
        uint32_t at = i;
        for (; at && mean > mean_logprob(&r->outputs[order[at - 1]]); at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

/* What is new of all choices. */
static int choice_deltas(struct stream *s, const struct request *r, uint32_t n,
                         struct choice_part *parts, struct wire_choice_delta *deltas,
                         uint32_t *ret_n)
{
    uint32_t order[REQUEST_MAX_CHOICES];
    uint32_t n_best = r->params.n_best;
    int code = 0;
    if (n_best) {
        order_outputs(r, order);
        n = MIN(n, n_best);
    }
    for (uint32_t i = 0; i != n && code == 0; i++) {
        struct wire_choice_delta *d = &deltas[*ret_n];
        bool any;
        code = choice_delta(s, r, n_best ? order[i] : i, &parts[i], d, &any);
        d->index = i;
        *ret_n += any;
    }
    return code;
}

static int next_generate(struct stream *s, const struct request *r, stream_take *take,
                         void *context)
{
    bool last = r->state == REQUEST_DONE;
    if ((r->params.beam || r->params.n_best) && !last)
        return 0;
    uint32_t n = MIN(s->n_texts, r->n_outputs), n_deltas = 0;
    struct wire_choice_delta *deltas = alloc_array(n, sizeof *deltas);
    struct choice_part *parts = alloc_array(n, sizeof *parts);
    int code = deltas && parts ? 0 : -ENOMEM;
    if (code == 0)
        code = choice_deltas(s, r, n, parts, deltas, &n_deltas);
    struct wire_usage usage = stream_usage(s, r);
    struct wire_generate_response response = {
        .choices = deltas,
        .n_choices = n_deltas,
        .usage = last ? &usage : NULL,
        .has_seed = !s->started,
        .seed = r->params.seed,
        .request_id = s->started ? "" : r->client_id,
    };
    bool any = n_deltas || last;
    if (code == 0 && any)
        code = take(context, &(struct stream_message){.generate = &response});
    for (uint32_t i = 0; parts && i != n; i++) {
        buf_deinit(&parts[i].text);
        logprob_list_deinit(&parts[i].logprobs);
    }
    free(parts);
    free(deltas);
    return code < 0 ? code : any;
}

/* ---- log-probabilities of a prompt ---- */

/* Of the tokens [from, from + n) of a scored input. */
static int make_prompt_logprobs(const struct stream *s, const struct request *r, uint32_t from,
                                uint32_t n, struct logprob_list *l)
{
    const struct output *o = &r->outputs[0];
    uint32_t n_top = o->best_tokens ? r->params.n_top_logprobs : 0;
    int code = allocate_logprobs(l, n, (size_t)n * n_top);
    for (uint32_t i = 0; i != n && code == 0; i++) {
        struct wire_top_logprob *top = l->top + (size_t)i * n_top;
        l->tokens[i] =
            (struct wire_token_logprob){o->target[from + i], o->token_scores[from + i], top, n_top};
        for (uint32_t k = 0; k != n_top && code == 0; k++) {
            size_t at = (size_t)(from + i) * n_top + k;
            top[k] = (struct wire_top_logprob){o->best_tokens[at], o->best_logprobs[at], NULL};
            code = append_piece(s->tokenizer, o->best_tokens[at], &l->texts);
        }
    }
    set_texts(l, (size_t)n * n_top);
    return code;
}

int stream_prompt(struct stream *s, const struct request *scored, const struct request *next,
                  stream_take *take, void *context)
{
    assert(scored->state == REQUEST_DONE && scored->status == RPC_OK);
    uint32_t from = s->n_scored, n_all = scored->outputs[0].n_target;
    uint32_t n = MIN(n_all - from, (uint32_t)PROMPT_TOKENS_PER_MESSAGE);
    if (n == 0)
        return 0;
    struct logprob_list logprobs = {0};
    int code = make_prompt_logprobs(s, scored, from, n, &logprobs);
    s->n_scored += n;
    struct wire_usage usage = stream_usage(s, scored);
    usage.completion_tokens = 0; /* nothing was generated */
    struct wire_generate_response response = {
        .usage = next || s->n_scored != n_all ? NULL : &usage,
        .has_seed = next && !s->started,
        .seed = next ? next->params.seed : 0,
        .request_id = s->started ? "" : scored->client_id,
        .prompt_logprobs = logprobs.tokens,
        .n_prompt_logprobs = n,
    };
    if (code == 0)
        code = take(context, &(struct stream_message){.generate = &response});
    logprob_list_deinit(&logprobs);
    s->started = true;
    return code < 0 ? code : 1;
}

/* ---- Score ---- */

static int next_score(const struct stream *s, const struct request *r, stream_take *take,
                      void *context)
{
    if (r->state != REQUEST_DONE)
        return 0;
    struct wire_choice_score *scores = alloc_array(r->n_outputs, sizeof *scores);
    if (!scores)
        return -ENOMEM;
    uint32_t best = 0;
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        const struct output *o = &r->outputs[i];
        scores[i] = (struct wire_choice_score){o->score, o->token_scores, o->n_target};
        if (o->score > r->outputs[best].score)
            best = i;
    }
    struct wire_usage usage = stream_usage(s, r);
    struct wire_score_response response = {
        .choices = scores, .n_choices = r->n_outputs, .best = best, .usage = &usage};
    int code = take(context, &(struct stream_message){.score = &response});
    free(scores);
    return code < 0 ? code : 1;
}

int stream_next(struct stream *s, const struct request *r, stream_take *take, void *context)
{
    assert(r->state != REQUEST_DONE || r->status == RPC_OK);
    if (r->state == REQUEST_NEW || r->state == REQUEST_QUEUED)
        return 0;
    int code = r->kind == REQUEST_GENERATE ? next_generate(s, r, take, context)
               : r->kind == REQUEST_FILL   ? stream_next_fill(s, r, take, context)
                                           : next_score(s, r, take, context);
    if (code == 1)
        s->started = true;
    return code;
}

int stream_pack(void *buf, const struct stream_message *m)
{
    struct buf *out = buf;
    return m->generate ? wire_pack_generate_response(m->generate, out)
           : m->fill   ? wire_pack_fill_response(m->fill, out)
                       : wire_pack_score_response(m->score, out);
}
