/* coordinator.c: the pump, the fleet's events, drain and stop. See coordinator.h. */
#include "coordinator/coordinator.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/util.h"
#include "coordinator/front.h"
#include "coordinator/listen.h"
#include "coordinator/serving.h"

#define TICK_NS (100 * NSEC_PER_MSEC)

/* ---- the pump ---- */

static void pump_touched(struct coordinator *c)
{
    struct request *r = sched_next_touched(c->sched);
    if (!r)
        return;
    enum loop_part outer = loop_meter_enter(&c->meter, LOOP_TELL);
    for (; r; r = sched_next_touched(c->sched)) {
        front_touched(c, r);
        c->n_told++;
    }
    loop_meter_leave(&c->meter, outer);
}

/* Steps of one group, as many as may be out. */
static void pump_group(struct coordinator *c, uint32_t group)
{
    const struct plan *p;
    while (sched_attached(c->sched, group) && fleet_can_send(c->fleet, group)) {
        int64_t now = clock_now_ns();
        sched_drain(c->sched, group, fleet_is_draining(c->fleet, group));
        if (!sched_plan(c->sched, group, now, &p))
            return;
        uint32_t n_tokens = 0;
        for (uint32_t i = 0; i != p->n_items; i++)
            n_tokens += p->items[i].n_tokens;
        fleet_send_step(c->fleet, group, p, n_tokens, now);
        metrics_step(&c->metrics, n_tokens);
    }
}

static void pump_steps(struct coordinator *c)
{
    enum loop_part outer = loop_meter_enter(&c->meter, LOOP_PLAN);
    uint32_t n_groups = fleet_max_groups(c->fleet);
    for (uint32_t i = 0; i != n_groups; i++)
        pump_group(c, i);
    loop_meter_leave(&c->meter, outer);
}

/* A group that drains leaves once nothing of it runs. */
static void release_drained(struct coordinator *c)
{
    for (uint32_t i = 0; i != fleet_max_groups(c->fleet); i++) {
        struct sched_group_stats s;
        if (!fleet_is_ready(c->fleet, i) || !fleet_is_draining(c->fleet, i))
            continue;
        sched_group_stats(c->sched, i, &s);
        if (s.n_running == 0)
            fleet_release(c->fleet, i, "drained");
    }
}

static void tell_drained(struct coordinator *c)
{
    if (c->told_drained)
        return;
    c->told_drained = true;
    c->ops->drained(c->ops_context);
}

void coordinator_pump(struct coordinator *c)
{
    c->pump_again = true;
    if (c->pumping)
        return;
    c->pumping = true;
    while (c->pump_again) {
        c->pump_again = false;
        /* One step is out while the next one is planned, so that no rank waits for what clients
         * are told meanwhile. */
        pump_touched(c);
        pump_steps(c);
        pump_touched(c); /* planning may have ended some */
        release_drained(c);
    }
    c->pumping = false;
    if (c->draining && !c->stopping && sched_n_requests(c->sched) == 0)
        tell_drained(c);
}

/* ---- the fleet's events ---- */

static bool on_group_ready(void *context, uint32_t group, const struct plan_limits *limits,
                           uint32_t n_stages, uint64_t epoch)
{
    struct coordinator *c = context;
    struct err e = ERR_INIT;
    if (sched_attach(c->sched, group, limits, n_stages, epoch, &e) < 0) {
        log_error("group %s cannot be used: %s", fleet_name(c->fleet, group), e.message);
        return false;
    }
    serving_group(c, group);
    coordinator_pump(c);
    return true;
}

static bool on_step_result(void *context, uint32_t group, const struct step_result *result,
                           struct err *e)
{
    struct coordinator *c = context;
    int64_t now = clock_now_ns();
    if (sched_commit(c->sched, group, result, now, e) < 0)
        return false;
    metrics_step_done(&c->metrics, group, now);
    coordinator_pump(c);
    return true;
}

static void on_group_down(void *context, uint32_t group, const char *why)
{
    struct coordinator *c = context;
    sched_detach(c->sched, group, why);
    metrics_group_down(&c->metrics, group, clock_now_ns());
    serving_group(c, group);
    coordinator_pump(c);
}

static void on_group_gone(void *context, uint32_t group, const char *name)
{
    struct coordinator *c = context;
    sched_forget(c->sched, group);
    serving_gone(c, name);
}

static void on_rank_changed(void *context, uint32_t group, uint32_t rank)
{
    serving_rank(context, group, rank);
}

static const struct fleet_ops fleet_ops = {.ready = on_group_ready,
                                           .result = on_step_result,
                                           .down = on_group_down,
                                           .gone = on_group_gone,
                                           .rank = on_rank_changed};

/* ---- time ---- */

static void reload_keys(struct coordinator *c)
{
    struct err e = ERR_INIT;
    int r = auth_reload_if_changed(c->auth, &e);
    if (r > 0)
        log_info("%s: the API keys were read again", c->config->coordinator.keys);
    else if (r < 0)
        log_error("the API keys stay as they were: %s", e.message);
}

void coordinator_tick(struct coordinator *c, int64_t now_ns)
{
    if (c->stopping)
        return;
    fleet_tick(c->fleet, now_ns);
    sched_expire(c->sched, now_ns);
    front_tick(c, now_ns);
    reload_keys(c);
    status_tick(c, now_ns);
    coordinator_pump(c);
    if (c->draining && !c->told_drained && now_ns >= c->drain_end_ns) {
        log_warn("the drain time is over: %u requests are cut off", sched_n_requests(c->sched));
        tell_drained(c);
    }
}

int64_t coordinator_tick_ns(const struct coordinator *c)
{
    return MIN(c->config->deadlines.heartbeat, TICK_NS);
}

/* ---- drain and stop ---- */

void coordinator_drain(struct coordinator *c, int64_t now_ns)
{
    if (c->draining || c->stopping)
        return;
    c->draining = true;
    c->drain_end_ns = now_ns + c->config->coordinator.deadlines.drain;
    serving_changed(c);
    if (!fleet_any_ready(c->fleet))
        front_end_all(c, RPC_UNAVAILABLE, "the server stops, and no group of workers is ready");
    coordinator_pump(c);
}

uint32_t coordinator_drain_group(struct coordinator *c, uint32_t group, int64_t deadline_ns)
{
    struct sched_group_stats s;
    fleet_drain(c->fleet, group, deadline_ns);
    sched_group_stats(c->sched, group, &s);
    serving_group(c, group);
    coordinator_pump(c);
    return s.n_running;
}

void coordinator_stop(struct coordinator *c, int64_t grace_ns, void (*on_stopped)(void *context),
                      void *context)
{
    assert(!c->stopping);
    c->stopping = true;
    atomic_store_explicit(&c->jobs_dropped, true, memory_order_relaxed);
    c->on_stopped = on_stopped;
    c->stopped_context = context;
    front_end_all(c, RPC_UNAVAILABLE, "the server stops");
    fleet_stop(c->fleet, "the coordinator stops");
    listen_close(c, grace_ns);
}

void coordinator_part_stopped(struct coordinator *c)
{
    if (c->stopping && c->n_servers == 0 && c->n_jobs == 0)
        c->on_stopped(c->stopped_context);
}

/* ---- start ---- */

static int open_admission(struct coordinator *c, struct err *e)
{
    const struct arch *a = model_dir_arch(c->model);
    const char *name = *c->config->model.name ? c->config->model.name : a->name;
    snprintf(c->model_name, sizeof c->model_name, "%s", name);
    c->admit = (struct admit){
        .arch = a,
        .tokenizer = c->tokenizer,
        .model = c->model_name,
        .max_input_bytes = (size_t)c->config->coordinator.limits.max_input_bytes,
        .max_tokens = (uint32_t)c->config->coordinator.limits.max_tokens_per_request,
        .max_masks = (uint32_t)c->config->coordinator.limits.max_masks,
        .max_choices = (uint32_t)c->config->coordinator.limits.max_choices,
    };
    return admit_init(&c->admit, e);
}

static void on_sched_event(void *context, const struct request *r, enum sched_event event,
                           uint64_t epoch, uint32_t n)
{
    static const enum wire_event_kind kinds[] = {
        [SCHED_STARTED] = WIRE_EVENT_STARTED,
        [SCHED_PREFILL] = WIRE_EVENT_PREFILL,
        [SCHED_PREEMPTED] = WIRE_EVENT_PREEMPTED,
        [SCHED_LOST] = WIRE_EVENT_LOST,
    };
    struct coordinator *c = context;
    timeline_add(c->timeline, front_timeline(r->user), kinds[event], fleet_name(c->fleet, r->group),
                 epoch, n, clock_now_ns());
}

static int open_scheduler(struct coordinator *c, struct err *e)
{
    const struct arch *a = model_dir_arch(c->model);
    const struct sched_config sched = {
        .arch = a,
        .max_queue = (uint32_t)c->config->coordinator.limits.max_queue,
        .max_queue_tokens = c->config->coordinator.limits.max_queue_tokens,
        .max_wait_ns = c->config->coordinator.limits.max_wait,
        .prefill_budget_ns = c->config->scheduler.prefill_budget,
        .slices = true,
        .on_event = on_sched_event,
        .event_context = c,
    };
    struct fleet_config fleet = {
        .config = c->config,
        .arch = a,
        .model_digest = model_dir_digest(c->model)->hex,
        .scheme = quant_weights_name(model_dir_scheme(c->model)->weights),
        .epochs = c->epochs,
        .meter = &c->meter,
        .ops = &fleet_ops,
        .context = c,
    };
    /* The manifest's answer is that of the exact mode; the others may rightly round elsewhere. */
    fleet.has_known_answer = c->config->worker.activations == CONFIG_ACTIVATIONS_FP32 &&
                             c->config->worker.kv_cache == CONFIG_KV_CACHE_AUTO &&
                             model_dir_known_answer(c->model, &fleet.known_answer) == 0;
    int r = timeline_new(&c->timeline);
    if (r == 0)
        r = sched_new(&sched, &c->sched);
    if (r == 0)
        r = fleet_new(&fleet, &c->fleet);
    return r < 0 ? err_set(e, r, "out of memory") : 0;
}

int coordinator_init(struct coordinator *c, const struct coordinator_config *config, struct err *e)
{
    *c = (struct coordinator){
        .config = config->config,
        .model = config->model,
        .tokenizer = config->tokenizer,
        .epochs = config->epochs,
        .ops = config->ops,
        .ops_context = config->context,
        .rank_listen = config->rank_listen,
    };
    metrics_init(&c->metrics);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    c->started_at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    c->started_ns = c->rates_ns = clock_now_ns();
    uint32_t drawn = 0;
    if (random_bytes(&drawn, sizeof drawn) < 0)
        drawn = (uint32_t)c->started_ns;
    snprintf(c->id_prefix, sizeof c->id_prefix, "glmd-%08x", drawn);
    int r = auth_open(c->config->coordinator.keys, &c->auth, e);
    if (r == 0)
        r = open_admission(c, e);
    if (r == 0)
        r = open_scheduler(c, e);
    if (r < 0)
        coordinator_deinit(c);
    return r;
}

void coordinator_deinit(struct coordinator *c)
{
    assert(c->n_jobs == 0);
    fleet_free(c->fleet);
    sched_free(c->sched);
    auth_close(c->auth);
    c->auth = NULL;
    timeline_free(c->timeline);
    c->fleet = NULL;
    c->sched = NULL;
    c->timeline = NULL;
}

int coordinator_listen(struct coordinator *c, struct rpc_runtime *runtime, struct err *e)
{
    int r = listen_open(c, runtime, e);
    if (r == 0)
        serving_start(c);
    return r;
}
