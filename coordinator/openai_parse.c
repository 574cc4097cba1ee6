/* openai_parse.c: from bytes to a request: limits of the whole body, the route's builder, memory.
 * See openai.h. */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"

/* What costs more than its bytes: lists and objects take a few hundred once parsed, and a name
 * nearly a microsecond. */
enum { MAX_CONTAINERS = 4096, MAX_NAMES = 8192 };

/* ---- memory ---- */

struct openai_owned {
    struct openai_owned *next;
    max_align_t bytes[];
};

void *openai_alloc(struct openai_private *p, size_t n, size_t size)
{
    size_t bytes;
    struct openai_owned *o = NULL;
    if (mul_size(n, size, &bytes) && add_size(bytes, sizeof *o + 1, &bytes))
        o = calloc(1, bytes);
    if (!o) {
        openai_error_set(p->error, 500, NULL, "out of memory");
        return NULL;
    }
    o->next = p->owned;
    p->owned = o;
    return o->bytes;
}

void openai_request_free(struct openai_request *q)
{
    if (!q)
        return;
    struct openai_private *p = q->private;
    while (p->owned) {
        struct openai_owned *next = p->owned->next;
        free(p->owned);
        p->owned = next;
    }
    json_decref(p->root);
    free(p);
}

int openai_refuse(struct openai_private *p, const char *param, const char *format, ...)
{
    char message[sizeof p->error->message];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    openai_error_set(p->error, 400, param, "%s", message);
    return -EINVAL;
}

/* ---- the body ---- */

/* Looks at nesting and numbers of values before anything is allocated for them. What is not JSON is
 * found later. */
static int scan(const char *body, size_t size, struct openai_error *e)
{
    size_t depth = 0, n_values = 1, n_containers = 0, n_names = 0;
    bool text = false;
    for (size_t i = 0; i != size; i++) {
        char c = body[i];
        if (text) {
            i += c == '\\' && i + 1 != size;
            text = c != '"';
            continue;
        }
        bool opens = c == '{' || c == '[';
        text = c == '"';
        depth += opens;
        depth -= depth && (c == '}' || c == ']');
        n_containers += opens;
        n_names += c == ':';
        n_values += opens || c == ',' || c == ':';
        if (depth > OPENAI_MAX_DEPTH || n_values > OPENAI_MAX_VALUES || n_names > MAX_NAMES ||
            n_containers > MAX_CONTAINERS) {
            openai_error_set(e, 400, NULL,
                             "the body is too large: expected at most %d values, %d of them lists "
                             "or objects, %d names, nested at most %d deep",
                             OPENAI_MAX_VALUES, MAX_CONTAINERS, MAX_NAMES, OPENAI_MAX_DEPTH);
            return -EINVAL;
        }
    }
    return 0;
}

/* Without the piece of the body that the parser's own message shows. */
static const char *reason(const json_error_t *e)
{
    switch (json_error_code(e)) {
    case json_error_invalid_utf8:
        return "it is not UTF-8";
    case json_error_premature_end_of_input:
        return "it ends too early";
    case json_error_duplicate_key:
        return "a name is there twice";
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "strings must not contain NUL";
    case json_error_numeric_overflow:
        return "a number is too large";
    case json_error_end_of_input_expected:
        return "something follows the object";
    default:
        return "a syntax error";
    }
}

static int load(struct openai_private *p, const char *body, size_t size)
{
    static const char mark[] = "\xef\xbb\xbf"; /* of byte order: some editors put it there */
    json_error_t error;
    if (size >= 3 && memcmp(body, mark, 3) == 0) {
        body += 3;
        size -= 3;
    }
    p->root = json_loadb(body, size, JSON_REJECT_DUPLICATES, &error);
    if (!p->root && json_error_code(&error) == json_error_numeric_overflow)
        /* Legal, and perhaps in a field that nobody reads: whoever does will find it too large. */
        p->root = json_loadb(body, size, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);
    if (!p->root && json_error_code(&error) == json_error_out_of_memory) {
        openai_error_set(p->error, 500, NULL, "out of memory");
        return -ENOMEM;
    }
    if (!p->root)
        return openai_refuse(p, NULL, "the body is not valid JSON: line %d, column %d: %s",
                             error.line, error.column, reason(&error));
    if (!json_is_object(p->root))
        return openai_refuse(p, NULL, "the body: expected a JSON object, found %s",
                             jsonfile_type_name(p->root));
    return 0;
}

/* The other names are somebody else's models. */
static int check_model(struct openai_private *p)
{
    const char *name = p->v.model, *ours = p->settings->model;
    if (!name || !*name || !ours || strcmp(name, ours) == 0)
        return 0;
    openai_error_set(p->error, 404, "model",
                     "model: this server has \"%s\" and no other (GET /v1/models)", ours);
    p->error->code = "model_not_found";
    return -EINVAL;
}

static int check_stream_options(struct openai_private *p)
{
    const json_t *options = p->v.stream_options;
    if (!options)
        return 0;
    if (!json_is_object(options))
        return openai_refuse(p, "stream_options", "stream_options: expected an object, found %s",
                             jsonfile_type_name(options));
    const json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_boolean(usage) && !json_is_null(usage))
        return openai_refuse(p, "stream_options",
                             "stream_options.include_usage: expected true or false, found %s",
                             jsonfile_type_name(usage));
    p->public.include_usage = p->v.stream && json_is_true(usage);
    return 0;
}

/* Text is what everything here is made of; a schema is something else. */
static int check_formats(struct openai_private *p)
{
    const json_t *format = p->v.response_format, *modalities = p->v.modalities;
    if (format) {
        const char *type = json_string_value(json_object_get(format, "type"));
        if (!type || strcmp(type, "text") != 0)
            return openai_refuse(p, "response_format",
                                 "response_format: this server has text only; structured output is "
                                 "not there");
    }
    for (size_t i = 0; i != json_array_size(modalities); i++) {
        const char *name = json_string_value(json_array_get(modalities, i));
        if (!name || strcmp(name, "text") != 0)
            return openai_refuse(p, "modalities", "modalities: this server has text only");
    }
    return 0;
}

static int build(struct openai_private *p)
{
    static int (*const builders[OPENAI_N_ROUTES])(struct openai_private *) = {
        [OPENAI_COMPLETIONS] = openai_build_completion,
        [OPENAI_CHAT] = openai_build_chat,
        [OPENAI_FILL] = openai_build_fill,
        [OPENAI_LEGACY] = openai_build_legacy,
        [OPENAI_TOKENIZE] = openai_build_tokenize,
        [OPENAI_DETOKENIZE] = openai_build_detokenize,
    };
    int r = check_model(p);
    if (r == 0)
        r = check_stream_options(p);
    if (r == 0)
        r = check_formats(p);
    return r == 0 ? builders[p->public.route](p) : r;
}

static int parse(struct openai_private *p, const char *body, size_t size)
{
    size_t max = p->settings->max_body_bytes;
    if (size > (max ? max : OPENAI_MAX_BODY_BYTES)) {
        openai_error_set(p->error, 413, NULL, "the body: expected at most %zu bytes, found %zu",
                         max ? max : (size_t)OPENAI_MAX_BODY_BYTES, size);
        return -EINVAL;
    }
    int r = scan(body, size, p->error);
    if (r == 0)
        r = load(p, body, size);
    if (r == 0)
        r = openai_take_fields(p);
    if (r == 0)
        r = build(p);
    return r;
}

int openai_parse(const struct openai_settings *s, enum openai_route route, const char *body,
                 size_t size, struct openai_request **ret, struct openai_error *ret_error)
{
    assert(route < OPENAI_N_ROUTES);
    struct openai_private *p = calloc(1, sizeof *p);
    *ret_error = (struct openai_error){0};
    if (!p) {
        openai_error_set(ret_error, 500, NULL, "out of memory");
        return -ENOMEM;
    }
    struct openai_request *q = &p->public;
    q->route = route;
    q->private = p;
    q->n_choices = 1;
    q->request_id = "";
    p->settings = s;
    p->error = ret_error;
    int r = parse(p, body, size);
    p->settings = NULL;
    p->error = NULL;
    if (r < 0) {
        openai_request_free(q);
        return ret_error->status >= 500 ? -ENOMEM : r;
    }
    q->stream = p->v.stream;
    q->echo = p->v.echo;
    q->token_strs = p->v.token_strs;
    *ret = q;
    return 0;
}
