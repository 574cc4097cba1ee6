/* http_call.c: requests and answers: what MHD asks of a connection's owner. See http.h.
 *
 * MHD calls http_on_access for a head, for every piece of a body, for its end, and again whenever a
 * suspended connection was resumed; the answer is queued there, and nowhere else. A connection is
 * suspended while its call is with the user and there is nothing to write. The bytes of a stream
 * are fetched by MHD (read_stream) when the socket has room for them.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/http_internal.h"

enum {
    STREAM_BLOCK_BYTES = 4096,
    MIN_DISCARD_BYTES = 64 * 1024, /* are read and forgotten, to be able to say why */
    MAX_DISCARD = 8,               /* and so many times max_body */
};

/* ---- the user's side ---- */

static void tell_done(struct http_call *c, bool complete)
{
    if (c->told)
        return;
    c->told = true;
    c->server->handler->on_done(c, complete, c->server->context);
}

/* MHD looks at the connection again. */
static void wake(struct http_call *c)
{
    if (!c->suspended)
        return;
    c->suspended = false;
    http_server_resume(c->server, c->conn);
}

void http_call_gone(struct http_call *c)
{
    if (c->finished && !c->cancelled && !c->server->stopped)
        return; /* the rest of the answer may still be wanted */
    c->cancelled = true;
    c->finished = true;
    tell_done(c, false);
    if (c->suspended)
        wake(c);
    else
        http_conn_cut(c->conn);
}

void http_set_user(struct http_call *c, void *user)
{
    c->user = user;
}

void *http_user(const struct http_call *c)
{
    return c->user;
}

const char *http_method(const struct http_call *c)
{
    return c->method;
}

const char *http_path(const struct http_call *c)
{
    return c->path;
}

const char *http_query(const struct http_call *c, const char *name)
{
    return MHD_lookup_connection_value(c->conn->mhd, MHD_GET_ARGUMENT_KIND, name);
}

const char *http_header(const struct http_call *c, const char *name)
{
    return MHD_lookup_connection_value(c->conn->mhd, MHD_HEADER_KIND, name);
}

const char *http_peer(const struct http_call *c)
{
    return c->conn->peer;
}

const char *http_body(const struct http_call *c, size_t *ret_size)
{
    *ret_size = c->body.size;
    return c->body.size ? c->body.data : "";
}

void http_take_body(struct http_call *c, struct buf *ret)
{
    *ret = c->body;
    c->body = (struct buf){0};
}

bool http_crowded(const struct http_call *c)
{
    return c->conn->crowded;
}

unsigned http_bad_head(const struct http_call *c, const char **ret_why)
{
    *ret_why = c->bad_why;
    return c->bad_head;
}

void http_set_max_body(struct http_call *c, size_t bytes)
{
    c->max_body = bytes;
    c->oversized = c->promised != UINT64_MAX && c->promised > bytes;
}

bool http_oversized(const struct http_call *c)
{
    return c->oversized;
}

static uint64_t patience(const struct http_call *c)
{
    return MIN_DISCARD_BYTES + (uint64_t)MAX_DISCARD * c->max_body;
}

bool http_forgets(const struct http_call *c)
{
    return c->promised <= patience(c) && !http_header(c, "expect");
}

static bool is_field_text(const char *text)
{
    for (; *text; text++) {
        unsigned char u = (unsigned char)*text;
        if (u < 0x20 || u == 0x7f)
            return false;
    }
    return true;
}

int http_set_header(struct http_call *c, const char *name, const char *value)
{
    if (!is_field_text(name) || !is_field_text(value))
        return -EINVAL;
    if (c->n_fields == HTTP_MAX_ANSWER_HEADERS)
        return -ENOSPC;
    struct http_field f = {strdup(name), strdup(value)};
    if (!f.name || !f.value) {
        free(f.name);
        free(f.value);
        return -ENOMEM;
    }
    c->fields[c->n_fields++] = f;
    return 0;
}

static bool begin(struct http_call *c, enum http_answer answer, unsigned status,
                  const char *content_type)
{
    if (c->answer != HTTP_ANSWER_NONE || c->cancelled)
        return false;
    c->answer = answer;
    c->status = status;
    c->content_type = strdup(content_type);
    c->sent_ns = clock_now_ns();
    return true;
}

void http_respond(struct http_call *c, unsigned status, const char *content_type, const void *body,
                  size_t size)
{
    if (!begin(c, HTTP_ANSWER_WHOLE, status, content_type))
        return;
    c->finished = true;
    if (buf_append(&c->out, body, size) < 0)
        c->cancelled = true;
    wake(c);
}

void http_begin(struct http_call *c, unsigned status, const char *content_type,
                const char *heartbeat)
{
    if (!begin(c, HTTP_ANSWER_STREAM, status, content_type))
        return;
    c->heartbeat = heartbeat;
    wake(c);
}

void http_send(struct http_call *c, const void *data, size_t size)
{
    assert(c->answer == HTTP_ANSWER_STREAM || c->cancelled);
    if (c->finished || c->cancelled || size == 0)
        return;
    if (c->out_start >= STREAM_BLOCK_BYTES && c->out_start > c->out.size / 2) {
        buf_consume(&c->out, c->out_start);
        c->out_start = 0;
    }
    c->sent_ns = clock_now_ns();
    if (buf_append(&c->out, data, size) < 0)
        http_cancel(c);
    else
        wake(c);
}

size_t http_queued_bytes(const struct http_call *c)
{
    return c->out.size - c->out_start;
}

void http_finish(struct http_call *c)
{
    c->finished = true;
    wake(c);
}

void http_close_after(struct http_call *c)
{
    c->closing = true;
}

void http_cancel(struct http_call *c)
{
    if (c->cancelled)
        return;
    c->cancelled = true;
    c->finished = true;
    if (c->suspended)
        wake(c);
    else if (c->queued)
        http_conn_cut(c->conn);
}

/* ---- answers to MHD ---- */

static ssize_t read_stream(void *context, uint64_t position, char *to, size_t max)
{
    struct http_call *c = context;
    size_t n = MIN(http_queued_bytes(c), max);
    (void)position;
    if (c->cancelled)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0 && c->finished)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == 0) {
        c->suspended = true;
        MHD_suspend_connection(c->conn->mhd);
        return 0;
    }
    memcpy(to, c->out.data + c->out_start, n);
    c->out_start += n;
    if (http_queued_bytes(c) == 0) {
        buf_clear(&c->out);
        c->out_start = 0;
        if (!c->finished && !c->told && c->server->handler->on_drained)
            c->server->handler->on_drained(c, c->server->context);
    }
    return (ssize_t)n;
}

static struct MHD_Response *make_response(struct http_call *c)
{
    struct MHD_Response *r;
    if (c->answer == HTTP_ANSWER_STREAM)
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, c,
                                              NULL);
    else /* the bytes live as long as the call, which outlives its answer */
        r = MHD_create_response_from_buffer(c->out.size, c->out.data, MHD_RESPMEM_PERSISTENT);
    if (!r)
        return NULL;
    if (c->content_type && *c->content_type)
        MHD_add_response_header(r, "Content-Type", c->content_type);
    for (size_t i = 0; i != c->n_fields; i++)
        MHD_add_response_header(r, c->fields[i].name, c->fields[i].value);
    if (c->server->stopping || c->conn->crowded || c->closing)
        MHD_add_response_header(r, "Connection", "close");
    return r;
}

static enum MHD_Result queue_answer(struct http_call *c)
{
    struct MHD_Response *r = make_response(c);
    if (!r)
        return MHD_NO;
    c->queued = true;
    enum MHD_Result result = MHD_queue_response(c->conn->mhd, c->status, r);
    MHD_destroy_response(r);
    return result;
}

/* What is to become of the connection: an answer, a break, or nothing for now. */
static enum MHD_Result decide(struct http_call *c)
{
    if (c->cancelled)
        return MHD_NO;
    if (c->answer != HTTP_ANSWER_NONE)
        return c->queued ? MHD_YES : queue_answer(c);
    if (!c->suspended) {
        c->suspended = true;
        MHD_suspend_connection(c->conn->mhd);
    }
    return MHD_YES;
}

/* ---- requests from MHD ---- */

static struct http_call *call_new(struct http_server *s, struct http_conn *conn, const char *path,
                                  const char *method)
{
    struct http_call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->server = s;
    c->conn = conn;
    c->path = http_origin_path(path);
    c->method = method;
    c->max_body = s->limits.max_body_bytes;
    conn->call = c;
    conn->used = true;
    s->n_calls++;
    http_conn_phase(conn, HTTP_PHASE_BODY);
    return c;
}

static void check_head(struct http_call *c, const char *version)
{
    const struct http_server *s = c->server;
    uint64_t length;
    c->bad_head =
        http_check_head(c->conn->mhd, version, s->limits.max_head_bytes, &length, &c->bad_why);
    if (!c->bad_head && s->certs && http_certs_trust(s->certs) &&
        !http_certs_client_ok(s->certs, c->conn->mhd)) {
        c->bad_head = 403;
        c->bad_why = "a client certificate is needed";
    }
    c->promised = c->bad_head ? 0 : length;
    http_set_max_body(c, c->max_body);
}

static enum MHD_Result take_head(struct http_call *c, const char *version)
{
    check_head(c, version);
    c->server->handler->on_head(c, c->server->context);
    if (c->answer != HTTP_ANSWER_NONE)
        return queue_answer(c);
    return c->cancelled || c->bad_head ? MHD_NO : MHD_YES;
}

static enum MHD_Result take_body(struct http_call *c, const char *data, size_t size)
{
    if (!c->oversized && size > c->max_body - c->body.size) {
        c->oversized = true;
        buf_deinit(&c->body);
        c->body = (struct buf){0};
    }
    if (!c->oversized)
        return buf_append(&c->body, data, size) < 0 ? MHD_NO : MHD_YES;
    c->discarded += size;
    return c->discarded > patience(c) ? MHD_NO : MHD_YES;
}

static enum MHD_Result take_request(struct http_call *c)
{
    c->dispatched = true;
    http_conn_phase(c->conn, HTTP_PHASE_CALL);
    c->server->handler->on_request(c, c->server->context);
    if (c->conn->hung_up)
        http_call_gone(c); /* an answer that was there at once is sent all the same */
    return decide(c);
}

enum MHD_Result http_on_access(void *server, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *upload,
                               size_t *upload_size, void **call)
{
    struct http_server *s = server;
    struct http_call *c = *call;
    if (!c) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct http_conn *conn = info ? info->socket_context : NULL;
        if (!conn || s->stopped)
            return MHD_NO;
        *call = c = call_new(s, conn, url, method);
        return c ? take_head(c, version) : MHD_NO;
    }
    if (*upload_size) {
        size_t size = *upload_size;
        *upload_size = 0;
        return c->cancelled ? MHD_NO : take_body(c, upload, size);
    }
    return c->dispatched ? decide(c) : take_request(c);
}

void http_on_completed(void *server, struct MHD_Connection *mhd, void **call,
                       enum MHD_RequestTerminationCode code)
{
    struct http_server *s = server;
    struct http_call *c = *call;
    (void)mhd;
    if (!c)
        return;
    *call = NULL;
    http_conn_phase(c->conn, HTTP_PHASE_HEAD);
    c->conn->call = NULL;
    s->n_calls--;
    c->finished = true;
    c->suspended = false;
    if (c->closing)
        http_conn_cut(c->conn);
    tell_done(c, code == MHD_REQUEST_TERMINATED_COMPLETED_OK && !c->cancelled);
    for (size_t i = 0; i != c->n_fields; i++) {
        free(c->fields[i].name);
        free(c->fields[i].value);
    }
    free(c->content_type);
    buf_deinit(&c->body);
    buf_deinit(&c->out);
    free(c);
}

void http_call_sweep(struct http_call *c, int64_t now_ns)
{
    if (c->heartbeat && c->suspended && !c->finished && http_queued_bytes(c) == 0 &&
        now_ns - c->sent_ns >= c->server->limits.heartbeat_ns)
        http_send(c, c->heartbeat, strlen(c->heartbeat));
}
