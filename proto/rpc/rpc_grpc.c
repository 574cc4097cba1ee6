/* rpc_grpc.c: the gRPC library, its completion queue and the thread that drains it.
 *
 * The thread only moves events into the mailbox: gRPC does its own input and output inside
 * grpc_completion_queue_next, so that a thread busy with anything else would leave pings unanswered
 * and the connection would be taken for dead.
 */
#include "proto/rpc/rpc_grpc.h"

#include <assert.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "base/log.h"

/* ---- gRPC's log ---- */

/* Any thread. gRPC's text may quote what a peer sent: one line, no control characters. */
static void on_grpc_log(gpr_log_func_args *args)
{
    char text[512];
    snprintf(text, sizeof text, "%s", args->message);
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    }
    const char *file = strrchr(args->file, '/');
    log_event(args->severity == GPR_LOG_SEVERITY_ERROR ? LOG_LEVEL_WARN : LOG_LEVEL_DEBUG, NULL,
              "grpc: %s (%s:%d)", text, file ? file + 1 : args->file, args->line);
}

/* ---- events ---- */

void event_release(struct event *e)
{
#if defined(__SANITIZE_THREAD__)
    __tsan_release(e);
#else
    (void)e;
#endif
}

static void event_acquire(struct event *e)
{
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(e);
#else
    (void)e;
#endif
}

static void on_event(struct mailbox *m, struct mailbox_item *item)
{
    (void)m;
    struct event *e = (struct event *)item;
    e->run(e, e->ok);
}

static void *cq_main(void *context)
{
    struct rpc_runtime *r = context;
    pthread_setname_np(pthread_self(), "rpc");
    for (;;) {
        grpc_event got =
            grpc_completion_queue_next(r->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (got.type == GRPC_QUEUE_SHUTDOWN)
            break;
        assert(got.type == GRPC_OP_COMPLETE);
        struct event *e = got.tag;
        event_acquire(e);
        e->ok = got.success;
        mailbox_post(&r->mailbox, &e->item);
    }
    mailbox_post(&r->mailbox, &r->cq_down.item);
    return NULL;
}

/* ---- life ---- */

void runtime_assert_loop(const struct rpc_runtime *r)
{
    assert(pthread_equal(pthread_self(), r->loop_thread));
}

static void on_mailbox_closed(struct mailbox *m)
{
    struct rpc_runtime *r = m->context;
    void (*on_stopped)(void *context) = r->on_stopped;
    void *context = r->on_stopped_context;
    free(r);
    /* The plain grpc_shutdown may hand the work to a thread that is still running when main
     * returns. */
    grpc_shutdown_blocking();
    if (on_stopped)
        on_stopped(context);
}

static void on_cq_down(struct event *e, bool ok)
{
    (void)ok;
    struct rpc_runtime *r = event_owner(e, struct rpc_runtime, cq_down);
    pthread_join(r->cq_thread, NULL);
    grpc_completion_queue_destroy(r->cq);
    mailbox_close(&r->mailbox, on_mailbox_closed);
}

int rpc_runtime_new(struct uv_loop_s *loop, struct rpc_runtime **ret, struct err *e)
{
    struct rpc_runtime *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, -ENOMEM, "no memory for the RPC runtime");
    r->loop = loop;
    r->loop_thread = pthread_self();
    r->cq_down.run = on_cq_down;
    int code = mailbox_init(&r->mailbox, loop, on_event, r);
    if (code) {
        free(r);
        return err_set(e, code, "cannot add the RPC mailbox to the event loop: %s", err_name(code));
    }
    gpr_set_log_function(on_grpc_log);
    grpc_init();
    r->cq = grpc_completion_queue_create_for_next(NULL);
    code = -pthread_create(&r->cq_thread, NULL, cq_main, r);
    if (code) {
        err_set(e, code, "cannot start the RPC thread: %s", err_name(code));
        grpc_completion_queue_shutdown(r->cq);
        grpc_completion_queue_next(r->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        grpc_completion_queue_destroy(r->cq);
        mailbox_close(&r->mailbox, on_mailbox_closed); /* frees r when the loop runs again */
        return code;
    }
    *ret = r;
    return 0;
}

static void drain_if_unused(struct rpc_runtime *r)
{
    if (!r->stopping || r->draining || r->n_users)
        return;
    r->draining = true;
    grpc_completion_queue_shutdown(r->cq); /* the thread ends once every event is out */
}

void runtime_user_gone(struct rpc_runtime *r)
{
    assert(r->n_users > 0);
    r->n_users--;
    drain_if_unused(r);
}

void rpc_runtime_stop(struct rpc_runtime *r, void (*on_stopped)(void *context), void *context)
{
    runtime_assert_loop(r);
    assert(!r->stopping);
    r->stopping = true;
    r->on_stopped = on_stopped;
    r->on_stopped_context = context;
    drain_if_unused(r);
}
