/* sched_queue.c: who waits, who starts next, on which group, and who makes room for it. See
 * sched.h. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched_internal.h"

enum {
    SCAN = 16,           /* requests that are looked at behind one that does not fit */
    PREEMPTIONS_MAX = 3, /* of one request; then it runs to its end */
    OUTPUT_PRICE = 2,    /* of a token that is decoded, in tokens of a prompt */
};

/* A request that does not fit lets smaller ones pass for so long; then the groups that could run it
 * start nobody else until it has room. */
#define PATIENCE_NS (2 * NSEC_PER_SEC)
/* Waits that differ by less are the same: measurements are not better than that. */
#define WAIT_GRAIN_NS (10.0 * (double)NSEC_PER_MSEC)

/* ---- tenants ---- */

/* The least that an active tenant has been served: who comes back after a while gets no credit for
 * the time that it did not use. */
static uint64_t least_served(const struct sched *s)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i != s->n_tenants; i++) {
        if (s->tenants[i].n_requests)
            least = MIN(least, s->tenants[i].served);
    }
    return least;
}

/* A place in the table: the tenant's own, or that of one who has nothing here; when all have, two
 * share one. */
static uint32_t find_tenant(struct sched *s, uint64_t id)
{
    uint32_t free_idx = UINT32_MAX;
    for (uint32_t i = 0; i != s->n_tenants; i++) {
        const struct tenant *t = &s->tenants[i];
        if (t->id == id)
            return i;
        if (t->n_requests == 0 &&
            (free_idx == UINT32_MAX || t->served < s->tenants[free_idx].served))
            free_idx = i;
    }
    if (s->n_tenants != SCHED_MAX_TENANTS)
        free_idx = s->n_tenants++;
    if (free_idx == UINT32_MAX)
        return (uint32_t)(id % SCHED_MAX_TENANTS);
    s->tenants[free_idx] = (struct tenant){.id = id};
    return free_idx;
}

static void join_tenant(struct sched *s, struct request *r)
{
    r->tenant_idx = find_tenant(s, r->tenant);
    struct tenant *t = &s->tenants[r->tenant_idx];
    uint64_t least = least_served(s);
    if (t->n_requests++ == 0 && least != UINT64_MAX)
        t->served = MAX(t->served, least);
}

void queue_forget(struct sched *s, struct request *r)
{
    assert(s->tenants[r->tenant_idx].n_requests > 0);
    s->tenants[r->tenant_idx].n_requests--;
}

void queue_charge(struct sched *s, const struct request *r, uint32_t n_prompt, uint32_t n_output)
{
    s->tenants[r->tenant_idx].served += (uint64_t)n_prompt + OUTPUT_PRICE * (uint64_t)n_output;
}

/* ---- the lists ---- */

/* Sequences that it will decode. */
static uint32_t n_decoded(const struct request *r)
{
    return r->kind == REQUEST_SCORE ? 0 : r->params.beam ? r->params.n_beams : r->params.n_choices;
}

/* Within one list: higher priorities first, then as they were submitted. */
static bool goes_before(const struct request *a, const struct request *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->id < b->id;
}

static struct request_list *list_of(struct sched *s, const struct request *r)
{
    return r->requeued ? &s->requeued : &s->tenants[r->tenant_idx].waiting;
}

static void insert(struct sched *s, struct request *r)
{
    struct request_list *l = list_of(s, r);
    struct request *before = l->last; /* what comes last mostly stays last */
    while (before && goes_before(r, before))
        before = before->prev;
    r->prev = before;
    r->next = before ? before->next : l->first;
    if (r->prev)
        r->prev->next = r;
    else
        l->first = r;
    if (r->next)
        r->next->prev = r;
    else
        l->last = r;
    l->n++;
    s->n_waiting++;
    s->n_waiting_tokens += r->n_queue_tokens;
    s->n_waiting_seqs += n_decoded(r);
    s->admit_again = true;
}

void queue_remove(struct sched *s, struct request *r)
{
    list_remove(list_of(s, r), r);
    assert(s->n_waiting > 0 && s->n_waiting_tokens >= r->n_queue_tokens);
    s->n_waiting--;
    s->n_waiting_tokens -= r->n_queue_tokens;
    s->n_waiting_seqs -= n_decoded(r);
}

void queue_push(struct sched *s, struct request *r)
{
    r->requeued = false;
    r->blocked_ns = 0;
    join_tenant(s, r);
    insert(s, r);
}

void queue_push_front(struct sched *s, struct request *r)
{
    r->requeued = true;
    r->blocked_ns = 0;
    insert(s, r);
}

const struct request_list *queue_list(const struct sched *s, uint32_t i)
{
    if (i == 0)
        return &s->requeued;
    return i <= s->n_tenants ? &s->tenants[i - 1].waiting : NULL;
}

/* ---- room ---- */

/* Whether everything that the request can need is free on the group. */
static bool has_room(const struct sched_group *g, const struct request *r)
{
    uint32_t n_slots = request_slots(r, g->limits.n_slots),
             available = blocks_available(&g->blocks);
    if (n_slots > g->limits.n_slots - g->n_reserved_slots)
        return false;
    if (request_blocks(r, n_slots) <= available)
        return true;
    uint32_t n_hit = context_cached(g, r); /* what it shares with one that runs costs nothing */
    return n_hit && context_blocks(g, r, n_slots, n_hit) <= available;
}

static bool takes(const struct sched *s, uint32_t group, const struct request *r)
{
    if (!sched_attached(s, group))
        return false;
    const struct sched_group *g = s->groups[group];
    assert(g);
    return !g->draining && !g->held && sched_group_check_fits(g, r, NULL) == 0;
}

/* ---- bounds ---- */

static double tokens_per_ns(const struct sched *s)
{
    double rate = 0;
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (sched_attached(s, i))
            rate += s->groups[i]->tokens_per_ns;
    }
    return rate;
}

/* Tokens that a request will run, as far as one can tell: outputs are as long as they were lately.
 */
static double expected_tokens(const struct sched *s, const struct request *r)
{
    double n_new = MIN((double)request_max_new(r), s->mean_output);
    return (double)r->n_queue_tokens + n_new * n_decoded(r);
}

/* Time until everything that waits with at least this priority has run. 0: nothing is known. */
static double wait_behind(const struct sched *s, int32_t priority)
{
    double rate = tokens_per_ns(s), n = 0;
    for (uint32_t i = 0; queue_list(s, i); i++) {
        for (const struct request *r = queue_list(s, i)->first; r && rate > 0; r = r->next)
            n += r->priority >= priority ? expected_tokens(s, r) : 0;
    }
    return rate > 0 ? n / rate : 0;
}

/* Steps until a running request ends, as far as one can tell: an output that is there says nothing
 * of what follows it. */
static double steps_left(const struct sched *s, const struct request *r)
{
    double most = 0;
    for (uint32_t i = 0; i != r->n_seqs; i++) {
        const struct seq *q = &r->seqs[i];
        size_t n = q->live && q->output < r->n_outputs ? r->outputs[q->output].tokens.n : SIZE_MAX;
        size_t max_new = request_max_new(r);
        if (n < max_new)
            most = MAX(most, MIN((double)(max_new - n), s->mean_output));
    }
    return most;
}

/* Time until a group that takes r has room for it: what runs there goes on until one of them ends.
 * 0: there is room, or less urgent work that would make some, or nothing is known. */
static double wait_for_room(const struct sched *s, const struct request *r)
{
    double soonest = 0;
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (!takes(s, i, r))
            continue;
        const struct sched_group *g = s->groups[i];
        if (has_room(g, r))
            return 0;
        double least = 0;
        for (const struct request *x = g->running.first; x; x = x->next) {
            double ns = steps_left(s, x) * g->step_ns;
            if (ns <= 0 || x->priority < r->priority)
                return 0;
            least = least > 0 ? MIN(least, ns) : ns;
        }
        soonest = soonest > 0 ? MIN(soonest, least) : least;
    }
    return soonest;
}

/* Spares the walk through the queue while even all of it, at the dearest, would not take too long.
 */
static bool may_wait_too_long(const struct sched *s)
{
    double most = (double)s->n_waiting_tokens + (double)s->n_waiting_seqs * s->mean_output;
    return most > (double)s->config.max_wait_ns * tokens_per_ns(s);
}

static int refuse(struct request *r, double retry_ns, struct err *e, const char *what)
{
    r->retry_after_ns = (int64_t)MIN(MAX(retry_ns, (double)NSEC_PER_SEC), 3600.0 * 1e9);
    long long seconds = (r->retry_after_ns + NSEC_PER_SEC - 1) / NSEC_PER_SEC;
    return err_set(e, -ENOBUFS, "%s: try again in about %lld s", what, seconds);
}

int queue_check(const struct sched *s, struct request *r, struct err *e)
{
    const struct sched_config *c = &s->config;
    char what[160];
    if (s->n_waiting >= c->max_queue) {
        snprintf(what, sizeof what, "the queue is full (%u requests wait)", s->n_waiting);
        return refuse(r, wait_behind(s, INT32_MIN) / MAX(s->n_waiting, 1u), e, what);
    }
    uint64_t n_tokens = s->n_waiting_tokens + r->n_queue_tokens;
    if (c->max_queue_tokens && s->n_waiting && n_tokens > c->max_queue_tokens) {
        snprintf(what, sizeof what, "the queue is full (prompts of %llu tokens wait)",
                 (unsigned long long)s->n_waiting_tokens);
        double share = (double)(n_tokens - c->max_queue_tokens) / (double)n_tokens;
        return refuse(r, wait_behind(s, INT32_MIN) * share, e, what);
    }
    if (!c->max_wait_ns)
        return 0;
    double wait = wait_for_room(s, r);
    if (wait > 0 || may_wait_too_long(s))
        wait += wait_behind(s, r->priority);
    if (wait > (double)c->max_wait_ns) {
        snprintf(what, sizeof what,
                 "the queue is too long: the first token would take about %.0f s", wait / 1e9);
        return refuse(r, wait - (double)c->max_wait_ns, e, what);
    }
    return 0;
}

/* ---- groups ---- */

/* Time until a prompt that starts now has its turn, behind those that have not run yet. */
static double prefill_wait(const struct sched_group *g)
{
    uint64_t n = 0;
    for (const struct request *r = g->running.first; r; r = r->next) {
        for (uint32_t i = 0; i != r->n_seqs; i++) {
            uint32_t pending = seq_pending(g, r, &r->seqs[i]);
            n += pending > 1 ? pending : 0;
        }
    }
    return (double)n * g->limits.n_layers * g->work_ns;
}

/* How good a place is: smaller is better. The shortest wait for the first token, then most of the
 * prompt in the cache, then the least load, then the most free memory. */
struct place {
    double wait, load;
    uint32_t n_uncached; /* tokens of the prompt */
    uint32_t n_used;
};

static struct place place_on(const struct sched_group *g, const struct request *r)
{
    uint32_t n_own = (uint32_t)r->prompt.ids.n - context_cached(g, r);
    double own = (double)n_own * g->limits.n_layers * g->work_ns;
    return (struct place){
        .wait = (double)(uint64_t)((prefill_wait(g) + own) / WAIT_GRAIN_NS),
        .n_uncached = n_own,
        .load = (double)g->n_reserved_slots / g->limits.n_slots,
        .n_used = UINT32_MAX - blocks_available(&g->blocks),
    };
}

static bool is_better(const struct place *a, const struct place *b)
{
    if (a->wait != b->wait)
        return a->wait < b->wait;
    if (a->n_uncached != b->n_uncached)
        return a->n_uncached < b->n_uncached;
    return a->load != b->load ? a->load < b->load : a->n_used < b->n_used;
}

static uint32_t choose_group(const struct sched *s, const struct request *r)
{
    uint32_t best = UINT32_MAX;
    struct place best_place = {0};
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (!takes(s, i, r) || !has_room(s->groups[i], r))
            continue;
        struct place p = place_on(s->groups[i], r);
        if (best == UINT32_MAX || is_better(&p, &best_place)) {
            best = i;
            best_place = p;
        }
    }
    return best;
}

static void start(struct sched *s, uint32_t group, struct request *r, int64_t now_ns)
{
    struct sched_group *g = s->groups[group];
    uint32_t n_slots = request_slots(r, g->limits.n_slots);
    /* The cache is a help where there is room for it, never a reason not to start. */
    r->n_hit = context_cached(g, r);
    g->n_lookup_tokens += r->prompt.ids.n;
    uint64_t n_blocks = context_blocks(g, r, n_slots, r->n_hit);
    if (n_blocks > blocks_available(&g->blocks)) {
        r->n_hit = 0;
        n_blocks = request_blocks(r, n_slots);
    }
    if (!r->requeued) /* what it finds when it comes back is its own work */
        r->n_cached_tokens = r->n_hit;
    bool ok = blocks_reserve(&g->blocks, &r->lease, (uint32_t)n_blocks);
    assert(ok);
    g->n_reserved_slots += n_slots;
    r->n_slots_reserved = n_slots;
    r->n_blocks_reserved = r->lease.left;
    queue_remove(s, r);
    if (!r->requeued)
        queue_charge(s, r, r->n_queue_tokens, 0);
    sched_start(s, group, r, now_ns);
}

/* ---- preemption ---- */

/* The youngest request of the lowest priority below r's. */
static struct request *next_victim(const struct sched_group *g, const struct request *r)
{
    struct request *victim = NULL;
    for (struct request *v = g->running.last; v; v = v->prev) {
        if (v->priority < r->priority && v->n_preempted < PREEMPTIONS_MAX && !v->victim &&
            (!victim || v->priority < victim->priority))
            victim = v;
    }
    return victim;
}

/* How many requests would have to make room for r, which are marked; 0: it would not be enough. */
static uint32_t mark_victims(struct sched_group *g, const struct request *r)
{
    uint32_t need_slots = request_slots(r, g->limits.n_slots), n = 0;
    uint64_t need_blocks = request_blocks(r, need_slots);
    uint64_t n_slots = g->limits.n_slots - g->n_reserved_slots;
    uint64_t n_blocks = blocks_available(&g->blocks);
    while (n_slots < need_slots || n_blocks < need_blocks) {
        struct request *v = next_victim(g, r);
        if (!v)
            return 0;
        v->victim = true;
        n_slots += v->n_slots_reserved;
        n_blocks += v->n_blocks_reserved;
        n++;
    }
    return n;
}

static void unmark_victims(struct sched_group *g)
{
    for (struct request *v = g->running.first; v; v = v->next)
        v->victim = false;
}

/* The group where the fewest requests have to make room. */
static uint32_t choose_preemption(struct sched *s, const struct request *r)
{
    uint32_t best = UINT32_MAX, n_best = 0;
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (!takes(s, i, r))
            continue;
        uint32_t n = mark_victims(s->groups[i], r);
        unmark_victims(s->groups[i]);
        if (n && (best == UINT32_MAX || n < n_best)) {
            best = i;
            n_best = n;
        }
    }
    return best;
}

/* Makes room for r: requests of lower priority go back to the front of their class. */
static bool preempt(struct sched *s, const struct request *r)
{
    uint32_t group = choose_preemption(s, r);
    if (group == UINT32_MAX)
        return false;
    struct sched_group *g = s->groups[group];
    mark_victims(g, r);
    for (struct request *v = g->running.first, *next; v; v = next) {
        next = v->next;
        if (!v->victim)
            continue;
        v->victim = false;
        v->n_preempted++;
        s->totals.n_preempted++;
        sched_tell(s, v, SCHED_PREEMPTED, (uint32_t)v->n_completion_tokens);
        sched_requeue(s, v);
    }
    return true;
}

/* ---- who is next ---- */

/* Whether a starts before b, which are the first ones of their lists: priority, then who has run
 * before, then the tenant that was served least, then who came first. */
static bool starts_before(const struct sched *s, const struct request *a, const struct request *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (a->requeued != b->requeued)
        return a->requeued;
    uint64_t served_a = s->tenants[a->tenant_idx].served;
    uint64_t served_b = s->tenants[b->tenant_idx].served;
    if (!a->requeued && served_a != served_b)
        return served_a < served_b;
    return a->id < b->id;
}

/* The next one behind those that were looked at; its list's cursor moves on. */
static struct request *next_candidate(struct sched *s)
{
    struct request **best = s->requeued_cursor ? &s->requeued_cursor : NULL;
    for (uint32_t i = 0; i != s->n_tenants; i++) {
        struct request **c = &s->tenants[i].cursor;
        if (*c && (!best || starts_before(s, *c, *best)))
            best = c;
    }
    if (!best)
        return NULL;
    struct request *r = *best;
    *best = r->next;
    return r;
}

static void reset_cursors(struct sched *s)
{
    s->requeued_cursor = s->requeued.first;
    for (uint32_t i = 0; i != s->n_tenants; i++)
        s->tenants[i].cursor = s->tenants[i].waiting.first;
}

/* Who has been patient for long enough gets the next room there is, on any group that can run it.
 */
static void hold_groups(struct sched *s, const struct request *r)
{
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (takes(s, i, r))
            s->groups[i]->held = true;
    }
}

static void admit_pass(struct sched *s, int64_t now_ns)
{
    for (uint32_t i = 0; i != s->n_groups; i++) {
        if (s->groups[i])
            s->groups[i]->held = false;
    }
    reset_cursors(s);
    struct request *r;
    for (uint32_t n = 0; n != SCAN && (r = next_candidate(s));) {
        uint32_t group = choose_group(s, r);
        if (group == UINT32_MAX && preempt(s, r)) {
            group = choose_group(s, r);
            reset_cursors(s); /* the lists are others now */
        }
        if (group != UINT32_MAX) {
            start(s, group, r, now_ns);
            if (s->admit_again)
                return; /* from the beginning */
            continue;
        }
        n++;
        if (r->blocked_ns == 0)
            r->blocked_ns = now_ns;
        if (now_ns - r->blocked_ns >= PATIENCE_NS)
            hold_groups(s, r);
    }
}

void sched_admit(struct sched *s, int64_t now_ns)
{
    while (s->admit_again) {
        s->admit_again = false;
        if (s->n_waiting)
            admit_pass(s, now_ns);
    }
}
