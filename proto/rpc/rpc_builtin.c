/* rpc_builtin.c: see rpc_builtin.h. */
#include "proto/rpc/rpc_builtin.h"

static void on_refused_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    (void)c, (void)data, (void)size;
}

static void on_refused_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)c, (void)status, (void)message;
}

void rpc_refuse(struct rpc_call *c, enum rpc_status status, const char *message)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_refused_message,
                                                   .on_done = on_refused_done};
    rpc_set(c, &callbacks, NULL);
    rpc_finish(c, status, message);
}
