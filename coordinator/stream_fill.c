/* stream_fill.c: the messages of a Fill: blanks as they grow, the filled texts at the end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/stream_internal.h"

struct stream_text *stream_blank(struct stream *s, uint32_t index)
{
    if (index >= s->n_texts) {
        struct stream_text *texts = realloc(s->texts, (index + 1) * sizeof *texts);
        if (!texts)
            return NULL;
        memset(texts + s->n_texts, 0, (index + 1 - s->n_texts) * sizeof *texts);
        s->texts = texts;
        s->n_texts = index + 1;
    }
    return &s->texts[index];
}

/* ---- blanks ---- */

/* What is new of a blank that has these tokens by now. */
static int blank_delta(struct stream *s, const struct request *r, uint32_t index,
                       const struct token_list *tokens, bool end, struct buf *text,
                       struct wire_blank_delta *d)
{
    struct stream_text *x = stream_blank(s, index);
    if (!x)
        return -ENOMEM;
    const struct stop_set *stops = r->params.stops;
    int code = stream_text_push(x, s->tokenizer, stops, tokens->ids, tokens->n, end);
    if (code < 0)
        return code;
    size_t bytes = stream_text_bytes(x, stops);
    size_t n = end ? tokens->n : stream_text_tokens(x, stops);
    *d = (struct wire_blank_delta){.index = index};
    if (s->return_ids && n > x->n_sent_tokens) {
        d->tokens = tokens->ids + x->n_sent_tokens;
        d->n_tokens = (uint32_t)(n - x->n_sent_tokens);
    }
    code = buf_append(text, x->text.data + x->n_sent_bytes, bytes - x->n_sent_bytes);
    x->n_sent_bytes = bytes;
    x->n_sent_tokens = n;
    return code;
}

/* A blank whose round is over. */
static int ended_blank(struct stream *s, const struct request *r, uint32_t index, struct buf *text,
                       struct wire_blank_delta *d)
{
    const struct fill_round *f = &r->rounds[index];
    int code = blank_delta(s, r, index, &f->outputs[0], true, text, d);
    d->finish_reason = stream_finish(f->finishes[0]);
    d->stop = f->stops[0] >= 0 ? stop_set_text(r->params.stops, (uint32_t)f->stops[0]) : "";
    d->has_stop_token = f->end_tokens[0] >= 0;
    d->stop_token = f->end_tokens[0];
    return code;
}

/* Blanks that have grown: finished rounds that were not told yet, then the one that runs. */
static int blank_deltas(struct stream *s, const struct request *r, struct wire_blank_delta *deltas,
                        struct buf *texts, uint32_t *ret_n)
{
    uint32_t n = 0;
    int code = 0;
    for (; code == 0 && s->n_told < r->n_rounds; s->n_told++) {
        code = ended_blank(s, r, s->n_told, &texts[n], &deltas[n]);
        n++;
        if (code == 0)
            stream_text_deinit(&s->texts[s->n_told]);
    }
    bool grows = r->state == REQUEST_RUNNING && r->n_outputs && !r->params.beam;
    if (code == 0 && grows) {
        const struct token_list *tokens = &r->outputs[0].tokens;
        code = blank_delta(s, r, s->n_told, tokens, false, &texts[n], &deltas[n]);
        n += texts[n].size || deltas[n].n_tokens;
    }
    for (uint32_t i = 0; i != n; i++)
        deltas[i].text = texts[i].data;
    *ret_n = n;
    return code;
}

/* ---- results ---- */

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

int stream_next_fill(struct stream *s, const struct request *r, stream_take *take, void *context)
{
    bool last = r->state == REQUEST_DONE;
    uint32_t n_deltas = 0, max_deltas = r->n_rounds - s->n_told + 1;
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
    struct wire_usage usage = stream_usage(s, r);
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
        code = take(context, &(struct stream_message){.fill = &response});
    fill_results_deinit(&f);
    for (uint32_t i = 0; texts && i != max_deltas; i++)
        buf_deinit(&texts[i]);
    free(texts);
    free(deltas);
    return code < 0 ? code : any;
}
