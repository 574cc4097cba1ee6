/* http.h: the HTTP transport seam. Calls as objects with callbacks on one libuv loop; HTTP/1.1 with
 * keep-alive, optionally over TLS. What is served, and to whom, is its user's business
 * (front_http.c).
 *
 * Implemented by http_server.c, http_call.c, http_head.c and http_tls.c over libmicrohttpd, whose
 * epoll descriptor the loop polls: it has no threads of its own. Nothing else includes it.
 *
 * Life cycle of a call:
 *   on_head -> [on_request] -> [on_drained ...] -> on_done, exactly once; after it the call is no
 * longer the user's. A call that was answered in on_head gets no on_request: its body is not read,
 * and the connection closes behind the answer. on_done comes when the answer is with the kernel, or
 * as soon as the client has gone away (at once while a request runs: its socket is watched),
 * whether or not it was answered. Sends after the end are dropped.
 *
 * Everything is called and called back on the loop thread; callbacks run from the loop only, never
 * from inside a function of this file. Strings of a call live as long as it does.
 *
 * A client that half-closes its connection has gone away: it cannot be told from one that left.
 */
#ifndef GLMD_COORDINATOR_HTTP_H
#define GLMD_COORDINATOR_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct uv_loop_s;
struct http_server;
struct http_call;

enum { HTTP_MAX_ANSWER_HEADERS = 12 };

struct http_limits {          /* 0: the default named here */
    size_t max_head_bytes;    /* request line and fields; 16 KiB */
    size_t max_body_bytes;    /* unless http_set_max_body says otherwise; 1 MiB */
    uint32_t max_connections; /* more are accepted but told so (http_crowded), a few; 1024 */
    /* From the connection, or the last answer, to a whole head. The first head has less time than
     * the ones after it, between which a connection may idle. */
    int64_t head_ns;      /* 15 s */
    int64_t idle_ns;      /* 75 s; also for an answer that is not read */
    int64_t body_ns;      /* from the head to the whole body; 60 s */
    int64_t heartbeat_ns; /* a stream that says nothing for so long says its heartbeat; 15 s */
};

/* Certificate files in PEM. They are read again when they change: connections that come after that
 * see the new certificate. */
struct http_tls {
    const char *cert_file, *key_file;
    const char *ca_file; /* NULL or "": clients need no certificate */
};

struct http_handler { /* all but on_drained required */
    /* The head of a request is here, its body is not. */
    void (*on_head)(struct http_call *c, void *context);
    /* The body, too. */
    void (*on_request)(struct http_call *c, void *context);
    /* Everything that was sent is with the kernel. */
    void (*on_drained)(struct http_call *c, void *context);
    /* complete: the whole answer went out. Otherwise the client, or the server, is gone. */
    void (*on_done)(struct http_call *c, bool complete, void *context);
};

struct http_config {
    struct uv_loop_s *loop;             /* borrowed */
    const struct http_handler *handler; /* borrowed */
    void *context;
    struct http_limits limits;
};

int http_server_new(const struct http_config *config, struct http_server **ret);
/* Once: "127.0.0.1:8000", "[::]:8000", "localhost:8000", "unix:/run/glmd/http.sock". Port 0 picks
 * one. tls NULL: plaintext. On failure call http_server_shutdown. */
int http_server_listen(struct http_server *s, const char *address, const struct http_tls *tls,
                       int *ret_port, struct err *e);
uint32_t http_server_connections(const struct http_server *s);
/* What a timer does every 100 ms: ends what is late, keeps streams alive. For programs that cannot
 * wait for it (fuzz_http.c). */
void http_server_sweep(struct http_server *s, int64_t now_ns);
/* No new connections; calls that are open may end until grace_ns is over, then they are cut off.
 * on_stopped runs from the loop; the server is gone then. */
void http_server_shutdown(struct http_server *s, int64_t grace_ns,
                          void (*on_stopped)(void *context), void *context);

/* ---- the request ---- */

void http_set_user(struct http_call *c, void *user);
void *http_user(const struct http_call *c);
const char *http_method(const struct http_call *c);
const char *http_path(const struct http_call *c); /* decoded; neither host nor query */
/* The first parameter or field of that name, or NULL; names of fields in any case. */
const char *http_query(const struct http_call *c, const char *name);
const char *http_header(const struct http_call *c, const char *name);
const char *http_peer(const struct http_call *c); /* "127.0.0.1:4711", "[::1]:4711", "unix" */
const char *http_body(const struct http_call *c, size_t *ret_size); /* a NUL byte follows it */
/* Moves the body into *ret, which is empty: http_body is so from then on. */
void http_take_body(struct http_call *c, struct buf *ret);
bool http_crowded(const struct http_call *c); /* there are more connections than there should be */

/* In on_head: 0, or the status that the user answers with at once, and why: the head is no good, or
 * its client shows no certificate. */
unsigned http_bad_head(const struct http_call *c, const char **ret_why);
/* In on_head: a longer body is answered with 413 (see http_oversized) and not read. */
void http_set_max_body(struct http_call *c, size_t bytes);
/* In on_head: the head promises a longer body than max_body. In on_request: the body was longer;
 * http_body is empty. The user answers with 413. */
bool http_oversized(const struct http_call *c);
/* In on_head: an oversized body is short enough to be read and forgotten. Clients that do not
 * listen before they have sent everything see an answer in on_request; one in on_head may break
 * their connection before they do. */
bool http_forgets(const struct http_call *c);

/* ---- the answer ---- */

/* Before http_respond or http_begin; -EINVAL: not the text of a field; -ENOSPC: more than
 * HTTP_MAX_ANSWER_HEADERS. Copies. */
int http_set_header(struct http_call *c, const char *name, const char *value);
/* The whole answer; a second one is ignored. Copies. */
void http_respond(struct http_call *c, unsigned status, const char *content_type, const void *body,
                  size_t size);
/* A stream: begin, send, send, ... finish. heartbeat: what to send when nothing else is, NULL =
 * nothing; borrowed. */
void http_begin(struct http_call *c, unsigned status, const char *content_type,
                const char *heartbeat);
void http_send(struct http_call *c, const void *data, size_t size); /* copies */
size_t http_queued_bytes(const struct http_call *c);
void http_finish(struct http_call *c);
/* The connection closes behind the answer, also where its head does not say so. */
void http_close_after(struct http_call *c);
/* Breaks the connection, past everything queued: the client can tell that the answer is not whole.
 */
void http_cancel(struct http_call *c);

#endif
