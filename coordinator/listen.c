/* listen.c: see listen.h. */
#include "coordinator/listen.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "coordinator/coordinator.h"

enum { SPARE_SESSIONS = 64 };

/* HOST:PORT that reaches us from this host: wildcards become the loopback address. */
static void reachable(const char *address, int port, char ret[300])
{
    const char *colon = strrchr(address, ':');
    if (strncmp(address, "unix:", 5) == 0 || !colon) {
        snprintf(ret, 300, "%s", address);
        return;
    }
    int n = (int)(colon - address);
    bool any4 =
        n == 0 || (n == 7 && strncmp(address, "0.0.0.0", 7) == 0) || (n == 1 && *address == '*');
    bool any6 = n == 4 && strncmp(address, "[::]", 4) == 0;
    if (any4 || any6)
        snprintf(ret, 300, "%s:%d", any4 ? "127.0.0.1" : "[::1]", port);
    else
        snprintf(ret, 300, "%.*s:%d", n, address, port);
}

/* The rank's session, with room of its own: clients that wait for ranks must not keep them out, and
 * a rank may have a second process. */
static struct rpc_method session_method(const struct coordinator *c)
{
    return (struct rpc_method){
        .path = "/glmd.v1.Worker/Session",
        .on_call = fleet_on_session,
        .context = c->fleet,
        .max_calls = 2 * (size_t)c->config->coordinator.limits.max_ranks + SPARE_SESSIONS,
    };
}

static int open_servers(struct coordinator *c, struct rpc_runtime *runtime, struct err *e)
{
    const struct config *f = c->config;
    /* Requests that run count their own slow readers, in half the time. */
    const struct rpc_limits limits = {.max_calls = (size_t)f->coordinator.limits.max_connections,
                                      .unread_ns = 2 * f->coordinator.deadlines.slow_reader};
    bool admin = *f->coordinator.admin_listen;
    /* What operators do is not for everybody who reaches an address of the network. */
    bool trusted = config_is_local(f->coordinator.listen) || auth_has_keys(c->auth);
    size_t n = front_methods(c, !admin && trusted, c->methods);
    assert(n < ARRAY_LEN(c->methods));
    c->methods[n] = session_method(c);

    int r = rpc_server_new(runtime, &limits, &c->server);
    c->worker_server = c->server;
    if (r == 0 && *f->coordinator.worker_listen)
        r = rpc_server_new(runtime, &limits, &c->worker_server);
    if (r == 0 && admin)
        r = rpc_server_new(runtime, &limits, &c->admin_server);
    if (r == 0)
        r = rpc_server_add(c->server, c->methods, n);
    if (r == 0)
        r = rpc_server_add(c->worker_server, &c->methods[n], 1);
    if (r == 0)
        r = rpc_health_add(c->server);
    if (r == 0)
        r = rpc_reflection_add(c->server, front_services, front_n_services);
    if (r == 0 && admin) {
        size_t n_admin = front_methods(c, true, c->admin_methods);
        assert(n_admin <= ARRAY_LEN(c->admin_methods));
        r = rpc_server_add(c->admin_server, c->admin_methods, n_admin);
        if (r == 0)
            r = rpc_reflection_add(c->admin_server, front_services, front_n_services);
    }
    if (r < 0)
        return err_set(e, r, "cannot set up the server: %s", err_name(r));
    return 0;
}

/* Ranks of this host do without TCP, which takes half of what a step costs. */
static int listen_for_spawned(struct coordinator *c, struct err *e)
{
    int r = rpc_server_listen(c->worker_server, c->rank_listen, NULL, NULL, e);
    if (r == 0)
        snprintf(c->dial, sizeof c->dial, "%s", c->rank_listen);
    return r;
}

static int listen_all(struct coordinator *c, struct err *e)
{
    const struct config *f = c->config;
    const struct rpc_tls workers = {.ca_file =
                                        *f->coordinator.tls.ca ? f->coordinator.tls.ca : NULL,
                                    .cert_file = f->coordinator.tls.cert,
                                    .key_file = f->coordinator.tls.key};
    struct rpc_tls clients = workers;
    if (f->coordinator.tls_clients == CONFIG_TLS_CLIENTS_NOTHING)
        clients.ca_file = NULL;
    bool secure = *f->coordinator.tls.cert, separate = c->worker_server != c->server;
    const char *worker_listen = separate ? f->coordinator.worker_listen : f->coordinator.listen;
    int r =
        rpc_server_listen(c->server, f->coordinator.listen, secure ? &clients : NULL, &c->port, e);
    int worker_port = c->port;
    if (r == 0 && separate)
        r = rpc_server_listen(c->worker_server, worker_listen, secure ? &workers : NULL,
                              &worker_port, e);
    if (r == 0 && c->admin_server) /* on this host alone: no TLS */
        r = rpc_server_listen(c->admin_server, f->coordinator.admin_listen, NULL, &c->admin_port,
                              e);
    if (r < 0)
        return r;
    reachable(f->coordinator.listen, c->port, c->address);
    reachable(worker_listen, worker_port, c->dial);
    return c->rank_listen && !secure ? listen_for_spawned(c, e) : 0;
}

static int start_all(struct coordinator *c, struct err *e)
{
    bool separate = c->worker_server != c->server;
    int r = rpc_server_start(c->server);
    if (r == 0 && separate)
        r = rpc_server_start(c->worker_server);
    if (r == 0 && c->admin_server)
        r = rpc_server_start(c->admin_server);
    if (r < 0)
        return err_set(e, r, "cannot start the server: %s", err_name(r));
    log_info("listening on %s%s%s, model %s, digest %s", c->address,
             separate ? ", for workers on " : "", separate ? c->dial : "", c->model_name,
             model_dir_digest(c->model)->hex);
    if (c->config->log.prompts)
        log_warn("log.prompts is on: what clients send and get is written to this log");
    if (!auth_has_keys(c->auth) && !config_is_local(c->config->coordinator.listen))
        log_warn("everybody who reaches %s may use it: coordinator.keys is not set", c->address);
    return 0;
}

int listen_open(struct coordinator *c, struct rpc_runtime *runtime, struct err *e)
{
    int r = open_servers(c, runtime, e);
    if (r == 0)
        r = listen_all(c, e);
    return r == 0 ? start_all(c, e) : r;
}

static void server_stopped(struct coordinator *c)
{
    assert(c->n_servers > 0);
    c->n_servers--;
    coordinator_part_stopped(c);
}

static void on_server_stopped(void *context)
{
    struct coordinator *c = context;
    c->server = NULL; /* sessions of ranks may outlive it, on the workers' server */
    server_stopped(c);
}

static void on_other_stopped(void *context)
{
    server_stopped(context);
}

void listen_close(struct coordinator *c, int64_t grace_ns)
{
    struct rpc_server *clients = c->server, *admin = c->admin_server;
    struct rpc_server *workers = c->worker_server != c->server ? c->worker_server : NULL;
    c->n_servers = (clients != NULL) + (admin != NULL) + (workers != NULL);
    if (c->n_servers == 0)
        coordinator_part_stopped(c);
    if (workers)
        rpc_server_shutdown(workers, grace_ns, on_other_stopped, c);
    if (admin)
        rpc_server_shutdown(admin, grace_ns, on_other_stopped, c);
    if (clients)
        rpc_server_shutdown(clients, grace_ns, on_server_stopped, c);
}
