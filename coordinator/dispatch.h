/* dispatch.h: the steps of a group that are out, and which ranks have answered.
 *
 * A step is done when every rank has answered. All ranks of a stage must report the same state
 * hash: ranks that disagree have diverged, and no majority can tell who is right. The result is the
 * last stage's. Every rank answers in the order of the steps. Pure; loop thread.
 */
#ifndef GLMD_COORDINATOR_DISPATCH_H
#define GLMD_COORDINATOR_DISPATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/rpc/wire_worker.h"

enum { DISPATCH_MAX_RANKS = 64 };

struct dispatch_step {
    uint64_t step;
    uint32_t n_tokens;
    int64_t sent_ns;
    int64_t deadline_ns; /* 0 until it is the oldest */
    uint32_t n_answers;
    bool answered[DISPATCH_MAX_RANKS];
    uint64_t hash[DISPATCH_MAX_RANKS];
    struct wire_worker_message *result; /* owned: the answer of the last stage's first rank */
};

struct dispatch {
    uint32_t tp_size, n_stages, n_ranks;
    struct dispatch_step *steps; /* owned, a ring of `capacity` */
    uint32_t capacity;           /* n_stages + 1 */
    uint32_t first, n;
    double ns_per_token; /* of the steps so far, decaying maximum; 0 = none yet */
};

/* Rank = stage * tp_size + rank within the stage. -ENOMEM. */
int dispatch_init(struct dispatch *d, uint32_t tp_size, uint32_t n_stages);
void dispatch_deinit(struct dispatch *d);
void dispatch_reset(struct dispatch *d); /* forgets the steps that are out */

/* Whether one more step can be out: one for each stage to work on, and one that waits. */
bool dispatch_has_room(const struct dispatch *d);

/* A step was sent. It may take `limit_ns`, and more for what is known to be long, from when it is
 * the oldest one. */
void dispatch_sent(struct dispatch *d, uint64_t step, uint32_t n_tokens, int64_t limit_ns,
                   int64_t now_ns);

/* The oldest step that is out; NULL when there is none. */
const struct dispatch_step *dispatch_oldest(const struct dispatch *d);

/* Rank's answer; takes the message over. 1: the oldest step is complete (dispatch_take); 0: more
 * answers are missing; -EPROTO: not the step whose turn it was; -EBADMSG: ranks disagree. */
int dispatch_answer(struct dispatch *d, uint32_t rank, struct wire_worker_message *m,
                    struct err *e);

/* The result of the complete step, which the caller frees with wire_free_worker_message. */
struct wire_worker_message *dispatch_take(struct dispatch *d, int64_t limit_ns, int64_t now_ns);

#endif
