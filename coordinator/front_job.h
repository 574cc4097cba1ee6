/* front_job.h: what a client sent is read, tokenized and admitted. Short texts at once; long ones
 * would hold the loop, and everybody's tokens, for tens of milliseconds, and go to the driver's
 * threads (coordinator_ops.work).
 *
 *   loop     front_job_start -> |                                 front_job_end -> done
 *   thread                      | -> front_job_run -> run -> |
 *
 * A job outlives the call that it is for: whoever starts one leaves it a way to see that nobody
 * waits for it any more. When the coordinator stops, what runs is waited for, and what has not
 * begun is done without having been run.
 */
#ifndef GLMD_COORDINATOR_FRONT_JOB_H
#define GLMD_COORDINATOR_FRONT_JOB_H

#include "base/buf.h"

struct coordinator;

enum {
    FRONT_JOB_LONG_BYTES = 32 * 1024, /* about a millisecond */
    FRONT_JOB_MAX = 64,               /* with a thread or waiting for one */
};

struct front_job {
    /* Any thread: touches the job alone, and of the coordinator what never changes. Not called
     * when the coordinator stops before. */
    void (*run)(struct front_job *j);
    /* Loop thread, once, behind it: the job may be freed. */
    void (*done)(struct front_job *j);
    struct buf input;                /* owned: what was sent, for `run`; empty behind it */
    struct coordinator *coordinator; /* set by front_job_start */
};

/* Runs j at once, `done` included, when its input is short or the driver has no threads; else
 * beside the loop. On failure neither was called, and j is the caller's. -EBUSY: there are too many
 * already; -ECANCELED: the coordinator stops. Loop thread. */
int front_job_start(struct coordinator *c, struct front_job *j);
/* What a client is told of such a failure, or of a job that was never run (-ECANCELED). */
const char *front_job_refusal(int code);

/* For the driver: on a thread of its choice, then on the loop's. */
void front_job_run(struct front_job *j);
void front_job_end(struct front_job *j);

#endif
