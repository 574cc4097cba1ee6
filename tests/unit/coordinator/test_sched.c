/* test_sched.c: single cases of the scheduler; test_sched_groups.c has those with groups that come
 * and go, test_sched_random.c all of them at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/sched.h"
#include "fake_engine.h"
#include "reference.h"
#include "sched_fixture.h"

static void test_queue_is_bounded(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(NULL);
    struct err e = ERR_INIT;
    struct request *r[3];
    for (int i = 0; i != 3; i++)
        r[i] = fixture_request(10, 5);
    assert_int_equal(fixture_submit(s, r[0], &e), 0);
    assert_int_equal(fixture_submit(s, r[1], &e), 0);
    assert_int_equal(fixture_submit(s, r[2], &e), -ENOBUFS);
    assert_non_null(strstr(e.message, "2 requests wait"));
    request_free(r[2]);
    for (int i = 0; i != 2; i++)
        sched_end(s, r[i], RPC_CANCELLED, "test");
    fixture_finish(s);
}

static void expect_refused(struct request *r, const char *word)
{
    struct sched *s = fixture_sched(&fixture_small);
    struct err e = ERR_INIT;
    assert_int_equal(fixture_submit(s, r, &e), -E2BIG);
    if (!strstr(e.message, word))
        fail_msg("expected \"%s\" in \"%s\"", word, e.message);
    request_free(r);
    /* the same while no group is there: it ends when the group turns out to be too fixture_small */
    fixture_finish(s);
}

static void test_what_can_never_run_is_refused(void **state)
{
    (void)state;
    struct request *r = fixture_request(200, 100);
    expect_refused(r, "at most 256 tokens");
    r = fixture_request(20, 10);
    r->params.n_choices = 5;
    expect_refused(r, "worker.slots");
    r = fixture_request(100, 100);
    r->params.n_choices = 4;
    expect_refused(r, "KV blocks");
    r = fixture_request(20, 10);
    r->params.n_top_logprobs = 1;
    expect_refused(r, "top_logprobs");
}

static void test_waiting_request_ends_when_group_is_too_small(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(NULL);
    struct request *r = fixture_request(20, 10);
    r->params.n_choices = 5;
    struct err e = ERR_INIT;
    assert_int_equal(fixture_submit(s, r, &e), 0);
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 1, &e), 0);
    assert_ptr_equal(sched_next_touched(s), r);
    assert_int_equal(r->state, REQUEST_DONE);
    assert_int_equal(r->status, RPC_INVALID_ARGUMENT);
    fixture_finish(s);
}

static void test_group_with_other_sizes_is_refused(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(NULL);
    struct plan_limits l = fixture_small;
    struct err e = ERR_INIT;
    l.vocab = 641;
    assert_int_equal(sched_attach(s, 0, &l, 1, 1, &e), -EINVAL);
    l = fixture_small;
    l.max_tokens = 3;
    assert_int_equal(sched_attach(s, 0, &l, 1, 1, &e), -EINVAL);
    l = fixture_small;
    l.n_blocks = 0;
    assert_int_equal(sched_attach(s, 0, &l, 1, 1, &e), -EINVAL);
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 1, &e), 0);
    fixture_finish(s);
}

static void test_deadline_in_queue_and_running(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct err e = ERR_INIT;
    struct request *running = fixture_request(100, 150), *waiting = fixture_request(100, 100);
    running->deadline_ns = 50;
    waiting->deadline_ns = 20;
    waiting->params.n_choices = 2; /* needs more blocks than are left */
    running->params.n_choices = 2;
    assert_int_equal(fixture_submit(s, running, &e), 0);
    assert_int_equal(fixture_submit(s, waiting, &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 1, &p));
    assert_int_equal(p->n_items, 1);
    assert_int_equal(waiting->state, REQUEST_QUEUED);
    assert_int_equal(sched_expire(s, 19), 20);
    assert_int_equal(sched_expire(s, 20), 50);
    assert_int_equal(waiting->status, RPC_DEADLINE_EXCEEDED);
    assert_int_equal(sched_expire(s, 50), 0);
    assert_int_equal(running->status, RPC_DEADLINE_EXCEEDED);
    assert_true(sched_consistent(s));
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_blocks_used, 0);
    fixture_finish(s);
}

static void test_next_step_runs_ahead(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct fake_engine *f = fake_engine_new(&fixture_small);
    struct err e = ERR_INIT;
    struct request *r = fixture_request(10, 3);
    struct buf expected = {0};
    reference_run(&golden_arch, r, &expected);
    assert_int_equal(fixture_submit(s, r, &e), 0);
    const struct plan *p;
    const struct step_result *results[3];
    assert_true(sched_plan(s, 0, 1, &p));
    results[0] = fake_engine_step(f, p);
    assert_true(sched_plan(s, 0, 1, &p));
    assert_int_equal(p->items[0].n_tokens, 1);
    assert_int_equal(p->items[0].tokens[0], PLAN_TOKEN_PREVIOUS);
    assert_int_equal(p->items[0].sampling.output_index, 1);
    results[1] = fake_engine_step(f, p);
    assert_false(sched_plan(s, 0, 1, &p)); /* two are out */
    assert_int_equal(sched_commit(s, 0, results[0], 2, &e), 0);
    assert_true(sched_plan(s, 0, 2, &p));
    results[2] = fake_engine_step(f, p);
    assert_int_equal(sched_commit(s, 0, results[1], 3, &e), 0);
    assert_false(sched_plan(s, 0, 3, &p)); /* the third token, which is out, is the last */
    assert_int_equal(sched_commit(s, 0, results[2], 4, &e), 0);
    fixture_expect(r, expected.data);
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_discarded, 0);
    buf_deinit(&expected);
    fixture_finish(s);
    fake_engine_free(f);
}

static int stop_at_once(void *context, struct request *r, uint32_t output)
{
    (void)context;
    output_stop(&r->outputs[output], 1, 0);
    return 0;
}

/* A sequence ends while its next token is out; slot and blocks serve another one at once. */
static void test_memory_of_a_discarded_token_is_given_away(void **state)
{
    (void)state;
    struct plan_limits l = fixture_small;
    l.n_slots = 1;
    l.n_blocks = 2;
    struct sched *s = fixture_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    struct request *first = fixture_request(10, 20), *second = fixture_request(12, 4);
    struct buf expected = {0};
    reference_run(&golden_arch, second, &expected);
    first->watch = stop_at_once;
    assert_int_equal(fixture_submit(s, first, &e), 0);
    assert_int_equal(fixture_submit(s, second, &e), 0);
    const struct plan *p;
    const struct step_result *results[3];
    for (int i = 0; i != 2; i++) {
        assert_true(sched_plan(s, 0, 1, &p));
        results[i] = fake_engine_step(f, p);
    }
    uint32_t gen = p->items[0].slot_gen, block = p->items[0].blocks[0];
    assert_int_equal(sched_commit(s, 0, results[0], 2, &e), 0);
    assert_int_equal(first->outputs[0].tokens.n, 1);
    assert_int_equal(first->state, REQUEST_DONE);
    assert_true(sched_plan(s, 0, 2, &p)); /* the discarded token's step is still out */
    assert_int_equal(p->n_items, 1);
    assert_int_equal(p->items[0].n_tokens, 12);
    assert_int_equal(p->items[0].slot_gen, gen + 1);
    assert_int_equal(p->items[0].blocks[0], block);
    results[2] = fake_engine_step(f, p);
    assert_int_equal(sched_commit(s, 0, results[1], 3, &e), 0);
    assert_int_equal(first->n_completion_tokens, 1);
    assert_int_equal(sched_commit(s, 0, results[2], 3, &e), 0);
    while (sched_plan(s, 0, 4, &p))
        assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 4, &e), 0);
    fixture_expect(second, expected.data);
    struct sched_stats stats;
    sched_stats(s, &stats);
    assert_int_equal(stats.n_discarded, 1);
    buf_deinit(&expected);
    fixture_finish(s);
    fake_engine_free(f);
}

static void test_long_prefill_does_not_starve(void **state)
{
    (void)state;
    struct plan_limits l = fixture_small;
    l.max_tokens = 100;
    struct sched *s = fixture_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    assert_int_equal(fixture_submit(s, fixture_request(10, 100), &e), 0);
    assert_int_equal(fixture_submit(s, fixture_request(10, 100), &e), 0);
    fixture_step(s, 0, f, 1);
    /* A prefix of 99 tokens does not fit beside two decodes: it gets a step of its own. */
    assert_int_equal(fixture_submit(s, fixture_request(100, 20), &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 2, &p));
    assert_int_equal(p->n_items, 1);
    assert_int_equal(p->items[0].n_tokens, 100);
    assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 2, &e), 0);
    assert_true(sched_plan(s, 0, 3, &p));
    assert_int_equal(p->n_items, 3); /* all decode */
    assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 3, &e), 0);
    fixture_finish(s);
    fake_engine_free(f);
}

/* Prompts of a causal model run in parts, those of a Fill, too: it need not fit one step. */
static void test_causal_fill_is_cut(void **state)
{
    (void)state;
    struct arch causal = golden_arch;
    causal.context = ARCH_CONTEXT_CAUSAL;
    struct plan_limits l = fixture_small;
    l.max_tokens = 32;
    const struct arch *const models[] = {&golden_arch, &causal};
    for (int i = 0; i != 2; i++) {
        struct sched_config config = {.arch = models[i], .max_queue = 2};
        struct sched *s;
        struct err e = ERR_INIT;
        assert_int_equal(sched_new(&config, &s), 0);
        assert_int_equal(sched_attach(s, 0, &l, 1, 1, &e), 0);
        struct request *r = fixture_request(20, 5);
        r->kind = REQUEST_FILL;
        r->params.max_length = 60;
        int code = fixture_submit(s, r, &e);
        if (code != (i ? 0 : -E2BIG))
            fail_msg("model %d: submit gives %d: %s", i, code, e.message);
        if (code < 0)
            request_free(r);
        fixture_finish(s);
    }
}

/* Without a prefix a prompt may be cut anywhere: it takes what room the decodes leave. */
static void test_causal_prompt_is_cut(void **state)
{
    (void)state;
    struct plan_limits l = fixture_small;
    l.max_tokens = 32;
    struct sched *s = fixture_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    struct request *r = fixture_request(100, 5);
    r->prompt.prefix_len = 0;
    struct buf expected = {0};
    reference_run(&golden_arch, r, &expected);
    assert_int_equal(fixture_submit(s, fixture_request(10, 50), &e), 0);
    fixture_step(s, 0, f, 1);
    assert_int_equal(fixture_submit(s, r, &e), 0);
    const struct plan *p;
    for (uint32_t start = 0; start != 100; start += p->items[1].n_tokens) {
        assert_true(sched_plan(s, 0, 2, &p));
        assert_int_equal(p->n_items, 2);
        assert_int_equal(p->items[1].start, start);
        assert_int_equal(p->items[1].n_tokens, MIN(31u, 100 - start));
        assert_int_equal(p->items[1].output,
                         start + 31 < 100 ? PLAN_OUTPUT_NONE : PLAN_OUTPUT_SAMPLE);
        assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 2, &e), 0);
    }
    while (r->state != REQUEST_DONE)
        fixture_step(s, 0, f, 3);
    fixture_expect(r, expected.data);
    buf_deinit(&expected);
    fixture_finish(s);
    fake_engine_free(f);
}

static void spoil(struct sched *s, struct step_result *r, int how, struct result_item *item)
{
    (void)s;
    switch (how) {
    case 0:
        r->step++;
        break;
    case 1:
        r->epoch--;
        break;
    case 2:
        r->n_items = 0;
        break;
    case 3:
        item->slot_gen++;
        break;
    case 4:
        item->token = 640;
        break;
    case 5:
        item->token = -1;
        break;
    case 6:
        item->n_scores = 1;
        break;
    case 7:
        item->n_top = 5;
        break;
    case 8:
        r->n_groups = 1;
        break;
    }
}

static void test_wrong_results_are_refused(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct fake_engine *f = fake_engine_new(&fixture_small);
    struct err e = ERR_INIT;
    assert_int_equal(fixture_submit(s, fixture_request(10, 20), &e), 0);
    const struct plan *p;
    assert_true(sched_plan(s, 0, 1, &p));
    const struct step_result *good = fake_engine_step(f, p);
    for (int how = 0; how != 9; how++) {
        struct result_item item = good->items[0];
        struct step_result bad = *good;
        bad.items = &item;
        spoil(s, &bad, how, &item);
        int code = sched_commit(s, 0, &bad, 1, &e);
        if (code != -EBADMSG)
            fail_msg("case %d: expected %d, found %d", how, -EBADMSG, code);
    }
    assert_int_equal(sched_commit(s, 0, good, 1, &e), 0);
    assert_int_equal(sched_commit(s, 0, good, 1, &e), -EBADMSG); /* none is out */
    fixture_finish(s);
    fake_engine_free(f);
}

/* A choice longer than a step comes in parts: each brings the best tokens of its rows. */
static void test_best_tokens_of_a_score_in_parts(void **state)
{
    (void)state;
    enum { N = 150, TOP = 3 };
    struct plan_limits l = fixture_small;
    l.max_tokens = 64;
    l.n_top_logprobs = TOP;
    struct sched *s = fixture_sched(&l);
    struct fake_engine *f = fake_engine_new(&l);
    struct err e = ERR_INIT;
    struct request *r = fixture_request(3, 1);
    r->kind = REQUEST_SCORE;
    r->prompt.prefix_len = 0;
    r->params.n_top_logprobs = TOP;
    r->n_choices_scored = 1;
    r->choices = calloc(1, sizeof *r->choices);
    for (int32_t k = 0; k != N; k++)
        token_list_append(&r->choices[0], 100 + k);
    assert_int_equal(fixture_submit(s, r, &e), 0);
    const struct plan *p;
    unsigned n_steps = 0;
    for (; sched_plan(s, 0, 1, &p); n_steps++)
        assert_int_equal(sched_commit(s, 0, fake_engine_step(f, p), 1, &e), 0);
    assert_int_equal(r->state, REQUEST_DONE);
    assert_int_equal(r->status, RPC_OK);
    assert_true(n_steps >= 3);
    for (int32_t k = 0; k != N * TOP; k++) { /* the fake's: the target and those behind it */
        assert_int_equal(r->outputs[0].best_tokens[k], 100 + k / TOP + k % TOP);
        assert_true(r->outputs[0].best_logprobs[k] == -(float)(k % TOP));
    }
    fixture_finish(s);
    fake_engine_free(f);
}

/* The next step, run and committed; it has one item. */
static const struct plan_item *step_of(struct sched *s, struct fake_engine *engine, int64_t now_ns)
{
    const struct plan *p;
    struct err e = ERR_INIT;
    assert_true(sched_plan(s, 0, now_ns, &p));
    assert_int_equal(p->n_items, 1);
    static struct plan_item item; /* as it was when the plan was made */
    item = p->items[0];
    assert_int_equal(sched_commit(s, 0, fake_engine_step(engine, p), now_ns, &e), 0);
    return &item;
}

static void expect_history(const struct plan_item *it, uint32_t n_kept, uint32_t n_new)
{
    if (it->sampling.n_history_kept != n_kept || it->sampling.n_history != n_new)
        fail_msg("expected %u ids kept and %u sent, found %u and %u", n_kept, n_new,
                 it->sampling.n_history_kept, it->sampling.n_history);
    assert_int_equal(it->sampling.n_history_prompt, 20);
}

/* Penalized decodes bring the newest token alone; whoever begins again, all of them. */
static void test_history_is_sent_once(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct fake_engine *engine = fake_engine_new(&fixture_small);
    struct err e = ERR_INIT;
    struct request *r = fixture_request(20, 40);
    r->params.presence_penalty = 0.5f;
    assert_int_equal(fixture_submit(s, r, &e), 0);
    expect_history(step_of(s, engine, 1), 0, 20);
    for (uint32_t i = 0; i != 5; i++)
        expect_history(step_of(s, engine, 2 + i), 20 + i, 1);
    sched_detach(s, 0, "lost");
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 2, &e), 0);
    expect_history(step_of(s, engine, 10), 0, 26);
    expect_history(step_of(s, engine, 11), 26, 1);
    fake_engine_free(engine);
    fixture_finish(s);
}

static void expect_table(const struct plan_item *it, uint32_t n_kept, uint32_t n_new)
{
    if (it->n_blocks_kept != n_kept || it->n_blocks != n_new)
        fail_msg("start %u: expected %u blocks kept and %u sent, found %u and %u", it->start,
                 n_kept, n_new, it->n_blocks_kept, it->n_blocks);
}

/* Parameters come once, unless there is a bias. */
static void test_sampling_is_sent_once(void **state)
{
    (void)state;
    for (int bias = 0; bias != 2; bias++) {
        struct sched *s = fixture_sched(&fixture_small);
        struct fake_engine *engine = fake_engine_new(&fixture_small);
        struct err e = ERR_INIT;
        struct request *r = fixture_request(30, 40);
        if (bias) {
            r->params.bias = calloc(1, sizeof *r->params.bias);
            r->params.bias->token = 40;
            r->params.n_bias = 1;
        }
        r->params.temperature = 0.5f;
        assert_int_equal(fixture_submit(s, r, &e), 0);
        for (uint32_t i = 0; i != 4; i++) {
            const struct plan_item *it = step_of(s, engine, 1 + i);
            assert_int_equal(it->sampling.kept, i > 0 && !bias);
            assert_true(it->sampling.kept || it->sampling.temperature == 0.5f);
            assert_int_equal(it->sampling.output_index, i);
        }
        fake_engine_free(engine);
        fixture_finish(s);
    }
}

/* A decode brings a block when it needs a new one; whoever begins again, the whole table. */
static void test_table_is_sent_once(void **state)
{
    (void)state;
    struct sched *s = fixture_sched(&fixture_small);
    struct fake_engine *engine = fake_engine_new(&fixture_small);
    struct err e = ERR_INIT;
    assert_int_equal(fixture_submit(s, fixture_request(30, 40), &e), 0);
    expect_table(step_of(s, engine, 1), 0, 2);
    expect_table(step_of(s, engine, 2), 2, 0); /* token 31 */
    expect_table(step_of(s, engine, 3), 2, 0);
    expect_table(step_of(s, engine, 4), 2, 1);
    expect_table(step_of(s, engine, 5), 3, 0);
    sched_detach(s, 0, "lost");
    assert_int_equal(sched_attach(s, 0, &fixture_small, 1, 2, &e), 0);
    expect_table(step_of(s, engine, 10), 0, 3);
    expect_table(step_of(s, engine, 11), 3, 0);
    fake_engine_free(engine);
    fixture_finish(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_history_is_sent_once),
        cmocka_unit_test(test_table_is_sent_once),
        cmocka_unit_test(test_sampling_is_sent_once),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_what_can_never_run_is_refused),
        cmocka_unit_test(test_waiting_request_ends_when_group_is_too_small),
        cmocka_unit_test(test_group_with_other_sizes_is_refused),
        cmocka_unit_test(test_deadline_in_queue_and_running),
        cmocka_unit_test(test_next_step_runs_ahead),
        cmocka_unit_test(test_memory_of_a_discarded_token_is_given_away),
        cmocka_unit_test(test_long_prefill_does_not_starve),
        cmocka_unit_test(test_causal_prompt_is_cut),
        cmocka_unit_test(test_causal_fill_is_cut),
        cmocka_unit_test(test_wrong_results_are_refused),
        cmocka_unit_test(test_best_tokens_of_a_score_in_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
