/* openai_reply_fill.c: replies that other APIs do not have: blanks, and the published server's
 * lists of texts. See openai_reply.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_reply.h"

enum { MAX_BLANKS = 4096 };

/* ---- blanks ---- */

/* Room for blank `index`: how many there are is the text's business. */
static int need_blank(struct openai_prompt *p, uint32_t index)
{
    if (index < p->n_choices)
        return 0;
    if (index >= MAX_BLANKS)
        return -EINVAL;
    struct openai_choice *more = realloc(p->choices, (index + 1) * sizeof *more);
    if (!more)
        return -ENOMEM;
    memset(more + p->n_choices, 0, (index + 1 - p->n_choices) * sizeof *more);
    p->choices = more;
    p->n_choices = index + 1;
    return 0;
}

static int take_blank(struct openai_reply *r, struct openai_prompt *p,
                      const struct wire_blank_delta *d)
{
    int code = need_blank(p, d->index);
    if (code < 0)
        return code;
    struct openai_choice *c = &p->choices[d->index];
    size_t before = openai_part_bytes(&c->part);
    code = d->text ? buf_append_str(&c->part.text, d->text) : 0;
    if (code == 0)
        code = openai_take_end(c, d->finish_reason, d->stop, d->has_stop_token, d->stop_token);
    if (code == 0 && r->p->token_ids)
        code = openai_add_ids(&c->part, d->tokens, d->n_tokens);
    return code == 0 ? openai_count_bytes(r, openai_part_bytes(&c->part) - before) : code;
}

static void write_blank(struct json_out *o, const struct openai_reply *r, uint32_t index)
{
    const struct openai_choice *c = &r->prompts[0].choices[index];
    json_raw(o, "{\"index\":");
    json_u64(o, index);
    json_raw(o, ",\"text\":");
    json_text_bytes(o, c->part.text.data ? c->part.text.data : "", c->part.text.size);
    json_raw(o, ",");
    openai_write_finish(o, r, c);
    if (r->p->token_ids) {
        json_raw(o, ",\"token_ids\":[");
        json_raw_bytes(o, c->part.ids.data ? c->part.ids.data : "", c->part.ids.size);
        json_raw(o, "]");
    }
    json_raw(o, "}");
}

/* ---- results ---- */

static void write_results(struct json_out *o, const struct openai_reply *r,
                          const struct wire_fill_response *w)
{
    json_raw(o, ",\"results\":[");
    for (uint32_t i = 0; i != w->n_results; i++) {
        const struct wire_filled_text *f = &w->results[i];
        json_raw(o, i ? ",{\"text\":" : "{\"text\":");
        json_text(o, f->text ? f->text : "");
        json_raw(o, ",\"blanks\":[");
        for (uint32_t k = 0; k != f->n_blanks; k++) {
            if (k)
                json_raw(o, ",");
            json_text(o, f->blanks[k] ? f->blanks[k] : "");
        }
        json_raw(o, "],\"score\":");
        if (f->has_score)
            json_double(o, f->score);
        else
            json_raw(o, "null");
        if (r->p->token_ids) {
            json_raw(o, ",\"token_ids\":");
            json_ids(o, f->tokens, f->n_tokens);
        }
        json_raw(o, "}");
    }
    json_raw(o, "]");
}

/* How the model was asked, for those who compare. */
static void write_calls(struct json_out *o, const struct wire_fill_response *w)
{
    json_raw(o, ",\"calls\":[");
    for (uint32_t i = 0; i != w->n_calls; i++) {
        const struct wire_fill_call *call = &w->calls[i];
        json_raw(o, i ? ",{\"input\":" : "{\"input\":");
        json_ids(o, call->input, call->n_input);
        json_raw(o, ",\"outputs\":[");
        for (uint32_t k = 0; k != call->n_outputs; k++) {
            if (k)
                json_raw(o, ",");
            json_ids(o, call->outputs[k].ids, call->outputs[k].n_ids);
        }
        json_raw(o, "]}");
    }
    json_raw(o, "]");
}

/* What comes with the last message. */
static int take_results(struct openai_reply *r, const struct wire_fill_response *w)
{
    struct json_out o = {&r->results, 0};
    write_results(&o, r, w);
    if (r->p->token_ids)
        write_calls(&o, w);
    if (r->prompts[0].has_seed) {
        json_raw(&o, ",\"seed\":");
        json_i64(&o, (int64_t)r->prompts[0].seed);
    }
    if (!r->q->stream) {
        json_raw(&o, ",\"text\":");
        json_text(&o, w->n_results && w->results[0].text ? w->results[0].text : "");
    }
    r->n_prompt_tokens = w->usage->prompt_tokens;
    r->n_cached_tokens = w->usage->cached_tokens;
    r->n_completion_tokens = w->usage->completion_tokens;
    r->prompts[0].ended = true;
    return o.error;
}

/* ---- messages ---- */

static void write_news(struct openai_reply *r, const struct wire_fill_response *w,
                       struct json_out *o)
{
    struct openai_prompt *p = &r->prompts[0];
    json_raw(o, "data: ");
    json_raw(o, r->head);
    json_raw(o, ",\"blanks\":[");
    for (uint32_t i = 0; i != w->n_blanks; i++) {
        struct openai_choice *c = &p->choices[w->blanks[i].index];
        if (i)
            json_raw(o, ",");
        write_blank(o, r, w->blanks[i].index);
        r->n_gathered -= openai_part_bytes(&c->part);
        openai_part_clear(&c->part);
    }
    json_raw(o, "]");
    if (r->results.size)
        json_raw_bytes(o, r->results.data, r->results.size);
    if (p->ended) {
        json_raw(o, ",\"usage\":");
        openai_write_usage(o, r);
    }
    json_raw(o, "}\n\n");
}

int openai_fill_message(struct openai_reply *r, const struct wire_fill_response *w, struct buf *out)
{
    struct openai_prompt *p = &r->prompts[0];
    int code = 0;
    if (w->has_seed) {
        p->has_seed = true;
        p->seed = w->seed;
    }
    for (uint32_t i = 0; i != w->n_blanks && code == 0; i++)
        code = take_blank(r, p, &w->blanks[i]);
    if (code == 0 && w->usage && !p->ended)
        code = take_results(r, w);
    struct json_out o = {out, code};
    if (r->q->stream && (w->n_blanks || w->usage))
        write_news(r, w, &o);
    return o.error;
}

int openai_fill_finish(struct openai_reply *r, struct buf *out)
{
    struct json_out o = {out, 0};
    if (r->q->stream) {
        json_raw(&o, "data: [DONE]\n\n");
        return o.error;
    }
    json_raw(&o, r->head);
    json_raw(&o, ",\"blanks\":[");
    for (uint32_t i = 0; i != r->prompts[0].n_choices; i++) {
        if (i)
            json_raw(&o, ",");
        write_blank(&o, r, i);
    }
    json_raw(&o, "]");
    json_raw_bytes(&o, r->results.data ? r->results.data : "", r->results.size);
    json_raw(&o, ",\"usage\":");
    openai_write_usage(&o, r);
    json_raw(&o, "}");
    return o.error;
}

/* ---- the published server's ---- */

int openai_legacy_finish(struct openai_reply *r, struct buf *out)
{
    struct json_out o = {out, 0};
    bool first = true;
    json_raw(&o, "{\"text\":[");
    for (uint32_t i = 0; i != r->q->n_prompts; i++) {
        const struct openai_prompt *p = &r->prompts[i];
        if (r->p->nested)
            json_raw(&o, i ? ",[" : "[");
        for (uint32_t k = 0; k != p->n_choices; k++) {
            const struct buf *text = &p->choices[k].part.text;
            if (!first && !(r->p->nested && k == 0))
                json_raw(&o, ",");
            first = false;
            json_text_bytes(&o, text->data ? text->data : "", text->size);
        }
        if (r->p->nested)
            json_raw(&o, "]");
    }
    json_raw(&o, "]}");
    return o.error;
}
