/* front_http_job.c: from the body of a request to what can be submitted or answered: JSON, fields,
 * tokens, admission. Short bodies are done at once; long ones would hold the loop, and everybody's
 * tokens, for tens of milliseconds, and go to libuv's threads. See front_http_internal.h.
 *
 *   loop    body moved out of the connection -> job -> done(front, job)
 *   pool               parse, prepare, answer
 *
 * A job touches nothing of its front, which waits for it even when the client has gone. Measured,
 * 128 prompts of 1,000 ids, 0.6 MB: 40 ms of a thread, less than 1 ms of the loop's.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/front_http_internal.h"

enum {
    LONG_BODY_BYTES = 32 * 1024, /* about a millisecond */
    MAX_JOBS = 64,               /* in the pool's queue or threads; more are told 503 */
};

/* ---- any thread ---- */

static const struct openai_request *parse(struct http_job *j)
{
    if (openai_parse(&j->settings, j->route, j->body.size ? j->body.data : "", j->body.size,
                     &j->request, &j->error) < 0)
        return NULL;
    size_t n = strlen(j->request->request_id);
    if (!j->settings.request_id && n > 0 && n < sizeof j->request_id)
        memcpy(j->request_id, j->request->request_id, n + 1);
    return j->request;
}

static void prepare_fill(struct http_job *j, const struct openai_request *q)
{
    struct wire_fill_request w = *q->fill;
    w.request_id = j->request_id;
    front_prepare_fill(j->coordinator, &w, &j->prepared[0]);
    j->n_prepared = 1;
}

/* Up to the first that is refused: the others will not run. */
static void prepare_prompts(struct http_job *j, const struct openai_request *q)
{
    bool good = true;
    for (uint32_t i = 0; i != q->n_prompts && good; i++) {
        struct wire_generate_request w = q->generate[i];
        w.request_id = j->request_id;
        front_prepare_generate(j->coordinator, &w, &j->prepared[i]);
        good = j->prepared[i].error.code == 0;
        j->n_prepared++;
    }
}

static void run(struct http_job *j)
{
    const struct openai_request *q = parse(j);
    if (q && q->tokenize) {
        j->code = admit_tokenize(&j->coordinator->admit, q->tokenize, &j->ids, &j->why);
    } else if (q && q->detokenize) {
        j->code = admit_detokenize(&j->coordinator->admit, q->detokenize, &j->text, &j->why);
    } else if (q) {
        j->prepared = alloc_array(MAX(q->n_prompts, 1U), sizeof *j->prepared);
        if (!j->prepared)
            openai_error_set(&j->error, 500, NULL, "out of memory");
        else if (q->fill)
            prepare_fill(j, q);
        else
            prepare_prompts(j, q);
    }
    buf_deinit(&j->body);
}

static void on_work(uv_work_t *work)
{
    run(work->data);
}

/* ---- loop ---- */

void http_job_free(struct http_job *j)
{
    if (!j)
        return;
    for (uint32_t i = 0; i != j->n_prepared; i++)
        front_prepared_deinit(&j->prepared[i]);
    free(j->prepared);
    openai_request_free(j->request);
    token_list_deinit(&j->ids);
    buf_deinit(&j->text);
    buf_deinit(&j->body);
    free(j);
}

static void end(struct http_front *f, struct http_job *j)
{
    if (!f->http)
        ; /* nobody waits for it */
    else if (j->error.status)
        http_front_unparsed(f, &j->error);
    else
        j->done(f, j);
    http_job_free(j);
}

static void on_worked(uv_work_t *work, int status)
{
    struct http_job *j = work->data;
    struct http_front *f = j->front;
    struct front_http *h = f->server;
    assert(status == 0); /* nothing cancels it */
    assert(h->n_jobs > 0);
    h->n_jobs--;
    f->working = false;
    end(f, j);
    http_front_release(f);
    http_front_part_stopped(h);
}

void http_job_start(struct http_front *f, void (*done)(struct http_front *f, struct http_job *j))
{
    struct front_http *h = f->server;
    struct http_job *j = calloc(1, sizeof *j);
    if (!j) {
        http_front_fail(f, -ENOMEM);
        return;
    }
    *j = (struct http_job){.front = f,
                           .done = done,
                           .coordinator = h->coordinator,
                           .route = f->route->openai,
                           .settings = http_front_settings(f),
                           .why = ERR_INIT};
    memcpy(j->request_id, f->request_id, sizeof j->request_id);
    if (http_header(f->http, "x-request-id"))
        j->settings.request_id = j->request_id;
    http_take_body(f->http, &j->body);
    if (j->body.size <= LONG_BODY_BYTES) {
        run(j);
        end(f, j);
        return;
    }
    j->work.data = j;
    if (h->n_jobs == MAX_JOBS || uv_queue_work(h->tick.loop, &j->work, on_work, on_worked) < 0) {
        http_front_busy(f, "too many long requests at once");
        http_job_free(j);
        return;
    }
    h->n_jobs++;
    h->n_open++;
    f->working = true;
}
