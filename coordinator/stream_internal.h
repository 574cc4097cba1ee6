/* stream_internal.h: what stream.c and stream_fill.c share. */
#ifndef GLMD_COORDINATOR_STREAM_INTERNAL_H
#define GLMD_COORDINATOR_STREAM_INTERNAL_H

#include "coordinator/stream.h"
#include "coordinator/stream_text.h"

struct stream {
    /* borrowed */
    const struct tokenizer *tokenizer;
    const struct arch *arch;
    /* owned */
    struct stream_text *texts; /* [n_texts]: of each choice; Fill: of each blank so far */
    /* state */
    uint32_t n_texts;
    uint32_t n_told;   /* Fill: blanks whose end was told */
    uint32_t n_scored; /* tokens of the prompt */
    bool return_ids;
    bool started; /* the first message is out */
};

enum wire_finish_reason stream_finish(enum finish f);
struct wire_usage stream_usage(const struct stream *s, const struct request *r);

/* The text of blank `index`, made when it is not there yet; NULL: out of memory. */
struct stream_text *stream_blank(struct stream *s, uint32_t index);
int stream_next_fill(struct stream *s, const struct request *r, stream_take *take, void *context);

#endif
