/* stream.h: from a request's tokens to the messages of its stream.
 *
 * Keeps per request what the client has been sent so far; each call looks at the request and packs
 * whatever is new. Text comes out as soon as no later token can change it, and only in whole UTF-8
 * characters. A request with stop texts is watched: its outputs end where one is complete, and what
 * may be the beginning of one is held back until it is settled. No sockets; loop thread.
 */
#ifndef GLMD_COORDINATOR_STREAM_H
#define GLMD_COORDINATOR_STREAM_H

#include "base/buf.h"
#include "coordinator/request.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/rpc/wire_inference.h"

struct stream; /* opaque */

/* What a client is told; one of them is set. */
struct stream_message {
    const struct wire_generate_response *generate;
    const struct wire_fill_response *fill;
    const struct wire_score_response *score;
};

/* Gets a message, which is valid during the call. 0, or a negative errno value to be passed on. */
typedef int stream_take(void *context, const struct stream_message *m);

/* Before the request is submitted. */
int stream_new(const struct tokenizer *t, const struct arch *a, struct request *r, bool return_ids,
               struct stream **ret);
void stream_free(struct stream *s); /* after the request has ended */

/* Gives the next message to `take` (a Score has one, at its end). 1: there was something to say; 0:
 * nothing new; -ENOMEM or what `take` returned. When the request has ended well, the message is the
 * last one and has the usage. */
int stream_next(struct stream *s, const struct request *r, stream_take *take, void *context);

/* The log-probabilities of a prompt (admit_echo's request, which has ended well) come in front of
 * everything else, in as many messages as it takes: 1: here is one; 0: there are no more. `next` is
 * the request whose stream this is; NULL: nothing is generated, the last message has the usage. */
int stream_prompt(struct stream *s, const struct request *scored, const struct request *next,
                  stream_take *take, void *context);

/* A stream_take whose context is a struct buf: appends the message as protobuf. */
int stream_pack(void *buf, const struct stream_message *m);

/* SAT's detokenize of any ids: those that no text belongs to are left out. */
int stream_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text);

#endif
