/* fake_rpc.c: see fake_rpc.h. */
#include "fake_rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rpc_call *fake_rpc_new(void)
{
    return calloc(1, sizeof(struct rpc_call));
}

void fake_rpc_clear(struct rpc_call *c)
{
    for (unsigned i = 0; i != c->n_sent; i++)
        buf_deinit(&c->sent[i]);
    c->n_sent = 0;
}

void fake_rpc_receive(struct rpc_call *c, const struct buf *bytes)
{
    if (!c->over)
        c->callbacks->on_message(c, (const uint8_t *)bytes->data, bytes->size);
}

void fake_rpc_end(struct rpc_call *c)
{
    if (c->over)
        return;
    c->over = true;
    if (c->cancelled || !c->finished)
        c->status = RPC_CANCELLED;
    c->callbacks->on_done(c, c->status, c->message);
}

void fake_rpc_free(struct rpc_call *c)
{
    fake_rpc_clear(c);
    free(c);
}

void rpc_set(struct rpc_call *c, const struct rpc_callbacks *callbacks, void *user)
{
    c->callbacks = callbacks;
    c->user = user;
}

void *rpc_user(const struct rpc_call *c)
{
    return c->user;
}

const char *rpc_peer(const struct rpc_call *c)
{
    (void)c;
    return "fake:0";
}

const char *rpc_status_name(enum rpc_status s)
{
    (void)s;
    return "STATUS";
}

int rpc_send(struct rpc_call *c, const void *data, size_t size)
{
    if (c->n_sent == FAKE_MAX_SENT) { /* the oldest goes */
        buf_deinit(&c->sent[0]);
        memmove(&c->sent[0], &c->sent[1], (FAKE_MAX_SENT - 1) * sizeof c->sent[0]);
        c->n_sent--;
    }
    c->sent[c->n_sent] = (struct buf){0};
    return buf_append(&c->sent[c->n_sent++], data, size);
}

int rpc_send_all(struct rpc_call *const *calls, size_t n, const void *data, size_t size)
{
    int code = 0;
    for (size_t i = 0; i != n; i++) {
        int r = rpc_send(calls[i], data, size);
        code = r < 0 ? r : code;
    }
    return code;
}

void rpc_finish(struct rpc_call *c, enum rpc_status status, const char *message)
{
    c->finished = true;
    c->status = status;
    snprintf(c->message, sizeof c->message, "%s", message);
}

void rpc_cancel(struct rpc_call *c)
{
    c->cancelled = true;
}
