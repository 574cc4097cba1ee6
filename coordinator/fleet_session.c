/* fleet_session.c: the stream of one rank: who it is, what it says. See fleet.h. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"
#include "base/util.h"
#include "coordinator/fleet_internal.h"

#define HELLO_TIMEOUT_NS (10 * NSEC_PER_SEC)

/* Ranks may remember epochs that a lost state directory does not, but not any number. */
static const uint64_t MAX_LOST_EPOCH = UINT64_C(1) << 48;

static void copy_text(char *dst, size_t size, const char *src)
{
    snprintf(dst, size, "%s", src);
    utf8_repair(dst, strlen(dst)); /* it may have been cut inside a character */
}

static void rank_changed(const struct rank_session *s)
{
    const struct fleet_config *c = &s->fleet->config;
    if (s->group)
        c->ops->rank(c->context, s->group->number, s->rank);
}

/* ---- the end of a stream ---- */

void rank_session_close(struct rank_session *s, enum rpc_status status, const char *why)
{
    if (s->ended)
        return;
    s->ended = true;
    rank_changed(s);
    if (s->call) /* NULL: it is the end of the call that led here */
        rpc_finish(s->call, status, why);
}

static void refuse(struct rank_session *s, enum wire_refuse_code code, const char *why)
{
    log_event(LOG_LEVEL_WARN, RANK_LOG(s), "refused rank %u of %s, pid %u: %s", s->rank, s->host,
              s->pid, why);
    const struct wire_refuse r = {.code = code, .reason = why};
    fleet_send(s, &(struct wire_coordinator_message){.refuse = &r});
    rank_session_close(s, RPC_FAILED_PRECONDITION, why);
}

static void unlink_session(struct rank_session *s)
{
    struct fleet *f = s->fleet;
    if (s->prev)
        s->prev->next = s->next;
    else
        f->sessions = s->next;
    if (s->next)
        s->next->prev = s->prev;
    f->n_sessions--;
}

/* The rank is free: the process that waited for it, if any, has it now. */
static void promote(struct group *g, struct rank *k)
{
    k->current = k->standby;
    k->standby = NULL;
    k->epoch = 0;
    if (k->current)
        log_event(LOG_LEVEL_INFO, GROUP_LOG(g), "group %s: rank %u: pid %u takes over", g->name,
                  k->current->rank, k->current->pid);
}

/* The stream that held its rank is over. */
static void leave_rank(struct rank_session *s, enum rpc_status status, const char *message)
{
    struct group *g = s->group;
    bool in_epoch = group_in_epoch(s);
    g->ranks[s->rank].end = g->leaving ? FLEET_RESTART_DRAINED : s->end;
    promote(g, &g->ranks[s->rank]);
    rank_changed(s);
    if (in_epoch)
        group_down(g, "rank %u was lost", s->rank);
    if (s->ended || s->fleet->stopping)
        return;
    log_event(LOG_LEVEL_INFO, RANK_LOG(s), "group %s: rank %u (%s, pid %u) left: %s", g->name,
              s->rank, s->host, s->pid, rpc_status_name(status));
    if (g->leaving)
        return; /* as it was asked to */
    char why[WHY_BYTES];
    snprintf(why, sizeof why, "the stream ended: %s: %.200s", rpc_status_name(status),
             message ? message : "");
    group_rank_error(g, s->rank, why);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct rank_session *s = rpc_user(c);
    struct group *g = s->group;
    s->call = NULL;
    if (g) {
        struct rank *k = &g->ranks[s->rank];
        if (k->standby == s)
            k->standby = NULL;
        if (k->current == s)
            leave_rank(s, status, message);
        if (--g->n_sessions == 0)
            g->empty_ns = clock_now_ns();
    }
    unlink_session(s);
    free(s);
}

/* ---- Hello ---- */

/* What does not depend on the group. */
static int check_hello(const struct rank_session *s, const struct wire_hello *h,
                       enum wire_refuse_code *ret_code, struct err *e)
{
    const struct fleet *f = s->fleet;
    const struct config *c = f->config.config;
    const char *activations = config_precision(c);
    *ret_code = WIRE_REFUSE_PROTOCOL;
    if (h->protocol_min > WIRE_PROTOCOL_MAX || h->protocol_max < WIRE_PROTOCOL_MIN)
        return err_set(e, -EINVAL,
                       "protocol versions: the coordinator speaks %d to %d, the worker %u to %u: "
                       "install the same version of glmd",
                       WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_MAX, h->protocol_min, h->protocol_max);
    /* One rank must not be able to use up the epochs of all. */
    if (h->instance_id.size != WIRE_INSTANCE_BYTES ||
        h->last_epoch > MAX(f->config.epochs->last, MAX_LOST_EPOCH))
        return err_set(e, -EINVAL, "instance_id or last_epoch is not one of a glmd-worker");
    *ret_code = WIRE_REFUSE_CLUSTER;
    if (strcmp(h->cluster, c->cluster.name) != 0)
        return err_set(e, -EINVAL, "cluster.name: expected \"%s\", found \"%.64s\"",
                       c->cluster.name, h->cluster);
    *ret_code = WIRE_REFUSE_RANK;
    if (!config_group_name_ok(h->group))
        return err_set(e, -EINVAL,
                       "group.name: expected 1 to %d letters, digits, '.', '_' and '-', found "
                       "\"%.64s\"",
                       CONFIG_MAX_GROUP_NAME, h->group);
    if (!h->tp_size || !h->pp_size || h->tp_size > CONFIG_MAX_GROUP_RANKS ||
        h->pp_size > CONFIG_MAX_STAGES || h->tp_size * h->pp_size > CONFIG_MAX_GROUP_RANKS ||
        h->rank >= h->tp_size * h->pp_size)
        return err_set(e, -EINVAL,
                       "group.tensor_parallel x group.pipeline_parallel: expected a rank below the "
                       "product, at most %d ranks and %d stages; found rank %u of %u x %u",
                       CONFIG_MAX_GROUP_RANKS, CONFIG_MAX_STAGES, h->rank, h->tp_size, h->pp_size);
    *ret_code = WIRE_REFUSE_MODEL;
    if (strcmp(h->model_digest, f->config.model_digest) != 0)
        return err_set(e, -EINVAL,
                       "model digest: expected %s (%s), found %.40s: all ranks and the coordinator "
                       "need the same model directory",
                       f->config.model_digest, f->config.scheme, h->model_digest);
    if (strcmp(h->activations, activations) != 0)
        return err_set(
            e, -EINVAL,
            "worker.activations and worker.kv_cache: expected %s as in the coordinator's "
            "configuration, found %.16s",
            activations, h->activations);
    return 0;
}

/* Whether the rank's layers fit the model, its stage and the stages beside it. */
static int check_layers(const struct group *g, const struct wire_hello *h, struct err *e)
{
    uint32_t i = h->rank / g->tp_size, n_layers = g->fleet->config.arch->n_layers;
    const struct stage *own = &g->stages[i];
    uint32_t begin = h->layer_begin, end = h->layer_end;
    bool known = own->layer_end != 0;
    if (known) {
        if (begin != own->layer_begin || end != own->layer_end)
            return err_set(e, -EINVAL,
                           "group.stage_layers: expected layers %u to %u as the other ranks of "
                           "stage %u have, found %u to %u",
                           own->layer_begin, own->layer_end, i, begin, end);
        return 0;
    }
    if (begin >= end || end > n_layers || (i == 0) != (begin == 0) ||
        (i == g->n_stages - 1) != (end == n_layers))
        return err_set(e, -EINVAL,
                       "group.stage_layers: expected stage %u of %u to have its part of the "
                       "model's %u layers, found %u to %u",
                       i, g->n_stages, n_layers, begin, end);
    const struct stage *before = i ? own - 1 : NULL;
    const struct stage *after = i + 1 < g->n_stages ? own + 1 : NULL;
    if (before && before->layer_end && before->layer_end != begin)
        return err_set(e, -EINVAL,
                       "group.stage_layers: expected stage %u to begin at layer %u, where the "
                       "stage before it ends, found %u",
                       i, before->layer_end, begin);
    if (after && after->layer_end && after->layer_begin != end)
        return err_set(e, -EINVAL,
                       "group.stage_layers: expected stage %u to end at layer %u, where the next "
                       "stage begins, found %u",
                       i, after->layer_begin, end);
    return 0;
}

/* Whether another process was granted the rank after this one: whatever it still has of that time
 * is worth nothing, and a process that begins anew is. */
static bool is_fenced(const struct rank *k, const uint8_t *instance, uint64_t last_epoch)
{
    return k->current && last_epoch && last_epoch < k->epoch &&
           memcmp(k->current->instance, instance, sizeof k->current->instance) != 0;
}

static void fence(struct rank_session *s, const struct rank *k)
{
    char why[WHY_BYTES];
    snprintf(why, sizeof why,
             "fenced: pid %u on %.64s has this rank in epoch %llu; this process had it in %llu",
             k->current->pid, k->current->host, (unsigned long long)k->epoch,
             (unsigned long long)s->last_epoch);
    refuse(s, WIRE_REFUSE_FENCED, why);
}

void rank_session_fence_standby(struct rank *k)
{
    struct rank_session *s = k->standby;
    if (s && !s->ended && is_fenced(k, s->instance, s->last_epoch))
        fence(s, k);
}

/* Gives the rank to the session, or lets it wait behind the process that has it. */
static void claim_rank(struct rank_session *s)
{
    struct group *g = s->group;
    struct rank *k = &g->ranks[s->rank];
    if (k->current && memcmp(k->current->instance, s->instance, sizeof s->instance) == 0) {
        /* The same process over a new stream: the old stream is dead. */
        struct rank_session *old = k->current;
        k->current = s;
        k->end = FLEET_RESTART_RECONNECTED;
        if (group_in_epoch(old))
            group_down(g, "rank %u lost its connection", s->rank);
        rank_session_close(old, RPC_ABORTED, "the worker has opened another stream");
    } else if (k->current && k->standby) {
        /* Not for good: both may be dead, and only their leases tell. It dials again. */
        log_event(LOG_LEVEL_WARN, RANK_LOG(s),
                  "group %s: rank %u: pid %u on %s is sent away: two other processes hold the rank "
                  "or wait for it",
                  g->name, s->rank, s->pid, s->host);
        rank_session_close(s, RPC_UNAVAILABLE, "two other processes hold this rank or wait for it");
        return;
    } else if (k->current) {
        log_event(LOG_LEVEL_WARN, RANK_LOG(s),
                  "group %s: rank %u: pid %u on %s waits: pid %u on %s has the rank", g->name,
                  s->rank, s->pid, s->host, k->current->pid, k->current->host);
        k->standby = s;
        k->end = FLEET_RESTART_REPLACED;
    } else {
        k->current = s;
        k->epoch = 0;
    }
    if (k->n_sessions++)
        g->fleet->restarts[k->end]++;
    memcpy(k->instance, s->instance, sizeof k->instance);
    rank_changed(s);
}

/* A group that leaves takes nobody in; a rank of it that had only lost its stream is told again.
 * False: the session was ended. */
static bool enter_draining(struct rank_session *s)
{
    struct group *g = s->group;
    if (g->n_sessions == 1) { /* this one: the others have left, and a new life begins */
        g->draining = g->leaving = false;
        return true;
    }
    if (memcmp(g->ranks[s->rank].instance, s->instance, sizeof s->instance) == 0) {
        if (g->leaving)
            rank_session_tell_drain(s, "the group drains");
        return true;
    }
    rank_session_close(s, RPC_UNAVAILABLE, "the group drains: try again when its ranks have left");
    return false;
}

static void join(struct rank_session *s, struct group *g, const struct wire_hello *h)
{
    struct stage *stage = &g->stages[h->rank / g->tp_size];
    stage->layer_begin = h->layer_begin;
    stage->layer_end = h->layer_end;
    s->group = g;
    g->n_sessions++;
    if (g->draining && !enter_draining(s))
        return;
    log_event(LOG_LEVEL_INFO, RANK_LOG(s),
              "group %s: rank %u of %u x %u: hello from %s, pid %u, %s, layers %u to %u", g->name,
              s->rank, g->tp_size, g->n_stages, s->host, s->pid, s->device, h->layer_begin,
              h->layer_end);
    claim_rank(s);
}

static void on_hello(struct rank_session *s, const struct wire_hello *h)
{
    copy_text(s->host, sizeof s->host, h->hostname);
    copy_text(s->device, sizeof s->device, h->device);
    copy_text(s->shm_domain, sizeof s->shm_domain, h->shm_domain);
    if (h->n_listen_addresses)
        copy_text(s->address, sizeof s->address, h->listen_addresses[0]);
    s->rank = h->rank;
    s->pid = h->pid;
    s->last_epoch = h->last_epoch;
    struct err e = ERR_INIT;
    struct group *g = NULL;
    enum wire_refuse_code code;
    int r = check_hello(s, h, &code, &e);
    if (r == 0) {
        memcpy(s->instance, h->instance_id.data, sizeof s->instance);
        code = WIRE_REFUSE_RANK;
        r = fleet_join_group(s->fleet, h, &g, &e);
    }
    if (r == 0)
        r = check_layers(g, h, &e);
    if (r == 0 && is_fenced(&g->ranks[s->rank], s->instance, s->last_epoch)) {
        fence(s, &g->ranks[s->rank]);
        return;
    }
    if (r == 0) {
        join(s, g, h);
        return;
    }
    struct group *named = fleet_by_name(s->fleet, h->group);
    if (named && h->rank < named->n_ranks)
        group_rank_error(named, h->rank, e.message);
    if (r == -EINVAL) {
        refuse(s, code, e.message);
    } else { /* there may be room later */
        log_event(LOG_LEVEL_WARN, RANK_LOG(s), "rank %u of %s, pid %u: %s", s->rank, s->host,
                  s->pid, e.message);
        rank_session_close(s, RPC_RESOURCE_EXHAUSTED, e.message);
    }
}

/* ---- Loaded, Failed, Heartbeat ---- */

static void on_loaded(struct rank_session *s, const struct wire_loaded *l)
{
    const struct arch *a = s->fleet->config.arch;
    if (l->block_tokens != PLAN_KV_BLOCK_TOKENS || l->limits.vocab != a->vocab ||
        l->limits.max_seq != a->max_seq || l->limits.n_slots == 0 ||
        l->limits.n_slots > PLAN_MAX_ITEMS || l->limits.n_blocks == 0 ||
        l->limits.n_layers != a->n_layers) {
        char why[WHY_BYTES];
        snprintf(
            why, sizeof why,
            "limits: expected blocks of %d tokens, vocabulary %u, sequences of %u, %u layers, 1 "
            "to %d slots; found %u, %u, %u, %u, %u",
            PLAN_KV_BLOCK_TOKENS, a->vocab, a->max_seq, a->n_layers, PLAN_MAX_ITEMS,
            l->block_tokens, l->limits.vocab, l->limits.max_seq, l->limits.n_layers,
            l->limits.n_slots);
        group_rank_error(s->group, s->rank, why);
        refuse(s, WIRE_REFUSE_PROTOCOL, why);
        return;
    }
    s->limits = l->limits;
    s->memory = l->memory;
    copy_text(s->description, sizeof s->description, l->description);
    s->loaded = true;
    s->loaded_ns = clock_now_ns();
    rank_changed(s);
    log_event(
        LOG_LEVEL_INFO, RANK_LOG(s),
        "group %s: rank %u: loaded, %llu MiB weights, %llu MiB KV cache (%u blocks), %llu MiB "
        "scratch",
        s->group->name, s->rank, (unsigned long long)(l->memory.weights >> 20),
        (unsigned long long)(l->memory.kv >> 20), l->limits.n_blocks,
        (unsigned long long)(l->memory.scratch >> 20));
}

static void on_failed(struct rank_session *s, const struct wire_failed *x, int64_t now)
{
    static const char *const names[] = {"failed",
                                        "an internal error",
                                        "the plan was refused",
                                        "the device failed",
                                        "a peer failed",
                                        "the step was aborted",
                                        "the group could not be joined",
                                        "a protocol error"};
    struct group *g = s->group;
    char why[64], detail[WHY_BYTES];
    const char *kind = (size_t)x->code < ARRAY_LEN(names) ? names[x->code] : names[0];
    snprintf(why, sizeof why, "rank %u: %s", s->rank, kind);
    snprintf(detail, sizeof detail, "%s: %.400s", why, x->message);
    if (x->epoch != s->granted || x->epoch != g->epoch) {
        g->fleet->n_fenced++;
        log_event(LOG_LEVEL_DEBUG, RANK_LOG(s), "%s (of epoch %llu, which is over)", detail,
                  (unsigned long long)x->epoch);
        return;
    }
    s->ready = false;
    log_event(LOG_LEVEL_WARN, RANK_LOG(s), "group %s: %s", g->name, detail);
    group_rank_error(g, s->rank, detail);
    bool symptom = x->code == WIRE_FAILURE_PEER || x->code == WIRE_FAILURE_ABORTED ||
                   x->code == WIRE_FAILURE_JOIN;
    if (symptom && g->n_ranks > 1)
        group_blame_peer(g, why, now);
    else
        group_down(g, "%s", why);
}

static void on_ready(struct rank_session *s, const struct wire_ready *r)
{
    if (r->epoch != s->granted || r->epoch != s->group->epoch) {
        s->group->fleet->n_fenced++;
        return; /* of an epoch that is over */
    }
    s->ready = true;
    s->known_answer = r->known_answer;
    copy_text(s->collectives, sizeof s->collectives, r->collectives);
    group_joined(s->group, s);
}

static void on_heartbeat(struct rank_session *s, const struct wire_heartbeat *h)
{
    bool draining = h->state == WIRE_WORKER_DRAINING;
    bool changed = draining != s->draining;
    s->beat = *h;
    s->draining = draining;
    if (changed)
        rank_changed(s);
}

/* A body is worth something only in the right state; false = protocol error. Takes the message. */
static bool on_body(struct rank_session *s, struct wire_worker_message *m, int64_t now)
{
    bool keep = false, ok = true;
    if (!s->group) {
        ok = m->hello != NULL;
        if (ok)
            on_hello(s, m->hello);
    } else if (m->loaded && !s->loaded) {
        on_loaded(s, m->loaded);
    } else if (m->heartbeat) {
        on_heartbeat(s, m->heartbeat);
    } else if (m->failed) {
        on_failed(s, m->failed, now);
    } else if (m->ready && s->loaded) {
        on_ready(s, m->ready);
    } else if (m->step_done && s->loaded) {
        keep = true;
        group_answer(s->group, s, m, now);
    } else {
        ok =
            !m->hello && !m->loaded && !m->ready && !m->step_done; /* a kind from a later version */
    }
    if (!keep)
        wire_free_worker_message(m);
    return ok;
}

static void take_message(struct rank_session *s, struct rpc_call *c, const uint8_t *data,
                         size_t size)
{
    int64_t now = clock_now_ns();
    s->heard_ns = now;
    struct wire_worker_message *m;
    struct err e = ERR_INIT;
    if (wire_unpack_worker_message(data, size, &m, &e) < 0) {
        log_event(LOG_LEVEL_WARN, RANK_LOG(s), "rank %u (%s): unreadable message: %s", s->rank,
                  rpc_peer(c), e.message);
        s->end = FLEET_RESTART_PROTOCOL;
        rank_session_close(s, RPC_INVALID_ARGUMENT, "unreadable message");
    } else if (!on_body(s, m, now)) {
        log_event(LOG_LEVEL_WARN, RANK_LOG(s), "rank %u (%s): a message out of order", s->rank,
                  rpc_peer(c));
        s->end = FLEET_RESTART_PROTOCOL;
        rank_session_close(s, RPC_FAILED_PRECONDITION, "a message out of order");
    }
    if (s->ended && group_in_epoch(s) && s->group->ranks[s->rank].current == s)
        group_down(s->group, "rank %u broke the protocol", s->rank);
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct rank_session *s = rpc_user(c);
    if (s->ended)
        return;
    struct loop_meter *m = s->fleet->config.meter;
    enum loop_part outer = m ? loop_meter_enter(m, LOOP_RESULT) : LOOP_OTHER;
    take_message(s, c, data, size);
    if (m)
        loop_meter_leave(m, outer);
}

/* ---- time ---- */

static void check_session(struct rank_session *s, int64_t now)
{
    const struct config *c = s->fleet->config.config;
    struct group *g = s->group;
    int64_t silent = now - s->heard_ns;
    char why[WHY_BYTES] = "";
    if (!g && now - s->opened_ns > HELLO_TIMEOUT_NS)
        snprintf(why, sizeof why, "no Hello came");
    else if (g && silent > MAX(c->deadlines.lease, 2 * NSEC_PER_SEC))
        snprintf(why, sizeof why, "nothing was heard of it for %lld ms (deadlines.lease)",
                 (long long)(silent / NSEC_PER_MSEC));
    else if (g && !s->loaded && now - s->opened_ns > c->deadlines.hello)
        snprintf(why, sizeof why, "it did not load its weights in time (deadlines.hello)");
    if (!*why)
        return;
    s->end = s->loaded || silent > c->deadlines.lease ? FLEET_RESTART_SILENT : FLEET_RESTART_SLOW;
    log_event(LOG_LEVEL_WARN, RANK_LOG(s), "group %s: rank %u (%s, pid %u): %s", g ? g->name : "?",
              s->rank, s->host, s->pid, why);
    if (g) {
        group_rank_error(g, s->rank, why);
        if (g->ranks[s->rank].current == s && group_in_epoch(s))
            group_down(g, "rank %u: %s", s->rank, why);
    }
    rank_session_close(s, RPC_DEADLINE_EXCEEDED, why);
    rpc_cancel(s->call); /* a peer that hangs does not take the status */
}

static void send_lease(struct rank_session *s, int64_t now)
{
    const struct config *c = s->fleet->config.config;
    if (!s->group || s->ended || now - s->leased_ns < c->deadlines.heartbeat)
        return;
    s->leased_ns = now;
    const struct wire_lease lease = {
        .epoch = s->granted,
        .lease_ms = (uint32_t)MAX(c->deadlines.lease / NSEC_PER_MSEC, INT64_C(1))};
    fleet_send(s, &(struct wire_coordinator_message){.lease = &lease});
}

void rank_session_tick(struct rank_session *s, int64_t now_ns)
{
    if (!s->ended)
        check_session(s, now_ns);
    send_lease(s, now_ns);
}

void rank_session_tell_drain(struct rank_session *s, const char *why)
{
    const struct wire_drain drain = {.reason = why};
    fleet_send(s, &(struct wire_coordinator_message){.drain = &drain});
}

/* ---- the stream ---- */

static void on_half_close(struct rpc_call *c)
{
    rank_session_close(rpc_user(c), RPC_OK, "");
}

void fleet_on_session(struct rpc_call *c, void *context)
{
    static const struct rpc_callbacks callbacks = {
        .on_message = on_message, .on_half_close = on_half_close, .on_done = on_done};
    struct fleet *f = context;
    struct rank_session *s = calloc(1, sizeof *s);
    if (!s)
        abort(); /* a few hundred bytes at the start of a stream */
    s->fleet = f;
    s->call = c;
    s->opened_ns = s->heard_ns = clock_now_ns();
    s->next = f->sessions;
    if (f->sessions)
        f->sessions->prev = s;
    f->sessions = s;
    f->n_sessions++;
    rpc_set(c, &callbacks, s);
    if (f->stopping)
        rank_session_close(s, RPC_UNAVAILABLE, "the coordinator stops");
}
