/* openai_build.c: from the fields of a body to calls: what all generations share, completions,
 * tokenize and detokenize. See openai.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"

enum {
    DEFAULT_COMPLETION_TOKENS = 16, /* as OpenAI's */
    MAX_STOPS = STOP_MAX_TEXTS,
    MAX_STOP_IDS = 64,
    MAX_DETOKENIZE_IDS = 1 << 17,
    MAX_PROMPT_IDS = 1 << 17, /* whatever the model's context is */
};

/* ---- lists ---- */

int openai_take_ids(struct openai_private *p, const char *what, const json_t *array, size_t max,
                    struct wire_token_ids *ret)
{
    if (!json_is_array(array))
        return openai_refuse(p, what, "%s: expected a list of token ids, found %s", what,
                             jsonfile_type_name(array));
    size_t n = json_array_size(array);
    if (n > max)
        return openai_refuse(p, what, "%s: expected at most %zu token ids, found %zu", what, max,
                             n);
    int32_t *ids = openai_alloc(p, n, sizeof *ids);
    if (!ids)
        return -ENOMEM;
    for (size_t i = 0; i != n; i++) {
        int64_t id;
        if (!openai_whole(json_array_get(array, i), 0, INT32_MAX, &id))
            return openai_refuse(p, what, "%s: entry %zu: expected a token id", what, i);
        ids[i] = (int32_t)id;
    }
    *ret = (struct wire_token_ids){ids, (uint32_t)n};
    return 0;
}

/* A string, or a list of them. Empty ones end nothing and are left out. */
static int take_stops(struct openai_private *p)
{
    const json_t *stop = p->v.stop;
    bool one = json_is_string(stop);
    size_t n = one ? 1 : json_array_size(stop);
    if (!stop)
        return 0;
    if ((!one && !json_is_array(stop)) || n > MAX_STOPS)
        return openai_refuse(p, "stop", "stop: expected a string, or a list of at most %d",
                             MAX_STOPS);
    const char **texts = openai_alloc(p, n, sizeof *texts);
    if (!texts)
        return -ENOMEM;
    for (size_t i = 0; i != n; i++) {
        const json_t *v = one ? stop : json_array_get(stop, i);
        const char *text = json_string_value(v);
        if (!text || json_string_length(v) > STOP_MAX_BYTES)
            return openai_refuse(p, "stop", "stop: entry %zu: expected a text of at most %d bytes",
                                 i, STOP_MAX_BYTES);
        if (*text)
            texts[p->sampling.n_stop++] = text;
    }
    p->sampling.stop = texts;
    return 0;
}

/* {"id": bias}; the names are numbers. */
static int take_bias(struct openai_private *p)
{
    const json_t *object = p->v.logit_bias;
    if (!object)
        return 0;
    size_t n = json_object_size(object), at = 0;
    if (!json_is_object(object) || n > PLAN_MAX_BIAS)
        return openai_refuse(p, "logit_bias",
                             "logit_bias: expected an object of at most %d token ids and numbers",
                             PLAN_MAX_BIAS);
    struct plan_bias *bias = openai_alloc(p, n, sizeof *bias);
    if (!bias)
        return -ENOMEM;
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)object, name, v)
    {
        char *end;
        errno = 0;
        long id = strtol(name, &end, 10);
        bool digits = *name >= '0' && *name <= '9' && !*end && errno == 0 && id <= INT32_MAX;
        double value = json_number_value(v);
        if (!digits || !json_is_number(v) || !(value >= -100 && value <= 100))
            return openai_refuse(p, "logit_bias",
                                 "logit_bias: entry %zu: expected a token id in quotes and a "
                                 "number from -100 to 100",
                                 at);
        bias[at++] = (struct plan_bias){.token = (int32_t)id, .bias = (float)value};
    }
    p->sampling.logit_bias = bias;
    p->sampling.n_logit_bias = (uint32_t)n;
    return 0;
}

/* ---- sampling ---- */

static float number_or(const struct openai_number *v, float otherwise)
{
    return v->set ? (float)v->v : otherwise;
}

static uint32_t count_or(const struct openai_int *v, uint32_t otherwise)
{
    return v->set ? (uint32_t)v->v : otherwise;
}

/* Beams: use_beam_search as other servers have it (best_of, or n, is their number), or num_beams
 * itself. */
static void take_beam(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    if (!v->use_beam_search && !v->num_beams.set)
        return;
    uint32_t n = count_or(&v->best_of, count_or(&v->n, 1));
    p->beam = (struct wire_beam_parameters){
        .num_beams = count_or(&v->num_beams, n),
        .has_length_penalty = v->length_penalty.set,
        .length_penalty = v->length_penalty.v,
        .no_repeat_ngram_size = count_or(&v->no_repeat_ngram_size, 0),
    };
    p->sampling.strategy = WIRE_STRATEGY_BEAM;
    p->sampling.beam = &p->beam;
}

/* top_p 0 is the narrowest nucleus, one token, though the engine's 0 is "off". */
static void take_cuts(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    struct wire_sampling_parameters *s = &p->sampling;
    s->top_k = v->top_k.set && v->top_k.v > 0 ? (uint32_t)v->top_k.v : 0;
    s->has_top_p = true;
    s->top_p = number_or(&v->top_p, 1);
    if (v->top_p.set && s->top_p <= 0) {
        s->top_p = 1;
        s->top_k = 1;
    }
}

int openai_take_sampling(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    struct wire_sampling_parameters *s = &p->sampling;
    *s = (struct wire_sampling_parameters){
        .strategy = WIRE_STRATEGY_SAMPLE,
        .has_temperature = true,
        .temperature = number_or(&v->temperature, 1),
        .has_seed = v->seed.set,
        .seed = (uint64_t)v->seed.v,
        .min_tokens = count_or(&v->min_tokens, 0),
        .ignore_end = v->ignore_eos,
        .min_p = number_or(&v->min_p, 0),
        .repetition_penalty = number_or(&v->repetition_penalty, 0),
        .presence_penalty = number_or(&v->presence_penalty, 0),
        .frequency_penalty = number_or(&v->frequency_penalty, 0),
        .include_stop = v->include_stop,
        .logprobs = p->logprobs,
        .top_logprobs = p->top_logprobs,
    };
    take_cuts(p);
    take_beam(p);
    int r = take_stops(p);
    if (r == 0)
        r = take_bias(p);
    if (r == 0 && v->stop_token_ids) {
        struct wire_token_ids ids = {0};
        r = openai_take_ids(p, "stop_token_ids", v->stop_token_ids, MAX_STOP_IDS, &ids);
        s->stop_token_ids = ids.ids;
        s->n_stop_token_ids = ids.n_ids;
    }
    return r;
}

int openai_new_calls(struct openai_private *p, uint32_t n_prompts)
{
    struct openai_request *q = &p->public;
    const struct openai_values *v = &p->v;
    const char *id = p->settings->request_id;
    const struct wire_sampling_parameters *sampling = &p->sampling;
    /* Greedy outputs are all alike: the best of them are any n. */
    bool greedy = sampling->temperature <= 0 || sampling->top_k == 1;
    q->n_choices = count_or(&v->n, 1);
    q->request_id = v->request_id ? v->request_id : "";
    if (n_prompts * q->n_choices > OPENAI_MAX_CHOICES)
        return openai_refuse(p, "n", "n: expected at most %d choices of all prompts, found %u",
                             OPENAI_MAX_CHOICES, n_prompts * q->n_choices);
    if (v->best_of.set && v->best_of.v < q->n_choices)
        return openai_refuse(p, "best_of", "best_of: expected at least n, %u, found %lld",
                             q->n_choices, (long long)v->best_of.v);
    p->generate = openai_alloc(p, n_prompts, sizeof *p->generate);
    if (!p->generate)
        return -ENOMEM;
    for (uint32_t i = 0; i != n_prompts; i++) {
        p->generate[i] = (struct wire_generate_request){
            .model = "",
            .sampling = sampling,
            .n = q->n_choices,
            .best_of = sampling->beam || greedy ? 0 : count_or(&v->best_of, 0),
            .unidirectional = v->unidirectional,
            .return_token_ids = v->return_token_ids || p->join,
            .request_id = id && *id ? id : q->request_id,
            .priority = (int32_t)v->priority.v,
            .user = v->user ? v->user : "",
        };
    }
    q->generate = p->generate;
    q->n_prompts = n_prompts;
    p->token_ids = v->return_token_ids;
    p->tokens_as_ids = v->tokens_as_ids;
    return 0;
}

/* ---- completions ---- */

static bool has_mask(const char *text)
{
    return strstr(text, "[MASK]") || strstr(text, "[sMASK]") || strstr(text, "[gMASK]");
}

/* prompt, a blank, suffix: what the model fills in by itself. */
static int with_suffix(struct openai_private *p, const char *prompt, const char **ret)
{
    static const char blank[] = "[MASK]";
    const char *suffix = p->v.suffix;
    if (has_mask(prompt) || has_mask(suffix))
        return openai_refuse(p, "suffix",
                             "suffix: it puts a blank between prompt and suffix; neither may have "
                             "one of its own (POST /v1/fill fills several)");
    size_t size = strlen(prompt) + sizeof blank + strlen(suffix);
    char *text = openai_alloc(p, size, 1);
    if (!text)
        return -ENOMEM;
    snprintf(text, size, "%s%s%s", prompt, blank, suffix);
    *ret = text;
    return 0;
}

/* One prompt, a string or a list of ids, into one call. */
static int take_prompt(struct openai_private *p, const json_t *v, struct wire_generate_request *w)
{
    bool suffix = p->v.suffix && *p->v.suffix;
    if (json_is_string(v)) {
        w->text = json_string_value(v);
        if (!*w->text && !suffix)
            return openai_refuse(p, "prompt", "prompt: expected at least one character");
        return suffix ? with_suffix(p, w->text, &w->text) : 0;
    }
    if (!json_is_array(v))
        return openai_refuse(p, "prompt",
                             "prompt: expected a string, a list of token ids, or a list of these, "
                             "found %s",
                             jsonfile_type_name(v));
    if (suffix)
        return openai_refuse(p, "suffix", "suffix: expected a prompt that is a string");
    struct wire_token_ids *ids = openai_alloc(p, 1, sizeof *ids);
    if (!ids)
        return -ENOMEM;
    w->tokens = ids;
    int r = openai_take_ids(p, "prompt", v, MAX_PROMPT_IDS, ids);
    json_array_clear((json_t *)v); /* a list as long as this takes a while to free: do it here */
    if (r == 0 && ids->n_ids == 0)
        return openai_refuse(p, "prompt", "prompt: expected at least one token id");
    return r;
}

static int take_prompts(struct openai_private *p)
{
    const json_t *prompt = p->v.prompt;
    if (!prompt)
        return openai_refuse(p, "prompt", "prompt: missing");
    bool list = json_is_array(prompt) && json_array_size(prompt) &&
                !json_is_number(json_array_get(prompt, 0));
    size_t n = list ? json_array_size(prompt) : 1;
    if (n > OPENAI_MAX_PROMPTS)
        return openai_refuse(p, "prompt", "prompt: expected at most %d prompts, found %zu",
                             OPENAI_MAX_PROMPTS, n);
    int r = openai_new_calls(p, (uint32_t)n);
    if (r == 0)
        p->prompts = openai_alloc(p, n, sizeof *p->prompts);
    if (r == 0 && !p->prompts)
        return -ENOMEM;
    for (size_t i = 0; i != n && r == 0; i++) {
        const json_t *v = list ? json_array_get(prompt, i) : prompt;
        p->prompts[i] = json_string_value(v);
        r = take_prompt(p, v, &p->generate[i]);
    }
    return r;
}

/* echo with logprobs: the prompt is scored. echo without new tokens is a prompt that is scored,
 * too, whether or not somebody looks at the result. */
static int take_echo(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    bool none = v->max_tokens.set && v->max_tokens.v == 0;
    if (none && !v->echo)
        return openai_refuse(p, "max_tokens", "max_tokens: expected at least 1 without echo");
    if (v->echo && v->suffix && *v->suffix && (none || p->logprobs))
        return openai_refuse(p, "suffix", "suffix: the prompt has no log-probabilities with it");
    p->nothing_new = none;
    for (uint32_t i = 0; i != p->public.n_prompts; i++) {
        struct wire_generate_request *w = &p->generate[i];
        w->max_tokens = count_or(&v->max_tokens, DEFAULT_COMPLETION_TOKENS);
        w->prompt_only = none;
        w->has_prompt_logprobs = v->echo && (none || p->logprobs);
        w->prompt_logprobs = w->has_prompt_logprobs ? p->top_logprobs : 0;
    }
    return 0;
}

int openai_build_completion(struct openai_private *p)
{
    const struct openai_values *v = &p->v;
    p->logprobs = v->logprobs.set;
    p->top_logprobs = count_or(&v->logprobs, 0);
    p->join = true;
    int r = openai_take_sampling(p);
    if (r == 0)
        r = take_prompts(p);
    return r == 0 ? take_echo(p) : r;
}

/* ---- text and ids ---- */

int openai_build_tokenize(struct openai_private *p)
{
    const char *text = json_string_value(p->v.prompt);
    if (p->v.prompt && p->v.messages)
        return openai_refuse(p, "messages", "messages: expected either prompt or messages");
    if (!p->v.messages && !text)
        return openai_refuse(p, "prompt", "prompt: expected a string");
    int r = p->v.messages ? openai_render_messages(p, &text) : 0;
    p->tokenize = (struct wire_tokenize_request){.model = "", .text = text, .parse_masks = true};
    p->public.tokenize = &p->tokenize;
    return r;
}

int openai_build_detokenize(struct openai_private *p)
{
    if (!p->v.tokens)
        return openai_refuse(p, "tokens", "tokens: missing");
    int r = openai_take_ids(p, "tokens", p->v.tokens, MAX_DETOKENIZE_IDS, &p->tokens);
    p->detokenize = (struct wire_detokenize_request){
        .model = "", .ids = p->tokens.ids, .n_ids = p->tokens.n_ids};
    p->public.detokenize = &p->detokenize;
    return r;
}
