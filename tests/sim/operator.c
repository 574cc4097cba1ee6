/* operator.c: what an operator does to a running cluster: Status, Drain of a group, Abort of a
 * request. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "clients.h"
#include "proto/rpc/wire_cluster.h"

enum action { STATUS, DRAIN, ABORT };

struct sim_operation {
    struct sim *sim;
    struct sim_operation *next; /* all of the run */
    enum action action;
    bool answered;
};

static const char *const paths[] = {"/glmd.v1.Cluster/Status", "/glmd.v1.Cluster/Drain",
                                    "/glmd.v1.Cluster/Abort"};

/* Every group of a status must add up. */
static void check_status(struct sim *s, const uint8_t *data, size_t size)
{
    struct wire_status_response *w;
    struct err e = ERR_INIT;
    if (wire_unpack_status_response(data, size, &w, &e) < 0)
        world_fail(&s->world, "Status: %s", e.message);
    if (w->n_groups > s->plan.n_groups)
        world_fail(&s->world, "Status shows %u groups, there are %u", w->n_groups,
                   s->plan.n_groups);
    for (uint32_t i = 0; i != w->n_groups; i++) {
        const struct wire_group_status *g = &w->groups[i];
        if (g->kv_blocks_free > g->kv_blocks_total || g->slots_used > g->slots_total)
            world_fail(&s->world, "Status of group %s does not add up", g->id);
    }
    wire_free_status_response(w);
}

static void on_message(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct sim_operation *o = rpc_user(c);
    o->answered = true;
    if (o->action == STATUS)
        check_status(o->sim, data, size);
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    struct sim_operation *o = rpc_user(c);
    trace(&o->sim->world, "operator: %s: %s %s", paths[o->action], rpc_status_name(status),
          message);
    if (status == RPC_OK && !o->answered)
        world_fail(&o->sim->world, "%s has no answer", paths[o->action]);
}

/* Somebody starts the ranks of a drained group again, or a service manager does at once. */
static const char *draw_drain(struct sim *s)
{
    struct rng *r = &s->world.faults;
    struct sim_group *g = &s->groups[rng_below(r, s->plan.n_groups)];
    int64_t away_ns = rng_chance(r, 70) ? rng_between(r, NSEC_PER_SEC, 10 * NSEC_PER_SEC) : 0;
    for (uint32_t i = 0; i != g->n_ranks; i++)
        s->machines[g->first_machine + i].away_until = s->world.now_ns + away_ns;
    sim_note_fault(s, s->world.now_ns + away_ns + 2 * s->config.coordinator.deadlines.drain);
    return g->name;
}

static void pack(struct sim_operation *o, struct buf *out)
{
    struct sim *s = o->sim;
    char id[32];
    int r;
    if (o->action == STATUS) {
        r = wire_pack_status_request(&(struct wire_status_request){0}, out);
    } else if (o->action == DRAIN) {
        const struct wire_drain_request w = {.group = draw_drain(s)};
        trace(&s->world, "operator: drains group %s", w.group);
        r = wire_pack_drain_request(&w, out);
    } else {
        uint32_t number = rng_below(&s->world.faults, s->plan.n_requests);
        snprintf(id, sizeof id, "request-%u", number);
        sim_clients_note_abort(s, number);
        r = wire_pack_abort_request(&(struct wire_abort_request){.request_id = id}, out);
    }
    if (r < 0)
        abort();
}

static void on_operation(void *arg)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};
    struct sim_operation *o = arg;
    struct buf packed = {0};
    struct rpc_call *call;
    pack(o, &packed);
    int r = rpc_open(sim_clients_channel(o->sim), paths[o->action], 5 * NSEC_PER_SEC, false,
                     &callbacks, o, &call);
    if (r < 0)
        world_fail(&o->sim->world, "rpc_open: %s", err_name(r));
    if (o->sim->keys)
        rpc_sim_set_metadata(call, "authorization", SIM_OPERATOR_KEY);
    rpc_send(call, packed.data, packed.size);
    rpc_half_close(call);
    buf_deinit(&packed);
}

void sim_operator_start(struct sim *s)
{
    struct rng *r = &s->world.faults;
    uint32_t n = s->plan.calm ? 2 : 1 + rng_below(r, 8);
    for (uint32_t i = 0; i != n; i++) {
        struct sim_operation *o = calloc(1, sizeof *o);
        assert(o);
        o->sim = s;
        o->next = s->operations;
        s->operations = o;
        o->action = s->plan.calm ? STATUS : (enum action)rng_below(r, 3);
        world_post(&s->world, sim_clients_process(s), rng_between(r, 0, s->plan.work_ns),
                   on_operation, o);
    }
}

void sim_operator_free(struct sim *s)
{
    for (struct sim_operation *o = s->operations, *next; o; o = next) {
        next = o->next;
        free(o);
    }
    s->operations = NULL;
}
