/* runner_sim.c: worker/runner.h without a thread: an order takes virtual time, its result comes
 * from the fake device. Linked instead of worker/runner.c.
 *
 * The ranks of an epoch meet in a sim_comm: joining and every step begin when all have come and
 * take as long as the slowest; who waits for a rank that left gets -EIO, who waits for one that
 * hangs gets -ETIMEDOUT after the epoch's timeout, as with real collectives. Orders run one at a
 * time; an abort makes the running one fail after a while.
 */
#include "worker/runner.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "sim.h"
#include "worker/worker.h"

#define LOAD_MIN_NS (50 * NSEC_PER_MSEC)
#define LOAD_MAX_NS (1500 * NSEC_PER_MSEC)

struct runner {
    struct runner *next; /* every one of the run, freed at its end */
    struct sim *sim;
    struct sim_worker *worker;
    struct runner_config config;
    struct fake *fake;
    uint32_t rank; /* in its group */
    struct runner_order *head, *tail, *running;
    struct sim_comm *comm; /* NULL: none, or left */
    uint64_t order_number; /* of the running one: events of others are void */
    uint64_t live_epoch;
    bool waiting;   /* for the others of the comm */
    bool finishing; /* its end is posted: an abort does not matter any more */
    bool opened, stop, stopped_told, dead;
    int64_t busy_since, timeout_ns, hung_until;
    uint64_t counter, loaded_bytes;
    struct session_progress stats;
};

/* The ranks of one epoch. */
struct sim_comm {
    struct sim_comm *next;
    uint64_t epoch;
    uint32_t tp_size, n_ranks;
    uint64_t last_done[SIM_MAX_MACHINES]; /* step of each stage */
    struct runner *members[SIM_MAX_MACHINES];
    struct runner *owners[SIM_MAX_MACHINES]; /* who ever joined: one process per rank and epoch */
    bool broken;
};

static struct runner *all_runners; /* of the run; there is one run at a time */

static struct world *world_of(const struct runner *r)
{
    return &r->sim->world;
}

/* ---- orders ---- */

static struct runner_order *order_new(enum runner_kind kind)
{
    struct runner_order *o = runner_order_new(kind);
    if (!o)
        abort();
    return o;
}

static void run_next(struct runner *r);

/* The running order is over. */
static void finish(struct runner *r)
{
    struct runner_order *o = r->running;
    r->running = NULL;
    r->waiting = r->finishing = false;
    r->order_number++;
    r->counter++;
    r->busy_since = 0;
    r->config.post(r->config.context, o);
    run_next(r);
}

static void fail(struct runner *r, int code, const char *why)
{
    r->running->code = err_set(&r->running->err, code, "%s", why);
    finish(r);
}

static void post(struct runner *r, int64_t delay_ns, void (*run)(void *arg, uint64_t number))
{
    world_post_value(world_of(r), sim_worker_process(r->worker), delay_ns, run, r, r->order_number);
}

static bool is_void(const struct runner *r, uint64_t number)
{
    return r->dead || !r->running || r->order_number != number;
}

/* ---- the comm ---- */

static void on_peer_gone(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (!is_void(r, number) && r->waiting)
        fail(r, -EIO, "a peer closed its connection");
}

/* With `silently` the others learn of it by their timeout. */
static void leave_comm(struct runner *r, bool silently)
{
    struct sim_comm *c = r->comm;
    if (!c)
        return;
    r->comm = NULL;
    c->members[r->rank] = NULL;
    c->broken = true;
    for (uint32_t i = 0; i != c->n_ranks && !silently; i++) {
        struct runner *x = c->members[i];
        if (x && x->running && x->waiting)
            post(x, rng_between(&world_of(r)->timing, 0, 3 * NSEC_PER_MSEC), on_peer_gone);
    }
}

static struct sim_comm *find_comm(struct runner *r, const struct wire_grant *g)
{
    struct sim *s = r->sim;
    for (struct sim_comm *c = s->comms; c; c = c->next) {
        if (c->epoch == g->epoch)
            return c;
    }
    struct sim_comm *c = calloc(1, sizeof *c);
    if (!c)
        abort();
    *c = (struct sim_comm){.next = s->comms,
                           .epoch = g->epoch,
                           .tp_size = g->tp_size,
                           .n_ranks = g->tp_size * g->pp_size};
    s->comms = c;
    s->n_epochs++;
    return c;
}

void sim_comms_free(struct sim *s)
{
    for (struct sim_comm *c = s->comms, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    s->comms = NULL;
    for (struct runner *r = all_runners, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    all_runners = NULL;
}

static void on_timeout(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (!is_void(r, number) && r->waiting)
        fail(r, -ETIMEDOUT, "a peer did not come in time");
}

/* Whether all ranks from `first` to `end` wait for the same. */
static bool have_met(const struct sim_comm *c, uint32_t first, uint32_t end)
{
    const struct runner *a = c->members[first];
    for (uint32_t i = first; i != end; i++) {
        const struct runner *x = c->members[i];
        if (!x || !x->running || !x->waiting || x->running->kind != a->running->kind ||
            x->running->step != a->running->step)
            return false;
    }
    return true;
}

/* A rank waits for the others, in vain when one has left already. */
static void begin_waiting(struct runner *r)
{
    r->waiting = true;
    if (r->comm->broken)
        post(r, rng_between(&world_of(r)->timing, 0, 3 * NSEC_PER_MSEC), on_peer_gone);
    post(r, r->timeout_ns, on_timeout);
}

/* ---- open ---- */

static void on_opened(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (is_void(r, number))
        return;
    struct runner_order *o = r->running;
    if (r->stop) {
        fail(r, -ECANCELED, "loading was cancelled");
        return;
    }
    struct fake_config config = r->sim->fake;
    config.limits = sim_worker_machine(r->worker)->group->limits;
    if (fake_new(&config, &r->fake) < 0)
        abort();
    r->opened = true;
    r->loaded_bytes = 1 << 30;
    o->loaded.limits = sim_worker_machine(r->worker)->group->limits;
    o->loaded.memory = (struct wire_memory){1 << 30, fake_bytes(r->fake), 1 << 20};
    o->loaded.block_tokens = PLAN_KV_BLOCK_TOKENS;
    o->loaded.description = "simulated";
    finish(r);
}

/* ---- join ---- */

static void on_joined(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (is_void(r, number))
        return;
    fake_reset(r->fake);
    r->running->known_answer = r->sim->known_answer;
    finish(r);
}

static void begin_join(struct runner *r)
{
    const struct wire_grant *g = r->running->message->grant;
    struct sim_comm *c = find_comm(r, g);
    uint32_t rank = g->rank;
    leave_comm(r, false);
    r->rank = rank;
    if (c->n_ranks != g->tp_size * g->pp_size || (c->owners[rank] && c->owners[rank] != r))
        world_fail(world_of(r), "epoch %llu: rank %u has two processes",
                   (unsigned long long)g->epoch, rank);
    c->owners[rank] = c->members[rank] = r;
    r->comm = c;
    r->timeout_ns = (int64_t)g->comm_timeout_ms * NSEC_PER_MSEC;
    begin_waiting(r);
    if (!have_met(c, 0, c->n_ranks))
        return;
    int64_t delay = rng_between(&world_of(r)->timing, NSEC_PER_MSEC, 30 * NSEC_PER_MSEC);
    for (uint32_t i = 0; i != c->n_ranks; i++) {
        struct runner *x = c->members[i];
        x->waiting = false;
        post(x, delay + rng_between(&world_of(r)->timing, 0, NSEC_PER_MSEC), on_joined);
    }
}

/* ---- step ---- */

/* A rank that has diverged: other tokens, another hash. */
static void corrupt(struct step_result *result, struct result_item *items, uint32_t rank)
{
    result->state_hash ^= UINT64_C(1) << rank; /* no two diverge to the same */
    memcpy(items, result->items, result->n_items * sizeof *items);
    for (uint32_t i = 0; i != result->n_items; i++)
        items[i].token = items[i].token > 0 ? items[i].token - 1 : items[i].token;
    result->items = items;
}

static void pack_result(struct runner *r, const struct step_result *result)
{
    struct sim_machine *m = sim_worker_machine(r->worker);
    struct step_result copy = *result;
    struct result_item *items = alloc_array(result->n_items, sizeof *items);
    if (m->corrupt_next_step && r->config.engine.tp_size > 1) {
        m->corrupt_next_step = false;
        sim_note_fault(r->sim, world_of(r)->now_ns);
        trace(world_of(r), "engine: corrupts step %llu", (unsigned long long)result->step);
        corrupt(&copy, items, r->rank);
    }
    const struct engine_config *c = &r->config.engine;
    if (c->tp_rank != 0 || c->stage + 1 < c->pp_size)
        copy.n_items = copy.n_groups = 0; /* as worker/runner.c: one rank tells for all */
    const struct wire_worker_message wm = {.step_done = &copy};
    if (wire_pack_worker_message(&wm, &r->running->bytes) < 0)
        abort();
    free(items);
}

static void on_stepped(void *arg, uint64_t number);

static void count_step(struct runner *r, const struct plan *p, const struct step_result *result)
{
    r->stats.steps++;
    r->stats.compute_ns += (uint64_t)result->compute_ns;
    for (uint32_t i = 0; i != p->n_items; i++) {
        uint32_t n = p->items[i].n_tokens;
        *(n == 1 ? &r->stats.decode_tokens : &r->stats.prefill_tokens) += n;
    }
    if (r->rank == 0)
        r->sim->n_steps++;
}

/* A stage computes a step when all its ranks have come to it and the stage before has done it. */
static void try_stage(struct sim_comm *c, uint32_t stage)
{
    uint32_t first = stage * c->tp_size, end = first + c->tp_size;
    if (first == c->n_ranks || !have_met(c, first, end))
        return;
    struct runner *r = c->members[first];
    if (stage && c->last_done[stage - 1] < r->running->step)
        return;
    int64_t longest = 0;
    struct rng *rng = &world_of(r)->timing;
    for (uint32_t i = first; i != end; i++) {
        double slowness = sim_worker_machine(c->members[i]->worker)->slowness;
        const struct plan *p = c->members[i]->running->message->step;
        int64_t ns = (int64_t)(slowness * (double)fake_step_ns(&r->sim->plan.fake, p));
        ns /= c->n_ranks / c->tp_size;
        longest = MAX(longest, ns + rng_between(rng, 0, ns / 8 + 1));
    }
    for (uint32_t i = first; i != end; i++) {
        struct runner *x = c->members[i];
        x->waiting = false;
        post(x, longest + rng_between(rng, 0, 100 * NSEC_PER_USEC), on_stepped);
    }
}

static void on_stepped(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (is_void(r, number))
        return;
    struct sim_machine *m = sim_worker_machine(r->worker);
    const struct plan *p = r->running->message->step;
    const struct step_result *result;
    struct err e = ERR_INIT;
    if (m->hang_next_step_ns) { /* its session goes on as if nothing were */
        trace(world_of(r), "engine: hangs for %.3f s", (double)m->hang_next_step_ns / 1e9);
        r->hung_until = world_of(r)->now_ns + m->hang_next_step_ns;
        sim_note_fault(r->sim, r->hung_until);
        post(r, m->hang_next_step_ns, on_stepped);
        m->hang_next_step_ns = 0;
        return;
    }
    if (m->fail_next_step) {
        m->fail_next_step = false;
        sim_note_fault(r->sim, world_of(r)->now_ns);
        fail(r, -EIO, "the device failed");
        return;
    }
    if (fake_step(r->fake, p, &result, &e) < 0)
        world_fail(world_of(r), "rank %u refuses step %llu of epoch %llu: %s", r->rank,
                   (unsigned long long)p->step, (unsigned long long)p->epoch, e.message);
    trace(world_of(r), "engine: step %llu of epoch %llu, %u items, hash %016llx",
          (unsigned long long)p->step, (unsigned long long)p->epoch, p->n_items,
          (unsigned long long)result->state_hash);
    count_step(r, p, result);
    pack_result(r, result);
    struct sim_comm *c = r->comm;
    uint32_t stage = c ? r->rank / c->tp_size : 0;
    if (c)
        c->last_done[stage] = r->running->step;
    finish(r);
    if (c && r->comm == c)
        try_stage(c, stage + 1);
}

static void begin_step(struct runner *r)
{
    struct sim_comm *c = r->comm;
    if (!c) {
        fail(r, -ECANCELED, "the group is gone");
        return;
    }
    begin_waiting(r);
    try_stage(c, r->rank / c->tp_size);
}

/* ---- one order after the other ---- */

static void on_stopped(void *arg)
{
    struct runner *r = arg;
    if (!r->dead)
        r->config.post(r->config.context, order_new(RUNNER_STOPPED));
}

static void on_cancelled(void *arg, uint64_t number)
{
    struct runner *r = arg;
    if (!is_void(r, number))
        fail(r, -ECANCELED, "the epoch is over");
}

static void run_next(struct runner *r)
{
    if (r->running || r->dead)
        return;
    if (r->stop || !r->opened) { /* no engine: nothing more is done */
        if (!r->stopped_told && (r->stop || r->counter)) {
            r->stopped_told = true;
            leave_comm(r, false);
            world_post(world_of(r), sim_worker_process(r->worker), 0, on_stopped, r);
        }
        return;
    }
    struct runner_order *o = r->head;
    if (!o)
        return;
    r->head = o->next;
    r->running = o;
    r->busy_since = world_of(r)->now_ns;
    if (o->epoch != r->live_epoch)
        post(r, 0, on_cancelled);
    else if (o->kind == RUNNER_JOIN)
        begin_join(r);
    else
        begin_step(r);
}

static void enqueue(struct runner *r, enum runner_kind kind, uint64_t epoch, uint64_t step,
                    struct wire_coordinator_message *m)
{
    struct runner_order *o = order_new(kind);
    o->epoch = epoch;
    o->step = step;
    o->message = m;
    if (kind == RUNNER_JOIN)
        r->live_epoch = epoch;
    if (r->head)
        r->tail->next = o;
    else
        r->head = o;
    r->tail = o;
    run_next(r);
}

/* ---- runner.h ---- */

int runner_new(const struct runner_config *config, struct runner **ret, struct err *e)
{
    (void)e;
    struct runner *r = calloc(1, sizeof *r);
    if (!r)
        abort();
    r->config = *config;
    r->worker = config->context;
    r->sim = sim_worker_sim(r->worker);
    r->next = all_runners;
    all_runners = r;
    r->running = order_new(RUNNER_OPEN);
    r->busy_since = world_of(r)->now_ns;
    post(r, rng_between(&world_of(r)->timing, LOAD_MIN_NS, LOAD_MAX_NS), on_opened);
    *ret = r;
    return 0;
}

void runner_join(struct runner *r, struct wire_coordinator_message *grant)
{
    enqueue(r, RUNNER_JOIN, grant->grant->epoch, 0, grant);
}

void runner_step(struct runner *r, struct wire_coordinator_message *step)
{
    enqueue(r, RUNNER_STEP, step->step->epoch, step->step->step, step);
}

static void drop_orders(struct runner *r)
{
    while (r->head) {
        struct runner_order *o = r->head;
        r->head = o->next;
        runner_order_free(o);
    }
}

/* The others see the collectives fail; the own order takes a moment, rarely a long one: a kernel
 * that runs cannot be called back. */
void runner_abort(struct runner *r)
{
    struct rng *rng = &world_of(r)->timing;
    drop_orders(r);
    r->live_epoch = 0;
    leave_comm(r, false);
    if (!r->running || r->running->kind == RUNNER_OPEN || r->finishing)
        return;
    r->order_number++; /* its own events are void */
    r->waiting = false;
    r->finishing = true;
    int64_t longest = rng_chance(rng, 5) ? 2 * NSEC_PER_SEC : 20 * NSEC_PER_MSEC;
    int64_t hung_ns = MAX(r->hung_until - world_of(r)->now_ns, 0);
    post(r, hung_ns + rng_between(rng, 0, longest), on_cancelled);
}

void runner_stop(struct runner *r)
{
    runner_abort(r);
    r->stop = true;
    run_next(r);
}

void sim_runner_die(struct sim_worker *w)
{
    for (struct runner *r = all_runners; r; r = r->next) {
        if (r->worker == w) {
            /* Its host's kernel closes the sockets; a host without power says nothing. */
            leave_comm(r, rng_chance(&world_of(r)->timing, 30));
            r->dead = true;
        }
    }
}

/* The object itself stays until the end of the run: posted events know it. */
void runner_free(struct runner *r)
{
    if (!r)
        return;
    r->dead = true;
    leave_comm(r, false);
    drop_orders(r);
    runner_order_free(r->running);
    r->running = NULL;
    fake_free(r->fake);
    r->fake = NULL;
}

void runner_progress(struct runner *r, struct session_progress *ret)
{
    *ret = r->stats;
    ret->busy_ns = r->busy_since ? (uint64_t)(world_of(r)->now_ns - r->busy_since) : 0;
    ret->loaded_bytes = r->loaded_bytes;
    ret->total_bytes = 1 << 30;
}

uint64_t runner_counter(struct runner *r, bool *ret_idle)
{
    *ret_idle = !r->running;
    return r->counter;
}
