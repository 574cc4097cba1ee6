/* status.c: what operators see: Cluster.Status. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/coordinator.h"
#include "coordinator/dispatch.h"

void status_model(const struct coordinator *c, struct wire_model_info *ret)
{
    const struct arch *a = model_dir_arch(c->model);
    *ret = (struct wire_model_info){
        .id = c->model_name,
        .architecture = "glm",
        .context_length = a->max_seq,
        .vocab_size = a->vocab,
        .weights = quant_weights_name(model_dir_scheme(c->model)->weights),
        .digest = model_dir_digest(c->model)->hex,
        .layers = a->n_layers,
        .hidden_size = a->hidden,
    };
}

static void update_rate(struct rate *r, uint64_t now, double seconds)
{
    double per_second = (double)(now - r->last) / seconds;
    r->per_second += 0.3 * (per_second - r->per_second);
    if (r->per_second < 0.05)
        r->per_second = 0;
    r->last = now;
}

void status_tick(struct coordinator *c, int64_t now_ns)
{
    if (now_ns - c->rates_ns < NSEC_PER_SEC)
        return;
    struct sched_stats s;
    sched_stats(c->sched, &s);
    double elapsed = (double)(now_ns - c->rates_ns) / (double)NSEC_PER_SEC;
    update_rate(&c->prefill_rate, s.n_prefill_tokens, elapsed);
    update_rate(&c->decode_rate, s.n_decode_tokens, elapsed);
    c->rates_ns = now_ns;
}

static int pack_status(const struct coordinator *c, struct buf *out)
{
    int64_t now = clock_now_ns();
    struct sched_stats s;
    sched_stats(c->sched, &s);
    struct wire_rank_status ranks[DISPATCH_MAX_RANKS];
    struct wire_group_status group = {
        .kv_blocks_total = s.n_blocks,
        .kv_blocks_free = s.n_blocks - s.n_blocks_used,
        .running = s.n_running,
        .waiting = s.n_waiting,
        .prefill_tokens_per_second = c->prefill_rate.per_second,
        .decode_tokens_per_second = c->decode_rate.per_second,
        .steps = s.n_steps,
        .prefill_tokens = s.n_prefill_tokens,
        .decode_tokens = s.n_decode_tokens,
        .slots_total = s.n_slots,
        .slots_used = s.n_slots_used,
    };
    fleet_status(c->fleet, now, &group, ranks);
    struct wire_model_info model;
    status_model(c, &model);
    const struct wire_status_response response = {
        .version = GLMD_VERSION,
        .uptime_seconds = (double)(now - c->started_ns) / (double)NSEC_PER_SEC,
        .cluster = c->config->cluster.name,
        .model = &model,
        .groups = &group,
        .n_groups = 1,
        .requests = &c->counters,
        .draining = c->draining,
    };
    return wire_pack_status_response(&response, out);
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct coordinator *c = rpc_user(call);
    struct wire_status_request *request;
    struct err e = ERR_INIT;
    if (wire_unpack_status_request(data, size, &request, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    wire_free_status_request(request);
    struct buf out = {0};
    int r = pack_status(c, &out);
    if (r == 0) {
        rpc_send(call, out.data, out.size);
        rpc_finish(call, RPC_OK, "");
    } else {
        log_error("status: %s", err_name(r));
        rpc_finish(call, RPC_INTERNAL, "the status could not be packed");
    }
    buf_deinit(&out);
}

static void on_done(struct rpc_call *call, enum rpc_status status, const char *message)
{
    (void)call;
    (void)status;
    (void)message;
}

void status_on_call(struct rpc_call *call, void *coordinator)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    rpc_set(call, &callbacks, coordinator);
}
