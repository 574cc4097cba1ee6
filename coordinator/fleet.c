/* fleet.c: epochs: forming the group, its steps, its end. See fleet.h. */
#include "coordinator/fleet.h"

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
#define BLAME_NS         (400 * NSEC_PER_MSEC)
#define HELLO_TIMEOUT_NS (10 * NSEC_PER_SEC)
#define MIN_JOIN_NS      (60 * NSEC_PER_SEC)

int fleet_new(const struct fleet_config *config, struct fleet **ret)
{
    struct fleet *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->config = *config;
    f->n_ranks = (uint32_t)config->config->group.tensor_parallel;
    f->backoff_ns = BACKOFF_MIN_NS;
    dispatch_reset(&f->dispatch, f->n_ranks);
    *ret = f;
    return 0;
}

void fleet_free(struct fleet *f)
{
    if (!f)
        return;
    assert(f->n_sessions == 0);
    dispatch_reset(&f->dispatch, f->n_ranks);
    buf_deinit(&f->packed);
    free(f);
}

/* Packs into f->packed; aborts only when memory is out or the message is one we must not make. */
static bool pack(struct fleet *f, const struct wire_coordinator_message *m)
{
    buf_clear(&f->packed);
    int r = wire_pack_coordinator_message(m, &f->packed);
    if (r < 0)
        log_error("cannot pack a message to the ranks: %s", err_name(r));
    return r == 0;
}

void fleet_send(struct rank_session *s, const struct wire_coordinator_message *m)
{
    if (!s->ended && s->call && pack(s->fleet, m))
        rpc_send(s->call, s->fleet->packed.data, s->fleet->packed.size);
}

void fleet_rank_error(struct fleet *f, uint32_t rank, const char *what)
{
    char *text = f->ranks[rank].last_error;
    snprintf(text, sizeof f->ranks[rank].last_error, "%s", what);
    utf8_repair(text, strlen(text)); /* it may have been cut inside a character */
}

void fleet_note(struct fleet *f, uint32_t rank, const char *what)
{
    fleet_rank_error(f, rank, what);
}

bool fleet_is_ready(const struct fleet *f)
{
    return f->state == FLEET_READY;
}

uint32_t fleet_n_sessions(const struct fleet *f)
{
    return f->n_sessions;
}

/* ---- the end of an epoch ---- */

static void end_epoch(struct fleet *f, const char *why)
{
    bool was_ready = f->state == FLEET_READY;
    uint64_t epoch = f->epoch;
    log_warn("epoch %llu is over: %s", (unsigned long long)epoch, why);
    snprintf(f->last_error, sizeof f->last_error, "%s", why);
    f->state = FLEET_FORMING;
    f->epoch = 0;
    f->failure_ns = 0;
    f->down_ns = clock_now_ns();
    f->next_form_ns = f->down_ns + f->backoff_ns;
    f->backoff_ns = MIN(2 * f->backoff_ns, BACKOFF_MAX_NS);
    dispatch_reset(&f->dispatch, f->n_ranks);
    const struct wire_abort abort_message = {.epoch = epoch, .reason = why};
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        struct rank_session *s = f->ranks[i].current;
        if (!s || s->granted != epoch)
            continue;
        s->granted = 0;
        s->ready = false;
        fleet_send(s, &(struct wire_coordinator_message){.abort = &abort_message});
    }
    if (was_ready)
        f->config.ops->down(f->config.context, why);
}

void fleet_down(struct fleet *f, const char *format, ...)
{
    char why[WHY_BYTES];
    va_list args;
    va_start(args, format);
    /* clang 14's analyzer loses va_start where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    if (f->state != FLEET_FORMING)
        end_epoch(f, why);
}

void fleet_blame_peer(struct fleet *f, const char *why, int64_t now_ns)
{
    if (f->state == FLEET_FORMING || f->failure_ns)
        return;
    f->failure_ns = now_ns + BLAME_NS;
    snprintf(f->failure, sizeof f->failure, "%s", why);
}

/* ---- forming ---- */

static bool rank_is_free(const struct fleet *f, const struct rank_session *s)
{
    /* Heard of since the last epoch ended: a rank that hangs must not be granted again. */
    return s && !s->ended && s->loaded && !s->draining && s->heard_ns > f->down_ns;
}

static enum wire_comm_kind choose_comm(const struct fleet *f)
{
    if (f->n_ranks == 1)
        return WIRE_COMM_SELF;
    const char *domain = f->ranks[0].current->shm_domain;
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        if (!*domain || strcmp(f->ranks[i].current->shm_domain, domain) != 0)
            return WIRE_COMM_TCP;
    }
    return WIRE_COMM_SHM;
}

/* What every rank can take. */
static void join_limits(struct fleet *f)
{
    struct plan_limits l = f->ranks[0].current->limits;
    for (uint32_t i = 1; i != f->n_ranks; i++) {
        const struct plan_limits *x = &f->ranks[i].current->limits;
        l.n_slots = MIN(l.n_slots, x->n_slots);
        l.n_blocks = MIN(l.n_blocks, x->n_blocks);
        l.max_tokens = MIN(l.max_tokens, x->max_tokens);
        l.n_top_logprobs = MIN(l.n_top_logprobs, x->n_top_logprobs);
    }
    f->limits = l;
}

static int64_t to_ms(int64_t ns)
{
    return MAX(ns / NSEC_PER_MSEC, INT64_C(1));
}

static void send_grants(struct fleet *f, enum wire_comm_kind comm, const uint8_t *random)
{
    const struct config *c = f->config.config;
    char comm_name[64];
    const char *peers[DISPATCH_MAX_RANKS];
    /* The second half of the random bytes keeps the name apart from other clusters' names. */
    snprintf(comm_name, sizeof comm_name, "glmd-%llu-%02x%02x%02x%02x%02x%02x%02x%02x",
             (unsigned long long)f->epoch, random[16], random[17], random[18], random[19],
             random[20], random[21], random[22], random[23]);
    for (uint32_t i = 0; i != f->n_ranks; i++)
        peers[i] = f->ranks[i].current->address;
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        struct rank_session *s = f->ranks[i].current;
        const struct wire_grant g = {
            .group = "0",
            .epoch = f->epoch,
            .protocol = WIRE_PROTOCOL_MAX,
            .rank = i,
            .tp_size = f->n_ranks,
            .comm = comm,
            .comm_name = comm == WIRE_COMM_SHM ? comm_name : "",
            .token = {WIRE_TOKEN_BYTES, random},
            .peers = peers,
            .n_peers = comm == WIRE_COMM_TCP ? f->n_ranks : 0,
            .comm_timeout_ms = (uint32_t)to_ms(c->deadlines.step),
            .lease_ms = (uint32_t)to_ms(c->deadlines.lease),
            .heartbeat_ms = (uint32_t)to_ms(c->deadlines.heartbeat),
        };
        s->granted = f->epoch;
        s->ready = false;
        fleet_send(s, &(struct wire_coordinator_message){.grant = &g});
    }
}

static void try_form(struct fleet *f, int64_t now)
{
    if (f->stopping || now < f->next_form_ns)
        return;
    uint64_t above = 0;
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        if (!rank_is_free(f, f->ranks[i].current))
            return;
        above = MAX(above, f->ranks[i].current->last_epoch);
    }
    struct err e = ERR_INIT;
    uint8_t random[WIRE_TOKEN_BYTES + 8];
    uint64_t epoch = 0;
    int r = random_bytes(random, sizeof random);
    if (r < 0)
        err_set(&e, r, "no random numbers from the system");
    enum wire_comm_kind comm = choose_comm(f);
    for (uint32_t i = 0; r == 0 && comm == WIRE_COMM_TCP && i != f->n_ranks; i++) {
        if (!*f->ranks[i].current->address)
            r = err_set(&e, -EINVAL,
                        "rank %u gave no address for its peers: set worker.listen to one that the "
                        "other hosts reach",
                        i);
    }
    if (r == 0)
        r = epoch_next(f->config.epochs, above, &epoch, &e);
    if (r < 0) {
        log_error("cannot form the group: %s", e.message);
        snprintf(f->last_error, sizeof f->last_error, "%s", e.message);
        f->next_form_ns = now + BACKOFF_MAX_NS;
        return;
    }
    f->epoch = epoch;
    f->state = FLEET_JOINING;
    f->join_deadline_ns = now + MAX(3 * f->config.config->deadlines.step, MIN_JOIN_NS);
    join_limits(f);
    log_info("epoch %llu: %u ranks, %s", (unsigned long long)epoch, f->n_ranks,
             comm == WIRE_COMM_SELF  ? "one process"
             : comm == WIRE_COMM_SHM ? "shared memory"
                                     : "TCP");
    send_grants(f, comm, random);
}

static bool answers_agree(struct fleet *f)
{
    uint64_t first = f->ranks[0].current->known_answer;
    for (uint32_t i = 1; i != f->n_ranks; i++) {
        if (f->ranks[i].current->known_answer != first) {
            fleet_down(f, "known answers differ: rank 0 has %016llx, rank %u has %016llx",
                       (unsigned long long)first, i,
                       (unsigned long long)f->ranks[i].current->known_answer);
            return false;
        }
    }
    if (f->config.has_known_answer && first != f->config.known_answer) {
        fleet_down(f, "the ranks' known answer is %016llx, the model's manifest says %016llx",
                   (unsigned long long)first, (unsigned long long)f->config.known_answer);
        return false;
    }
    return true;
}

void fleet_joined(struct fleet *f, struct rank_session *s)
{
    log_debug("rank %u is ready", s->rank);
    if (f->state != FLEET_JOINING)
        return;
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        const struct rank_session *x = f->ranks[i].current;
        if (!x || !x->ready || x->granted != f->epoch)
            return;
    }
    if (!answers_agree(f))
        return;
    f->state = FLEET_READY;
    f->was_ready = true;
    f->failure_ns = 0;
    dispatch_reset(&f->dispatch, f->n_ranks);
    log_info("epoch %llu: the group is ready: %u slots, %u KV blocks, %u tokens in a step",
             (unsigned long long)f->epoch, f->limits.n_slots, f->limits.n_blocks,
             f->limits.max_tokens);
    if (!f->config.ops->ready(f->config.context, &f->limits, f->epoch))
        fleet_down(f, "the group's limits do not fit the model");
}

/* ---- steps ---- */

void fleet_send_step(struct fleet *f, const struct plan *p, uint32_t n_tokens, int64_t now_ns)
{
    assert(f->state == FLEET_READY && p->epoch == f->epoch);
    if (!pack(f, &(struct wire_coordinator_message){.step = p})) {
        fleet_down(f, "the coordinator is out of memory");
        return;
    }
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        struct rank_session *s = f->ranks[i].current;
        if (s && !s->ended)
            rpc_send(s->call, f->packed.data, f->packed.size);
    }
    dispatch_sent(&f->dispatch, p->step, n_tokens, f->config.config->deadlines.step, now_ns);
}

void fleet_answer(struct fleet *f, struct rank_session *s, struct wire_worker_message *m,
                  int64_t now_ns)
{
    if (f->state != FLEET_READY || m->step_done->epoch != f->epoch || s->granted != f->epoch) {
        log_debug("rank %u answered a step of epoch %llu, which is over", s->rank,
                  (unsigned long long)m->step_done->epoch);
        wire_free_worker_message(m);
        return;
    }
    double compute_ns = (double)m->step_done->compute_ns;
    s->compute_ns_avg += (compute_ns - s->compute_ns_avg) * (s->compute_ns_avg > 0 ? 0.05 : 1);
    struct err e = ERR_INIT;
    int r = dispatch_answer(&f->dispatch, s->rank, m, &e);
    if (r == 1) {
        struct wire_worker_message *done = dispatch_take(&f->dispatch, now_ns);
        f->backoff_ns = BACKOFF_MIN_NS; /* it works */
        if (!f->config.ops->result(f->config.context, done->step_done, &e))
            r = e.code;
        wire_free_worker_message(done);
    }
    if (r < 0)
        fleet_down(f, "%s", e.message);
}

/* ---- time ---- */

static void check_step_deadline(struct fleet *f, int64_t now)
{
    const struct dispatch_step *s = dispatch_oldest(&f->dispatch);
    if (!s || now < s->deadline_ns)
        return;
    char ranks[128] = "";
    int silent = -1;
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        if (s->answered[i])
            continue;
        size_t n = strlen(ranks);
        snprintf(ranks + n, sizeof ranks - n, "%s%u", n ? ", " : "", i);
        const struct rank_session *x = f->ranks[i].current;
        if (x && now - x->heard_ns > 4 * f->config.config->deadlines.heartbeat)
            silent = (int)i;
    }
    char hint[64] = "";
    if (silent >= 0)
        snprintf(hint, sizeof hint, "; rank %d is silent", silent);
    fleet_down(f, "step %llu took longer than %lld ms (deadlines.step); no answer from rank %s%s",
               (unsigned long long)s->step, (long long)((now - s->sent_ns) / NSEC_PER_MSEC), ranks,
               hint);
}

static void check_session(struct fleet *f, struct rank_session *s, int64_t now)
{
    const struct config *c = f->config.config;
    int64_t silent = now - s->heard_ns;
    char why[WHY_BYTES] = "";
    if (!s->hello && now - s->opened_ns > HELLO_TIMEOUT_NS)
        snprintf(why, sizeof why, "no Hello came");
    else if (s->hello && silent > MAX(c->deadlines.lease, 2 * NSEC_PER_SEC))
        snprintf(why, sizeof why, "nothing was heard of it for %lld ms (deadlines.lease)",
                 (long long)(silent / NSEC_PER_MSEC));
    else if (s->hello && !s->loaded && now - s->opened_ns > c->deadlines.hello)
        snprintf(why, sizeof why, "it did not load its weights in time (deadlines.hello)");
    if (!*why)
        return;
    log_warn("rank %u (%s, pid %u): %s", s->rank, s->host, s->pid, why);
    if (s->hello) {
        fleet_rank_error(f, s->rank, why);
        if (f->ranks[s->rank].current == s && s->granted && s->granted == f->epoch)
            fleet_down(f, "rank %u: %s", s->rank, why);
    }
    session_close(s, RPC_DEADLINE_EXCEEDED, why);
    rpc_cancel(s->call); /* a peer that hangs does not take the status */
}

static void send_lease(struct fleet *f, struct rank_session *s, int64_t now)
{
    const struct config *c = f->config.config;
    if (!s->hello || s->ended || now - s->leased_ns < c->deadlines.heartbeat)
        return;
    s->leased_ns = now;
    const struct wire_lease lease = {.epoch = s->granted,
                                     .lease_ms = (uint32_t)to_ms(c->deadlines.lease)};
    fleet_send(s, &(struct wire_coordinator_message){.lease = &lease});
}

void fleet_tick(struct fleet *f, int64_t now_ns)
{
    for (struct rank_session *s = f->sessions, *next; s; s = next) {
        next = s->next;
        if (!s->ended)
            check_session(f, s, now_ns);
        send_lease(f, s, now_ns);
    }
    if (f->failure_ns && now_ns >= f->failure_ns)
        fleet_down(f, "%s", f->failure);
    if (f->state == FLEET_JOINING && now_ns >= f->join_deadline_ns)
        fleet_down(f, "the ranks did not join in time");
    if (f->state == FLEET_READY)
        check_step_deadline(f, now_ns);
    if (f->state == FLEET_FORMING)
        try_form(f, now_ns);
}

void fleet_stop(struct fleet *f, const char *why)
{
    f->stopping = true;
    fleet_down(f, "%s", why);
    for (struct rank_session *s = f->sessions; s; s = s->next)
        session_close(s, RPC_UNAVAILABLE, why);
}

/* ---- status ---- */

static enum wire_rank_state rank_state(const struct fleet *f, const struct rank *k)
{
    const struct rank_session *s = k->current;
    if (!s)
        return *k->last_error ? WIRE_RANK_FAILED : WIRE_RANK_ABSENT;
    if (!s->loaded)
        return WIRE_RANK_LOADING;
    if (s->granted == 0 || s->granted != f->epoch)
        return WIRE_RANK_LOADED;
    return s->ready ? WIRE_RANK_READY : WIRE_RANK_JOINING;
}

void fleet_status(const struct fleet *f, int64_t now_ns, struct wire_group_status *g,
                  struct wire_rank_status *ranks)
{
    const struct dispatch_step *oldest = dispatch_oldest(&f->dispatch);
    for (uint32_t i = 0; i != f->n_ranks; i++) {
        const struct rank *k = &f->ranks[i];
        ranks[i] = (struct wire_rank_status){
            .rank = i,
            .state = rank_state(f, k),
            .last_error = k->last_error,
            .restarts = k->n_sessions ? k->n_sessions - 1 : 0,
        };
        const struct rank_session *s = k->current;
        if (!s)
            continue;
        ranks[i].host = s->host;
        ranks[i].pid = s->pid;
        ranks[i].device = s->device;
        ranks[i].description = s->description;
        ranks[i].weights_bytes = s->memory.weights;
        ranks[i].kv_bytes = s->memory.kv;
        ranks[i].scratch_bytes = s->memory.scratch;
        ranks[i].loaded_bytes = s->loaded ? s->beat.total_bytes : s->beat.loaded_bytes;
        ranks[i].total_bytes = s->beat.total_bytes;
        ranks[i].step = s->beat.step;
        ranks[i].step_age_ms =
            oldest && !oldest->answered[i] ? (uint64_t)to_ms(now_ns - oldest->sent_ns) : 0;
        ranks[i].compute_ms_avg = s->compute_ns_avg / (double)NSEC_PER_MSEC;
        ranks[i].fenced_messages = s->beat.fenced_messages;
    }
    g->id = "0";
    g->epoch = f->epoch;
    g->state = f->state == FLEET_READY ? WIRE_GROUP_READY
               : f->was_ready          ? WIRE_GROUP_DEGRADED
                                       : WIRE_GROUP_FORMING;
    g->tp_size = f->n_ranks;
    g->ranks = ranks;
    g->n_ranks = f->n_ranks;
    g->last_error = f->last_error;
}
