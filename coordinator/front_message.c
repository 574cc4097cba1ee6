/* front_message.c: see front_message.h. */
#include "coordinator/front_message.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"

static void message_free(struct front_message *m)
{
    m->ops->deinit(m);
    buf_deinit(&m->job.input);
    free(m);
}

static void run(struct front_job *job)
{
    struct front_message *m = (struct front_message *)job;
    m->code = m->ops->read(m, (const uint8_t *)job->input.data, job->input.size);
}

static void done(struct front_job *job)
{
    struct front_message *m = (struct front_message *)job;
    if (m->slot) {
        *m->slot = NULL;
        m->ops->take(m->rpc, m);
    }
    message_free(m);
}

int front_message_read(struct coordinator *c, const struct front_message_ops *ops, int method,
                       void *rpc, struct front_message **slot, const uint8_t *data, size_t size)
{
    assert(ops->size >= sizeof(struct front_message));
    assert(!*slot);
    struct front_message *m = calloc(1, ops->size);
    if (!m)
        return -ENOMEM;
    m->ops = ops;
    m->rpc = rpc;
    m->slot = slot;
    m->method = method;
    m->arrived_ns = clock_now_ns();
    m->code = -ECANCELED; /* unless it is run */
    m->job.run = run;
    m->job.done = done;
    int r = buf_append(&m->job.input, data, size);
    if (r == 0) {
        *slot = m;
        r = front_job_start(c, &m->job);
        if (r == 0)
            return 0;
        *slot = NULL;
    }
    message_free(m);
    return r;
}

void front_message_leave(struct front_message **slot)
{
    if (*slot)
        (*slot)->slot = NULL;
    *slot = NULL;
}
