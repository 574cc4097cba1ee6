/* test_sched_random.c: the scheduler against engines whose model is a hash: every request gets
 * exactly what it would get alone, whatever else runs, groups come and go, and accounts balance
 * after every call. GLMD_SEED=N starts with that seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"
#include "sched_fixture.h"

enum { MAX_LIVE = 40, MAX_GROUPS = 3 };

struct expectation {
    struct request *request;
    struct buf text;
};

struct group {
    struct plan_limits limits;
    uint32_t n_stages, max_pending;
    struct fake_engine *engine; /* while it is attached */
    const struct step_result *pending[SCHED_MAX_IN_FLIGHT];
    uint32_t n_pending;
};

struct run {
    struct sched *s;
    struct group groups[MAX_GROUPS];
    uint32_t n_groups;
    uint64_t epoch;
    int64_t now;
    struct expectation live[MAX_LIVE];
    uint32_t n_live;
    uint64_t trace; /* hash of every plan */
    uint64_t seed;
};

static struct totals {
    uint32_t n_ok, n_ended, n_slices;
    struct sched_stats stats;
} totals;

static void check(struct run *t, bool ok, const char *what)
{
    if (ok)
        return;
    fail_msg("seed %llu: %s", (unsigned long long)t->seed, what);
}

/* Usage counts what the client can see, end tokens, and tokens that completed a stop text. */
static void check_usage(struct run *t, const struct request *r)
{
    uint64_t n = 0;
    if (r->kind != REQUEST_GENERATE || r->params.beam)
        return;
    for (uint32_t i = 0; i != r->n_outputs; i++)
        n += r->outputs[i].tokens.n + (r->outputs[i].end_token >= 0) + (r->outputs[i].stop >= 0);
    if (n != r->n_completion_tokens)
        fail_msg("seed %llu: %llu tokens, usage says %llu", (unsigned long long)t->seed,
                 (unsigned long long)n, (unsigned long long)r->n_completion_tokens);
}

static void check_answer(struct run *t, const struct request *r, const char *expected)
{
    struct buf found = {0};
    reference_describe(r, &found);
    if (strcmp(found.data, expected) != 0)
        fail_msg("seed %llu request %llu kind %d beam %d choices %u\nexpected\n%s\nfound\n%s",
                 (unsigned long long)t->seed, (unsigned long long)r->id, (int)r->kind,
                 (int)r->params.beam, r->params.n_choices, expected, found.data);
    buf_deinit(&found);
}

static bool is_expected_failure(const struct request *r)
{
    return r->status == RPC_CANCELLED || r->status == RPC_DEADLINE_EXCEEDED ||
           r->status == RPC_UNAVAILABLE || r->status == RPC_INVALID_ARGUMENT ||
           (r->status == RPC_INTERNAL && r->n_losses == SCHED_MAX_LOSSES);
}

static void collect(struct run *t)
{
    for (struct request *r; (r = sched_next_touched(t->s));) {
        if (r->state != REQUEST_DONE || r->touched)
            continue;
        check_usage(t, r);
        uint32_t i = 0;
        while (t->live[i].request != r)
            i++;
        if (r->status == RPC_OK) {
            check_answer(t, r, t->live[i].text.data);
            totals.n_ok++;
        } else {
            check(t, is_expected_failure(r), r->message);
            totals.n_ended++;
        }
        buf_deinit(&t->live[i].text);
        request_free(r);
        t->live[i] = t->live[--t->n_live];
    }
}

static void submit(struct run *t)
{
    if (t->n_live == MAX_LIVE)
        return;
    struct request *r = fixture_random_request();
    struct buf text = {0};
    reference_run(&golden_arch, r, &text);
    if (rnd(10) == 0)
        r->deadline_ns = t->now + (int64_t)rnd(30) * NSEC_PER_MSEC;
    r->priority = rnd(3) ? 0 : (int32_t)rnd(5) - 2;
    r->tenant = rnd(3);
    struct err e = ERR_INIT;
    int code = sched_submit(t->s, r, &e);
    check(t, code != -ENOBUFS || r->retry_after_ns > 0, "no hint when to try again");
    if (code < 0) {
        check(t, code == -E2BIG || code == -ENOBUFS, e.message);
        check(t, e.message[0], "a refusal without a message");
        request_free(r);
        buf_deinit(&text);
        return;
    }
    t->live[t->n_live++] = (struct expectation){r, text};
}

static void random_limits(struct group *g)
{
    g->n_stages = rnd(3) ? 1 : 1 + rnd(4);
    g->max_pending = 1 + rnd(g->n_stages + 1);
    g->limits = (struct plan_limits){
        .n_slots = 2 + rnd(14),
        .n_blocks = 20 + rnd(120),
        .max_tokens = rnd(3) ? 128 + rnd(128) : 24 + rnd(60),
        .max_seq = golden_arch.max_seq,
        .vocab = golden_arch.vocab,
        .n_top_logprobs = 3,
        .n_layers = golden_arch.n_layers,
    };
}

static void attach(struct run *t, uint32_t group)
{
    struct group *g = &t->groups[group];
    struct err e = ERR_INIT;
    if (g->engine)
        return;
    if (sched_attach(t->s, group, &g->limits, g->n_stages, ++t->epoch, &e) < 0)
        fail_msg("%s", e.message);
    g->engine = fake_engine_new(&g->limits);
}

static void detach(struct run *t, uint32_t group)
{
    struct group *g = &t->groups[group];
    if (!g->engine)
        return;
    sched_detach(t->s, group, "a rank was lost");
    g->n_pending = 0;
    fake_engine_free(g->engine);
    g->engine = NULL;
    collect(t);
    check(t, sched_consistent(t->s), "accounts do not balance after a detach");
    if (rnd(4) == 0)
        random_limits(g); /* it comes back as another one */
}

static bool plan(struct run *t, uint32_t group)
{
    const struct plan *p;
    struct group *g = &t->groups[group];
    if (!g->engine || g->n_pending == g->max_pending || !sched_plan(t->s, group, t->now, &p))
        return false;
    const struct step_result *result = fake_engine_step(g->engine, p);
    totals.n_slices += p->layer_end != 0;
    t->trace = t->trace * 31 + result->state_hash;
    g->pending[g->n_pending++] = result;
    return true;
}

static bool commit(struct run *t, uint32_t group)
{
    struct group *g = &t->groups[group];
    if (g->n_pending == 0)
        return false;
    struct err e = ERR_INIT;
    if (sched_commit(t->s, group, g->pending[0], t->now, &e) < 0)
        fail_msg("%s", e.message);
    g->n_pending--;
    for (uint32_t i = 0; i != g->n_pending; i++)
        g->pending[i] = g->pending[i + 1];
    return true;
}

static void random_action(struct run *t)
{
    uint32_t what = rnd(100), group = rnd(t->n_groups);
    if (what < 12) {
        submit(t);
    } else if (what < 14 && t->n_live) {
        sched_end(t->s, t->live[rnd(t->n_live)].request, RPC_CANCELLED, "the client went away");
    } else if (what < 18 && t->n_live) {
        struct request *r = t->live[rnd(t->n_live)].request;
        sched_pause(t->s, r, !r->paused);
    } else if (what < 19 && rnd(3) == 0) {
        detach(t, group);
    } else if (what < 20) {
        attach(t, group);
    } else if (what < 60) {
        plan(t, group);
    } else {
        commit(t, group);
    }
    t->now += NSEC_PER_MSEC;
    sched_expire(t->s, t->now);
}

/* Runs until nothing is left: every request must end. */
static void drain(struct run *t)
{
    for (uint32_t i = 0; i != t->n_groups; i++)
        attach(t, i);
    for (uint32_t i = 0; i != t->n_live; i++)
        sched_pause(t->s, t->live[i].request, false);
    uint32_t n_steps = 0;
    for (bool any = true; any;) {
        any = false;
        for (uint32_t i = 0; i != t->n_groups; i++)
            any = plan(t, i) || commit(t, i) || any;
        collect(t);
        check(t, sched_consistent(t->s), "accounts do not balance while draining");
        t->now += NSEC_PER_MSEC;
        check(t, ++n_steps < 100000, "requests do not end");
    }
    collect(t);
    check(t, t->n_live == 0, "requests are left, but there is nothing to plan");
    check(t, sched_n_requests(t->s) == 0, "the scheduler holds requests that have ended");
}

static void add_stats(const struct sched_stats *stats)
{
    struct sched_stats *sum = &totals.stats;
    sum->n_resumed += stats->n_resumed;
    sum->n_hits += stats->n_hits;
    sum->n_preempted += stats->n_preempted;
    sum->n_discarded += stats->n_discarded;
    sum->n_steps += stats->n_steps;
}

static uint64_t run_seed(uint64_t seed, uint32_t n_actions)
{
    struct run t = {.seed = seed, .now = NSEC_PER_SEC};
    fixture_random = seed * 2654435761u + 1;
    struct arch arch = golden_arch;
    if (rnd(3) == 0)
        arch.context = ARCH_CONTEXT_CAUSAL;
    struct sched_config config = {
        .arch = &arch,
        .max_queue = 12,
        .max_queue_tokens = rnd(4) ? 0 : 200,
        .max_wait_ns = rnd(4) ? 0 : 100 * NSEC_PER_MSEC,
        .prefill_budget_ns = (1 + rnd(12)) * NSEC_PER_MSEC,
        .slices = rnd(3) != 0,
    };
    assert_int_equal(sched_new(&config, &t.s), 0);
    t.n_groups = 1 + rnd(MAX_GROUPS);
    for (uint32_t i = 0; i != t.n_groups; i++)
        random_limits(&t.groups[i]);
    submit(&t); /* waits for the first group */
    attach(&t, 0);
    for (uint32_t i = 0; i != n_actions; i++) {
        random_action(&t);
        collect(&t);
        check(&t, sched_consistent(t.s), "accounts do not balance");
    }
    drain(&t);
    struct sched_stats stats;
    sched_stats(t.s, &stats);
    check(&t, stats.n_blocks_used == 0 && stats.n_slots_used == 0, "memory is left in use");
    add_stats(&stats);
    for (uint32_t i = 0; i != t.n_groups; i++)
        detach(&t, i);
    sched_free(t.s);
    return t.trace;
}

static uint64_t first_seed(void)
{
    const char *text = getenv("GLMD_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

static void test_random_interleavings(void **state)
{
    (void)state;
    enum { N_SEEDS = 300 };
    totals = (struct totals){0};
    for (uint64_t seed = first_seed(); seed != first_seed() + N_SEEDS; seed++)
        run_seed(seed, 400);
    const struct sched_stats *sum = &totals.stats;
    printf(
        "%d seeds from %llu: %u requests equal to the reference, %u ended otherwise; %llu steps, "
        "%u with slices, %llu discarded items, %llu resumed, %llu preempted, %llu cache hits\n",
        N_SEEDS, (unsigned long long)first_seed(), totals.n_ok, totals.n_ended,
        (unsigned long long)sum->n_steps, totals.n_slices, (unsigned long long)sum->n_discarded,
        (unsigned long long)sum->n_resumed, (unsigned long long)sum->n_preempted,
        (unsigned long long)sum->n_hits);
    assert_true(sum->n_hits > 300);
    assert_true(sum->n_preempted > 100);
    assert_true(totals.n_ok > 3000);
    assert_true(sum->n_resumed > 100 && sum->n_discarded > 100 && totals.n_slices > 1000);
}

static void test_same_seed_same_plans(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed != 20; seed++) {
        uint64_t a = run_seed(seed, 300), b = run_seed(seed, 300);
        if (a != b)
            fail_msg("seed %llu: traces %llx and %llx", (unsigned long long)seed,
                     (unsigned long long)a, (unsigned long long)b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed_same_plans),
        cmocka_unit_test(test_random_interleavings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
