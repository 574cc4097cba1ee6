/* fleet_group.c: a group and its epochs: forming it, its steps, its end. See fleet.h. */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/utf8.h"
#include "base/util.h"
#include "coordinator/fleet_internal.h"

#define BACKOFF_MIN_NS (100 * NSEC_PER_MSEC)
#define BACKOFF_MAX_NS (10 * NSEC_PER_SEC)
/* A rank that blames a peer is believed after this, unless the peer's own end shows first. */
#define BLAME_NS    (400 * NSEC_PER_MSEC)
#define MIN_JOIN_NS (60 * NSEC_PER_SEC)

enum { PIPELINE_SLACK = 6 };

int group_new(struct fleet *f, const char *name, struct shape shape, struct group **ret)
{
    struct group *g = calloc(1, sizeof *g);
    if (!g)
        return -ENOMEM;
    g->fleet = f;
    snprintf(g->name, sizeof g->name, "%s", name);
    g->tp_size = shape.tp_size;
    g->n_stages = shape.n_stages;
    g->n_ranks = shape.tp_size * shape.n_stages;
    g->backoff_ns = BACKOFF_MIN_NS;
    g->empty_ns = g->known_ns = clock_now_ns();
    g->ranks = alloc_array(g->n_ranks, sizeof *g->ranks);
    g->stages = alloc_array(g->n_stages, sizeof *g->stages);
    if (dispatch_init(&g->dispatch, g->tp_size, g->n_stages) < 0 || !g->ranks || !g->stages) {
        group_free(g);
        return -ENOMEM;
    }
    *ret = g;
    return 0;
}

void group_free(struct group *g)
{
    if (!g)
        return;
    assert(g->n_sessions == 0);
    dispatch_deinit(&g->dispatch);
    free(g->ranks);
    free(g->stages);
    free(g);
}

void group_rank_error(struct group *g, uint32_t rank, const char *what)
{
    char *text = g->ranks[rank].last_error;
    snprintf(text, sizeof g->ranks[rank].last_error, "%s", what);
    utf8_repair(text, strlen(text)); /* it may have been cut inside a character */
}

bool group_in_epoch(const struct rank_session *s)
{
    return s->group && s->granted && s->granted == s->group->epoch;
}

/* ---- the end of an epoch ---- */

static void end_epoch(struct group *g, const char *why)
{
    bool was_ready = g->state == GROUP_READY;
    uint64_t epoch = g->epoch;
    log_event(LOG_LEVEL_WARN, GROUP_LOG(g), "group %s: epoch %llu is over: %s", g->name,
              (unsigned long long)epoch, why);
    snprintf(g->last_error, sizeof g->last_error, "%s", why);
    g->state = GROUP_FORMING;
    g->epoch = 0;
    g->failure_ns = 0;
    g->down_ns = clock_now_ns();
    if (was_ready && g->down_ns - g->ready_ns > BACKOFF_MAX_NS)
        g->backoff_ns = BACKOFF_MIN_NS; /* it had worked for a while */
    g->next_form_ns = g->down_ns + g->backoff_ns;
    g->backoff_ns = MIN(2 * g->backoff_ns, BACKOFF_MAX_NS);
    dispatch_reset(&g->dispatch);
    const struct wire_abort abort_message = {.epoch = epoch, .reason = why};
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        struct rank_session *s = g->ranks[i].current;
        if (!s || s->granted != epoch)
            continue;
        s->granted = 0;
        s->ready = false;
        fleet_send(s, &(struct wire_coordinator_message){.abort = &abort_message});
    }
    if (was_ready)
        g->fleet->config.ops->down(g->fleet->config.context, g->number, why);
    if (g->draining)
        group_leave(g, "its epoch is over");
}

void group_down(struct group *g, const char *format, ...)
{
    char why[WHY_BYTES];
    va_list args;
    va_start(args, format);
    /* clang 14's analyzer loses va_start where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    if (g->state != GROUP_FORMING)
        end_epoch(g, why);
}

void group_blame_peer(struct group *g, const char *why, int64_t now_ns)
{
    if (g->state == GROUP_FORMING || g->failure_ns)
        return;
    g->failure_ns = now_ns + BLAME_NS;
    snprintf(g->failure, sizeof g->failure, "%s", why);
}

/* ---- forming ---- */

static bool rank_is_free(const struct group *g, const struct rank_session *s)
{
    /* Heard of since the last epoch ended: a rank that hangs must not be granted again. */
    return s && !s->ended && s->loaded && !s->draining && s->heard_ns > g->down_ns;
}

/* How ranks exchange activations: `stage` within each stage, `link` between stages. */
struct comms {
    enum wire_comm_kind stage, link;
};

/* Whether rank i sees the same shared memory as rank k. */
static bool share_memory(const struct group *g, uint32_t i, uint32_t k)
{
    const char *a = g->ranks[i].current->shm_domain, *b = g->ranks[k].current->shm_domain;
    return *a && strcmp(a, b) == 0;
}

static struct comms choose_comms(const struct group *g)
{
    struct comms c = {WIRE_COMM_SHM, WIRE_COMM_SHM};
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        if (!share_memory(g, i, i - i % g->tp_size)) /* the first of its stage */
            c.stage = WIRE_COMM_TCP;
        if (!share_memory(g, i, i % g->tp_size)) /* the first of its column */
            c.link = WIRE_COMM_TCP;
    }
    if (g->tp_size == 1)
        c.stage = WIRE_COMM_SELF;
    if (g->n_stages == 1)
        c.link = WIRE_COMM_SELF;
    return c;
}

static bool needs(struct comms c, enum wire_comm_kind kind)
{
    return c.stage == kind || c.link == kind;
}

static const char *comm_name(enum wire_comm_kind kind)
{
    return kind == WIRE_COMM_SELF ? "one process" : kind == WIRE_COMM_SHM ? "shared memory" : "TCP";
}

/* What every rank can take. */
static void join_limits(struct group *g)
{
    struct plan_limits l = g->ranks[0].current->limits;
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        const struct plan_limits *x = &g->ranks[i].current->limits;
        l.n_slots = MIN(l.n_slots, x->n_slots);
        l.n_blocks = MIN(l.n_blocks, x->n_blocks);
        l.max_tokens = MIN(l.max_tokens, x->max_tokens);
        l.n_top_logprobs = MIN(l.n_top_logprobs, x->n_top_logprobs);
    }
    g->limits = l;
}

static int64_t to_ms(int64_t ns)
{
    return MAX(ns / NSEC_PER_MSEC, INT64_C(1));
}

/* The longest wait in a collective. Ranks of a stage are in step; a later stage also waits for what
 * the stages before it compute, which the step's own deadline bounds: this one only has to end. */
static int64_t comm_timeout(const struct group *g)
{
    int64_t step = g->fleet->config.config->deadlines.step;
    return g->n_stages == 1 ? step : MIN(PIPELINE_SLACK * step, 3600 * NSEC_PER_SEC);
}

static void send_grants(struct group *g, struct comms comms, const uint8_t *random)
{
    const struct config *c = g->fleet->config.config;
    char name[64];
    const char *peers[DISPATCH_MAX_RANKS];
    /* The second half of the random bytes keeps the name apart from other clusters' names. */
    snprintf(name, sizeof name, "glmd-%llu-%02x%02x%02x%02x%02x%02x%02x%02x",
             (unsigned long long)g->epoch, random[16], random[17], random[18], random[19],
             random[20], random[21], random[22], random[23]);
    for (uint32_t i = 0; i != g->n_ranks; i++)
        peers[i] = g->ranks[i].current->address;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        struct rank_session *s = g->ranks[i].current;
        const struct wire_grant grant = {
            .group = g->name,
            .epoch = g->epoch,
            .protocol = WIRE_PROTOCOL_MAX,
            .rank = i,
            .tp_size = g->tp_size,
            .comm = comms.stage,
            .link_comm = comms.link,
            .comm_name = needs(comms, WIRE_COMM_SHM) ? name : "",
            .token = {WIRE_TOKEN_BYTES, random},
            .peers = peers,
            .n_peers = needs(comms, WIRE_COMM_TCP) ? g->n_ranks : 0,
            .comm_timeout_ms = (uint32_t)to_ms(comm_timeout(g)),
            .lease_ms = (uint32_t)to_ms(c->deadlines.lease),
            .heartbeat_ms = (uint32_t)to_ms(c->deadlines.heartbeat),
            .pp_size = g->n_stages,
        };
        s->granted = g->ranks[i].epoch = g->epoch;
        s->ready = false;
        fleet_send(s, &(struct wire_coordinator_message){.grant = &grant});
        rank_session_fence_standby(&g->ranks[i]);
    }
}

static void try_form(struct group *g, int64_t now)
{
    if (g->fleet->stopping || g->draining || now < g->next_form_ns)
        return;
    uint64_t above = 0;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        if (!rank_is_free(g, g->ranks[i].current))
            return;
        above = MAX(above, g->ranks[i].current->last_epoch);
    }
    struct err e = ERR_INIT;
    uint8_t random[WIRE_TOKEN_BYTES + 8];
    uint64_t epoch = 0;
    int r = random_bytes(random, sizeof random);
    if (r < 0)
        err_set(&e, r, "no random numbers from the system");
    struct comms comms = choose_comms(g);
    for (uint32_t i = 0; r == 0 && needs(comms, WIRE_COMM_TCP) && i != g->n_ranks; i++) {
        if (!*g->ranks[i].current->address)
            r = err_set(&e, -EINVAL,
                        "rank %u gave no address for its peers: set worker.listen to one that the "
                        "other hosts reach",
                        i);
    }
    if (r == 0)
        r = epoch_next(g->fleet->config.epochs, above, &epoch, &e);
    if (r < 0) {
        log_event(LOG_LEVEL_ERROR, GROUP_LOG(g), "cannot form group %s: %s", g->name, e.message);
        snprintf(g->last_error, sizeof g->last_error, "%s", e.message);
        g->next_form_ns = now + BACKOFF_MAX_NS;
        return;
    }
    g->epoch = epoch;
    g->state = GROUP_JOINING;
    g->granted_ns = now;
    g->join_deadline_ns = now + MAX(3 * g->fleet->config.config->deadlines.step, MIN_JOIN_NS);
    join_limits(g);
    log_event(LOG_LEVEL_INFO, GROUP_LOG(g), "group %s: epoch %llu: %u x %u ranks, %s%s%s", g->name,
              (unsigned long long)epoch, g->tp_size, g->n_stages, comm_name(comms.stage),
              g->n_stages > 1 ? ", links: " : "", g->n_stages > 1 ? comm_name(comms.link) : "");
    send_grants(g, comms, random);
}

static bool answers_agree(struct group *g)
{
    const struct fleet_config *c = &g->fleet->config;
    uint64_t first = g->ranks[0].current->known_answer;
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        uint64_t found = g->ranks[i].current->known_answer;
        if (found != first) {
            group_down(g, "known answers differ: rank 0 has %016llx, rank %u has %016llx",
                       (unsigned long long)first, i, (unsigned long long)found);
            return false;
        }
    }
    if (c->has_known_answer && first != c->known_answer) {
        group_down(g, "the ranks' known answer is %016llx, the model's manifest says %016llx",
                   (unsigned long long)first, (unsigned long long)c->known_answer);
        return false;
    }
    return true;
}

/* How long the phases of this start took. */
static void measure_start(struct group *g)
{
    int64_t load_ns = 0;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        const struct rank_session *s = g->ranks[i].current;
        load_ns = MAX(load_ns, s->loaded_ns - s->opened_ns);
    }
    g->times = (struct fleet_ready_times){
        .load_ns = load_ns,
        .join_ns = g->ready_ns - g->granted_ns,
        .total_ns = g->ready_ns - (g->was_ready ? g->down_ns : g->known_ns),
    };
}

void group_joined(struct group *g, struct rank_session *s)
{
    log_event(LOG_LEVEL_DEBUG, RANK_LOG(s), "group %s: rank %u is ready", g->name, s->rank);
    if (g->state != GROUP_JOINING)
        return;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        const struct rank_session *x = g->ranks[i].current;
        if (!x || !x->ready || x->granted != g->epoch)
            return;
    }
    if (!answers_agree(g))
        return;
    g->state = GROUP_READY;
    g->ready_ns = clock_now_ns();
    measure_start(g);
    g->was_ready = true;
    g->failure_ns = 0;
    dispatch_reset(&g->dispatch);
    const struct fleet_config *c = &g->fleet->config;
    log_event(LOG_LEVEL_INFO, GROUP_LOG(g),
              "group %s: epoch %llu: ready: %u slots, %u KV blocks, %u tokens in a step", g->name,
              (unsigned long long)g->epoch, g->limits.n_slots, g->limits.n_blocks,
              g->limits.max_tokens);
    if (!c->ops->ready(c->context, g->number, &g->limits, g->n_stages, g->epoch))
        group_down(g, "the group's limits do not fit the model");
}

/* ---- steps ---- */

void fleet_send_step(struct fleet *f, uint32_t group, const struct plan *p, uint32_t n_tokens,
                     int64_t now_ns)
{
    struct group *g = f->groups[group];
    assert(g && g->state == GROUP_READY && p->epoch == g->epoch);
    if (!fleet_pack(f, &(struct wire_coordinator_message){.step = p})) {
        group_down(g, "the coordinator is out of memory");
        return;
    }
    struct rpc_call *calls[DISPATCH_MAX_RANKS];
    size_t n = 0;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        struct rank_session *s = g->ranks[i].current;
        if (s && !s->ended)
            calls[n++] = s->call;
    }
    rpc_send_all(calls, n, f->packed.data, f->packed.size);
    dispatch_sent(&g->dispatch, p->step, n_tokens, f->config.config->deadlines.step, now_ns);
}

void group_answer(struct group *g, struct rank_session *s, struct wire_worker_message *m,
                  int64_t now_ns)
{
    if (g->state != GROUP_READY || m->step_done->epoch != g->epoch || s->granted != g->epoch) {
        g->fleet->n_fenced++;
        log_event(LOG_LEVEL_DEBUG, RANK_LOG(s),
                  "group %s: rank %u answered a step of epoch %llu, which is over", g->name,
                  s->rank, (unsigned long long)m->step_done->epoch);
        wire_free_worker_message(m);
        return;
    }
    double compute_ns = (double)m->step_done->compute_ns;
    s->compute_ns_avg += (compute_ns - s->compute_ns_avg) * (s->compute_ns_avg > 0 ? 0.05 : 1);
    struct err e = ERR_INIT;
    int r = dispatch_answer(&g->dispatch, s->rank, m, &e);
    if (r == 1) {
        const struct fleet_config *c = &g->fleet->config;
        struct wire_worker_message *done =
            dispatch_take(&g->dispatch, c->config->deadlines.step, now_ns);
        if (!c->ops->result(c->context, g->number, done->step_done, &e))
            r = e.code;
        wire_free_worker_message(done);
    }
    if (r < 0)
        group_down(g, "%s", e.message);
}

/* ---- time ---- */

static void check_step_deadline(struct group *g, int64_t now)
{
    const struct dispatch_step *s = dispatch_oldest(&g->dispatch);
    if (!s || now < s->deadline_ns)
        return;
    char ranks[128] = "";
    int silent = -1;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        if (s->answered[i])
            continue;
        size_t n = strlen(ranks);
        snprintf(ranks + n, sizeof ranks - n, "%s%u", n ? ", " : "", i);
        const struct rank_session *x = g->ranks[i].current;
        if (x && now - x->heard_ns > 4 * g->fleet->config.config->deadlines.heartbeat)
            silent = (int)i;
    }
    char hint[64] = "";
    if (silent >= 0)
        snprintf(hint, sizeof hint, "; rank %d is silent", silent);
    group_down(g, "step %llu took longer than %lld ms (deadlines.step); no answer from rank %s%s",
               (unsigned long long)s->step, (long long)((now - s->sent_ns) / NSEC_PER_MSEC), ranks,
               hint);
}

void group_leave(struct group *g, const char *why)
{
    if (g->leaving)
        return;
    g->draining = g->leaving = true;
    group_down(g, "the group was drained");
    log_event(LOG_LEVEL_INFO, GROUP_LOG(g), "group %s: its ranks are told to leave: %s", g->name,
              why);
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        if (g->ranks[i].current)
            rank_session_tell_drain(g->ranks[i].current, why);
        if (g->ranks[i].standby)
            rank_session_tell_drain(g->ranks[i].standby, why);
    }
}

void group_tick(struct group *g, int64_t now_ns)
{
    if (g->failure_ns && now_ns >= g->failure_ns)
        group_down(g, "%s", g->failure);
    if (g->state == GROUP_JOINING && now_ns >= g->join_deadline_ns)
        group_down(g, "the ranks did not join in time");
    if (g->state == GROUP_READY)
        check_step_deadline(g, now_ns);
    if (g->draining && !g->leaving && now_ns >= g->drain_end_ns)
        group_leave(g, "the time to drain is over");
    if (g->state == GROUP_FORMING)
        try_form(g, now_ns);
}
