/* openai_rig.c: see openai_rig.h. */
#include "openai_rig.h"

#include <assert.h>
#include <string.h>

#include "base/util.h"
#include "model/dialogue.h"

const struct openai_settings rig_settings = {
    .model = "glm", .dialogue = &dialogue_default, .max_tokens = 500};

/* ---- requests ---- */

static void text(struct buf *b, const char *name, const char *v)
{
    if (v && *v)
        buf_printf(b, " %s=\"%s\"", name, v);
}

static void ids(struct buf *b, const char *name, const int32_t *v, uint32_t n)
{
    if (n == 0)
        return;
    buf_printf(b, " %s=", name);
    for (uint32_t i = 0; i != n; i++)
        buf_printf(b, "%s%d", i ? "," : "", (int)v[i]);
}

static void number(struct buf *b, const char *name, double v)
{
    if (v != 0)
        buf_printf(b, " %s=%g", name, v);
}

static void flag(struct buf *b, const char *name, bool v)
{
    if (v)
        buf_printf(b, " %s", name);
}

static void dump_sampling(const struct wire_sampling_parameters *s, struct buf *b)
{
    if (s->has_temperature && s->temperature != 1)
        buf_printf(b, " t=%g", (double)s->temperature);
    if (s->has_top_p && s->top_p != 1)
        buf_printf(b, " top_p=%g", (double)s->top_p);
    flag(b, "top_p:default", !s->has_top_p);
    number(b, "top_k", s->top_k);
    number(b, "min_p", (double)s->min_p);
    number(b, "rep", (double)s->repetition_penalty);
    number(b, "pres", (double)s->presence_penalty);
    number(b, "freq", (double)s->frequency_penalty);
    if (s->has_seed)
        buf_printf(b, " seed=%lld", (long long)s->seed);
    for (uint32_t i = 0; i != s->n_logit_bias; i++)
        buf_printf(b, " bias[%d]=%g", (int)s->logit_bias[i].token, (double)s->logit_bias[i].bias);
    number(b, "min", s->min_tokens);
    flag(b, "ignore_end", s->ignore_end);
    flag(b, "logprobs", s->logprobs);
    number(b, "top_logprobs", s->top_logprobs);
    for (uint32_t i = 0; i != s->n_stop; i++)
        text(b, "stop", s->stop[i]);
    ids(b, "stop_ids", s->stop_token_ids, s->n_stop_token_ids);
    flag(b, "include_stop", s->include_stop);
    if (s->strategy != WIRE_STRATEGY_BEAM)
        return;
    buf_printf(b, " beams=%u", s->beam->num_beams);
    if (s->beam->has_length_penalty)
        buf_printf(b, " lp=%g", s->beam->length_penalty);
    number(b, "ngram", s->beam->no_repeat_ngram_size);
    flag(b, "sampled", s->beam->sampled);
}

static void dump_call(const struct wire_generate_request *w, struct buf *b)
{
    buf_append_str(b, " |");
    text(b, "text", w->text);
    if (w->tokens)
        ids(b, "tokens", w->tokens->ids, w->tokens->n_ids);
    number(b, "max", w->max_tokens);
    if (w->n != 1)
        number(b, "n", w->n);
    number(b, "best_of", w->best_of);
    flag(b, "unidirectional", w->unidirectional);
    flag(b, "ids", w->return_token_ids);
    number(b, "priority", w->priority);
    text(b, "id", w->request_id);
    text(b, "user", w->user);
    if (w->has_prompt_logprobs)
        buf_printf(b, " prompt_logprobs=%u", w->prompt_logprobs);
    flag(b, "prompt_only", w->prompt_only);
    assert(!*w->model && w->request_id && w->user);
}

void rig_dump(const struct openai_request *q, struct buf *b)
{
    buf_printf(b, "%u", q->n_prompts);
    flag(b, "stream", q->stream);
    flag(b, "usage", q->include_usage);
    flag(b, "echo", q->echo);
    flag(b, "token_strs", q->token_strs);
    if (q->n_unknown)
        buf_printf(b, " unknown=%u(%s)", q->n_unknown, q->unknown);
    if (q->generate)
        dump_sampling(q->generate[0].sampling, b);
    for (uint32_t i = 0; q->generate && i != q->n_prompts; i++)
        dump_call(&q->generate[i], b);
    if (q->fill) {
        const struct wire_fill_request *f = q->fill;
        dump_sampling(f->sampling, b);
        buf_append_str(b, " | fill");
        text(b, "text", f->text);
        if (f->tokens)
            ids(b, "tokens", f->tokens->ids, f->tokens->n_ids);
        number(b, "max", f->max_length);
        flag(b, "ids", f->return_token_ids);
        number(b, "priority", f->priority);
        text(b, "id", f->request_id);
        text(b, "user", f->user);
    }
    if (q->tokenize)
        text(b, "tokenize", q->tokenize->text);
    if (q->detokenize)
        ids(b, "detokenize", q->detokenize->ids, q->detokenize->n_ids);
}

const char *rig_parse_with(const struct openai_settings *s, enum openai_route route,
                           const char *body, size_t size)
{
    static struct buf b;
    struct openai_request *q = NULL;
    struct openai_error e;
    buf_clear(&b);
    int r = openai_parse(s, route, body, size, &q, &e);
    if (r < 0)
        buf_printf(&b, "%d %s: %s", e.status, *e.param ? e.param : "-", e.message);
    else
        rig_dump(q, &b);
    openai_request_free(q);
    return b.data;
}

const char *rig_parse(enum openai_route route, const char *body)
{
    return rig_parse_with(&rig_settings, route, body, strlen(body));
}

/* ---- tokens ---- */

static const char *piece(const void *context, int32_t id)
{
    static const char *const pieces[] = {
        "\xe2\x96\x81Paris", "\xe2\x96\x81is", ".",           "\xe4\xba\xba",
        "\xe2\x96\x81",      "<0xE4>",         "<|tab|>",     "<n>",
        "[gMASK]",           "\"q\"",          "<|blank_3|>", "ing",
    };
    (void)context;
    return id >= 0 && (size_t)id < ARRAY_LEN(pieces) ? pieces[id] : NULL;
}

static int decode(const void *context, const int32_t *list, size_t n, struct buf *ret)
{
    (void)context;
    for (size_t i = 0; i != n; i++)
        buf_printf(ret, "<%d>", (int)list[i]);
    return 0;
}

const struct openai_tokens rig_tokens = {.piece = piece, .decode = decode};

const struct openai_identity *rig_identity(void)
{
    static struct openai_identity i = {
        .id = "7", .model = "glm", .fingerprint = "fp", .created = 1700000000};
    i.tokens = rig_tokens;
    return &i;
}
