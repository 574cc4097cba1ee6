/* test_cuda_comm.c: sums over ranks on the CUDA backend, ranks as threads, on the emulated GPU:
 * the same bits through NCCL, peers' memory and page-locked memory, in every shape; what is chosen
 * and what is said about it; and every way in which joining or summing fails, after which the ranks
 * join again. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "kernels/comm.h"
#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"

enum { MAX_RANKS = 8, MESSAGE = 512 };

/* ---- ranks ---- */

struct group {
    int size;
    uint32_t max_rows, cols;
    int64_t timeout_ns;
    enum k_comm_choice choice;
    pthread_barrier_t barrier;
    const void *given[MAX_RANKS];
    int ended; /* atomic: what state() returns */
};

struct rank {
    struct group *group;
    int number;
    pthread_t thread;
    int (*run)(struct rank *r);
    struct k_ctx *ctx;
    struct k_comm *comm;
    int result;
    char message[MESSAGE];
    uint32_t n_rows;
    uint16_t *values; /* [n_rows, cols] given, then the sum */
};

static int rank_gather(void *context, const void *src, size_t bytes, void *dst)
{
    const struct rank *r = context;
    struct group *g = r->group;
    g->given[r->number] = src;
    pthread_barrier_wait(&g->barrier);
    for (int i = 0; i < g->size; i++)
        memcpy((char *)dst + (size_t)i * bytes, g->given[i], bytes);
    pthread_barrier_wait(&g->barrier);
    return 0;
}

static int rank_state(void *context)
{
    const struct rank *r = context;
    return __atomic_load_n(&r->group->ended, __ATOMIC_ACQUIRE);
}

static int join(struct rank *r)
{
    const struct k_comm_group g = {.rank = r->number,
                                   .size = r->group->size,
                                   .timeout_ns = r->group->timeout_ns,
                                   .join_timeout_ns = r->group->timeout_ns,
                                   .context = r,
                                   .all_gather = rank_gather,
                                   .state = rank_state};
    r->comm = NULL;
    r->message[0] = '\0';
    int result = glmd_cuda_ops.comm->open(r->ctx, r->group->choice, &g, r->group->max_rows,
                                          r->group->cols, &r->comm, r->message, MESSAGE);
    if ((result == 0) != (r->comm != NULL))
        return -EBADMSG;
    return result;
}

static int leave(struct rank *r)
{
    glmd_cuda_ops.comm->close(r->comm);
    r->comm = NULL;
    return 0;
}

static int open_context(struct rank *r)
{
    char device[16];
    snprintf(device, sizeof device, "cuda:%d", r->number);
    const struct k_open_params p = {.device = device,
                                    .mode = K_MODE_FP16,
                                    .max_rows = r->group->max_rows,
                                    .max_cols = r->group->cols,
                                    .max_seq = 16};
    return cuda_open(&p, &r->ctx, r->message, MESSAGE);
}

static int close_context(struct rank *r)
{
    cuda_close(r->ctx);
    return 0;
}

static void *rank_main(void *context)
{
    struct rank *r = context;
    r->result = r->run(r);
    return NULL;
}

static void run(struct rank *ranks, int (*what)(struct rank *r))
{
    int size = ranks[0].group->size;
    for (int i = 0; i < size; i++) {
        ranks[i].run = what;
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < size; i++)
        pthread_join(ranks[i].thread, NULL);
}

static void expect_all(struct rank *ranks, int code, const char *words)
{
    for (int i = 0; i < ranks[0].group->size; i++)
        if (ranks[i].result != code || (words && !strstr(ranks[i].message, words)))
            fail_msg("rank %d: %d \"%s\", expected %d \"%s\"", i, ranks[i].result, ranks[i].message,
                     code, words ? words : "");
}

/* Contexts of `size` ranks; nothing is joined. */
static void begin(struct group *g, struct rank *ranks, int size, enum k_comm_choice choice,
                  uint32_t max_rows, uint32_t cols)
{
    *g = (struct group){.size = size,
                        .choice = choice,
                        .max_rows = max_rows,
                        .cols = cols,
                        .timeout_ns = INT64_C(60000000000)};
    pthread_barrier_init(&g->barrier, NULL, (unsigned)size);
    for (int i = 0; i < size; i++)
        ranks[i] = (struct rank){.group = g, .number = i};
    run(ranks, open_context);
    expect_all(ranks, 0, NULL);
}

static void end(struct group *g, struct rank *ranks)
{
    run(ranks, leave);
    run(ranks, close_context);
    pthread_barrier_destroy(&g->barrier);
    const struct emulated_driver *d = emulated_driver_state();
    assert_int_equal(d->allocated, 0);
    assert_int_equal(d->host_allocated, 0);
    assert_int_equal(d->n_shared, 0);
    assert_int_equal(d->n_freed_open, 0); /* peers first */
    assert_int_equal(d->n_pinned, 0);
    assert_int_equal(emulated_nccl_state()->n_comms, 0);
    emulated_driver_reset();
    emulated_nccl_reset();
}

/* ---- values ---- */

static uint16_t value(uint32_t rank, size_t i, uint32_t seed)
{
    uint32_t v = (uint32_t)i * 2654435761u + (rank + 1) * 40503u * (seed + 1);
    v ^= v >> 13;
    v *= 2246822519u;
    v ^= v >> 16;
    /* From 2^-10 to 2^9, both signs: sums depend on their order, and are finite. */
    return (uint16_t)((v & 0x83ff) | ((v >> 16) % 20 + 5) << 10);
}

/* What every way must give: FP32, in the order of the ranks, rounded once. */
static uint16_t wanted(int size, size_t i, uint32_t seed)
{
    float sum = half_to_float(value(0, i, seed));
    for (int r = 1; r < size; r++)
        sum += half_to_float(value((uint32_t)r, i, seed));
    return half_from_float(sum);
}

static int sum_values(struct rank *r)
{
    size_t n = (size_t)r->n_rows * r->group->cols;
    void *x = cuda_new(r->ctx, n * 2);
    if (!x)
        return -ENOMEM;
    cuda_upload_bytes(r->ctx, x, r->values, n * 2);
    glmd_cuda_ops.comm->sum(r->comm, x, r->n_rows, r->group->cols);
    int result = glmd_cuda_ops.comm->wait(r->comm, r->message, MESSAGE);
    cuda_download_bytes(r->ctx, r->values, x, n * 2);
    cuda_free(r->ctx, x);
    char message[MESSAGE] = "";
    if (cuda_sync(r->ctx, message, sizeof message)) /* a peer is no device error */
        return -EBADMSG;
    return result;
}

static void give(struct rank *ranks, uint32_t n_rows, uint32_t seed)
{
    size_t n = (size_t)n_rows * ranks[0].group->cols;
    for (int r = 0; r < ranks[0].group->size; r++) {
        ranks[r].n_rows = n_rows;
        ranks[r].values = op_malloc(n * 2);
        for (size_t i = 0; i < n; i++)
            ranks[r].values[i] = value((uint32_t)r, i, seed);
    }
}

static void take(struct rank *ranks)
{
    for (int r = 0; r < ranks[0].group->size; r++)
        free(ranks[r].values);
}

static void check_sum(struct rank *ranks, uint32_t n_rows, uint32_t seed)
{
    give(ranks, n_rows, seed);
    run(ranks, sum_values);
    expect_all(ranks, 0, NULL);
    size_t n = (size_t)n_rows * ranks[0].group->cols;
    for (int r = 0; r < ranks[0].group->size; r++)
        for (size_t i = 0; i < n; i++) {
            uint16_t want = wanted(ranks[0].group->size, i, seed);
            if (ranks[r].values[i] != want)
                fail_msg("rank %d of %d, %u rows, value %zu: %04x, expected %04x", r,
                         ranks[0].group->size, n_rows, i, ranks[r].values[i], want);
        }
    take(ranks);
}

static int gather_values(struct rank *r)
{
    enum { N = 64 };
    uint16_t own[N], *all = op_malloc((size_t)r->group->size * sizeof own);
    for (size_t i = 0; i < N; i++)
        own[i] = value((uint32_t)r->number, i, 7);
    void *from = cuda_new(r->ctx, sizeof own);
    void *to = cuda_new(r->ctx, (size_t)r->group->size * sizeof own);
    cuda_upload_bytes(r->ctx, from, own, sizeof own);
    glmd_cuda_ops.comm->gather(r->comm, from, sizeof own, to);
    int result = glmd_cuda_ops.comm->wait(r->comm, r->message, MESSAGE);
    cuda_download_bytes(r->ctx, all, to, (size_t)r->group->size * sizeof own);
    for (size_t i = 0; i < (size_t)r->group->size * N && !result; i++)
        result = all[i] == value((uint32_t)(i / N), i % N, 7) ? 0 : -EBADMSG;
    cuda_free(r->ctx, from);
    cuda_free(r->ctx, to);
    free(all);
    return result;
}

/* One more sum and one more gathering are one more of each on every rank, which take some time that
 * nobody has to wait for to know it. */
static void check_times(struct rank *ranks)
{
    struct k_comm_times before[MAX_RANKS], after, again;
    const struct k_comm_ops *op = glmd_cuda_ops.comm;
    for (int r = 0; r < ranks[0].group->size; r++)
        op->times(ranks[r].comm, &before[r]);
    check_sum(ranks, 1, 3);
    run(ranks, gather_values);
    expect_all(ranks, 0, NULL);
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

enum way { NCCL, PEERS, PROCESSES, PINNED };

static void set_way(enum way way)
{
    emulated_driver_reset();
    emulated_nccl_reset();
    emulated_driver_state()->separate_processes = way == PROCESSES;
    emulated_driver_state()->no_peers = way == PINNED;
}

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
        begin(&g, ranks, cases[i].size, cases[i].way == NCCL ? K_COMM_NCCL : K_COMM_PEER,
              cases[i].max_rows, cases[i].cols);
        run(ranks, join);
        expect_all(ranks, 0, NULL);
        for (int r = 0; r < g.size; r++) {
            const char *found = glmd_cuda_ops.comm->describe(ranks[r].comm);
            if (!strstr(found, cases[i].words))
                fail_msg("case %zu: \"%s\"", i, found);
        }
        for (uint32_t seed = 0; seed < 4; seed++) /* both parities, small and large */
            check_sum(ranks, seed % 2 ? cases[i].max_rows : 1, seed);
        if (cases[i].max_rows > 2)
            check_sum(ranks, cases[i].max_rows - 1, 9);
        check_times(ranks);
        for (uint64_t order = 1; order < 6; order++) { /* some ranks run ahead of others */
            emulated_driver_set_order(order);
            check_sum(ranks, cases[i].max_rows > 5 ? 5 : 1, (uint32_t)order);
        }
        emulated_driver_set_order(0);
        end(&g, ranks);
    }
}

static int sum_norm(struct rank *r, bool fused)
{
    const struct k_ops *op = &glmd_cuda_ops;
    struct k_ctx *c = r->ctx;
    size_t cols = r->group->cols, n = (size_t)r->n_rows * cols;
    uint16_t *weight = op_malloc(cols * 2), *a = op_malloc(n * 2);
    for (size_t i = 0; i < cols; i++)
        weight[i] = value(77, i, 5);
    for (size_t i = 0; i < n; i++)
        a[i] = value(78, i, 6);
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
        begin(&g, ranks, 3, cases[i].choice, cases[i].n_rows, cases[i].cols);
        run(ranks, join);
        expect_all(ranks, 0, NULL);
        size_t n = (size_t)cases[i].n_rows * cases[i].cols;
        uint16_t *got[2];
        for (int fused = 0; fused < 2; fused++) {
            give(ranks, cases[i].n_rows, 3);
            for (int r = 0; r < g.size; r++)
                assert_non_null(ranks[r].values = realloc(ranks[r].values, n * 4));
            run(ranks, fused ? fused_norm : plain_norm);
            expect_all(ranks, 0, NULL);
            for (int r = 1; r < g.size; r++)
                assert_memory_equal(ranks[r].values, ranks[0].values, n * 4);
            got[fused] = ranks[0].values;
            ranks[0].values = NULL;
            take(ranks);
        }
        assert_memory_equal(got[0], got[1], n * 4);
        free(got[0]);
        free(got[1]);
        end(&g, ranks);
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
        begin(&g, ranks, 2, cases[i].choice, 4, 64);
        emulated_driver_state()->one_gpu = cases[i].one_gpu;
        emulated_driver_state()->no_peers = cases[i].no_peers;
        emulated_nccl_state()->missing = cases[i].missing;
        if (cases[i].pin_fails) {
            emulated_driver_state()->fail = "pin";
            emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
        }
        run(ranks, join);
        for (int r = 0; r < g.size; r++) {
            const char *found =
                ranks[r].comm ? glmd_cuda_ops.comm->describe(ranks[r].comm) : ranks[r].message;
            if (ranks[r].result != cases[i].code || !strstr(found, cases[i].words) ||
                (cases[i].pin_fails && !strstr(found, "page-locking shared memory: out of")))
                fail_msg("case %zu, rank %d: %d \"%s\", expected %d \"%s\"", i, r, ranks[r].result,
                         found, cases[i].code, cases[i].words);
        }
        if (!cases[i].code)
            check_sum(ranks, 4, 1);
        end(&g, ranks);
    }
    unsetenv("NCCL_GLMD_TEST");
}

static int join_otherwise(struct rank *r)
{
    struct group g = *r->group; /* the barrier stays the group's */
    if (r->number == 1) {
        const struct k_comm_group group = {.rank = 1,
                                           .size = g.size,
                                           .timeout_ns = g.timeout_ns,
                                           .join_timeout_ns = g.timeout_ns,
                                           .context = r,
                                           .all_gather = rank_gather,
                                           .state = rank_state};
        return glmd_cuda_ops.comm->open(r->ctx, K_COMM_NCCL, &group, g.max_rows, g.cols, &r->comm,
                                        r->message, MESSAGE);
    }
    return join(r);
}

static void test_ranks_disagree(void **state)
{
    (void)state;
    struct group g;
    struct rank ranks[MAX_RANKS];
    set_way(NCCL);
    begin(&g, ranks, 3, K_COMM_AUTO, 4, 64);
    run(ranks, join_otherwise);
    expect_all(ranks, -EINVAL, "rank 0 wants collectives auto for 4 rows of 64, rank 1 nccl");
    end(&g, ranks);
}

/* ---- failures ---- */

/* After whatever has happened, the same contexts join again and add up. */
static void join_again(struct group *g, struct rank *ranks)
{
    run(ranks, leave);
    emulated_nccl_reset();
    emulated_driver_state()->fail = NULL;
    __atomic_store_n(&g->ended, 0, __ATOMIC_RELEASE);
    g->timeout_ns = INT64_C(60000000000);
    run(ranks, join);
    expect_all(ranks, 0, NULL);
    check_sum(ranks, g->max_rows, 8);
    check_sum(ranks, 1, 9);
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
        begin(&g, ranks, 3, K_COMM_NCCL, 4, 64);
        struct emulated_nccl *n = emulated_nccl_state();
        n->id_error = cases[i].id;
        n->init_error = cases[i].init;
        n->bad_rank = 1;
        n->init_hangs = cases[i].hangs;
        g.timeout_ns = cases[i].ends ? g.timeout_ns : 100000000;
        g.ended = cases[i].ends ? -ECANCELED : 0;
        run(ranks, join);
        expect_all(ranks, cases[i].code, cases[i].words);
        assert_int_equal(n->n_comms, 0); /* those that came up are aborted */
        join_again(&g, ranks);
        end(&g, ranks);
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
        begin(&g, ranks, 3, K_COMM_NCCL, 4, 64);
        g.timeout_ns =
            cases[i].hangs && !cases[i].ends && !cases[i].async_error ? 100000000 : g.timeout_ns;
        run(ranks, join);
        expect_all(ranks, 0, NULL);
        emulated_nccl_state()->calls_hang = cases[i].hangs;
        emulated_nccl_state()->async_error = cases[i].async_error;
        g.ended = cases[i].ends ? -ECONNRESET : 0;
        for (int again = 0; again < 2; again++) { /* a failure stays */
            give(ranks, 2, 1);
            run(ranks, sum_values);
            expect_all(ranks, cases[i].code, cases[i].words);
            take(ranks);
        }
        assert_int_equal(emulated_nccl_state()->n_aborted, 3);
        join_again(&g, ranks);
        end(&g, ranks);
    }
}

static int sum_without_rank_1(struct rank *r)
{
    return r->number == 1 ? 0 : sum_values(r);
}

/* A rank that does not come: the others' kernels give up. */
static void test_peer_does_not_come(void **state)
{
    (void)state;
    for (int way = PEERS; way <= PINNED; way++) {
        struct group g;
        struct rank ranks[MAX_RANKS];
        set_way((enum way)way);
        begin(&g, ranks, 3, K_COMM_PEER, 4, 64);
        run(ranks, join);
        expect_all(ranks, 0, NULL);
        check_sum(ranks, 4, 1);
        emulated_driver_set_patience_ms(1);
        give(ranks, 4, 2);
        run(ranks, sum_without_rank_1);
        emulated_driver_set_patience_ms(10000);
        for (int r = 0; r < g.size; r++)
            if (ranks[r].result != (r == 1 ? 0 : -ETIMEDOUT) ||
                (r != 1 && !strstr(ranks[r].message, "a peer's part of a sum did not come")))
                fail_msg("rank %d: %d \"%s\"", r, ranks[r].result, ranks[r].message);
        take(ranks);
        join_again(&g, ranks);
        end(&g, ranks);
    }
}

static int leave_or_close(struct rank *r)
{
    int result = leave(r); /* in no order between the ranks */
    return result ? result : close_context(r);
}

static int leave_but_rank_1(struct rank *r)
{
    return r->number == 1 ? 0 : leave(r);
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
    begin(&g, ranks, 3, K_COMM_PEER, 4, 64);
    run(ranks, join);
    expect_all(ranks, 0, NULL);
    check_sum(ranks, 4, 1);
    run(ranks, leave);
    g.max_rows = 300; /* another mailbox */
    g.cols = 8200;
    run(ranks, join);
    expect_all(ranks, 0, NULL);
    check_sum(ranks, 2, 2);
    assert_int_equal(emulated_driver_state()->n_freed_open, 0);

    run(ranks, leave_but_rank_1); /* it hangs; the others find each other without it */
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
    run(ranks, join);
    expect_all(ranks, 0, NULL);
    check_sum(ranks, 4, 3);
    assert_ptr_equal(ranks[0].ctx->mailboxes[0].memory, open_there); /* neither freed nor used */
    assert_non_null(ranks[0].ctx->mailboxes[1].memory);
    assert_int_equal(emulated_driver_state()->n_freed_open, 0);
    run(ranks, leave);
    glmd_cuda_ops.comm->close(stale);
    run(ranks, join); /* it has gone in the end */
    expect_all(ranks, 0, NULL);
    assert_null(ranks[0].ctx->mailboxes[0].memory);
    run(ranks, leave_or_close);
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
            begin(&g, ranks, 2, K_COMM_AUTO, 4, 64);
            emulated_driver_state()->fail = calls[i];
            emulated_driver_state()->fail_after = after;
            emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
            run(ranks, join);
            failed = emulated_driver_state()->fail == NULL; /* the call came */
            assert_int_equal(ranks[0].result, ranks[1].result);
            if (ranks[0].result)
                assert_non_null(strstr(ranks[0].message, "out of memory"));
            end(&g, ranks);
        }
    }
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
        cmocka_unit_test(test_nccl_does_not_come_up),
        cmocka_unit_test(test_nccl_fails_in_a_step),
        cmocka_unit_test(test_peer_does_not_come),
        cmocka_unit_test(test_order_of_closing),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
