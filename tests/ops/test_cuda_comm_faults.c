/* test_cuda_comm_faults.c: every way in which joining or summing fails on the CUDA backend, after
 * which the ranks join again; the order of closing; memory that is short. On the emulated GPU. */
#include "harness.h"

#include <errno.h>
#include <string.h>

#include "cuda_ranks.h"
#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"

/* After whatever has happened, the same contexts join again and add up. */
static void join_again(struct group *g, struct rank *ranks)
{
    ranks_run(ranks, rank_leave);
    emulated_nccl_reset();
    emulated_driver_state()->fail = NULL;
    __atomic_store_n(&g->ended, 0, __ATOMIC_RELEASE);
    g->timeout_ns = INT64_C(60000000000);
    ranks_run(ranks, rank_join);
    ranks_expect(ranks, 0, NULL);
    ranks_check_sum(ranks, g->max_rows, 8);
    ranks_check_sum(ranks, 1, 9);
}

static void test_nccl_does_not_come_up(void **state)
{
    (void)state;
    static const struct {
        bool id, init, hangs, ends;
        int code;
        const char *words;
    } cases[] = {
        {.id = true, .code = -EIO, .words = "rank 0: NCCL: unhandled cuda error: as the test"},
        {.init = true, .code = -EIO, .words = "rank 1: NCCL: unhandled cuda error"},
        {.hangs = true, .code = -ETIMEDOUT, .words = "rank 0: NCCL did not get ready within 0.1 s"},
        {.hangs = true, .ends = true, .code = -ECANCELED, .words = "the group has ended"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way(NCCL);
        ranks_begin(&g, ranks, 3, K_COMM_NCCL, 4, 64);
        struct emulated_nccl *n = emulated_nccl_state();
        n->id_error = cases[i].id;
        n->init_error = cases[i].init;
        n->bad_rank = 1;
        n->init_hangs = cases[i].hangs;
        g.timeout_ns = cases[i].ends ? g.timeout_ns : 100000000;
        g.ended = cases[i].ends ? -ECANCELED : 0;
        ranks_run(ranks, rank_join);
        ranks_expect(ranks, cases[i].code, cases[i].words);
        assert_int_equal(n->n_comms, 0); /* those that came up are aborted */
        join_again(&g, ranks);
        ranks_end(&g, ranks);
    }
}

static void test_nccl_fails_in_a_step(void **state)
{
    (void)state;
    static const struct {
        int async_error;
        bool hangs, ends;
        int code;
        const char *words;
    } cases[] = {
        {.async_error = 6, .code = -EIO, .words = "NCCL: remote process exited"},
        {.hangs = true, .code = -ETIMEDOUT, .words = "no sum has ended for 0.1 s"},
        {.hangs = true, .ends = true, .code = -ECONNRESET, .words = "the group has ended"},
        {.hangs = true, .async_error = 6, .code = -EIO, .words = "remote process exited"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way(NCCL);
        ranks_begin(&g, ranks, 3, K_COMM_NCCL, 4, 64);
        g.timeout_ns =
            cases[i].hangs && !cases[i].ends && !cases[i].async_error ? 100000000 : g.timeout_ns;
        ranks_run(ranks, rank_join);
        ranks_expect(ranks, 0, NULL);
        emulated_nccl_state()->calls_hang = cases[i].hangs;
        emulated_nccl_state()->async_error = cases[i].async_error;
        g.ended = cases[i].ends ? -ECONNRESET : 0;
        for (int again = 0; again < 2; again++) { /* a failure stays */
            ranks_give(ranks, 2, 1);
            ranks_run(ranks, rank_sum);
            ranks_expect(ranks, cases[i].code, cases[i].words);
            ranks_take(ranks);
        }
        assert_int_equal(emulated_nccl_state()->n_aborted, 3);
        join_again(&g, ranks);
        ranks_end(&g, ranks);
    }
}

static int sum_without_rank_1(struct rank *r)
{
    return r->number == 1 ? 0 : rank_sum(r);
}

/* A rank that does not come: the others' kernels give up. */
static void test_peer_does_not_come(void **state)
{
    (void)state;
    for (int way = PEERS; way <= PINNED; way++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way((enum way)way);
        ranks_begin(&g, ranks, 3, K_COMM_PEER, 4, 64);
        ranks_run(ranks, rank_join);
        ranks_expect(ranks, 0, NULL);
        ranks_check_sum(ranks, 4, 1);
        emulated_driver_set_patience_ms(1);
        ranks_give(ranks, 4, 2);
        ranks_run(ranks, sum_without_rank_1);
        emulated_driver_set_patience_ms(10000);
        for (int r = 0; r < g.size; r++)
            if (ranks[r].result != (r == 1 ? 0 : -ETIMEDOUT) ||
                (r != 1 && !strstr(ranks[r].message, "a peer's part of a sum did not come")))
                fail_msg("rank %d: %d \"%s\"", r, ranks[r].result, ranks[r].message);
        ranks_take(ranks);
        join_again(&g, ranks);
        ranks_end(&g, ranks);
    }
}

static int leave_or_close(struct rank *r)
{
    int result = rank_leave(r); /* in no order between the ranks */
    return result ? result : rank_close(r);
}

static int leave_but_rank_1(struct rank *r)
{
    return r->number == 1 ? 0 : rank_leave(r);
}

/* Ranks that are processes close their peers' memory before its owner frees it: at the end of an
 * epoch whose successor has other sizes, when a rank has not left the last one, and when all end
 * their contexts at once. */
static void test_order_of_closing(void **state)
{
    (void)state;
    struct group g;
    struct rank ranks[MAX_RANKS];
    set_way(PROCESSES);
    ranks_begin(&g, ranks, 3, K_COMM_PEER, 4, 64);
    ranks_run(ranks, rank_join);
    ranks_expect(ranks, 0, NULL);
    ranks_check_sum(ranks, 4, 1);
    ranks_run(ranks, rank_leave);
    g.max_rows = 300; /* another mailbox */
    g.cols = 8200;
    ranks_run(ranks, rank_join);
    ranks_expect(ranks, 0, NULL);
    ranks_check_sum(ranks, 2, 2);
    assert_int_equal(emulated_driver_state()->n_freed_open, 0);

    ranks_run(ranks, leave_but_rank_1); /* it hangs; the others find each other without it */
    struct rank *one = &ranks[1];
    struct k_comm *stale = one->comm;
    void *open_there = ranks[0].ctx->mailboxes[0].memory;
    struct k_ctx *contexts[3] = {ranks[0].ctx, ranks[1].ctx, ranks[2].ctx};
    g.size = 2;
    g.max_rows = 4;
    g.cols = 64;
    pthread_barrier_destroy(&g.barrier);
    pthread_barrier_init(&g.barrier, NULL, 2);
    ranks[1].ctx = contexts[2];
    ranks[1].comm = NULL;
    ranks_run(ranks, rank_join);
    ranks_expect(ranks, 0, NULL);
    ranks_check_sum(ranks, 4, 3);
    assert_ptr_equal(ranks[0].ctx->mailboxes[0].memory, open_there); /* neither freed nor used */
    assert_non_null(ranks[0].ctx->mailboxes[1].memory);
    assert_int_equal(emulated_driver_state()->n_freed_open, 0);
    ranks_run(ranks, rank_leave);
    glmd_cuda_ops.comm->close(stale);
    ranks_run(ranks, rank_join); /* it has gone in the end */
    ranks_expect(ranks, 0, NULL);
    assert_null(ranks[0].ctx->mailboxes[0].memory);
    ranks_run(ranks, leave_or_close);
    cuda_close(contexts[1]);
    pthread_barrier_destroy(&g.barrier);
    assert_int_equal(emulated_driver_state()->n_freed_open, 0);
    assert_int_equal(emulated_driver_state()->n_shared, 0);
    assert_int_equal(emulated_driver_state()->allocated, 0);
    emulated_driver_reset();
    emulated_nccl_reset();
}

/* Memory is short at any allocation, on some rank: all ranks hear of it, nothing is left. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static const char *const calls[] = {"alloc", "alloc_host"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        bool failed = true;
        for (int after = 0; failed; after++) {
            assert_true(after < 40);
            struct group g;
            struct rank ranks[MAX_RANKS];
            set_way(PEERS);
            ranks_begin(&g, ranks, 2, K_COMM_AUTO, 4, 64);
            emulated_driver_state()->fail = calls[i];
            emulated_driver_state()->fail_after = after;
            emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
            ranks_run(ranks, rank_join);
            failed = emulated_driver_state()->fail == NULL; /* the call came */
            assert_int_equal(ranks[0].result, ranks[1].result);
            if (ranks[0].result)
                assert_non_null(strstr(ranks[0].message, "out of memory"));
            ranks_end(&g, ranks);
        }
    }
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nccl_does_not_come_up), cmocka_unit_test(test_nccl_fails_in_a_step),
        cmocka_unit_test(test_peer_does_not_come),    cmocka_unit_test(test_order_of_closing),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
