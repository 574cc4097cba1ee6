/* openai_fields.c: the fields of all bodies in one table, and taking them. See openai.h. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"

enum { MAX_NAME = 256, MAX_COUNT = 1 << 20, MAX_NAME_LOGGED = 32 };

#define C 1 << OPENAI_COMPLETIONS
#define H 1 << OPENAI_CHAT
#define F 1 << OPENAI_FILL
#define L 1 << OPENAI_LEGACY
#define T 1 << OPENAI_TOKENIZE
#define D 1 << OPENAI_DETOKENIZE

#define AT(x) offsetof(struct openai_values, x)

#define BOOL(name, routes, x)                                                                      \
    {                                                                                              \
        name, routes, OPENAI_BOOL, 0, 1, AT(x), NULL                                               \
    }
#define INT(name, routes, min, max, x)                                                             \
    {                                                                                              \
        name, routes, OPENAI_INT, min, max, AT(x), NULL                                            \
    }
#define NUMBER(name, routes, min, max, x)                                                          \
    {                                                                                              \
        name, routes, OPENAI_NUMBER, min, max, AT(x), NULL                                         \
    }
#define TEXT(name, routes, max, x)                                                                 \
    {                                                                                              \
        name, routes, OPENAI_TEXT, 0, max, AT(x), NULL                                             \
    }
#define JSON(name, routes, types, x)                                                               \
    {                                                                                              \
        name, routes, OPENAI_JSON, 0, 0, AT(x), types                                              \
    }
#define REFUSED(name, routes, hint)                                                                \
    {                                                                                              \
        name, routes, OPENAI_REFUSED, 0, 0, 0, hint                                                \
    }
#define IGNORED(name, routes)                                                                      \
    {                                                                                              \
        name, routes, OPENAI_IGNORED, 0, 0, 0, NULL                                                \
    }

/* The limits of what admission looks at again are admission's (admit_sampling.c). */
/* clang-format off */
const struct openai_field openai_fields[] = {
    /* what to answer */
    TEXT("model", C | H | F | L | T | D, MAX_NAME, model),
    JSON("prompt", C, "string array", prompt),
    JSON("prompt", L | T, "string array", prompt),
    TEXT("suffix", C, OPENAI_MAX_BODY_BYTES, suffix),
    BOOL("echo", C, echo),
    JSON("messages", H | T, "array", messages),
    BOOL("continue_final_message", H | T, continue_final),
    BOOL("add_generation_prompt", H | T, add_generation_prompt),
    TEXT("text", F | L, OPENAI_MAX_BODY_BYTES, text),
    JSON("tokens", F | D, "array", tokens),
    BOOL("unidirectional", C, unidirectional),
    BOOL("return_token_strs", T, token_strs),

    /* how much of it */
    INT("max_tokens", C, 0, MAX_COUNT, max_tokens),
    INT("max_tokens", H | L, 1, MAX_COUNT, max_tokens),
    INT("max_completion_tokens", H, 1, MAX_COUNT, max_completion_tokens),
    INT("max_length", F, 1, MAX_COUNT, max_length),
    INT("min_tokens", C | H | F | L, 0, MAX_COUNT, min_tokens),
    INT("n", C | H, 1, REQUEST_MAX_CHOICES, n),
    INT("best_of", C | H, 1, REQUEST_MAX_CHOICES, best_of),
    JSON("stop", C | H | F, "string array", stop),
    JSON("stop_token_ids", C | H | F, "array", stop_token_ids),
    BOOL("include_stop_str_in_output", C | H | F, include_stop),
    BOOL("ignore_eos", C | H | F, ignore_eos),

    /* how tokens are chosen */
    NUMBER("temperature", C | H | F | L, 0, 10, temperature),
    NUMBER("top_p", C | H | F | L, 0, 1, top_p),
    INT("top_k", C | H | F | L, -1, MAX_COUNT, top_k),
    NUMBER("min_p", C | H | F, 0, 1, min_p),
    NUMBER("repetition_penalty", C | H | F, 0.01, 100, repetition_penalty),
    NUMBER("presence_penalty", C | H | F, -2, 2, presence_penalty),
    NUMBER("frequency_penalty", C | H | F, -2, 2, frequency_penalty),
    JSON("logit_bias", C | H | F, "object", logit_bias),
    INT("seed", C | H | F | L, (double)INT64_MIN, (double)INT64_MAX, seed),
    BOOL("use_beam_search", C | F, use_beam_search),
    INT("num_beams", C | F, 1, 64, num_beams),
    INT("num_beams", L, 0, 64, num_beams),
    NUMBER("length_penalty", C | F | L, -10, 10, length_penalty),
    INT("no_repeat_ngram_size", C | F | L, 0, 1024, no_repeat_ngram_size),

    /* the published server's names */
    INT("out_seq_length", L, 0, MAX_COUNT, max_length),
    INT("min_gen_length", L, 0, MAX_COUNT, min_tokens),
    INT("topk", L, 0, MAX_COUNT, top_k),
    NUMBER("topp", L, 0, 1, top_p),
    TEXT("sampling_strategy", L, MAX_NAME, sampling_strategy),

    /* what comes back */
    BOOL("stream", C | H | F, stream),
    JSON("stream_options", C | H | F, "object", stream_options),
    INT("logprobs", C, 0, 20, logprobs),
    BOOL("logprobs", H, logprobs),
    INT("top_logprobs", H, 0, 20, top_logprobs),
    BOOL("return_token_ids", C | H | F, return_token_ids),
    BOOL("return_tokens_as_token_ids", C | H, tokens_as_ids),

    /* whose it is */
    TEXT("user", C | H | F, 128, user),
    INT("priority", C | H | F, -100, 100, priority),
    TEXT("request_id", C | H | F, 128, request_id),

    /* what would change the output and is not there */
    JSON("response_format", C | H | F, "object", response_format),
    REFUSED("structured_outputs", C | H | F, NULL),
    REFUSED("guided_json", C | H | F, NULL),
    REFUSED("guided_regex", C | H | F, NULL),
    REFUSED("guided_choice", C | H | F, NULL),
    REFUSED("guided_grammar", C | H | F, NULL),
    REFUSED("structural_tag", C | H | F, NULL),
    REFUSED("json_schema", C | H | F, NULL),
    REFUSED("regex", C | H | F, NULL),
    REFUSED("ebnf", C | H | F, NULL),
    REFUSED("regix", L, "use the stop texts of /v1/completions"),
    REFUSED("tools", H, NULL),
    REFUSED("tool_choice", H, NULL),
    REFUSED("functions", H, NULL),
    REFUSED("function_call", H, NULL),
    REFUSED("audio", H, NULL),
    REFUSED("web_search_options", H, NULL),
    REFUSED("moderation", H, NULL),
    JSON("modalities", H, "array", modalities),
    REFUSED("echo", H, "/v1/completions has it"),
    REFUSED("use_beam_search", H, "answers of a chat end by stop texts, which beams do not have"),
    REFUSED("chat_template", H | T, "the model directory states how conversations read"),
    REFUSED("prompt_logprobs", C | H, "use echo with logprobs on /v1/completions"),
    REFUSED("truncate_prompt_tokens", C | H, NULL),
    REFUSED("allowed_token_ids", C | H, "use logit_bias"),
    REFUSED("bad_words", C | H, NULL),
    REFUSED("logits_processors", C | H, NULL),
    REFUSED("prompt_embeds", C, NULL),
    REFUSED("lora_path", C | H, NULL),

    /* what changes nothing here */
    IGNORED("skip_special_tokens", C | H | F),
    IGNORED("spaces_between_special_tokens", C | H | F),
    IGNORED("add_special_tokens", C | H | T),
    IGNORED("early_stopping", C | H | F),
    IGNORED("length_penalty", H),
    IGNORED("guided_decoding_backend", C | H),
    IGNORED("guided_whitespace_pattern", C | H),
    IGNORED("chat_template_kwargs", H | T),
    IGNORED("parallel_tool_calls", H),
    IGNORED("prediction", H),
    IGNORED("reasoning_effort", H),
    IGNORED("verbosity", H),
    IGNORED("metadata", H),
    IGNORED("store", H),
    IGNORED("service_tier", C | H),
    IGNORED("safety_identifier", C | H),
    IGNORED("prompt_cache_key", C | H),
    IGNORED("prompt_cache_options", C | H),
    IGNORED("prompt_cache_retention", C | H),
    IGNORED("cache_salt", C | H),
};
/* clang-format on */
const size_t openai_n_fields = ARRAY_LEN(openai_fields);

#undef C
#undef H
#undef F
#undef L
#undef T
#undef D

/* ---- values ---- */

bool openai_whole(const json_t *v, int64_t min, int64_t max, int64_t *ret)
{
    if (json_is_integer(v)) {
        *ret = json_integer_value(v);
    } else if (json_is_real(v)) {
        double real = json_real_value(v);
        if (!(fabs(real) < 0x1p53) || real != trunc(real))
            return false;
        *ret = (int64_t)real;
    } else {
        return false;
    }
    return *ret >= min && *ret <= max;
}

/* Asks for nothing: what clients send for a feature that they do not use. */
static bool is_nothing(const json_t *v)
{
    const char *text = json_string_value(v);
    if (text)
        return !*text || strcmp(text, "none") == 0 || strcmp(text, "auto") == 0;
    return json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

static int take_bool(struct openai_private *p, const struct openai_field *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return openai_refuse(p, f->name, "%s: expected true or false, found %s", f->name,
                             jsonfile_type_name(v));
    void *at = (char *)&p->v + f->offset;
    /* The ones that are true by default, or are numbers elsewhere. */
    if (f->offset == AT(add_generation_prompt) || f->offset == AT(logprobs))
        *(struct openai_int *)at = (struct openai_int){true, json_is_true(v)};
    else
        *(bool *)at = json_is_true(v);
    return 0;
}

static int take_int(struct openai_private *p, const struct openai_field *f, const json_t *v)
{
    int64_t value, min = f->min <= (double)INT64_MIN ? INT64_MIN : (int64_t)f->min,
                   max = f->max >= (double)INT64_MAX ? INT64_MAX : (int64_t)f->max;
    if (!openai_whole(v, min, max, &value)) {
        if (!json_is_number(v))
            return openai_refuse(p, f->name, "%s: expected a whole number, found %s", f->name,
                                 jsonfile_type_name(v));
        return openai_refuse(p, f->name,
                             "%s: expected a whole number from %lld to %lld, found %.17g", f->name,
                             (long long)min, (long long)max, json_number_value(v));
    }
    struct openai_int *at = (void *)((char *)&p->v + f->offset);
    if (at->set && at->v != value)
        return openai_refuse(p, f->name, "%s: it is there under two names with different values",
                             f->name);
    *at = (struct openai_int){true, value};
    return 0;
}

static int take_number(struct openai_private *p, const struct openai_field *f, const json_t *v)
{
    if (!json_is_number(v))
        return openai_refuse(p, f->name, "%s: expected a number, found %s", f->name,
                             jsonfile_type_name(v));
    double value = json_number_value(v);
    if (!(value >= f->min && value <= f->max))
        return openai_refuse(p, f->name, "%s: expected a number from %g to %g, found %.17g",
                             f->name, f->min, f->max, value);
    *(struct openai_number *)(void *)((char *)&p->v + f->offset) =
        (struct openai_number){true, value};
    return 0;
}

static int take_text(struct openai_private *p, const struct openai_field *f, const json_t *v)
{
    const char *text = json_string_value(v);
    if (!text)
        return openai_refuse(p, f->name, "%s: expected a string, found %s", f->name,
                             jsonfile_type_name(v));
    if ((double)json_string_length(v) > f->max)
        return openai_refuse(p, f->name, "%s: expected at most %.0f bytes, found %zu", f->name,
                             f->max, json_string_length(v));
    *(const char **)(void *)((char *)&p->v + f->offset) = text;
    return 0;
}

static int take(struct openai_private *p, const struct openai_field *f, const json_t *v)
{
    switch (f->type) {
    case OPENAI_BOOL:
        return take_bool(p, f, v);
    case OPENAI_INT:
        return take_int(p, f, v);
    case OPENAI_NUMBER:
        return take_number(p, f, v);
    case OPENAI_TEXT:
        return take_text(p, f, v);
    case OPENAI_JSON:
        *(const json_t **)(void *)((char *)&p->v + f->offset) = v;
        return 0;
    case OPENAI_REFUSED:
        if (is_nothing(v))
            return 0;
        return openai_refuse(p, f->name, "%s: this server does not have it%s%s", f->name,
                             f->note ? ": " : "", f->note ? f->note : "");
    case OPENAI_IGNORED:
        return 0;
    }
    return 0;
}

/* ---- the body ---- */

static const struct openai_field *find(const char *name, enum openai_route route)
{
    for (size_t i = 0; i != openai_n_fields; i++) {
        if (openai_fields[i].routes >> route & 1 && strcmp(openai_fields[i].name, name) == 0)
            return &openai_fields[i];
    }
    return NULL;
}

/* For the log: whatever cannot be printed is a question mark. */
static void note_unknown(struct openai_request *q, const char *name)
{
    size_t used = strlen(q->unknown), n = strlen(name);
    q->n_unknown++;
    n = MIN(n, (size_t)MAX_NAME_LOGGED);
    if (used + 2 + n >= sizeof q->unknown)
        return;
    if (used) {
        memcpy(q->unknown + used, ", ", 2);
        used += 2;
    }
    for (size_t i = 0; i != n; i++)
        q->unknown[used + i] = name[i] > 0x20 && name[i] < 0x7f ? name[i] : '?';
    q->unknown[used + n] = '\0';
}

int openai_take_fields(struct openai_private *p)
{
    const char *name;
    json_t *v;
    json_object_foreach(p->root, name, v)
    {
        const struct openai_field *f = find(name, p->public.route);
        if (!f)
            note_unknown(&p->public, name);
        int r = f && !json_is_null(v) ? take(p, f, v) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}
