/* cuda_ranks.c: see cuda_ranks.h. */
#include "cuda_ranks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "harness.h"
#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/emulated_nccl.h"

void set_way(enum way way)
{
    emulated_driver_reset();
    emulated_nccl_reset();
    emulated_driver_state()->separate_processes = way == PROCESSES;
    emulated_driver_state()->no_peers = way == PINNED;
}

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

int rank_join_as(struct rank *r, enum k_comm_choice choice)
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
    int result = glmd_cuda_ops.comm->open(r->ctx, choice, &g, r->group->max_rows, r->group->cols,
                                          &r->comm, r->message, MESSAGE);
    if ((result == 0) != (r->comm != NULL))
        return -EBADMSG;
    return result;
}

int rank_join(struct rank *r)
{
    return rank_join_as(r, r->group->choice);
}

int rank_leave(struct rank *r)
{
    glmd_cuda_ops.comm->close(r->comm);
    r->comm = NULL;
    return 0;
}

static int rank_open(struct rank *r)
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

int rank_close(struct rank *r)
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

void ranks_run(struct rank *ranks, int (*what)(struct rank *r))
{
    int size = ranks[0].group->size;
    for (int i = 0; i < size; i++) {
        ranks[i].run = what;
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < size; i++)
        pthread_join(ranks[i].thread, NULL);
}

void ranks_expect(struct rank *ranks, int code, const char *words)
{
    for (int i = 0; i < ranks[0].group->size; i++)
        if (ranks[i].result != code || (words && !strstr(ranks[i].message, words)))
            fail_msg("rank %d: %d \"%s\", expected %d \"%s\"", i, ranks[i].result, ranks[i].message,
                     code, words ? words : "");
}

void ranks_begin(struct group *g, struct rank *ranks, int size, enum k_comm_choice choice,
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
    ranks_run(ranks, rank_open);
    ranks_expect(ranks, 0, NULL);
}

void ranks_end(struct group *g, struct rank *ranks)
{
    ranks_run(ranks, rank_leave);
    ranks_run(ranks, rank_close);
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

uint16_t rank_value(uint32_t rank, size_t i, uint32_t seed)
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
    float sum = half_to_float(rank_value(0, i, seed));
    for (int r = 1; r < size; r++)
        sum += half_to_float(rank_value((uint32_t)r, i, seed));
    return half_from_float(sum);
}

int rank_sum(struct rank *r)
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

void ranks_give(struct rank *ranks, uint32_t n_rows, uint32_t seed)
{
    size_t n = (size_t)n_rows * ranks[0].group->cols;
    for (int r = 0; r < ranks[0].group->size; r++) {
        ranks[r].n_rows = n_rows;
        ranks[r].values = op_malloc(n * 2);
        for (size_t i = 0; i < n; i++)
            ranks[r].values[i] = rank_value((uint32_t)r, i, seed);
    }
}

void ranks_take(struct rank *ranks)
{
    for (int r = 0; r < ranks[0].group->size; r++)
        free(ranks[r].values);
}

void ranks_check_sum(struct rank *ranks, uint32_t n_rows, uint32_t seed)
{
    ranks_give(ranks, n_rows, seed);
    ranks_run(ranks, rank_sum);
    ranks_expect(ranks, 0, NULL);
    size_t n = (size_t)n_rows * ranks[0].group->cols;
    for (int r = 0; r < ranks[0].group->size; r++)
        for (size_t i = 0; i < n; i++) {
            uint16_t want = wanted(ranks[0].group->size, i, seed);
            if (ranks[r].values[i] != want)
                fail_msg("rank %d of %d, %u rows, value %zu: %04x, expected %04x", r,
                         ranks[0].group->size, n_rows, i, ranks[r].values[i], want);
        }
    ranks_take(ranks);
}
