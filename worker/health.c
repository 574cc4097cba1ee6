/* health.c: see health.h. */
#include "worker/health.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

enum { MAX_CALLS = 64, MAX_MESSAGE_BYTES = 65536 };

static void set(struct health_server *h, enum rpc_serving status)
{
    rpc_health_set(h->server, "", status);
    rpc_health_set(h->server, h->service, status);
}

int health_server_start(struct health_server *h, struct rpc_runtime *runtime, const char *address,
                        uint32_t rank, struct err *e)
{
    *h = (struct health_server){0};
    if (!*address)
        return 0;
    snprintf(h->service, sizeof h->service, "glmd.Worker/%u", rank);
    const struct rpc_limits limits = {.max_message_bytes = MAX_MESSAGE_BYTES,
                                      .max_calls = MAX_CALLS};
    int port = 0;
    int r = rpc_server_new(runtime, &limits, &h->server);
    if (!r)
        r = rpc_health_add(h->server);
    if (!r)
        r = rpc_reflection_add(h->server, NULL, 0);
    if (r)
        return err_set(e, r, "health server: %s", err_name(r));
    r = rpc_server_listen(h->server, address, NULL, &port, e);
    if (r)
        return err_prefix(e, "worker.health_listen");
    set(h, RPC_NOT_SERVING);
    r = rpc_server_start(h->server);
    if (r)
        return err_set(e, r, "health server on %s: %s", address, err_name(r));
    const char *colon = strrchr(address, ':');
    if (strncmp(address, "unix:", 5) == 0 || !colon)
        log_info("health service on %s", address);
    else
        log_info("health service on %.*s:%d", (int)(colon - address), address, port);
    return 0;
}

void health_server_set(struct health_server *h, bool serving)
{
    if (!h->server || serving == h->serving)
        return;
    h->serving = serving;
    set(h, serving ? RPC_SERVING : RPC_NOT_SERVING);
}

void health_server_stop(struct health_server *h, void (*on_stopped)(void *context), void *context)
{
    struct rpc_server *server = h->server;
    health_server_set(h, false);
    h->server = NULL;
    if (server)
        rpc_server_shutdown(server, 0, on_stopped, context);
    else
        on_stopped(context);
}
