/* front_http.c: the server, heads of requests, answers that are not generations. See front_http.h.
 */
#include "coordinator/front_http.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/front_http_internal.h"

#define CROWDED_RETRY_NS NSEC_PER_SEC
#define TICK_MS          1000

/* A text may come as escapes, six bytes for three; and there is more in a body than its text. */
static size_t max_body(const struct coordinator *c)
{
    size_t input = (size_t)c->config->coordinator.limits.max_input_bytes;
    return MIN((size_t)OPENAI_MAX_BODY_BYTES, 8 * input + 64 * 1024);
}

/* ---- answers ---- */

static void end(struct http_front *f, unsigned status)
{
    f->ended = true;
    f->status = status;
}

void http_front_bytes(struct http_front *f, unsigned status, const char *content_type,
                      const void *data, size_t size)
{
    if (!f->http || f->ended)
        return;
    end(f, status);
    http_set_header(f->http, "X-Request-Id", f->request_id);
    http_respond(f->http, status, content_type, data, size);
}

void http_front_json(struct http_front *f, unsigned status, const struct buf *body)
{
    http_front_bytes(f, status, "application/json", body->data, body->size);
}

static void add_retry_after(struct http_front *f, int64_t retry_after_ns)
{
    char seconds[24];
    if (retry_after_ns <= 0)
        return;
    snprintf(seconds, sizeof seconds, "%" PRId64,
             (retry_after_ns + NSEC_PER_SEC - 1) / NSEC_PER_SEC);
    http_set_header(f->http, "Retry-After", seconds);
}

void http_front_error(struct http_front *f, const struct openai_error *e)
{
    struct buf body = {0};
    if (!f->http || f->ended)
        return;
    add_retry_after(f, e->retry_after_ns);
    if (e->status == 401)
        http_set_header(f->http, "WWW-Authenticate", "Bearer");
    if (openai_error_encode(e, &body) == 0)
        http_front_json(f, (unsigned)e->status, &body);
    else
        http_cancel(f->http);
    buf_deinit(&body);
}

void http_front_refused(struct http_front *f, const struct front_end *refused)
{
    struct openai_error e;
    openai_error_from_rpc(&e, refused->status, refused->message, refused->retry_after_ns);
    http_front_error(f, &e);
}

void http_front_fail(struct http_front *f, int code)
{
    struct openai_error e;
    log_error("http: %s: %s", f->route->path, err_name(code)); /* names below it are a client's */
    openai_error_set(&e, 500, NULL, "the answer could not be made");
    http_front_error(f, &e);
}

static void refuse(struct http_front *f, int status, int64_t retry_after_ns, const char *why)
{
    struct openai_error e;
    openai_error_set(&e, status, NULL, "%s", why);
    e.retry_after_ns = retry_after_ns;
    http_front_error(f, &e);
}

void http_front_busy(struct http_front *f, const char *why)
{
    struct front_end end;
    front_refuse(f->server->coordinator, -ENOBUFS, why, &end);
    refuse(f, 503, CROWDED_RETRY_NS, why);
}

void http_front_unparsed(struct http_front *f, const struct openai_error *e)
{
    struct front_end end;
    front_refuse(f->server->coordinator, -EINVAL, e->message, &end);
    http_front_error(f, e);
}

struct openai_settings http_front_settings(const struct http_front *f)
{
    return (struct openai_settings){
        .model = f->server->coordinator->model_name,
        .dialogue = &f->server->dialogue,
        .max_tokens =
            (uint32_t)f->server->coordinator->config->coordinator.limits.max_tokens_per_request,
        .max_body_bytes = max_body(f->server->coordinator),
    };
}

/* ---- heads ---- */

/* The client's name for the request, where it is one that admission takes; else one of ours. */
static void set_request_id(struct http_front *f)
{
    const char *id = http_header(f->http, "x-request-id");
    size_t n = id ? strlen(id) : 0;
    bool good = n > 0 && n < sizeof f->request_id;
    for (size_t i = 0; good && i != n; i++)
        good = id[i] >= 0x20 && id[i] <= 0x7e;
    if (good)
        memcpy(f->request_id, id, n + 1);
    else
        snprintf(f->request_id, sizeof f->request_id, "%s-h%" PRIu64,
                 f->server->coordinator->id_prefix, f->server->n_calls);
}

/* X-Request-Timeout: seconds, as a decimal number. */
static bool set_deadline(struct http_front *f)
{
    const char *text = http_header(f->http, "x-request-timeout");
    if (!text)
        return true;
    if (text[strspn(text, "0123456789.")] || strlen(text) > 12 || !strpbrk(text, "123456789"))
        return false;
    char *rest;
    double seconds = strtod(text, &rest);
    if (*rest)
        return false;
    f->deadline_ns = f->arrived_ns + (int64_t)(MIN(seconds, 86400.0) * (double)NSEC_PER_SEC);
    return true;
}

/* A page of another site may send a form, but no JSON, to a server on this host. */
static bool is_json(const struct http_call *c)
{
    const char *type = http_header(c, "content-type");
    static const char json[] = "application/json";
    if (!type)
        return true;
    return strncasecmp(type, json, sizeof json - 1) == 0 &&
           strchr("; \t", type[sizeof json - 1]) != NULL;
}

/* Nothing is inflated here: it has no bound. */
static bool is_plain(const struct http_call *c)
{
    const char *coding = http_header(c, "content-encoding");
    return !coding || !*coding || strcasecmp(coding, "identity") == 0;
}

static bool is_allowed(struct http_front *f)
{
    struct front_end refused;
    const char *key = http_header(f->http, "authorization");
    if (front_allowed(f->server->coordinator, key, f->route->need, &refused))
        return true;
    http_front_refused(f, &refused);
    return false;
}

/* 413, which counts as what a body that cannot be parsed does. */
static void refuse_long(struct http_front *f)
{
    struct openai_error e;
    openai_error_set(&e, 413, NULL, "the body is too long");
    http_front_unparsed(f, &e);
}

static void look_at_head(struct http_front *f)
{
    const char *allow, *why;
    unsigned bad = http_bad_head(f->http, &why);
    if (bad) {
        refuse(f, (int)bad, 0, why);
        return;
    }
    f->route = http_route_find(http_method(f->http), http_path(f->http), &allow);
    if (!f->route && allow) {
        http_set_header(f->http, "Allow", allow);
        refuse(f, 405, 0, "this path is not served by that method");
    } else if (!f->route) {
        refuse(f, 404, 0, "there is nothing at this path; /openapi.json lists what there is");
    } else if (http_crowded(f->http) && !f->route->always) {
        http_front_busy(f, "too many connections");
    } else if (!is_allowed(f)) {
        return;
    } else if (f->route->json && !is_json(f->http)) {
        refuse(f, 415, 0, "expected Content-Type: application/json");
    } else if (f->route->json && !is_plain(f->http)) {
        refuse(f, 415, 0, "Content-Encoding: bodies are taken as they are, not compressed");
    } else if (!set_deadline(f)) {
        refuse(f, 400, 0, "X-Request-Timeout: expected seconds");
    } else {
        if (!f->route->json)
            http_set_max_body(f->http, 0);
        if (http_oversized(f->http) && !http_forgets(f->http))
            refuse_long(f);
    }
}

static void on_head(struct http_call *c, void *context)
{
    struct front_http *h = context;
    struct http_front *f = calloc(1, sizeof *f);
    if (!f) {
        http_cancel(c);
        return;
    }
    f->server = h;
    f->http = c;
    f->arrived_ns = clock_now_ns();
    f->next = h->calls;
    if (h->calls)
        h->calls->prev = f;
    h->calls = f;
    h->n_calls++;
    http_set_user(c, f);
    set_request_id(f);
    look_at_head(f);
}

static void on_request(struct http_call *c, void *context)
{
    struct http_front *f = http_user(c);
    (void)context;
    if (http_oversized(c))
        refuse_long(f);
    else
        f->route->serve(f);
}

static void on_drained(struct http_call *c, void *context)
{
    (void)context;
    http_front_drained(http_user(c));
}

static void log_call(const struct http_front *f, bool complete)
{
    char trace[TIMELINE_TRACE_BYTES];
    timeline_trace(http_header(f->http, "traceparent"), trace);
    log_event(LOG_LEVEL_DEBUG, LOG(.request = f->request_id, .trace = trace),
              "http: %s: %s %s: %u%s, %.1f ms", http_peer(f->http), http_method(f->http),
              f->route ? f->route->path : "unknown", f->status, complete ? "" : ", cut off",
              (double)(clock_now_ns() - f->arrived_ns) / (double)NSEC_PER_MSEC);
}

static void on_done(struct http_call *c, bool complete, void *context)
{
    struct http_front *f = http_user(c);
    (void)context;
    if (!f)
        return;
    log_call(f, complete);
    f->http = NULL;
    if (f->job)
        f->job->front = NULL;
    f->job = NULL;
    http_front_leave(f);
    http_front_release(f);
}

static const struct http_handler handler = {
    .on_head = on_head, .on_request = on_request, .on_drained = on_drained, .on_done = on_done};

void http_front_release(struct http_front *f)
{
    if (f->http || f->n_running || f->leaving)
        return;
    if (f->prev)
        f->prev->next = f->next;
    else
        f->server->calls = f->next;
    if (f->next)
        f->next->prev = f->prev;
    openai_reply_free(f->reply);
    openai_request_free(f->request);
    free(f->pieces);
    free(f);
}

/* ---- the server ---- */

static void on_tick(uv_timer_t *t)
{
    struct front_http *h = t->data;
    int64_t now = clock_now_ns();
    for (struct http_front *f = h->calls; f; f = f->next)
        http_front_tick(f, now);
}

static void set_address(struct front_http *h)
{
    const char *listen = h->coordinator->config->coordinator.http.listen;
    const char *colon = strrchr(listen, ':');
    if (strncmp(listen, "unix:", 5) == 0 || !colon) {
        snprintf(h->address, sizeof h->address, "%s", listen);
        return;
    }
    int n = (int)(colon - listen);
    bool any4 = n == 7 && strncmp(listen, "0.0.0.0", 7) == 0;
    bool any6 = n == 4 && strncmp(listen, "[::]", 4) == 0;
    if (any4 || any6)
        snprintf(h->address, sizeof h->address, "%s:%d", any4 ? "127.0.0.1" : "[::1]", h->port);
    else
        snprintf(h->address, sizeof h->address, "%.*s:%d", n, listen, h->port);
}

static int listen_there(struct front_http *h, struct err *e)
{
    const struct config *c = h->coordinator->config;
    bool anybody = c->coordinator.tls_clients == CONFIG_TLS_CLIENTS_NOTHING;
    const struct http_tls tls = {.cert_file = c->coordinator.tls.cert,
                                 .key_file = c->coordinator.tls.key,
                                 .ca_file = anybody ? NULL : c->coordinator.tls.ca};
    int r = http_server_listen(h->server, c->coordinator.http.listen,
                               *c->coordinator.tls.cert ? &tls : NULL, &h->port, e);
    if (r < 0)
        return err_prefix(e, "coordinator.http.listen");
    set_address(h);
    if (!auth_has_keys(h->coordinator->auth) && !config_is_local(c->coordinator.http.listen))
        log_warn("everybody who reaches %s may use it: coordinator.keys is not set", h->address);
    return 0;
}

int front_http_new(struct coordinator *c, struct uv_loop_s *loop, struct front_http **ret,
                   struct err *e)
{
    struct front_http *h = calloc(1, sizeof *h);
    if (!h)
        return err_set(e, -ENOMEM, "out of memory");
    const struct config *f = c->config;
    const struct http_config config = {
        .loop = loop,
        .handler = &handler,
        .context = h,
        .limits = {.max_head_bytes = (size_t)f->coordinator.http.max_head_bytes,
                   .max_body_bytes = max_body(c),
                   .max_connections = (uint32_t)f->coordinator.limits.max_connections,
                   .head_ns = f->coordinator.http.head_timeout,
                   .idle_ns = f->coordinator.http.idle_timeout,
                   .body_ns = f->coordinator.http.body_timeout,
                   .heartbeat_ns = f->coordinator.http.heartbeat},
    };
    h->coordinator = c;
    h->created = time(NULL);
    snprintf(h->fingerprint, sizeof h->fingerprint, "glmd-%.12s", model_dir_digest(c->model)->hex);
    if (http_server_new(&config, &h->server) < 0) {
        free(h);
        return err_set(e, -ENOMEM, "out of memory");
    }
    uv_timer_init(loop, &h->tick);
    uv_timer_start(&h->tick, on_tick, TICK_MS, TICK_MS);
    h->tick.data = h;
    h->n_open = 2;
    *ret = h;
    int r = dialogue_load(f->model.dir, &h->dialogue, e);
    return r == 0 ? listen_there(h, e) : r;
}

const char *front_http_address(const struct front_http *h)
{
    return h->address;
}

int front_http_port(const struct front_http *h)
{
    return h->port;
}

/* ---- stop ---- */

void http_front_part_stopped(struct front_http *h)
{
    assert(h->n_open > 0);
    if (--h->n_open)
        return;
    void (*on_stopped)(void *context) = h->on_stopped;
    void *context = h->stopped_context;
    assert(!h->calls);
    free(h);
    on_stopped(context);
}

static void on_server_stopped(void *context)
{
    http_front_part_stopped(context);
}

static void on_tick_closed(uv_handle_t *t)
{
    http_front_part_stopped(t->data);
}

void front_http_stop(struct front_http *h, int64_t grace_ns, void (*on_stopped)(void *context),
                     void *context)
{
    h->on_stopped = on_stopped;
    h->stopped_context = context;
    uv_close((uv_handle_t *)&h->tick, on_tick_closed);
    http_server_shutdown(h->server, grace_ns, on_server_stopped, h);
}
