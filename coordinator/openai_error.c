/* openai_error.c: what went wrong, in OpenAI's shape. See openai.h. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/json_out.h"
#include "coordinator/openai_internal.h"

struct kind {
    int status;
    const char *type, *code;
};

/* What clients tell apart: the official one makes an exception class of the status. */
static const struct kind kinds[] = {
    {400, "invalid_request_error", NULL},
    {401, "authentication_error", "invalid_api_key"},
    {403, "permission_error", "permission_denied"},
    {404, "not_found_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "invalid_request_error", "request_timeout"},
    {409, "invalid_request_error", "conflict"},
    {413, "invalid_request_error", "request_too_large"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {429, "rate_limit_error", "rate_limit_exceeded"},
    {431, "invalid_request_error", "request_too_large"},
    {499, "server_error", "cancelled"},
    {500, "server_error", "internal_error"},
    {501, "server_error", "not_implemented"},
    {503, "server_error", "service_unavailable"},
    {504, "server_error", "deadline_exceeded"},
};

static const struct kind *find_kind(int status)
{
    static const struct kind client = {0, "invalid_request_error", NULL};
    static const struct kind server = {0, "server_error", NULL};
    for (size_t i = 0; i != ARRAY_LEN(kinds); i++) {
        if (kinds[i].status == status)
            return &kinds[i];
    }
    return status < 500 ? &client : &server;
}

static void set(struct openai_error *e, int status, const char *param)
{
    const struct kind *k = find_kind(status);
    *e = (struct openai_error){.status = status, .type = k->type, .code = k->code};
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
}

void openai_error_set(struct openai_error *e, int status, const char *param, const char *format,
                      ...)
{
    va_list args;
    set(e, status, param);
    va_start(args, format);
    vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
}

/* ---- from admission and the end of a call ---- */

/* gRPC's codes as HTTP's, by what a client should do: 429 and 503 may be tried again. An operator's
 * abort is nothing that a client should repeat by itself: 499 rather than a 5xx. */
static int http_status(enum rpc_status s)
{
    static const int statuses[] = {
        [RPC_OK] = 200,
        [RPC_CANCELLED] = 499,
        [RPC_UNKNOWN] = 500,
        [RPC_INVALID_ARGUMENT] = 400,
        [RPC_DEADLINE_EXCEEDED] = 504,
        [RPC_NOT_FOUND] = 404,
        [RPC_ALREADY_EXISTS] = 409,
        [RPC_PERMISSION_DENIED] = 403,
        [RPC_RESOURCE_EXHAUSTED] = 429,
        [RPC_FAILED_PRECONDITION] = 400,
        [RPC_ABORTED] = 503,
        [RPC_OUT_OF_RANGE] = 400,
        [RPC_UNIMPLEMENTED] = 501,
        [RPC_INTERNAL] = 500,
        [RPC_UNAVAILABLE] = 503,
        [RPC_DATA_LOSS] = 500,
        [RPC_UNAUTHENTICATED] = 401,
    };
    return (size_t)s < ARRAY_LEN(statuses) ? statuses[s] : 500;
}

/* Admission's names of fields where HTTP has others. */
static const char *const renamed[][2] = {
    {"beam.num_beams", "num_beams"},
    {"beam.no_repeat_ngram_size", "no_repeat_ngram_size"},
    {"beam.length_penalty", "length_penalty"},
    {"logit_bias.bias", "logit_bias"},
    {"top_logprobs", "logprobs"},
};

/* "max_tokens: expected ..." -> "max_tokens". */
static void find_param(const char *message, char *ret, size_t size)
{
    size_t n = 0;
    while (islower((unsigned char)message[n]) || message[n] == '_' || message[n] == '.')
        n++;
    if (n == 0 || n >= size || message[n] != ':')
        return;
    memcpy(ret, message, n);
    ret[n] = '\0';
    for (size_t i = 0; i != ARRAY_LEN(renamed); i++) {
        if (strcmp(ret, renamed[i][0]) == 0)
            snprintf(ret, size, "%s", renamed[i][1]);
    }
}

void openai_error_from_rpc(struct openai_error *e, enum rpc_status status, const char *message,
                           int64_t retry_after_ns)
{
    set(e, http_status(status), NULL);
    e->retry_after_ns = retry_after_ns;
    snprintf(e->message, sizeof e->message, "%s", *message ? message : "the request failed");
    if (e->status != 400)
        return;
    find_param(message, e->param, sizeof e->param);
    if (strstr(message, "the context length"))
        e->code = "context_length_exceeded";
}

void openai_error_rename(struct openai_error *e, const struct openai_request *q)
{
    const char *input = q->route == OPENAI_CHAT ? "messages" : "prompt";
    const char *name = strcmp(e->param, "text") == 0 || strcmp(e->param, "tokens") == 0 ? input
                       : strcmp(e->param, "prompt_logprobs") == 0                       ? "logprobs"
                                                                                        : NULL;
    bool own = q->route == OPENAI_FILL || q->route == OPENAI_DETOKENIZE ||
               (q->route == OPENAI_LEGACY && !q->private->nested);
    if (!name || own)
        return;
    size_t n = strlen(e->param);
    bool prefix = strncmp(e->message, e->param, n) == 0 && e->message[n] == ':';
    char rest[sizeof e->message];
    snprintf(rest, sizeof rest, "%s", prefix ? e->message + n : e->message);
    snprintf(e->message, sizeof e->message, "%s%.*s", prefix ? name : "",
             (int)(sizeof e->message - strlen(name) - 1), rest);
    snprintf(e->param, sizeof e->param, "%s", name);
}

int openai_error_encode(const struct openai_error *e, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"error\":{\"message\":");
    json_text(&o, e->message);
    json_raw(&o, ",\"type\":");
    json_text_or_null(&o, e->type);
    json_raw(&o, ",\"param\":");
    json_text_or_null(&o, e->param);
    json_raw(&o, ",\"code\":");
    json_text_or_null(&o, e->code);
    json_raw(&o, "}}");
    return o.error;
}
