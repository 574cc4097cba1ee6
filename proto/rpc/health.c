/* health.c: grpc.health.v1.Health: who asks, and who watches. Loop thread.
 *
 * A watcher has at most one message under way: a status that changes faster than the watcher reads
 * is not queued, the newest one is sent when the previous is out.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "proto/rpc/rpc_builtin.h"
#include "proto/rpc/rpc_requests.h"
#include "proto/rpc/wire_arena.h"
#include "proto/rpc/wire_scan.h"

#include "grpc/health/v1/health.pb-c.h"

enum {
    MAX_SERVICES = 8192, /* a coordinator has one for each group and each rank */
    SERVICE_UNKNOWN = 3,
    NOTHING_SENT = -1,
    REQUEST_HEAP = 16384
};

/* A call of Check or Watch. */
struct query {
    struct health *health;
    struct rpc_call *call;
    bool watch, asked; /* asked: the request is here */
    char service[HEALTH_MAX_SERVICE_BYTES + 1];
    int sent; /* status of the last message, or NOTHING_SENT */
    struct query *next, **link;
};

struct service {
    enum rpc_serving status;
    char name[];
};

struct health {
    struct rpc_method methods[2];
    struct service **services; /* owned, [n_services], by name */
    size_t n_services, capacity;
    struct query *queries; /* owned */
    bool stopping;
};

int health_read_request(const uint8_t *data, size_t size,
                        char ret_service[HEALTH_MAX_SERVICE_BYTES + 1], struct err *e)
{
    int code = wire_scan(&grpc__health__v1__health_check_request__descriptor, data, size, e);
    if (code)
        return code;
    struct wire_arena arena;
    wire_arena_init(&arena, WIRE_HEAP_FACTOR * size + REQUEST_HEAP, 0);
    ProtobufCAllocator allocator = wire_arena_allocator(&arena);
    Grpc__Health__V1__HealthCheckRequest *request =
        grpc__health__v1__health_check_request__unpack(&allocator, size, data);
    if (!request)
        code = err_set(e, -EBADMSG, "HealthCheckRequest: malformed message");
    else if (strlen(request->service) > HEALTH_MAX_SERVICE_BYTES)
        code = err_set(e, -ENOENT, "no service has a name of more than %d bytes",
                       HEALTH_MAX_SERVICE_BYTES);
    else
        memcpy(ret_service, request->service, strlen(request->service) + 1);
    wire_arena_deinit(&arena);
    return code;
}

/* ---- answers ---- */

/* The first whose name is not smaller; whether it is this one. */
static bool find_service(const struct health *h, const char *name, size_t *ret_idx)
{
    size_t low = 0, high = h->n_services;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(h->services[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *ret_idx = low;
    return low < h->n_services && strcmp(h->services[low]->name, name) == 0;
}

static int status_of(const struct health *h, const char *service)
{
    size_t i;
    return find_service(h, service, &i) ? (int)h->services[i]->status : SERVICE_UNKNOWN;
}

static void send_status(struct query *q, int status)
{
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    uint8_t bytes[16];
    assert(grpc__health__v1__health_check_response__get_packed_size(&response) <= sizeof bytes);
    size_t size = grpc__health__v1__health_check_response__pack(&response, bytes);
    if (rpc_send(q->call, bytes, size))
        return; /* no memory, or the call has ended: the watcher will ask again */
    q->sent = status;
}

static void update_watcher(struct query *q)
{
    int status = status_of(q->health, q->service);
    if (q->asked && status != q->sent && !rpc_queued_bytes(q->call))
        send_status(q, status);
}

static void on_request(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct query *q = rpc_user(c);
    struct err e = ERR_INIT;
    if (q->asked)
        return; /* one request per call; gRPC clients do not send more */
    q->asked = true;
    int code = health_read_request(data, size, q->service, &e);
    if (code && code != -ENOENT) {
        rpc_finish(c, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    if (code) /* too long a name: no service has it */
        memset(q->service, '?', HEALTH_MAX_SERVICE_BYTES);
    if (q->watch) {
        update_watcher(q);
        return;
    }
    int status = status_of(q->health, q->service);
    if (status == SERVICE_UNKNOWN) {
        rpc_finish(c, RPC_NOT_FOUND, "this server has no such service");
        return;
    }
    send_status(q, status);
    rpc_finish(c, RPC_OK, "");
}

static void on_half_close(struct rpc_call *c)
{
    struct query *q = rpc_user(c);
    if (!q->asked)
        rpc_finish(c, RPC_INVALID_ARGUMENT, "expected a HealthCheckRequest, found none");
}

static void on_drained(struct rpc_call *c)
{
    struct query *q = rpc_user(c);
    if (q->watch)
        update_watcher(q);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)status, (void)message;
    struct query *q = rpc_user(c);
    *q->link = q->next;
    if (q->next)
        q->next->link = q->link;
    free(q);
}

static void accept_query(struct rpc_call *c, struct health *h, bool watch)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_request,
                                                   .on_half_close = on_half_close,
                                                   .on_drained = on_drained,
                                                   .on_done = on_done};
    struct query *q = calloc(1, sizeof *q);
    if (!q) {
        rpc_refuse(c, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    *q = (struct query){.health = h, .call = c, .watch = watch, .sent = NOTHING_SENT};
    q->next = h->queries;
    q->link = &h->queries;
    if (q->next)
        q->next->link = &q->next;
    h->queries = q;
    rpc_set(c, &callbacks, q);
}

static void on_check(struct rpc_call *c, void *context)
{
    accept_query(c, context, false);
}

static void on_watch(struct rpc_call *c, void *context)
{
    accept_query(c, context, true);
}

/* ---- the server's side ---- */

static bool add_service(struct health *h, const char *name, size_t at, enum rpc_serving status)
{
    size_t length = strlen(name);
    assert(h->n_services < MAX_SERVICES && length <= HEALTH_MAX_SERVICE_BYTES);
    if (h->n_services == h->capacity) {
        size_t capacity = h->capacity ? 2 * h->capacity : 16;
        struct service **more = realloc(h->services, capacity * sizeof(struct service *));
        if (!more)
            return false;
        h->services = more;
        h->capacity = capacity;
    }
    struct service *s = malloc(sizeof *s + length + 1);
    if (!s)
        return false;
    s->status = status;
    memcpy(s->name, name, length + 1);
    memmove(&h->services[at + 1], &h->services[at],
            (h->n_services - at) * sizeof(struct service *));
    h->services[at] = s;
    h->n_services++;
    return true;
}

static void remove_service(struct health *h, size_t at)
{
    free(h->services[at]);
    h->n_services--;
    memmove(&h->services[at], &h->services[at + 1],
            (h->n_services - at) * sizeof(struct service *));
}

/* Whether anything is different now. */
static bool set_status(struct health *h, const char *service, enum rpc_serving status)
{
    size_t i;
    bool known = find_service(h, service, &i);
    if (known ? h->services[i]->status == status : status == RPC_SERVING_UNKNOWN)
        return false;
    if (status == RPC_SERVING_UNKNOWN)
        remove_service(h, i);
    else if (known)
        h->services[i]->status = status;
    else if (!add_service(h, service, i, status))
        log_error("no memory for the health of %s", service);
    return true;
}

int rpc_health_add(struct rpc_server *s)
{
    struct rpc_builtin *builtin = rpc_server_builtin(s);
    assert(!builtin->health);
    struct health *h = calloc(1, sizeof *h);
    if (!h)
        return -ENOMEM;
    h->methods[0] = (struct rpc_method){"/grpc.health.v1.Health/Check", on_check, h};
    h->methods[1] = (struct rpc_method){"/grpc.health.v1.Health/Watch", on_watch, h};
    set_status(h, "", RPC_NOT_SERVING); /* the whole server, until it says otherwise */
    int code =
        h->n_services ? rpc_server_add_builtin(s, h->methods, ARRAY_LEN(h->methods)) : -ENOMEM;
    if (code) {
        health_free(h);
        return code;
    }
    builtin->health = h;
    return 0;
}

void rpc_health_set(struct rpc_server *s, const char *service, enum rpc_serving status)
{
    struct health *h = rpc_server_builtin(s)->health;
    assert(h);
    if (h->stopping || !set_status(h, service, status))
        return;
    for (struct query *q = h->queries; q; q = q->next) {
        if (q->watch && strcmp(q->service, service) == 0)
            update_watcher(q);
    }
}

void health_stop(struct health *h)
{
    for (size_t i = 0; i < h->n_services; i++)
        h->services[i]->status = RPC_NOT_SERVING;
    h->stopping = true;
    for (struct query *q = h->queries; q; q = q->next) {
        if (!q->watch)
            continue;
        if (q->asked && q->sent != RPC_NOT_SERVING && status_of(h, q->service) == RPC_NOT_SERVING)
            send_status(q, RPC_NOT_SERVING);
        rpc_finish(q->call, RPC_UNAVAILABLE, "the server is shutting down");
    }
}

void health_free(struct health *h)
{
    if (!h)
        return;
    assert(!h->queries); /* every call has ended */
    while (h->n_services)
        remove_service(h, h->n_services - 1);
    free(h->services);
    free(h);
}
