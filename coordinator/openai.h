/* openai.h: the HTTP API as bytes: request bodies to plain structs of inference.proto, and what
 * comes back of them to JSON and server-sent events. No sockets, no scheduler, no tokenizer.
 *
 *   openai_parse(body) -> request -> front_prepare_generate(q->generate[i]) or ..._fill(q->fill)
 *   openai_reply_new(request) -> openai_reply_message(...) ... -> openai_reply_finish
 *                                                              -> openai_reply_fail
 *
 * Bodies are hostile: their size, nesting, number of values and every field are bounded here before
 * anything is built of them (what admission checks besides is admit.h's). docs/http-fields.md lists
 * the fields, openapi.json describes the API; both are held against the parser's table by a test.
 * Errors hold no text of the client's but the names of fields. Pure; any thread.
 */
#ifndef GLMD_COORDINATOR_OPENAI_H
#define GLMD_COORDINATOR_OPENAI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "coordinator/stream.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire_inference.h"

struct dialogue; /* model/dialogue.h */

enum openai_route {
    OPENAI_COMPLETIONS, /* POST /v1/completions */
    OPENAI_CHAT,        /* POST /v1/chat/completions */
    OPENAI_FILL,        /* POST /v1/fill */
    OPENAI_LEGACY,      /* POST /generate: the published GLM-130B server's */
    OPENAI_TOKENIZE,    /* POST /tokenize, as vLLM's */
    OPENAI_DETOKENIZE,  /* POST /detokenize, as vLLM's */
    OPENAI_N_ROUTES
};

enum {
    OPENAI_MAX_BODY_BYTES = 4 << 20, /* a server should not read more than this */
    OPENAI_MAX_DEPTH = 32,
    OPENAI_MAX_VALUES = 300000, /* of all kinds in one body */
    OPENAI_MAX_PROMPTS = 128,
    OPENAI_MAX_CHOICES = 256, /* prompts x n of one request */
    OPENAI_MAX_MESSAGES = 256,
    OPENAI_UNKNOWN_BYTES = 128,
    OPENAI_ID_BYTES = 160,
};

/* ---- errors ---- */

struct openai_error {
    int status;             /* of HTTP */
    const char *type;       /* static: "invalid_request_error" ... */
    const char *code;       /* static; NULL = null */
    char param[64];         /* the field; "" = null */
    char message[512];      /* for the client */
    int64_t retry_after_ns; /* for a Retry-After header; 0 = none */
};

/* Any status: 400, 401, 403, 404, 405, 413, 429, 500, 503, 504 ... with the type and code that
 * belong to it. `param` may be NULL. */
void openai_error_set(struct openai_error *e, int status, const char *param, const char *format,
                      ...) __attribute__((format(printf, 4, 5)));
/* From how a call ended or was refused (struct front_end). A message of admission that begins with
 * a field's name gives the param. */
void openai_error_from_rpc(struct openai_error *e, enum rpc_status status, const char *message,
                           int64_t retry_after_ns);
/* Admission calls the input of every call text or tokens: the names that this body has for them. */
struct openai_request;
void openai_error_rename(struct openai_error *e, const struct openai_request *q);
/* The body: {"error": {"message", "type", "param", "code"}}. */
int openai_error_encode(const struct openai_error *e, struct buf *out);

/* ---- requests ---- */

struct openai_settings {
    const char *model;               /* the served name: other names are refused with 404 */
    const struct dialogue *dialogue; /* of the model directory; NULL = no chat: 404 */
    uint32_t max_tokens;             /* new tokens of a chat that asks for no number; 0 = 256 */
    size_t max_body_bytes;           /* 0 = OPENAI_MAX_BODY_BYTES */
    const char *request_id;          /* of the header, into every call; NULL = none */
};

/* Everything but `generate`, `fill` ... belongs to the codec. One of them is set; all strings live
 * as long as the request. */
struct openai_request {
    enum openai_route route;

    const struct wire_generate_request *generate; /* [n_prompts]: completions, chat, /generate */
    uint32_t n_prompts;
    const struct wire_fill_request *fill;             /* one */
    const struct wire_tokenize_request *tokenize;     /* one */
    const struct wire_detokenize_request *detokenize; /* one */

    bool stream;
    bool include_usage;
    bool echo;
    bool open_ended;        /* a chat that names no number of tokens */
    uint32_t n_choices;     /* of each prompt */
    const char *request_id; /* of the body; "" = none. Also in the calls, unless a header had one */
    bool token_strs;        /* /tokenize: the pieces are wanted, too */

    uint32_t n_unknown;                 /* fields that were ignored because nothing knows them */
    char unknown[OPENAI_UNKNOWN_BYTES]; /* the first of their names, for the log: "a, b" */

    struct openai_private *private; /* owned */
};

/* 0, -EINVAL (with *ret_error) or -ENOMEM (likewise: 500). */
int openai_parse(const struct openai_settings *s, enum openai_route route, const char *body,
                 size_t size, struct openai_request **ret, struct openai_error *ret_error);
void openai_request_free(struct openai_request *q); /* NULL is fine */

/* ---- replies ---- */

/* What the codec asks about tokens. */
struct openai_tokens {
    const void *context;
    /* tokenizer_piece: the piece of a text token, or a special one's name; NULL for others. */
    const char *(*piece)(const void *context, int32_t id);
    /* stream_decode: appends the text of ids. Only for the echo of prompts that were sent as ids.
     */
    int (*decode)(const void *context, const int32_t *ids, size_t n, struct buf *ret_text);
};

struct openai_identity {
    const char *id;          /* without its prefix: "cmpl-" and the like are put in front */
    const char *model;       /* the served name */
    const char *fingerprint; /* system_fingerprint; NULL = null */
    int64_t created;         /* seconds since 1970 */
    struct openai_tokens tokens;
    size_t max_bytes; /* that a reply gathers; 0 = 32 MiB */
};

struct openai_reply; /* opaque */

/* Borrows the request (until it is freed) and copies the identity. -ENOMEM. */
int openai_reply_new(const struct openai_request *q, const struct openai_identity *i,
                     struct openai_reply **ret);
void openai_reply_free(struct openai_reply *r); /* NULL is fine */

/* "text/event-stream" or "application/json". */
const char *openai_reply_content_type(const struct openai_reply *r);

/* A message of the call for prompt `prompt` (0 for fills). Streams append their events to `out`
 * (which may stay as it is); others gather. -ENOMEM; -EFBIG over max_bytes. */
int openai_reply_message(struct openai_reply *r, uint32_t prompt, const struct stream_message *m,
                         struct buf *out);
/* After the last message of the last call, all of which ended well: the usage and [DONE] of a
 * stream, or the whole body. */
int openai_reply_finish(struct openai_reply *r, struct buf *out);
/* A call failed. Streams: an event with the error and nothing behind it; otherwise the body that
 * goes with e->status. */
int openai_reply_fail(struct openai_reply *r, const struct openai_error *e, struct buf *out);

/* ---- answers without a call ---- */

/* {"object": "list", "data": [...]}, and one of its entries. */
int openai_models_encode(const struct wire_model_info *models, uint32_t n, int64_t created,
                         struct buf *out);
int openai_model_encode(const struct wire_model_info *m, int64_t created, struct buf *out);
/* {"count", "max_model_len", "tokens", "token_strs"}; the last is null unless q->token_strs. */
int openai_tokenize_encode(const struct openai_request *q, const struct wire_tokenize_response *w,
                           uint32_t context_length, struct buf *out);
int openai_detokenize_encode(const struct wire_detokenize_response *w, struct buf *out);
/* What vLLM's answer has: {"tokenizer_class", "model_max_length", "eos_token", ...}. */
int openai_tokenizer_encode(const char *eos, uint32_t context_length, struct buf *out);
int openai_version_encode(const char *version, struct buf *out);

/* The OpenAPI description that is served, as JSON. */
extern const uint8_t openai_openapi[];
extern const size_t openai_openapi_size;

#endif
