/* front_http_internal.h: what the parts of the HTTP front share. See front_http.h. Loop thread. */
#ifndef GLMD_COORDINATOR_FRONT_HTTP_INTERNAL_H
#define GLMD_COORDINATOR_FRONT_HTTP_INTERNAL_H

#include <uv.h>

#include "coordinator/coordinator.h"
#include "coordinator/front.h"
#include "coordinator/front_http.h"
#include "coordinator/front_job.h"
#include "coordinator/http.h"
#include "coordinator/http_routes.h"
#include "coordinator/openai.h"
#include "model/dialogue.h"

struct front_http {
    struct coordinator *coordinator; /* borrowed */
    struct http_server *server;
    struct dialogue dialogue;
    char address[300], fingerprint[32];
    int port;
    int64_t created; /* of the model, for clients: when we started; seconds since 1970 */
    uint64_t n_calls;
    struct http_front *calls;
    uv_timer_t tick; /* streams that have said nothing yet */
    bool stopped;
    unsigned n_open; /* server, timer, jobs: that have not ended */
    void (*on_stopped)(void *context);
    void *stopped_context;
};

/* One prompt of a request, and its call. */
struct http_piece {
    struct http_front *front;
    struct front_call *call; /* NULL: it has ended */
    uint32_t prompt;
};

/* One HTTP request. Lives until both the connection's side of it and all of its calls have ended.
 */
struct http_front {
    struct front_http *server;
    struct http_front *prev, *next;
    struct http_call *http; /* NULL: the client is gone, or has everything */
    const struct http_route *route;
    char request_id[REQUEST_ID_BYTES];
    int64_t arrived_ns, deadline_ns;
    unsigned status; /* that was answered, for the log */

    struct openai_request *request; /* owned, as the reply */
    struct openai_reply *reply;
    struct http_piece *pieces;
    uint32_t n_pieces, n_running;
    bool begun;           /* a stream whose head is out */
    bool ended;           /* answered in full, or failed */
    bool leaving;         /* inside http_front_leave */
    struct http_job *job; /* that reads its body; NULL: none does */
};

/* What becomes of a body: a job of front_job.h. */
struct http_job {
    struct front_job job; /* first */
    struct front_http *server;
    struct http_front *front; /* NULL: the client is gone */
    void (*done)(struct http_front *f, struct http_job *j);
    enum openai_route route;
    struct openai_settings settings;
    /* written by `run`, as everything below; of the head, or else of the body, or else ours */
    char request_id[REQUEST_ID_BYTES];
    bool ran;
    struct openai_error error;       /* status 0: none */
    struct openai_request *request;  /* owned, as everything below */
    struct front_prepared *prepared; /* [n_prepared]: one for each prompt, up to a refused one */
    uint32_t n_prepared;
    /* tokenize and detokenize */
    int code;
    struct err why;
    struct buf answer;
};

/* front_http.c: answers; all of them end the request, a second one is ignored */
void http_front_json(struct http_front *f, unsigned status, const struct buf *body);
void http_front_bytes(struct http_front *f, unsigned status, const char *content_type,
                      const void *data, size_t size);
void http_front_error(struct http_front *f, const struct openai_error *e);
void http_front_refused(struct http_front *f, const struct front_end *end);
void http_front_fail(struct http_front *f, int code); /* what should not happen: 500 */
/* A body that is no request of its route. */
void http_front_unparsed(struct http_front *f, const struct openai_error *e);
void http_front_busy(struct http_front *f, const char *why); /* 503, with a Retry-After */
/* Frees f once nobody holds it. */
void http_front_release(struct http_front *f);
struct openai_settings http_front_settings(const struct http_front *f);

/* A part that n_open counts has ended. */
void http_front_part_stopped(struct front_http *h);

/* front_http_job.c. Calls done with the job (at once for short bodies, from the loop for others),
 * unless there is nobody left to answer, or the body was refused. done may take what it needs out
 * of the job, which is freed behind it. */
void http_job_start(struct http_front *f, void (*done)(struct http_front *f, struct http_job *j));

/* front_http_generate.c */
void http_front_generate(struct http_front *f); /* a route's `serve` */
void http_front_drained(struct http_front *f);
/* Ends all calls that still run. */
void http_front_leave(struct http_front *f);
void http_front_tick(struct http_front *f, int64_t now_ns);

#endif
