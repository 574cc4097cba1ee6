/* cuda_ranks.h: ranks of a group as threads, each with a context of the CUDA backend on the
 * emulated GPU, and values whose sums have known bits. Whatever does not hold fails the test.
 */
#ifndef GLMD_TESTS_OPS_CUDA_RANKS_H
#define GLMD_TESTS_OPS_CUDA_RANKS_H

#include <pthread.h>
#include <stdint.h>

#include "kernels/comm.h"
#include "kernels/kernels.h"

enum { MAX_RANKS = 8, MESSAGE = 512 };

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

enum way { NCCL, PEERS, PROCESSES, PINNED };

/* What the machine has; everything that an earlier test has set is undone. */
void set_way(enum way way);

/* Contexts of `size` ranks; nothing is joined. */
void ranks_begin(struct group *g, struct rank *ranks, int size, enum k_comm_choice choice,
                 uint32_t max_rows, uint32_t cols);
/* Leaves, closes the contexts; nothing may be left of them. */
void ranks_end(struct group *g, struct rank *ranks);
/* Every rank does it in a thread of its own; results in ranks[i].result. */
void ranks_run(struct rank *ranks, int (*what)(struct rank *r));
/* All results; words: a part of every message, NULL = any. */
void ranks_expect(struct rank *ranks, int code, const char *words);

/* ---- for ranks_run ---- */

int rank_join(struct rank *r);
int rank_join_as(struct rank *r, enum k_comm_choice choice); /* not as the group says */
int rank_leave(struct rank *r);
int rank_close(struct rank *r);
int rank_sum(struct rank *r); /* of the values */

/* ---- values ---- */

uint16_t rank_value(uint32_t rank, size_t i, uint32_t seed);
void ranks_give(struct rank *ranks, uint32_t n_rows, uint32_t seed);
void ranks_take(struct rank *ranks); /* frees them */
/* Sums of given values, bit by bit, on every rank. */
void ranks_check_sum(struct rank *ranks, uint32_t n_rows, uint32_t seed);

#endif
