/* local_group.c: see local_group.h. Rank 0 runs on the caller's thread, every other rank on a
 * thread of its own that waits for jobs. */
#include "worker/engine/local_group.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

/* A rank that fails aborts the comm, so this only ends what a bug would make endless. */
#define COMM_TIMEOUT_NS (600 * NSEC_PER_SEC)

enum job { JOB_OPEN, JOB_STEP, JOB_KNOWN_ANSWER, JOB_RESET, JOB_QUIT };

struct local_rank {
    struct local_group *group;
    struct engine *engine; /* owned */
    struct comm *comm;     /* owned */
    char device[32];
    pthread_t thread; /* ranks 1.. */
    /* of the last job */
    int result;
    struct err error;
    const struct step_result *step;
    uint64_t hash;
};

struct local_group {
    struct engine_config config;
    uint32_t n_ranks;
    struct local_rank *ranks; /* owned, [n_ranks] */
    uint32_t n_threads;       /* started */
    pthread_mutex_t lock;     /* guards what follows */
    pthread_cond_t changed;
    enum job job;
    const struct plan *plan;
    uint64_t job_number; /* +1 per job */
    uint32_t n_running;  /* threads that have not finished it */
};

static uint32_t threads_per_rank(const struct engine_config *c)
{
    uint32_t total = c->n_threads;
    cpu_set_t allowed;
    if (!total && sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        total = (uint32_t)CPU_COUNT(&allowed);
    return MAX(total / c->tp_size, 1u);
}

static int open_rank(struct local_rank *rank)
{
    struct local_group *g = rank->group;
    struct engine_config c = g->config;
    c.tp_rank = (uint32_t)(rank - g->ranks);
    c.device = rank->device;
    c.n_threads = threads_per_rank(&g->config);
    if (c.tp_rank)
        c.on_progress = NULL;
    int r = engine_open(&c, &rank->engine, &rank->error);
    return r < 0 ? r : engine_set_comm(rank->engine, rank->comm, &rank->error);
}

static void run_job(struct local_rank *rank, enum job job, const struct plan *plan)
{
    rank->result = 0;
    switch (job) {
    case JOB_OPEN:
        rank->result = open_rank(rank);
        break;
    case JOB_STEP:
        rank->result = engine_step(rank->engine, plan, &rank->step, &rank->error);
        break;
    case JOB_KNOWN_ANSWER:
        rank->result = engine_known_answer(rank->engine, &rank->hash, &rank->error);
        break;
    case JOB_RESET:
        engine_reset(rank->engine);
        break;
    case JOB_QUIT:
        break;
    }
    /* A plan that contradicts the slots is refused by every rank alike, before any collective. */
    if (rank->result < 0 && rank->result != -EINVAL)
        rank->comm->ops->abort(rank->comm);
}

static void *rank_main(void *context)
{
    struct local_rank *rank = context;
    struct local_group *g = rank->group;
    uint64_t done = 0;
    for (;;) {
        pthread_mutex_lock(&g->lock);
        while (g->job_number == done)
            pthread_cond_wait(&g->changed, &g->lock);
        done = g->job_number;
        enum job job = g->job;
        const struct plan *plan = g->plan;
        pthread_mutex_unlock(&g->lock);
        run_job(rank, job, plan);
        pthread_mutex_lock(&g->lock);
        g->n_running--;
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
        if (job == JOB_QUIT)
            return NULL;
    }
}

/* The job on every rank; returns when all have finished it. */
static void run_everywhere(struct local_group *g, enum job job, const struct plan *plan)
{
    pthread_mutex_lock(&g->lock);
    g->job = job;
    g->plan = plan;
    g->job_number++;
    g->n_running = g->n_threads;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    run_job(&g->ranks[0], job, plan);
    pthread_mutex_lock(&g->lock);
    while (g->n_running)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

/* The error that came first in importance: a rank that was aborted is not the culprit. */
static int collect(const struct local_group *g, struct err *e)
{
    const struct local_rank *worst = NULL;
    uint32_t n_failed = 0;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        const struct local_rank *rank = &g->ranks[i];
        n_failed += rank->result < 0;
        if (rank->result < 0 && (!worst || worst->result == -ECANCELED))
            worst = rank;
    }
    if (!worst)
        return 0;
    if (worst->result == -EINVAL && n_failed != g->n_ranks)
        worst->comm->ops->abort(worst->comm);
    if (e)
        *e = worst->error;
    return worst->result;
}

static int start_threads(struct local_group *g, struct err *e)
{
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        int r = -pthread_create(&g->ranks[i].thread, NULL, rank_main, &g->ranks[i]);
        if (r < 0)
            return err_set(e, r, "cannot start a thread for rank %u: %s", i, err_name(r));
        g->n_threads++;
    }
    return 0;
}

static int make_comms(struct local_group *g, struct err *e)
{
    struct comm *comms[COMM_MAX_RANKS];
    int r = g->n_ranks == 1 ? comm_self_new(comms)
                            : comm_inproc_new((int)g->n_ranks, COMM_TIMEOUT_NS, comms);
    if (r < 0)
        return err_set(e, r, "collectives of %u ranks: %s", g->n_ranks, err_name(r));
    for (uint32_t i = 0; i != g->n_ranks; i++)
        g->ranks[i].comm = comms[i];
    return 0;
}

int local_group_open(const struct engine_config *config, struct local_group **ret, struct err *e)
{
    if (config->tp_size < 1 || config->tp_size > COMM_MAX_RANKS)
        return err_set(e, -EINVAL, "ranks: expected 1..%d, found %u", COMM_MAX_RANKS,
                       config->tp_size);
    struct local_group *g = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, -ENOMEM, "out of memory");
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->config = *config;
    g->ranks = alloc_array(config->tp_size, sizeof *g->ranks);
    if (!g->ranks) {
        local_group_close(g);
        return err_set(e, -ENOMEM, "out of memory");
    }
    g->n_ranks = config->tp_size;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        g->ranks[i].group = g;
        if (strcmp(config->device, "cuda") == 0)
            snprintf(g->ranks[i].device, sizeof g->ranks[i].device, "cuda:%u", i);
        else
            snprintf(g->ranks[i].device, sizeof g->ranks[i].device, "%s", config->device);
    }
    int r = make_comms(g, e);
    if (r == 0)
        r = start_threads(g, e);
    if (r == 0) {
        run_everywhere(g, JOB_OPEN, NULL);
        r = collect(g, e);
    }
    if (r < 0) {
        local_group_close(g);
        return r;
    }
    *ret = g;
    return 0;
}

void local_group_close(struct local_group *g)
{
    if (!g)
        return;
    if (g->n_threads) {
        run_everywhere(g, JOB_QUIT, NULL);
        for (uint32_t i = 1; i <= g->n_threads; i++)
            pthread_join(g->ranks[i].thread, NULL);
    }
    for (uint32_t i = 0; g->ranks && i != g->n_ranks; i++) {
        engine_close(g->ranks[i].engine);
        comm_close(g->ranks[i].comm);
    }
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    free(g->ranks);
    free(g);
}

int local_group_step(struct local_group *g, const struct plan *plan, const struct step_result **ret,
                     struct err *e)
{
    run_everywhere(g, JOB_STEP, plan);
    int r = collect(g, e);
    if (r < 0)
        return r;
    const struct step_result *first = g->ranks[0].step;
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        uint64_t hash = g->ranks[i].step->state_hash;
        if (hash != first->state_hash)
            return err_set(e, -EIO,
                           "ranks disagree after step %llu: rank 0 %016llx, rank %u %016llx",
                           (unsigned long long)plan->step, (unsigned long long)first->state_hash, i,
                           (unsigned long long)hash);
    }
    *ret = first;
    return 0;
}

void local_group_reset(struct local_group *g)
{
    run_everywhere(g, JOB_RESET, NULL);
}

int local_group_known_answer(struct local_group *g, uint64_t *ret_hash, struct err *e)
{
    run_everywhere(g, JOB_KNOWN_ANSWER, NULL);
    int r = collect(g, e);
    if (r < 0)
        return r;
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        if (g->ranks[i].hash != g->ranks[0].hash)
            return err_set(e, -EIO, "known answer: rank 0 has %016llx, rank %u %016llx",
                           (unsigned long long)g->ranks[0].hash, i,
                           (unsigned long long)g->ranks[i].hash);
    }
    *ret_hash = g->ranks[0].hash;
    return 0;
}

struct engine *local_group_engine(struct local_group *g, uint32_t rank)
{
    assert(rank < g->n_ranks);
    return g->ranks[rank].engine;
}
