/* session.c: see session.h. */
#include "worker/session.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"
#include "base/util.h"
#include "worker/exit.h"

enum {
    MIN_HEARTBEAT_MS = 10,
    MAX_HEARTBEAT_MS = 60000,
    MIN_LEASE_MS = 100,
    MAX_TIMEOUT_MS = 3600000,
    MAX_NAME_BYTES = 100,
};

const char *session_state_name(enum session_state s)
{
    static const char *const names[] = {"loading", "idle", "joining", "ready"};
    return names[s];
}

void session_init(struct session *s, const struct session_config *config,
                  const struct session_ops *ops, void *context)
{
    *s = (struct session){
        .ops = ops, .context = context, .config = *config, .heartbeat_ns = config->heartbeat_ns};
}

static void send(struct session *s, const struct wire_worker_message *m)
{
    if (s->connected)
        s->ops->send(s->context, m);
}

static void send_loaded(struct session *s)
{
    send(s, &(struct wire_worker_message){.loaded = &s->loaded});
}

/* A drained session has nothing left to wait for. */
static void exit_if_drained(struct session *s)
{
    if (s->draining && !s->n_steps)
        s->ops->exit(s->context, WORKER_EXIT_OK, "drained");
}

/* The current epoch is over on this rank. */
static void end_epoch(struct session *s)
{
    if (!s->epoch)
        return;
    s->ops->abort_engine(s->context);
    s->epoch = 0;
    s->n_steps = 0;
    s->lease_ns = 0;
    s->state = SESSION_IDLE;
    exit_if_drained(s);
}

static void fail(struct session *s, uint64_t epoch, uint64_t step, enum wire_failure_code code,
                 const char *message)
{
    char text[ERR_MESSAGE_BYTES]; /* may quote a file name or what the coordinator sent */
    snprintf(text, sizeof text, "%s", message);
    utf8_repair(text, strlen(text));
    log_event(LOG_LEVEL_WARN, LOG(.epoch = epoch, .step = step), "epoch %llu ends at step %llu: %s",
              (unsigned long long)epoch, (unsigned long long)step, text);
    const struct wire_failed failed = {.epoch = epoch, .step = step, .code = code, .message = text};
    send(s, &(struct wire_worker_message){.failed = &failed});
    end_epoch(s);
}

static void fenced(struct session *s, const char *what, uint64_t epoch)
{
    s->n_fenced++;
    log_event(LOG_LEVEL_DEBUG, LOG(.epoch = s->epoch), "dropped %s of epoch %llu, now %llu", what,
              (unsigned long long)epoch, (unsigned long long)s->epoch);
}

/* Whether a message belongs to the current grant. Drops older ones; newer ones end the epoch. */
static bool is_current(struct session *s, const char *what, uint64_t epoch)
{
    if (s->epoch && epoch == s->epoch)
        return true;
    if (epoch <= s->last_epoch) {
        fenced(s, what, epoch);
        return false;
    }
    char message[128];
    snprintf(message, sizeof message, "%s of epoch %llu, which was not granted (last: %llu)", what,
             (unsigned long long)epoch, (unsigned long long)s->last_epoch);
    fail(s, epoch, 0, WIRE_FAILURE_PROTOCOL, message);
    return false;
}

/* ---- Grant ---- */

/* A coordinator that knows no stages says none. */
static uint32_t stages_of(uint32_t pp_size)
{
    return pp_size ? pp_size : 1;
}

static int check_comm_kind(const char *what, enum wire_comm_kind kind, uint32_t n, struct err *e)
{
    if (kind == WIRE_COMM_SELF && n != 1)
        return err_set(e, -EINVAL, "%s: SELF for %u", what, n);
    if (kind != WIRE_COMM_SELF && kind != WIRE_COMM_SHM && kind != WIRE_COMM_TCP)
        return err_set(e, -EINVAL, "%s: this build has no kind %d", what, (int)kind);
    return 0;
}

static int check_comm(const struct wire_grant *g, struct err *e)
{
    if (g->comm_timeout_ms < 1 || g->comm_timeout_ms > MAX_TIMEOUT_MS)
        return err_set(e, -EINVAL, "comm_timeout_ms: expected 1 to %d, found %u", MAX_TIMEOUT_MS,
                       g->comm_timeout_ms);
    uint32_t n_stages = stages_of(g->pp_size);
    enum wire_comm_kind link = n_stages == 1 ? WIRE_COMM_SELF : g->link_comm;
    bool shm = g->comm == WIRE_COMM_SHM || link == WIRE_COMM_SHM;
    bool tcp = g->comm == WIRE_COMM_TCP || link == WIRE_COMM_TCP;
    int r = check_comm_kind("comm", g->comm, g->tp_size, e);
    if (r == 0)
        r = check_comm_kind("link_comm", link, n_stages, e);
    if (r < 0 || (!shm && !tcp))
        return r;
    if (g->token.size != WIRE_TOKEN_BYTES)
        return err_set(e, -EINVAL, "token: expected %d bytes, found %zu", WIRE_TOKEN_BYTES,
                       g->token.size);
    if (tcp && g->n_peers != g->tp_size * n_stages)
        return err_set(e, -EINVAL, "peers: expected %u addresses, found %u", g->tp_size * n_stages,
                       g->n_peers);
    size_t length = strlen(g->comm_name);
    if (shm &&
        (!length || length > MAX_NAME_BYTES || strchr(g->comm_name, '/') || g->comm_name[0] == '.'))
        return err_set(e, -EINVAL, "comm_name: expected 1 to %d bytes without '/' and leading '.'",
                       MAX_NAME_BYTES);
    return 0;
}

static int check_grant(const struct session *s, const struct wire_grant *g, struct err *e)
{
    const struct wire_hello *h = &s->config.hello;
    if (s->state == SESSION_LOADING)
        return err_set(e, -EINVAL, "the weights are still loading");
    if (!g->epoch || g->epoch <= s->last_epoch)
        return err_set(e, -EINVAL, "epoch: expected above %llu, found %llu",
                       (unsigned long long)s->last_epoch, (unsigned long long)g->epoch);
    if (g->protocol < h->protocol_min || g->protocol > h->protocol_max)
        return err_set(e, -EINVAL, "protocol: expected %u to %u, found %u", h->protocol_min,
                       h->protocol_max, g->protocol);
    if (strcmp(g->group, h->group) != 0)
        return err_set(e, -EINVAL, "group: expected \"%s\", found \"%.64s\"", h->group, g->group);
    if (g->rank != h->rank || g->tp_size != h->tp_size || stages_of(g->pp_size) != h->pp_size)
        return err_set(e, -EINVAL, "rank: expected %u of %u x %u, found %u of %u x %u", h->rank,
                       h->tp_size, h->pp_size, g->rank, g->tp_size, stages_of(g->pp_size));
    if (g->heartbeat_ms < MIN_HEARTBEAT_MS || g->heartbeat_ms > MAX_HEARTBEAT_MS)
        return err_set(e, -EINVAL, "heartbeat_ms: expected %d to %d, found %u", MIN_HEARTBEAT_MS,
                       MAX_HEARTBEAT_MS, g->heartbeat_ms);
    if (g->lease_ms < MIN_LEASE_MS || g->lease_ms > MAX_TIMEOUT_MS)
        return err_set(e, -EINVAL, "lease_ms: expected %d to %d, found %u", MIN_LEASE_MS,
                       MAX_TIMEOUT_MS, g->lease_ms);
    return check_comm(g, e);
}

static void renew_lease(struct session *s, int64_t now)
{
    if (s->epoch)
        s->lease_end = now + s->lease_ns / 5 * 4;
}

/* Takes the message over. */
static void on_grant(struct session *s, struct wire_coordinator_message *m, int64_t now)
{
    const struct wire_grant *g = m->grant;
    struct err e = ERR_INIT;
    end_epoch(s);
    if (s->draining) {
        fail(s, g->epoch, 0, WIRE_FAILURE_JOIN, "this rank is draining");
    } else if (check_grant(s, g, &e)) {
        err_prefix(&e, "Grant");
        fail(s, g->epoch, 0, WIRE_FAILURE_PROTOCOL, e.message);
    } else {
        log_event(LOG_LEVEL_INFO, LOG(.epoch = g->epoch),
                  "granted epoch %llu of group %s: rank %u of %u x %u",
                  (unsigned long long)g->epoch, g->group, g->rank, g->tp_size,
                  s->config.hello.pp_size);
        s->epoch = s->last_epoch = g->epoch;
        s->state = SESSION_JOINING;
        s->next_step = 1;
        s->max_steps = s->config.hello.pp_size + 1;
        s->last_done = 0;
        s->n_epochs++;
        s->lease_ns = (int64_t)g->lease_ms * NSEC_PER_MSEC;
        s->heartbeat_ns = (int64_t)g->heartbeat_ms * NSEC_PER_MSEC;
        s->next_heartbeat = MIN(s->next_heartbeat, now + s->heartbeat_ns);
        renew_lease(s, now);
        s->ops->join(s->context, m);
        return;
    }
    wire_free_coordinator_message(m);
}

/* ---- Step ---- */

static int check_step(const struct session *s, const struct plan *p, struct err *e)
{
    if (s->state != SESSION_READY)
        return err_set(e, -EPROTO, "step %llu while %s", (unsigned long long)p->step,
                       session_state_name(s->state));
    if (p->step != s->next_step)
        return err_set(e, -EPROTO, "expected step %llu, found %llu",
                       (unsigned long long)s->next_step, (unsigned long long)p->step);
    if (s->n_steps == s->max_steps)
        return err_set(e, -EPROTO, "step %llu while %u are in flight", (unsigned long long)p->step,
                       s->max_steps);
    return plan_validate(p, &s->loaded.limits, e);
}

/* Takes the message over. */
static void on_step(struct session *s, struct wire_coordinator_message *m)
{
    const struct plan *p = m->step;
    struct err e = ERR_INIT;
    int r = 0;
    if (!is_current(s, "a step", p->epoch) || s->draining) {
        wire_free_coordinator_message(m); /* draining: what runs is the last */
        return;
    }
    r = check_step(s, p, &e);
    if (r) {
        fail(s, p->epoch, p->step, r == -EPROTO ? WIRE_FAILURE_PROTOCOL : WIRE_FAILURE_BAD_PLAN,
             e.message);
        wire_free_coordinator_message(m);
        return;
    }
    s->next_step++;
    s->n_steps++;
    s->ops->step(s->context, m);
}

/* ---- the stream ---- */

static void on_refuse(struct session *s, const struct wire_refuse *r)
{
    static const int codes[] = {
        [WIRE_REFUSE_UNSPECIFIED] = WORKER_EXIT_INTERNAL,
        [WIRE_REFUSE_PROTOCOL] = WORKER_EXIT_CONFIG,
        [WIRE_REFUSE_CLUSTER] = WORKER_EXIT_CONFIG,
        [WIRE_REFUSE_MODEL] = WORKER_EXIT_WEIGHTS,
        [WIRE_REFUSE_RANK] = WORKER_EXIT_CONFIG,
        [WIRE_REFUSE_FENCED] = WORKER_EXIT_FENCED,
    };
    int code = (size_t)r->code < ARRAY_LEN(codes) ? codes[r->code] : WORKER_EXIT_INTERNAL;
    log_error("the coordinator refused this worker: %s", r->reason);
    end_epoch(s);
    s->ops->exit(s->context, code, "refused");
}

void session_connected(struct session *s, int64_t now)
{
    s->connected = true;
    struct wire_hello hello = s->config.hello;
    hello.last_epoch = s->last_epoch;
    send(s, &(struct wire_worker_message){.hello = &hello});
    if (s->state != SESSION_LOADING)
        send_loaded(s);
    s->heartbeat_ns = s->config.heartbeat_ns;
    s->next_heartbeat = now;
}

void session_disconnected(struct session *s)
{
    s->connected = false;
    end_epoch(s);
}

void session_message(struct session *s, struct wire_coordinator_message *m, int64_t now)
{
    if (m->grant) {
        on_grant(s, m, now);
        return;
    }
    if (m->step) {
        if (m->step->epoch == s->epoch)
            renew_lease(s, now);
        on_step(s, m);
        return;
    }
    if (m->abort) {
        if (!m->abort->epoch || is_current(s, "an abort", m->abort->epoch)) {
            if (s->epoch)
                log_event(LOG_LEVEL_INFO, LOG(.epoch = s->epoch), "epoch %llu was aborted: %s",
                          (unsigned long long)s->epoch, m->abort->reason);
            end_epoch(s);
        }
    } else if (m->lease) {
        if (m->lease->epoch && is_current(s, "a lease", m->lease->epoch))
            renew_lease(s, now);
    } else if (m->refuse) {
        on_refuse(s, m->refuse);
    } else if (m->drain) {
        session_drain(s, m->drain->reason);
    } else {
        /* a kind of message that this version does not know */
        log_debug("a message without a known body");
    }
    wire_free_coordinator_message(m);
}

/* ---- the engine ---- */

void session_loaded(struct session *s, const struct wire_loaded *loaded)
{
    assert(s->state == SESSION_LOADING);
    s->loaded = *loaded;
    s->state = SESSION_IDLE;
    send_loaded(s);
}

void session_joined(struct session *s, uint64_t epoch, uint64_t known_answer,
                    const char *collectives)
{
    if (epoch != s->epoch)
        return;
    assert(s->state == SESSION_JOINING);
    s->state = SESSION_READY;
    const struct wire_ready ready = {
        .epoch = epoch, .known_answer = known_answer, .collectives = collectives};
    send(s, &(struct wire_worker_message){.ready = &ready});
}

void session_join_failed(struct session *s, uint64_t epoch, int code, const char *message)
{
    if (epoch != s->epoch)
        return;
    (void)code;
    fail(s, epoch, 0, WIRE_FAILURE_JOIN, message);
}

void session_step_done(struct session *s, uint64_t epoch, uint64_t step, const void *bytes,
                       size_t size)
{
    if (epoch != s->epoch)
        return;
    assert(s->n_steps > 0 && step == s->last_done + 1);
    s->n_steps--;
    s->last_done = step;
    if (s->connected)
        s->ops->send_bytes(s->context, bytes, size);
    exit_if_drained(s);
}

void session_step_failed(struct session *s, uint64_t epoch, uint64_t step, int code,
                         const char *message)
{
    if (epoch != s->epoch)
        return;
    enum wire_failure_code failure = WIRE_FAILURE_INTERNAL;
    bool device = code == -EIO && !s->config.device_is_cpu;
    if (code == -EINVAL)
        failure = WIRE_FAILURE_BAD_PLAN;
    else if (code == -ECANCELED)
        failure = WIRE_FAILURE_ABORTED;
    else if (device)
        failure = WIRE_FAILURE_DEVICE;
    else if (code == -ETIMEDOUT || code == -ECONNRESET || code == -EIO)
        failure = WIRE_FAILURE_PEER;
    fail(s, epoch, step, failure, message);
    if (device) /* sticky: every later call would fail as well */
        s->ops->exit(s->context, WORKER_EXIT_DEVICE, message);
}

/* ---- the rest ---- */

static enum wire_worker_state wire_state(const struct session *s)
{
    if (s->draining)
        return WIRE_WORKER_DRAINING;
    static const enum wire_worker_state states[] = {
        [SESSION_LOADING] = WIRE_WORKER_LOADING,
        [SESSION_IDLE] = WIRE_WORKER_LOADED,
        [SESSION_JOINING] = WIRE_WORKER_JOINING,
        [SESSION_READY] = WIRE_WORKER_READY,
    };
    return states[s->state];
}

int64_t session_next(const struct session *s, int64_t now)
{
    int64_t next = s->connected ? s->next_heartbeat : now + s->heartbeat_ns;
    return s->epoch ? MIN(next, s->lease_end) : next;
}

int64_t session_tick(struct session *s, int64_t now, const struct session_progress *p)
{
    if (s->epoch && now >= s->lease_end) {
        log_event(LOG_LEVEL_WARN, LOG(.epoch = s->epoch),
                  "nothing heard of the coordinator for 4/5 of the lease of %lld ms",
                  (long long)(s->lease_ns / NSEC_PER_MSEC));
        end_epoch(s);
        s->ops->disconnect(s->context);
    }
    if (s->connected && now >= s->next_heartbeat) {
        const struct wire_heartbeat beat = {
            .state = wire_state(s),
            .epoch = s->epoch,
            .step = s->last_done,
            .busy_ns = p->busy_ns,
            .loaded_bytes = p->loaded_bytes,
            .total_bytes = p->total_bytes,
            .steps = p->steps,
            .prefill_tokens = p->prefill_tokens,
            .decode_tokens = p->decode_tokens,
            .compute_ns = p->compute_ns,
            .fenced_messages = s->n_fenced,
            .all_reduces = p->all_reduces,
            .all_reduce_ns = p->all_reduce_ns,
            .all_gathers = p->all_gathers,
            .all_gather_ns = p->all_gather_ns,
            .link_messages = p->link_messages,
            .link_ns = p->link_ns,
            .cpu_ns = p->cpu_ns,
            .resident_bytes = p->resident_bytes,
            .shared_rows = p->shared_rows,
            .wide_rows = p->wide_rows,
        };
        send(s, &(struct wire_worker_message){.heartbeat = &beat});
        s->next_heartbeat = now + s->heartbeat_ns;
    }
    return session_next(s, now);
}

void session_drain(struct session *s, const char *why)
{
    if (s->draining)
        return;
    log_info("draining: %s", why);
    s->draining = true;
    if (s->state == SESSION_JOINING)
        end_epoch(s);
    else
        exit_if_drained(s);
}
