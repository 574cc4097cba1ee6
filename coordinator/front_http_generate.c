/* front_http_generate.c: requests that generate: a call of front.h for every prompt, and one answer
 * for all of them. See front_http.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/front_http_internal.h"

static const char heartbeat[] = ": waiting\n\n";

/* ---- answers ---- */

static void begin_stream(struct http_front *f)
{
    if (f->begun || !f->http)
        return;
    f->begun = true;
    f->status = 200;
    http_set_header(f->http, "X-Request-Id", f->request_id);
    http_set_header(f->http, "Cache-Control", "no-store");
    http_set_header(f->http, "X-Accel-Buffering", "no"); /* of proxies that hold events back */
    http_begin(f->http, 200, openai_reply_content_type(f->reply), heartbeat);
}

static void send_events(struct http_front *f, const struct buf *events)
{
    if (!f->http || events->size == 0)
        return;
    begin_stream(f);
    http_send(f->http, events->data, events->size);
}

/* The calls that still run are of no use: one of them failed. */
static void fail(struct http_front *f, const struct openai_error *e)
{
    struct buf out = {0};
    if (f->ended || !f->http)
        return;
    if (!f->begun) {
        http_front_error(f, e);
    } else {
        f->ended = true;
        http_close_after(f->http); /* nobody takes it for a whole answer */
        if (openai_reply_fail(f->reply, e, &out) == 0) {
            http_send(f->http, out.data, out.size);
            http_finish(f->http);
        } else {
            http_cancel(f->http);
        }
    }
    buf_deinit(&out);
    http_front_leave(f);
}

static void fail_inside(struct http_front *f)
{
    struct openai_error e;
    openai_error_set(&e, 500, NULL, "the answer could not be made");
    fail(f, &e);
}

static void finish(struct http_front *f)
{
    struct buf out = {0};
    if (f->ended || !f->http)
        return;
    int r = openai_reply_finish(f->reply, &out);
    if (r < 0) {
        fail_inside(f);
    } else if (f->request->stream) {
        begin_stream(f);
        f->ended = true;
        http_send(f->http, out.data, out.size);
        http_finish(f->http);
    } else {
        http_front_bytes(f, 200, openai_reply_content_type(f->reply), out.data, out.size);
    }
    buf_deinit(&out);
}

/* ---- calls ---- */

static int on_message(void *user, const struct stream_message *m)
{
    struct http_piece *p = user;
    struct http_front *f = p->front;
    struct buf out = {0};
    if (f->ended || !f->http)
        return 0;
    int r = openai_reply_message(f->reply, p->prompt, m, &out);
    if (r == 0)
        send_events(f, &out);
    buf_deinit(&out);
    return r == 0 ? 0 : -ENOMEM;
}

static void on_end(void *user, const struct front_end *end)
{
    struct http_piece *p = user;
    struct http_front *f = p->front;
    p->call = NULL;
    f->n_running--;
    if (end->status != RPC_OK) {
        struct openai_error e;
        openai_error_from_rpc(&e, end->status, end->message, end->retry_after_ns);
        openai_error_rename(&e, f->request);
        fail(f, &e);
    } else if (f->n_running == 0) {
        finish(f);
    }
    http_front_release(f);
}

static size_t unsent(void *user)
{
    const struct http_piece *p = user;
    const struct http_front *f = p->front;
    return f->http && f->begun ? http_queued_bytes(f->http) : 0;
}

static const struct front_ops ops = {.message = on_message, .end = on_end, .unsent = unsent};

void http_front_leave(struct http_front *f)
{
    bool outer = f->leaving;
    f->leaving = true; /* the pump may end others of this request meanwhile */
    for (uint32_t i = 0; i != f->n_pieces; i++) {
        struct front_call *call = f->pieces[i].call;
        if (!call)
            continue;
        f->pieces[i].call = NULL;
        f->n_running--;
        front_gone(call);
    }
    f->leaving = outer;
}

void http_front_drained(struct http_front *f)
{
    bool outer = f->leaving;
    f->leaving = true;
    for (uint32_t i = 0; i != f->n_pieces; i++) {
        if (f->pieces[i].call)
            front_drained(f->pieces[i].call);
    }
    f->leaving = outer;
}

/* ---- opening ---- */

static bool open_pieces(struct http_front *f, struct http_job *j, struct front_end *ret_refused)
{
    const struct front_origin origin = {
        .key = http_header(f->http, "authorization"),
        .traceparent = http_header(f->http, "traceparent"),
        .deadline_ns = f->deadline_ns,
        .arrived_ns = f->arrived_ns,
        .open_ended = f->request->open_ended,
    };
    assert(j->n_prepared <= f->n_pieces);
    for (uint32_t i = 0; i != j->n_prepared; i++) {
        struct http_piece *p = &f->pieces[i];
        p->front = f;
        p->prompt = i;
        p->call =
            front_open(f->server->coordinator, &origin, &j->prepared[i], &ops, p, ret_refused);
        if (!p->call)
            return false;
        f->n_running++;
    }
    return true;
}

static const char *piece_of(const void *tokenizer, int32_t id)
{
    return tokenizer_piece(tokenizer, id);
}

static int text_of(const void *tokenizer, const int32_t *ids, size_t n, struct buf *ret_text)
{
    return stream_decode(tokenizer, ids, n, ret_text);
}

static int make_reply(struct http_front *f)
{
    const struct front_http *h = f->server;
    const struct openai_identity identity = {
        .id = f->request_id,
        .model = h->coordinator->model_name,
        .fingerprint = h->fingerprint,
        .created = h->created + (clock_now_ns() - h->coordinator->started_ns) / NSEC_PER_SEC,
        .tokens = {.context = h->coordinator->tokenizer, .piece = piece_of, .decode = text_of},
    };
    f->n_pieces = MAX(f->request->n_prompts, 1U);
    f->pieces = alloc_array(f->n_pieces, sizeof *f->pieces);
    return f->pieces ? openai_reply_new(f->request, &identity, &f->reply) : -ENOMEM;
}

/* Somebody expects something of them. */
static void note_unknown(const struct http_front *f)
{
    const struct openai_request *q = f->request;
    if (!q->n_unknown)
        return;
    f->server->coordinator->metrics.unknown_fields += q->n_unknown;
    log_event(LOG_LEVEL_DEBUG, LOG(.request = f->request_id),
              "http: %s: ignored %u unknown fields: %s", f->route->path, q->n_unknown, q->unknown);
}

static void on_parsed(struct http_front *f, struct http_job *j)
{
    struct front_end refused;
    f->request = j->request;
    j->request = NULL;
    memcpy(f->request_id, j->request_id, sizeof f->request_id);
    note_unknown(f);
    if (make_reply(f) < 0) {
        fail_inside(f);
    } else if (!open_pieces(f, j, &refused)) {
        struct openai_error error;
        openai_error_from_rpc(&error, refused.status, refused.message, refused.retry_after_ns);
        openai_error_rename(&error, f->request);
        fail(f, &error);
    } else {
        coordinator_pump(f->server->coordinator);
    }
}

void http_front_generate(struct http_front *f)
{
    http_job_start(f, on_parsed);
}

/* Whoever has waited for long for a first event gets the head of the stream, and heartbeats. */
void http_front_tick(struct http_front *f, int64_t now_ns)
{
    int64_t patience = f->server->coordinator->config->coordinator.http.heartbeat;
    if (f->http && f->reply && f->request->stream && !f->begun && !f->ended &&
        now_ns - f->arrived_ns >= patience)
        begin_stream(f);
}
