/* openai_reply.c: messages of calls to chunks of a stream, or to one body. See openai_reply.h. */
#include "coordinator/openai_reply.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/request.h"

enum { DEFAULT_MAX_BYTES = 32 << 20 };

/* ---- parts ---- */

size_t openai_part_bytes(const struct openai_part *p)
{
    return p->text.size + p->tokens.size + p->logprobs.size + p->tops.size + p->offsets.size +
           p->ids.size;
}

void openai_part_clear(struct openai_part *p)
{
    struct buf *all[] = {&p->text, &p->tokens, &p->logprobs, &p->tops, &p->offsets, &p->ids};
    for (size_t i = 0; i != ARRAY_LEN(all); i++)
        buf_clear(all[i]);
}

static void part_deinit(struct openai_part *p)
{
    struct buf *all[] = {&p->text, &p->tokens, &p->logprobs, &p->tops, &p->offsets, &p->ids};
    for (size_t i = 0; i != ARRAY_LEN(all); i++)
        buf_deinit(all[i]);
}

void openai_choice_deinit(struct openai_choice *c)
{
    part_deinit(&c->part);
    buf_deinit(&c->held);
    free(c->stop);
}

int openai_add_ids(struct openai_part *part, const int32_t *ids, uint32_t n)
{
    struct json_out o = {&part->ids, 0};
    for (uint32_t i = 0; i != n; i++) {
        if (part->ids.size)
            json_raw(&o, ",");
        json_i64(&o, ids[i]);
    }
    return o.error;
}

int openai_count_bytes(struct openai_reply *r, size_t more)
{
    r->n_gathered += more;
    return r->n_gathered > r->max_bytes ? -EFBIG : 0;
}

/* ---- life ---- */

/* The prompt's text, where its echo is asked for. */
static int take_front(struct openai_reply *r, uint32_t prompt)
{
    struct buf *front = &r->prompts[prompt].front.text;
    const char *text = r->q->echo && r->p->prompts ? r->p->prompts[prompt] : NULL;
    const struct wire_token_ids *ids = r->q->generate[prompt].tokens;
    int code = 0;
    if (text)
        code = buf_append_str(front, text);
    else if (r->q->echo)
        code = r->tokens_of.decode(r->tokens_of.context, ids->ids, ids->n_ids, front);
    return code == 0 ? buf_reserve(front, 0) : code;
}

static int make_head(struct openai_reply *r, const struct openai_identity *i)
{
    static const struct {
        const char *prefix, *whole, *chunk;
    } kinds[OPENAI_N_ROUTES] = {
        [OPENAI_COMPLETIONS] = {REQUEST_ID_COMPLETION, "text_completion", "text_completion"},
        [OPENAI_CHAT] = {REQUEST_ID_CHAT, "chat.completion", "chat.completion.chunk"},
        [OPENAI_FILL] = {REQUEST_ID_FILL, "fill", "fill.chunk"},
        [OPENAI_LEGACY] = {"", "", ""},
    };
    const struct openai_request *q = r->q;
    char id[OPENAI_ID_BYTES];
    snprintf(id, sizeof id, "%s%s", kinds[q->route].prefix, i->id);
    struct buf b = {0};
    struct json_out o = {&b, 0};
    json_raw(&o, "{\"id\":");
    json_text(&o, id);
    json_raw(&o, ",\"object\":");
    json_text(&o, q->stream ? kinds[q->route].chunk : kinds[q->route].whole);
    json_raw(&o, ",\"created\":");
    json_i64(&o, i->created);
    json_raw(&o, ",\"model\":");
    json_text(&o, i->model);
    json_raw(&o, ",\"system_fingerprint\":");
    json_text_or_null(&o, i->fingerprint);
    r->head = b.data;
    return o.error;
}

int openai_reply_new(const struct openai_request *q, const struct openai_identity *i,
                     struct openai_reply **ret)
{
    struct openai_reply *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->q = q;
    r->p = q->private;
    r->tokens_of = i->tokens;
    r->max_bytes = i->max_bytes ? i->max_bytes : DEFAULT_MAX_BYTES;
    r->results.limit = r->max_bytes;
    r->prompts = alloc_array(q->n_prompts, sizeof *r->prompts);
    int code = r->prompts ? make_head(r, i) : -ENOMEM;
    for (uint32_t k = 0; q->generate && k != q->n_prompts && code == 0; k++) {
        struct openai_prompt *p = &r->prompts[k];
        p->choices = alloc_array(q->n_choices, sizeof *p->choices);
        p->n_choices = p->choices ? q->n_choices : 0;
        bool due = r->p->join && r->p->prompts && text_join_due(r->p->prompts[k]);
        for (uint32_t c = 0; c != p->n_choices; c++)
            p->choices[c].join.due = due;
        code = p->choices ? take_front(r, k) : -ENOMEM;
    }
    if (code < 0) {
        openai_reply_free(r);
        return code;
    }
    *ret = r;
    return 0;
}

void openai_reply_free(struct openai_reply *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; r->prompts && i != r->q->n_prompts; i++) {
        struct openai_prompt *p = &r->prompts[i];
        for (uint32_t k = 0; k != p->n_choices; k++)
            openai_choice_deinit(&p->choices[k]);
        free(p->choices);
        part_deinit(&p->front);
    }
    free(r->prompts);
    free(r->head);
    buf_deinit(&r->results);
    buf_deinit(&r->scratch);
    free(r);
}

const char *openai_reply_content_type(const struct openai_reply *r)
{
    return r->q->stream ? "text/event-stream" : "application/json";
}

/* ---- gathering ---- */

int openai_take_end(struct openai_choice *c, enum wire_finish_reason finish, const char *stop,
                    bool has_stop_token, int32_t stop_token)
{
    if (finish == WIRE_FINISH_UNSPECIFIED)
        return 0;
    c->ended = true;
    c->finish = finish;
    c->has_stop_token = has_stop_token;
    c->stop_token = stop_token;
    if (!stop || !*stop)
        return 0;
    free(c->stop);
    c->stop = text_dup(stop, strlen(stop));
    return c->stop ? 0 : -ENOMEM;
}

static int add_offsets(struct openai_reply *r, struct openai_choice *c,
                       const struct wire_choice_delta *d)
{
    int code = 0;
    for (uint32_t i = 0; i != d->n_logprobs && code == 0; i++)
        code = buf_append(&c->held, &d->logprobs[i].token, sizeof d->logprobs[i].token);
    if (d->stop_logprob && code == 0)
        code = buf_append(&c->held, &d->stop_logprob->token, sizeof d->stop_logprob->token);
    if (code < 0 || !c->join.settled || !c->held.size)
        return code;
    bool at_start = !c->has_offsets && !c->join.blank;
    c->has_offsets = true;
    code = openai_add_offsets(r, &c->part, (const int32_t *)(const void *)c->held.data,
                              c->held.size / sizeof(int32_t), at_start, &c->n_chars);
    buf_clear(&c->held);
    return code;
}

static int take_delta(struct openai_reply *r, struct openai_prompt *p,
                      const struct wire_choice_delta *d)
{
    struct openai_choice *c = &p->choices[d->index];
    size_t before = openai_part_bytes(&c->part);
    int code = d->text ? buf_append_str(&c->part.text, d->text) : 0;
    if (code == 0)
        code = openai_take_end(c, d->finish_reason, d->stop, d->has_stop_token, d->stop_token);
    text_join_take(&c->join, d->tokens, d->n_tokens, c->part.text.size ? c->part.text.data : NULL,
                   c->ended, r->tokens_of.piece, r->tokens_of.context);
    if (code == 0 && r->p->token_ids)
        code = openai_add_ids(&c->part, d->tokens, d->n_tokens);
    if (code == 0 && r->p->logprobs)
        code = openai_add_logprobs(r, &c->part, d->logprobs, d->n_logprobs, false);
    /* As OpenAI's completions, and unlike its chats, have it: who scores with one token of output
     * counts on an entry for it, also where it is the end. */
    bool stop = r->q->route == OPENAI_COMPLETIONS && r->p->logprobs && d->stop_logprob;
    if (code == 0 && stop)
        code = openai_add_logprobs(r, &c->part, d->stop_logprob, 1, false);
    if (code == 0 && r->p->logprobs && r->q->route == OPENAI_COMPLETIONS)
        code = add_offsets(r, c, d);
    c->has_score = c->has_score || d->has_score;
    if (d->has_score)
        c->score = d->score;
    size_t more = openai_part_bytes(&c->part) - before;
    return code == 0 && !r->q->stream ? openai_count_bytes(r, more) : code;
}

/* Of the prompt: gathered in any case, because it goes in front of every choice. */
static int take_prompt_logprobs(struct openai_reply *r, struct openai_prompt *p,
                                const struct wire_generate_response *w)
{
    if (!r->p->logprobs || !r->q->echo)
        return 0;
    size_t before = openai_part_bytes(&p->front);
    int code = openai_add_logprobs(r, &p->front, w->prompt_logprobs, w->n_prompt_logprobs,
                                   p->n_scored == 0);
    if (code == 0)
        code = openai_add_prompt_offsets(r, p, w->prompt_logprobs, w->n_prompt_logprobs);
    p->n_scored += w->n_prompt_logprobs;
    return code == 0 ? openai_count_bytes(r, openai_part_bytes(&p->front) - before) : code;
}

/* ---- writing ---- */

void openai_write_usage(struct json_out *o, const struct openai_reply *r)
{
    json_raw(o, "{\"prompt_tokens\":");
    json_u64(o, r->n_prompt_tokens);
    json_raw(o, ",\"completion_tokens\":");
    json_u64(o, r->n_completion_tokens);
    json_raw(o, ",\"total_tokens\":");
    json_u64(o, r->n_prompt_tokens + r->n_completion_tokens);
    json_raw(o, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    json_u64(o, r->n_cached_tokens);
    json_raw(o, "}}");
}

/* The client's own stop ids are a reason; the model's end tokens are how outputs end. */
static bool is_stop_id(const struct openai_reply *r, int32_t token)
{
    const struct wire_sampling_parameters *s = &r->p->sampling;
    for (uint32_t i = 0; i != s->n_stop_token_ids; i++) {
        if (s->stop_token_ids[i] == token)
            return true;
    }
    return false;
}

void openai_write_finish(struct json_out *o, const struct openai_reply *r,
                         const struct openai_choice *c)
{
    json_raw(o, "\"finish_reason\":");
    json_raw(o, !c->ended ? "null" : c->finish == WIRE_FINISH_STOP ? "\"stop\"" : "\"length\"");
    json_raw(o, ",\"stop_reason\":");
    if (c->ended && c->stop)
        json_text(o, c->stop);
    else if (c->ended && c->has_stop_token && is_stop_id(r, c->stop_token))
        json_i64(o, c->stop_token);
    else
        json_raw(o, "null");
}

static void write_text(struct json_out *o, const struct openai_part *front,
                       const struct openai_choice *c)
{
    json_raw(o, "\"");
    if (front)
        json_text_part(o, front->text.data, front->text.size);
    if (c->join.blank)
        json_raw(o, " ");
    if (c->part.text.size)
        json_text_part(o, c->part.text.data, c->part.text.size);
    json_raw(o, "\"");
}

static void write_list(struct json_out *o, const struct buf *front, const struct buf *list)
{
    json_raw(o, "[");
    if (front && front->size)
        json_raw_bytes(o, front->data, front->size);
    if (front && front->size && list->size)
        json_raw(o, ",");
    if (list->size)
        json_raw_bytes(o, list->data, list->size);
    json_raw(o, "]");
}

static void write_logprobs(struct json_out *o, const struct openai_reply *r,
                           const struct openai_part *front, const struct openai_part *part)
{
    if (!r->p->logprobs) {
        json_raw(o, "null");
        return;
    }
    if (r->q->route == OPENAI_CHAT) {
        json_raw(o, "{\"content\":");
        write_list(o, NULL, &part->tokens);
        json_raw(o, ",\"refusal\":null}");
        return;
    }
    json_raw(o, "{\"tokens\":");
    write_list(o, front ? &front->tokens : NULL, &part->tokens);
    json_raw(o, ",\"token_logprobs\":");
    write_list(o, front ? &front->logprobs : NULL, &part->logprobs);
    json_raw(o, ",\"top_logprobs\":");
    if (r->p->top_logprobs)
        write_list(o, front ? &front->tops : NULL, &part->tops);
    else
        json_raw(o, "null");
    json_raw(o, ",\"text_offset\":");
    write_list(o, front ? &front->offsets : NULL, &part->offsets);
    json_raw(o, "}");
}

/* What only some ask for, and the seed of a finished one, so that it can be had again. */
static void write_extras(struct json_out *o, const struct openai_reply *r, uint32_t prompt,
                         const struct openai_choice *c)
{
    const struct openai_prompt *p = &r->prompts[prompt];
    if (r->p->token_ids) {
        const struct wire_token_ids *ids = r->q->generate[prompt].tokens;
        json_raw(o, ",\"token_ids\":");
        write_list(o, NULL, &c->part.ids);
        if (!c->told && r->q->route == OPENAI_COMPLETIONS) {
            json_raw(o, ",\"prompt_token_ids\":");
            if (ids)
                json_ids(o, ids->ids, ids->n_ids);
            else
                json_raw(o, "null");
        }
    }
    if (c->ended && c->has_score) {
        json_raw(o, ",\"score\":");
        json_double(o, c->score);
    }
    if (c->ended && p->has_seed) {
        json_raw(o, ",\"seed\":");
        json_i64(o, (int64_t)p->seed);
    }
}

/* One entry of "choices": all there is of it, or of a stream what is new. */
static void write_choice(struct json_out *o, const struct openai_reply *r, uint32_t prompt,
                         uint32_t k, const struct openai_part *front)
{
    const struct openai_choice *c = &r->prompts[prompt].choices[k];
    json_raw(o, "{\"index\":");
    json_u64(o, prompt * r->q->n_choices + k);
    if (r->q->route == OPENAI_COMPLETIONS) {
        json_raw(o, ",\"text\":");
        write_text(o, front, c);
    } else if (r->q->stream) {
        json_raw(o, c->told ? ",\"delta\":{" : ",\"delta\":{\"role\":\"assistant\",");
        json_raw(o, "\"content\":");
        write_text(o, NULL, c);
        json_raw(o, "}");
    } else {
        json_raw(o, ",\"message\":{\"role\":\"assistant\",\"content\":");
        write_text(o, NULL, c);
        json_raw(o, ",\"refusal\":null}");
    }
    json_raw(o, ",\"logprobs\":");
    write_logprobs(o, r, front, &c->part);
    json_raw(o, ",");
    openai_write_finish(o, r, c);
    write_extras(o, r, prompt, c);
    json_raw(o, "}");
}

static void write_chunk(struct openai_reply *r, uint32_t prompt, uint32_t k, struct json_out *o)
{
    struct openai_prompt *p = &r->prompts[prompt];
    struct openai_choice *c = &p->choices[k];
    json_raw(o, "data: ");
    json_raw(o, r->head);
    json_raw(o, ",\"choices\":[");
    write_choice(o, r, prompt, k, r->q->echo && !c->told ? &p->front : NULL);
    json_raw(o, r->q->include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
    c->told = true;
    c->join.blank = false;
    openai_part_clear(&c->part);
}

/* ---- messages ---- */

/* A prompt without output: its choices end with it. */
static void end_prompt_only(struct openai_reply *r, struct openai_prompt *p)
{
    if (!r->p->nothing_new)
        return;
    for (uint32_t k = 0; k != p->n_choices; k++) {
        p->choices[k].ended = p->choices[k].join.settled = true;
        p->choices[k].finish = WIRE_FINISH_LENGTH;
    }
}

static int take_usage(struct openai_reply *r, struct openai_prompt *p, const struct wire_usage *u)
{
    if (!u || p->ended)
        return 0;
    p->ended = true;
    r->n_prompt_tokens += u->prompt_tokens;
    r->n_cached_tokens += u->cached_tokens;
    r->n_completion_tokens += u->completion_tokens;
    return 0;
}

static int generate_message(struct openai_reply *r, uint32_t prompt,
                            const struct wire_generate_response *w, struct buf *out)
{
    struct openai_prompt *p = &r->prompts[prompt];
    int code = take_prompt_logprobs(r, p, w);
    if (w->has_seed) {
        p->has_seed = true;
        p->seed = w->seed;
    }
    for (uint32_t i = 0; i != w->n_choices && code == 0; i++) {
        uint32_t k = w->choices[i].index;
        if (k >= p->n_choices || p->choices[k].ended)
            return -EINVAL;
        struct openai_choice *c = &p->choices[k];
        if (r->p->logprobs && r->q->echo && c->n_chars == 0 && !c->join.settled)
            c->n_chars = openai_count_chars(p->front.text.data, p->front.text.size);
        code = take_delta(r, p, &w->choices[i]);
    }
    if (w->usage)
        end_prompt_only(r, p);
    if (code == 0)
        code = take_usage(r, p, w->usage);
    struct json_out o = {out, code};
    for (uint32_t k = 0; r->q->stream && k != p->n_choices; k++) {
        struct openai_choice *c = &p->choices[k];
        bool news = openai_part_bytes(&c->part) || (c->ended && !c->told_end);
        if (news && c->join.settled)
            write_chunk(r, prompt, k, &o);
        c->told_end = c->ended;
    }
    return o.error;
}

int openai_reply_message(struct openai_reply *r, uint32_t prompt, const struct stream_message *m,
                         struct buf *out)
{
    assert(prompt < r->q->n_prompts);
    if (m->fill && r->q->fill)
        return openai_fill_message(r, m->fill, out);
    if (m->generate && r->q->generate)
        return generate_message(r, prompt, m->generate, out);
    return -EINVAL;
}

/* ---- the end ---- */

static int finish_stream(struct openai_reply *r, struct buf *out)
{
    struct json_out o = {out, 0};
    if (r->q->include_usage) {
        json_raw(&o, "data: ");
        json_raw(&o, r->head);
        json_raw(&o, ",\"choices\":[],\"usage\":");
        openai_write_usage(&o, r);
        json_raw(&o, "}\n\n");
    }
    json_raw(&o, "data: [DONE]\n\n");
    return o.error;
}

static int finish_whole(struct openai_reply *r, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, r->head);
    json_raw(&o, ",\"choices\":[");
    for (uint32_t i = 0; i != r->q->n_prompts; i++) {
        const struct openai_prompt *p = &r->prompts[i];
        for (uint32_t k = 0; k != p->n_choices; k++) {
            if (i || k)
                json_raw(&o, ",");
            write_choice(&o, r, i, k, r->q->echo ? &p->front : NULL);
        }
    }
    json_raw(&o, "],\"usage\":");
    openai_write_usage(&o, r);
    json_raw(&o, "}");
    return o.error;
}

int openai_reply_finish(struct openai_reply *r, struct buf *out)
{
    if (r->q->route == OPENAI_LEGACY)
        return openai_legacy_finish(r, out);
    if (r->q->route == OPENAI_FILL)
        return openai_fill_finish(r, out);
    return r->q->stream ? finish_stream(r, out) : finish_whole(r, out);
}

int openai_reply_fail(struct openai_reply *r, const struct openai_error *e, struct buf *out)
{
    struct json_out o = {out, 0};
    if (r->q->stream)
        json_raw(&o, "data: ");
    if (o.error == 0)
        o.error = openai_error_encode(e, out);
    if (r->q->stream)
        json_raw(&o, "\n\n");
    return o.error;
}
