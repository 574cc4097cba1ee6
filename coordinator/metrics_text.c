/* metrics_text.c: everything that the coordinator exposes, in Prometheus' text format. One snapshot
 * of groups and ranks is taken first: a family's series stand together, whatever they are of. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/tls_expiry.h"

/* A group as it is now. */
struct group_numbers {
    uint32_t number;
    struct fleet_group_status status;
    struct sched_group_stats sched;
    struct fleet_ready_times times;
};

struct scrape {
    const struct coordinator *c;
    const struct coordinator_metrics *m;
    struct metrics_writer w;
    int64_t now_ns;
    struct group_numbers **groups; /* owned, [n_groups] */
    uint32_t n_groups;
    struct sched_stats all;
};

#define FOR_GROUPS(s, g, i)                                                                        \
    for (uint32_t i = 0; i != (s)->n_groups; i++)                                                  \
        for (const struct group_numbers *g = (s)->groups[i]; g; g = NULL)

static double seconds(uint64_t ns)
{
    return (double)ns / (double)NSEC_PER_SEC;
}

static const char *name_of(const struct group_numbers *g)
{
    return g->status.group.id;
}

/* ---- the snapshot ---- */

static void close_scrape(struct scrape *s)
{
    for (uint32_t i = 0; s->groups && i != s->n_groups; i++)
        free(s->groups[i]);
    free(s->groups);
}

static int open_scrape(struct scrape *s, const struct coordinator *c, struct buf *out)
{
    uint32_t max = fleet_max_groups(c->fleet);
    *s = (struct scrape){.c = c, .m = &c->metrics, .now_ns = clock_now_ns()};
    metrics_writer_init(&s->w, &coordinator_registry, out);
    sched_stats(c->sched, &s->all);
    s->groups = alloc_array(max, sizeof(struct group_numbers *));
    if (!s->groups)
        return -ENOMEM;
    for (uint32_t i = 0; i != max; i++) {
        if (!fleet_name(c->fleet, i))
            continue;
        struct group_numbers *g = calloc(1, sizeof *g);
        if (!g)
            return -ENOMEM;
        g->number = i;
        fleet_status(c->fleet, i, s->now_ns, &g->status);
        sched_group_stats(c->sched, i, &g->sched);
        fleet_ready_times(c->fleet, i, &g->times);
        s->groups[s->n_groups++] = g;
    }
    return 0;
}

/* ---- families without labels, or with those of one kind ---- */

static void put_one(struct scrape *s, enum metric metric, uint64_t value)
{
    metrics_begin(&s->w, metric);
    metrics_put_count(&s->w, value);
}

static void put_kept(struct scrape *s, enum metric metric, enum metrics_kept kept)
{
    metrics_begin(&s->w, metric);
    metrics_put_histogram(&s->w, &s->m->kept[kept]);
}

/* ---- the coordinator ---- */

static void put_state(struct scrape *s)
{
    const struct coordinator *c = s->c;
    metrics_begin(&s->w, METRIC_BUILD_INFO);
    metrics_put_count(&s->w, 1, GLMD_VERSION);
    metrics_begin(&s->w, METRIC_MODEL_INFO);
    metrics_put_count(&s->w, 1, c->model_name,
                      quant_weights_name(model_dir_scheme(c->model)->weights),
                      model_dir_digest(c->model)->hex);
    put_one(s, METRIC_DRAINING, c->draining);
    put_one(s, METRIC_PROMPTS_LOGGED, c->config->log.prompts);
}

/* Of the file: a listener that could not read a new one says so in the log. */
static void put_tls(struct scrape *s)
{
    const struct config *f = s->c->config;
    time_t end;
    metrics_begin(&s->w, METRIC_TLS_EXPIRY);
    if (!*f->coordinator.tls.cert || tls_expiry(f->coordinator.tls.cert, &end) < 0)
        return;
    double left = difftime(end, time(NULL));
    metrics_put(&s->w, left, "grpc");
    if (*f->coordinator.worker_listen)
        metrics_put(&s->w, left, "workers");
    if (*f->coordinator.http.listen)
        metrics_put(&s->w, left, "http");
}

static void put_requests(struct scrape *s)
{
    const struct coordinator_metrics *m = s->m;
    put_one(s, METRIC_REQUESTS, s->c->counters.total);
    metrics_begin(&s->w, METRIC_REQUESTS_REJECTED);
    for (int i = 0; i != METRICS_REJECTS; i++)
        metrics_put_count(&s->w, m->rejected[i], metrics_reject_name((enum metrics_reject)i));
    metrics_begin(&s->w, METRIC_REQUESTS_FINISHED);
    for (int i = METRICS_END_STOP; i != METRICS_ENDS; i++)
        metrics_put_count(&s->w, m->finished[i], metrics_end_name((enum metrics_end)i));
    put_one(s, METRIC_UNKNOWN_FIELDS, m->unknown_fields);
    put_one(s, METRIC_REQUESTS_REPLAYED, s->all.n_resumed);
    put_one(s, METRIC_REQUESTS_RUNNING, s->all.n_running);
    put_one(s, METRIC_REQUESTS_WAITING, s->all.n_waiting);
    put_one(s, METRIC_QUEUE_TOKENS, s->all.n_waiting_tokens);
    put_one(s, METRIC_PREEMPTIONS, s->all.n_preempted);
    put_one(s, METRIC_PROMPT_TOKENS, m->prompt_tokens);
    put_one(s, METRIC_GENERATION_TOKENS, m->generation_tokens);
    put_one(s, METRIC_PREFIX_CACHE_QUERIES, s->all.n_lookup_tokens);
    put_one(s, METRIC_PREFIX_CACHE_HITS, s->all.n_hit_tokens);
    for (int i = 0; i != N_KEPT; i++)
        put_kept(s, (enum metric)(METRIC_TTFT + i), (enum metrics_kept)i);
}

_Static_assert(METRIC_CANCEL_TO_FREE - METRIC_TTFT == N_KEPT - 1, "histograms in the same order");

/* ---- groups ---- */

static void put_kv(struct scrape *s)
{
    metrics_begin(&s->w, METRIC_KV_BLOCKS);
    FOR_GROUPS(s, g, i)
    {
        const struct sched_group_stats *x = &g->sched;
        metrics_put_count(&s->w, x->n_blocks_used, name_of(g), "used");
        metrics_put_count(&s->w, x->n_blocks_cached, name_of(g), "cached");
        metrics_put_count(&s->w, x->n_blocks - x->n_blocks_used - x->n_blocks_cached, name_of(g),
                          "free");
    }
    metrics_begin(&s->w, METRIC_KV_USAGE);
    FOR_GROUPS(s, g, i)
    metrics_put(&s->w, (double)g->sched.n_blocks_used / MAX(g->sched.n_blocks, 1u), name_of(g));
}

static void put_steps(struct scrape *s)
{
    metrics_begin(&s->w, METRIC_STEPS);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.n_steps, name_of(g));
    metrics_begin(&s->w, METRIC_STEP_TOKENS);
    FOR_GROUPS(s, g, i)
    {
        metrics_put_count(&s->w, g->sched.n_prefill_tokens, name_of(g), "prefill");
        metrics_put_count(&s->w, g->sched.n_decode_tokens, name_of(g), "decode");
    }
    metrics_begin(&s->w, METRIC_ITEMS_DISCARDED);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.n_discarded, name_of(g));
    metrics_begin(&s->w, METRIC_TIME_TO_READY);
    FOR_GROUPS(s, g, i)
    {
        metrics_put(&s->w, seconds((uint64_t)g->times.load_ns), name_of(g), "load");
        metrics_put(&s->w, seconds((uint64_t)g->times.join_ns), name_of(g), "join");
        metrics_put(&s->w, seconds((uint64_t)g->times.total_ns), name_of(g), "total");
    }
}

static void put_groups(struct scrape *s)
{
    metrics_begin(&s->w, METRIC_GROUP_READY);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.attached, name_of(g));
    metrics_begin(&s->w, METRIC_GROUP_DRAINING);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, fleet_is_draining(s->c->fleet, g->number), name_of(g));
    metrics_begin(&s->w, METRIC_GROUP_EPOCH);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->status.group.epoch, name_of(g));
    metrics_begin(&s->w, METRIC_GROUP_RUNNING);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.n_running, name_of(g));
    metrics_begin(&s->w, METRIC_GROUP_SLOTS);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.n_slots, name_of(g));
    metrics_begin(&s->w, METRIC_GROUP_SLOTS_USED);
    FOR_GROUPS(s, g, i)
    metrics_put_count(&s->w, g->sched.n_slots_used, name_of(g));
    put_kv(s);
    put_steps(s);
}

/* ---- ranks ---- */

/* A rank as it is now; what its process says is only there with a process. */
struct rank_numbers {
    const char *group;
    char rank[16];
    const struct wire_rank_status *status;
    const struct wire_heartbeat *beat; /* NULL = nobody has the rank */
    int64_t heard_ns;
};

typedef void put_rank(struct scrape *s, const struct rank_numbers *k);

/* A family with series of all ranks. */
static void put_ranks_of(struct scrape *s, enum metric metric, put_rank *put, bool absent_too)
{
    metrics_begin(&s->w, metric);
    FOR_GROUPS(s, g, i)
    {
        for (uint32_t r = 0; r != g->status.group.n_ranks; r++) {
            struct rank_numbers k = {.group = name_of(g), .status = &g->status.ranks[r]};
            snprintf(k.rank, sizeof k.rank, "%u", r);
            k.beat = fleet_heartbeat(s->c->fleet, g->number, r, &k.heard_ns);
            if (k.beat || absent_too)
                put(s, &k);
        }
    }
}

static void put_ready(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->status->state == WIRE_RANK_READY, k->group, k->rank);
}

static void put_step_age(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put(&s->w, (double)k->status->step_age_ms / 1e3, k->group, k->rank);
}

static void put_heard_age(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put(&s->w, seconds((uint64_t)MAX(s->now_ns - k->heard_ns, INT64_C(0))), k->group,
                k->rank);
}

static void put_rank_steps(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->beat->steps, k->group, k->rank);
}

static void put_compute(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put(&s->w, seconds(k->beat->compute_ns), k->group, k->rank);
}

static void put_collectives(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->beat->all_reduces, k->group, k->rank, "all_reduce");
    metrics_put_count(&s->w, k->beat->all_gathers, k->group, k->rank, "all_gather");
    metrics_put_count(&s->w, k->beat->link_messages, k->group, k->rank, "link");
}

static void put_collective_time(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put(&s->w, seconds(k->beat->all_reduce_ns), k->group, k->rank, "all_reduce");
    metrics_put(&s->w, seconds(k->beat->all_gather_ns), k->group, k->rank, "all_gather");
    metrics_put(&s->w, seconds(k->beat->link_ns), k->group, k->rank, "link");
}

static void put_sampled(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->beat->shared_rows, k->group, k->rank, "shared");
    metrics_put_count(&s->w, k->beat->wide_rows, k->group, k->rank, "gathered");
}

static void put_fenced(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->beat->fenced_messages, k->group, k->rank);
}

static void put_memory(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->status->weights_bytes, k->group, k->rank, "weights");
    metrics_put_count(&s->w, k->status->kv_bytes, k->group, k->rank, "kv");
    metrics_put_count(&s->w, k->status->scratch_bytes, k->group, k->rank, "scratch");
}

static void put_resident(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put_count(&s->w, k->beat->resident_bytes, k->group, k->rank);
}

static void put_rank_cpu(struct scrape *s, const struct rank_numbers *k)
{
    metrics_put(&s->w, seconds(k->beat->cpu_ns), k->group, k->rank);
}

static void put_ranks(struct scrape *s)
{
    static const char *const reasons[FLEET_RESTARTS] = {
        [FLEET_RESTART_LOST] = "lost",         [FLEET_RESTART_RECONNECTED] = "reconnected",
        [FLEET_RESTART_REPLACED] = "replaced", [FLEET_RESTART_SILENT] = "silent",
        [FLEET_RESTART_SLOW] = "slow_load",    [FLEET_RESTART_PROTOCOL] = "protocol",
        [FLEET_RESTART_DRAINED] = "drained",
    };
    metrics_begin(&s->w, METRIC_RANK_RESTARTS);
    for (int i = 0; i != FLEET_RESTARTS; i++)
        metrics_put_count(&s->w, fleet_restarts(s->c->fleet, (enum fleet_restart)i), reasons[i]);
    put_ranks_of(s, METRIC_RANK_READY, put_ready, true);
    put_ranks_of(s, METRIC_RANK_STEP_AGE, put_step_age, true);
    put_ranks_of(s, METRIC_RANK_HEARD_AGE, put_heard_age, false);
    put_ranks_of(s, METRIC_RANK_STEPS, put_rank_steps, false);
    put_ranks_of(s, METRIC_RANK_COMPUTE, put_compute, false);
    put_ranks_of(s, METRIC_RANK_COLLECTIVES, put_collectives, false);
    put_ranks_of(s, METRIC_RANK_COLLECTIVE_TIME, put_collective_time, false);
    put_ranks_of(s, METRIC_RANK_SAMPLED, put_sampled, false);
    put_ranks_of(s, METRIC_RANK_FENCED, put_fenced, false);
    put_one(s, METRIC_FENCED, fleet_n_fenced(s->c->fleet));
    put_ranks_of(s, METRIC_RANK_MEMORY, put_memory, false);
    put_ranks_of(s, METRIC_RANK_RESIDENT, put_resident, false);
    put_ranks_of(s, METRIC_RANK_CPU, put_rank_cpu, false);
}

/* ---- the process ---- */

static void put_loop(struct scrape *s)
{
    static const char *const parts[LOOP_N_PARTS] = {
        [LOOP_RESULT] = "result", [LOOP_PLAN] = "plan", [LOOP_TELL] = "tell"};
    metrics_begin(&s->w, METRIC_LOOP_CPU);
    for (int i = LOOP_OTHER + 1; i != LOOP_N_PARTS; i++)
        metrics_put(&s->w, seconds((uint64_t)s->c->meter.cpu_ns[i]), parts[i]);
}

static void put_process(struct scrape *s)
{
    struct process_usage u;
    put_loop(s);
    process_usage(&u);
    metrics_begin(&s->w, METRIC_PROCESS_CPU);
    metrics_put(&s->w, seconds(u.cpu_ns));
    put_one(s, METRIC_PROCESS_RESIDENT, u.resident_bytes);
    put_one(s, METRIC_PROCESS_VIRTUAL, u.virtual_bytes);
    put_one(s, METRIC_PROCESS_OPEN_FDS, process_open_fds());
    put_one(s, METRIC_PROCESS_MAX_FDS, process_max_fds());
    metrics_begin(&s->w, METRIC_PROCESS_START);
    metrics_put(&s->w, s->c->started_at);
    put_one(s, METRIC_PROCESS_THREADS, u.n_threads);
}

/* ---- vLLM's names ---- */

#define ENGINE "0" /* the whole cluster */

static void put_vllm(struct scrape *s, enum metric metric, double value)
{
    metrics_begin(&s->w, metric);
    metrics_put(&s->w, value, s->c->model_name, ENGINE);
}

static void put_vllm_kept(struct scrape *s, enum metric metric, enum metrics_kept kept)
{
    metrics_begin(&s->w, metric);
    metrics_put_histogram(&s->w, &s->m->kept[kept], s->c->model_name, ENGINE);
}

static void put_vllm_success(struct scrape *s)
{
    const uint64_t *n = s->m->finished;
    const struct {
        const char *reason;
        uint64_t n;
    } all[] = {
        {"stop", n[METRICS_END_STOP] + n[METRICS_END_SCORED]},
        {"length", n[METRICS_END_LENGTH]},
        {"abort", n[METRICS_END_CANCELLED] + n[METRICS_END_ABORTED] + n[METRICS_END_DEADLINE] +
                      n[METRICS_END_SLOW_READER]},
        {"error", n[METRICS_END_UNAVAILABLE] + n[METRICS_END_ERROR]},
    };
    metrics_begin(&s->w, METRIC_VLLM_SUCCESS);
    for (size_t i = 0; i != ARRAY_LEN(all); i++)
        metrics_put_count(&s->w, all[i].n, s->c->model_name, ENGINE, all[i].reason);
}

static void put_vllm_names(struct scrape *s)
{
    const struct sched_stats *a = &s->all;
    double usage = (double)a->n_blocks_used / MAX(a->n_blocks, 1u);
    put_vllm(s, METRIC_VLLM_RUNNING, a->n_running);
    put_vllm(s, METRIC_VLLM_WAITING, a->n_waiting);
    put_vllm(s, METRIC_VLLM_KV_USAGE, usage);
    put_vllm(s, METRIC_VLLM_GPU_CACHE_USAGE, usage);
    put_vllm(s, METRIC_VLLM_PREFIX_QUERIES, (double)a->n_lookup_tokens);
    put_vllm(s, METRIC_VLLM_PREFIX_HITS, (double)a->n_hit_tokens);
    put_vllm(s, METRIC_VLLM_PREEMPTIONS, (double)a->n_preempted);
    put_vllm(s, METRIC_VLLM_PROMPT_TOKENS, (double)s->m->prompt_tokens);
    put_vllm(s, METRIC_VLLM_GENERATION_TOKENS, (double)s->m->generation_tokens);
    put_vllm_success(s);
    put_vllm_kept(s, METRIC_VLLM_ITERATION_TOKENS, KEPT_ITERATION_TOKENS);
    put_vllm_kept(s, METRIC_VLLM_TTFT, KEPT_TTFT);
    put_vllm_kept(s, METRIC_VLLM_ITL, KEPT_ITL);
    put_vllm_kept(s, METRIC_VLLM_TPOT, KEPT_ITL);
    put_vllm_kept(s, METRIC_VLLM_TIME_PER_TOKEN, KEPT_TIME_PER_TOKEN);
    put_vllm_kept(s, METRIC_VLLM_E2E, KEPT_E2E);
    put_vllm_kept(s, METRIC_VLLM_QUEUE_TIME, KEPT_QUEUE);
    put_vllm_kept(s, METRIC_VLLM_INFERENCE_TIME, KEPT_INFERENCE);
    put_vllm_kept(s, METRIC_VLLM_PREFILL_TIME, KEPT_PREFILL);
    put_vllm_kept(s, METRIC_VLLM_DECODE_TIME, KEPT_DECODE);
    put_vllm_kept(s, METRIC_VLLM_REQUEST_PROMPT_TOKENS, KEPT_PROMPT_TOKENS);
    put_vllm_kept(s, METRIC_VLLM_REQUEST_GENERATION_TOKENS, KEPT_GENERATION_TOKENS);
}

/* ---- all of it ---- */

int coordinator_metrics(const struct coordinator *c, struct buf *out)
{
    struct scrape s;
    int r = open_scrape(&s, c, out);
    if (r == 0) {
        put_state(&s);
        put_tls(&s);
        put_requests(&s);
        put_groups(&s);
        put_ranks(&s);
        put_process(&s);
        if (c->config->metrics.vllm_names)
            put_vllm_names(&s);
        r = metrics_end(&s.w);
    }
    close_scrape(&s);
    return r;
}

/* ---- Cluster.Metrics ---- */

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct coordinator *c = rpc_user(call);
    struct wire_metrics_request *request;
    struct err e = ERR_INIT;
    if (wire_unpack_metrics_request(data, size, &request, &e) < 0) {
        rpc_finish(call, RPC_INVALID_ARGUMENT, e.message);
        return;
    }
    wire_free_metrics_request(request);
    if (!front_rpc_allowed(c, call, AUTH_USER))
        return;
    struct buf text = {.limit = METRICS_MAX_BYTES}, out = {0};
    int r = coordinator_metrics(c, &text);
    if (r == 0)
        r = wire_pack_metrics_response(&(struct wire_metrics_response){.text = text.data}, &out);
    if (r == 0) {
        rpc_send(call, out.data, out.size);
        rpc_finish(call, RPC_OK, "");
    } else {
        log_error("metrics: %s", err_name(r));
        rpc_finish(call, RPC_RESOURCE_EXHAUSTED, "the metrics are too long, or memory is short");
    }
    buf_deinit(&text);
    buf_deinit(&out);
}

static void on_done(struct rpc_call *call, enum rpc_status status, const char *message)
{
    (void)call, (void)status, (void)message;
}

void metrics_on_call(struct rpc_call *call, void *coordinator)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    rpc_set(call, &callbacks, coordinator);
}
