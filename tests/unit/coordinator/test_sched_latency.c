/* test_sched_latency.c: the bound on the time between two tokens of a stream, on a virtual clock: a
 * device that takes what its steps cost, and a scheduler that has one step more out than runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "sched_fixture.h"

enum { N_STREAMS = 16, LONG_PROMPT = 2048 };

#define DECODE_NS (50 * NSEC_PER_MSEC) /* a step of decodes */
#define WORK_NS   (20 * NSEC_PER_USEC) /* a prompt's token in one layer */
#define BUDGET_NS (100 * NSEC_PER_MSEC)

static struct arch arch; /* 70 layers, as GLM-130B has */

static const struct plan_limits limits = {
    .n_slots = 24,
    .n_blocks = 2048,
    .max_tokens = 2048, /* less than the long prompt beside the decodes */
    .max_seq = 4096,
    .vocab = 640,
    .n_layers = 70,
};

struct device {
    struct sched *s;
    struct fake_engine *engine;
    const struct step_result *results[2];
    int64_t done_ns[2]; /* when the steps that are out will be over */
    uint32_t n_out;
    int64_t now, free_ns;
    uint32_t n_sliced; /* plans with slices */
    uint64_t n_steps;
};

static int64_t cost_of(const struct plan *p)
{
    int64_t work = 0;
    bool decodes = false;
    for (uint32_t i = 0; i != p->n_items; i++) {
        const struct plan_item *it = &p->items[i];
        int64_t n_layers = it->sliced ? p->layer_end - p->layer_begin : limits.n_layers;
        if (it->start > 0 && it->n_tokens == 1)
            decodes = true;
        else
            work += (int64_t)it->n_tokens * n_layers;
    }
    return (decodes ? DECODE_NS : 0) + work * WORK_NS;
}

static void plan_all(struct device *d)
{
    const struct plan *p;
    while (sched_plan(d->s, 0, d->now, &p)) {
        d->n_sliced += p->layer_end != 0;
        d->n_steps++;
        d->free_ns = MAX(d->free_ns, d->now) + cost_of(p);
        d->done_ns[d->n_out] = d->free_ns;
        d->results[d->n_out++] = fake_engine_step(d->engine, p);
    }
}

/* The next step that is out is over. */
static void run_step(struct device *d)
{
    struct err e = ERR_INIT;
    plan_all(d);
    assert_true(d->n_out > 0);
    d->now = d->done_ns[0];
    assert_int_equal(sched_commit(d->s, 0, d->results[0], d->now, &e), 0);
    d->n_out--;
    d->done_ns[0] = d->done_ns[1];
    d->results[0] = d->results[1];
}

static struct request *new_stream(struct device *d, uint32_t n_prompt, uint32_t max_new)
{
    struct request *r = request_new(REQUEST_GENERATE);
    struct token_list ids = {0};
    struct err e = ERR_INIT;
    for (uint32_t i = 0; i + 2 < n_prompt; i++)
        token_list_append(&ids, 100);
    assert_int_equal(prompt_from_ids(&arch, ids.ids, ids.n, 4096, &r->prompt, &e), 0);
    token_list_deinit(&ids);
    r->params = (struct request_params){
        .temperature = 1, .top_k = 1, .n_choices = 1, .max_new = max_new, .ignore_end = true};
    assert_int_equal(sched_submit(d->s, r, &e), 0);
    return r;
}

static void open_device(struct device *d, bool slices)
{
    arch = golden_arch;
    arch.n_layers = limits.n_layers;
    arch.max_seq = limits.max_seq;
    struct sched_config config = {
        .arch = &arch, .max_queue = 64, .prefill_budget_ns = BUDGET_NS, .slices = slices};
    struct err e = ERR_INIT;
    *d = (struct device){.now = NSEC_PER_SEC, .engine = fake_engine_new(&limits)};
    assert_int_equal(sched_new(&config, &d->s), 0);
    assert_int_equal(sched_attach(d->s, 0, &limits, 1, 1, &e), 0);
}

static void close_device(struct device *d)
{
    for (struct request *r; (r = sched_next_touched(d->s));)
        request_free(r);
    sched_free(d->s);
    fake_engine_free(d->engine);
}

/* The longest time between two tokens of the streams while the device goes on until `last` has its
 * first token. */
static int64_t longest_gap(struct device *d, struct request *const *streams, uint32_t n,
                           const struct request *last)
{
    int64_t gap = 0, token_ns[N_STREAMS];
    size_t n_tokens[N_STREAMS];
    for (uint32_t i = 0; i != n; i++) {
        token_ns[i] = d->now;
        n_tokens[i] = streams[i]->outputs[0].tokens.n;
    }
    while (last->n_completion_tokens < 3) {
        run_step(d);
        for (uint32_t i = 0; i != n; i++) {
            if (streams[i]->outputs[0].tokens.n != n_tokens[i]) {
                gap = MAX(gap, d->now - token_ns[i]);
                token_ns[i] = d->now;
                n_tokens[i] = streams[i]->outputs[0].tokens.n;
            }
        }
    }
    return gap;
}

static void run_case(uint32_t n_prompt, bool measured, bool slices, int64_t bound_ns)
{
    struct device d;
    struct request *streams[N_STREAMS];
    open_device(&d, slices);
    for (uint32_t i = 0; i != N_STREAMS; i++)
        streams[i] = new_stream(&d, 10, 1000);
    for (uint32_t i = 0; i != (measured ? 20 : 2); i++)
        run_step(&d);
    struct request *r = new_stream(&d, n_prompt, 20);
    int64_t start = d.now, gap = longest_gap(&d, streams, N_STREAMS, r);
    printf("prompt of %u tokens beside %d streams: first token after %.2f s, longest gap %.0f ms, "
           "bound %.0f ms, %u sliced steps\n",
           n_prompt, N_STREAMS, (double)(r->first_token_ns - start) / 1e9, (double)gap / 1e6,
           (double)bound_ns / 1e6, d.n_sliced);
    if (slices && gap > bound_ns)
        fail_msg("expected gaps of at most %lld ns, found %lld", (long long)bound_ns,
                 (long long)gap);
    if (!slices && gap <= bound_ns)
        fail_msg("expected a gap above %lld ns without slices, found %lld", (long long)bound_ns,
                 (long long)gap);
    sched_end(d.s, r, RPC_CANCELLED, "enough");
    for (uint32_t i = 0; i != N_STREAMS; i++)
        sched_end(d.s, streams[i], RPC_CANCELLED, "enough");
    close_device(&d);
}

static void test_gap_beside_a_long_prompt(void **state)
{
    (void)state;
    const int64_t granule = LONG_PROMPT * WORK_NS, bound = DECODE_NS + BUDGET_NS + granule;
    run_case(LONG_PROMPT, true, true, bound);
    run_case(LONG_PROMPT - 100, true, true, bound); /* has room beside the decodes */
    run_case(LONG_PROMPT, false, true, bound);      /* costs are hardly known yet */
    run_case(LONG_PROMPT, true, false, bound);      /* the test can fail */
}

/* Each of many prompts brings a budget, so that all begin within a few steps; a few bring few. */
static void many_prompts(uint32_t n_prompts, uint32_t n_budgets, uint32_t max_steps)
{
    struct device d;
    struct request *streams[4], *r = NULL;
    open_device(&d, true);
    for (uint32_t i = 0; i != 4; i++)
        streams[i] = new_stream(&d, 10, 1000);
    for (uint32_t i = 0; i != 10; i++)
        run_step(&d);
    uint64_t first_step = d.n_steps;
    for (uint32_t i = 0; i != n_prompts; i++)
        r = new_stream(&d, 60, 10); /* 84 ms each */
    int64_t gap = longest_gap(&d, streams, 4, r);
    int64_t bound = DECODE_NS + n_budgets * BUDGET_NS + 60 * WORK_NS;
    uint64_t n_steps = d.n_steps - first_step;
    printf("%u prompts of 60 tokens beside 4 streams: longest gap %.0f ms, bound %.0f ms; %llu "
           "steps until the last had three tokens, bound %u\n",
           n_prompts, (double)gap / 1e6, (double)bound / 1e6, (unsigned long long)n_steps,
           max_steps);
    assert_true(gap <= bound);
    assert_true(n_steps <= max_steps);
    for (uint32_t i = 0; i != 4; i++)
        sched_end(d.s, streams[i], RPC_CANCELLED, "enough");
    while (sched_n_requests(d.s))
        run_step(&d);
    close_device(&d);
}

static void test_gap_beside_many_prompts(void **state)
{
    (void)state;
    /* One step is out when they come, two more follow the first token. */
    many_prompts(1, 1, 1 + 1 + 2);
    many_prompts(3, 3, 1 + 1 + 2);
    many_prompts(20, SCHED_MAX_BUDGETS, 1 + 2 + 2);
}

/* Scores of many requests at once share one budget. */
static void test_gap_beside_scores(void **state)
{
    (void)state;
    struct device d;
    struct err e = ERR_INIT;
    struct request *stream, *last = NULL;
    open_device(&d, true);
    stream = new_stream(&d, 10, 1000);
    for (uint32_t i = 0; i != 10; i++)
        run_step(&d);
    for (uint32_t i = 0; i != 12; i++) {
        struct request *r = request_new(REQUEST_SCORE);
        int32_t ids[10];
        for (uint32_t k = 0; k != 10; k++)
            ids[k] = 100;
        assert_int_equal(prompt_from_ids(&arch, ids, 10, 4096, &r->prompt, &e), 0);
        r->params = stream->params;
        r->n_choices_scored = 1;
        r->choices = calloc(1, sizeof *r->choices);
        for (uint32_t k = 0; k != 60; k++)
            token_list_append(&r->choices[0], 100);
        assert_int_equal(sched_submit(d.s, r, &e), 0);
        last = r;
    }
    int64_t gap = 0, token_ns = d.now;
    for (size_t n = stream->outputs[0].tokens.n; last->state != REQUEST_DONE;) {
        run_step(&d);
        if (stream->outputs[0].tokens.n != n) {
            gap = MAX(gap, d.now - token_ns);
            token_ns = d.now;
            n = stream->outputs[0].tokens.n;
        }
    }
    int64_t bound = DECODE_NS + BUDGET_NS + 60 * WORK_NS;
    printf("12 scores of 60 tokens beside a stream: longest gap %.0f ms, bound %.0f ms\n",
           (double)gap / 1e6, (double)bound / 1e6);
    assert_true(gap <= bound);
    sched_end(d.s, stream, RPC_CANCELLED, "enough");
    close_device(&d);
}

/* With nobody to disturb, a prompt runs in one step; the rest of a sliced one, too. */
static void test_no_slices_without_streams(void **state)
{
    (void)state;
    struct device d;
    open_device(&d, true);
    struct request *stream = new_stream(&d, 100, 1000);
    run_step(&d);
    assert_int_equal(d.n_sliced, 0);
    struct request *r = new_stream(&d, 1500, 4);
    run_step(&d);
    run_step(&d);
    run_step(&d);
    assert_true(d.n_sliced > 0);
    uint32_t n = d.n_sliced;
    sched_end(d.s, stream, RPC_CANCELLED, "gone");
    while (r->n_completion_tokens == 0)
        run_step(&d);
    assert_int_equal(d.n_sliced, n + 1);
    while (sched_n_requests(d.s))
        run_step(&d);
    close_device(&d);
}

/* Even where a single token costs more than the budget, everything goes on. */
static void test_tiny_budget(void **state)
{
    (void)state;
    struct device d;
    open_device(&d, true);
    sched_free(d.s);
    struct sched_config config = {
        .arch = &arch, .max_queue = 64, .prefill_budget_ns = 1, .slices = true};
    struct err e = ERR_INIT;
    assert_int_equal(sched_new(&config, &d.s), 0);
    assert_int_equal(sched_attach(d.s, 0, &limits, 1, 1, &e), 0);
    struct request *stream = new_stream(&d, 100, 1000);
    for (uint32_t i = 0; i != 5; i++)
        run_step(&d);
    struct request *r[4];
    for (uint32_t i = 0; i != 4; i++) {
        r[i] = request_new(i == 0 ? REQUEST_SCORE : REQUEST_GENERATE);
        int32_t ids[40];
        for (uint32_t k = 0; k != 40; k++)
            ids[k] = (int32_t)(100 + i);
        assert_int_equal(i == 3 ? prompt_unidirectional(&arch, ids, 40, 4096, &r[i]->prompt, &e)
                                : prompt_from_ids(&arch, ids, 40, 4096, &r[i]->prompt, &e),
                         0);
        r[i]->params = stream->params;
        r[i]->params.max_new = 3;
        r[i]->params.n_choices = i == 1 ? 3 : 1;
        r[i]->params.beam = i == 2;
        r[i]->params.n_beams = 4;
    }
    r[0]->n_choices_scored = 3;
    r[0]->choices = calloc(3, sizeof *r[0]->choices);
    for (uint32_t i = 0; i != 3; i++) {
        for (uint32_t k = 0; k != 5; k++)
            token_list_append(&r[0]->choices[i], 100);
    }
    for (uint32_t i = 0; i != 4; i++)
        assert_int_equal(sched_submit(d.s, r[i], &e), 0);
    while (sched_n_requests(d.s) > 1)
        run_step(&d); /* the stream is the longest by far */
    assert_int_equal(stream->state, REQUEST_RUNNING);
    for (uint32_t i = 0; i != 4; i++)
        assert_int_equal(r[i]->status, RPC_OK);
    sched_end(d.s, stream, RPC_CANCELLED, "enough");
    close_device(&d);
}

/* A sliced prompt whose client goes away leaves nothing behind. */
static void test_cancelled_slices(void **state)
{
    (void)state;
    struct device d;
    open_device(&d, true);
    struct request *stream = new_stream(&d, 100, 1000);
    for (uint32_t i = 0; i != 5; i++)
        run_step(&d);
    struct request *a = new_stream(&d, 1500, 4), *b = new_stream(&d, 1600, 4);
    for (uint32_t i = 0; i != 6; i++)
        run_step(&d);
    assert_int_equal(a->n_completion_tokens, 0);
    sched_end(d.s, a, RPC_CANCELLED, "gone");
    assert_true(sched_consistent(d.s));
    while (b->state != REQUEST_DONE)
        run_step(&d);
    assert_int_equal(b->status, RPC_OK);
    sched_end(d.s, stream, RPC_CANCELLED, "enough");
    close_device(&d);
}

/* ---- --bench: what a step costs the coordinator ---- */

enum { BENCH_STREAMS = 64, BENCH_STEPS = 5000, BENCH_WAITING = 1000 };

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* Plans and commits steps of 64 streams, two out at a time, while others wait in the queue. */
static void bench(const char *what, void (*change)(struct request *r))
{
    struct plan_limits l = limits;
    l.n_slots = BENCH_STREAMS;
    l.n_blocks = 1 << 16;
    arch = golden_arch;
    arch.n_layers = l.n_layers;
    arch.max_seq = l.max_seq;
    struct sched_config config = {.arch = &arch, .max_queue = 2 * BENCH_WAITING};
    struct device d = {.now = NSEC_PER_SEC};
    struct err e = ERR_INIT;
    assert_int_equal(sched_new(&config, &d.s), 0);
    assert_int_equal(sched_attach(d.s, 0, &l, 1, 1, &e), 0);
    for (uint32_t i = 0; i != BENCH_STREAMS + BENCH_WAITING; i++) {
        struct request *r = new_stream(&d, 500, 600);
        r->params.top_k = 0;
        r->tenant = i % 50;
        change(r);
    }
    static struct result_item memory[3][BENCH_STREAMS]; /* of the steps that are out */
    struct step_result results[2];
    uint64_t n_items = 0;
    int64_t start = cpu_ns();
    for (uint32_t step = 0; step != BENCH_STEPS; step++) {
        const struct plan *p;
        while (d.n_out != 2 && sched_plan(d.s, 0, d.now, &p)) {
            struct result_item *items = memory[p->step % 3];
            for (uint32_t i = 0; i != p->n_items; i++)
                items[i] = (struct result_item){
                    .slot = p->items[i].slot, .slot_gen = p->items[i].slot_gen, .token = 100};
            results[d.n_out++] = (struct step_result){
                .epoch = p->epoch, .step = p->step, .items = items, .n_items = p->n_items};
            n_items += p->n_items;
        }
        d.now += NSEC_PER_MSEC;
        if (sched_commit(d.s, 0, &results[0], d.now, &e) < 0) {
            fprintf(stderr, "%s\n", e.message);
            exit(1);
        }
        results[0] = results[1];
        d.n_out--;
        for (struct request *r; (r = sched_next_touched(d.s));) {
            if (r->state == REQUEST_DONE)
                request_free(r);
        }
    }
    int64_t taken = cpu_ns() - start;
    printf("%s: %.1f us of CPU in a step, %.1f sequences each\n", what,
           (double)taken / BENCH_STEPS / 1e3, (double)n_items / BENCH_STEPS);
}

static void change_nothing(struct request *r)
{
    (void)r;
}

static void change_penalties(struct request *r)
{
    r->params.presence_penalty = 0.5f;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench("64 streams", change_nothing);
        bench("64 streams with penalties", change_penalties);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gap_beside_a_long_prompt),
        cmocka_unit_test(test_gap_beside_many_prompts),
        cmocka_unit_test(test_gap_beside_scores),
        cmocka_unit_test(test_no_slices_without_streams),
        cmocka_unit_test(test_tiny_budget),
        cmocka_unit_test(test_cancelled_slices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
