/* http_internal.h: what the parts of the HTTP transport share. See http.h. Loop thread. */
#ifndef GLMD_COORDINATOR_HTTP_INTERNAL_H
#define GLMD_COORDINATOR_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <uv.h>

#include "base/buf.h"
#include "coordinator/http.h"

struct http_certs;

enum http_phase {
    HTTP_PHASE_HEAD, /* waits for a request, or reads its head */
    HTTP_PHASE_BODY,
    HTTP_PHASE_CALL, /* runs, or writes its answer */
};

/* A connection of MHD, from its accept to its close. */
struct http_conn {
    struct http_server *server;
    struct http_conn *prev, *next;
    struct MHD_Connection *mhd;
    uv_poll_t watch; /* for the client's going away */
    int fd;
    enum http_phase phase;
    int64_t since_ns; /* of the phase */
    bool crowded;     /* one too many */
    bool hung_up;     /* the client will send nothing more */
    bool used;        /* has brought a request */
    bool cut;         /* shut down by us: MHD will notice */
    struct http_call *call;
    char peer[64];
};

enum http_answer { HTTP_ANSWER_NONE, HTTP_ANSWER_WHOLE, HTTP_ANSWER_STREAM };

struct http_field {
    char *name, *value;
};

/* A request and its answer. Belongs to MHD from its head to its completion, and to the user until
 * on_done. */
struct http_call {
    struct http_server *server;
    struct http_conn *conn;
    const char *method, *path; /* MHD's */
    void *user;
    struct buf body;
    size_t max_body;
    uint64_t promised;  /* bytes of the body by its head; UINT64_MAX = not said */
    uint64_t discarded; /* bytes of a body that is too long */
    bool oversized;
    unsigned bad_head; /* the status to refuse it with; 0 = it is good */
    const char *bad_why;

    enum http_answer answer;
    unsigned status;
    struct http_field fields[HTTP_MAX_ANSWER_HEADERS];
    size_t n_fields;
    char *content_type;
    struct buf out; /* not yet with MHD; from out_start on */
    size_t out_start;
    const char *heartbeat;
    int64_t sent_ns; /* when anything was sent last */

    bool dispatched; /* on_request has been called */
    bool queued;     /* the answer is with MHD */
    bool finished;   /* nothing will be added to the answer */
    bool suspended;  /* MHD waits for us */
    bool cancelled;  /* the connection is to break */
    bool closing;    /* the connection is to end behind the answer */
    bool told;       /* on_done was called: the user has let go */
};

struct http_server {
    const struct http_handler *handler; /* borrowed */
    void *context;
    struct http_limits limits;
    uv_loop_t *loop; /* borrowed */

    /* owned */
    struct MHD_Daemon *daemon;
    struct http_certs *certs;
    char *socket_path; /* of a Unix socket, to be removed */
    uv_poll_t poll;    /* MHD's epoll descriptor */
    uv_timer_t due;    /* MHD's next timeout */
    uv_timer_t sweep;  /* our own: heads, bodies, heartbeats, the end */

    /* state */
    struct http_conn *conns;
    uint32_t n_conns, n_calls;
    bool running; /* inside MHD_run */
    bool resumed; /* a connection, since MHD_run began */
    bool polling, stopping, quiet, stopped;
    unsigned n_open; /* handles and connections whose memory libuv still has */
    int64_t stop_ns; /* the end of the grace */
    void (*on_stopped)(void *context);
    void *stopped_context;
};

/* http_call.c: callbacks of MHD */
enum MHD_Result http_on_access(void *server, struct MHD_Connection *mhd, const char *url,
                               const char *method, const char *version, const char *upload,
                               size_t *upload_size, void **call);
void http_on_completed(void *server, struct MHD_Connection *mhd, void **call,
                       enum MHD_RequestTerminationCode code);
/* The client has gone, or the server goes. */
void http_call_gone(struct http_call *c);
void http_call_sweep(struct http_call *c, int64_t now_ns);

/* http_server.c */
/* Breaks the connection under MHD. */
void http_conn_cut(struct http_conn *conn);
void http_conn_phase(struct http_conn *conn, enum http_phase phase);
/* MHD will look at a suspended connection again. */
void http_server_resume(struct http_server *s, struct http_conn *conn);

/* http_head.c: what MHD lets pass and we do not: requests whose end another server could see
 * elsewhere. 0, or the status to refuse it with. *ret_length: what Content-Length says, UINT64_MAX
 * = there is none but a body comes. */
unsigned http_check_head(struct MHD_Connection *mhd, const char *version, size_t max_bytes,
                         uint64_t *ret_length, const char **ret_why);

/* The path of a request's target, which may be absolute: "http://host/path", "http://host". */
const char *http_origin_path(const char *target);

/* http_listen.c */
int http_listen_socket(const char *address, int *ret_fd, int *ret_port, char **ret_path,
                       struct err *e);

/* http_tls.c */
int http_certs_new(const struct http_tls *tls, struct http_certs **ret, struct err *e);
void http_certs_free(struct http_certs *c);
/* For MHD_OPTION_HTTPS_CERT_CALLBACK, which names no server: the one set here is asked. */
void http_certs_use(struct http_certs *c);
extern const void *const http_certs_callback;
/* PEM of the authorities of clients, NULL = clients need no certificate. */
const char *http_certs_trust(const struct http_certs *c);
/* Whether the client has shown a certificate that they signed. */
bool http_certs_client_ok(struct http_certs *c, struct MHD_Connection *mhd);

#endif
