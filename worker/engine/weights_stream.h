/* weights_stream.h: the readers of weights.c: threads that take stored tensors, read them piece by
 * piece and hand the pieces to the device (kernels/feed.h), checksums included. Inside the engine.
 *
 *   driver (weights.c)   open -> push, push, ... -> progress -> finish -> close
 *   readers              take a job -> buffer -> read, sum up, keep what is this rank's -> hand
 * over
 *
 * With checksums a job is a whole tensor, which one thread reads from front to back, whatever part
 * of it the rank wants; without them only that part, cut into ranges that several threads share.
 */
#ifndef GLMD_WORKER_ENGINE_WEIGHTS_STREAM_H
#define GLMD_WORKER_ENGINE_WEIGHTS_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/feed.h"
#include "worker/engine/weights.h"

struct stream; /* opaque; one thread drives it */

/* A stored tensor and what of it becomes rows [0, ..) of `to`: the slices, one behind the other, in
 * ascending rows and with the same columns. */
struct stream_job {
    const struct st_tensor *tensor;
    struct model_slice slices[2];
    size_t n_slices;
    struct k_linear *to;
    bool scales;        /* its scales, not its weights */
    bool to_int8;       /* FP16 rows, of which `to` is to have INT8 ones with a scale each */
    uint32_t first_row; /* of `to`: 0, but for the ranges that the stream cuts */
};

int stream_open(const struct weights_load *load, struct stream **ret, struct err *e);
/* Readers may begin with it at once. -ENOMEM. */
int stream_push(struct stream *s, const struct stream_job *job, struct err *e);
/* Bytes for this rank that have been handed over. */
uint64_t stream_done(struct stream *s);
/* 0, or what a reader has failed with. */
int stream_failed(struct stream *s, struct err *e);
/* Waits until all jobs are done, a reader has failed, or some time has passed. True: all done. */
bool stream_wait(struct stream *s);
/* Ends the readers, wherever they are, and waits for the device. NULL is fine. */
void stream_close(struct stream *s);

uint32_t stream_n_threads(const struct stream *s);
uint64_t stream_read_bytes(struct stream *s); /* from files, what other ranks own included */

#endif
