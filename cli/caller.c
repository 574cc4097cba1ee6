/* caller.c: see caller.h. */
#include "cli/caller.h"

#include <assert.h>
#include <stdio.h>

int caller_open(struct caller *c, struct err *e)
{
    *c = (struct caller){0};
    int r = uv_loop_init(&c->loop);
    if (r < 0)
        return err_set(e, r, "cannot create an event loop: %s", uv_strerror(r));
    c->loop.data = c; /* says that there is one */
    return rpc_runtime_new(&c->loop, &c->runtime, e);
}

void caller_close(struct caller *c)
{
    if (!c->loop.data)
        return;
    if (c->channel)
        rpc_channel_close(c->channel);
    if (c->runtime)
        rpc_runtime_stop(c->runtime, NULL, NULL);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    int r = uv_loop_close(&c->loop);
    assert(r == 0);
    (void)r;
    c->loop.data = NULL;
}

static void on_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct caller *c = rpc_user(rpc);
    struct call_end *end = c->end;
    if (end->failure.code || c->cancelled)
        return;
    end->n_messages++;
    int r = c->on_message(c->context, data, size, &end->failure);
    if (r < 0) {
        end->failure.code = r;
        rpc_cancel(rpc);
    }
}

static void on_done(struct rpc_call *rpc, enum rpc_status status, const char *message)
{
    struct caller *c = rpc_user(rpc);
    struct call_end *end = c->end;
    size_t size;
    const uint8_t *details = rpc_details(rpc, &size);
    end->status = status;
    snprintf(end->message, sizeof end->message, "%s", message ? message : "");
    if (details) /* what cannot be read says nothing */
        status_details_unpack(details, size, &end->details, NULL);
    c->rpc = NULL;
    c->done = true;
}

void caller_cancel(struct caller *c)
{
    c->cancelled = true;
    if (c->rpc)
        rpc_cancel(c->rpc);
}

int caller_run(struct caller *c, const struct call *call, struct call_end *ret, struct err *e)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    assert(!c->rpc);
    *ret = (struct call_end){.failure = ERR_INIT};
    c->end = ret;
    c->on_message = call->on_message;
    c->context = call->context;
    c->cancelled = c->done = false;
    int r = rpc_open(c->channel, call->path, call->deadline_ns, false, &callbacks, c, &c->rpc);
    if (r == 0) {
        const struct buf *request = call->request;
        r = rpc_send(c->rpc, request->data ? request->data : "", request->size);
        if (r < 0 && r != -EMSGSIZE)
            rpc_cancel(c->rpc);
        else
            rpc_half_close(c->rpc);
        while (!c->done)
            uv_run(&c->loop, UV_RUN_ONCE);
    }
    c->end = NULL;
    if (r < 0 && r != -EMSGSIZE)
        return err_set(e, r, "cannot start the call: %s", err_name(r));
    return 0;
}
