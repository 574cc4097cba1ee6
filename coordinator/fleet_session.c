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

static const char *const activations_names[] = {"fp32", "fp16", "a8"};

static void copy_text(char *dst, size_t size, const char *src)
{
    snprintf(dst, size, "%s", src);
    utf8_repair(dst, strlen(dst)); /* it may have been cut inside a character */
}

/* ---- the end of a stream ---- */

void session_close(struct rank_session *s, enum rpc_status status, const char *why)
{
    if (s->ended)
        return;
    s->ended = true;
    rpc_finish(s->call, status, why);
}

static void refuse(struct rank_session *s, enum wire_refuse_code code, const char *why)
{
    log_warn("refused rank %u (%s, pid %u): %s", s->rank, s->host, s->pid, why);
    const struct wire_refuse r = {.code = code, .reason = why};
    fleet_send(s, &(struct wire_coordinator_message){.refuse = &r});
    session_close(s, RPC_FAILED_PRECONDITION, why);
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
static void promote(struct rank *k)
{
    k->current = k->standby;
    k->standby = NULL;
    if (k->current)
        log_info("rank %u: pid %u takes over", k->current->rank, k->current->pid);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct rank_session *s = rpc_user(c);
    struct fleet *f = s->fleet;
    s->call = NULL;
    if (s->hello) {
        struct rank *k = &f->ranks[s->rank];
        if (k->standby == s)
            k->standby = NULL;
        if (k->current == s) {
            bool in_epoch = s->granted && s->granted == f->epoch;
            promote(k);
            if (in_epoch)
                fleet_down(f, "rank %u was lost", s->rank);
            if (!s->ended && !f->stopping) {
                char why[WHY_BYTES];
                snprintf(why, sizeof why, "the stream ended: %s: %.200s", rpc_status_name(status),
                         message ? message : "");
                fleet_rank_error(f, s->rank, why);
                log_info("rank %u (%s, pid %u) left: %s", s->rank, s->host, s->pid,
                         rpc_status_name(status));
            }
        }
    }
    unlink_session(s);
    free(s);
}

/* ---- Hello ---- */

static int check_hello(const struct rank_session *s, const struct wire_hello *h,
                       enum wire_refuse_code *ret_code, struct err *e)
{
    const struct fleet *f = s->fleet;
    const struct config *c = f->config.config;
    const char *activations = activations_names[c->worker.activations];
    *ret_code = WIRE_REFUSE_PROTOCOL;
    if (h->protocol_min > WIRE_PROTOCOL_MAX || h->protocol_max < WIRE_PROTOCOL_MIN)
        return err_set(e, -EINVAL,
                       "protocol versions: the coordinator speaks %d to %d, the worker %u to %u: "
                       "install the same version of glmd",
                       WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_MAX, h->protocol_min, h->protocol_max);
    if (h->instance_id.size != WIRE_INSTANCE_BYTES || h->last_epoch >> 62)
        return err_set(e, -EINVAL, "instance_id or last_epoch is not one of a glmd-worker");
    *ret_code = WIRE_REFUSE_CLUSTER;
    if (strcmp(h->cluster, c->cluster.name) != 0)
        return err_set(e, -EINVAL, "cluster.name: expected \"%s\", found \"%.64s\"",
                       c->cluster.name, h->cluster);
    *ret_code = WIRE_REFUSE_RANK;
    if (h->tp_size != f->n_ranks || h->rank >= f->n_ranks)
        return err_set(e, -EINVAL,
                       "group.tensor_parallel: expected a rank below %u of %u, found rank %u of %u",
                       f->n_ranks, f->n_ranks, h->rank, h->tp_size);
    *ret_code = WIRE_REFUSE_MODEL;
    if (strcmp(h->model_digest, f->config.model_digest) != 0)
        return err_set(e, -EINVAL,
                       "model digest: expected %s (%s), found %.40s: all ranks and the coordinator "
                       "need the same model directory",
                       f->config.model_digest, f->config.scheme, h->model_digest);
    if (strcmp(h->activations, activations) != 0)
        return err_set(e, -EINVAL,
                       "worker.activations: expected %s as in the coordinator's configuration, "
                       "found %.16s",
                       activations, h->activations);
    return 0;
}

/* Gives the rank to the session, or lets it wait behind the process that has it. */
static void claim_rank(struct rank_session *s)
{
    struct fleet *f = s->fleet;
    struct rank *k = &f->ranks[s->rank];
    if (k->current && memcmp(k->current->instance, s->instance, sizeof s->instance) == 0) {
        /* The same process over a new stream: the old stream is dead. */
        struct rank_session *old = k->current;
        k->current = s;
        if (old->granted && old->granted == f->epoch)
            fleet_down(f, "rank %u lost its connection", s->rank);
        session_close(old, RPC_ABORTED, "the worker has opened another stream");
    } else if (k->current && k->standby) {
        refuse(s, WIRE_REFUSE_RANK, "two other processes hold this rank or wait for it");
        return;
    } else if (k->current) {
        log_warn("rank %u: pid %u on %s waits: pid %u on %s has the rank", s->rank, s->pid, s->host,
                 k->current->pid, k->current->host);
        k->standby = s;
    } else {
        k->current = s;
    }
    k->n_sessions++;
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
    enum wire_refuse_code code;
    if (check_hello(s, h, &code, &e) < 0) {
        if (h->rank < s->fleet->n_ranks)
            fleet_rank_error(s->fleet, h->rank, e.message);
        refuse(s, code, e.message);
        return;
    }
    memcpy(s->instance, h->instance_id.data, sizeof s->instance);
    s->hello = true;
    log_info("rank %u: hello from %s, pid %u, %s", s->rank, s->host, s->pid, s->device);
    claim_rank(s);
}

/* ---- Loaded, Failed, Heartbeat ---- */

static void on_loaded(struct rank_session *s, const struct wire_loaded *l)
{
    const struct arch *a = s->fleet->config.arch;
    if (l->block_tokens != PLAN_KV_BLOCK_TOKENS || l->limits.vocab != a->vocab ||
        l->limits.max_seq != a->max_seq || l->limits.n_slots == 0 ||
        l->limits.n_slots > PLAN_MAX_ITEMS || l->limits.n_blocks == 0) {
        char why[WHY_BYTES];
        snprintf(why, sizeof why,
                 "limits: expected blocks of %d tokens, vocabulary %u, sequences of %u, 1 to %d "
                 "slots; found %u, %u, %u, %u",
                 PLAN_KV_BLOCK_TOKENS, a->vocab, a->max_seq, PLAN_MAX_ITEMS, l->block_tokens,
                 l->limits.vocab, l->limits.max_seq, l->limits.n_slots);
        fleet_rank_error(s->fleet, s->rank, why);
        refuse(s, WIRE_REFUSE_PROTOCOL, why);
        return;
    }
    s->limits = l->limits;
    s->memory = l->memory;
    copy_text(s->description, sizeof s->description, l->description);
    s->loaded = true;
    log_info("rank %u: loaded, %llu MiB weights, %llu MiB KV cache (%u blocks), %llu MiB scratch",
             s->rank, (unsigned long long)(l->memory.weights >> 20),
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
    struct fleet *f = s->fleet;
    char why[64], detail[WHY_BYTES];
    const char *kind = (size_t)x->code < ARRAY_LEN(names) ? names[x->code] : names[0];
    snprintf(why, sizeof why, "rank %u: %s", s->rank, kind);
    snprintf(detail, sizeof detail, "%s: %.400s", why, x->message);
    if (x->epoch != s->granted || x->epoch != f->epoch) {
        log_debug("%s (of epoch %llu, which is over)", detail, (unsigned long long)x->epoch);
        return;
    }
    s->ready = false;
    log_warn("%s", detail);
    fleet_rank_error(f, s->rank, detail);
    bool symptom = x->code == WIRE_FAILURE_PEER || x->code == WIRE_FAILURE_ABORTED ||
                   x->code == WIRE_FAILURE_JOIN;
    if (symptom && f->n_ranks > 1)
        fleet_blame_peer(f, why, now);
    else
        fleet_down(f, "%s", why);
}

static void on_ready(struct rank_session *s, const struct wire_ready *r)
{
    if (r->epoch != s->granted || r->epoch != s->fleet->epoch)
        return; /* of an epoch that is over */
    s->ready = true;
    s->known_answer = r->known_answer;
    fleet_joined(s->fleet, s);
}

static void on_heartbeat(struct rank_session *s, const struct wire_heartbeat *h)
{
    s->beat = *h;
    s->draining = h->state == WIRE_WORKER_DRAINING;
}

/* A body is worth something only in the right state; false = protocol error. Takes the message. */
static bool on_body(struct rank_session *s, struct wire_worker_message *m, int64_t now)
{
    bool keep = false, ok = true;
    if (!s->hello) {
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
        fleet_answer(s->fleet, s, m, now);
    } else {
        ok =
            !m->hello && !m->loaded && !m->ready && !m->step_done; /* a kind from a later version */
    }
    if (!keep)
        wire_free_worker_message(m);
    return ok;
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct rank_session *s = rpc_user(c);
    if (s->ended)
        return;
    int64_t now = clock_now_ns();
    s->heard_ns = now;
    struct wire_worker_message *m;
    struct err e = ERR_INIT;
    if (wire_unpack_worker_message(data, size, &m, &e) < 0) {
        log_warn("rank %u (%s): unreadable message: %s", s->rank, rpc_peer(c), e.message);
        session_close(s, RPC_INVALID_ARGUMENT, "unreadable message");
    } else if (!on_body(s, m, now)) {
        log_warn("rank %u (%s): a message out of order", s->rank, rpc_peer(c));
        session_close(s, RPC_FAILED_PRECONDITION, "a message out of order");
    }
    if (s->ended && s->hello && s->granted && s->granted == s->fleet->epoch &&
        s->fleet->ranks[s->rank].current == s)
        fleet_down(s->fleet, "rank %u broke the protocol", s->rank);
}

static void on_half_close(struct rpc_call *c)
{
    session_close(rpc_user(c), RPC_OK, "");
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
        session_close(s, RPC_UNAVAILABLE, "the coordinator stops");
}
