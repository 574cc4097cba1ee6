/* stream.c: see stream.h. */
#include "coordinator/stream.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/wire_inference.h"

/* One choice, or the blank that grows now. */
struct channel {
    struct token_stream *decoder;
    size_t n_sent; /* tokens */
    bool ended;
    struct buf text; /* of the message that is being made */
};

struct stream {
    /* borrowed */
    const struct tokenizer *tokenizer;
    const struct arch *arch;
    /* owned */
    struct channel *channels; /* [n_channels] */
    /* state */
    uint32_t n_channels;
    uint32_t round; /* Fill: the blank that grows */
    bool return_ids;
    bool started; /* the first message is out */
};

int stream_new(const struct tokenizer *t, const struct arch *a, const struct request *r,
               bool return_ids, struct stream **ret)
{
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->tokenizer = t;
    s->arch = a;
    s->return_ids = return_ids;
    s->n_channels = r->kind == REQUEST_GENERATE ? r->params.n_choices : 1;
    s->channels = alloc_array(s->n_channels, sizeof *s->channels);
    if (!s->channels) {
        free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

void stream_free(struct stream *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i != s->n_channels; i++) {
        token_stream_free(s->channels[i].decoder);
        buf_deinit(&s->channels[i].text);
    }
    free(s->channels);
    free(s);
}

/* ---- text ---- */

static bool has_text(const struct tokenizer *t, int32_t id)
{
    return tokenizer_piece(t, id) != NULL;
}

int stream_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text)
{
    struct token_list kept = {0};
    int r = buf_append(ret_text, "", 0); /* data is a string even when there are no ids */
    for (size_t i = 0; i != n && r == 0; i++) {
        if (has_text(t, ids[i]))
            r = token_list_append(&kept, ids[i]);
    }
    struct err e = ERR_INIT;
    if (r == 0)
        r = tokenizer_decode(t, kept.ids, kept.n, ret_text, &e);
    token_list_deinit(&kept);
    return r;
}

/* Text of tokens [n_sent, n); with `end`, whatever the decoder still holds back. */
static int decode_new(const struct stream *s, struct channel *c, const int32_t *tokens, size_t n,
                      bool end)
{
    struct err e = ERR_INIT;
    int r = buf_append(&c->text, "", 0);
    if (r == 0 && !c->decoder)
        r = token_stream_new(s->tokenizer, &c->decoder);
    for (; r == 0 && c->n_sent != n; c->n_sent++) {
        if (has_text(s->tokenizer, tokens[c->n_sent]))
            r = token_stream_push(c->decoder, tokens[c->n_sent], &c->text, &e);
    }
    if (r == 0 && end)
        r = token_stream_flush(c->decoder, &c->text, &e);
    return r;
}

static enum wire_finish_reason wire_finish(enum finish f)
{
    return f == FINISH_STOP     ? WIRE_FINISH_STOP
           : f == FINISH_LENGTH ? WIRE_FINISH_LENGTH
                                : WIRE_FINISH_UNSPECIFIED;
}

static double seconds(int64_t from_ns, int64_t to_ns)
{
    return from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) / (double)NSEC_PER_SEC : 0;
}

static struct wire_usage usage_of(const struct request *r)
{
    return (struct wire_usage){
        .prompt_tokens = r->n_prompt_tokens,
        .completion_tokens = (uint32_t)MIN(r->n_completion_tokens, (uint64_t)UINT32_MAX),
        .prefill_seconds = seconds(r->arrived_ns, r->first_token_ns),
        .decode_seconds = seconds(r->first_token_ns, r->last_token_ns),
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

static int make_logprobs(const struct stream *s, const struct output *o, size_t from,
                         struct logprob_list *l)
{
    assert(o->tokens.n > from && o->tokens.ids && o->logprobs);
    size_t n = o->tokens.n - from, n_top = 0, at = 0;
    for (size_t i = from; i != o->tokens.n; i++)
        n_top += o->logprobs[i].n_top;
    l->tokens = alloc_array(n, sizeof *l->tokens);
    l->top = alloc_array(n_top, sizeof *l->top);
    if (!l->tokens || !l->top)
        return -ENOMEM;
    for (size_t i = 0; i != n; i++) {
        const struct output_logprob *lp = &o->logprobs[from + i];
        l->tokens[i] = (struct wire_token_logprob){o->tokens.ids[from + i], lp->logprob,
                                                   l->top + at, lp->n_top};
        for (uint32_t k = 0; k != lp->n_top; k++) {
            l->top[at++] = (struct wire_top_logprob){lp->top[k].token, lp->top[k].logprob, NULL};
            int r = append_piece(s->tokenizer, lp->top[k].token, &l->texts);
            if (r < 0)
                return r;
        }
    }
    const char *text = l->texts.data; /* it moves no more */
    for (size_t i = 0; text && i != n_top; i++) {
        l->top[i].text = text;
        text += strlen(text) + 1;
    }
    return 0;
}

/* ---- Generate ---- */

/* What is new of one choice; *ret_any says whether there is something. */
static int choice_delta(struct stream *s, const struct request *r, uint32_t i,
                        struct logprob_list *logprobs, struct wire_choice_delta *d, bool *ret_any)
{
    struct channel *c = &s->channels[i];
    const struct output *o = &r->outputs[i];
    size_t from = c->n_sent;
    bool end = o->finish != FINISH_NONE;
    *ret_any = false;
    if (c->ended || (from == o->tokens.n && !end))
        return 0;
    int code = decode_new(s, c, o->tokens.ids, o->tokens.n, end);
    if (code < 0)
        return code;
    c->ended = end;
    *d = (struct wire_choice_delta){
        .index = i, .text = c->text.data, .finish_reason = wire_finish(o->finish)};
    if (s->return_ids) {
        d->tokens = o->tokens.ids ? o->tokens.ids + from : NULL;
        d->n_tokens = (uint32_t)(o->tokens.n - from);
    }
    if (o->logprobs && r->params.logprobs && o->tokens.n > from) {
        code = make_logprobs(s, o, from, logprobs);
        d->logprobs = logprobs->tokens;
        d->n_logprobs = (uint32_t)(o->tokens.n - from);
    }
    if (r->params.beam) {
        d->has_score = true;
        d->score = o->score;
    }
    *ret_any = c->text.size || d->n_tokens || d->n_logprobs || end;
    return code;
}

static int next_generate(struct stream *s, const struct request *r, struct buf *out)
{
    bool last = r->state == REQUEST_DONE;
    if (r->params.beam && !last)
        return 0;
    uint32_t n = MIN(s->n_channels, r->n_outputs), n_deltas = 0;
    struct wire_choice_delta *deltas = alloc_array(n, sizeof *deltas);
    struct logprob_list *logprobs = alloc_array(n, sizeof *logprobs);
    int code = deltas && logprobs ? 0 : -ENOMEM;
    for (uint32_t i = 0; i != n && code == 0; i++) {
        bool any;
        buf_clear(&s->channels[i].text);
        code = choice_delta(s, r, i, &logprobs[i], &deltas[n_deltas], &any);
        n_deltas += any;
    }
    struct wire_usage usage = usage_of(r);
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
        code = wire_pack_generate_response(&response, out);
    for (uint32_t i = 0; logprobs && i != n; i++)
        logprob_list_deinit(&logprobs[i]);
    free(logprobs);
    free(deltas);
    return code < 0 ? code : any;
}

/* ---- Fill ---- */

static int blank_delta(struct stream *s, uint32_t index, const struct token_list *tokens,
                       enum finish finish, struct buf *text, struct wire_blank_delta *d)
{
    struct channel *c = &s->channels[0];
    size_t from = c->n_sent;
    buf_clear(&c->text);
    int code = decode_new(s, c, tokens->ids, tokens->n, finish != FINISH_NONE);
    if (code == 0)
        code = buf_append(text, c->text.data, c->text.size);
    *d = (struct wire_blank_delta){.index = index, .finish_reason = wire_finish(finish)};
    if (s->return_ids && tokens->n > from) {
        d->tokens = tokens->ids + from;
        d->n_tokens = (uint32_t)(tokens->n - from);
    }
    return code;
}

/* Blanks that have grown: finished rounds that were not told yet, then the one that runs. */
static int blank_deltas(struct stream *s, const struct request *r, struct wire_blank_delta *deltas,
                        struct buf *texts, uint32_t *ret_n)
{
    uint32_t n = 0;
    int code = 0;
    for (; code == 0 && s->round < r->n_rounds; s->round++) {
        const struct fill_round *f = &r->rounds[s->round];
        code = blank_delta(s, s->round, &f->outputs[0], f->finishes[0], &texts[n], &deltas[n]);
        n++;
        token_stream_free(s->channels[0].decoder);
        s->channels[0].decoder = NULL;
        s->channels[0].n_sent = 0;
    }
    bool grows = r->state == REQUEST_RUNNING && r->n_outputs && !r->params.beam;
    if (code == 0 && grows && r->outputs[0].tokens.n > s->channels[0].n_sent) {
        code = blank_delta(s, s->round, &r->outputs[0].tokens, FINISH_NONE, &texts[n], &deltas[n]);
        n += texts[n].size || deltas[n].n_tokens;
    }
    for (uint32_t i = 0; i != n; i++)
        deltas[i].text = texts[i].data;
    *ret_n = n;
    return code;
}

/* The whole text of result i: the last round's sequence with its blank filled by output i. */
static int filled_ids(const struct stream *s, const struct fill_round *last, uint32_t i,
                      struct token_list *ret)
{
    struct token_list sequence = {0};
    int r = token_list_extend(&sequence, last->input.ids, last->input.n - 1); /* without sop */
    if (r == 0)
        r = prompt_apply(&sequence, last->mask_index, last->outputs[i].ids, last->outputs[i].n,
                         ret);
    token_list_deinit(&sequence);
    if (r == 0 && ret->n && ret->ids[ret->n - 1] == s->arch->tokens.eos)
        ret->n--;
    return r;
}

/* Memory of the last message of a Fill. */
struct fill_results {
    uint32_t n, n_rounds;
    struct wire_filled_text *results; /* [n] */
    struct buf *texts;                /* [n] */
    struct token_list *ids;           /* [n] */
    struct buf *blanks;               /* [n, n_rounds] */
    const char **blank_texts;         /* [n, n_rounds] */
    struct wire_fill_call *calls;     /* [n_rounds] */
    struct wire_token_ids *outputs;   /* of all rounds, one after the other */
    struct token_list *sequences;     /* likewise */
    size_t n_sequences;
};

static void fill_results_deinit(struct fill_results *f)
{
    for (uint32_t i = 0; i != f->n; i++) {
        if (f->texts)
            buf_deinit(&f->texts[i]);
        if (f->ids)
            token_list_deinit(&f->ids[i]);
        for (uint32_t k = 0; f->blanks && k != f->n_rounds; k++)
            buf_deinit(&f->blanks[(size_t)i * f->n_rounds + k]);
    }
    for (size_t i = 0; f->sequences && i != f->n_sequences; i++)
        token_list_deinit(&f->sequences[i]);
    free(f->results);
    free(f->texts);
    free(f->ids);
    free(f->blanks);
    free(f->blank_texts);
    free(f->calls);
    free(f->outputs);
    free(f->sequences);
}

static int make_results(const struct stream *s, const struct request *r, struct fill_results *f)
{
    const struct fill_round *last = &r->rounds[r->n_rounds - 1];
    f->n = last->n_outputs;
    f->n_rounds = r->n_rounds;
    size_t n_blanks = (size_t)f->n * f->n_rounds;
    f->results = alloc_array(f->n, sizeof *f->results);
    f->texts = alloc_array(f->n, sizeof *f->texts);
    f->ids = alloc_array(f->n, sizeof *f->ids);
    f->blanks = alloc_array(n_blanks, sizeof *f->blanks);
    f->blank_texts = alloc_array(n_blanks, sizeof *f->blank_texts);
    if (!f->results || !f->texts || !f->ids || !f->blanks || !f->blank_texts)
        return -ENOMEM;
    int code = 0;
    for (uint32_t i = 0; i != f->n && code == 0; i++) {
        code = filled_ids(s, last, i, &f->ids[i]);
        if (code == 0)
            code = stream_decode(s->tokenizer, f->ids[i].ids, f->ids[i].n, &f->texts[i]);
        for (uint32_t k = 0; k != f->n_rounds && code == 0; k++) {
            const struct fill_round *round = &r->rounds[k];
            const struct token_list *answer = &round->outputs[i < round->n_outputs ? i : 0];
            struct buf *text = &f->blanks[(size_t)i * f->n_rounds + k];
            code = stream_decode(s->tokenizer, answer->ids, answer->n, text);
            f->blank_texts[(size_t)i * f->n_rounds + k] = text->data;
        }
        f->results[i] = (struct wire_filled_text){
            .text = f->texts[i].data,
            .blanks = f->blank_texts + (size_t)i * f->n_rounds,
            .n_blanks = f->n_rounds,
            .tokens = s->return_ids ? f->ids[i].ids : NULL,
            .n_tokens = s->return_ids ? (uint32_t)f->ids[i].n : 0,
            .has_score = r->params.beam,
            .score = last->scores[i],
        };
    }
    return code;
}

/* Input and input + output of every call, as the published server would log them. */
static int make_calls(const struct request *r, struct fill_results *f)
{
    for (uint32_t k = 0; k != f->n_rounds; k++)
        f->n_sequences += r->rounds[k].n_outputs;
    f->calls = alloc_array(f->n_rounds, sizeof *f->calls);
    f->outputs = alloc_array(f->n_sequences, sizeof *f->outputs);
    f->sequences = alloc_array(f->n_sequences, sizeof *f->sequences);
    if (!f->calls || !f->outputs || !f->sequences)
        return -ENOMEM;
    size_t at = 0;
    for (uint32_t k = 0; k != f->n_rounds; k++) {
        const struct fill_round *round = &r->rounds[k];
        f->calls[k] = (struct wire_fill_call){
            .input = round->input.ids,
            .n_input = (uint32_t)round->input.n,
            .outputs = f->outputs + at,
            .n_outputs = round->n_outputs,
        };
        for (uint32_t i = 0; i != round->n_outputs; i++, at++) {
            struct token_list *l = &f->sequences[at];
            if (token_list_extend(l, round->input.ids, round->input.n) < 0 ||
                token_list_extend(l, round->outputs[i].ids, round->outputs[i].n) < 0 ||
                (round->end_tokens[i] >= 0 && token_list_append(l, round->end_tokens[i]) < 0))
                return -ENOMEM;
            f->outputs[at] = (struct wire_token_ids){l->ids, (uint32_t)l->n};
        }
    }
    return 0;
}

static int next_fill(struct stream *s, const struct request *r, struct buf *out)
{
    bool last = r->state == REQUEST_DONE;
    uint32_t n_deltas = 0, max_deltas = r->n_rounds - s->round + 1;
    struct wire_blank_delta *deltas = alloc_array(max_deltas, sizeof *deltas);
    struct buf *texts = alloc_array(max_deltas, sizeof *texts);
    struct fill_results f = {0};
    int code = deltas && texts ? 0 : -ENOMEM;
    if (code == 0)
        code = blank_deltas(s, r, deltas, texts, &n_deltas);
    if (code == 0 && last)
        code = make_results(s, r, &f);
    if (code == 0 && last && s->return_ids)
        code = make_calls(r, &f);
    struct wire_usage usage = usage_of(r);
    struct wire_fill_response response = {
        .blanks = deltas,
        .n_blanks = n_deltas,
        .results = f.results,
        .n_results = f.n,
        .calls = f.calls,
        .n_calls = f.calls ? f.n_rounds : 0,
        .usage = last ? &usage : NULL,
        .has_seed = !s->started,
        .seed = r->params.seed,
        .request_id = s->started ? "" : r->client_id,
    };
    bool any = n_deltas || last;
    if (code == 0 && any)
        code = wire_pack_fill_response(&response, out);
    fill_results_deinit(&f);
    for (uint32_t i = 0; texts && i != max_deltas; i++)
        buf_deinit(&texts[i]);
    free(texts);
    free(deltas);
    return code < 0 ? code : any;
}

/* ---- Score ---- */

static int next_score(const struct request *r, struct buf *out)
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
    struct wire_usage usage = usage_of(r);
    struct wire_score_response response = {
        .choices = scores, .n_choices = r->n_outputs, .best = best, .usage = &usage};
    int code = wire_pack_score_response(&response, out);
    free(scores);
    return code < 0 ? code : 1;
}

int stream_next(struct stream *s, const struct request *r, struct buf *out)
{
    assert(r->state != REQUEST_DONE || r->status == RPC_OK);
    if (r->state == REQUEST_NEW || r->state == REQUEST_QUEUED)
        return 0;
    int code = r->kind == REQUEST_GENERATE ? next_generate(s, r, out)
               : r->kind == REQUEST_FILL   ? next_fill(s, r, out)
                                           : next_score(r, out);
    if (code == 1)
        s->started = true;
    return code;
}
