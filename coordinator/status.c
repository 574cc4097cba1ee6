/* status.c: what operators see: Cluster.Status. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/coordinator.h"

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
    double elapsed = (double)(now_ns - c->rates_ns) / (double)NSEC_PER_SEC;
    struct sched_stats all;
    sched_stats(c->sched, &all);
    struct history_sample sample = {
        .kv_usage = all.n_blocks ? (float)all.n_blocks_used / (float)all.n_blocks : 0,
        .running = all.n_running,
        .waiting = all.n_waiting,
    };
    for (uint32_t i = 0; i != fleet_max_groups(c->fleet); i++) {
        struct sched_group_stats s;
        sched_group_stats(c->sched, i, &s);
        update_rate(&c->prefill_rates[i], s.n_prefill_tokens, elapsed);
        update_rate(&c->decode_rates[i], s.n_decode_tokens, elapsed);
        sample.prefill_tokens_per_second += (float)c->prefill_rates[i].per_second;
        sample.decode_tokens_per_second += (float)c->decode_rates[i].per_second;
    }
    history_add(&c->history, &sample);
    c->rates_ns = now_ns;
}

/* What the scheduler knows of a group. One queue feeds all of them: whoever waits, waits for each.
 */
static void add_sched_stats(const struct coordinator *c, uint32_t group,
                            const struct sched_stats *all, struct wire_group_status *g)
{
    struct sched_group_stats s;
    sched_group_stats(c->sched, group, &s);
    if (!s.attached)
        return;
    g->kv_blocks_total = s.n_blocks;
    g->kv_blocks_free = s.n_blocks - s.n_blocks_used;
    g->running = s.n_running;
    g->waiting = all->n_waiting;
    g->prefill_tokens_per_second = c->prefill_rates[group].per_second;
    g->decode_tokens_per_second = c->decode_rates[group].per_second;
    g->steps = s.n_steps;
    g->prefill_tokens = s.n_prefill_tokens;
    g->decode_tokens = s.n_decode_tokens;
    g->slots_total = s.n_slots;
    g->slots_used = s.n_slots_used;
}

static int with_groups(const struct coordinator *c, const struct sched_stats *all,
                       struct wire_status_response *response, status_take *take, void *context)
{
    const uint32_t max = fleet_max_groups(c->fleet);
    struct fleet_group_status **known = alloc_array(max, sizeof(struct fleet_group_status *));
    struct wire_group_status *groups = alloc_array(max, sizeof *groups);
    uint32_t n = 0;
    int r = known && groups ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i != max; i++) {
        if (!fleet_name(c->fleet, i))
            continue;
        known[n] = malloc(sizeof **known);
        if (!known[n]) {
            r = -ENOMEM;
            break;
        }
        fleet_status(c->fleet, i, clock_now_ns(), known[n]);
        groups[n] = known[n]->group;
        add_sched_stats(c, i, all, &groups[n++]);
    }
    response->groups = groups;
    response->n_groups = n;
    if (r == 0)
        r = take(context, response);
    for (uint32_t i = 0; known && i != n; i++)
        free(known[i]);
    free(known);
    free(groups);
    return r;
}

int status_collect(const struct coordinator *c, status_take *take, void *context)
{
    struct sched_stats all;
    sched_stats(c->sched, &all);
    struct wire_request_counters counters = c->counters;
    counters.resumed = all.n_resumed;
    struct wire_model_info model;
    status_model(c, &model);
    const struct wire_loop_time loop = {
        .steps = all.n_steps,
        .plan_ns = (uint64_t)c->meter.cpu_ns[LOOP_PLAN],
        .result_ns = (uint64_t)c->meter.cpu_ns[LOOP_RESULT],
        .updates = c->n_told,
        .update_ns = (uint64_t)c->meter.cpu_ns[LOOP_TELL],
    };
    struct wire_status_response response = {
        .version = GLMD_VERSION,
        .uptime_seconds = (double)(clock_now_ns() - c->started_ns) / (double)NSEC_PER_SEC,
        .cluster = c->config->cluster.name,
        .model = &model,
        .requests = &counters,
        .draining = c->draining,
        .waiting = all.n_waiting,
        .loop = &loop,
    };
    return with_groups(c, &all, &response, take, context);
}

static int pack(void *buf, const struct wire_status_response *response)
{
    return wire_pack_status_response(response, buf);
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct coordinator *c = rpc_user(call);
    struct wire_status_request *request;
    struct err e = ERR_INIT;
    if (!front_rpc_allowed(c, call, AUTH_USER))
        return;
    if (wire_unpack_status_request(data, size, &request, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    wire_free_status_request(request);
    struct buf out = {0};
    int r = status_collect(c, pack, &out);
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
