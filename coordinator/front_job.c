/* front_job.c: see front_job.h. */
#include "coordinator/front_job.h"

#include <assert.h>
#include <errno.h>

#include "coordinator/coordinator.h"

static bool is_long(const struct coordinator *c, const struct front_job *j)
{
    return c->ops->work && j->input.size > FRONT_JOB_LONG_BYTES;
}

int front_job_start(struct coordinator *c, struct front_job *j)
{
    j->coordinator = c;
    if (!is_long(c, j)) {
        j->run(j);
        buf_deinit(&j->input);
        j->done(j);
        return 0;
    }
    if (c->stopping)
        return -ECANCELED;
    if (c->n_jobs == FRONT_JOB_MAX || !c->ops->work(c->ops_context, j))
        return -EBUSY;
    c->n_jobs++;
    return 0;
}

const char *front_job_refusal(int code)
{
    switch (code) {
    case -EBUSY:
        return "too many long texts are read at once";
    case -ECANCELED:
        return "the server stops";
    default:
        return "out of memory";
    }
}

void front_job_run(struct front_job *j)
{
    if (!atomic_load_explicit(&j->coordinator->jobs_dropped, memory_order_relaxed))
        j->run(j);
    buf_deinit(&j->input);
}

void front_job_end(struct front_job *j)
{
    struct coordinator *c = j->coordinator;
    assert(c->n_jobs > 0);
    c->n_jobs--;
    j->done(j);
    coordinator_part_stopped(c);
}
