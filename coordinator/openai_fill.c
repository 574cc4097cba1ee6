/* openai_fill.c: requests that other APIs do not have: blanks, and the published GLM-130B server's
 * /generate. See openai.h.
 *
 * That server (a Flask program over FasterTransformer) had two forms of request over time, and both
 * are understood: the older one sends "text", one input per line, with out_seq_length,
 * min_gen_length, topk and topp, and gets a flat list of texts; the newer one sends "prompt", a
 * string or a list of them, with max_tokens, min_tokens, top_k and top_p, and gets a list of beams
 * for each. Both give the text that was generated, without the input. Their defaults are kept
 * (top_k 5, 200 or 64 new tokens, beams that are drawn), and so is top_k in front of top_p.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"

enum { MAX_FILL_IDS = 1 << 17 };

/* ---- /v1/fill ---- */

int openai_build_fill(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    if (!v->text == !v->tokens)
        return openai_refuse(p, "text", "text: expected a text with blanks, or tokens");
    int r = openai_take_sampling(p);
    if (r == 0 && v->tokens)
        r = openai_take_ids(p, "tokens", v->tokens, MAX_FILL_IDS, &p->tokens);
    /* The engine's own default, as published: nothing here compares itself with OpenAI's. */
    p->sampling.has_top_p = v->top_p.set;
    const char *id = p->settings->request_id;
    p->public.request_id = v->request_id ? v->request_id : "";
    p->fill = (struct wire_fill_request){
        .model = "",
        .text = v->text,
        .tokens = v->tokens ? &p->tokens : NULL,
        .sampling = &p->sampling,
        .max_length = v->max_length.set ? (uint32_t)v->max_length.v : 0,
        .request_id = id && *id ? id : p->public.request_id,
        .return_token_ids = v->return_token_ids,
        .priority = (int32_t)v->priority.v,
        .user = v->user ? v->user : "",
    };
    p->token_ids = v->return_token_ids;
    p->public.fill = &p->fill;
    p->public.n_prompts = 1;
    return r;
}

/* ---- /generate ---- */

/* The older form takes 0 for "not given". */
static void drop_zeros(struct openai_values *v)
{
    struct openai_int *whole[] = {&v->seed,      &v->max_length, &v->min_tokens,
                                  &v->num_beams, &v->top_k,      &v->no_repeat_ngram_size};
    struct openai_number *numbers[] = {&v->temperature, &v->top_p, &v->length_penalty};
    for (size_t i = 0; i != ARRAY_LEN(whole); i++)
        whole[i]->set = whole[i]->set && whole[i]->v != 0;
    for (size_t i = 0; i != ARRAY_LEN(numbers); i++)
        numbers[i]->set = numbers[i]->set && numbers[i]->v != 0;
}

static void default_int(struct openai_int *v, int64_t otherwise)
{
    if (!v->set)
        *v = (struct openai_int){true, otherwise};
}

/* One call for each line of the text, without its end. */
static int take_lines(struct openai_private *p)
{
    const char *text = p->v.text;
    size_t n = 0;
    for (const char *at = text; *at; n++) {
        at += strcspn(at, "\n");
        at += *at == '\n';
    }
    if (n == 0 || n > OPENAI_MAX_PROMPTS)
        return openai_refuse(p, "text", "text: expected 1 to %d lines, found %zu",
                             OPENAI_MAX_PROMPTS, n);
    int r = openai_new_calls(p, (uint32_t)n);
    for (size_t i = 0; i != n && r == 0; i++) {
        size_t size = strcspn(text, "\n");
        char *line = openai_alloc(p, size + 1, 1);
        if (!line)
            return -ENOMEM;
        memcpy(line, text, size);
        if (size && line[size - 1] == '\r')
            line[size - 1] = '\0';
        if (!*line)
            return openai_refuse(p, "text", "text: line %zu is empty", i + 1);
        p->generate[i].text = line;
        text += size + (text[size] == '\n');
    }
    return r;
}

static int take_list(struct openai_private *p)
{
    const json_t *prompt = p->v.prompt;
    bool one = json_is_string(prompt);
    size_t n = one ? 1 : json_array_size(prompt);
    if (n == 0 || n > OPENAI_MAX_PROMPTS)
        return openai_refuse(p, "prompt", "prompt: expected a string or a list of 1 to %d strings",
                             OPENAI_MAX_PROMPTS);
    int r = openai_new_calls(p, (uint32_t)n);
    for (size_t i = 0; i != n && r == 0; i++) {
        const char *text = json_string_value(one ? prompt : json_array_get(prompt, i));
        if (!text || !*text)
            return openai_refuse(p, "prompt", "prompt: entry %zu: expected a text", i);
        p->generate[i].text = text;
    }
    return r;
}

/* *ret: BeamSearchStrategy; both forms call the other one BaseStrategy. */
static int take_strategy(struct openai_private *p, bool *ret)
{
    const char *name = p->v.sampling_strategy;
    *ret = name && strcmp(name, "BeamSearchStrategy") == 0;
    if (*ret || !name || !*name || strcmp(name, "BaseStrategy") == 0)
        return 0;
    return openai_refuse(p, "sampling_strategy",
                         "sampling_strategy: expected BaseStrategy or BeamSearchStrategy");
}

/* Beams, as many as are returned. Without them only the older form repeats each line num_beams
 * times: choices here. */
static void take_legacy_beams(struct openai_private *p, bool beams, bool lines)
{
    struct openai_values *v = &p->v;
    v->num_beams.set = v->num_beams.set && v->num_beams.v != 0;
    if (v->num_beams.set && (beams || lines))
        v->n = v->num_beams;
    default_int(&v->num_beams, 1);
    default_int(&v->no_repeat_ngram_size, 3);
    if (!v->length_penalty.set)
        v->length_penalty = (struct openai_number){true, 0.9};
    if (!beams)
        v->num_beams.set = false;
}

int openai_build_legacy(struct openai_private *p)
{
    struct openai_values *v = &p->v;
    bool beams, lines = v->text != NULL;
    if (lines == (v->prompt != NULL))
        return openai_refuse(p, lines ? "prompt" : "text", "expected either text or prompt");
    int r = take_strategy(p, &beams);
    if (r < 0)
        return r;
    if (lines)
        drop_zeros(v);
    take_legacy_beams(p, beams, lines);
    if (v->n.set && v->n.v > (beams ? 64 : REQUEST_MAX_CHOICES))
        return openai_refuse(p, "num_beams", "num_beams: expected at most %d, found %lld",
                             REQUEST_MAX_CHOICES, (long long)v->n.v);
    default_int(&v->seed, lines ? 1234 : 42);
    default_int(&v->top_k, 5);
    /* A top_p of 0 is "off" there, and top_k goes in front of top_p. */
    v->top_p.set = v->top_p.set && v->top_p.v > 0 && v->top_k.v <= 0;
    r = openai_take_sampling(p);
    p->beam.sampled = true;
    p->nested = !lines;
    if (r == 0)
        r = lines ? take_lines(p) : take_list(p);
    const struct openai_int *max = v->max_length.set ? &v->max_length : &v->max_tokens;
    for (uint32_t i = 0; r == 0 && i != p->public.n_prompts; i++)
        p->generate[i].max_tokens = max->set && max->v ? (uint32_t)max->v : lines ? 200 : 64;
    return r;
}
