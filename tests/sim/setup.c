/* setup.c: what a seed decides before anything runs: the groups, their limits and deadlines, the
 * load, how much goes wrong. */
#include <inttypes.h>

#include "base/clock.h"
#include "base/util.h"
#include "sim.h"

static void set_text(struct sim *s, struct config *c, const char *path, const char *value)
{
    struct err e = ERR_INIT;
    if (config_set(c, path, value, path, &e) < 0)
        world_fail(&s->world, "configuration: %s", e.message);
}

static void set(struct sim *s, struct config *c, const char *path, const char *format,
                uint64_t value)
{
    char text[64];
    snprintf(text, sizeof text, format, value);
    set_text(s, c, path, text);
}

static uint64_t between(struct sim *s, int64_t min, int64_t max)
{
    return (uint64_t)rng_between(&s->world.work, min, max);
}

static void check_config(struct sim *s, const struct config *c)
{
    struct err e = ERR_INIT;
    if (config_check(c, &e) < 0)
        world_fail(&s->world, "configuration: %s", e.message);
}

/* What coordinator and ranks must agree on; drawn once. */
struct common {
    const char *activations;
    uint64_t heartbeat, lease, step, reconnect_min, reconnect_max;
};

static void set_common(struct sim *s, struct config *c, const struct common *x)
{
    if (config_init(c) < 0)
        world_fail(&s->world, "configuration: out of memory");
    set_text(s, c, "coordinator.listen", "127.0.0.1:8130");
    set_text(s, c, "worker.coordinator", "127.0.0.1:8130");
    set_text(s, c, "worker.health_listen", "");
    set_text(s, c, "group.workers", "external");
    set_text(s, c, "worker.activations", x->activations);
    set(s, c, "deadlines.heartbeat", "%" PRIu64 "ms", x->heartbeat);
    set(s, c, "deadlines.lease", "%" PRIu64 "ms", x->lease);
    set(s, c, "deadlines.step", "%" PRIu64 "ms", x->step);
    set(s, c, "deadlines.hello", "%" PRIu64 "s", 20);
    set(s, c, "worker.reconnect_min", "%" PRIu64 "ms", x->reconnect_min);
    set(s, c, "worker.reconnect_max", "%" PRIu64 "ms", x->reconnect_max);
}

static void draw_coordinator(struct sim *s, const struct common *x)
{
    struct rng *r = &s->world.work;
    struct config *c = &s->config;
    set_common(s, c, x);
    set(s, c, "coordinator.limits.max_queue", "%" PRIu64,
        rng_chance(r, 30) ? between(s, 1, 8) : between(s, 20, 256));
    if (rng_chance(r, 20))
        set(s, c, "coordinator.limits.max_queue_tokens", "%" PRIu64, between(s, 50, 2000));
    if (rng_chance(r, 20))
        set(s, c, "coordinator.limits.max_wait", "%" PRIu64 "ms", between(s, 100, 10000));
    set(s, c, "coordinator.limits.max_connections", "%" PRIu64,
        rng_chance(r, 10) ? between(s, 12, 30) : 1024);
    set(s, c, "coordinator.limits.max_stream_bytes", "%" PRIu64, between(s, 4096, 8192));
    set(s, c, "coordinator.deadlines.slow_reader", "%" PRIu64 "ms", between(s, 200, 4000));
    set(s, c, "coordinator.deadlines.request", "%" PRIu64 "s", 600);
    set(s, c, "coordinator.deadlines.drain", "%" PRIu64 "ms", between(s, 0, 5000));
    check_config(s, c);
}

static void draw_limits(struct sim *s, struct plan_limits *l)
{
    struct rng *r = &s->world.work;
    const struct arch *a = model_dir_arch(s->model_dir);
    uint32_t n_slots = rng_chance(r, 20) ? (uint32_t)between(s, 1, 4) : (uint32_t)between(s, 4, 32);
    uint32_t n_tokens = (uint32_t)between(s, 64, 600);
    *l = (struct plan_limits){
        .n_slots = n_slots,
        .n_blocks = (uint32_t)between(s, 16, rng_chance(r, 60) ? 80 : 400),
        .max_tokens = MAX(n_slots, n_tokens),
        .max_seq = a->max_seq,
        .vocab = a->vocab,
        .n_top_logprobs = 5,
        .n_layers = a->n_layers,
    };
}

static void draw_group(struct sim *s, uint32_t number, const struct common *x)
{
    static const struct {
        uint32_t tp, pp;
    } shapes[] = {{1, 1}, {1, 1}, {2, 1}, {2, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {1, 4}};
    struct rng *r = &s->world.work;
    struct sim_group *g = &s->groups[number];
    uint32_t shape = rng_below(r, ARRAY_LEN(shapes));
    *g = (struct sim_group){.tp_size = shapes[shape].tp, .n_stages = shapes[shape].pp};
    g->first_machine = s->n_machines;
    g->n_ranks = g->tp_size * g->n_stages;
    s->n_machines += g->n_ranks;
    snprintf(g->name, sizeof g->name, "%c", (char)('A' + number));
    g->start_ns = number && rng_chance(r, 40) ? rng_between(r, 0, s->plan.work_ns) : 0;
    draw_limits(s, &g->limits);
    set_common(s, &g->config, x);
    set_text(s, &g->config, "group.name", g->name);
    set(s, &g->config, "group.tensor_parallel", "%" PRIu64, g->tp_size);
    set(s, &g->config, "group.pipeline_parallel", "%" PRIu64, g->n_stages);
    set(s, &g->config, "worker.slots", "%" PRIu64, g->limits.n_slots);
    check_config(s, &g->config);
    trace(&s->world, "plan: group %s: %u x %u ranks, %u slots, %u blocks, %u tokens a step",
          g->name, g->tp_size, g->n_stages, g->limits.n_slots, g->limits.n_blocks,
          g->limits.max_tokens);
}

static void draw_load(struct sim *s)
{
    struct rng *r = &s->world.work;
    struct sim_plan *p = &s->plan;
    p->work_ns = rng_between(r, 3, 20) * NSEC_PER_SEC;
    p->n_requests = (uint32_t)between(s, 5, rng_chance(r, 70) ? 60 : 150);
    p->max_prompt = (uint32_t)between(s, 16, 300);
    p->max_new = (uint32_t)between(s, 4, rng_chance(r, 70) ? 24 : 80);
    p->chatty = rng_chance(r, 20);
    if (p->chatty) {
        p->max_new = (uint32_t)between(s, 150, 400);
        p->max_prompt = (uint32_t)between(s, 4, 60);
        p->n_requests = (uint32_t)between(s, 5, 20);
    }
    p->fake = (struct fake_params){
        .step_ns = rng_between(r, 1, rng_chance(r, 70) ? 10 : 40) * NSEC_PER_MSEC,
        .prefill_token_ns = rng_between(r, 0, 100) * NSEC_PER_USEC,
        .decode_seq_ns = rng_between(r, 0, 500) * NSEC_PER_USEC,
        .end_probability = p->chatty ? 0.001 : (double)rng_below(r, 8) / 100,
        .seed = rng_next(r),
    };
}

/* What the first generator did not know, from draws of its own. */
static void draw_options(struct sim *s)
{
    struct rng *r = &s->world.options;
    bool has_options = s->plan.generator > SIM_GENERATOR_FIRST;
    s->plan.causal = has_options && rng_chance(r, 25);
    s->plan.familiar = has_options && rng_chance(r, 40);
    /* names only; see keys.c for a file of them */
    s->plan.n_keys = has_options && rng_chance(r, 50) ? 1 + rng_below(r, 4) : 0;
    s->model_dir = s->plan.causal ? s->model->causal : s->model->dir;
}

void sim_make_plan(struct sim *s)
{
    static const uint32_t groups[] = {1, 1, 1, 2, 2, 3};
    static const uint32_t faults[] = {1, 2, 3, 5, 8, 12};
    struct rng *r = &s->world.work;
    struct sim_plan *p = &s->plan;
    draw_options(s);
    p->calm = rng_chance(r, 25);
    p->n_groups = groups[rng_below(r, ARRAY_LEN(groups))];
    p->one_host = rng_chance(r, 60);
    p->device = rng_chance(r, 70) ? "cpu" : "cuda:0";
    draw_load(s);
    p->n_faults = p->calm ? 0 : faults[rng_below(r, ARRAY_LEN(faults))];
    struct common x = {.activations = rng_chance(r, 30) ? "fp32" : "fp16",
                       .heartbeat = between(s, 100, 500),
                       .step = p->calm ? 10000 : between(s, 500, 5000),
                       .reconnect_min = between(s, 20, 200),
                       .reconnect_max = between(s, 300, 3000)};
    x.lease = x.heartbeat * between(s, 6, 20);
    draw_coordinator(s, &x);
    for (uint32_t i = 0; i != p->n_groups; i++)
        draw_group(s, i, &x);
    s->fake = (struct fake_config){.params = p->fake, .limits = s->groups[0].limits};
    fake_config_set_arch(&s->fake, model_dir_arch(s->model_dir));
    trace(&s->world, "plan: %s%s, %u groups, %u requests, %u faults, lease %lld ms, step %lld ms",
          p->calm ? "calm" : "faults", p->causal ? ", causal" : "", p->n_groups, p->n_requests,
          p->n_faults, (long long)(s->config.deadlines.lease / NSEC_PER_MSEC),
          (long long)(s->config.deadlines.step / NSEC_PER_MSEC));
}
