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

struct stream; /* opaque */

/* Before the request is submitted. */
int stream_new(const struct tokenizer *t, const struct arch *a, struct request *r, bool return_ids,
               struct stream **ret);
void stream_free(struct stream *s); /* after the request has ended */

/* Appends the next message to `out` (a GenerateResponse, FillResponse or ScoreResponse; a Score has
 * one, at its end). 1: there was something to say; 0: nothing new; -ENOMEM. When the request has
 * ended well, the message is the last one and has the usage. */
int stream_next(struct stream *s, const struct request *r, struct buf *out);

/* The log-probabilities of a prompt (admit_echo's request, which has ended well) come in front of
 * everything else, in as many messages as it takes: 1: here is one; 0: there are no more. `next` is
 * the request whose stream this is; NULL: nothing is generated, the last message has the usage. */
int stream_prompt(struct stream *s, const struct request *scored, const struct request *next,
                  struct buf *out);

/* SAT's detokenize of any ids: those that no text belongs to are left out. */
int stream_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text);

#endif
