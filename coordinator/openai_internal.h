/* openai_internal.h: what the files of the codec share. See openai.h. */
#ifndef GLMD_COORDINATOR_OPENAI_INTERNAL_H
#define GLMD_COORDINATOR_OPENAI_INTERNAL_H

#include <jansson.h>

#include "coordinator/openai.h"
#include "model/jsonfile.h"

/* ---- fields ---- */

enum openai_type {
    OPENAI_BOOL,
    OPENAI_INT,
    OPENAI_NUMBER,
    OPENAI_TEXT,    /* at most `max` bytes */
    OPENAI_JSON,    /* looked at by whoever takes it; `schema` says what it may be */
    OPENAI_REFUSED, /* 400 unless it asks for nothing: what it asks for is not there */
    OPENAI_IGNORED, /* any value: there is nothing that it could change here */
};

/* A field of a body. One table drives the parser, and the tests hold openapi.json and
 * docs/http-fields.md against it. */
struct openai_field {
    const char *name;
    uint8_t routes; /* 1 << enum openai_route */
    enum openai_type type;
    double min, max; /* INT and NUMBER: the range; TEXT: bytes */
    uint16_t offset; /* in struct openai_values */
    /* JSON: its types in the OpenAPI description, "string array"; REFUSED: a hint, or NULL. */
    const char *note;
};

extern const struct openai_field openai_fields[];
extern const size_t openai_n_fields;

struct openai_int {
    bool set;
    int64_t v;
};
struct openai_number {
    bool set;
    double v;
};

/* What a body says; null and absent are the same. Strings and values live in the parsed tree. */
struct openai_values {
    const char *model, *suffix, *text, *user, *request_id, *sampling_strategy;
    const json_t *prompt, *messages, *tokens, *stop, *stop_token_ids, *logit_bias, *stream_options,
        *response_format, *modalities;
    bool echo, stream, ignore_eos, include_stop, return_token_ids, tokens_as_ids, use_beam_search,
        unidirectional, continue_final, token_strs;
    struct openai_int add_generation_prompt; /* 0 or 1 */
    struct openai_int n, best_of, max_tokens, max_completion_tokens, max_length, min_tokens, top_k,
        seed, logprobs, top_logprobs, priority, num_beams, no_repeat_ngram_size;
    struct openai_number temperature, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, length_penalty;
};

/* ---- a request ---- */

struct openai_owned; /* a piece of memory that goes with its request */

/* The codec's half of a request: `public` is inside, so that one free is enough. */
struct openai_private {
    struct openai_request public;
    const struct openai_settings *settings; /* while parsing */
    struct openai_error *error;             /* while parsing */
    json_t *root;                           /* owned */
    struct openai_owned *owned;             /* owned */
    struct openai_values v;
    struct wire_sampling_parameters sampling; /* of every call */
    struct wire_beam_parameters beam;
    struct wire_generate_request *generate; /* [n_prompts] */
    struct wire_fill_request fill;
    struct wire_tokenize_request tokenize;
    struct wire_detokenize_request detokenize;
    struct wire_token_ids tokens; /* of fill and detokenize */

    const char **prompts; /* completions, [n_prompts]: as they were sent; NULL: token ids */

    /* How the reply looks. */
    bool logprobs;         /* the client asked for them */
    uint32_t top_logprobs; /* beside each token */
    bool token_ids;
    bool tokens_as_ids;
    bool nothing_new; /* the prompt only: no text behind it */
    bool join;        /* the text goes on behind the prompt: a blank between them where need be */
    bool nested;      /* /generate: a list of texts per prompt */
};

/* Zeroed memory that lives as long as the request; NULL: out of memory, and the error is set. */
void *openai_alloc(struct openai_private *p, size_t n, size_t size);
/* Sets the error and returns -EINVAL: 400 with the field's name. */
int openai_refuse(struct openai_private *p, const char *param, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Takes every field of the tree into v. */
int openai_take_fields(struct openai_private *p);
/* Whole numbers, also written as 16.0. false: not one, or out of [min, max]. */
bool openai_whole(const json_t *v, int64_t min, int64_t max, int64_t *ret);

/* An array of token ids; `what` starts the message ("prompt"). */
int openai_take_ids(struct openai_private *p, const char *what, const json_t *array, size_t max,
                    struct wire_token_ids *ret);
/* sampling, from the fields that all generations share. */
int openai_take_sampling(struct openai_private *p);

/* One per route: from v to calls. */
int openai_build_completion(struct openai_private *p);
int openai_build_chat(struct openai_private *p);
int openai_build_fill(struct openai_private *p);
int openai_build_legacy(struct openai_private *p);
int openai_build_tokenize(struct openai_private *p);
int openai_build_detokenize(struct openai_private *p);

/* n_prompts calls without an input, all alike, from the fields that they share. */
int openai_new_calls(struct openai_private *p, uint32_t n_prompts);
/* The text of `messages`: *ret_text lives as long as the request. */
int openai_render_messages(struct openai_private *p, const char **ret_text);

#endif
