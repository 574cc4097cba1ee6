/* local_group.c: see local_group.h. Every rank is a thread that runs the group's jobs in the order
 * in which they were given. */
#include "worker/engine/local_group.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/util.h"
#include "worker/engine/kept_result.h"

/* A rank that fails aborts the comm, so this only ends what a bug would make endless. */
#define COMM_TIMEOUT_NS (600 * NSEC_PER_SEC)

enum job_kind { JOB_OPEN, JOB_JOIN, JOB_STEP, JOB_KNOWN_ANSWER, JOB_RESET, JOB_QUIT };

struct outcome { /* of a job on a rank; written by its thread, read when the job is done */
    int result;
    struct err error;
    const struct step_result *step;
    uint64_t state_hash;
    uint64_t answer_hash;
};

struct job {
    enum job_kind kind;
    const struct plan *plan;
    bool keep; /* the result has to outlive the next job */
    struct kept_result kept;
    struct outcome *outcomes; /* owned, [n_ranks] */
    uint32_t n_running;       /* threads that have not finished it */
};

struct local_rank {
    struct local_group *group;
    struct engine *engine; /* owned */
    struct comm *comm;     /* owned */
    char device[32];
    struct cpus cpus; /* near to each other */
    pthread_t thread;
};

struct local_group {
    struct engine_config config;
    uint32_t n_ranks;
    struct local_rank *ranks; /* owned, [n_ranks] */
    uint32_t n_threads;       /* started */
    pthread_mutex_t lock;     /* guards what follows, but for the outcomes of running jobs */
    pthread_cond_t changed;
    struct job jobs[LOCAL_GROUP_MAX_STEPS + 1]; /* job i stands at i % that */
    uint64_t n_given, n_taken_back;             /* jobs; the oldest one is n_taken_back */
};

static uint32_t pp_size(const struct engine_config *c)
{
    return MAX(c->pp_size, 1u);
}

static uint32_t threads_per_rank(const struct local_group *g)
{
    uint32_t total = g->config.n_threads;
    if (!total)
        total = cpus_usable();
    return MAX(total / g->n_ranks, 1u);
}

/* The rank whose results are the group's. */
static uint32_t speaker(const struct local_group *g)
{
    return g->n_ranks - g->config.tp_size;
}

/* ---- a rank's thread ---- */

static int open_rank(struct local_rank *rank, struct err *e)
{
    struct local_group *g = rank->group;
    struct engine_config c = g->config;
    uint32_t idx = (uint32_t)(rank - g->ranks);
    c.tp_rank = idx % c.tp_size;
    c.stage = idx / c.tp_size;
    c.device = rank->device;
    c.n_threads = threads_per_rank(g);
    if (g->n_ranks > 1 && !c.cpus) {
        struct cpus allowed;
        cpus_allowed(&allowed);
        cpus_near(CPUS_NODES, &allowed, idx, g->n_ranks, &rank->cpus);
        c.cpus = &rank->cpus;
    }
    if (idx)
        c.on_progress = NULL;
    return engine_open(&c, &rank->engine, e);
}

static int run_step(struct local_rank *rank, struct job *job, struct outcome *o)
{
    struct local_group *g = rank->group;
    int r = engine_step(rank->engine, job->plan, &o->step, &o->error);
    if (r < 0)
        return r;
    o->state_hash = o->step->state_hash;
    if (!job->keep || rank != &g->ranks[speaker(g)])
        return 0;
    r = kept_result_set(&job->kept, o->step, job->plan, model_dir_arch(g->config.model)->vocab);
    o->step = &job->kept.step;
    return r < 0 ? err_set(&o->error, r, "out of memory: result of a step") : 0;
}

static void run_job(struct local_rank *rank, struct job *job, struct outcome *o)
{
    o->result = 0;
    switch (job->kind) {
    case JOB_OPEN:
        o->result = open_rank(rank, &o->error);
        break;
    case JOB_JOIN:
        o->result = engine_set_comm(rank->engine, rank->comm, &o->error);
        break;
    case JOB_STEP:
        o->result = run_step(rank, job, o);
        break;
    case JOB_KNOWN_ANSWER:
        o->result = engine_known_answer(rank->engine, &o->answer_hash, &o->error);
        break;
    case JOB_RESET:
        engine_reset(rank->engine);
        break;
    case JOB_QUIT:
        break;
    }
    /* A plan that contradicts the slots is refused by every rank alike, before any collective. */
    if (o->result < 0 && o->result != -EINVAL && rank->comm)
        rank->comm->ops->abort(rank->comm);
}

static void *rank_main(void *context)
{
    struct local_rank *rank = context;
    struct local_group *g = rank->group;
    pthread_setname_np(pthread_self(), ENGINE_THREAD_NAME);
    for (uint64_t next = 0;; next++) {
        pthread_mutex_lock(&g->lock);
        while (g->n_given == next)
            pthread_cond_wait(&g->changed, &g->lock);
        pthread_mutex_unlock(&g->lock);
        struct job *job = &g->jobs[next % ARRAY_LEN(g->jobs)];
        enum job_kind kind = job->kind; /* the job may be over once it is counted down */
        run_job(rank, job, &job->outcomes[rank - g->ranks]);
        pthread_mutex_lock(&g->lock);
        job->n_running--;
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
        if (kind == JOB_QUIT)
            return NULL;
    }
}

/* ---- jobs ---- */

static void give(struct local_group *g, enum job_kind kind, const struct plan *plan, bool keep)
{
    pthread_mutex_lock(&g->lock);
    assert(g->n_given - g->n_taken_back < ARRAY_LEN(g->jobs));
    struct job *job = &g->jobs[g->n_given % ARRAY_LEN(g->jobs)];
    job->kind = kind;
    job->plan = plan;
    job->keep = keep;
    job->n_running = g->n_threads;
    g->n_given++;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

/* Waits for the oldest job. Its slot is used again after LOCAL_GROUP_MAX_STEPS more. */
static struct job *take_back(struct local_group *g)
{
    pthread_mutex_lock(&g->lock);
    assert(g->n_given != g->n_taken_back);
    struct job *job = &g->jobs[g->n_taken_back % ARRAY_LEN(g->jobs)];
    while (job->n_running)
        pthread_cond_wait(&g->changed, &g->lock);
    g->n_taken_back++;
    pthread_mutex_unlock(&g->lock);
    return job;
}

static struct job *run_everywhere(struct local_group *g, enum job_kind kind,
                                  const struct plan *plan)
{
    assert(g->n_given == g->n_taken_back); /* nothing under way */
    give(g, kind, plan, false);
    return take_back(g);
}

/* The error that came first in importance: a rank that was aborted is not the culprit. */
static int collect(const struct local_group *g, const struct job *job, struct err *e)
{
    const struct outcome *worst = NULL;
    uint32_t n_failed = 0;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        const struct outcome *o = &job->outcomes[i];
        n_failed += o->result < 0;
        if (o->result < 0 && (!worst || worst->result == -ECANCELED))
            worst = o;
    }
    if (!worst)
        return 0;
    if (worst->result == -EINVAL && n_failed != g->n_ranks) {
        for (uint32_t i = 0; i != g->n_ranks; i++)
            g->ranks[i].comm->ops->abort(g->ranks[i].comm);
    }
    if (e)
        *e = worst->error;
    return worst->result;
}

/* ---- life cycle ---- */

static int make_stage_comms(struct local_group *g, struct comm **ret)
{
    uint32_t tp_size = g->config.tp_size;
    int r = 0;
    for (uint32_t i = 0; i != g->n_ranks && r == 0; i += tp_size)
        r = tp_size == 1 ? comm_self_new(&ret[i])
                         : comm_inproc_new((int)tp_size, COMM_TIMEOUT_NS, &ret[i]);
    return r;
}

/* Links of a column, joined with its ranks' stage comms. */
static int make_column(struct local_group *g, uint32_t tp_rank, size_t link_bytes,
                       struct comm **stage_comms)
{
    struct comm *links[COMM_MAX_STAGES];
    uint32_t n_stages = pp_size(&g->config);
    int r = comm_inproc_links_new((int)n_stages, link_bytes, COMM_TIMEOUT_NS, links);
    for (uint32_t stage = 0; stage != n_stages && r == 0; stage++) {
        uint32_t idx = stage * g->config.tp_size + tp_rank;
        r = comm_grid_new(stage_comms[idx], links[stage], &g->ranks[idx].comm);
        stage_comms[idx] = NULL;
        links[stage] = NULL;
        for (uint32_t rest = stage + 1; r < 0 && rest != n_stages; rest++)
            comm_close(links[rest]);
    }
    return r;
}

/* When the engines are open: their steps' size is known. */
static int make_comms(struct local_group *g, struct err *e)
{
    struct comm **stage_comms = alloc_array(g->n_ranks, sizeof(struct comm *));
    int r = stage_comms ? make_stage_comms(g, stage_comms) : -ENOMEM;
    size_t link_bytes = engine_link_bytes(g->ranks[0].engine);
    for (uint32_t i = 0; i != g->config.tp_size && r == 0 && pp_size(&g->config) > 1; i++)
        r = make_column(g, i, link_bytes, stage_comms);
    for (uint32_t i = 0; stage_comms && i != g->n_ranks; i++) {
        if (r == 0 && pp_size(&g->config) == 1)
            g->ranks[i].comm = stage_comms[i];
        else
            comm_close(stage_comms[i]);
    }
    free(stage_comms);
    if (r < 0)
        return err_set(e, r, "collectives of %u ranks: %s", g->n_ranks, err_name(r));
    return 0;
}

static int init_ranks(struct local_group *g, struct err *e)
{
    g->ranks = alloc_array(g->n_ranks, sizeof *g->ranks);
    bool ok = g->ranks != NULL;
    for (size_t i = 0; i != ARRAY_LEN(g->jobs); i++) {
        g->jobs[i].outcomes = alloc_array(g->n_ranks, sizeof *g->jobs[i].outcomes);
        ok = ok && g->jobs[i].outcomes;
    }
    if (!ok)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        struct local_rank *rank = &g->ranks[i];
        rank->group = g;
        if (strcmp(g->config.device, "cuda") == 0)
            snprintf(rank->device, sizeof rank->device, "cuda:%u", i);
        else
            snprintf(rank->device, sizeof rank->device, "%s", g->config.device);
        int r = -pthread_create(&rank->thread, NULL, rank_main, rank);
        if (r < 0)
            return err_set(e, r, "cannot start a thread for rank %u: %s", i, err_name(r));
        g->n_threads++;
    }
    return 0;
}

int local_group_open(const struct engine_config *config, struct local_group **ret, struct err *e)
{
    if (config->tp_size < 1 || config->tp_size > COMM_MAX_RANKS ||
        config->pp_size > COMM_MAX_STAGES)
        return err_set(e, -EINVAL,
                       "a group of %u stages of %u ranks: expected 1..%d stages of 1..%d ranks",
                       pp_size(config), config->tp_size, COMM_MAX_STAGES, COMM_MAX_RANKS);
    struct local_group *g = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, -ENOMEM, "out of memory");
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->config = *config;
    g->n_ranks = config->tp_size * pp_size(config);
    int r = init_ranks(g, e);
    if (r == 0)
        r = collect(g, run_everywhere(g, JOB_OPEN, NULL), e);
    if (r == 0)
        r = make_comms(g, e);
    if (r == 0)
        r = collect(g, run_everywhere(g, JOB_JOIN, NULL), e);
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
    while (g->n_given != g->n_taken_back) /* given and not waited for */
        take_back(g);
    if (g->n_threads) {
        run_everywhere(g, JOB_QUIT, NULL);
        for (uint32_t i = 0; i != g->n_threads; i++)
            pthread_join(g->ranks[i].thread, NULL);
    }
    for (uint32_t i = 0; g->ranks && i != g->n_ranks; i++) /* none has anything of another's open */
        if (g->ranks[i].engine)
            engine_drop_comm(g->ranks[i].engine);
    for (uint32_t i = 0; g->ranks && i != g->n_ranks; i++) {
        engine_close(g->ranks[i].engine);
        comm_close(g->ranks[i].comm);
    }
    for (size_t i = 0; i != ARRAY_LEN(g->jobs); i++) {
        free(g->jobs[i].outcomes);
        kept_result_deinit(&g->jobs[i].kept);
    }
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    free(g->ranks);
    free(g);
}

/* ---- steps ---- */

/* The ranks of a stage have chosen the same and say so. */
static int finish_step(const struct local_group *g, const struct job *job,
                       const struct step_result **ret, struct err *e)
{
    int r = collect(g, job, e);
    if (r < 0)
        return r;
    uint32_t tp_size = g->config.tp_size;
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        uint32_t first = i / tp_size * tp_size;
        if (job->outcomes[i].state_hash != job->outcomes[first].state_hash)
            return err_set(e, -EIO,
                           "ranks disagree after step %llu: rank %u %016llx, rank %u %016llx",
                           (unsigned long long)job->plan->step, first,
                           (unsigned long long)job->outcomes[first].state_hash, i,
                           (unsigned long long)job->outcomes[i].state_hash);
    }
    *ret = job->outcomes[speaker(g)].step;
    return 0;
}

int local_group_step(struct local_group *g, const struct plan *plan, const struct step_result **ret,
                     struct err *e)
{
    return finish_step(g, run_everywhere(g, JOB_STEP, plan), ret, e);
}

int local_group_submit(struct local_group *g, const struct plan *plan)
{
    if (g->n_given - g->n_taken_back == LOCAL_GROUP_MAX_STEPS)
        return -EAGAIN;
    give(g, JOB_STEP, plan, true);
    return 0;
}

int local_group_wait(struct local_group *g, const struct step_result **ret, struct err *e)
{
    return finish_step(g, take_back(g), ret, e);
}

void local_group_reset(struct local_group *g)
{
    run_everywhere(g, JOB_RESET, NULL);
}

int local_group_known_answer(struct local_group *g, uint64_t *ret_hash, struct err *e)
{
    const struct job *job = run_everywhere(g, JOB_KNOWN_ANSWER, NULL);
    int r = collect(g, job, e);
    if (r < 0)
        return r;
    for (uint32_t i = 1; i != g->n_ranks; i++) {
        if (job->outcomes[i].answer_hash != job->outcomes[0].answer_hash)
            return err_set(e, -EIO, "known answer: rank 0 has %016llx, rank %u %016llx",
                           (unsigned long long)job->outcomes[0].answer_hash, i,
                           (unsigned long long)job->outcomes[i].answer_hash);
    }
    *ret_hash = job->outcomes[0].answer_hash;
    return 0;
}

struct engine *local_group_engine(struct local_group *g, uint32_t rank)
{
    assert(rank < g->n_ranks);
    return g->ranks[rank].engine;
}
