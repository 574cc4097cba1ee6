/* dispatch.h: the steps that are out, and which ranks have answered.
 *
 * A step is done when every rank has answered; all must report the same state hash: ranks that
 * disagree have diverged, and no majority can tell who is right. Pure; loop thread.
 */
#ifndef GLMD_COORDINATOR_DISPATCH_H
#define GLMD_COORDINATOR_DISPATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "coordinator/sched.h"
#include "proto/rpc/wire_worker.h"

enum { DISPATCH_MAX_RANKS = 64 };

struct dispatch_step {
    uint64_t step;
    uint32_t n_tokens;
    int64_t sent_ns, deadline_ns;
    uint32_t n_answers;
    bool answered[DISPATCH_MAX_RANKS];
    uint64_t hash[DISPATCH_MAX_RANKS];
    struct wire_worker_message *result; /* owned: rank 0's answer */
};

struct dispatch {
    uint32_t n_ranks;
    struct dispatch_step steps[SCHED_MAX_IN_FLIGHT];
    uint32_t first, n;
    double ns_per_token; /* of the steps so far, decaying maximum; 0 = none yet */
};

void dispatch_reset(struct dispatch *d, uint32_t n_ranks); /* forgets the steps that are out */

/* A step was sent. Its deadline is `limit_ns` and more for what is known to be long. */
void dispatch_sent(struct dispatch *d, uint64_t step, uint32_t n_tokens, int64_t limit_ns,
                   int64_t now_ns);

/* The oldest step that is out; NULL when there is none. */
const struct dispatch_step *dispatch_oldest(const struct dispatch *d);

/* Rank's answer; takes the message over. 1: the oldest step is complete (dispatch_take); 0: more
 * answers are missing; -EPROTO: the rank answered a step that is not out, or twice; -EBADMSG: ranks
 * disagree. */
int dispatch_answer(struct dispatch *d, uint32_t rank, struct wire_worker_message *m,
                    struct err *e);

/* The result of the complete step, which the caller frees with wire_free_worker_message. */
struct wire_worker_message *dispatch_take(struct dispatch *d, int64_t now_ns);

#endif
