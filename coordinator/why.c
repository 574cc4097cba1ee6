/* why.c: Cluster.Why: the timeline of a request. Loop thread. */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/coordinator.h"

enum { MAX_TIMELINES = 8 }; /* of requests that had the same id */

static double seconds(int64_t ns)
{
    return (double)ns / (double)NSEC_PER_SEC;
}

static const char *kind_name(enum request_kind kind)
{
    return kind == REQUEST_GENERATE ? "generate" : kind == REQUEST_FILL ? "fill" : "score";
}

static const char *end_of(const struct timeline_entry *e)
{
    return e->refused ? metrics_reject_name(e->reject) : e->ended ? metrics_end_name(e->end) : "";
}

static void fill_in(const struct coordinator *c, const struct timeline_entry *e,
                    struct wire_request_event events[TIMELINE_EVENTS],
                    struct wire_request_timeline *ret)
{
    for (uint32_t i = 0; i != e->n_events; i++) {
        const struct timeline_event *x = &e->events[i];
        events[i] = (struct wire_request_event){
            .kind = (enum wire_event_kind)x->kind,
            .at_seconds = seconds(x->at_ns - e->arrived_ns),
            .until_seconds = seconds(x->until_ns - e->arrived_ns),
            .group = timeline_group(c->timeline, x),
            .epoch = x->epoch,
            .n = x->n,
        };
    }
    *ret = (struct wire_request_timeline){
        .request_id = e->id,
        .trace_id = e->trace,
        .kind = kind_name(e->kind),
        .priority = e->priority,
        .age_seconds = seconds(clock_now_ns() - e->arrived_ns),
        .prompt_tokens = e->n_prompt_tokens,
        .completion_tokens = e->n_completion_tokens,
        .ended = e->ended,
        .end = end_of(e),
        .status = e->ended && !e->refused ? rpc_status_name(e->status) : "",
        .message = e->message,
        .events = events,
        .n_events = e->n_events,
        .events_lost = e->n_lost,
    };
}

static int pack(const struct coordinator *c, const char *id, struct buf *out, uint32_t *ret_n)
{
    const char *plain = request_id_behind_prefix(id);
    if (plain && !timeline_find(c->timeline, id, 0))
        id = plain;
    struct wire_request_event events[MAX_TIMELINES][TIMELINE_EVENTS];
    struct wire_request_timeline timelines[MAX_TIMELINES];
    uint64_t before = 0;
    const struct timeline_entry *e;
    uint32_t n = 0;
    for (; n != MAX_TIMELINES && (e = timeline_find(c->timeline, id, before)); n++) {
        fill_in(c, e, events[n], &timelines[n]);
        before = e->serial;
    }
    *ret_n = n;
    const struct wire_why_response response = {.requests = timelines, .n_requests = n};
    return wire_pack_why_response(&response, out);
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct coordinator *c = rpc_user(call);
    struct wire_why_request *request;
    struct err e = ERR_INIT;
    if (!front_rpc_allowed(c, call, AUTH_ADMIN))
        return;
    if (wire_unpack_why_request(data, size, &request, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    struct buf out = {0};
    uint32_t n = 0;
    int r = pack(c, request->request_id, &out, &n);
    if (r < 0) {
        rpc_finish(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
    } else if (n == 0) {
        rpc_finish(call, RPC_NOT_FOUND, "no request of late had this id");
    } else {
        rpc_send(call, out.data, out.size);
        rpc_finish(call, RPC_OK, "");
    }
    buf_deinit(&out);
    wire_free_why_request(request);
}

static void on_done(struct rpc_call *call, enum rpc_status status, const char *message)
{
    (void)call, (void)status, (void)message;
}

void why_on_call(struct rpc_call *call, void *coordinator)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    rpc_set(call, &callbacks, coordinator);
}
