/* http_server.c: the daemon of libmicrohttpd on our loop: its descriptor, its time, connections,
 * start and stop. See http.h.
 *
 * MHD_run is called whenever MHD's epoll descriptor is readable, its next timeout is due, or a
 * connection was resumed (from the loop then, never from inside a function of http.h). Every
 * connection's descriptor is in our set, too, for UV_DISCONNECT only: a suspended one is not in
 * MHD's.
 *
 * Timeouts that MHD has: an answer that makes no progress. Those that it does not have, whole heads
 * and whole bodies, are the sweep's: it shuts the socket down, and MHD sees that.
 */
#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/http_internal.h"

#define SWEEP_MS 100
/* RFC 8996. GnuTLS's own default still takes both. */
#define TLS_PRIORITIES "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"

enum {
    SPARE_CONNECTIONS = 64,    /* to tell those who are too many */
    MIN_POOL_BYTES = 4 * 1024, /* MHD's own needs beside the head */
};

/* ---- connections ---- */

void http_conn_phase(struct http_conn *conn, enum http_phase phase)
{
    conn->phase = phase;
    conn->since_ns = clock_now_ns();
}

void http_conn_cut(struct http_conn *conn)
{
    if (conn->cut)
        return;
    conn->cut = true;
    shutdown(conn->fd, SHUT_RDWR);
}

/* MHD reads what has arrived until it is short of what it asked for, and then waits for news: an
 * end that came together with the last bytes is none. It is seen here, and acted upon when MHD has
 * had the time to read what was before it. */
static void on_watch(uv_poll_t *h, int status, int events)
{
    struct http_conn *conn = h->data;
    if (status == 0 && !(events & UV_DISCONNECT))
        return;
    uv_poll_stop(h);
    conn->hung_up = true;
    if (conn->call && conn->phase == HTTP_PHASE_CALL)
        http_call_gone(conn->call);
    else
        http_conn_phase(conn, conn->phase);
}

static void name_peer(struct http_conn *conn)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(conn->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = info ? info->client_addr : NULL;
    char host[INET6_ADDRSTRLEN];
    snprintf(conn->peer, sizeof conn->peer, "unix");
    if (a && a->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)a;
        uv_ip4_name(in, host, sizeof host);
        snprintf(conn->peer, sizeof conn->peer, "%s:%d", host, ntohs(in->sin_port));
    } else if (a && a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)a;
        uv_ip6_name(in, host, sizeof host);
        snprintf(conn->peer, sizeof conn->peer, "[%s]:%d", host, ntohs(in->sin6_port));
    }
}

static void conn_opened(struct http_server *s, struct MHD_Connection *mhd, void **socket_context)
{
    const int one = 1;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct http_conn *conn = calloc(1, sizeof *conn);
    if (!conn)
        return; /* http_on_access refuses */
    conn->server = s;
    conn->mhd = mhd;
    conn->fd = info->connect_fd;
    if (uv_poll_init(s->loop, &conn->watch, conn->fd) < 0) {
        free(conn);
        return;
    }
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn->watch.data = conn;
    conn->crowded = s->n_conns >= s->limits.max_connections;
    http_conn_phase(conn, HTTP_PHASE_HEAD);
    name_peer(conn);
    conn->next = s->conns;
    if (s->conns)
        s->conns->prev = conn;
    s->conns = conn;
    s->n_conns++;
    s->n_open++;
    uv_poll_start(&conn->watch, UV_DISCONNECT, on_watch);
    *socket_context = conn;
}

static void open_thing_closed(struct http_server *s);

static void on_conn_freed(uv_handle_t *h)
{
    struct http_conn *conn = h->data;
    struct http_server *s = conn->server;
    free(conn);
    open_thing_closed(s);
}

static void conn_closed(struct http_server *s, struct http_conn *conn)
{
    if (!conn)
        return;
    assert(!conn->call);
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        s->conns = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    s->n_conns--;
    uv_close((uv_handle_t *)&conn->watch, on_conn_freed); /* the descriptor may be reused now */
}

static void on_connection(void *server, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        conn_opened(server, mhd, socket_context);
    else
        conn_closed(server, *socket_context);
}

uint32_t http_server_connections(const struct http_server *s)
{
    return s->n_conns;
}

/* ---- the loop ---- */

static void run(struct http_server *s);

static void on_due(uv_timer_t *t)
{
    run(t->data);
}

static void on_poll(uv_poll_t *h, int status, int events)
{
    (void)status;
    (void)events;
    run(h->data);
}

static void run(struct http_server *s)
{
    if (!s->daemon)
        return;
    assert(!s->running);
    s->running = true;
    s->resumed = false;
    http_certs_use(s->certs);
    MHD_run(s->daemon);
    s->running = false;
    MHD_UNSIGNED_LONG_LONG ms;
    if (s->resumed)
        uv_timer_start(&s->due, on_due, 0, 0);
    else if (MHD_get_timeout(s->daemon, &ms) == MHD_YES)
        uv_timer_start(&s->due, on_due, ms, 0);
    else
        uv_timer_stop(&s->due);
}

void http_server_resume(struct http_server *s, struct http_conn *conn)
{
    MHD_resume_connection(conn->mhd);
    s->resumed = true;
    if (!s->running && s->daemon)
        uv_timer_start(&s->due, on_due, 0, 0);
}

/* ---- stop ---- */

static void finish_stop(struct http_server *s)
{
    void (*on_stopped)(void *context) = s->on_stopped;
    void *context = s->stopped_context;
    http_certs_free(s->certs);
    free(s->socket_path);
    free(s);
    on_stopped(context);
}

static void open_thing_closed(struct http_server *s)
{
    assert(s->n_open > 0);
    if (--s->n_open == 0)
        finish_stop(s);
}

static void on_handle_closed(uv_handle_t *h)
{
    open_thing_closed(h->data);
}

/* Calls that are left are cut off; MHD wants none of them suspended when it stops. */
static void stop_daemon(struct http_server *s)
{
    assert(!s->running);
    s->stopped = true;
    for (struct http_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        if (c->call)
            http_call_gone(c->call);
    }
    if (s->polling)
        uv_close((uv_handle_t *)&s->poll, on_handle_closed);
    if (s->daemon) {
        s->running = true;
        MHD_stop_daemon(s->daemon);
        s->running = false;
        s->daemon = NULL;
    }
    assert(!s->conns);
    uv_close((uv_handle_t *)&s->due, on_handle_closed);
    uv_close((uv_handle_t *)&s->sweep, on_handle_closed);
}

/* ---- time ---- */

static bool is_late(const struct http_conn *conn, int64_t now_ns)
{
    const struct http_limits *l = &conn->server->limits;
    int64_t waited = now_ns - conn->since_ns;
    if (conn->hung_up && conn->phase != HTTP_PHASE_CALL)
        return waited > SWEEP_MS * NSEC_PER_MSEC;
    if (conn->phase == HTTP_PHASE_HEAD)
        return conn->server->stopping || waited > (conn->used ? l->idle_ns : l->head_ns);
    return conn->phase == HTTP_PHASE_BODY && waited > l->body_ns;
}

/* Not from inside MHD_run, where the stop may have been asked for. */
static void stop_listening(struct http_server *s)
{
    if (s->quiet)
        return;
    s->quiet = true;
    int fd = s->daemon ? MHD_quiesce_daemon(s->daemon) : -1;
    if (fd >= 0)
        close(fd);
    if (s->socket_path)
        unlink(s->socket_path);
}

void http_server_sweep(struct http_server *s, int64_t now)
{
    if (s->stopped)
        return;
    if (s->stopping)
        stop_listening(s);
    for (struct http_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        if (is_late(c, now))
            http_conn_cut(c);
        else if (c->call)
            http_call_sweep(c->call, now);
    }
    if (s->stopping && (s->n_calls == 0 || now >= s->stop_ns))
        stop_daemon(s);
}

static void on_sweep(uv_timer_t *t)
{
    http_server_sweep(t->data, clock_now_ns());
}

/* ---- start ---- */

static void on_mhd_log(void *context, const char *format, va_list args)
{
    char line[256];
    (void)context;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\r\n")] = '\0';
    log_debug("http: %s", line);
}

/* A path that hides an end of text is left as it is, and so found nowhere. */
static size_t unescape(void *context, struct MHD_Connection *mhd, char *text)
{
    (void)context;
    (void)mhd;
    return strstr(text, "%00") ? strlen(text) : MHD_http_unescape(text);
}

static void set_defaults(struct http_limits *l)
{
    if (!l->max_head_bytes)
        l->max_head_bytes = 16 * 1024;
    if (!l->max_body_bytes)
        l->max_body_bytes = 1024 * 1024;
    if (!l->max_connections)
        l->max_connections = 1024;
    if (!l->head_ns)
        l->head_ns = 15 * NSEC_PER_SEC;
    if (!l->idle_ns)
        l->idle_ns = 75 * NSEC_PER_SEC;
    if (!l->body_ns)
        l->body_ns = 60 * NSEC_PER_SEC;
    if (!l->heartbeat_ns)
        l->heartbeat_ns = 15 * NSEC_PER_SEC;
}

int http_server_new(const struct http_config *config, struct http_server **ret)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->loop = config->loop;
    s->handler = config->handler;
    s->context = config->context;
    s->limits = config->limits;
    set_defaults(&s->limits);
    s->poll.data = s->due.data = s->sweep.data = s;
    uv_timer_init(s->loop, &s->due);
    uv_timer_init(s->loop, &s->sweep);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    s->n_open = 2;
    *ret = s;
    return 0;
}

/* ret: what TLS needs, up to MHD_OPTION_END. */
static void set_tls(const struct http_server *s, struct MHD_OptionItem ret[4])
{
    const char *trust = http_certs_trust(s->certs);
    const struct MHD_OptionItem all[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)http_certs_callback},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES},
        {trust ? MHD_OPTION_HTTPS_MEM_TRUST : MHD_OPTION_END, 0, (void *)(uintptr_t)trust},
        {MHD_OPTION_END, 0, NULL},
    };
    memcpy(ret, all, sizeof all);
}

static int start_daemon(struct http_server *s, int fd, struct err *e)
{
    const struct http_limits *l = &s->limits;
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls[4] = {{MHD_OPTION_END, 0, NULL}};
    if (s->certs) {
        flags |= MHD_USE_TLS;
        set_tls(s, tls);
    }
    s->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, http_on_access, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_CONNECTION, on_connection, s,
        MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, s, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)l->max_connections + SPARE_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)(l->idle_ns / NSEC_PER_SEC), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        l->max_head_bytes * 3 / 2 + MIN_POOL_BYTES, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    if (!s->daemon) {
        close(fd);
        return err_set(e, -EIO, "cannot start the HTTP server%s", s->certs ? " with TLS" : "");
    }
    return 0;
}

int http_server_listen(struct http_server *s, const char *address, const struct http_tls *tls,
                       int *ret_port, struct err *e)
{
    int fd, r = 0;
    assert(!s->daemon);
    if (tls)
        r = http_certs_new(tls, &s->certs, e);
    if (r == 0)
        r = http_listen_socket(address, &fd, ret_port, &s->socket_path, e);
    if (r == 0)
        r = start_daemon(s, fd, e);
    if (r < 0)
        return r;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    r = info ? uv_poll_init(s->loop, &s->poll, info->epoll_fd) : -EIO;
    if (r < 0)
        return err_set(e, r, "cannot watch the HTTP server's sockets: %s", err_name(r));
    s->polling = true;
    s->n_open++;
    uv_poll_start(&s->poll, UV_READABLE, on_poll);
    uv_timer_start(&s->due, on_due, 0, 0); /* the first run */
    return 0;
}

void http_server_shutdown(struct http_server *s, int64_t grace_ns,
                          void (*on_stopped)(void *context), void *context)
{
    assert(!s->stopping);
    s->stopping = true;
    s->stop_ns = clock_now_ns() + grace_ns;
    s->on_stopped = on_stopped;
    s->stopped_context = context;
}
