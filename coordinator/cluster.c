/* cluster.c: what operators do: Cluster.Drain and Cluster.Abort. Loop thread. */
#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/coordinator.h"
#include "coordinator/front.h"

/* The longest time that Drain may ask for. */
#define MAX_DRAIN_SECONDS 86400.0

static void on_done(struct rpc_call *call, enum rpc_status status, const char *message)
{
    (void)call, (void)status, (void)message;
}

/* Takes the packed response over. */
static void answer(struct rpc_call *call, int packed, struct buf *response)
{
    if (packed == 0) {
        rpc_send(call, response->data, response->size);
        rpc_finish(call, RPC_OK, "");
    } else {
        rpc_finish(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
    }
    buf_deinit(response);
}

/* ---- Drain ---- */

static void drain(struct coordinator *c, struct rpc_call *call, const struct wire_drain_request *q)
{
    char why[256];
    int64_t group = fleet_find(c->fleet, q->group);
    if (group < 0) {
        snprintf(why, sizeof why, "there is no group \"%.64s\"", q->group);
        rpc_finish(call, RPC_NOT_FOUND, why);
        return;
    }
    if (!(q->timeout_seconds >= 0 && q->timeout_seconds <= MAX_DRAIN_SECONDS)) {
        snprintf(why, sizeof why, "timeout_seconds: expected 0 to %g, found %g", MAX_DRAIN_SECONDS,
                 q->timeout_seconds);
        rpc_finish(call, RPC_INVALID_ARGUMENT, why);
        return;
    }
    int64_t patience = q->timeout_seconds > 0 ? (int64_t)(q->timeout_seconds * NSEC_PER_SEC)
                                              : c->config->coordinator.deadlines.drain;
    log_info("Drain of group %s from %s", q->group, rpc_peer(call));
    const struct wire_drain_response response = {
        .running = coordinator_drain_group(c, (uint32_t)group, clock_now_ns() + patience)};
    struct buf out = {0};
    int r = wire_pack_drain_response(&response, &out);
    answer(call, r, &out);
}

static void on_drain_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct wire_drain_request *q;
    struct err e = ERR_INIT;
    if (!front_rpc_allowed(rpc_user(call), call, AUTH_ADMIN))
        return;
    if (wire_unpack_drain_request(data, size, &q, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    drain(rpc_user(call), call, q);
    wire_free_drain_request(q);
}

void cluster_on_drain(struct rpc_call *call, void *coordinator)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_drain_message,
                                                   .on_done = on_done};
    rpc_set(call, &callbacks, coordinator);
}

/* ---- Abort ---- */

static void abort_requests(struct coordinator *c, struct rpc_call *call, const char *request_id)
{
    if (!*request_id) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, "request_id: expected an id, found none");
        return;
    }
    const struct wire_abort_response response = {.aborted = front_abort(c, request_id)};
    if (response.aborted == 0) {
        rpc_finish(call, RPC_NOT_FOUND, "no request has this id, or it has ended");
        return;
    }
    log_info("Abort from %s: %u requests", rpc_peer(call), response.aborted);
    struct buf out = {0};
    int r = wire_pack_abort_response(&response, &out);
    answer(call, r, &out);
}

static void on_abort_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct wire_abort_request *q;
    struct err e = ERR_INIT;
    if (!front_rpc_allowed(rpc_user(call), call, AUTH_ADMIN))
        return;
    if (wire_unpack_abort_request(data, size, &q, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    abort_requests(rpc_user(call), call, q->request_id);
    wire_free_abort_request(q);
}

void cluster_on_abort(struct rpc_call *call, void *coordinator)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_abort_message,
                                                   .on_done = on_done};
    rpc_set(call, &callbacks, coordinator);
}
