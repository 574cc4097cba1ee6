/* test_cuda_comm.c: sums over ranks on the CUDA backend, ranks as threads, on the emulated GPU:
 * the same bits through NCCL, peers' memory and page-locked memory, in every shape; what is chosen
 * and what is said about it. */
#include "harness.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_ranks.h"
#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"

static int gather_values(struct rank *r)
{
    enum { N = 64 };
    uint16_t own[N], *all = op_malloc((size_t)r->group->size * sizeof own);
    for (size_t i = 0; i < N; i++)
        own[i] = rank_value((uint32_t)r->number, i, 7);
    void *from = cuda_new(r->ctx, sizeof own);
    void *to = cuda_new(r->ctx, (size_t)r->group->size * sizeof own);
    cuda_upload_bytes(r->ctx, from, own, sizeof own);
    glmd_cuda_ops.comm->gather(r->comm, from, sizeof own, to);
    int result = glmd_cuda_ops.comm->wait(r->comm, r->message, MESSAGE);
    cuda_download_bytes(r->ctx, all, to, (size_t)r->group->size * sizeof own);
    for (size_t i = 0; i < (size_t)r->group->size * N && !result; i++)
        result = all[i] == rank_value((uint32_t)(i / N), i % N, 7) ? 0 : -EBADMSG;
    cuda_free(r->ctx, from);
    cuda_free(r->ctx, to);
    free(all);
    return result;
}

/* One more sum and one more gathering are one more of each on every rank, which take some time that
 * nobody has to wait for to know it. */
static void check_times(struct rank *ranks)
{
    struct k_comm_times before[MAX_RANKS] = {0}, after, again;
    const struct k_comm_ops *op = glmd_cuda_ops.comm;
    for (int r = 0; r < ranks[0].group->size; r++)
        op->times(ranks[r].comm, &before[r]);
    ranks_check_sum(ranks, 1, 3);
    ranks_run(ranks, gather_values);
    ranks_expect(ranks, 0, NULL);
    const struct emulated_driver *d = emulated_driver_state();
    uint64_t waits = d->n_waits + d->n_event_waits + d->n_copies;
    for (int r = 0; r < ranks[0].group->size; r++) {
        op->times(ranks[r].comm, &after);
        op->times(ranks[r].comm, &again);
        assert_int_equal(after.n_sums, before[r].n_sums + 1);
        assert_int_equal(after.n_gathers, before[r].n_gathers + 1);
        assert_true(after.sum_ns >= before[r].sum_ns && after.gather_ns >= before[r].gather_ns);
        assert_true(after.sum_ns > 0 && after.sum_ns < UINT64_C(3600000000000));
        assert_memory_equal(&after, &again, sizeof after);
    }
    assert_int_equal(d->n_waits + d->n_event_waits + d->n_copies, waits);
}

/* ---- bits ---- */

static void test_same_bits(void **state)
{
    (void)state;
    static const struct {
        enum way way;
        int size;
        uint32_t cols, max_rows;
        const char *words;
    } cases[] = {
        {NCCL, 2, 64, 16, "NCCL 2.28.9"},
        {NCCL, 3, 8, 4, "NCCL 2.28.9"},
        {NCCL, 3, 8200, 40, "NCCL 2.28.9"}, /* in slices, which do not cover it */
        {NCCL, 4, 64, 5, "NCCL 2.28.9"},
        {PEERS, 2, 64, 40, "peers' memory for all sums"}, /* more rows than a mailbox holds */
        {PEERS, 3, 4104, 3, "peers' memory for all sums"},
        {PEERS, 4, 12288, 2, "peers' memory for all sums"},
        {PROCESSES, 2, 64, 40, "peers' memory for all sums"},
        {PROCESSES, 4, 64, 3, "peers' memory for all sums"},
        {PEERS, 3, 64, 130, "peers' memory for all sums"}, /* in two shots, and more than fit */
        {PEERS, 4, 4104, 34, "peers' memory for all sums"},
        {PROCESSES, 3, 64, 50, "peers' memory for all sums"},
        {PINNED, 4, 64, 41, "page-locked host memory for all sums"},
        {PINNED, 2, 64, 40, "page-locked host memory for all sums"},
        {PINNED, 3, 96, 5, "page-locked host memory for all sums"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way(cases[i].way);
        ranks_begin(&g, ranks, cases[i].size, cases[i].way == NCCL ? K_COMM_NCCL : K_COMM_PEER,
                    cases[i].max_rows, cases[i].cols);
        ranks_run(ranks, rank_join);
        ranks_expect(ranks, 0, NULL);
        for (int r = 0; r < g.size; r++) {
            const char *found = glmd_cuda_ops.comm->describe(ranks[r].comm);
            if (!strstr(found, cases[i].words))
                fail_msg("case %zu: \"%s\"", i, found);
        }
        for (uint32_t seed = 0; seed < 4; seed++) /* both parities, small and large */
            ranks_check_sum(ranks, seed % 2 ? cases[i].max_rows : 1, seed);
        if (cases[i].max_rows > 2)
            ranks_check_sum(ranks, cases[i].max_rows - 1, 9);
        check_times(ranks);
        for (uint64_t order = 1; order < 6; order++) { /* some ranks run ahead of others */
            emulated_driver_set_order(order);
            ranks_check_sum(ranks, cases[i].max_rows > 5 ? 5 : 1, (uint32_t)order);
        }
        emulated_driver_set_order(0);
        ranks_end(&g, ranks);
    }
}

static int sum_norm(struct rank *r, bool fused)
{
    const struct k_ops *op = &glmd_cuda_ops;
    struct k_ctx *c = r->ctx;
    size_t cols = r->group->cols, n = (size_t)r->n_rows * cols;
    uint16_t *weight = op_malloc(cols * 2), *a = op_malloc(n * 2);
    for (size_t i = 0; i < cols; i++)
        weight[i] = rank_value(77, i, 5);
    for (size_t i = 0; i < n; i++)
        a[i] = rank_value(78, i, 6);
    struct k_norm *norm = op->norm_new(c, K_NORM_LAYER, weight, weight, (uint32_t)cols);
    struct k_bias *bias = op->bias_new(c, weight, (uint32_t)cols);
    void *x = cuda_new(c, n * 2), *y = cuda_new(c, n * 2), *da = cuda_new(c, n * 2);
    cuda_upload_bytes(c, x, r->values, n * 2);
    cuda_upload_bytes(c, da, a, n * 2);
    if (fused) {
        op->comm->sum_residual_norm(r->comm, norm, 1e-5f, 1.5f, da, x, bias, r->n_rows, y);
    } else {
        op->comm->sum(r->comm, x, r->n_rows, (uint32_t)cols);
        op->residual_norm(c, norm, 1e-5f, 1.5f, da, x, bias, r->n_rows, y);
    }
    int result = op->comm->wait(r->comm, r->message, MESSAGE);
    cuda_download_bytes(c, r->values, x, n * 2);
    cuda_download_bytes(c, r->values + n, y, n * 2);
    op->norm_free(c, norm);
    op->bias_free(c, bias);
    cuda_free(c, x);
    cuda_free(c, y);
    cuda_free(c, da);
    free(weight);
    free(a);
    return result;
}

static int fused_norm(struct rank *r)
{
    return sum_norm(r, true);
}

static int plain_norm(struct rank *r)
{
    return sum_norm(r, false);
}

/* The kernel that goes on with the norm gives the bits of the two. */
static void test_fused(void **state)
{
    (void)state;
    static const struct {
        enum way way;
        enum k_comm_choice choice;
        uint32_t cols, n_rows;
    } cases[] = {
        {PEERS, K_COMM_PEER, 64, 3},   {PEERS, K_COMM_PEER, 4104, 5}, {PINNED, K_COMM_PEER, 96, 2},
        {PEERS, K_COMM_PEER, 64, 35},                                 /* two shots */
        {PINNED, K_COMM_PEER, 64, 33}, {PEERS, K_COMM_PEER, 64, 130}, /* more than a mailbox: not
                                                                         fused */
        {NCCL, K_COMM_NCCL, 64, 3},    {NCCL, K_COMM_AUTO, 64, 35},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way(cases[i].way);
        ranks_begin(&g, ranks, 3, cases[i].choice, cases[i].n_rows, cases[i].cols);
        ranks_run(ranks, rank_join);
        ranks_expect(ranks, 0, NULL);
        size_t n = (size_t)cases[i].n_rows * cases[i].cols;
        uint16_t *got[2];
        for (int fused = 0; fused < 2; fused++) {
            ranks_give(ranks, cases[i].n_rows, 3);
            for (int r = 0; r < g.size; r++)
                assert_non_null(ranks[r].values = realloc(ranks[r].values, n * 4));
            ranks_run(ranks, fused ? fused_norm : plain_norm);
            ranks_expect(ranks, 0, NULL);
            for (int r = 1; r < g.size; r++)
                assert_memory_equal(ranks[r].values, ranks[0].values, n * 4);
            got[fused] = ranks[0].values;
            ranks[0].values = NULL;
            ranks_take(ranks);
        }
        assert_memory_equal(got[0], got[1], n * 4);
        free(got[0]);
        free(got[1]);
        ranks_end(&g, ranks);
    }
}

/* ---- the choice ---- */

static void test_choice(void **state)
{
    (void)state;
    static const struct {
        enum k_comm_choice choice;
        bool one_gpu, no_peers, pin_fails;
        const char *missing; /* NCCL */
        int code;
        const char *words; /* of the description or of the message */
    } cases[] = {
        {K_COMM_AUTO, .words = "peers' memory up to 4 rows, NCCL 2.28.9 NCCL_GLMD_TEST=1"},
        {K_COMM_AUTO, .no_peers = true, .words = "page-locked host memory up to 4 rows, NCCL"},
        {K_COMM_AUTO, .missing = "libnccl.so.2: not there",
         .words = "peers' memory for all sums; no NCCL: rank 0 has no NCCL: libnccl.so.2"},
        {K_COMM_AUTO, .no_peers = true, .pin_fails = true,
         .words = "NCCL 2.28.9 NCCL_GLMD_TEST=1; no peers' memory: rank 0: cuda:0 does not reach "
                  "the memory of cuda:1; rank "},
        {K_COMM_AUTO, .no_peers = true, .pin_fails = true, .missing = "gone", .code = -ENOTSUP,
         .words = "neither NCCL (rank 0 has no NCCL: gone) nor peers' memory (rank 0: "},
        {K_COMM_AUTO, .one_gpu = true, .code = -ENOTSUP,
         .words = "ranks share a GPU (ranks 0 and 1 share the GPU 0000:00:00.0, which NCCL"},
        {K_COMM_PEER, .one_gpu = true, .words = "peers' memory for all sums"},
        {K_COMM_PEER, .no_peers = true, .pin_fails = true, .code = -ENODEV,
         .words = "collectives peer: rank 0: cuda:0 does not reach"},
        {K_COMM_NCCL, .one_gpu = true, .code = -ENODEV,
         .words = "collectives nccl: ranks 0 and 1 share the GPU"},
        {K_COMM_NCCL, .missing = "gone", .code = -ENODEV, .words = "rank 0 has no NCCL: gone"},
        {K_COMM_HOST, .code = -ENOTSUP, .words = "as configured"},
    };
    setenv("NCCL_GLMD_TEST", "1", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way(NCCL);
        ranks_begin(&g, ranks, 2, cases[i].choice, 4, 64);
        emulated_driver_state()->one_gpu = cases[i].one_gpu;
        emulated_driver_state()->no_peers = cases[i].no_peers;
        emulated_nccl_state()->missing = cases[i].missing;
        if (cases[i].pin_fails) {
            emulated_driver_state()->fail = "pin";
            emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
        }
        ranks_run(ranks, rank_join);
        for (int r = 0; r < g.size; r++) {
            const char *found =
                ranks[r].comm ? glmd_cuda_ops.comm->describe(ranks[r].comm) : ranks[r].message;
            if (ranks[r].result != cases[i].code || !strstr(found, cases[i].words) ||
                (cases[i].pin_fails && !strstr(found, "page-locking shared memory: out of")))
                fail_msg("case %zu, rank %d: %d \"%s\", expected %d \"%s\"", i, r, ranks[r].result,
                         found, cases[i].code, cases[i].words);
        }
        if (!cases[i].code)
            ranks_check_sum(ranks, 4, 1);
        ranks_end(&g, ranks);
    }
    unsetenv("NCCL_GLMD_TEST");
}

static int join_otherwise(struct rank *r)
{
    return rank_join_as(r, r->number == 1 ? K_COMM_NCCL : r->group->choice);
}

static void test_ranks_disagree(void **state)
{
    (void)state;
    struct group g;
    struct rank ranks[MAX_RANKS];
    set_way(NCCL);
    ranks_begin(&g, ranks, 3, K_COMM_AUTO, 4, 64);
    ranks_run(ranks, join_otherwise);
    ranks_expect(ranks, -EINVAL, "rank 0 wants collectives auto for 4 rows of 64, rank 1 nccl");
    ranks_end(&g, ranks);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_fused),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_ranks_disagree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
