/* http_routes.c: the table, and the routes that are answered at once. See http_routes.h. */
#include "coordinator/http_routes.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/front_http_internal.h"
#include "coordinator/json_out.h"
#include "coordinator/page.h"

#define JSON_TYPE "application/json"

static void answer(struct http_front *f, int code, struct buf *out)
{
    if (code == 0)
        http_front_json(f, 200, out);
    else
        http_front_fail(f, code);
    buf_deinit(out);
}

/* ---- models and tokens ---- */

static void serve_models(struct http_front *f)
{
    struct wire_model_info m;
    struct buf out = {0};
    status_model(f->server->coordinator, &m);
    answer(f, openai_models_encode(&m, 1, f->server->created, &out), &out);
}

static void serve_model(struct http_front *f)
{
    struct wire_model_info m;
    struct buf out = {0};
    const char *name = http_path(f->http) + strlen("/v1/models/");
    status_model(f->server->coordinator, &m);
    if (strcmp(name, m.id) != 0) {
        struct openai_error e;
        openai_error_set(&e, 404, "model", "this server has no model of that name");
        http_front_error(f, &e);
        return;
    }
    answer(f, openai_model_encode(&m, f->server->created, &out), &out);
}

static void refuse(struct http_front *f, int code, const struct err *e)
{
    struct front_end end;
    front_refuse(f->server->coordinator, code, e->message, &end);
    http_front_refused(f, &end);
}

static void on_tokens(struct http_front *f, struct http_job *j)
{
    if (j->code < 0)
        refuse(f, j->code, &j->why);
    else
        http_front_json(f, 200, &j->answer);
}

static void serve_tokens(struct http_front *f)
{
    http_job_start(f, on_tokens);
}

/* Evaluation harnesses look here before they count tokens with /tokenize. */
static void serve_tokenizer(struct http_front *f)
{
    const struct coordinator *c = f->server->coordinator;
    const struct arch *a = model_dir_arch(c->model);
    const char *eos = tokenizer_piece(c->tokenizer, a->tokens.eos);
    struct buf out = {0};
    answer(f, openai_tokenizer_encode(eos ? eos : "</s>", a->max_seq, &out), &out);
}

/* ---- state ---- */

static void serve_version(struct http_front *f)
{
    struct buf out = {0};
    answer(f, openai_version_encode(GLMD_VERSION, &out), &out);
}

static void say_state(struct http_front *f, unsigned status, const char *state)
{
    struct buf out = {0};
    struct json_out o = {&out, 0};
    json_raw(&o, "{\"status\":");
    json_text(&o, state);
    json_raw(&o, "}\n");
    if (o.error == 0)
        http_front_json(f, status, &out);
    else
        http_front_fail(f, o.error);
    buf_deinit(&out);
}

/* The loop turns: that is all. */
static void serve_live(struct http_front *f)
{
    say_state(f, 200, "live");
}

/* Requests that come now are taken. */
static void serve_ready(struct http_front *f)
{
    const struct coordinator *c = f->server->coordinator;
    struct sched_stats s;
    sched_stats(c->sched, &s);
    if (c->draining || c->stopping)
        say_state(f, 503, "draining");
    else if (!fleet_any_ready(c->fleet))
        say_state(f, 503, "waiting for ranks");
    else if (s.n_waiting >= c->config->coordinator.limits.max_queue)
        say_state(f, 503, "the queue is full");
    else
        say_state(f, 200, "ready");
}

static void serve_load(struct http_front *f)
{
    const struct coordinator *c = f->server->coordinator;
    struct sched_stats s;
    struct buf out = {0};
    sched_stats(c->sched, &s);
    struct json_out o = {&out, 0};
    json_raw(&o, "{\"server_load\":");
    json_u64(&o, (uint64_t)s.n_running + s.n_waiting);
    json_raw(&o, ",\"running\":");
    json_u64(&o, s.n_running);
    json_raw(&o, ",\"waiting\":");
    json_u64(&o, s.n_waiting);
    json_raw(&o, "}\n");
    answer(f, o.error, &out);
}

static void serve_status(struct http_front *f)
{
    struct buf out = {0};
    answer(f, page_status(f->server->coordinator, &out), &out);
}

static void serve_metrics(struct http_front *f)
{
    struct buf out = {.limit = METRICS_MAX_BYTES};
    int code = coordinator_metrics(f->server->coordinator, &out);
    if (code == 0)
        http_front_bytes(f, 200, "text/plain; version=0.0.4; charset=utf-8", out.data, out.size);
    else
        http_front_fail(f, code);
    buf_deinit(&out);
}

static void serve_openapi(struct http_front *f)
{
    http_front_bytes(f, 200, JSON_TYPE, openai_openapi, openai_openapi_size);
}

/* ---- the page ---- */

static void serve_file(struct http_front *f)
{
    const struct page_file *file = page_files;
    while (strcmp(file->path, http_path(f->http)) != 0)
        file++; /* it was found in there */
    http_set_header(f->http, "Content-Security-Policy", PAGE_SECURITY_POLICY);
    http_set_header(f->http, "X-Content-Type-Options", "nosniff");
    http_set_header(f->http, "Referrer-Policy", "no-referrer");
    http_set_header(f->http, "Cache-Control", "no-cache");
    http_front_bytes(f, 200, file->content_type, file->data, *file->size);
}

/* ---- the table ---- */

#define GENERATES(path, kind)                                                                      \
    {                                                                                              \
        "POST", path, AUTH_USER, false, true, kind, http_front_generate                            \
    }
#define PROBE(path, serve)                                                                         \
    {                                                                                              \
        "GET", path, AUTH_PUBLIC, true, false, 0, serve                                            \
    }

const struct http_route http_routes[] = {
    GENERATES("/v1/completions", OPENAI_COMPLETIONS),
    GENERATES("/v1/chat/completions", OPENAI_CHAT),
    GENERATES("/v1/fill", OPENAI_FILL),
    GENERATES("/generate", OPENAI_LEGACY),
    {"POST", "/tokenize", AUTH_USER, false, true, OPENAI_TOKENIZE, serve_tokens},
    {"POST", "/detokenize", AUTH_USER, false, true, OPENAI_DETOKENIZE, serve_tokens},
    {"GET", "/tokenizer_info", AUTH_USER, false, false, 0, serve_tokenizer},
    {"GET", "/v1/models", AUTH_USER, false, false, 0, serve_models},
    {"GET", "/v1/models/*", AUTH_USER, false, false, 0, serve_model},
    {"GET", "/version", AUTH_USER, false, false, 0, serve_version},
    {"GET", "/load", AUTH_USER, true, false, 0, serve_load},
    {"GET", "/status", AUTH_USER, true, false, 0, serve_status},
    {"GET", "/metrics", AUTH_USER, true, false, 0, serve_metrics},
    {"GET", "/openapi.json", AUTH_PUBLIC, false, false, 0, serve_openapi},
    PROBE("/health", serve_ready),
    PROBE("/ping", serve_ready),
    PROBE("/health/live", serve_live),
    PROBE("/health/ready", serve_ready),
    PROBE("/v2/health/live", serve_live),
    PROBE("/v2/health/ready", serve_ready),
};
const size_t http_n_routes = ARRAY_LEN(http_routes);

static bool matches(const struct http_route *r, const char *path)
{
    size_t n = strlen(r->path);
    if (r->path[n - 1] != '*')
        return strcmp(r->path, path) == 0;
    return strncmp(r->path, path, n - 1) == 0 && path[n - 1];
}

const struct http_route *http_route_find(const char *method, const char *path,
                                         const char **ret_allow)
{
    static const struct http_route file = {"GET", "", AUTH_PUBLIC, false, false, 0, serve_file};
    const struct http_route *found = NULL;
    for (size_t i = 0; i != http_n_routes && !found; i++) {
        if (matches(&http_routes[i], path))
            found = &http_routes[i];
    }
    for (size_t i = 0; i != page_n_files && !found; i++) {
        if (strcmp(page_files[i].path, path) == 0)
            found = &file;
    }
    bool get = found && strcmp(found->method, "GET") == 0;
    *ret_allow = get ? "GET, HEAD" : found ? found->method : NULL;
    if (!found)
        return NULL;
    bool same = strcmp(method, found->method) == 0 || (get && strcmp(method, "HEAD") == 0);
    return same ? found : NULL;
}
