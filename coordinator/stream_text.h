/* stream_text.h: the text of one output as it grows: what of it may be sent, and where it stops.
 *
 * Without stop texts everything that the detokenizer gives out may be sent at once. With them, text
 * that may be the beginning of one is held back, and so are the tokens it comes from: tokens are
 * sent once all their text may be. A token without text of its own (byte pieces of an unfinished
 * character) goes with the text that follows. Owned by a stream; loop thread.
 */
#ifndef GLMD_COORDINATOR_STREAM_TEXT_H
#define GLMD_COORDINATOR_STREAM_TEXT_H

#include "base/buf.h"
#include "coordinator/stop.h"
#include "model/tokenizer/tokenizer.h"

struct stream_text {              /* zero-initialised = nothing yet */
    struct token_stream *decoder; /* owned */
    struct buf text;              /* all of it so far */
    size_t *ends;                 /* with stop texts: [n_tokens] bytes of text up to each token */
    size_t capacity;
    size_t n_tokens; /* decoded */
    bool ended;      /* nothing more comes */
    struct stop_search search;
    size_t n_sent_bytes, n_sent_tokens;
    bool told_end;
};

void stream_text_deinit(struct stream_text *x);

/* The output has n tokens by now; `end`: and no more will come. -ENOMEM. */
int stream_text_push(struct stream_text *x, const struct tokenizer *t, const struct stop_set *stops,
                     const int32_t *tokens, size_t n, bool end);

/* Looks at what is new; true: a stop text is complete. `search_only`: it does not count yet. */
bool stream_text_find(struct stream_text *x, const struct stop_set *stops, bool search_only,
                      struct stop_match *ret);

/* The text ends after `size` bytes. Returns how many tokens it takes to cover it; the text of the
 * last one may be longer. */
size_t stream_text_cut(struct stream_text *x, size_t size);

/* How much may be sent by now. */
size_t stream_text_bytes(const struct stream_text *x, const struct stop_set *stops);
size_t stream_text_tokens(const struct stream_text *x, const struct stop_set *stops);

/* Tokens for exactly the text: those that lie wholly inside it, then, where a token was cut, the
 * rest of its text encoded anew. Where that is not possible the rest has no tokens. */
int stream_text_encode(const struct stream_text *x, const struct tokenizer *t,
                       const int32_t *tokens, struct token_list *ret);

#endif
